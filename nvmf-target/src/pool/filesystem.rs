//! The file system below a pool: which it is, what it can do, how full it is.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, IFlags, OFlags, StatxAttributes, StatxFlags, fstatfs, fstatvfs, ioctl_ficlone,
    ioctl_getflags, ioctl_setflags, statx,
};
use rustix::io::Errno;

use super::config::PoolConfig;
use super::error::PoolError;

/// Kinds of file systems that are treated in a way of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// XFS: extents can be asked to be large.
    Xfs,
    /// btrfs: files can be taken out of copy-on-write and checksums.
    Btrfs,
    /// Anything else.
    Other,
}

/// What was found out about a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its kind.
    pub kind: Kind,
    /// Its name as `mount` has it, or its magic number.
    pub type_name: String,
    /// Whether files can share blocks. Tried, not guessed.
    pub reflink: bool,
    /// The unit in which it allocates.
    pub block_bytes: u32,
}

/// How full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What a process like this one can still allocate.
    pub free_bytes: u64,
}

fn name_of(magic: u64) -> (Kind, String) {
    let (kind, name) = match magic {
        0x5846_5342 => (Kind::Xfs, "xfs"),
        0x9123_683e => (Kind::Btrfs, "btrfs"),
        0xef53 => (Kind::Other, "ext4"),
        0x0102_1994 => (Kind::Other, "tmpfs"),
        0x794c_7630 => (Kind::Other, "overlay"),
        0x2fc1_2fc1 => (Kind::Other, "zfs"),
        0xca45_1a4e => (Kind::Other, "bcachefs"),
        0x6969 => (Kind::Other, "nfs"),
        0xf2f5_2010 => (Kind::Other, "f2fs"),
        other => return (Kind::Other, format!("a file system of type {other:#x}")),
    };
    (kind, name.to_owned())
}

impl FileSystem {
    /// Looks at the file system of `folder`.
    pub fn probe(folder: &Path) -> Result<Self, PoolError> {
        let system = |action| {
            move |error: io::Error| PoolError::System {
                path: folder.to_owned(),
                action,
                error,
            }
        };
        let dir = File::open(folder).map_err(system("opening it"))?;
        let stat = fstatfs(&dir).map_err(|errno| system("statfs")(errno.into()))?;
        let (kind, type_name) = name_of(stat.f_type as u64);
        let reflink = can_reflink(folder, kind).map_err(system("trying a reflink in it"))?;
        Ok(FileSystem {
            kind,
            type_name,
            reflink,
            block_bytes: u32::try_from(stat.f_bsize).unwrap_or(4096),
        })
    }

    /// Prepares a file that is to take blocks, before it has any.
    pub fn prepare(&self, file: &File, config: &PoolConfig) -> io::Result<()> {
        match self.kind {
            Kind::Xfs if config.extent_bytes > 0 => {
                let unit = self.block_bytes.max(1);
                let extent_bytes = (config.extent_bytes / unit).max(1) * unit;
                nvmf_io::sys::file::set_extent_size_hint(file, extent_bytes)
            }
            Kind::Btrfs if config.nocow => {
                let flags = ioctl_getflags(file)? | IFlags::NOCOW;
                Ok(ioctl_setflags(file, flags)?)
            }
            _ => Ok(()),
        }
    }

    /// Prepares a file that is to take the blocks of `source`. btrfs shares blocks only between files with the same flags.
    pub fn prepare_like(&self, file: &File, source: &File, config: &PoolConfig) -> io::Result<()> {
        if self.kind == Kind::Btrfs {
            let flags = ioctl_getflags(file)?.difference(IFlags::NOCOW);
            let flags = flags | (ioctl_getflags(source)? & IFlags::NOCOW);
            return Ok(ioctl_setflags(file, flags)?);
        }
        self.prepare(file, config)
    }
}

/// Whether an error says that there is no room left.
pub(super) fn is_full(error: &io::Error) -> bool {
    let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| Some(errno.raw_os_error()));
    full.contains(&error.raw_os_error())
}

/// Tries a reflink between two files without names, which are gone whatever happens. A full file system, which must be opened all the
/// same, has no room for what is to be shared; it still says whether it shares nothing, or is known by its kind.
fn can_reflink(folder: &Path, kind: Kind) -> io::Result<bool> {
    let temporary = || {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(folder)
    };
    let (from, to) = match (temporary(), temporary()) {
        (Ok(from), Ok(to)) => (from, to),
        // No such files on this file system; none that has reflinks lacks them.
        (Err(error), _) | (_, Err(error))
            if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) =>
        {
            return Ok(false);
        }
        (Err(error), _) | (_, Err(error)) if is_full(&error) => return Ok(kind != Kind::Other),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    match from.write_all_at(&[1; 4096], 0) {
        Err(error) if !is_full(&error) => Err(error),
        _ => Ok(ioctl_ficlone(&to, &from).is_ok()),
    }
}

/// How full the file system of the open `folder` is.
pub fn space(folder: impl AsFd) -> io::Result<Space> {
    let stat = fstatvfs(folder)?;
    Ok(Space {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// Whether `folder` is the root of a mounted file system or of a btrfs subvolume.
pub fn is_mount_root(folder: &Path) -> io::Result<bool> {
    let stat = statx(CWD, folder, AtFlags::empty(), StatxFlags::BASIC_STATS)?;
    if stat
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT)
        && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(true);
    }
    let parent = folder.join("..");
    Ok(fs::metadata(folder)?.dev() != fs::metadata(parent)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_of_file_systems_are_told_from_folders() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_mount_root(dir.path()).unwrap());
        for root in ["/", "/proc"] {
            assert!(is_mount_root(Path::new(root)).unwrap(), "{root}");
        }
        assert!(is_mount_root(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn what_probing_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let found = FileSystem::probe(dir.path()).unwrap();
        assert!(found.block_bytes.is_power_of_two());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let space = space(File::open(dir.path()).unwrap()).unwrap();
        assert!(space.total_bytes >= space.free_bytes && space.free_bytes > 0);
    }
}
