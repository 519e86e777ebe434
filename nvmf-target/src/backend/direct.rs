//! Direct I/O: whether a file allows it, and in what units.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::{Errno, pread};

/// Where the kernel does not say, these units are tried.
const CANDIDATE_UNITS_BYTES: [u32; 2] = [512, 4096];

/// The unit in bytes of offsets and lengths of direct I/O on `file`, which is open with O_DIRECT and at least 8 KiB long or empty from
/// there on. `None` when no unit up to 4096 works.
pub(super) fn unit_bytes(file: impl AsFd) -> Option<u32> {
    let file = file.as_fd();
    if let Ok(stat) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        return match stat.stx_dio_offset_align {
            0 => None,
            unit => (unit <= 4096).then(|| unit.max(512)),
        };
    }
    // Before Linux 6.1, and on file systems that do not report it: a read that is not aligned enough is refused.
    let mut memory = vec![0u8; 3 * 4096];
    let start = memory.as_ptr().align_offset(4096);
    CANDIDATE_UNITS_BYTES.into_iter().find(|unit| {
        let buffer = &mut memory[start..start + *unit as usize];
        pread(file, buffer, u64::from(*unit)) != Err(Errno::INVAL)
    })
}
