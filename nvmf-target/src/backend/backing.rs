//! A backing: an opened file, block device, NVMe namespace or piece of memory.
//!
//! Opened once, on the control thread, before anything is promised to a host: whatever is wrong with it is said at start. All shards share
//! the one open file description, so that a lock or an exclusive open is held for as long as any of them uses it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, fstat, ftruncate, open, seek};
use rustix::io::Errno;

use super::direct;
use super::error::BackingError;

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
    size_bytes: u64,
}

/// What is behind a [`Backing`].
#[derive(Debug)]
pub(super) enum Kind {
    Null,
    File(Storage),
    Block(Storage),
}

/// An open file or block device.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) fd: OwnedFd,
    /// Whether it is open with O_DIRECT.
    pub(super) direct: bool,
}

impl Backing {
    /// Opens what `spec` names. Blocks while the kernel does.
    pub fn open(spec: &BackingSpec, options: &BackingOptions) -> Result<Self, BackingError> {
        if let Some(block_bytes) = options.block_bytes
            && !matches!(block_bytes, 512 | 4096)
        {
            return Err(BackingError::BlockSize(block_bytes));
        }
        let (kind, size_bytes, unit_bytes) = match spec {
            BackingSpec::Null { size_bytes } => (Kind::Null, *size_bytes, DEFAULT_BLOCK_BYTES),
            BackingSpec::File { path, size_bytes } => {
                let (storage, size_bytes, unit) = open_file(path, *size_bytes, options.read_only)?;
                (Kind::File(storage), size_bytes, unit)
            }
            BackingSpec::Block { path } => {
                let (storage, size_bytes, unit) = open_block(path, options.read_only)?;
                (Kind::Block(storage), size_bytes, unit)
            }
            BackingSpec::Memory { .. } | BackingSpec::Passthrough { .. } => {
                return Err(BackingError::Unsupported {
                    what: spec.to_string(),
                    why: "not served yet".into(),
                });
            }
        };
        let block_bytes = options.block_bytes.unwrap_or(unit_bytes);
        if let BackingSpec::File { path, .. } | BackingSpec::Block { path } = spec
            && block_bytes < unit_bytes
        {
            return Err(BackingError::Alignment {
                path: path.clone(),
                block_bytes,
                required_bytes: unit_bytes,
            });
        }
        if size_bytes < u64::from(block_bytes) {
            return Err(BackingError::TooSmall {
                what: spec.to_string(),
                size_bytes,
                block_bytes,
            });
        }
        Ok(Self {
            kind,
            spec: spec.clone(),
            read_only: options.read_only,
            block_bytes,
            size_bytes,
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

    /// Its size when it was opened.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether I/O bypasses the page cache: always so for what has none.
    pub fn is_direct(&self) -> bool {
        match &self.kind {
            Kind::Null => true,
            Kind::File(storage) | Kind::Block(storage) => storage.direct,
        }
    }

    /// Whether blocks are lost when the process ends, so that its identity must be a new one at each start.
    pub fn is_volatile(&self) -> bool {
        matches!(self.spec, BackingSpec::Memory { .. })
    }

    /// Its size now, which differs from [`Backing::size_bytes`] when it was resized outside.
    pub fn measure_bytes(&self) -> Result<u64, BackingError> {
        match &self.kind {
            Kind::Null => Ok(self.size_bytes),
            Kind::File(storage) | Kind::Block(storage) => {
                measure(storage.fd.as_fd()).map_err(|errno| BackingError::System {
                    path: self.path().into(),
                    action: "asking for its size",
                    errno,
                })
            }
        }
    }

    /// Grows a file to `size_bytes` (sparse). Never shrinks. Returns the size it has now.
    pub fn grow(&self, size_bytes: u64) -> Result<u64, BackingError> {
        let now = self.measure_bytes()?;
        match &self.kind {
            Kind::File(storage) if now < size_bytes => {
                ftruncate(&storage.fd, size_bytes).map_err(|errno| BackingError::System {
                    path: self.path().into(),
                    action: "growing it",
                    errno,
                })?;
                Ok(size_bytes)
            }
            _ => Ok(now),
        }
    }

    fn path(&self) -> &Path {
        match &self.spec {
            BackingSpec::File { path, .. }
            | BackingSpec::Block { path }
            | BackingSpec::Passthrough { path } => path,
            BackingSpec::Memory { .. } | BackingSpec::Null { .. } => Path::new(""),
        }
    }
}

/// Size of a regular file or a block device.
fn measure(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    // The one question that both answer; nothing uses the file position.
    seek(fd, SeekFrom::End(0))
}

/// Opens with O_DIRECT, or without where the file system does not know it.
fn open_direct(
    path: &Path,
    flags: OFlags,
    read_only: bool,
) -> Result<(OwnedFd, bool), BackingError> {
    let access = if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    let flags = access | flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mode = Mode::RUSR | Mode::WUSR;
    let opened = match open(path, flags | OFlags::DIRECT, mode) {
        Ok(fd) => Ok((fd, true)),
        Err(Errno::INVAL) => open(path, flags, mode).map(|fd| (fd, false)),
        Err(errno) => Err(errno),
    };
    opened.map_err(|errno| match errno {
        Errno::NOENT => BackingError::Missing(path.into()),
        errno => BackingError::Open {
            path: path.into(),
            access: if read_only {
                "reading"
            } else {
                "reading and writing"
            },
            errno,
            remedy: match errno {
                Errno::ACCESS | Errno::PERM => {
                    "; give this user access to it, or serve it read-only"
                }
                Errno::ROFS => "; serve it read-only",
                Errno::BUSY => {
                    "; it is mounted or otherwise in use: release it, or serve it read-only"
                }
                Errno::MFILE => "; raise the limit on open files (ulimit -n, LimitNOFILE)",
                _ => "",
            },
        },
    })
}

fn storage(path: &Path, fd: OwnedFd, direct: bool) -> (Storage, u32) {
    let unit = if direct {
        direct::unit_bytes(&fd)
    } else {
        None
    };
    match unit {
        Some(unit) => (Storage { fd, direct: true }, unit),
        None => {
            tracing::warn!(path = %path.display(), "no direct I/O here: data goes through the page cache, which costs memory and a copy");
            (Storage { fd, direct: false }, DEFAULT_BLOCK_BYTES)
        }
    }
}

fn open_file(
    path: &Path,
    size: Option<u64>,
    read_only: bool,
) -> Result<(Storage, u64, u32), BackingError> {
    let make = if size.is_some() && !read_only {
        OFlags::CREATE
    } else {
        OFlags::empty()
    };
    let (fd, direct) = open_direct(path, make, read_only)?;
    let system = |action, errno| BackingError::System {
        path: path.into(),
        action,
        errno,
    };
    let stat = fstat(&fd).map_err(|errno| system("asking what it is", errno))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::BlockDevice => {
            let remedy = "serve it as a block device (--block)";
            return Err(BackingError::WrongKind {
                path: path.into(),
                expected: "regular file",
                remedy,
            });
        }
        _ => {
            let remedy = "name a regular file";
            return Err(BackingError::WrongKind {
                path: path.into(),
                expected: "regular file",
                remedy,
            });
        }
    }
    let mut size_bytes =
        measure(fd.as_fd()).map_err(|errno| system("asking for its size", errno))?;
    match size {
        Some(wanted) if size_bytes < wanted && !read_only => {
            ftruncate(&fd, wanted)
                .map_err(|errno| system("growing it to the size given", errno))?;
            size_bytes = wanted;
        }
        Some(wanted) if size_bytes > wanted => {
            tracing::warn!(path = %path.display(), size_bytes, wanted, "the file is larger than the size given; all of it is served");
        }
        _ => {}
    }
    let (storage, unit) = storage(path, fd, direct);
    let storage = match storage {
        // The file system opened it with O_DIRECT, but no unit works: open it again without.
        Storage { direct: false, .. } if direct => Storage {
            fd: reopen_buffered(path, read_only)?,
            direct: false,
        },
        storage => storage,
    };
    Ok((storage, size_bytes, unit))
}

fn reopen_buffered(path: &Path, read_only: bool) -> Result<OwnedFd, BackingError> {
    let access = if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| BackingError::System {
        path: path.into(),
        action: "opening it again without direct I/O",
        errno,
    })
}

fn open_block(path: &Path, read_only: bool) -> Result<(Storage, u64, u32), BackingError> {
    // O_EXCL without O_CREAT on a block device: refused while it is mounted, and nobody mounts it while we serve it.
    let exclusive = if read_only {
        OFlags::empty()
    } else {
        OFlags::EXCL
    };
    let (fd, direct) = open_direct(path, exclusive, read_only)?;
    let system = |action, errno| BackingError::System {
        path: path.into(),
        action,
        errno,
    };
    let stat = fstat(&fd).map_err(|errno| system("asking what it is", errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        let remedy = "serve a regular file with --file";
        return Err(BackingError::WrongKind {
            path: path.into(),
            expected: "block device",
            remedy,
        });
    }
    let sector = rustix::fs::ioctl_blksszget(&fd)
        .map_err(|errno| system("asking for its sector size", errno))?;
    let size_bytes = measure(fd.as_fd()).map_err(|errno| system("asking for its size", errno))?;
    let unit = sector.max(DEFAULT_BLOCK_BYTES);
    Ok((Storage { fd, direct }, size_bytes, unit))
}
