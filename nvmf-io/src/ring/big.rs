//! [`BigRing`]: a ring with 128-byte submission and 32-byte completion entries, for device commands.
//!
//! NVMe passthrough needs the large entries, everything else does not; a shard that serves such a
//! device waits on this ring through its first: `ring.poll_multishot(&big, …)`.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{Builder, IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;

use super::enter::Enter;
use super::setup::RingError;
use super::slab::{IGNORED, Slab};
use super::teardown::DRAIN_LIMIT;
use super::{Token, Wait};
use crate::buf::{Buf, KernelWrite};
use crate::sys::nvme::{NVME_URING_CMD_IO, NvmeCommand, UringCommand};

/// The outcome of a device command.
#[derive(Debug)]
#[must_use]
pub struct CommandDone {
    /// What the command was started with.
    pub token: Token,
    /// The status field without the phase bit, 0 for success; the error is the driver's own, not the device's.
    pub result: Result<u32, Errno>,
    /// Dwords 0 and 1 of the completion.
    pub dw0_1: u64,
}

/// What a command owns while the kernel has it.
enum Work {
    Nvme {
        /// Kept open, since the entry names it by number.
        _device: Arc<OwnedFd>,
        _memory: Option<Memory>,
    },
    Plain,
}

#[expect(dead_code, reason = "owned, not used")]
enum Memory {
    Read(Buf),
    Write(KernelWrite),
}

/// A ring for commands to NVMe devices, used by the thread that made it.
///
/// ```no_run
/// use std::{fs::File, sync::Arc};
/// use nvmf_io::{BigRing, BufPool, PoolConfig, Token, Wait, sys::nvme::{self, NvmeCommand}};
/// use std::os::fd::{AsFd, OwnedFd};
/// let device: Arc<OwnedFd> = Arc::new(File::open("/dev/ng0n1")?.into());
/// let nsid = nvme::namespace_id(device.as_fd())?;
/// let mut ring = BigRing::new(128)?;
/// let pool = BufPool::new(&PoolConfig::default());
/// let buf = pool.alloc(4096).unwrap();
/// // Read 8 blocks of 512 bytes from LBA 0.
/// let read = NvmeCommand { opcode: 0x02, nsid, cdw10_15: [0, 0, 7, 0, 0, 0], ..Default::default() };
/// ring.nvme(&device, &read, Some((&buf, 0..4096)), Token(1));
/// ring.wait(Wait::Block)?;
/// assert_eq!(ring.next().unwrap().result, Ok(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BigRing {
    uring: ManuallyDrop<IoUring<squeue::Entry128, cqueue::Entry32>>,
    enter: Enter,
    ops: ManuallyDrop<Slab<Work>>,
    backlog: VecDeque<squeue::Entry128>,
    local: VecDeque<CommandDone>,
}

impl BigRing {
    /// Makes a ring for the calling thread with a submission queue of `entries`. Needs Linux 5.19.
    pub fn new(entries: u32) -> Result<Self, RingError> {
        let best: fn(&mut Builder<_, _>) -> &mut Builder<_, _> =
            |b| b.setup_single_issuer().setup_defer_taskrun();
        let plain: fn(&mut Builder<_, _>) -> &mut Builder<_, _> = |b| b.setup_coop_taskrun();
        let mut last = Errno::INVAL.into();
        for flags in [best, plain] {
            let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
            builder.setup_clamp().dontfork();
            match flags(&mut builder).build(entries) {
                Ok(uring) => {
                    return Ok(Self {
                        enter: Enter::new(uring.as_raw_fd(), true),
                        uring: ManuallyDrop::new(uring),
                        ops: ManuallyDrop::new(Slab::with_capacity(entries as usize)),
                        backlog: VecDeque::new(),
                        local: VecDeque::new(),
                    });
                }
                Err(error) => last = error,
            }
        }
        match last.raw_os_error() {
            Some(libc::EINVAL) => Err(RingError::TooOld {
                what: "large entries (5.19), which NVMe passthrough needs",
            }),
            _ => Err(RingError::from_setup(last)),
        }
    }

