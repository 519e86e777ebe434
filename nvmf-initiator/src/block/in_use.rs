//! Who uses a block device.
//!
//! The kernel's own answer is an exclusive open: mounts, stacked devices and swap hold the device exclusively, in every
//! mount namespace. Who holds it, and who merely has it open, is read from `/proc` and `/sys` for the message.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// How long a program may have a device open before that is a use: `blkid`, `mount` and udev look at each device that they meet, for milliseconds,
/// or for as long as a busy machine makes of them.
const GLANCE: Duration = Duration::from_secs(2);
/// How often to look whether it closed the device. A look goes through the open files of all processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// One use of a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A file system on it, or on a partition of it, is mounted here.
    Mounted(PathBuf),
    /// Another block device is built on it.
    Holder(String),
    /// It is swapped to.
    Swap,
    /// A process has it open.
    Open {
        /// The process.
        pid: u32,
        /// Its name.
        command: String,
    },
    /// A process of another container has it open: its number and name are not known here.
    OpenElsewhere,
    /// It is held exclusively by something that `/proc` and `/sys` do not show, such as a mount in another namespace.
    Exclusive,
}

impl Use {
    /// Whether it may be over before anybody could do anything about it.
    fn may_be_a_glance(&self) -> bool {
        match self {
            Use::Open { .. } | Use::OpenElsewhere | Use::Exclusive => true,
            Use::Mounted(_) | Use::Holder(_) | Use::Swap => false,
        }
    }

    /// By a process, whose name is looked up.
    pub(super) fn open_in(pid: u32) -> Use {
        // Its file may be held by another process, or by the kernel, as after nbd-client.
        let command = fs::read_to_string(format!("/proc/{pid}/comm"))
            .unwrap_or_else(|_| "a program that has ended".to_owned());
        Use::Open {
            pid,
            command: command.trim().to_owned(),
        }
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Mounted(path) => write!(f, "mounted on {}", path.display()),
            Use::Holder(name) => write!(f, "part of {name}"),
            Use::Swap => f.write_str("used for swap"),
            Use::Open { pid, command } => write!(f, "open in {command} (process {pid})"),
            Use::OpenElsewhere => f.write_str("open in a process of another container"),
            Use::Exclusive => {
                f.write_str("held exclusively, perhaps mounted in another mount namespace")
            }
        }
    }
}

