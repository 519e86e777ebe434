//! Block devices: size, block sizes, read-only, discard.

use std::io;
use std::os::fd::BorrowedFd;

use super::ioctl;

// `_IO(0x12, n)` and `_IOR(0x12, n, size_t)` of <linux/fs.h>.
const BLKROGET: u64 = 0x125e;
const BLKFLSBUF: u64 = 0x1261;
const BLKSSZGET: u64 = 0x1268;
const BLKDISCARD: u64 = 0x1277;
const BLKPBSZGET: u64 = 0x127b;
const BLKZEROOUT: u64 = 0x127f;
const BLKGETSIZE64: u64 = 0x8008_1272;

/// Size of the device in bytes.
pub fn size_bytes(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: BLKGETSIZE64 writes a u64.
    unsafe { ioctl::with(device, BLKGETSIZE64, &mut bytes) }?;
    Ok(bytes)
}

/// The smallest unit that can be addressed.
pub fn logical_block_bytes(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes = 0i32;
    // SAFETY: BLKSSZGET writes an int.
    unsafe { ioctl::with(device, BLKSSZGET, &mut bytes) }?;
    u32::try_from(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "negative block size"))
}

/// The smallest unit that is written without reading first.
pub fn physical_block_bytes(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes = 0u32;
    // SAFETY: BLKPBSZGET writes an unsigned int.
    unsafe { ioctl::with(device, BLKPBSZGET, &mut bytes) }?;
    Ok(bytes)
}

/// Whether the device refuses writes.
pub fn is_read_only(device: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flag = 0i32;
    // SAFETY: BLKROGET writes an int.
    unsafe { ioctl::with(device, BLKROGET, &mut flag) }?;
    Ok(flag != 0)
}

/// Tells the device that a range is not needed; what it then reads as is undefined. Blocks.
pub fn discard(device: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    // SAFETY: BLKDISCARD reads two u64s.
    unsafe { ioctl::with(device, BLKDISCARD, &mut [offset_bytes, len_bytes]) }.map(drop)
}

/// Makes a range read as zeroes. Blocks.
pub fn zero_out(device: BorrowedFd<'_>, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    // SAFETY: BLKZEROOUT reads two u64s.
    unsafe { ioctl::with(device, BLKZEROOUT, &mut [offset_bytes, len_bytes]) }.map(drop)
}

/// Writes the page cache of the device back and drops it. Needs CAP_SYS_ADMIN.
pub fn flush_page_cache(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { ioctl::value(device, BLKFLSBUF, 0) }.map(drop)
}
