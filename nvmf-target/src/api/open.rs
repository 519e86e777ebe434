//! Opening the API as the configuration asks: what it names must be had, a default may be missing.

use std::io;
use std::net::TcpListener;
use std::path::Path;

use nvmf_rpc::tls::TlsError;

use super::socket::{self, Bound, SocketError};
use super::state_dir::{StateDir, StateDirError};
use super::tls::Tls;
use crate::config::{ApiOptions, Chosen, TlsOptions};

/// What the API needs of the system.
pub struct Places {
    /// The socket; `None` where it is off, or its default cannot be had.
    pub socket: Option<Bound>,
    /// TCP: who may come, and where.
    pub tls: Option<(Tls, TcpListener)>,
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
    /// Certificates or keys.
    #[error("no management API over TCP")]
    Tls(#[from] TlsError),
    /// The address.
    #[error("no management API over TCP")]
    Listen(#[source] io::Error),
}

/// Takes the places, or `None` where the API is off or its defaults cannot be had, which is logged.
pub fn places(options: &ApiOptions) -> Result<Option<Places>, OpenError> {
    let (socket, socket_named) = match &options.socket {
        Chosen::Off => (None, false),
        Chosen::Default => (Some(Path::new(ApiOptions::DEFAULT_SOCKET)), false),
        Chosen::At(path) => (Some(path.as_path()), true),
    };
    if socket.is_none() && options.tls.is_none() {
        return Ok(None);
    }
    let tls = options.tls.as_ref().map(take_tls).transpose()?;
    // Before the socket: whoever has the directory may take over a socket that was left.
    let state_dir = match &options.state_dir {
        Chosen::Off => None,
        Chosen::At(path) => Some(StateDir::take(path)?),
        Chosen::Default => match StateDir::take(Path::new(ApiOptions::DEFAULT_STATE_DIR)) {
            Ok(taken) => Some(taken),
            Err(error) if socket_named || tls.is_some() => return Err(error.into()),
            Err(error) => {
                tracing::warn!("no management API: {error}");
                return Ok(None);
            }
        },
    };
    let socket = match socket.map(socket::bind) {
        None => None,
        Some(Ok(bound)) => Some(bound),
        Some(Err(error)) if socket_named => return Err(error.into()),
        Some(Err(error)) => {
            tracing::warn!("no socket of the management API: {error}");
            None
        }
    };
    if socket.is_none() && tls.is_none() {
        return Ok(None);
    }
    Ok(Some(Places {
        socket,
        tls,
        state_dir,
    }))
}

fn take_tls(options: &TlsOptions) -> Result<(Tls, TcpListener), OpenError> {
    let tls = Tls::load(options)?;
    let listener = nvmf_io::net::listen(options.listen).map_err(OpenError::Listen)?;
    listener.set_nonblocking(true).map_err(OpenError::Listen)?;
    Ok((tls, listener))
}
