//! What is mounted, from `/proc/PID/mountinfo`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::Error;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the file system.
    pub device: u64,
    /// Which part of the file system is mounted: `/` unless it is a bind mount of a folder or file.
    pub root: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// Whether writes through this mount are refused.
    pub read_only: bool,
    /// Options of this mount, apart from those of the file system.
    pub options: Vec<String>,
    /// The file system's kind.
    pub kind: String,
    /// What it was mounted from.
    pub source: OsString,
    /// Whether the file system itself is read-only.
    pub fs_read_only: bool,
}

/// All mounts of this process' mount namespace, in the order in which they were made.
pub fn mounts() -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    let table = fs::read(path).map_err(Error::system("read", path))?;
    Ok(parse(&table))
}

/// The topmost mount on `path`, whose parent's links are followed. `None` where nothing is mounted on it.
pub fn mount_at(path: &Path) -> Result<Option<Mount>> {
    let path = resolve(path);
    Ok(mounts()?.into_iter().rfind(|mount| mount.at == path))
}

/// The path as the kernel writes it, also of a mount point whose file system does not answer: only the parent is looked at.
fn resolve(path: &Path) -> PathBuf {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => match fs::canonicalize(parent) {
            Ok(parent) => parent.join(name),
            Err(_) => path.to_owned(),
        },
        _ => path.to_owned(),
    }
}

/// Where this file system is mounted in this mount namespace.
pub fn mounts_of(device: u64) -> Result<Vec<Mount>> {
    let mounts = mounts()?;
    Ok(mounts
        .into_iter()
        .filter(|mount| mount.device == device)
        .collect())
}

/// Processes, one for each mount namespace other than this one, in which this file system is mounted: containers that use it.
/// What ended meanwhile is left out, and so are mere copies of this namespace's own mounts, at the same places: services of
/// systemd with some privacy have them of everything that is mounted, and use nothing.
pub fn users_elsewhere(device: u64) -> Vec<u32> {
    let own: Vec<PathBuf> = mounts_of(device)
        .unwrap_or_default()
        .into_iter()
        .map(|mount| mount.at)
        .collect();
    let namespace_of = |process: &Path| fs::metadata(process.join("ns/mnt")).map(|ns| ns.ino());
    let mut seen = BTreeSet::new();
    if let Ok(own) = namespace_of(Path::new("/proc/self")) {
        seen.insert(own);
    }
    let mut users = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(namespace) = namespace_of(&entry.path()) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        // Where it cannot be read the process is a zombie, which has no mounts; another one may show the same namespace.
        let Ok(table) = fs::read(entry.path().join("mountinfo")) else {
            continue;
        };
        seen.insert(namespace);
        let is_use = |mount: &Mount| mount.device == device && !own.contains(&mount.at);
        if parse(&table).iter().any(is_use) {
            users.push(pid);
        }
    }
    users
}

fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

/// `36 35 98:0 /root /at options optional… - kind source options`, as proc(5) has it.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut next = || fields.next();
    let (_id, _parent) = (next()?, next()?);
    let device = parse_device(next()?)?;
    let (root, at, options) = (next()?, next()?, next()?);
    while next()? != b"-" {}
    let (kind, source, fs_options) = (next()?, next()?, next()?);
    let has_ro = |options: &[u8]| {
        options
            .split(|&byte| byte == b',')
            .any(|option| option == b"ro")
    };
    Some(Mount {
        device,
        root: unescape(root).into(),
        at: unescape(at).into(),
        read_only: has_ro(options),
        options: String::from_utf8_lossy(options)
            .split(',')
            .map(str::to_owned)
            .collect(),
        kind: String::from_utf8_lossy(kind).into_owned(),
        source: unescape(source),
        fs_read_only: has_ro(fs_options),
    })
}

fn parse_device(text: &[u8]) -> Option<u64> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some(rustix::fs::makedev(
        major.parse().ok()?,
        minor.parse().ok()?,
    ))
}

/// The kernel writes blanks, line breaks, backslashes and number signs as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let digits = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn a_line_with_escapes_and_optional_fields() {
        let table = b"36 35 98:3 /mnt1 /mnt\\040a\\134b\\012c ro,noatime master:1 shared:7 - ext4 /dev/a\\043b rw,errors=continue\n\
                      37 35 0:5 / /plain rw - tmpfs none ro\n\
                      broken line\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].device, rustix::fs::makedev(98, 3));
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert_eq!(mounts[0].at, Path::new("/mnt a\\b\nc"));
        assert_eq!((mounts[0].read_only, mounts[0].fs_read_only), (true, false));
        assert_eq!(mounts[0].source, "/dev/a#b");
        assert_eq!((mounts[1].read_only, mounts[1].fs_read_only), (false, true));
        assert_eq!(mounts[1].kind, "tmpfs");
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        assert_eq!(unescape(b"a\xff\\9zz\\").as_bytes(), b"a\xff\\9zz\\");
    }

    #[test]
    fn the_root_of_this_process_is_mounted_and_a_file_is_not() {
        let root = mount_at(Path::new("/")).unwrap().unwrap();
        assert_eq!(root.root.as_os_str().as_bytes()[0], b'/');
        assert_eq!(mount_at(Path::new("/etc/passwd-")).unwrap(), None);
        assert!(mounts_of(root.device).unwrap().contains(&root));
    }
}
