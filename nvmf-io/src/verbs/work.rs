//! What a queue pair is asked to do, what comes of it, and how much it was.

use std::ffi::CStr;
use std::fmt;

use super::abi::IBV_WC_WR_FLUSH_ERR;
use super::library::library;
use super::memory::{Bindable, Segment};
use crate::buf::Buf;

/// The longest header of a message: a submission queue entry.
pub const HEADER_BYTES: usize = 64;

/// How many work requests a queue pair has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSizes {
    /// Posted and not completed, of all kinds but receives.
    pub sends: u32,
    /// Receives.
    pub receives: u32,
    /// Memory windows, for hosts that give their peer nothing else; 0 where none are used.
    pub windows: u32,
}

/// Memory of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its address there.
    pub address: u64,
    /// The key that the peer gave for it.
    pub key: u32,
}

/// What to do.
#[derive(Debug)]
pub enum SendWork<'a> {
    /// Send a message: a header of at most [`HEADER_BYTES`], then the data, if any.
    Send {
        /// Copied at once.
        header: &'a [u8],
        /// What follows it.
        data: Option<Segment>,
        /// A key of the peer's that arriving of the message makes invalid.
        invalidate: Option<u32>,
    },
    /// Fetch the peer's memory.
    Read {
        /// Where to; the length is its length.
        into: Segment,
        /// Where from.
        from: Remote,
    },
    /// Write the peer's memory.
    Write {
        /// Where from; the length is its length.
        from: Segment,
        /// Where to.
        into: Remote,
    },
    /// Ask for a sign of life: write nothing, which the peer's device acknowledges without looking at memory or keys.
    Probe,
    /// Make a key of our own invalid.
    Invalidate {
        /// The key.
        key: u32,
    },
    /// Give the peer access to memory through a window, under the key that [`QueuePair::window_key`](super::QueuePair::window_key) told before. Keep the memory lent
    /// until the device says that this key is invalid.
    Bind {
        /// The window, not bound: its number, below [`QueuePair::windows`](super::QueuePair::windows).
        window: usize,
        /// The memory.
        to: Bindable<'a>,
    },
}

/// How a work request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkStatus(pub(super) u32);

impl WorkStatus {
    /// Whether it was given back undone because the queue pair had failed or was disconnected.
    pub fn is_flushed(self) -> bool {
        self.0 == IBV_WC_WR_FLUSH_ERR
    }
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(library) = library() else {
            return write!(f, "status {}", self.0);
        };
        // SAFETY: any number is allowed; the library returns a constant text.
        let text = unsafe { CStr::from_ptr((library.ibv_wc_status_str)(self.0)) };
        write!(f, "{} ({})", text.to_string_lossy(), self.0)
    }
}

/// What completed.
#[derive(Debug)]
pub enum Done {
    /// A message arrived.
    Received {
        /// Its first bytes; zeroes beyond the end.
        header: [u8; HEADER_BYTES],
        /// Its length, data included.
        bytes: u32,
        /// The buffer that the receive was posted with, holding what came after the header.
        data: Option<Buf>,
        /// A key of ours that the message made invalid.
        invalidated: Option<u32>,
    },
    /// A signalled work request succeeded, and all before it.
    Sent {
        /// As given with it.
        token: u64,
    },
    /// A work request failed; the queue pair is in error, and everything posted comes back.
    Failed {
        /// As given with it; `None` for a receive.
        token: Option<u64>,
        /// Why.
        status: WorkStatus,
    },
}

/// What a queue pair did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkCounts {
    /// Receives that were posted, each with a call of its own.
    pub receives: u64,
    /// SENDs.
    pub sends: u64,
    /// READs.
    pub reads: u64,
    /// WRITEs.
    pub writes: u64,
    /// Memory windows bound.
    pub binds: u64,
    /// Keys of our own made invalid by us.
    pub invalidations: u64,
    /// Other work requests: probes.
    pub others: u64,
    /// Calls that posted all of these but receives.
    pub posts: u64,
    /// Work requests but receives that ask for a completion.
    pub signalled: u64,
    /// Those, signalled or not, that failed or came back undone.
    pub failed: u64,
    /// Completions, of receives too.
    pub completions: u64,
    /// Looks at the completion queue.
    pub polls: u64,
    /// Those that found nothing.
    pub idle_polls: u64,
}

impl WorkCounts {
    /// Work requests that were posted, without receives.
    pub fn work_requests(&self) -> u64 {
        self.sends + self.reads + self.writes + self.binds + self.invalidations + self.others
    }
}

impl std::ops::AddAssign for WorkCounts {
    fn add_assign(&mut self, other: Self) {
        self.receives += other.receives;
        self.sends += other.sends;
        self.reads += other.reads;
        self.writes += other.writes;
        self.binds += other.binds;
        self.invalidations += other.invalidations;
        self.others += other.others;
        self.posts += other.posts;
        self.signalled += other.signalled;
        self.failed += other.failed;
        self.completions += other.completions;
        self.polls += other.polls;
        self.idle_polls += other.idle_polls;
    }
}

/// A queue is full; nothing was staged or posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue pair has no room for another work request")]
pub struct NoRoom;
