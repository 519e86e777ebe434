//! Settings of the whole process.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// PR_SET_IO_FLUSHER, Linux 5.6.
const PR_SET_IO_FLUSHER: i32 = 57;

/// Tells the kernel that the calling thread's work is needed to write back memory: its allocations then do not wait
/// for I/O on the very device that it serves. Needs CAP_SYS_RESOURCE. Set it on every thread that serves a block
/// device of this machine.
pub fn set_io_flusher() -> io::Result<()> {
    // SAFETY: this prctl takes plain integers and changes a flag of the calling thread.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Locks all memory of the process, that which is resident now and later pages once they are touched, so that it is
/// never paged out to a device that needs it. Needs CAP_IPC_LOCK or a sufficient RLIMIT_MEMLOCK.
pub fn lock_memory() -> io::Result<()> {
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: locking pages changes nothing that a program can observe but time.
    let result = unsafe { libc::mlockall(flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Descriptors that the service manager passed (LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES), with their names: listening
/// sockets, and what the process before this one put into the manager's store. Only the first call returns them.
pub fn passed_descriptors() -> Vec<(String, OwnedFd)> {
    /// The first descriptor that is passed, by the protocol.
    const FIRST: RawFd = 3;
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let count = number("LISTEN_FDS").unwrap_or(0).min(4096) as RawFd;
    let passed = (FIRST..FIRST + count).filter_map(|fd| {
        let name = names.next().unwrap_or_default().to_owned();
        // SAFETY: the manager made this descriptor for this process (LISTEN_PID says so), and the flag above lets
        // nobody take it twice. Whether it is open at all is asked before it is owned.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).ok()?;
        // SAFETY: as above: it is open, and it is ours.
        Some((name, unsafe { OwnedFd::from_raw_fd(fd) }))
    });
    passed.collect()
}

/// Processor time of the calling thread, in user space and in the kernel.
pub fn thread_cpu_time() -> (Duration, Duration) {
    // SAFETY: `rusage` is plain integers, for which zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `rusage`, which lives across the call. It cannot fail with these arguments.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    let duration = |t: libc::timeval| {
        Duration::new(
            t.tv_sec.unsigned_abs(),
            t.tv_usec.unsigned_abs() as u32 * 1_000,
        )
    };
    (duration(usage.ru_utime), duration(usage.ru_stime))
}

/// Processor time that process `pid` has used so far, all its threads together, those that have ended among them.
pub fn cpu_time_of(pid: u32) -> io::Result<Duration> {
    // The clock's id holds fewer bits than a pid's type: 0 and what lies above the kernel's greatest pid name the caller's clock.
    const GREATEST_PID: libc::pid_t = 1 << 22;
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|pid| (1..=GREATEST_PID).contains(pid))
        .ok_or(io::Error::from_raw_os_error(libc::ESRCH))?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the kernel writes one clock id, which lives across the call.
    let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one `timespec`, which lives across the call.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs() as u32,
    ))
}

/// How many bytes, in whole pages, of this range of the process are there. Counted page by page: what other threads touch or free
/// meanwhile is of no account.
#[cfg(all(test, not(miri)))]
pub(crate) fn present_bytes(address: usize, len: usize) -> usize {
    use std::os::unix::fs::FileExt as _;
    const ENTRY_BYTES: usize = 8;
    let page_bytes = rustix::param::page_size();
    let mut entries = vec![0; len.div_ceil(page_bytes) * ENTRY_BYTES];
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let offset = address / page_bytes * ENTRY_BYTES;
    pagemap.read_exact_at(&mut entries, offset as u64).unwrap();
    // Bit 63 of an entry: the page is there.
    let present = entries
        .chunks(ENTRY_BYTES)
        .filter(|entry| entry[7] & 0x80 != 0);
    present.count() * page_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_processor_time() {
        const WORK: Duration = Duration::from_millis(30);
        let before = cpu_time_of(std::process::id()).unwrap();
        // In a thread that has ended when the process is asked: what it used counts all the same.
        std::thread::spawn(|| {
            let mut value = 1u64;
            while {
                let (user, system) = thread_cpu_time();
                user + system < WORK
            } {
                value = std::hint::black_box(value.wrapping_mul(3));
            }
        })
        .join()
        .unwrap();
        let after = cpu_time_of(std::process::id()).unwrap();
        // Less a tick: `getrusage` splits what the scheduler counted by samples.
        assert!(after >= before + WORK / 2, "{before:?} -> {after:?}");
        for nobody in [0, 1 << 22, i32::MAX.cast_unsigned(), u32::MAX] {
            assert!(cpu_time_of(nobody).is_err(), "{nobody}");
        }
    }
}
