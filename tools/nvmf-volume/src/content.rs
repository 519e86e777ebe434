//! What is on a device.
//!
//! The rule that keeps data: a device is blank only if `blkid` knows nothing on it *and* its first 4 KiB are zeroes, since data
//! without a signature (a database on the raw device, say) begins at the beginning.
//!
//! A mkfs that was killed must not look like somebody's data, on this node or the next. `mke2fs` clears the first 4 KiB, and
//! writes the superblock there last: until then the device is blank by the rule. (It writes it in a few pieces. Killed between two
//! of them, it leaves what is refused: it could as well be what is left of somebody's superblock.) `mkfs.xfs` writes a superblock early, with a
//! mark (`sb_inprogress`) that it takes off at its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::Result;
use crate::error::Error;
use crate::filesystem::FsKind;
use crate::tool::Tool;

const BLKID: Tool = Tool {
    program: "blkid",
    package: "util-linux",
};

/// `blkid -p` found something.
const FOUND: i32 = 0;
/// `blkid -p` knows nothing on the device, or could not read it: which of both, reading it ourselves has told.
const NOTHING: i32 = 2;
/// `blkid -p` found several things that exclude each other.
const AMBIGUOUS: i32 = 8;

/// The head of a device, in which both file systems have their superblock.
const HEAD_BYTES: usize = 4096;

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    Blank,
    /// What a mkfs left that was interrupted: nobody's data.
    Interrupted(FsKind),
    /// A file system that can be mounted.
    FileSystem {
        /// Which.
        kind: FsKind,
        /// Its size in bytes, which may be less than the device has.
        size_bytes: u64,
    },
    /// Anything else, in words.
    Foreign(String),
}

/// Looks at a device, and changes nothing.
pub fn probe(device: &Path) -> Result<Content> {
    let head = read_head(device).map_err(Error::system("read", device))?;
    let ended = BLKID.run(
        None,
        [
            // The device itself, not what a cache says of it.
            "--probe".as_ref(),
            "--output".as_ref(),
            "export".as_ref(),
            device.as_os_str(),
        ],
    )?;
    match ended.status.code() {
        Some(FOUND) => Ok(known(&ended.stdout, &head)),
        Some(NOTHING) if head.iter().all(|&byte| byte == 0) => Ok(Content::Blank),
        Some(NOTHING) => Ok(Content::Foreign(
            "data of an unknown form (its first 4 KiB are not zeroes)".to_owned(),
        )),
        Some(AMBIGUOUS) => Ok(Content::Foreign(
            "signatures of several file systems or partition tables".to_owned(),
        )),
        _ => Err(BLKID.failed(device, &ended)),
    }
}

fn read_head(device: &Path) -> io::Result<[u8; HEAD_BYTES]> {
    let mut head = [0; HEAD_BYTES];
    File::open(device)?.read_exact_at(&mut head, 0)?;
    Ok(head)
}

/// What `blkid` said, one `KEY=value` a line.
fn known(export: &str, head: &[u8; HEAD_BYTES]) -> Content {
    let value = |wanted: &str| {
        let mut pairs = export.lines().filter_map(|line| line.split_once('='));
        pairs
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| value)
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some("ext4"), None) => Content::FileSystem {
            kind: FsKind::Ext4,
            size_bytes: ext4_bytes(head),
        },
        (Some("xfs"), None) if head[XFS_INPROGRESS] != 0 => Content::Interrupted(FsKind::Xfs),
        (Some("xfs"), None) => Content::FileSystem {
            kind: FsKind::Xfs,
            size_bytes: xfs_bytes(head),
        },
        (Some(other), None) => Content::Foreign(format!("{} ({other})", usage(value("USAGE")))),
        (_, Some(table)) => Content::Foreign(format!("a partition table ({table})")),
        (None, None) => Content::Foreign(format!("something that blkid calls {export:?}")),
    }
}

fn usage(usage: Option<&str>) -> &str {
    match usage {
        Some("filesystem") => "a file system",
        Some("raid") => "a member of a RAID or volume group",
        Some("crypto") => "an encrypted container",
        _ => "something",
    }
}

/// Offset of the byte in which mkfs.xfs marks what it has not finished.
const XFS_INPROGRESS: usize = 126;

/// Blocks of the file system times their size, from XFS's superblock (big-endian).
fn xfs_bytes(head: &[u8; HEAD_BYTES]) -> u64 {
    let block_bytes = u32::from_be_bytes(field(head, 4));
    let blocks = u64::from_be_bytes(field(head, 8));
    blocks.saturating_mul(block_bytes.into())
}

