//! The device half of an NBD server on a unix socket.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::Export;
use super::front::{Clients, ELSEWHERE, NbdFrontEnd, Source};
use crate::block::device::{DeviceForm, DeviceState, Kept, Made, QueueSetup};
use crate::block::in_use::Use;
use crate::block::spec::{DeviceError, DeviceSpec, Geometry};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 64;

/// See the [module](super).
pub(in crate::block) struct NbdSocketDevice {
    geometry: Arc<Geometry>,
    listener: Arc<OwnedFd>,
    clients: Arc<Clients>,
    /// Until it is detached.
    path: Option<PathBuf>,
}

impl NbdSocketDevice {
    pub fn create(spec: &DeviceSpec, geometry: Arc<Geometry>) -> Made<Self> {
        let path = spec.runtime_dir.join(format!("{}.sock", spec.name));
        let listener = listen(&path)
            .map_err(geometry.step(format!("listen on a socket at {}", path.display())))?;
        Ok(Self::serve(spec, geometry, path, listener))
    }

    /// With the socket where clients wait, or, if it was not kept, with a new one in its place.
    pub fn resume(
        spec: &DeviceSpec,
        geometry: Arc<Geometry>,
        path: &Path,
        fds: Vec<OwnedFd>,
    ) -> Made<Self> {
        let listener = match fds.into_iter().next() {
            Some(listener) => listener,
            None => listen(path).map_err(
                geometry.step(format!("listen on a socket at {} again", path.display())),
            )?,
        };
        Ok(Self::serve(spec, geometry, path.to_owned(), listener))
    }

    fn serve(
        spec: &DeviceSpec,
        geometry: Arc<Geometry>,
        path: PathBuf,
        listener: OwnedFd,
    ) -> (Self, Vec<QueueSetup>) {
        let (listener, clients) = (Arc::new(listener), Arc::<Clients>::default());
        let export = Export::new(geometry.clone(), spec.limits);
        let source = Source::Listener {
            fd: listener.clone(),
            clients: clients.clone(),
        };
        let (limits, depth) = (spec.limits, spec.queue_depth);
        let queue = QueueSetup::new(move || NbdFrontEnd::new(source, export, limits, depth));
        let device = NbdSocketDevice {
            geometry,
            listener,
            clients,
            path: Some(path),
        };
        (device, vec![queue])
    }

    /// Removes the socket of a server that died and will not be resumed.
    pub fn remove_leftover(path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl DeviceForm for NbdSocketDevice {
    fn attach(&mut self) -> Result<PathBuf, DeviceError> {
        self.path()
            .ok_or_else(|| self.geometry.unsupported("it is detached"))
    }

    fn path(&self) -> Option<PathBuf> {
        self.path.clone()
    }

    fn uri(&self) -> Option<String> {
        let path = self.path.as_ref()?;
        Some(uri(&self.geometry.name, path))
    }

    fn uses(&self) -> io::Result<Vec<Use>> {
        let mut pids: Vec<u32> = self
            .clients
            .iter()
            .map(|client| client.load(Ordering::Acquire))
            .filter(|&pid| pid != 0)
            .collect();
        pids.sort_unstable();
        pids.dedup();
        let uses = pids.into_iter().map(|pid| match pid {
            ELSEWHERE => Use::OpenElsewhere,
            pid => Use::open_in(pid),
        });
        Ok(uses.collect())
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError> {
        // The protocol has no word for it: clients learn of it when they connect anew.
        self.geometry.set_size_bytes(size_bytes);
        Ok(())
    }

    fn keep(&self) -> Result<Option<Kept>, DeviceError> {
        let Some(path) = self.path() else {
            return Ok(None);
        };
        let listener = self.listener.as_fd().try_clone_to_owned();
        Ok(Some(Kept {
            state: DeviceState::NbdSocket { path },
            fds: vec![listener.map_err(self.geometry.step("duplicate its descriptors"))?],
        }))
    }

    /// Nobody finds the socket any more; those who are connected are cut off when the front end stops.
    fn detach(&mut self) -> Result<(), DeviceError> {
        let Some(path) = self.path.take() else {
            return Ok(());
        };
        let doing = format!("remove {}", path.display());
        fs::remove_file(path).map_err(self.geometry.step(doing))
    }
}

/// A socket for this user alone, in place of what a server that died left there.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// `nbd+unix:///NAME?socket=PATH`; a name needs no escapes.
fn uri(name: &str, path: &Path) -> String {
    let mut uri = format!("nbd+unix:///{name}?socket=");
    for &byte in path.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_has_no_bytes_with_a_meaning_of_their_own() {
        assert_eq!(
            uri("nvme-uuid.5", Path::new("/run/a b&c#é.sock")),
            "nbd+unix:///nvme-uuid.5?socket=/run/a%20b%26c%23%C3%A9.sock"
        );
    }

    #[test]
    fn a_socket_takes_the_place_of_a_dead_one_and_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_named() {
        let path = PathBuf::from(format!("/{}", "x".repeat(200)));
        assert!(listen(&path).is_err());
    }
}
