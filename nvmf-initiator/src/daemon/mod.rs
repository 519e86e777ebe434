//! The daemon: one per node, owner of the node's controllers and block devices.
//!
//! ```text
//!  nvmf-initiator connect --(unix socket, one line of JSON each way)--> daemon: control thread --ports--> shards
//!                                                                        |  ^                             front ends, queues
//!                                                         descriptors    v  |  after a crash
//!                                                                       keeper, or systemd's store
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | [`api`] | requests and answers |
//! | [`client`] | the command line's end of the socket; starts the daemon on demand |
//! | [`serve`] | the daemon's end: listening, dispatching, ending |
//! | [`node`] | which controllers there are |
//! | [`attach`] | having a namespace attached, whatever came before |
//! | [`attachment`] | one controller with its devices |
//! | [`served`] | the device of one namespace |
//! | [`shared`] | what all attachments stand on |
//! | [`shard`] | one thread that serves front ends and queues |
//! | [`state`] | what a daemon must know of the one before it |
//! | [`keeper`] | the process that holds descriptors and starts the daemon again |
//! | [`names`] | stable names |
//!
//! A daemon that dies leaves the kernel's devices in place with their I/O waiting; the next one finds in the state file what
//! was connected, gets the descriptors from the keeper, resumes every device and connects anew.

pub mod api;
pub(crate) mod attach;
pub(crate) mod attachment;
pub mod client;
pub mod keeper;
pub(crate) mod names;
pub(crate) mod node;
pub mod serve;
pub(crate) mod served;
pub(crate) mod shard;
pub(crate) mod shared;
pub(crate) mod state;

use std::path::{Path, PathBuf};

/// Where the socket, the state and the stable names are.
pub const RUN_DIR: &str = "/run/nvmf-initiator";

/// The paths below the run folder.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The folder at `path`; it need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RunDir(path.into())
    }

    /// Makes the folder, for this user alone.
    pub fn create(&self) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    /// Locked as long as a daemon, or a keeper that will start one, is there.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// What the next daemon must know.
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Where the daemon that `connect` started says what happens.
    pub fn log(&self) -> PathBuf {
        self.0.join("daemon.log")
    }

    /// Stable names of the devices.
    pub fn by_id(&self) -> PathBuf {
        self.0.join("by-id")
    }
}
