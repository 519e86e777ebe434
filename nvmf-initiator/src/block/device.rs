//! The device half: what is common to all forms, and the hand-over from the control thread to the shards.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::in_use::{self, Use};
use super::spec::{DeviceError, DeviceSpec, Geometry};
use super::{BlockForm, FrontEnd, FuseDevice, NbdDevice, NbdSocketDevice, UblkDevice};

/// One queue of a device on its way to the shard that will serve it.
pub struct QueueSetup(Box<dyn FnOnce() -> Box<dyn FrontEnd> + Send>);

impl QueueSetup {
    pub(super) fn new<F: FrontEnd + 'static>(build: impl FnOnce() -> F + Send + 'static) -> Self {
        QueueSetup(Box::new(move || Box::new(build())))
    }

    /// Makes the front end, on the shard's thread.
    pub fn build(self) -> Box<dyn FrontEnd> {
        (self.0)()
    }
}

/// What a keeper holds, so that another process can serve a device whose server died.
#[derive(Debug)]
pub struct Kept {
    /// What to give to [`Device::resume`], together with the descriptors.
    pub state: DeviceState,
    /// Descriptors to keep open, in the order in which `resume` wants them.
    pub fds: Vec<OwnedFd>,
}

/// The part of [`Kept`] that is data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Descriptors: the file, and one for each channel of `/dev/fuse`.
    Fuse {
        /// N of `/dev/loopN`.
        loop_number: u32,
    },
    /// No descriptors: the kernel keeps everything.
    Ublk {
        /// N of `/dev/ublkcN`.
        id: u32,
    },
    /// No descriptors: the kernel keeps everything.
    Nbd {
        /// N of `/dev/nbdN`.
        index: u32,
    },
    /// Descriptors: the listening socket, where clients wait meanwhile.
    NbdSocket {
        /// Where it is bound.
        path: PathBuf,
    },
}

/// What each form of device can do; the methods of [`Device`] say what they mean.
pub(super) trait DeviceForm {
    fn attach(&mut self) -> Result<PathBuf, DeviceError>;
    /// Once attached.
    fn path(&self) -> Option<PathBuf>;
    fn uri(&self) -> Option<String> {
        None
    }
    fn uses(&self) -> io::Result<Vec<Use>> {
        match self.path() {
            Some(path) => in_use::uses(&path),
            None => Ok(Vec::new()),
        }
    }
    fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError>;
    fn keep(&self) -> Result<Option<Kept>, DeviceError>;
    /// Lets go of everything; done again, it does nothing.
    fn detach(&mut self) -> Result<(), DeviceError>;
}

/// A device half in the making, and its queues.
pub(super) type Made<D> = Result<(D, Vec<QueueSetup>), DeviceError>;

/// The device half of a block device: belongs to the control thread, may block.
///
/// Life: [`Device::create`] or [`Device::resume`]; hand the [`QueueSetup`]s to shards, which build and start the front
/// ends; [`Device::attach`], which needs them running; [`Device::detach`], after which the front ends finish. Dropping
/// an attached device removes it as if by a forced detach.
pub struct Device {
    inner: Box<dyn DeviceForm + Send>,
    form: BlockForm,
    geometry: Arc<Geometry>,
}

impl Device {
    /// Prepares a device of a form that [`BlockForm::resolve`] gave. It appears at [`Device::attach`].
    pub fn create(
        form: BlockForm,
        spec: &DeviceSpec,
    ) -> Result<(Self, Vec<QueueSetup>), DeviceError> {
        spec.check()?;
        let geometry = Geometry::new(spec);
        match form {
            BlockForm::Fuse => {
                Self::made(form, &geometry, FuseDevice::create(spec, geometry.clone()))
            }
            BlockForm::Ublk => {
                Self::made(form, &geometry, UblkDevice::create(spec, geometry.clone()))
            }
            BlockForm::Nbd => {
                Self::made(form, &geometry, NbdDevice::create(spec, geometry.clone()))
            }
            BlockForm::NbdSocket => {
                let made = NbdSocketDevice::create(spec, geometry.clone());
                Self::made(form, &geometry, made)
            }
            _ => Err(geometry.unsupported(format!("the form {form} is none of a device"))),
        }
    }

