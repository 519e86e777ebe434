//! What a device shall look like, and what can go wrong with it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::BlockLimits;
use super::in_use::{self, Use};

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
    /// Reads that a queue of the FUSE form may have waiting for requests, from 1 to [`DeviceSpec::MAX_FUSE_READERS`]. As many
    /// wait as were of use lately; fewer than the most are for measurements.
    pub fuse_readers: u16,
    /// Folder for the sockets of `nbd-socket`; it must exist.
    pub runtime_dir: PathBuf,
}

impl DeviceSpec {
    /// The most reads that a queue of the FUSE form can have waiting.
    pub const MAX_FUSE_READERS: u16 = super::fuse::MAX_READERS;

    pub(super) fn check(&self) -> Result<(), DeviceError> {
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
        if !(1..=Self::MAX_FUSE_READERS).contains(&self.fuse_readers) {
            return reject(format!(
                "a FUSE queue has 1 to {} readers, not {}",
                Self::MAX_FUSE_READERS,
                self.fuse_readers
            ));
        }
        check_size(&self.name, self.size_bytes, block)?;
        if self.limits.max_transfer_bytes < block || self.queues == 0 || self.queue_depth == 0 {
            return reject(
                "it needs a transfer size of at least one block, a queue and a queue depth".into(),
            );
        }
        Ok(())
    }
}

fn check_size(name: &str, size_bytes: u64, block_size_bytes: u32) -> Result<(), DeviceError> {
    if size_bytes > 0 && size_bytes.is_multiple_of(block_size_bytes.into()) {
        return Ok(());
    }
    let what =
        format!("{size_bytes} bytes are not a whole number of {block_size_bytes}-byte blocks");
    Err(DeviceError::Spec {
        name: name.to_owned(),
        what,
    })
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
    pub fn new(spec: &DeviceSpec) -> Arc<Self> {
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

    /// Whether the device can have this size.
    pub fn check_size(&self, size_bytes: u64) -> Result<(), DeviceError> {
        check_size(&self.name, size_bytes, self.block_size_bytes)
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
