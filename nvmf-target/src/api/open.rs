//! Opening the API as the configuration asks: what it names must be had, a default may be missing.

use std::path::{Path, PathBuf};

use super::socket::{self, Bound, SocketError};
use super::state_dir::{StateDir, StateDirError};
use crate::config::{ApiOptions, Chosen};

/// What the API needs of the system.
#[derive(Debug)]
pub struct Places {
    /// The socket.
    pub bound: Bound,
    /// Where what it makes is kept; `None` keeps it only until the end of the process.
    pub state_dir: Option<StateDir>,
}

/// Why a target that was asked for an API by name cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The socket.
    #[error("no management API")]
    Socket(#[from] SocketError),
    /// The state directory.
    #[error("no management API")]
    StateDir(#[from] StateDirError),
}

/// Takes the places, or `None` where the API is off or its defaults cannot be had, which is logged.
pub fn places(options: &ApiOptions) -> Result<Option<Places>, OpenError> {
    let (socket, socket_named) = match &options.socket {
        Chosen::Off => return Ok(None),
        Chosen::Default => (PathBuf::from(ApiOptions::DEFAULT_SOCKET), false),
        Chosen::At(path) => (path.clone(), true),
    };
    // Before the socket: whoever has the directory may take over a socket that was left.
    let state_dir = match &options.state_dir {
        Chosen::Off => None,
        Chosen::At(path) => Some(StateDir::take(path)?),
        Chosen::Default => match StateDir::take(Path::new(ApiOptions::DEFAULT_STATE_DIR)) {
            Ok(taken) => Some(taken),
            Err(error) if socket_named => return Err(error.into()),
            Err(error) => {
                tracing::warn!("no management API: {error}");
                return Ok(None);
            }
        },
    };
    match socket::bind(&socket) {
        Ok(bound) => Ok(Some(Places { bound, state_dir })),
        Err(error) if socket_named => Err(error.into()),
        Err(error) => {
            tracing::warn!("no management API: {error}");
            Ok(None)
        }
    }
}
