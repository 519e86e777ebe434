//! RDMA: connections by librdmacm, work by libibverbs, behind safe types. The one place that touches either.
//!
//! | file | what it is |
//! |---|---|
//! | `abi` | the libraries' structures |
//! | `library` | finding the libraries at run time, errors |
//! | `cm` | [`EventChannel`], [`CmId`]: listening, connecting, accepting, private data |
//! | `devices` | the devices that this process has open, and closing those that are removed |
//! | `domain` | [`ProtectionDomain`]: a device, its limits |
//! | `memory` | [`Registrar`]: buffers of a pool registered with a device |
//! | `window` | memory windows: a key for one buffer, from one work request to another |
//! | `completion` | [`CompletionQueue`] and the descriptor that wakes who waits for it |
//! | `work` | [`SendWork`], [`Done`]: receives, SEND, READ, WRITE, invalidation, windows |
//! | `queue_pair` | [`QueuePair`], which they are posted on |
//! | `failure` | why a queue pair with the protocol's state is of no more use |
//!
//! Waiting for completions: poll, arm, poll again, sleep until the queue's descriptor is readable, take its events.
//!
//! Invariant that makes the rest sound: memory that a device may touch is owned by an entry of the queue pair until the work
//! request has completed or the queue pair is destroyed, and every registration owns the mapping that it covers.

pub mod abi;
mod cm;
mod completion;
mod devices;
mod domain;
mod failure;
mod library;
mod memory;
mod queue_pair;
mod window;
mod work;

pub use cm::{CmEvent, CmEventKind, CmId, ConnectParams, EventChannel, IdKey};
pub use completion::CompletionQueue;
pub use devices::close_removed;
pub use domain::{DeviceLimits, ProtectionDomain};
pub use failure::LinkFailure;
pub use library::{VerbsError, available};
pub use memory::{Bindable, Lent, Registrar, RemoteAccess, Segment};
pub use queue_pair::{IdleQueuePair, QueuePair};
pub use work::{Done, HEADER_BYTES, NoRoom, QueueSizes, Remote, SendWork, WorkCounts, WorkStatus};