    /// Takes over a device whose server died, with what its keeper kept. It must have been served under the same name.
    pub fn resume(
        state: &DeviceState,
        fds: Vec<OwnedFd>,
        spec: &DeviceSpec,
    ) -> Result<(Self, Vec<QueueSetup>), DeviceError> {
        spec.check()?;
        let geometry = Geometry::new(spec);
        let shared = geometry.clone();
        match state {
            &DeviceState::Fuse { loop_number } => {
                let made = FuseDevice::resume(spec, shared, loop_number, fds);
                Self::made(BlockForm::Fuse, &geometry, made)
            }
            &DeviceState::Ublk { id } => Self::made(
                BlockForm::Ublk,
                &geometry,
                UblkDevice::resume(spec, shared, id),
            ),
            &DeviceState::Nbd { index } => Self::made(
                BlockForm::Nbd,
                &geometry,
                NbdDevice::resume(spec, shared, index),
            ),
            DeviceState::NbdSocket { path } => {
                let made = NbdSocketDevice::resume(spec, shared, path, fds);
                Self::made(BlockForm::NbdSocket, &geometry, made)
            }
        }
    }

    fn made<D: DeviceForm + Send + 'static>(
        form: BlockForm,
        geometry: &Arc<Geometry>,
        made: Made<D>,
    ) -> Made<Self> {
        let (device, queues) = made?;
        Ok((
            Device {
                inner: Box::new(device),
                form,
                geometry: geometry.clone(),
            },
            queues,
        ))
    }

    /// Removes what is left of a device whose server died, when nobody will resume it. Its users get errors.
    pub fn remove_leftover(name: &str, state: &DeviceState) -> io::Result<()> {
        match state {
            &DeviceState::Fuse { loop_number } => FuseDevice::remove_leftover(name, loop_number),
            &DeviceState::Ublk { id } => UblkDevice::remove_leftover(id),
            &DeviceState::Nbd { index } => NbdDevice::remove_leftover(name, index),
            DeviceState::NbdSocket { path } => NbdSocketDevice::remove_leftover(path),
        }
    }

    /// Makes the device appear, or go on after [`Device::resume`], and returns its path. Blocks until the front ends
    /// have served the kernel's first requests, so they must be running on other threads.
    pub fn attach(&mut self) -> Result<PathBuf, DeviceError> {
        self.inner.attach()
    }

    /// `/dev/…` or the path of the socket, once attached.
    pub fn path(&self) -> Option<PathBuf> {
        self.inner.path()
    }

    /// What clients are told to connect to, where that is more than a path: `nbd+unix:///NAME?socket=PATH`.
    pub fn uri(&self) -> Option<String> {
        self.inner.uri()
    }

    /// The form.
    pub fn form(&self) -> BlockForm {
        self.form
    }

    /// The size it has now.
    pub fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes()
    }

    /// Follows a namespace that grew or shrank. Blocks as [`Device::attach`] does.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError> {
        self.geometry.check_size(size_bytes)?;
        self.inner.resize(size_bytes)
    }

    /// Who uses the device: mounts, devices stacked on it, swap, and processes that have it open or are connected.
    pub fn uses(&self) -> io::Result<Vec<Use>> {
        self.inner.uses()
    }

    /// The same, of a device that is to go: blocks for up to two seconds where programs merely have it open, as one that looks what is on it does,
    /// and tells of those that still have it open then.
    pub fn lasting_uses(&self) -> io::Result<Vec<Use>> {
        in_use::more_than_a_glance(|| self.uses())
    }

    /// What another process needs to go on when this one dies; `None` when there is nothing to go on with.
    pub fn keep(&self) -> Result<Option<Kept>, DeviceError> {
        self.inner.keep()
    }

    /// Removes the device; refused while it is in use ([`Device::lasting_uses`]), unless `force`d: then its users get errors once the front
    /// ends stop.
    pub fn detach(&mut self, force: bool) -> Result<(), DeviceError> {
        if !force && let Some(path) = self.path() {
            let doing = format!("see who uses {}", path.display());
            let uses = self.lasting_uses().map_err(self.geometry.step(doing))?;
            if !uses.is_empty() {
                return Err(DeviceError::InUse { path, uses });
            }
        }
        self.inner.detach()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.inner.detach() {
            tracing::warn!(%error, "a device is left behind");
        }
    }
}
