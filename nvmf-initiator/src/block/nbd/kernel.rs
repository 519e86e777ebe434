//! The device half of `/dev/nbdN`: the kernel's driver, by netlink, with the other end of a socket pair.
//!
//! **One connection, and no time limit for requests.** With several connections the driver takes one on which a request is
//! older than the queue's time limit for dead, and sends the request again over another. But requests may well be that old:
//! they are held while the target is away. The first copy could then reach the target after the second one was answered,
//! and after what was written next. With a single connection and no limit of its own the driver waits.
//!
//! **When the server dies** its end of the pair is closed, and the driver holds what comes, for as long as it was told at
//! the beginning. A successor brings a new pair. What had been in flight is sent again once the queue's time limit for it
//! has passed, as then the driver finds that its connection is another one: so that limit is what an interruption lasts.
//!
//! **The driver's end takes whatever is open.** Before Linux 6.14 the driver loses count when a signal, or a completion of
//! io_uring for the task that submits, finds it waiting for room in the middle of a request: it goes on with that request
//! under another tag, takes the answer for a second one to some other request ("Double reply"), and gives the connection
//! up. So its end of the pair has room for all requests that a queue can have, whose size is limited for that.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_io::net::is_closed_by_peer;
use nvmf_io::sys::nbd::{NbdConfig, NbdNetlink, ServerFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::Export;
use super::front::{NbdFrontEnd, Source};
use crate::block::device::{DeviceForm, DeviceState, Kept, Made, QueueSetup};
use crate::block::spec::{DeviceError, DeviceSpec, Geometry};

/// How long the driver holds I/O for a successor of this process, before it fails: as long as a lost controller is tried to
/// reach by default.
const DEAD_CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// The queue's time limit for requests, which interrupts nothing, as the module's text says. The driver notes in the
/// kernel's log what is older, each time it passes.
const IO_TIMEOUT_MS: u32 = 5_000;

/// Largest request. The default is five times as much, which would only have the driver hold that much more.
const MAX_SECTORS_KIB: u32 = 256;

/// What a queue has that nobody set otherwise. The next user of `/dev/nbdN` finds it so.
const DEFAULT_IO_TIMEOUT_MS: u32 = 30_000;
const DEFAULT_MAX_SECTORS_KIB: u32 = 1280;

/// Requests that the driver has open on a connection: the depth of its queue, which is fixed.
const DRIVER_DEPTH: usize = 128;

/// Room at the driver's end, which the kernel doubles: it sends each page in a message of its own, and counts two pages and
/// its own notes for each.
const DRIVER_ROOM_BYTES: usize = DRIVER_DEPTH * 2 * 1024 * MAX_SECTORS_KIB as usize;

/// The driver needs until then to notice that a dead server's connection is dead; it tells nobody.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(30);
const RECONNECT_INTERVAL: Duration = Duration::from_millis(10);

/// See the [module](self).
pub(in crate::block) struct NbdDevice {
    geometry: Arc<Geometry>,
    flags: ServerFlags,
    netlink: NbdNetlink,
    step: Step,
}

enum Step {
    /// Made; `attach` gives the driver its end of the pair.
    Made(OwnedFd),
    /// Connected as `/dev/nbdN`.
    Live(u32),
    Detached,
}

impl NbdDevice {
    pub fn create(spec: &DeviceSpec, geometry: Arc<Geometry>) -> Made<Self> {
        let netlink = open(&geometry)?;
        let (kernel, ours) = pair().map_err(geometry.step("make a pair of sockets"))?;
        Ok(Self::serve(
            spec,
            geometry,
            netlink,
            Step::Made(kernel),
            ours,
        ))
    }

    pub fn resume(spec: &DeviceSpec, geometry: Arc<Geometry>, index: u32) -> Made<Self> {
        let mut netlink = open(&geometry)?;
        let ours = reconnect(&mut netlink, index, &geometry.name)
            .map_err(geometry.step(format!("take over /dev/nbd{index}")))?;
        Ok(Self::serve(
            spec,
            geometry,
            netlink,
            Step::Live(index),
            ours,
        ))
    }

    fn serve(
        spec: &DeviceSpec,
        geometry: Arc<Geometry>,
        netlink: NbdNetlink,
        step: Step,
        ours: OwnedFd,
    ) -> (Self, Vec<QueueSetup>) {
        let export = Export::new(geometry.clone(), spec.limits);
        let flags = export.flags;
        let (limits, depth) = (spec.limits, spec.queue_depth);
        let source = Source::Driver(ours);
        let queue = QueueSetup::new(move || NbdFrontEnd::new(source, export, limits, depth));
        let device = NbdDevice {
            geometry,
            flags,
            netlink,
            step,
        };
        (device, vec![queue])
    }

    /// Detaches the device of a server that died and will not be resumed.
    pub fn remove_leftover(name: &str, index: u32) -> io::Result<()> {
        let backend = fs::read_to_string(sysfs(index).join("backend"))?;
        if backend.trim_end() != name {
            let error = format!(
                "/dev/nbd{index} belongs to '{}', not to '{name}'",
                backend.trim_end()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, error));
        }
        let mut netlink = NbdNetlink::open()?;
        set_queue(index, DEFAULT_IO_TIMEOUT_MS, DEFAULT_MAX_SECTORS_KIB)?;
        netlink.disconnect(index)
    }
}

