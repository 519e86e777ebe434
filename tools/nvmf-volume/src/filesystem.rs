//! Making, checking and growing the file systems that volumes have.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::Error;
use crate::lock::VolumeLock;
use crate::tool::Tool;

/// The file systems that a volume can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsKind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FsKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ext4" => Ok(FsKind::Ext4),
            "xfs" => Ok(FsKind::Xfs),
            other => Err(Error::Setting(format!(
                "file system '{other}' is not supported; ext4 and xfs are"
            ))),
        }
    }
}

const MKE2FS: Tool = Tool {
    program: "mkfs.ext4",
    package: "e2fsprogs",
};
const MKFS_XFS: Tool = Tool {
    program: "mkfs.xfs",
    package: "xfsprogs",
};
const E2FSCK: Tool = Tool {
    program: "e2fsck",
    package: "e2fsprogs",
};
const RESIZE2FS: Tool = Tool {
    program: "resize2fs",
    package: "e2fsprogs",
};
const XFS_GROWFS: Tool = Tool {
    program: "xfs_growfs",
    package: "xfsprogs",
};

/// Bits of e2fsck's exit code: errors that were corrected, and that the system should be restarted after (which holds for
/// a file system that is mounted, and this one is not).
const E2FSCK_CORRECTED: i32 = 1 | 2;
/// Bit of e2fsck's exit code: errors that only a human may correct.
const E2FSCK_UNCORRECTED: i32 = 4;

impl FsKind {
    /// As `mount` knows it.
    pub fn name(self) -> &'static str {
        match self {
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
        }
    }

    /// The smallest device that its mkfs takes with default options.
    pub fn min_bytes(self) -> u64 {
        match self {
            // Room for a journal, without which it would not be ext4: mke2fs leaves it out below 2048 blocks.
            FsKind::Ext4 => 16 << 20,
            // mkfs.xfs refuses less since its version 5.19.
            FsKind::Xfs => 300 << 20,
        }
    }
}

/// Checks options for mkfs: they may not name another file or device, which mkfs would then overwrite.
pub fn check_mkfs_options(options: &[String]) -> Result<()> {
    for option in options {
        let bad = |why: &str| Err(Error::Setting(format!("mkfs option '{option}' {why}")));
        if option.is_empty() || option.contains(['\0', '\n']) {
            return bad("is empty or has a line break in it");
        }
        if option.contains('/') || option.starts_with("device=") {
            return bad("names a file or device; only options for the volume itself are taken");
        }
    }
    Ok(())
}

/// Makes a file system. What is on the device is lost: the caller has seen that it is nobody's.
pub(crate) fn make(
    lock: &VolumeLock,
    device: &Path,
    size_bytes: u64,
    kind: FsKind,
    options: &[String],
) -> Result<()> {
    check_mkfs_options(options)?;
    if size_bytes < kind.min_bytes() {
        return Err(Error::TooSmall {
            device: device.to_owned(),
            size_bytes,
            kind,
            min_bytes: kind.min_bytes(),
        });
    }
    // Without discards: a volume is made sparse, and has nothing to give back. Without blocks for the superuser only: no
    // system runs from it. Of ext4, blocks of 4 KiB also where mke2fs would take smaller ones: then nothing but the superblock
    // is in the first 4 KiB, which tell whether a device is blank.
    let (tool, own): (_, &[&str]) = match kind {
        FsKind::Ext4 => (
            MKE2FS,
            &["-q", "-F", "-b", "4096", "-m", "0", "-E", "nodiscard"],
        ),
        FsKind::Xfs => (MKFS_XFS, &["-q", "-f", "-K"]),
    };
    let arguments = own
        .iter()
        .copied()
        .chain(options.iter().map(String::as_str));
    let arguments = arguments.map(AsRef::as_ref).chain([device.as_os_str()]);
    let ended = tool.run(Some(lock), arguments)?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(tool.failed(device, &ended)),
    }
}

/// Checks a file system that is not mounted, and mends what can be mended without a decision. XFS is mended by mounting it.
pub(crate) fn check(lock: &VolumeLock, device: &Path, kind: FsKind) -> Result<()> {
    match kind {
        FsKind::Xfs => Ok(()),
        FsKind::Ext4 => e2fsck(lock, device, &["-p"]),
    }
}

fn e2fsck(lock: &VolumeLock, device: &Path, how: &[&str]) -> Result<()> {
    let arguments = how.iter().map(AsRef::as_ref).chain([device.as_os_str()]);
    let ended = E2FSCK.run(Some(lock), arguments)?;
    match ended.status.code() {
        Some(code) if code & !E2FSCK_CORRECTED == 0 => {
            if code != 0 {
                tracing::warn!(device = %device.display(), said = ended.said, "file system mended");
            }
            Ok(())
        }
        Some(code) if code & E2FSCK_UNCORRECTED != 0 => Err(Error::NeedsRepair {
            kind: FsKind::Ext4,
            device: device.to_owned(),
            said: ended.said,
            remedy: format!("e2fsck -f {}", device.display()),
        }),
        _ => Err(E2FSCK.failed(device, &ended)),
    }
}

/// What the kernel says to one that may not have a mounted ext4 grown.
const RESIZE_DENIED: &str = "Permission denied to resize";

/// Grows a mounted file system to the size of its device. Does nothing to one that has it.
pub(crate) fn grow(lock: &VolumeLock, device: &Path, kind: FsKind, at: &Path) -> Result<()> {
    let (tool, arguments): (_, &[&std::ffi::OsStr]) = match kind {
        FsKind::Ext4 => (RESIZE2FS, &[device.as_os_str()]),
        FsKind::Xfs => (XFS_GROWFS, &["-d".as_ref(), at.as_os_str()]),
    };
    let ended = tool.run(Some(lock), arguments)?;
    if ended.status.success() {
        return Ok(());
    }
    if kind == FsKind::Ext4 && ended.said.contains(RESIZE_DENIED) {
        return Err(Error::GrowDenied(at.to_owned()));
    }
    Err(tool.failed(device, &ended))
}

/// Grows an ext4 that is mounted nowhere, which takes a full check first.
pub(crate) fn grow_unmounted(lock: &VolumeLock, device: &Path) -> Result<()> {
    e2fsck(lock, device, &["-f", "-p"])?;
    let ended = RESIZE2FS.run(Some(lock), [device])?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(RESIZE2FS.failed(device, &ended)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mkfs_options_cannot_name_other_devices() {
        let check = |option: &str| check_mkfs_options(&[option.to_owned()]);
        for good in [
            "-O",
            "^has_journal",
            "-i",
            "size=512",
            "-m",
            "reflink=1,crc=1",
        ] {
            check(good).unwrap();
        }
        for bad in [
            "/dev/sda",
            "logdev=/dev/sdb",
            "../x",
            "device=x",
            "",
            "a\nb",
        ] {
            assert_eq!(
                check(bad).unwrap_err().kind(),
                crate::Kind::Invalid,
                "{bad}"
            );
        }
    }

    #[test]
    fn kinds_are_named_as_mount_names_them() {
        for kind in [FsKind::Ext4, FsKind::Xfs] {
            assert_eq!(kind.to_string().parse::<FsKind>().unwrap(), kind);
        }
        assert!(
            "btrfs"
                .parse::<FsKind>()
                .unwrap_err()
                .to_string()
                .contains("ext4 and xfs")
        );
    }
}
