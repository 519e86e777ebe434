//! The device half: the driver's control commands.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_io::sys::ublk::{
    MAX_QUEUE_DEPTH, UblkAttrs, UblkControl, UblkFlags, UblkInfo, UblkParams, UblkState,
};

use super::MAX_TRANSFER_BYTES;
use super::front::UblkFrontEnd;
use crate::block::device::{DeviceForm, DeviceState, Kept, Made, QueueSetup};
use crate::block::spec::{DeviceError, DeviceSpec, Geometry};

/// What every device is made with.
const FLAGS: UblkFlags = UblkFlags::NEED_GET_DATA
    .union(UblkFlags::USER_RECOVERY)
    .union(UblkFlags::USER_RECOVERY_REISSUE);

/// The driver needs until then to gather what a dead server left; it tells nobody when it is done.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(30);
const RECOVERY_INTERVAL: Duration = Duration::from_millis(10);

/// See the [module](super).
pub(in crate::block) struct UblkDevice {
    geometry: Arc<Geometry>,
    control: UblkControl,
    id: u32,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Added; `attach` starts it.
    Added,
    /// Being recovered; `attach` ends that.
    Recovering,
    Live,
    Removed,
}

impl UblkDevice {
    pub fn create(spec: &DeviceSpec, geometry: Arc<Geometry>) -> Made<Self> {
        let mut control = open_control(&geometry)?;
        let features = control
            .features()
            .map_err(geometry.step("ask ublk for its features"))?;
        if !features.contains(FLAGS) {
            let missing = FLAGS.difference(features);
            let what = format!(
                "this kernel's ublk lacks {missing:?}; Linux 6.5 has it, or use --block fuse"
            );
            return Err(geometry.unsupported(what));
        }
        let max_io_bytes = max_io_bytes(spec);
        let depth = spec.queue_depth.min(MAX_QUEUE_DEPTH);
        let info = control
            .add(spec.queues, depth, max_io_bytes, FLAGS)
            .map_err(geometry.step("add a ublk device"))?;
        // From here on, an error removes it.
        let mut device = UblkDevice {
            geometry,
            control,
            id: info.id,
            step: Step::Added,
        };
        let params = UblkParams {
            attrs: UblkAttrs::VOLATILE_CACHE
                | UblkAttrs::FUA
                | if spec.read_only {
                    UblkAttrs::READ_ONLY
                } else {
                    UblkAttrs::empty()
                },
            block_size_bytes: spec.block_size_bytes,
            physical_block_bytes: spec.block_size_bytes,
            size_bytes: spec.size_bytes,
            max_io_bytes,
            max_discard_bytes: spec.limits.max_discard_bytes,
            max_write_zeroes_bytes: spec.limits.max_write_zeroes_bytes,
        };
        let set = device.control.set_params(info.id, &params);
        set.map_err(
            device
                .geometry
                .step("set the parameters of its ublk device"),
        )?;
        let queues = device.queues(&info, spec)?;
        Ok((device, queues))
    }

    pub fn resume(spec: &DeviceSpec, geometry: Arc<Geometry>, id: u32) -> Made<Self> {
        let mut control = open_control(&geometry)?;
        let info = control
            .info(id)
            .map_err(geometry.step(format!("find ublk device {id}")))?;
        let deadline = Instant::now() + RECOVERY_PATIENCE;
        loop {
            match control.start_recovery(id) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(RECOVERY_INTERVAL);
                }
                Err(e) => {
                    let doing =
                        format!("take over ublk device {id} (is its old server still alive?)");
                    return Err(geometry.step(doing)(e));
                }
            }
        }
        let mut device = UblkDevice {
            geometry,
            control,
            id,
            step: Step::Recovering,
        };
        let queues = device.queues(&info, spec)?;
        Ok((device, queues))
    }

    fn queues(
        &mut self,
        info: &UblkInfo,
        spec: &DeviceSpec,
    ) -> Result<Vec<QueueSetup>, DeviceError> {
        let path = format!("/dev/ublkc{}", info.id);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(self.geometry.step(format!("open {path}")))?;
        let fd: Arc<OwnedFd> = Arc::new(file.into());
        let (depth, limits) = (info.queue_depth, spec.limits);
        let setup = |queue| {
            let (fd, geometry) = (fd.clone(), self.geometry.clone());
            QueueSetup::new(move || UblkFrontEnd::new(fd, queue, depth, geometry, limits))
        };
        Ok((0..info.queues).map(setup).collect())
    }

    /// Removes the device of a server that died and will not be resumed.
    pub fn remove_leftover(id: u32) -> io::Result<()> {
        let mut control = UblkControl::open()?;
        let info = control.info(id)?;
        if info.state == UblkState::Live {
            let error = format!(
                "ublk device {id} is being served by process {}",
                info.server_pid
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, error));
        }
        remove(&mut control, id)
    }
}

impl DeviceForm for UblkDevice {
    fn attach(&mut self) -> Result<PathBuf, DeviceError> {
        let done = match self.step {
            Step::Added => self.control.start(self.id),
            Step::Recovering => self.control.end_recovery(self.id),
            Step::Live => return Ok(disk_path(self.id)),
            Step::Removed => return Err(self.geometry.unsupported("it is detached")),
        };
        done.map_err(self.geometry.step("start its ublk device"))?;
        self.step = Step::Live;
        Ok(disk_path(self.id))
    }

    fn path(&self) -> Option<PathBuf> {
        (self.step == Step::Live).then(|| disk_path(self.id))
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError> {
        let features = self
            .control
            .features()
            .map_err(self.geometry.step("ask ublk for its features"))?;
        if !features.contains(UblkFlags::UPDATE_SIZE) {
            return Err(self.geometry.unsupported(
                "this kernel's ublk cannot change the size of a live device (Linux 6.16 can): disconnect and connect \
                 again to see the new size",
            ));
        }
        self.geometry.set_size_bytes(size_bytes);
        let resized = self.control.update_size(self.id, size_bytes);
        resized.map_err(self.geometry.step("resize its ublk device"))
    }

    fn keep(&self) -> Result<Option<Kept>, DeviceError> {
        Ok(Some(Kept {
            state: DeviceState::Ublk { id: self.id },
            fds: Vec::new(),
        }))
    }

    /// Ends the disk, and with it the queues. Waits for the requests in flight.
    fn detach(&mut self) -> Result<(), DeviceError> {
        if self.step == Step::Removed {
            return Ok(());
        }
        self.step = Step::Removed;
        remove(&mut self.control, self.id).map_err(self.geometry.step("remove its ublk device"))
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        // One that was never started has no users who could want it back.
        if self.step == Step::Added
            && let Err(error) = self.detach()
        {
            tracing::warn!(%error, "a device is left behind");
        }
    }
}

fn remove(control: &mut UblkControl, id: u32) -> io::Result<()> {
    control.stop(id)?;
    control.delete(id)
}

fn disk_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

fn open_control(geometry: &Geometry) -> Result<UblkControl, DeviceError> {
    UblkControl::open().map_err(geometry.step("open /dev/ublk-control"))
}

/// What one request may carry, in whole pages. Requests that are too long for the backing are split on the way.
fn max_io_bytes(spec: &DeviceSpec) -> u32 {
    const PAGE_BYTES: u32 = 4096;
    spec.limits
        .max_transfer_bytes
        .clamp(PAGE_BYTES, MAX_TRANSFER_BYTES)
        / PAGE_BYTES
        * PAGE_BYTES
}
