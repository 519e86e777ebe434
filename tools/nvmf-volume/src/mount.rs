//! Mounting, binding, unmounting: by system calls, idempotent, and read back from the kernel.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::Result;
use crate::error::Error;
use crate::filesystem::FsKind;
use crate::mountinfo::{self, Mount};

/// How long an unmount is tried that is refused because of use: a process' files are closed shortly after its end (a ring's
/// are), and the kernel tells nobody when.
const BUSY_LIMIT: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const TRY_EVERY: Duration = Duration::from_millis(20);
/// So many users of a busy mount are named.
const MAX_USERS: usize = 8;

/// Options that are flags of the mount and not the file system's own.
const FLAGS: &[(&str, MountFlags)] = &[
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("lazytime", MountFlags::LAZYTIME),
];
/// Options that only say what is so anyway.
const DEFAULTS: &[&str] = &[
    "rw", "defaults", "suid", "dev", "exec", "async", "atime", "auto", "_netdev",
];

/// Takes mount options apart, each `name` or `name=value`: the flags, and the file system's own.
fn split_options<'a>(options: impl IntoIterator<Item = &'a str>) -> (MountFlags, Vec<&'a str>) {
    let mut flags = MountFlags::empty();
    let mut own = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None if DEFAULTS.contains(&option) || option.is_empty() => {}
            None => own.push(option),
        }
    }
    (flags, own)
}

/// How a file system is to be mounted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MountSpec<'a> {
    pub kind: FsKind,
    pub options: &'a [String],
    pub read_only: bool,
    /// Nothing can be written to the device, not even a journal's replay.
    pub device_read_only: bool,
}

/// Mounts a device. The mount point is made where it is missing.
pub(crate) fn mount(device: &Path, at: &Path, spec: MountSpec<'_>) -> Result<()> {
    make_dir(at)?;
    let (mut flags, mut own) = split_options(spec.options.iter().map(String::as_str));
    if spec.read_only || spec.device_read_only {
        flags |= MountFlags::RDONLY;
    }
    match spec.kind {
        // A clone has the UUID of its source, which XFS refuses to mount a second time.
        FsKind::Xfs => own.push("nouuid"),
        FsKind::Ext4 => {}
    }
    if spec.device_read_only {
        own.push(match spec.kind {
            FsKind::Xfs => "norecovery",
            FsKind::Ext4 => "noload",
        });
    }
    let data = CString::new(own.join(","))
        .map_err(|_| Error::Setting("a mount option has a NUL byte in it".to_owned()))?;
    rustix::mount::mount(device, at, spec.kind.name(), flags, data.as_c_str()).map_err(|errno| {
        match errno {
            // What the kernel calls EFSCORRUPTED.
            Errno::UCLEAN => Error::NeedsRepair {
                kind: spec.kind,
                device: device.to_owned(),
                said: "the kernel refuses to mount it (its log says more)".to_owned(),
                remedy: match spec.kind {
                    FsKind::Xfs => format!("xfs_repair {}", device.display()),
                    FsKind::Ext4 => format!("e2fsck -f {}", device.display()),
                },
            },
            errno => {
                let what = format!(
                    "mount {} ({}, options '{}'; the kernel's log may say why)",
                    device.display(),
                    spec.kind,
                    own.join(",")
                );
                Error::system(&what, at)(errno)
            }
        }
    })
}

/// Makes `target` show `source`, a folder, a file or a device node. Idempotent; a bind mount that is there already is made read-only
/// or writable as asked. The target is made where it is missing, as a folder or a file as the source is.
pub fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let metadata = fs::metadata(source).map_err(Error::system("look at", source))?;
    if mountinfo::mount_at(target)?.is_some() {
        let there = fs::metadata(target).map_err(Error::system("look at", target))?;
        if (there.dev(), there.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(occupied(target)?);
        }
    } else {
        match metadata.is_dir() {
            true => make_dir(target)?,
            false => make_file(target)?,
        }
        rustix::mount::mount_bind(source, target).map_err(Error::system(
            &format!("bind {} to it", source.display()),
            target,
        ))?;
    }
    set_read_only(target, read_only)
}

/// Makes the mount on `at` read-only or writable, and no other mount of the same file system.
pub fn set_read_only(at: &Path, read_only: bool) -> Result<()> {
    let mount = mounted(at)?;
    if mount.read_only == read_only {
        return Ok(());
    }
    let kept = mount
        .options
        .iter()
        .map(String::as_str)
        .filter(|option| *option != "ro");
    let (mut flags, _) = split_options(kept);
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount_remount(at, flags | MountFlags::BIND, "")
        .map_err(Error::system("change the mount on it", at))
}