/// All uses in one line.
pub(super) fn describe(uses: &[Use]) -> String {
    uses.iter()
        .map(Use::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The uses of a block device, this process's own open files left out. Empty for a path that is no block device.
pub(super) fn uses(device: &Path) -> io::Result<Vec<Use>> {
    let metadata = fs::metadata(device)?;
    if !metadata.file_type().is_block_device() {
        return Ok(Vec::new());
    }
    let numbers = device_numbers(device, metadata.rdev());
    let mut uses = mounts(&numbers);
    uses.extend(holders(device));
    uses.extend(swaps(&numbers));
    uses.extend(openers(&numbers));
    if uses.is_empty() && is_held_exclusively(device)? {
        uses.push(Use::Exclusive);
    }
    Ok(uses)
}

/// The uses that `look` finds, once they are more than a glance: while there is nothing else it is asked again.
pub(super) fn more_than_a_glance(
    mut look: impl FnMut() -> io::Result<Vec<Use>>,
) -> io::Result<Vec<Use>> {
    let begin = Instant::now();
    let mut is_told = false;
    loop {
        let uses = look()?;
        let may_end = !uses.is_empty() && uses.iter().all(Use::may_be_a_glance);
        if !may_end || begin.elapsed() >= GLANCE {
            return Ok(uses);
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::info!(uses = describe(&uses), limit = ?GLANCE, "a device that is to go is open; waiting for it to be closed");
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// `/sys/block/NAME` of a block device.
fn sysfs_dir(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

fn is_held_exclusively(device: &Path) -> io::Result<bool> {
    let exclusive = OFlags::EXCL.bits() as i32;
    match OpenOptions::new()
        .read(true)
        .custom_flags(exclusive)
        .open(device)
    {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(true),
        Err(e) => Err(e),
    }
}

/// Device numbers of the device and of its partitions.
fn device_numbers(device: &Path, own: u64) -> Vec<u64> {
    let mut numbers = vec![own];
    for entry in fs::read_dir(sysfs_dir(device))
        .into_iter()
        .flatten()
        .flatten()
    {
        if !entry.path().join("partition").exists() {
            continue;
        }
        let number = fs::read_to_string(entry.path().join("dev")).unwrap_or_default();
        numbers.extend(parse_number(number.trim()));
    }
    numbers
}

/// `MAJOR:MINOR`.
fn parse_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(
        major.parse().ok()?,
        minor.parse().ok()?,
    ))
}

fn mounts(numbers: &[u64]) -> Vec<Use> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let number = parse_number(fields.next()?)?;
        let path = fields.nth(1)?;
        numbers
            .contains(&number)
            .then(|| Use::Mounted(unescape(path).into()))
    });
    mounted.collect()
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(path: &str) -> String {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail
            .get(..3)
            .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn holders(device: &Path) -> Vec<Use> {
    let entries = fs::read_dir(sysfs_dir(device).join("holders"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|entry| Use::Holder(entry.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn swaps(numbers: &[u64]) -> Option<Use> {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let used = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .any(|path| {
            fs::metadata(unescape(path))
                .is_ok_and(|m| m.file_type().is_block_device() && numbers.contains(&m.rdev()))
        });
    used.then_some(Use::Swap)
}

fn openers(numbers: &[u64]) -> Vec<Use> {
    let own = std::process::id();
    let mut uses = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if pid == own {
            continue;
        }
        let mut files = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        if files.any(|file| is_open_device(&file.path(), numbers)) {
            uses.push(Use::open_in(pid));
        }
    }
    uses
}

fn is_open_device(link: &Path, numbers: &[u64]) -> bool {
    // Only what is below /dev is looked at more closely: to ask a file on a dead network file system hangs.
    fs::read_link(link).is_ok_and(|target| target.starts_with("/dev"))
        && fs::metadata(link)
            .is_ok_and(|m| m.file_type().is_block_device() && numbers.contains(&m.rdev()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_escapes_in_paths_are_undone() {
        assert_eq!(unescape(r"/mnt/with\040blank"), "/mnt/with blank");
        assert_eq!(unescape(r"/mnt/back\134slash"), r"/mnt/back\slash");
        assert_eq!(unescape(r"/plain\9"), r"/plain\9");
    }

    #[test]
    fn device_numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_number("259:3"), Some(rustix::fs::makedev(259, 3)));
        assert_eq!(parse_number("259"), None);
    }

    #[test]
    fn a_plain_file_has_no_uses() {
        assert_eq!(uses(Path::new("/proc/self/exe")).unwrap(), []);
    }

    fn open() -> Use {
        Use::Open {
            pid: 7,
            command: "fio".into(),
        }
    }

    #[test]
    fn uses_are_told_in_one_line() {
        let uses = [Use::Mounted("/data".into()), open()];
        assert_eq!(describe(&uses), "mounted on /data, open in fio (process 7)");
    }

    /// What is found of uses that change from look to look, and how many looks that took.
    fn found(looks: &[&[Use]]) -> (Vec<Use>, usize) {
        let mut count = 0;
        let look = || {
            count += 1;
            Ok(looks[(count - 1).min(looks.len() - 1)].to_vec())
        };
        let uses = more_than_a_glance(look).unwrap();
        (uses, count)
    }

    #[test]
    fn a_glance_is_no_use() {
        assert_eq!(found(&[&[open()], &[Use::Exclusive], &[]]), (vec![], 3));
        assert_eq!(found(&[&[]]), (vec![], 1), "nothing is waited for");
    }

    #[test]
    fn what_does_not_end_by_itself_is_told_at_once() {
        let mounted = || Use::Mounted("/data".into());
        let both = [open(), mounted()];
        assert_eq!(found(&[&both, &[]]), (both.to_vec(), 1));
        // Whoever opened it to mount it has done so.
        assert_eq!(found(&[&[open()], &[mounted()], &[]]), (vec![mounted()], 2));
    }

    #[test]
    fn a_device_that_stays_open_is_in_use() {
        let begin = Instant::now();
        let (uses, looks) = found(&[&[open()]]);
        assert_eq!(uses, [open()]);
        assert!(looks > 1 && begin.elapsed() >= GLANCE);
    }

    #[test]
    fn what_cannot_be_seen_is_an_error() {
        let look = || Err(io::ErrorKind::PermissionDenied.into());
        more_than_a_glance(look).unwrap_err();
    }
}