impl DeviceForm for NbdDevice {
    fn attach(&mut self) -> Result<PathBuf, DeviceError> {
        let kernel = match &self.step {
            Step::Made(kernel) => kernel,
            &Step::Live(index) => {
                // The namespace may have another size than when the server before died.
                let size_bytes = self.geometry.size_bytes();
                if size_now(index).is_ok_and(|now| now != size_bytes) {
                    self.resize(size_bytes)?;
                }
                return Ok(disk_path(index));
            }
            Step::Detached => return Err(self.geometry.unsupported("it is detached")),
        };
        let config = NbdConfig {
            size_bytes: self.geometry.size_bytes(),
            block_bytes: self.geometry.block_size_bytes.into(),
            flags: self.flags,
            dead_connection_timeout: DEAD_CONNECTION_TIMEOUT,
            backend_identifier: self.geometry.name.clone(),
        };
        let index = self
            .netlink
            .connect(&config, kernel.as_fd())
            .map_err(self.geometry.step("attach an nbd device"))?;
        // From here on a detach disconnects it.
        self.step = Step::Live(index);
        if let Err(error) = set_queue(index, IO_TIMEOUT_MS, MAX_SECTORS_KIB) {
            tracing::warn!(
                index,
                %error,
                "cannot set the queue's limits: I/O in flight waits for 30 s when this process dies, and before Linux 6.14 large writes may end the connection"
            );
        }
        Ok(disk_path(index))
    }

    fn path(&self) -> Option<PathBuf> {
        match self.step {
            Step::Live(index) => Some(disk_path(index)),
            Step::Made(_) | Step::Detached => None,
        }
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError> {
        self.geometry.set_size_bytes(size_bytes);
        let Step::Live(index) = self.step else {
            return Ok(());
        };
        self.netlink
            .resize(index, &self.geometry.name, size_bytes)
            .map_err(self.geometry.step("resize its nbd device"))
    }

    fn keep(&self) -> Result<Option<Kept>, DeviceError> {
        let Step::Live(index) = self.step else {
            return Ok(None);
        };
        Ok(Some(Kept {
            state: DeviceState::Nbd { index },
            fds: Vec::new(),
        }))
    }

    /// I/O in flight fails; the connection ends, and with it the front end.
    fn detach(&mut self) -> Result<(), DeviceError> {
        let step = std::mem::replace(&mut self.step, Step::Detached);
        let Step::Live(index) = step else {
            return Ok(());
        };
        if let Err(error) = set_queue(index, DEFAULT_IO_TIMEOUT_MS, DEFAULT_MAX_SECTORS_KIB) {
            tracing::debug!(index, %error, "the queue's limits stay as we set them");
        }
        self.netlink
            .disconnect(index)
            .map_err(self.geometry.step("detach its nbd device"))
    }
}

/// Brings a new connection; returns our end.
fn reconnect(netlink: &mut NbdNetlink, index: u32, name: &str) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + RECONNECT_PATIENCE;
    loop {
        let (kernel, ours) = pair()?;
        netlink.reconnect(index, name, kernel.as_fd())?;
        drop(kernel);
        if !is_closed_by_peer(&ours) {
            return Ok(ours);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "it has a connection that works; is its old server still alive?",
            ));
        }
        std::thread::sleep(RECONNECT_INTERVAL);
    }
}

/// The driver's end, and ours.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (kernel, ours) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Beyond what the system allows without CAP_NET_ADMIN, which the driver asks for as well.
    sockopt::set_socket_send_buffer_size_force(&kernel, DRIVER_ROOM_BYTES)?;
    Ok((kernel, ours))
}

fn open(geometry: &Geometry) -> Result<NbdNetlink, DeviceError> {
    NbdNetlink::open().map_err(geometry.step("talk to the kernel's nbd driver"))
}

fn disk_path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{index}"))
}

fn sysfs(index: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{index}"))
}

fn set_queue(index: u32, io_timeout_ms: u32, max_sectors_kib: u32) -> io::Result<()> {
    let queue = sysfs(index).join("queue");
    fs::write(queue.join("io_timeout"), io_timeout_ms.to_string())?;
    fs::write(queue.join("max_sectors_kb"), max_sectors_kib.to_string())
}

fn size_now(index: u32) -> io::Result<u64> {
    let sectors = fs::read_to_string(sysfs(index).join("size"))?;
    let sectors: u64 = sectors.trim().parse().map_err(io::Error::other)?;
    Ok(sectors * 512)
}

#[cfg(test)]
mod tests {
    use rustix::net::{SendFlags, send};

    use super::*;
    use crate::block::nbd::wire::RequestHeader;

    /// As the driver sends: a header, then each page by itself; here without waiting, and with nobody who reads.
    #[test]
    fn all_that_the_driver_can_have_open_fits_its_end_of_the_pair() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let (kernel, _ours) = pair().unwrap();
        let sends = |bytes: &[u8]| {
            let sent = send(&kernel, bytes, SendFlags::DONTWAIT);
            assert_eq!(sent, Ok(bytes.len()));
        };
        for _ in 0..DRIVER_DEPTH {
            sends(&[0; size_of::<RequestHeader>()]);
            for _ in 0..MAX_SECTORS_KIB / 4 {
                sends(&[0; 4096]);
            }
        }
    }
}
