//! The library against targets in other processes, and against one in this process that misbehaves as it is told.

mod breach;
mod changes;
mod handle;
mod late;
mod loss;
mod polled;
mod puppet;
mod shard;
mod target;
