//! `io_uring_enter(2)` through the registered ring descriptor, where the kernel has that.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use rustix::io::Errno;

const REGISTER_RING_FDS: u32 = 20;
const ENTER_GETEVENTS: u32 = 1 << 0;
const ENTER_EXT_ARG: u32 = 1 << 3;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct RsrcUpdate {
    offset: u32,
    resv: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GeteventsArg {
    sigmask: u64,
    sigmask_sz: u32,
    min_wait_usec: u32,
    ts: u64,
}

/// How to reach the ring in the system call. The registration belongs to the thread that made it.
#[derive(Debug)]
pub(super) struct Enter {
    fd: i32,
    flags: u32,
}

impl Enter {
    /// Registers `ring` with this thread, which saves the look-up of the descriptor in every call.
    pub(super) fn new(ring: RawFd, register: bool) -> Self {
        let mut update = RsrcUpdate {
            offset: u32::MAX,
            resv: 0,
            data: ring as u64,
        };
        // SAFETY: the kernel reads and writes one `io_uring_rsrc_update`, which lives across the call.
        let registered = register
            && unsafe {
                libc::syscall(
                    libc::SYS_io_uring_register,
                    ring,
                    REGISTER_RING_FDS,
                    &raw mut update,
                    1,
                )
            } == 1;
        match i32::try_from(update.offset) {
            Ok(fd) if registered => Self {
                fd,
                flags: ENTER_REGISTERED_RING,
            },
            _ => Self { fd: ring, flags: 0 },
        }
    }

    /// Submits up to `submit` entries and reaps; waits for `want` completions, at most `limit` long.
    pub(super) fn call(
        &self,
        submit: u32,
        want: u32,
        limit: Option<Duration>,
    ) -> Result<u32, Errno> {
        // GETEVENTS always: without it deferred work never runs.
        let mut flags = self.flags | ENTER_GETEVENTS;
        let ts;
        let arg;
        let (arg_ptr, arg_len) = match limit {
            Some(limit) => {
                flags |= ENTER_EXT_ARG;
                ts = libc::timespec {
                    tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                    tv_nsec: limit.subsec_nanos().into(),
                };
                arg = GeteventsArg {
                    sigmask: 0,
                    sigmask_sz: 0,
                    min_wait_usec: 0,
                    ts: (&raw const ts).addr() as u64,
                };
                (
                    (&raw const arg).cast::<libc::c_void>(),
                    size_of::<GeteventsArg>(),
                )
            }
            None => (std::ptr::null(), 0),
        };
        // SAFETY: the entries submitted were pushed by `Ring`, whose operations own what they point at; `arg` and
        // `ts` live until the call returns.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd,
                submit,
                want,
                flags,
                arg_ptr,
                arg_len,
            )
        };
        match u32::try_from(result) {
            Ok(submitted) => Ok(submitted),
            Err(_) => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }
}
