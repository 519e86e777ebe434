//! `/dev/fuse`: opening it, and opening further channels of the same connection.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::ioctl;

/// `_IOR(229, 0, u32)`.
const FUSE_DEV_IOC_CLONE: u64 = 0x8004_e500;

/// Opens `/dev/fuse` without blocking reads: a ring that found a request by polling must not get stuck in the read
/// when another reader was faster.
pub fn open() -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/fuse")?;
    Ok(file.into())
}

/// Opens another channel to the mounted connection of `channel`. Requests are handed to whichever channel reads
/// first, and must be answered on the channel that read them.
pub fn open_channel(channel: impl AsFd) -> io::Result<OwnedFd> {
    let new = open()?;
    let mut existing = channel.as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: the ioctl reads one u32.
    unsafe { ioctl::with(new.as_fd(), FUSE_DEV_IOC_CLONE, &mut existing) }?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_that_is_not_mounted_cannot_be_cloned() {
        let Ok(channel) = open() else {
            return eprintln!("skipped: /dev/fuse cannot be opened here");
        };
        // EINVAL or, on newer kernels, EPERM.
        assert!(open_channel(&channel).is_err());
    }
}
