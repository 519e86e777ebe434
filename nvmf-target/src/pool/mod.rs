//! Pools: volumes and snapshots as files of a file system.
//!
//! A pool is a folder, as a rule the root of a file system of its own. A volume is a sparse file that is served as a namespace; a
//! snapshot is a reflink of one that nobody writes; a clone is a reflink that is a volume again.
//!
//! ```text
//! PATH/nvmf-pool.json         that this is a pool, and of which version
//! PATH/nvmf-pool.lock         locked by the process that has the pool
//! PATH/volumes/NAME.raw       the blocks of a volume
//! PATH/volumes/NAME.json      its record
//! PATH/volumes/.ID.raw        blocks on their way in or out
//! PATH/volumes/.ID.json       a record on its way in
//! PATH/snapshots/…            the same for snapshots
//! PATH/snapshots/.ID.commit   a group of snapshots that exists as a whole, on its way to single records
//! ```
//!
//! **The record is the truth.** A volume exists if and only if its record does; making the record (or removing it) is one
//! rename (or unlink) that is made durable before anything is reported. [`folder`] keeps the order of steps that makes this hold at every instant at
//! which the process can be killed or the power can fail, and finishes or undoes what was under way when a pool is opened.
//! Blocks without a record are removed only if they carry a name that only this module gives; foreign files are left alone.
//!
//! Everything but [`serve`] blocks on the file system and runs on threads that may ([`tokio::task::spawn_blocking`]), never on the control
//! thread or a shard. [`serve`] runs on the control thread: it serves volumes to hosts and answers the `pool_` methods.

pub mod capacity;
pub mod config;
mod copy;
pub mod error;
pub mod filesystem;
mod folder;
mod holding;
mod name;
pub mod record;
pub mod serve;
mod step;
mod store;
#[cfg(test)]
mod tests;
mod time;

pub use config::{Overcommit, PoolConfig};
pub use copy::{Copies, CopyReport};
pub use error::PoolError;
pub use filesystem::FileSystem;
pub use name::{MAX_NAME_BYTES, check_name};
pub use record::{NewSnapshot, NewVolume, Provisioning, SnapshotRecord, Source, VolumeRecord};
pub use store::{Pool, Removed};
