//! The socket file: made with mode 0600 from its first instant, refused while another target listens there, and taken over from a
//! target that died.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why the API cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another target listens there.
    #[error("{path}: another process listens there; give each target its own socket (--rpc PATH)", path = .0.display())]
    InUse(PathBuf),
    /// Something else is in its place.
    #[error("{path} exists and is no socket; remove it, or name another place (--rpc PATH)", path = .0.display())]
    NoSocket(PathBuf),
    /// A system call failed.
    #[error("{path}: cannot {action}: {source}; name a place that this user may write to (--rpc PATH), or --rpc none", path = path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A bound socket; its file goes when this does.
#[derive(Debug)]
pub struct Bound {
    /// Where it is.
    pub path: PathBuf,
    /// Listening, non-blocking.
    pub listener: UnixListener,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`, making its directory where that is missing.
pub fn bind(path: &Path) -> Result<Bound, SocketError> {
    let failed = |action| {
        move |source: io::Error| SocketError::System {
            path: path.to_owned(),
            action,
            source,
        }
    };
    if let Some(directory) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o755).create(directory);
        made.map_err(failed("make its directory"))?;
    }
    let _alone = alone(path).map_err(failed("lock its directory"))?;
    clear(path)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    let socket = socket.map_err(|errno| failed("make a socket")(errno.into()))?;
    // Linux makes the file with the mode that the socket has when it is bound, so there is no instant at which others could connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed("set its mode")(errno.into()))?;
    let address =
        SocketAddrUnix::new(path).map_err(|errno| failed("use it as an address")(errno.into()))?;
    rustix::net::bind(&socket, &address).map_err(|errno| failed("bind to it")(errno.into()))?;
    let bound = Bound {
        path: path.to_owned(),
        listener: socket.into(),
    };
    rustix::net::listen(&bound.listener, BACKLOG)
        .map_err(|errno| failed("listen")(errno.into()))?;
    Ok(bound)
}

/// Locks the directory for as long as the result lives, so that of two targets that start at one instant none takes the other's new
/// socket for that of a dead one.
fn alone(path: &Path) -> io::Result<File> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let directory = File::open(directory)?;
    directory.lock()?;
    Ok(directory)
}

/// Removes the socket of a target that is gone.
fn clear(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(_) => return Ok(()),
    };
    if !kind.is_socket() {
        return Err(SocketError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|source| SocketError::System {
                path: path.to_owned(),
                action: "remove the socket of a target that is gone",
                source,
            }),
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_ours_alone_and_goes_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run").join("rpc.sock");
        let bound = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_target_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rpc.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind(&path).unwrap());
        fs::write(&path, "a file").unwrap();
        let error = bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }
}
