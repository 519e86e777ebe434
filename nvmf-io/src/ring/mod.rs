//! [`Ring`]: one io_uring for one thread.
//!
//! | file | what it is |
//! |---|---|
//! | `setup` | creating the ring with the best flags the kernel has; [`RingError`] |
//! | `enter` | the one system call of the I/O path |
//! | `slab`, `ops` | the operations: what the kernel may touch is owned there |
//! | `files` | registered files and sockets |
//! | `rx` | receive buffers: a provided-buffer ring, or handed out one by one |
//! | `scatter` | a receive into two places |
//! | `storage`, `stream` | one method for each operation, on files and devices or on sockets |
//! | `submit` | queueing, the hand-over to the kernel, waiting |
//! | `ublk` | commands to ublk devices |
//! | `message` | reads from devices that hand out messages |
//! | `reap` | completions, with what is retried or re-armed behind the caller's back |
//! | `big` | a second kind of ring, for device commands |
//! | `teardown` | cancelling everything when the ring is dropped |
//!
//! Invariants:
//! - Every submission entry names an operation of the slab by index and generation, and the operation stays there
//!   until its last completion; a completion of an older generation is ignored.
//! - An operation owns a handle to all memory that its entry points at.
//! - Receives of one socket are never in flight twice, and so are sends: the caller keeps to that (the bytes would
//!   be interleaved), soundness does not depend on it.

mod big;
mod enter;
mod files;
mod message;
mod ops;
mod reap;
mod rx;
mod scatter;
mod setup;
mod slab;
mod storage;
mod stream;
mod submit;
mod teardown;
mod ublk;

use std::collections::VecDeque;
use std::fmt;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::time::Instant;

use io_uring::{IoUring, squeue};
use rustix::io::Errno;

pub use big::{BigRing, CommandDone};
pub use files::{FileId, SockId};
pub use rx::RxChunk;
pub use scatter::RxScatter;
pub use setup::{Features, RingError};
pub use storage::{Allocate, WriteFlags};
pub use stream::Interest;
pub use ublk::UblkCommand;

use crate::buf::Buf;
use crate::tx::TxBatch;
use enter::Enter;
use files::FileTable;
use ops::Work;
use rx::RxBuffers;
use slab::Slab;

/// What the caller knows an operation by; comes back in each of its completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// How a ring is made.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Entries of the submission queue; more operations than that may be in flight and queued.
    pub entries: u32,
    /// Entries of the completion queue.
    pub completion_entries: u32,
    /// Receive buffers, a power of two up to 32768; 0 for a ring that receives nothing.
    pub rx_buffers: u16,
    /// Size of one receive buffer, a multiple of 4096.
    pub rx_buffer_bytes: u32,
    /// Files and sockets that are registered; more are used by plain descriptor.
    pub files: u32,
    /// Chunks of a [`BufPool`](crate::BufPool) (2 MiB each) that are registered; more are used by plain address.
    pub fixed_buffers: u32,
    /// Uses only what Linux 5.15 has, whatever the kernel offers: for tests of the fallbacks.
    pub baseline: bool,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            entries: 512,
            completion_entries: 4096,
            // Together no more than half of a second-level cache: the kernel goes through all of them in turn, and what it
            // writes is read a moment later. With 4 MiB large transfers lost a third.
            rx_buffers: 64,
            rx_buffer_bytes: 16 << 10,
            files: 1024,
            fixed_buffers: 1024,
            baseline: false,
        }
    }
}

/// How long [`Ring::wait`] waits for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Poll,
    /// Until there is one.
    Block,
    /// Until there is one or this moment has come.
    Until(Instant),
}

/// The outcome of an operation, or one of several of a multishot operation.
#[derive(Debug)]
#[must_use]
pub struct Completion {
    /// What the operation was started with.
    pub token: Token,
    /// Bytes, or what the operation counts; for a receive 0 is the end of the stream.
    pub result: Result<u32, Errno>,
    /// Whether more completions of this operation follow.
    pub more: bool,
    /// What was received. Drop it soon: receive buffers are shared by all sockets of the ring.
    pub rx: Option<RxChunk>,
    /// The batch of a send or vectored write, for another use.
    pub batch: Option<Box<TxBatch>>,
    /// The scatter of a receive: what came where, and for another use.
    pub scatter: Option<Box<RxScatter>>,
}

impl Completion {
    fn bare(token: Token, result: Result<u32, Errno>) -> Self {
        Self {
            token,
            result,
            more: false,
            rx: None,
            batch: None,
            scatter: None,
        }
    }

    /// The last completion of an operation, with what goes back to the caller.
    fn of(work: Work, token: Token, result: Result<u32, Errno>) -> Self {
        let mut completion = Self::bare(token, result);
        match work {
            Work::Send { batch, .. } | Work::WriteVectored { batch } => {
                completion.batch = Some(batch.into_box());
            }
            Work::Scatter { scatter } => {
                let mut scatter = scatter.into_box();
                scatter.landed(result.unwrap_or(0));
                completion.scatter = Some(scatter);
            }
            _ => {}
        }
        completion
    }
}

/// One io_uring, used by the thread that made it.
///
/// Operations are queued by methods that return nothing and cannot fail: whatever is wrong with one shows in its
/// completion. [`Ring::wait`] hands all of them to the kernel with one system call, and [`Ring::next`] takes the
/// completions without any.
///
/// Dropping the ring cancels all operations and waits for them; should one not end (a file system that hangs), its
/// memory is leaked rather than freed under the kernel's hands.
///
/// ```
/// use nvmf_io::{BufPool, PoolConfig, Ring, RingConfig, Token, Wait, WriteFlags};
/// let mut ring = Ring::new(&RingConfig::default())?;
/// let pool = BufPool::new(&PoolConfig::default());
/// ring.register_pool(&pool);
///
/// let file = ring.add_file(std::os::fd::OwnedFd::from(tempfile::tempfile()?));
/// let buf = pool.alloc(4096).expect("a new pool is not dry");
/// buf.fill(0..4096, 0xa5);
/// ring.write(file, 8192, &buf, 0..4096, WriteFlags::default(), Token(1));
/// ring.wait(Wait::Block)?;
/// let done = ring.next().expect("waited for it");
/// assert_eq!((done.token, done.result), (Token(1), Ok(4096)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ring {
    uring: ManuallyDrop<IoUring>,
    enter: Enter,
    ops: ManuallyDrop<Slab<Work>>,
    files: FileTable,
    rx: Rc<RxBuffers>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Completions that did not come from the kernel.
    local: VecDeque<Completion>,
    /// Receives that ended because no receive buffer was left.
    starved: VecDeque<u32>,
    fixed: FixedBuffers,
    /// Buffers that entries not yet submitted point at.
    until_submitted: Vec<Buf>,
    features: Features,
    /// Takes the way of kernels that do not let reads of messages wait: for tests of it.
    always_poll_messages: bool,
    id: u32,
}

/// The registered-buffer table.
#[derive(Debug)]
struct FixedBuffers {
    next: u16,
    capacity: u16,
}

impl Ring {
    /// What this ring uses of what kernels may have.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Operations that the kernel has or will get.
    pub fn in_flight(&self) -> usize {
        self.ops.live()
    }

    /// Receive buffers that are neither filled nor held in an [`RxChunk`].
    pub fn rx_available(&self) -> usize {
        self.rx.available()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("id", &self.id)
            .field("in_flight", &self.in_flight())
            .field("rx_available", &self.rx_available())
            .field("features", &self.features)
            .finish_non_exhaustive()
    }
}
