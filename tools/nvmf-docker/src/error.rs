//! What goes wrong, in words for the person at `docker`.

use std::io;
use std::path::PathBuf;

use nvmf_rpc::ClientError;

/// See the module's text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No volume of this name was created here.
    #[error("no such volume: {0}")]
    NoSuchVolume(String),
    /// A request that makes no sense.
    #[error("{0}")]
    Request(String),
    /// The volume is in use by containers.
    #[error("volume {name} is in use: {by}")]
    InUse {
        /// The volume.
        name: String,
        /// By what.
        by: String,
    },
    /// Another node has it.
    #[error(
        "volume {name} is granted to {}: it is mounted on that node, or was when the node died. Unmount it there; if the node is \
         gone for good, take the grant away on the target (pool_remove_host, which returns when nothing of that node can be \
         written any more), then try again",
        hosts.join(" and ")
    )]
    Elsewhere {
        /// The volume.
        name: String,
        /// The other hosts.
        hosts: Vec<String>,
    },
    /// The target.
    #[error("target: {0}")]
    Target(#[from] ClientError),
    /// The volume on this node.
    #[error(transparent)]
    Volume(#[from] nvmf_volume::Error),
    /// A file of the plugin's own.
    #[error("{}: {source}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
