//! Attaches NVMe over Fabrics namespaces: as a library, a daemon and a command line.

pub mod address;
pub mod block;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod daemon;
pub mod handle;
pub mod host;
pub mod options;
pub mod polled;
pub mod tokens;

/// The wire types that appear in this library's interface.
pub use nvme_proto::wire;
