//! The data path: one thread with one ring for each core of the set.

mod message;

pub use message::{
    CloseReason, NamespaceFault, QueueStats, Reply, Scope, ShardEvent, ShardMessage, ShardStats,
};
