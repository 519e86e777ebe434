//! A backing: an opened file, block device, NVMe namespace or piece of memory.
//!
//! Opened once, on the control thread, before anything is promised to a host: whatever is wrong with it is said at start. All
//! shards share the one open file description, so that an exclusive open lasts for as long as any of them uses it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nvmf_io::mem::SharedMemory;
use rustix::fs::{FileType, fdatasync, fstat, ftruncate};

use super::claim::patiently;
use super::device::Device;
use super::error::BackingError;
use super::storage::{Storage, cached_size, measure, open_block, open_file};

/// The block size where nothing asks for another.
const DEFAULT_BLOCK_BYTES: u32 = 512;

/// What to serve, as a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingSpec {
    /// A regular file. With a size it is made when missing and grown (sparse) when shorter, never shrunk.
    File {
        /// Where it is.
        path: PathBuf,
        /// Size to have at least.
        size_bytes: Option<u64>,
    },
    /// A block device.
    Block {
        /// Its node.
        path: PathBuf,
    },
    /// A namespace of a local NVMe device by its character device `/dev/ngXnY`.
    Passthrough {
        /// Its node.
        path: PathBuf,
    },
    /// Memory of this process: lost when it ends.
    Memory {
        /// Its size.
        size_bytes: u64,
    },
    /// Reads zeroes, drops writes.
    Null {
        /// The size it claims.
        size_bytes: u64,
    },
}

impl fmt::Display for BackingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, .. } => write!(f, "file {}", path.display()),
            Self::Block { path } => write!(f, "block device {}", path.display()),
            Self::Passthrough { path } => write!(f, "NVMe device {}", path.display()),
            Self::Memory { size_bytes } => write!(f, "memory of {size_bytes} bytes"),
            Self::Null { size_bytes } => write!(f, "null of {size_bytes} bytes"),
        }
    }
}

/// How to serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackingOptions {
    /// Open for reading only.
    pub read_only: bool,
    /// Block size; `None` takes what direct I/O on the backing asks for, else 512.
    pub block_bytes: Option<u32>,
}

/// An opened backing.
#[derive(Debug)]
pub struct Backing {
    pub(super) kind: Kind,
    spec: BackingSpec,
    read_only: bool,
    block_bytes: u32,
    disk: Option<u64>,
    /// Size that is promised to hosts: as opened, or as grown since.
    size_bytes: AtomicU64,
}

/// What is behind a [`Backing`].
#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Memory(Arc<SharedMemory>),
    Storage(Storage),
    Device(Arc<Device>),
}

impl Backing {
    /// Like [`Backing::open`], but waits up to `patience` for storage that somebody else still has. Blocks.
    pub fn open_patiently(
        spec: &BackingSpec,
        options: &BackingOptions,
        patience: Duration,
    ) -> Result<Self, BackingError> {
        patiently(patience, || Self::open(spec, options))
    }