/// Offset of ext4's superblock.
const EXT4_SUPERBLOCK: usize = 1024;
/// The feature that makes its upper half of the block count mean something.
const EXT4_INCOMPAT_64BIT: u32 = 0x80;

/// Blocks of the file system times their size, from ext4's superblock (little-endian).
fn ext4_bytes(head: &[u8; HEAD_BYTES]) -> u64 {
    let at = |offset: usize| u32::from_le_bytes(field(head, EXT4_SUPERBLOCK + offset));
    let (low, log_block_size, incompatible, high) = (at(0x4), at(0x18), at(0x60), at(0x150));
    let high = match incompatible & EXT4_INCOMPAT_64BIT {
        0 => 0,
        _ => high,
    };
    let blocks = u64::from(high) << 32 | u64::from(low);
    // The exponent is at most 6 in what blkid takes for ext4; a larger one is not believed.
    blocks.saturating_mul(1024 << log_block_size.min(6))
}

fn field<const N: usize>(head: &[u8; HEAD_BYTES], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[offset..offset + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn image(folder: &tempfile::TempDir, size_bytes: u64) -> std::path::PathBuf {
        let path = folder.path().join("image");
        File::create(&path).unwrap().set_len(size_bytes).unwrap();
        path
    }

    fn run(program: &str, arguments: &[&str], image: &Path) {
        let output = Command::new(program).args(arguments).arg(image).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {output:?}");
    }

    #[test]
    fn zeroes_are_blank_and_anything_else_at_the_beginning_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(&folder, 64 << 20);
        assert_eq!(probe(&image).unwrap(), Content::Blank);
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(b"x", 4095).unwrap();
        assert!(
            matches!(probe(&image).unwrap(), Content::Foreign(what) if what.contains("unknown form"))
        );
    }

    #[test]
    fn file_systems_are_known_with_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(&folder, 512 << 20);
        run("mkfs.ext4", &["-q", "-F"], &image);
        let ext4 = Content::FileSystem {
            kind: FsKind::Ext4,
            size_bytes: 512 << 20,
        };
        assert_eq!(probe(&image).unwrap(), ext4);
        run("mkfs.xfs", &["-q", "-f"], &image);
        let xfs = Content::FileSystem {
            kind: FsKind::Xfs,
            size_bytes: 512 << 20,
        };
        assert_eq!(probe(&image).unwrap(), xfs);
        // A larger device does not make the file system larger.
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        assert_eq!(probe(&image).unwrap(), xfs);
        let file = File::options().write(true).open(&image).unwrap();
        file.write_all_at(&[1], XFS_INPROGRESS as u64).unwrap();
        assert_eq!(probe(&image).unwrap(), Content::Interrupted(FsKind::Xfs));
    }

    #[test]
    fn what_others_use_is_foreign_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(&folder, 64 << 20);
        let foreign = |image: &Path| match probe(image).unwrap() {
            Content::Foreign(what) => what,
            other => panic!("{other:?}"),
        };
        run("mkswap", &["-q"], &image);
        assert!(foreign(&image).contains("swap"));
        run("mkfs.ext2", &["-q", "-F"], &image);
        assert!(foreign(&image).contains("ext2"));
        // A partition table, of one partition from sector 2048 on.
        let mut table = [0; 512];
        table[446 + 4] = 0x83;
        table[446 + 8..446 + 16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        let file = File::create(&image).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&table, 0).unwrap();
        assert!(foreign(&image).contains("partition table"));
    }

    #[test]
    fn signatures_that_exclude_each_other_are_foreign() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(&folder, 512 << 20);
        run("mkfs.xfs", &["-q", "-f"], &image);
        // An ext4 superblock beside XFS's, as a careless copy leaves it.
        let other = folder.path().join("other");
        File::create(&other).unwrap().set_len(512 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F"], &other);
        let mut superblock = [0; 1024];
        File::open(&other)
            .unwrap()
            .read_exact_at(&mut superblock, 1024)
            .unwrap();
        File::options()
            .write(true)
            .open(&image)
            .unwrap()
            .write_all_at(&superblock, 1024)
            .unwrap();
        assert!(
            matches!(probe(&image).unwrap(), Content::Foreign(what) if what.contains("several"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_blank() {
        let folder = tempfile::tempdir().unwrap();
        let short = image(&folder, 100);
        assert!(
            probe(&short)
                .unwrap_err()
                .to_string()
                .contains("cannot read")
        );
        assert!(probe(Path::new("/nowhere")).is_err());
    }
}
