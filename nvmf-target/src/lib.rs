//! The target: serves namespaces from files, block devices, local NVMe devices and memory over NVMe/TCP and NVMe/RDMA.
//!
//! - [`api`]: the management API.
//! - [`config`]: what the user asked for, from flags or a file.
//! - [`control`]: the control thread: connections, admin queues, discovery, reload.
//! - [`model`]: subsystems, namespaces, allowed hosts, controllers.
//! - [`pool`]: volumes, snapshots and clones as files of a file system.
//! - [`backend`]: where the blocks of a namespace are.
//! - [`rdma`]: what both threads share of the RDMA transport.
//! - [`shard`]: the data path, one thread and one ring for each core.
//! - [`logging`]: log lines.

pub mod api;
pub mod backend;
pub mod config;
pub mod control;
pub mod logging;
pub mod model;
pub mod pool;
pub mod rdma;
pub mod shard;
