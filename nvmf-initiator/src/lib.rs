//! Attaches NVMe over Fabrics namespaces: as a library, a daemon and a command line.

pub mod address;
pub mod block;
pub mod config;
pub mod host;
pub mod options;