    /// Opens what `spec` names. Blocks while the kernel does.
    pub fn open(spec: &BackingSpec, options: &BackingOptions) -> Result<Self, BackingError> {
        if let Some(block_bytes) = options.block_bytes
            && !matches!(block_bytes, 512 | 4096)
        {
            return Err(BackingError::BlockSize(block_bytes));
        }
        let (kind, size_bytes) = match spec {
            BackingSpec::Null { size_bytes } => (Kind::Null, *size_bytes),
            BackingSpec::Memory { size_bytes } => {
                let memory =
                    SharedMemory::new(*size_bytes).map_err(|error| BackingError::Unsupported {
                        what: spec.to_string(),
                        why: format!("the memory cannot be had ({error}); give a smaller size"),
                    })?;
                (Kind::Memory(Arc::new(memory)), *size_bytes)
            }
            BackingSpec::File { path, size_bytes } => {
                let (storage, size_bytes) = open_file(path, *size_bytes, options.read_only)?;
                (Kind::Storage(storage), size_bytes)
            }
            BackingSpec::Block { path } => {
                let (storage, size_bytes) = open_block(path, options.read_only)?;
                (Kind::Storage(storage), size_bytes)
            }
            BackingSpec::Passthrough { path } => {
                let (device, size_bytes) = Device::open(path, options.read_only)?;
                (Kind::Device(Arc::new(device)), size_bytes)
            }
        };
        let required_bytes = match &kind {
            Kind::Storage(storage) => storage.unit_bytes.max(DEFAULT_BLOCK_BYTES),
            Kind::Device(device) => device.block_bytes(),
            Kind::Null | Kind::Memory(_) => DEFAULT_BLOCK_BYTES,
        };
        let block_bytes = options.block_bytes.unwrap_or(required_bytes);
        if let Kind::Device(device) = &kind
            && block_bytes != device.block_bytes()
        {
            return Err(BackingError::Unsupported {
                what: spec.to_string(),
                why: format!(
                    "its blocks have {required_bytes} bytes, commands go to it as they are; use that block size"
                ),
            });
        }
        if block_bytes < required_bytes {
            return Err(BackingError::Alignment {
                what: spec.to_string(),
                block_bytes,
                required_bytes,
            });
        }
        if size_bytes < u64::from(block_bytes) {
            return Err(BackingError::TooSmall {
                what: spec.to_string(),
                size_bytes,
                block_bytes,
            });
        }
        let rest_bytes = size_bytes % u64::from(block_bytes);
        if rest_bytes > 0 {
            tracing::warn!(
                storage = %spec, block_bytes, rest_bytes,
                "the last bytes are no whole block and are not served"
            );
        }
        Ok(Self {
            disk: Self::disk_of(&kind),
            kind,
            spec: spec.clone(),
            read_only: options.read_only,
            block_bytes,
            size_bytes: AtomicU64::new(size_bytes),
        })
    }

    /// What it was opened from.
    pub fn spec(&self) -> &BackingSpec {
        &self.spec
    }

