//! Where the management API is, and where what it makes is kept.

use std::path::{Path, PathBuf};

/// What a path that means "off" is written as.
pub const NONE: &str = "none";

/// Said where somebody asks for it.
pub const NO_TCP: &str =
    "the management API is not served over TCP: this build has no TLS to know its clients by";

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
    /// What was written: `none`, or a path. A network address is neither.
    pub fn written(path: &Path) -> Result<Self, String> {
        if path.as_os_str() == NONE {
            Ok(Chosen::Off)
        } else if path.to_string_lossy().contains("://") {
            Err(format!(
                "{}: {NO_TCP}; write the path of a unix socket",
                path.display()
            ))
        } else {
            Ok(Chosen::At(path.to_owned()))
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