    /// Starts an I/O command on `/dev/ngXnY`. Bits 1:0 of the opcode say which way the data goes: from `data`
    /// (01b) or into it (10b).
    pub fn nvme(
        &mut self,
        device: &Arc<OwnedFd>,
        command: &NvmeCommand,
        data: Option<(&Buf, Range<u32>)>,
        token: Token,
    ) {
        let (memory, addr, len) = match data {
            None => (None, 0, 0),
            Some((buf, range)) => {
                let len = range.end - range.start;
                if command.opcode & 3 == 1 {
                    let addr = buf.kernel_ptr(&range).addr();
                    (Some(Memory::Read(buf.clone())), addr, len)
                } else {
                    // Anything but a plain transfer to the device may write.
                    let Some(into) = KernelWrite::new(buf) else {
                        return self.fail(token, Errno::BUSY);
                    };
                    let addr = into.ptr(&range).addr();
                    (Some(Memory::Write(into)), addr, len)
                }
            }
        };
        let cmd = UringCommand::new(command, addr as u64, len).to_bytes();
        let entry = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), NVME_URING_CMD_IO)
            .cmd(cmd)
            .build();
        self.start(
            token,
            Work::Nvme {
                _device: device.clone(),
                _memory: memory,
            },
            entry,
        );
    }

    /// Completes at once.
    pub fn nop(&mut self, token: Token) {
        self.start(token, Work::Plain, opcode::Nop::new().build().into());
    }

    fn start(&mut self, token: Token, work: Work, entry: squeue::Entry128) {
        let index = self.ops.insert(token, work);
        let entry = entry.user_data(self.ops.key(index));
        self.backlog.push_back(entry);
        self.drain_backlog();
    }

    fn fail(&mut self, token: Token, errno: Errno) {
        self.local.push_back(CommandDone {
            token,
            result: Err(errno),
            dw0_1: 0,
        });
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: the operation in the slab owns the memory that the entry names and keeps its file open.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                self.backlog.push_front(entry);
                let queued = self.uring.submission().len() as u32;
                if self.enter.call(queued, 0, None).is_err() {
                    return;
                }
            }
        }
    }

    /// Asks for the end of all commands with `token`; each still completes.
    pub fn cancel(&mut self, token: Token) {
        let found: Vec<u32> = self.ops.with_token(token).collect();
        for index in found {
            self.cancel_op(index);
        }
    }

    fn cancel_op(&mut self, index: u32) {
        let entry = opcode::AsyncCancel::new(self.ops.key(index))
            .build()
            .user_data(IGNORED);
        self.backlog.push_back(entry.into());
        self.drain_backlog();
    }

    /// As [`Ring::wait`](super::Ring::wait). When another ring polls this one, call it with [`Wait::Poll`] to submit
    /// and whenever that poll completes: without it nothing completes.
    pub fn wait(&mut self, wait: Wait) -> io::Result<()> {
        self.drain_backlog();
        let (want, limit) = match wait {
            _ if !self.local.is_empty() => (0, None),
            Wait::Poll => (0, None),
            Wait::Block => (1, None),
            Wait::Until(at) => (1, Some(at.saturating_duration_since(Instant::now()))),
        };
        let queued = self.uring.submission().len() as u32;
        match self.enter.call(queued, want, limit) {
            Ok(_) | Err(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The next completion.
    #[expect(clippy::should_implement_trait, reason = "as for `Ring::next`")]
    pub fn next(&mut self) -> Option<CommandDone> {
        if let Some(done) = self.local.pop_front() {
            return Some(done);
        }
        loop {
            let entry = self.uring.completion().next()?;
            let Some(index) = self.ops.find(entry.user_data()) else {
                continue;
            };
            let token = self.ops.get_mut(index).token;
            self.ops.remove(index);
            let result = match u32::try_from(entry.result()) {
                Ok(status) => Ok(status),
                Err(_) => Err(Errno::from_raw_os_error(entry.result().wrapping_neg())),
            };
            return Some(CommandDone {
                token,
                result,
                dw0_1: entry.big_cqe()[0],
            });
        }
    }

    /// Commands that have not completed.
    pub fn in_flight(&self) -> usize {
        self.ops.live()
    }
}

impl AsFd for BigRing {
    /// Readable when [`BigRing::wait`] would make completions available.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is closed when `self` is dropped, not before.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }
}

impl AsRawFd for BigRing {
    fn as_raw_fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }
}

impl Drop for BigRing {
    fn drop(&mut self) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.ops.live() > 0 && Instant::now() < deadline {
            let live: Vec<u32> = self.ops.indices().collect();
            for index in live {
                self.cancel_op(index);
            }
            let round = Instant::now() + Duration::from_millis(100);
            if self.wait(Wait::Until(round.min(deadline))).is_err() {
                break;
            }
            while self.next().is_some() {}
        }
        if self.ops.live() == 0 {
            // SAFETY: neither field is used again, and the kernel has no command left.
            unsafe {
                ManuallyDrop::drop(&mut self.uring);
                ManuallyDrop::drop(&mut self.ops);
            }
        } else {
            tracing::error!(
                in_flight = self.ops.live(),
                "device commands of a dropped ring did not end; their memory is leaked"
            );
        }
    }
}

impl std::fmt::Debug for BigRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BigRing")
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}
