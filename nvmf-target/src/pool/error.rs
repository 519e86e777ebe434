//! Why a pool did not do something, with what to do about it.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::record::{SnapshotRecord, VolumeRecord};

/// Why an operation on a pool was not done.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// There is no such pool.
    #[error("there is no pool {0:?}; the pools are those of the configuration")]
    NoPool(String),
    /// There is no such volume.
    #[error("the pool {pool} has no volume {name:?}")]
    NoVolume {
        /// The pool.
        pool: String,
        /// What was asked for.
        name: String,
    },
    /// There is no such snapshot.
    #[error("the pool {pool} has no snapshot {name:?}")]
    NoSnapshot {
        /// The pool.
        pool: String,
        /// What was asked for.
        name: String,
    },
    /// The volume exists already.
    #[error("the volume {:?} exists already", .0.name)]
    VolumeExists(Box<VolumeRecord>),
    /// The snapshot exists already.
    #[error("the snapshot {:?} exists already", .0.name)]
    SnapshotExists(Box<SnapshotRecord>),
    /// Something else is being done with it.
    #[error("{0:?} is being made, changed or removed right now; try again")]
    InWork(String),
    /// Hosts are connected.
    #[error("the volume {name:?} is used by {hosts}; disconnect there first, or force the removal")]
    InUse {
        /// The volume.
        name: String,
        /// The hosts' NQNs.
        hosts: String,
    },
    /// The files of a volume or snapshot do not belong together.
    #[error("{name:?} is damaged: {why}; see the log and docs/OPERATIONS.md, \"Repairing a pool\"")]
    Damaged {
        /// The volume or snapshot.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// More would be promised than there is.
    #[error(
        "the pool {pool} has {limit_bytes} bytes for volumes and has promised {promised_bytes}; {wanted_bytes} more might not fit in the end: \
         enlarge its file system, delete something, or set overcommit = \"warn\" for it"
    )]
    Overcommitted {
        /// The pool.
        pool: String,
        /// What there is for volumes and snapshots.
        limit_bytes: u64,
        /// What the existing ones may grow to.
        promised_bytes: u64,
        /// What the new one may grow to.
        wanted_bytes: u64,
    },
    /// The file system is full.
    #[error(
        "the file system of the pool {pool} is full: {action} failed; enlarge it or delete something"
    )]
    Full {
        /// The pool.
        pool: String,
        /// What was tried.
        action: &'static str,
    },
    /// The file system has no reflinks.
    #[error(
        "the pool {pool} is on {fs_type}, which cannot share blocks between files (reflink), so there are no snapshots and clones: \
         use XFS made with `mkfs.xfs -m reflink=1`, or btrfs"
    )]
    NoReflink {
        /// The pool.
        pool: String,
        /// Its file system.
        fs_type: String,
    },
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The folder cannot be used as a pool.
    #[error("{}: {why}", .path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A system call failed.
    #[error("{}: {action} failed: {error}", .path.display())]
    System {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl PoolError {
    /// The negative errno that stands for it in the management API.
    pub fn code(&self) -> i32 {
        let errno = match self {
            Self::NoPool(_) | Self::NoVolume { .. } | Self::NoSnapshot { .. } => Errno::NOENT,
            Self::VolumeExists(_) | Self::SnapshotExists(_) => Errno::EXIST,
            Self::InWork(_) | Self::InUse { .. } => Errno::BUSY,
            Self::Damaged { .. } => Errno::IO,
            Self::Overcommitted { .. } | Self::Full { .. } => Errno::NOSPC,
            Self::NoReflink { .. } => Errno::OPNOTSUPP,
            Self::Invalid(_) => Errno::INVAL,
            Self::Unusable { .. } => Errno::NODEV,
            Self::System { error, .. } => {
                return -error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            }
        };
        -errno.raw_os_error()
    }
}
