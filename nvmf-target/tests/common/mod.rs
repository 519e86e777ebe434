//! A shard with sockets but without a control thread, and a small blocking host: what the data path tests drive it with.
//!
//! The rig plays the control thread: it makes the namespaces, hands accepted sockets over as if Connect had been received, and asks for
//! pauses, drains and drops. The host is the protocol crate's own state machine on a blocking socket.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub mod host;
pub mod mount;
pub mod rig;

pub use host::{Done, TestHost};
pub use mount::Mount;
pub use rig::{ConnectOptions, Rig, SIZE, file_in, memory, namespace, namespace_on};
