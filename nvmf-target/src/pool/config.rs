//! What a configuration says about a pool.

use std::path::PathBuf;

pub use nvmf_rpc::types::Overcommit;

/// One pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// What the NQN of every volume begins with: `PREFIX:POOL:VOLUME`.
    pub nqn_prefix: String,
    /// Whether more may be promised than there is.
    pub overcommit: Overcommit,
    /// Whether the folder must be the root of a mounted file system, so that a missing mount is noticed.
    pub require_mount: bool,
    /// In what units XFS allocates space for volumes, in bytes; 0 leaves it to XFS.
    pub extent_bytes: u32,
    /// Whether volumes on btrfs go without copy-on-write and checksums, which makes direct writes direct.
    pub nocow: bool,
}

/// The unit of allocation where none is given. Extents of 1 MiB keep a 5 GiB volume that was written at random within 5,000 extents once it
/// is full, so that a snapshot takes milliseconds.
pub const DEFAULT_EXTENT_BYTES: u32 = 1 << 20;

impl PoolConfig {
    /// A pool with the defaults.
    pub fn new(name: &str, path: impl Into<PathBuf>, nqn_prefix: &str) -> Self {
        PoolConfig {
            name: name.to_owned(),
            path: path.into(),
            nqn_prefix: nqn_prefix.to_owned(),
            overcommit: Overcommit::default(),
            require_mount: true,
            extent_bytes: DEFAULT_EXTENT_BYTES,
            nocow: false,
        }
    }

    /// The NQN of the volume `volume`.
    pub fn nqn_of(&self, volume: &str) -> String {
        format!("{}:{}:{volume}", self.nqn_prefix, self.name)
    }
}
