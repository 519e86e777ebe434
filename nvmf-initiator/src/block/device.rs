//! The device half: what is common to all forms, and the hand-over from the control thread to the shards.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::in_use::{self, Use};
use super::{BlockForm, BlockLimits, FrontEnd, FuseDevice};

/// What a loop device keeps of the name.
const MAX_NAME_BYTES: usize = 63;

/// Block sizes that the kernel's drivers take.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;

/// What a device shall look like.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// Name of the namespace, unique on this node: letters, digits, `.`, `-` and `_`. It shows up as backing file,
    /// export name and identifier.
    pub name: String,
    /// Size; a multiple of the block size.
    pub size_bytes: u64,
    /// Logical block size: a power of two from 512 to 4096.
    pub block_size_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// What the backing takes in one request.
    pub limits: BlockLimits,
    /// How many queues are wanted, usually one for each shard. A form may make fewer.
    pub queues: u16,
    /// Requests that one queue may have open.
    pub queue_depth: u16,
    /// Folder for the sockets of [`BlockForm::NbdSocket`]; it must exist.
    pub runtime_dir: PathBuf,
}

impl DeviceSpec {
    fn check(&self) -> Result<(), DeviceError> {
        let reject = |what: String| {
            Err(DeviceError::Spec {
                name: self.name.clone(),
                what,
            })
        };
        if self.name.is_empty()
            || self.name.len() > MAX_NAME_BYTES
            || self.name.starts_with('.')
            || !self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            return reject("a name is made of at most 63 letters, digits, '.', '-' and '_'".into());
        }
        let block = self.block_size_bytes;
        if !block.is_power_of_two() || !BLOCK_SIZES.contains(&block) {
            return reject(format!(
                "block devices have blocks of 512 to 4096 bytes, not {block}"
            ));
        }
        if self.size_bytes == 0 || !self.size_bytes.is_multiple_of(block.into()) {
            return reject(format!(
                "{} bytes are not a whole number of {block}-byte blocks",
                self.size_bytes
            ));
        }
        if self.limits.max_transfer_bytes < block || self.queues == 0 || self.queue_depth == 0 {
            return reject(
                "it needs a transfer size of at least one block, a queue and a queue depth".into(),
            );
        }
        Ok(())
    }
}

/// What went wrong with a device. Each variant names the device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The description makes no device.
    #[error("device {name}: {what}")]
    Spec {
        /// The device.
        name: String,
        /// What is wrong with the description.
        what: String,
    },
    /// A step on the way failed.
    #[error("device {name}: cannot {doing}: {source}")]
    Step {
        /// The device.
        name: String,
        /// The step.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The form lacks the ability on this kernel.
    #[error("device {name}: {what}")]
    Unsupported {
        /// The device.
        name: String,
        /// What is missing, and the remedy.
        what: String,
    },
    /// Somebody uses the device.
    #[error("{} is in use: {}; stop the use, or force it", .path.display(), in_use::describe(.uses))]
    InUse {
        /// The device.
        path: PathBuf,
        /// Who uses it.
        uses: Vec<Use>,
    },
}

/// Size, block size and mode of a device, shared by its halves.
#[derive(Debug)]
pub(super) struct Geometry {
    pub name: String,
    pub block_size_bytes: u32,
    pub read_only: bool,
    size_bytes: AtomicU64,
}

impl Geometry {
    fn new(spec: &DeviceSpec) -> Arc<Self> {
        Arc::new(Geometry {
            name: spec.name.clone(),
            block_size_bytes: spec.block_size_bytes,
            read_only: spec.read_only,
            size_bytes: AtomicU64::new(spec.size_bytes),
        })
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub fn set_size_bytes(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// Whether a range of blocks lies on the device.
    pub fn contains(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        let block = u64::from(self.block_size_bytes);
        offset_bytes.is_multiple_of(block)
            && len_bytes.is_multiple_of(block)
            && offset_bytes
                .checked_add(len_bytes)
                .is_some_and(|end| end <= self.size_bytes())
    }

    /// For errors of a step.
    pub fn step(&self, doing: impl Into<String>) -> impl FnOnce(io::Error) -> DeviceError {
        let (name, doing) = (self.name.clone(), doing.into());
        move |source| DeviceError::Step {
            name,
            doing,
            source,
        }
    }

    pub fn unsupported(&self, what: impl Into<String>) -> DeviceError {
        DeviceError::Unsupported {
            name: self.name.clone(),
            what: what.into(),
        }
    }
}

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
}

/// The device half of a block device: belongs to the control thread, may block.
///
/// Life: [`Device::create`] (or [`Device::resume`]); hand the [`QueueSetup`]s to shards, which build and start the front
/// ends; [`Device::attach`], which needs them running; [`Device::detach`], after which the front ends finish. Dropping
/// an attached device removes it as if by a forced detach.
pub struct Device {
    kind: Kind,
    geometry: Arc<Geometry>,
    keepers: Vec<u32>,
}

enum Kind {
    Fuse(FuseDevice),
}

impl Device {
    /// Prepares a device of a form that [`BlockForm::resolve`] gave. It appears at [`Device::attach`].
    pub fn create(
        form: BlockForm,
        spec: &DeviceSpec,
    ) -> Result<(Self, Vec<QueueSetup>), DeviceError> {
        spec.check()?;
        let geometry = Geometry::new(spec);
        let (kind, queues) = match form {
            BlockForm::Fuse => {
                let (device, queues) = FuseDevice::create(spec, geometry.clone())?;
                (Kind::Fuse(device), queues)
            }
            _ => return Err(geometry.unsupported(format!("the form {form} is none of a device"))),
        };
        Ok((
            Device {
                kind,
                geometry,
                keepers: Vec::new(),
            },
            queues,
        ))
    }

