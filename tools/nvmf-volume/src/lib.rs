//! Volumes on a node: attached through the initiator's daemon, formatted once, checked, mounted, grown, and taken away again.
//!
//! ```text
//!  attach ──► probe ──► mkfs (blank only) ──► fsck ──► mount ──► grow          Node::attach, stage
//!    ▲                                                   │
//!    └── detach ◄──────────────────────────────────── unmount                  unstage, Node::detach
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`node`] | devices from the daemon, and who claims them |
//! | [`mod@stage`] | from a device to a mounted file system, and back |
//! | [`content`] | what is on a device |
//! | [`mod@file`] | small files that are there whole or not at all |
//! | [`filesystem`] | making, checking and growing ext4 and XFS |
//! | [`mount`] | mounting, binding, unmounting |
//! | [`mountinfo`] | what is mounted, here and in containers |
//! | [`lock`] | one operation on a volume at a time, over the death of a process |
//! | [`stats`] | how full a file system is |
//!
//! Invariants that every function keeps:
//! - It may have been killed at any point before: called again, it goes on from what it finds. What is found is read from the
//!   kernel, the daemon and the device, never from a note about what was going to be done.
//! - Only a blank device is formatted: one with nothing that `blkid` knows and zeroes where data would begin, or one on which a
//!   mkfs was interrupted. All else is somebody's data.
//! - Whoever changes a volume holds its [`VolumeLock`], and so does every program that is run on its device, even when it
//!   outlives the caller.
//!
//! All calls block; asynchronous callers give them a thread.

pub mod content;
pub mod error;
pub mod file;
pub mod filesystem;
pub mod lock;
pub mod mount;
pub mod mountinfo;
pub mod node;
pub mod stage;
pub mod stats;
mod tool;

pub use content::Content;
pub use error::{Error, Kind};
pub use filesystem::FsKind;
pub use lock::VolumeLock;
pub use node::{AttachSpec, Attached, Claim, Node, NodeOptions, Seen};
pub use stage::{FsSpec, Staged, stage, unstage};

/// What the initiator's daemon is asked in.
pub use nvmf_initiator::daemon::api::NamespaceSelector;
/// Where a volume is and who asks for it.
pub use nvmf_initiator::{address::Address, host::HostIdentity, options::ConnectOptions};

/// Keep-alive time-out of volumes' associations, in seconds. A node that starts hundreds of pods at once may have no processor for the daemon, or the
/// target, for longer than the five seconds that hosts usually ask for. Nothing waits for it to run out: a volume that moves is fenced.
pub const KEEP_ALIVE_TMO: u32 = 15;

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;
