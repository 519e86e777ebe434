//! Files and block devices: opening them with direct I/O where they allow it, and their size.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nvmf_io::probe::direct_align;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fstat, ftruncate, open, seek, statx,
};
use rustix::io::Errno;

use super::claim::claim;
use super::error::BackingError;

/// An open file or block device.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) fd: Arc<OwnedFd>,
    /// Unit of offsets and lengths: of direct I/O, or 1 where I/O goes through the page cache.
    pub(super) unit_bytes: u32,
    /// Where the file was found to end before its promised size; `u64::MAX` otherwise.
    pub(super) end_bytes: AtomicU64,
    /// Whether it was said that the file was deleted.
    pub(super) told_deleted: AtomicBool,
}

/// Size of a regular file or a block device.
pub(super) fn measure(fd: impl AsFd) -> Result<u64, Errno> {
    // The one question that both answer; nothing uses the file position.
    seek(fd, SeekFrom::End(0))
}

/// Size of a regular file, without asking a server for it: a shard must not wait. `None` where the kernel does not tell.
#[inline]
pub(super) fn cached_size(fd: impl AsFd) -> Option<u64> {
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(fd, c"", how, StatxFlags::SIZE).ok()?;
    Some(stat.stx_size)
}

pub(super) fn access(read_only: bool) -> OFlags {
    if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    }
}

/// Opens with O_DIRECT, or without where the file system does not know it.
fn open_direct(
    path: &Path,
    flags: OFlags,
    read_only: bool,
) -> Result<(OwnedFd, bool), BackingError> {
    let flags = access(read_only) | flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    let mode = Mode::RUSR | Mode::WUSR;
    let opened = match open(path, flags | OFlags::DIRECT, mode) {
        Ok(fd) => Ok((fd, true)),
        Err(Errno::INVAL) => open(path, flags, mode).map(|fd| (fd, false)),
        Err(errno) => Err(errno),
    };
    opened.map_err(|errno| open_error(path, read_only, errno))
}

/// Why it cannot be opened, with what to do about it.
pub(super) fn open_error(path: &Path, read_only: bool, errno: Errno) -> BackingError {
    let remedy = match errno {
        Errno::NOENT => {
            let folder = path.parent().filter(|folder| !folder.is_dir());
            return match folder {
                Some(_) => BackingError::NoFolder(path.into()),
                None => BackingError::Missing(path.into()),
            };
        }
        Errno::ACCESS | Errno::PERM => "; give this user access to it, or serve it read-only",
        Errno::ROFS => "; serve it read-only",
        Errno::BUSY => "; it is mounted or otherwise in use: release it, or serve it read-only",
        Errno::MFILE => "; raise the limit on open files (ulimit -n, LimitNOFILE)",
        _ => "",
    };
    let access = if read_only {
        "reading"
    } else {
        "reading and writing"
    };
    BackingError::Open {
        path: path.into(),
        access,
        errno,
        remedy,
    }
}

/// The error of opening a device: nobody makes one that is missing.
pub(super) fn of_device(error: BackingError) -> BackingError {
    match error {
        BackingError::Missing(path) | BackingError::NoFolder(path) => BackingError::NoDevice(path),
        error => error,
    }
}

impl Storage {
    fn new(fd: OwnedFd, unit_bytes: u32) -> Self {
        Self {
            fd: Arc::new(fd),
            unit_bytes,
            end_bytes: AtomicU64::new(u64::MAX),
            told_deleted: AtomicBool::new(false),
        }
    }
}

pub(super) fn open_file(
    path: &Path,
    size: Option<u64>,
    read_only: bool,
) -> Result<(Storage, u64), BackingError> {
    let make = if size.is_some() && !read_only {
        OFlags::CREATE
    } else {
        OFlags::empty()
    };
    let (mut fd, mut direct) = open_direct(path, make, read_only)?;
    let what = || format!("file {}", path.display());
    let system = |action, errno| BackingError::System {
        what: what(),
        action,
        errno,
    };
    let stat = fstat(&fd).map_err(|errno| system("asking what it is", errno))?;
    let remedy = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::BlockDevice => Some("serve it with --block"),
        _ => Some("name a regular file"),
    };
    if let Some(remedy) = remedy {
        return Err(BackingError::WrongKind {
            path: path.into(),
            expected: "regular file",
            remedy,
        });
    }
    claim(&fd, path, read_only)?;
    let mut size_bytes = measure(&fd).map_err(|errno| system("asking for its size", errno))?;
    match size {
        Some(wanted) if size_bytes < wanted && !read_only => {
            ftruncate(&fd, wanted)
                .map_err(|errno| system("growing it to the size given", errno))?;
            size_bytes = wanted;
        }
        Some(wanted) if size_bytes > wanted => {
            tracing::warn!(path = %path.display(), size_bytes, wanted_bytes = wanted,
                "the file is larger than the size given; all of it is served");
        }
        _ => {}
    }
    let mut unit_bytes = 1;
    if direct {
        match aligned_unit(&fd) {
            Ok(Some(unit)) => unit_bytes = unit,
            // O_DIRECT was taken but cannot be used with blocks of ours.
            Ok(None) => {
                let again = access(read_only) | OFlags::CLOEXEC;
                fd = open(path, again, Mode::empty())
                    .map_err(|errno| system("opening it again without direct I/O", errno))?;
                // The lock went with the file that was open before.
                claim(&fd, path, read_only)?;
                direct = false;
            }
            Err(error) => return Err(unusable(what(), &error)),
        }
    }
    if !direct {
        tracing::warn!(path = %path.display(),
            "the file system has no direct I/O: data goes through the page cache, which costs memory and a copy");
    }
    Ok((Storage::new(fd, unit_bytes), size_bytes))
}

/// The unit of direct I/O; `None` when there is none that blocks of 4096 bytes satisfy.
fn aligned_unit(fd: &OwnedFd) -> io::Result<Option<u32>> {
    Ok(direct_align(fd)?
        .map(|align| align.offset_bytes)
        .filter(|unit| *unit <= 4096))
}

fn unusable(what: String, error: &io::Error) -> BackingError {
    BackingError::Unsupported {
        what,
        why: format!("its alignment for direct I/O is not known: {error}"),
    }
}

pub(super) fn open_block(path: &Path, read_only: bool) -> Result<(Storage, u64), BackingError> {
    // O_EXCL without O_CREAT on a block device: refused while it is mounted, and nobody mounts it while we serve it.
    let exclusive = if read_only {
        OFlags::empty()
    } else {
        OFlags::EXCL
    };
    let (fd, direct) = open_direct(path, exclusive, read_only).map_err(of_device)?;
    let what = || format!("block device {}", path.display());
    let system = |action, errno| BackingError::System {
        what: what(),
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
    let size_bytes = measure(&fd).map_err(|errno| system("asking for its size", errno))?;
    let unit_bytes = if direct {
        aligned_unit(&fd)
            .map_err(|error| unusable(what(), &error))?
            .ok_or_else(|| {
                let why = "its sectors are larger than 4096 bytes, which is not served".into();
                BackingError::Unsupported { what: what(), why }
            })?
    } else {
        1
    };
    Ok((Storage::new(fd, unit_bytes), size_bytes))
}