/// Makes the file system that is mounted on `at` read-only or writable, wherever else it is mounted.
pub fn remount_fs(at: &Path, read_only: bool) -> Result<()> {
    let mount = mounted(at)?;
    let (mut flags, _) = split_options(
        mount
            .options
            .iter()
            .map(String::as_str)
            .filter(|option| *option != "ro"),
    );
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount_remount(at, flags, "").map_err(Error::system("remount what is on it", at))
}

fn mounted(at: &Path) -> Result<Mount> {
    mountinfo::mount_at(at)?
        .ok_or_else(|| Error::Setting(format!("nothing is mounted on {}", at.display())))
}

/// Unmounts all that is mounted on `at`; whether there was anything. A mount point that does not exist is fine.
pub fn unmount(at: &Path) -> Result<bool> {
    let deadline = Instant::now() + BUSY_LIMIT;
    let mut any = false;
    while mountinfo::mount_at(at)?.is_some() {
        match rustix::mount::unmount(at, UnmountFlags::NOFOLLOW) {
            Ok(()) => any = true,
            // Somebody was faster.
            Err(Errno::INVAL | Errno::NOENT) if mountinfo::mount_at(at)?.is_none() => {}
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(TRY_EVERY),
            Err(Errno::BUSY) => {
                return Err(Error::Busy {
                    path: at.to_owned(),
                    by: users(at),
                });
            }
            Err(errno) => return Err(Error::system("unmount", at)(errno)),
        }
    }
    Ok(any)
}

/// Unmounts, and removes the mount point, which must be an empty folder or file of ours.
pub fn unmount_and_remove(at: &Path) -> Result<bool> {
    let any = unmount(at)?;
    let removed = match fs::symlink_metadata(at) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(at),
        // A file is only removed when it is what a device node is bound to: empty.
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => fs::remove_file(at),
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::system("remove the mount point", at)(error))
        }
        _ => Ok(any),
    }
}

/// The error for a mount point that has something else on it.
pub(crate) fn occupied(at: &Path) -> Result<Error> {
    let found = match mountinfo::mount_at(at)? {
        Some(mount) => format!("{} from {}", mount.kind, mount.source.display()),
        None => "something".to_owned(),
    };
    Ok(Error::Occupied {
        at: at.to_owned(),
        found,
    })
}

/// The number of a block device.
pub fn device_number(device: &Path) -> Result<u64> {
    let metadata = fs::metadata(device).map_err(Error::system("look at", device))?;
    match metadata.file_type().is_block_device() {
        true => Ok(metadata.rdev()),
        false => Err(Error::Setting(format!(
            "{} is not a block device",
            device.display()
        ))),
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Error::system("make the folder", path))
}

fn make_file(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    let made = fs::File::options().create(true).append(true).open(path);
    made.map(drop).map_err(Error::system("make the file", path))
}

/// Processes that have their working folder, their root or a file below the mount point. Only links are read: to ask files
/// on a device that does not answer would hang.
fn users(at: &Path) -> Vec<String> {
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let is_below = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(at));
        let fds = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut links = ["cwd", "root"]
            .map(|name| process.join(name))
            .into_iter()
            .chain(fds.map(|fd| fd.path()));
        if links.any(is_below) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            users.push(format!("{} (process {pid})", name.trim()));
            if users.len() == MAX_USERS {
                break;
            }
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_apart() {
        let (flags, own) = split_options([
            "ro",
            "noatime",
            "data=journal",
            "defaults",
            "",
            "rw",
            "discard",
        ]);
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NOATIME);
        assert_eq!(own, ["data=journal", "discard"]);
    }

    #[test]
    fn nothing_to_unmount_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!unmount(folder.path()).unwrap());
        assert!(!unmount(&folder.path().join("missing")).unwrap());
        let at = folder.path().join("at");
        fs::create_dir(&at).unwrap();
        assert!(!unmount_and_remove(&at).unwrap());
        assert!(!unmount_and_remove(&at).unwrap());
        fs::write(folder.path().join("data"), "x").unwrap();
        unmount_and_remove(&folder.path().join("data")).unwrap();
        assert!(
            folder.path().join("data").exists(),
            "a file with content is nobody's mount point"
        );
    }
}
