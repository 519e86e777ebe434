//! From a device to a mounted file system, and back.

use std::path::Path;

use crate::Result;
use crate::content::{Content, probe};
use crate::error::Error;
use crate::filesystem::{self, FsKind};
use crate::lock::VolumeLock;
use crate::mount::{self, MountSpec, device_number};
use crate::mountinfo;
use crate::node::Attached;
use crate::stats::stats;

/// What is wanted of a file system.
#[derive(Debug, Clone)]
pub struct FsSpec {
    /// Which.
    pub kind: FsKind,
    /// For mkfs, each word one option.
    pub mkfs_options: Vec<String>,
    /// For mount, as in fstab, each one option.
    pub mount_options: Vec<String>,
    /// Mounted read-only. A journal is still replayed, if the device can be written. A blank device is refused.
    pub read_only: bool,
}

impl FsSpec {
    /// A writable one with no options.
    pub fn new(kind: FsKind) -> Self {
        FsSpec {
            kind,
            mkfs_options: Vec::new(),
            mount_options: Vec::new(),
            read_only: false,
        }
    }
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Staged {
    /// A file system was made.
    pub made: bool,
    /// It was mounted; otherwise it was already.
    pub mounted: bool,
    /// It was grown.
    pub grown: bool,
}

/// Has the device's file system mounted on `at`: makes one on a blank device, checks it, mounts it, and grows it when the
/// device has become larger.
pub fn stage(lock: &VolumeLock, attached: &Attached, spec: &FsSpec, at: &Path) -> Result<Staged> {
    let device = attached.device.as_path();
    let number = device_number(device)?;
    let mut staged = Staged::default();
    if let Some(there) = mountinfo::mount_at(at)? {
        if there.device != number {
            return Err(mount::occupied(at)?);
        }
        if !there.fs_read_only {
            staged.grown = grow_if_larger(lock, attached, at)?;
        }
        return Ok(staged);
    }
    let content = probe(device)?;
    match content {
        Content::FileSystem { kind, .. } if kind == spec.kind => {}
        Content::FileSystem { kind, .. } => {
            return Err(Error::Foreign {
                device: device.to_owned(),
                what: format!("a file system ({kind})"),
                wanted: spec.kind,
            });
        }
        Content::Foreign(what) => {
            return Err(Error::Foreign {
                device: device.to_owned(),
                what,
                wanted: spec.kind,
            });
        }
        Content::Blank | Content::Interrupted(_) if attached.read_only || spec.read_only => {
            return Err(Error::BlankReadOnly(device.to_owned()));
        }
        Content::Blank | Content::Interrupted(_) => {
            tracing::info!(device = %device.display(), kind = %spec.kind, ?content, "making a file system");
            filesystem::make(
                lock,
                device,
                attached.size_bytes,
                spec.kind,
                &spec.mkfs_options,
            )?;
            staged.made = true;
        }
    }
    // A file system that is mounted elsewhere on this node was checked then, and must not be now.
    if !attached.read_only && !staged.made && mountinfo::mounts_of(number)?.is_empty() {
        filesystem::check(lock, device, spec.kind)?;
    }
    let how = MountSpec {
        kind: spec.kind,
        options: &spec.mount_options,
        read_only: spec.read_only,
        device_read_only: attached.read_only,
    };
    mount::mount(device, at, how)?;
    staged.mounted = true;
    if attached.read_only || spec.read_only {
        return Ok(staged);
    }
    staged.grown = match grow_if_larger(lock, attached, at) {
        Err(Error::GrowDenied(_)) if mountinfo::mounts_of(number)?.len() == 1 => {
            mount::unmount(at)?;
            filesystem::grow_unmounted(lock, device)?;
            mount::mount(device, at, how)?;
            true
        }
        result => result?,
    };
    Ok(staged)
}

/// Unmounts what [`stage`] mounted and removes the mount point; whether there was anything.
pub fn unstage(_lock: &VolumeLock, at: &Path) -> Result<bool> {
    mount::unmount_and_remove(at)
}

/// Grows the mounted file system, if its device is larger; whether it did.
pub fn grow_if_larger(lock: &VolumeLock, attached: &Attached, at: &Path) -> Result<bool> {
    let device = attached.device.as_path();
    let (kind, size_bytes) = match probe(device)? {
        Content::FileSystem { kind, size_bytes } => (kind, size_bytes),
        other => {
            return Err(Error::Setting(format!(
                "{} holds no file system that can be grown: {other:?}",
                device.display()
            )));
        }
    };
    // XFS writes the superblock some time after it grew. To ask it once more does no harm.
    if size_bytes >= attached.size_bytes {
        return Ok(false);
    }
    let before = stats(at)?.total_bytes;
    filesystem::grow(lock, device, kind, at)?;
    let after = stats(at)?.total_bytes;
    if after > before {
        tracing::info!(device = %device.display(), before, after, "file system grown");
    }
    // A remainder that is too small for a group of blocks stays unused.
    Ok(after > before)
}

/// Removes the folder that mke2fs makes for e2fsck, where nothing else is there: what looks whether a volume is empty (Docker
/// before it copies an image's files, a database before it sets itself up) would find it is not. e2fsck makes it when needed.
pub fn remove_lost_and_found(at: &Path) -> Result<()> {
    let folder = at.join("lost+found");
    let entries = std::fs::read_dir(at).map_err(Error::system("read", at))?;
    if entries.take(2).count() != 1 || !folder.is_dir() {
        return Ok(());
    }
    match std::fs::remove_dir(&folder) {
        Err(error)
            if !matches!(
                error.kind(),
                std::io::ErrorKind::NotFound
                    | std::io::ErrorKind::DirectoryNotEmpty
                    | std::io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Err(Error::system("remove", &folder)(error))
        }
        _ => Ok(()),
    }
}
