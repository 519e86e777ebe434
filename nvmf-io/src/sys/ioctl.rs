//! The few shapes of `ioctl(2)` that the wrappers in this folder need.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Turns the result of a system call into an `io::Result`.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An ioctl that reads and writes the structure behind `argument`.
///
/// # Safety
/// `request` expects a pointer to a `T` and touches nothing else.
pub(crate) unsafe fn with<T>(
    fd: BorrowedFd<'_>,
    request: u64,
    argument: &mut T,
) -> io::Result<libc::c_int> {
    // SAFETY: `argument` is valid for reads and writes of `T`, which is what the caller says the request needs.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, std::ptr::from_mut(argument)) })
}

/// An ioctl with an integer argument.
///
/// # Safety
/// `request` takes `argument` by value (or none at all) and touches no memory of the process.
pub(crate) unsafe fn value(
    fd: BorrowedFd<'_>,
    request: u64,
    argument: libc::c_ulong,
) -> io::Result<libc::c_int> {
    // SAFETY: the caller vouches for the request.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) })
}
