//! The core: I/O queues on shards, controllers on the control thread, and what passes between them.
//!
//! ```text
//!            control thread (tokio-uring)                       shard (one thread, one ring)
//!  connect -> controller task: admin queue,   --ToShard-->   queue: HostConn on a socket or queue pair
//!             keep-alive, events, reconnect   <--FromShard-- head: one namespace, holds I/O over a loss
//! ```
//!
//! A controller makes every connection itself, the I/O queues included, and gives each I/O queue with its socket to
//! the shard that owns it from then on. A shard never waits for anything but its ring; everything slow or rare
//! (resolving, connecting, identifying, deciding what a loss means) is on the control thread.
//!
//! A transport is what carries a queue: `link` connects, `admin` and `queue` have what is common to an admin and an I/O queue, and in
//! each of the three `tcp` and `rdma` are how bytes or work requests travel. All above knows no transport.
//!
//! **No stale write.** When an association ends, every shard ends its connections of it, waits until kernel and device hold nothing of
//! them, and says so; only then is a new association made, and only on its queues are held commands
//! sent again. Sockets close with a reset, so nothing of the old association stays in a send buffer of this host; queue pairs are
//! destroyed, so the target can neither fetch data of an old command nor write into the buffer of one.

pub(crate) mod aborts;
pub(crate) mod admin;
pub(crate) mod association;
pub mod controller;
pub mod discovery;
pub mod error;
pub(crate) mod head;
pub(crate) mod keep_alive;
pub(crate) mod link;
pub mod message;
pub mod namespace;
pub mod policy;
pub mod queue;
pub(crate) mod rdma;
pub mod request;
pub(crate) mod requests;
pub(crate) mod rotation;
pub mod scan;
pub mod shard;
