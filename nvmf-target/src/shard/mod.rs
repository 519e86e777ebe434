//! The data path: one thread with one ring for each core of the set.
//!
//! A connection belongs to one shard for life, and a command stays there from socket to storage and back: no lock, no allocation and no call to another thread
//! on its way. The control thread sends [`ShardMessage`]s and gets [`ShardEvent`]s.
//!
//! | file | what it is |
//! |---|---|
//! | `run` | the loop |
//! | `disks` | what each connection may have on a disk |
//! | `pace` | when the first of a batch go ahead |
//! | `queue` | a connection with its commands: from command to completion |
//! | `wire` | what carries it: TCP or RDMA |
//! | `receive`, `transmit` | the two halves of a TCP connection |
//! | `rdma` | an RDMA link |
//! | `lifecycle` | its end, and Abort |
//! | `slot`, `spaces` | what is known of a command, and of a namespace |
//! | `context`, `token` | what the queues share, and what tells their operations apart |
//! | `message`, `control` | what the control thread says, and what becomes of it |
//! | `handle` | starting a shard |

mod context;
mod control;
mod disks;
mod handle;
mod lifecycle;
mod message;
mod pace;
mod queue;
mod rdma;
mod receive;
mod run;
mod slot;
mod spaces;
mod token;
mod transmit;
mod wire;

pub use handle::{Patience, ShardConfig, ShardError, ShardGone, ShardHandle};
pub use message::{
    Adopt, CloseReason, Connection, QueueStats, Reply, Scope, ShardEvent, ShardMessage, ShardStats,
};
