//! The core: I/O queues on shards, controllers on the control thread, and what passes between them.
//!
//! ```text
//!            control thread (tokio-uring)                       shard (one thread, one ring)
//!  connect -> controller task: admin queue,   --ToShard-->   queue: HostConn over a socket
//!             keep-alive, events, reconnect   <--FromShard-- head: one namespace, holds I/O over a loss
//! ```
//!
//! A controller makes every connection itself, the I/O queues included, and gives each I/O queue with its socket to
//! the shard that owns it from then on. A shard never waits for anything but its ring; everything slow or rare
//! (resolving, connecting, identifying, deciding what a loss means) is on the control thread.
//!
//! **No stale write.** When an association ends, every shard shuts and closes its sockets of it, waits until the kernel
//! holds no operation on them, and says so; only then is a new association made, and only on its queues are held commands
//! sent again. Sockets close with a reset, so nothing of the old association stays in a send buffer of this host.

pub(crate) mod aborts;
pub(crate) mod admin;
pub(crate) mod association;
pub mod controller;
pub mod discovery;
pub mod error;
pub(crate) mod head;
pub(crate) mod link;
pub mod message;
pub mod namespace;
pub mod policy;
pub mod queue;
pub mod request;
pub(crate) mod requests;
pub mod scan;
pub mod shard;