    /// Whether it was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The block size to serve it with.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Its size when it was opened, or when [`Backing::resize`] looked last.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Relaxed)
    }

    /// Whether I/O bypasses the page cache: always so for what has none.
    pub fn is_direct(&self) -> bool {
        match &self.kind {
            Kind::Storage(storage) => storage.unit_bytes > 1,
            Kind::Null | Kind::Memory(_) | Kind::Device(_) => true,
        }
    }

    /// Whether blocks are lost when the process ends, so that its identity must be a new one at each start.
    pub fn is_volatile(&self) -> bool {
        matches!(self.spec, BackingSpec::Memory { .. })
    }

    /// Whether blocks that were deallocated read as zeroes.
    pub fn zeroes_after_deallocate(&self) -> bool {
        matches!(
            self.spec,
            BackingSpec::File { .. } | BackingSpec::Memory { .. } | BackingSpec::Null { .. }
        )
    }

    /// Looks how large it is now, after growing a file (sparse) or what is null to `size_bytes` where that is given and more. What it finds is its
    /// size from then on; the namespaces on it are the caller's to change. Never shrinks anything.
    pub fn resize(&self, size_bytes: Option<u64>) -> Result<u64, BackingError> {
        let storage = match &self.kind {
            Kind::Storage(storage) => storage,
            Kind::Device(device) => {
                let now = device.measure()?;
                self.size_bytes.store(now, Relaxed);
                return Ok(now);
            }
            Kind::Null => {
                let now = self.size_bytes().max(size_bytes.unwrap_or(0));
                self.size_bytes.store(now, Relaxed);
                return Ok(now);
            }
            Kind::Memory(_) => return Ok(self.size_bytes()),
        };
        let system = |action, errno| BackingError::System {
            what: self.spec.to_string(),
            action,
            errno,
        };
        let mut now = measure(&storage.fd).map_err(|errno| system("asking for its size", errno))?;
        if let (BackingSpec::File { .. }, Some(wanted)) = (&self.spec, size_bytes)
            && now < wanted
            && !self.read_only
        {
            ftruncate(&storage.fd, wanted).map_err(|errno| system("growing it", errno))?;
            now = wanted;
        }
        self.size_bytes.store(now, Relaxed);
        storage.end_bytes.store(u64::MAX, Relaxed);
        Ok(now)
    }

    /// Makes durable what was written. Blocks while the storage does it.
    pub fn sync(&self) -> Result<(), BackingError> {
        match &self.kind {
            Kind::Storage(storage) if !self.read_only => {
                fdatasync(&storage.fd).map_err(|errno| BackingError::System {
                    what: self.spec.to_string(),
                    action: "flushing it",
                    errno,
                })
            }
            Kind::Device(device) if !self.read_only => device.flush(),
            _ => Ok(()),
        }
    }

    /// Looks whether the file was truncated or deleted behind our back, and says so once. I/O goes on: what lies past the end fails with the status that
    /// says so, a deleted file is served until the process ends. Cheap, but a system call: not for the path of every command.
    pub fn inspect(&self) {
        let Kind::Storage(storage) = &self.kind else {
            return;
        };
        let Ok(now) = measure(&storage.fd) else {
            return;
        };
        self.note_size(storage, now);
        let deleted = matches!(self.spec, BackingSpec::File { .. })
            && fstat(&storage.fd).is_ok_and(|stat| stat.st_nlink == 0);
        if deleted && !storage.told_deleted.swap(true, Relaxed) {
            tracing::warn!(backing = %self.spec,
                "was deleted: it is served until this process ends, and its blocks are lost then");
        }
    }

    /// Looks whether a regular file was truncated: one system call that waits for nothing, since it takes what the kernel has cached. (A block device
    /// cannot be extended by a write.)
    #[inline]
    pub(super) fn look_at_size(&self) {
        if let (Kind::Storage(storage), BackingSpec::File { .. }) = (&self.kind, &self.spec)
            && let Some(now) = cached_size(&storage.fd)
        {
            self.note_size(storage, now);
        }
    }

    /// Takes note of the size of the storage. Writes to memory that all shards share only where it changed.
    #[inline]
    fn note_size(&self, storage: &Storage, now: u64) {
        let promised = self.size_bytes();
        let end = if now < promised { now } else { u64::MAX };
        if storage.end_bytes.load(Relaxed) != end {
            self.size_changed(storage, now, promised, end);
        }
    }

    #[cold]
    fn size_changed(&self, storage: &Storage, now: u64, promised: u64, end: u64) {
        let before = storage.end_bytes.swap(end, Relaxed);
        if end == u64::MAX {
            tracing::info!(backing = %self.spec, size_bytes = now, "has its size again");
        } else if end < before {
            tracing::error!(backing = %self.spec, size_bytes = now, promised_bytes = promised,
                "was truncated: I/O past its end fails; give it its size again (truncate -s)");
        }
    }

    /// Where it ends if that is before its promised size, `u64::MAX` otherwise: as of the last look.
    #[inline]
    pub(super) fn end_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Storage(storage) => storage.end_bytes.load(Relaxed),
            Kind::Null | Kind::Memory(_) | Kind::Device(_) => u64::MAX,
        }
    }

    /// Notes that nothing could be read or written at `offset_bytes`.
    #[cold]
    pub(super) fn found_short(&self, offset_bytes: u64) {
        if self.end_bytes() > offset_bytes {
            self.inspect();
        }
    }

    /// The device number of the disk that it is on, or is; `None` for what is on none, or has queues of its own for each shard. Blocks while the kernel does.
    fn disk_of(kind: &Kind) -> Option<u64> {
        let Kind::Storage(storage) = kind else {
            return None;
        };
        let stat = fstat(&storage.fd).ok()?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => Some(stat.st_rdev),
            _ => Some(stat.st_dev),
        }
    }

    /// The device number of the disk that it is on, for who shares it with others.
    pub(crate) fn disk(&self) -> Option<u64> {
        self.disk
    }

    /// Unit in which a transfer can be cut, 1 where it may be cut anywhere.
    pub(super) fn unit_bytes(&self) -> u32 {
        match &self.kind {
            Kind::Storage(storage) => storage.unit_bytes,
            Kind::Null | Kind::Memory(_) | Kind::Device(_) => 1,
        }
    }
}