    /// Takes over a device whose server died, with what its keeper kept. It needs no [`Device::attach`].
    pub fn resume(
        state: &DeviceState,
        fds: Vec<OwnedFd>,
        spec: &DeviceSpec,
    ) -> Result<(Self, Vec<QueueSetup>), DeviceError> {
        spec.check()?;
        let geometry = Geometry::new(spec);
        let (kind, queues) = match state {
            &DeviceState::Fuse { loop_number } => {
                let (device, queues) =
                    FuseDevice::resume(spec, geometry.clone(), loop_number, fds)?;
                (Kind::Fuse(device), queues)
            }
            other => return Err(geometry.unsupported(format!("{other:?} cannot be resumed"))),
        };
        Ok((
            Device {
                kind,
                geometry,
                keepers: Vec::new(),
            },
            queues,
        ))
    }

    /// Removes what is left of a device whose server died, when nobody will resume it. Its users get errors.
    pub fn remove_leftover(name: &str, state: &DeviceState) -> io::Result<()> {
        match state {
            &DeviceState::Fuse { loop_number } => FuseDevice::remove_leftover(name, loop_number),
            other => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{other:?} of {name} cannot be removed"),
            )),
        }
    }

    /// Makes the device appear and returns its path. Blocks until the front ends have served the kernel's first reads,
    /// so they must be running on other threads.
    pub fn attach(&mut self) -> Result<PathBuf, DeviceError> {
        match &mut self.kind {
            Kind::Fuse(device) => device.attach(),
        }
    }

    /// `/dev/…` or the path of the socket, once attached.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.kind {
            Kind::Fuse(device) => device.path(),
        }
    }

    /// The form.
    pub fn form(&self) -> BlockForm {
        match self.kind {
            Kind::Fuse(_) => BlockForm::Fuse,
        }
    }

    /// The size it has now.
    pub fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes()
    }

    /// Follows a namespace that grew or shrank. Blocks as [`Device::attach`] does.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), DeviceError> {
        let block = self.geometry.block_size_bytes;
        if size_bytes == 0 || !size_bytes.is_multiple_of(block.into()) {
            return Err(DeviceError::Spec {
                name: self.geometry.name.clone(),
                what: format!("{size_bytes} bytes are not a whole number of {block}-byte blocks"),
            });
        }
        match &mut self.kind {
            Kind::Fuse(device) => device.resize(size_bytes),
        }
    }

    /// Who uses the device: mounts, devices stacked on it, swap, and processes that have it open.
    pub fn uses(&self) -> io::Result<Vec<Use>> {
        match self.path() {
            Some(path) => in_use::uses(&path, &self.keepers),
            None => Ok(Vec::new()),
        }
    }

    /// A process that holds what [`Device::keep`] gave; that it has the device open is no use of it.
    pub fn add_keeper(&mut self, pid: u32) {
        self.keepers.push(pid);
    }

    /// What another process needs to go on when this one dies; `None` when there is nothing to keep.
    pub fn keep(&self) -> Result<Option<Kept>, DeviceError> {
        match &self.kind {
            Kind::Fuse(device) => device.keep(),
        }
    }

    /// Removes the device; refused while it is in use, unless `force`d: then its users get errors once the front ends
    /// stop.
    pub fn detach(&mut self, force: bool) -> Result<(), DeviceError> {
        if !force && let Some(path) = self.path() {
            let doing = format!("see who uses {}", path.display());
            let uses = self.uses().map_err(self.geometry.step(doing))?;
            if !uses.is_empty() {
                return Err(DeviceError::InUse { path, uses });
            }
        }
        match &mut self.kind {
            Kind::Fuse(device) => device.detach(),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.detach(true) {
            tracing::warn!(%error, "a device is left behind");
        }
    }
}

/// `/sys/block/NAME` of a block device.
pub(super) fn sysfs_dir(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}
