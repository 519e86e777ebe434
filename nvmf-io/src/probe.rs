//! What the kernel and the limits of this process allow.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Value of the sysctl `kernel.io_uring_disabled`: 0 allowed, 1 for the privileged, 2 switched off; `None` on kernels
/// (before 6.6) that do not have it.
pub fn io_uring_disabled() -> Option<u32> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The soft limit of locked memory in bytes; `u64::MAX` for unlimited.
pub fn memlock_limit_bytes() -> u64 {
    getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX)
}

/// The soft limit of open file descriptors; `u64::MAX` for unlimited.
pub fn nofile_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the soft limit of open file descriptors to the hard limit, and returns it. Call it once at start, before
/// anything that uses `select(2)` is loaded.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )?;
    }
    Ok(maximum.unwrap_or(u64::MAX))
}

/// What direct I/O on a file needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlign {
    /// Multiple that the address in memory must be of.
    pub memory_bytes: u32,
    /// Multiple that offset and length must be of.
    pub offset_bytes: u32,
}

/// Alignment for direct I/O on `file`; `None` when the file does not support it.
///
/// Linux 6.1 tells it through statx. Where it does not, a block device's logical block size counts, and for a regular
/// file the assumption that holds everywhere: 4096 bytes, if the file takes O_DIRECT at all.
pub fn direct_align(file: impl AsFd) -> io::Result<Option<DirectAlign>> {
    let file = file.as_fd();
    let stat = rustix::fs::statx(
        file,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::from_bits_retain(libc::STATX_DIOALIGN) | StatxFlags::TYPE,
    )?;
    let known = stat.stx_mask & libc::STATX_DIOALIGN != 0;
    if known {
        return Ok((stat.stx_dio_offset_align > 0).then_some(DirectAlign {
            memory_bytes: stat.stx_dio_mem_align,
            offset_bytes: stat.stx_dio_offset_align,
        }));
    }
    if u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFBLK {
        let bytes = crate::sys::block::logical_block_bytes(file)?;
        return Ok(Some(DirectAlign {
            memory_bytes: bytes,
            offset_bytes: bytes,
        }));
    }
    Ok(takes_direct(file)?.then_some(DirectAlign {
        memory_bytes: 4096,
        offset_bytes: 4096,
    }))
}

/// Whether O_DIRECT can be set on the file (tried on a second descriptor, so that `file` stays as it is).
fn takes_direct(file: impl AsFd) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    match rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    ) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direct_io_on_files() {
        // A file system in memory refuses or accepts direct I/O depending on the kernel; either answer must be
        // consistent with what opening says.
        for dir in [std::env::temp_dir(), "/dev/shm".into(), ".".into()] {
            let Ok(file) = tempfile::tempfile_in(&dir) else {
                continue;
            };
            let align = direct_align(&file).unwrap();
            if let Some(align) = align {
                assert!(align.offset_bytes.is_power_of_two(), "{dir:?} {align:?}");
                assert!(align.memory_bytes.is_power_of_two(), "{dir:?} {align:?}");
                assert!(takes_direct(&file).unwrap(), "{dir:?}");
            }
        }
    }

    #[test]
    fn no_direct_io_on_pipes() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(!matches!(direct_align(&reader), Ok(Some(_))));
    }

    #[test]
    fn limits() {
        assert!(memlock_limit_bytes() > 0);
        let raised = raise_nofile_limit().unwrap();
        assert_eq!(nofile_limit(), raised);
    }
}
