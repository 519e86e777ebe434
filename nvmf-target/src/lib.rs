//! The target: serves namespaces from files, block devices, local NVMe devices and memory over NVMe/TCP.
//!
//! - [`config`]: what the user asked for, from flags or a file.
//! - [`model`]: subsystems, namespaces, allowed hosts, controllers.
//! - [`backend`]: where the blocks of a namespace are.
//! - [`shard`]: the data path, one thread and one ring for each core.

pub mod backend;
pub mod config;
pub mod model;
pub mod shard;
