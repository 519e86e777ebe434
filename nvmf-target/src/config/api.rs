//! Where the management API is, and where what it makes is kept.

use std::path::{Path, PathBuf};

/// What a path that means "off" is written as.
pub const NONE: &str = "none";

/// A place that has a default and can be switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chosen {
    /// The default, or nothing where that cannot be had.
    #[default]
    Default,
    /// Switched off.
    Off,
    /// This, or the target does not start.
    At(PathBuf),
}

impl Chosen {
    /// What was written: `none`, or a path.
    pub fn written(path: &Path) -> Self {
        if path.as_os_str() == NONE {
            Chosen::Off
        } else {
            Chosen::At(path.to_owned())
        }
    }
}

/// The management API's options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiOptions {
    /// The socket.
    pub socket: Chosen,
    /// The directory with what the API made.
    pub state_dir: Chosen,
}

impl ApiOptions {
    /// Where the socket is unless said otherwise.
    pub const DEFAULT_SOCKET: &'static str = nvmf_rpc::DEFAULT_SOCKET;
    /// Where the state is unless said otherwise.
    pub const DEFAULT_STATE_DIR: &'static str = "/var/lib/nvmf-target";
}
