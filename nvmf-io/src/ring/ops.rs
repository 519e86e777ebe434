//! The slab of operations.
//!
//! An operation's key, its `user_data`, is index and generation. The generation moves on when the operation ends, so
//! a late completion of an ended operation finds nothing.

use std::ops::Range;
use std::ptr::NonNull;

use super::Token;
use super::files::Id;
use super::message::Message;
use crate::buf::{Buf, KernelWrite};
use crate::tx::TxBatch;

/// The `user_data` of entries whose completion nobody asked for: cancellations.
pub(super) const IGNORED: u64 = u64::MAX;

const NONE: u32 = u32::MAX;

/// What an operation does, with everything that its entry points at.
pub(super) enum Work {
    Free {
        next: u32,
    },
    /// Nothing is pointed at.
    Plain,
    /// A receive into receive buffers; and the socket it is from.
    Receive(Receive),
    /// A receive of an exact length.
    ReceiveInto {
        file: Id,
        into: KernelWrite,
        range: Range<u32>,
        done: u32,
    },
    Send {
        file: Id,
        batch: BatchInFlight,
        done: u32,
    },
    WriteVectored {
        batch: BatchInFlight,
    },
    /// A read that waits for a message.
    Message(Message),
    /// The kernel writes to the buffer.
    Fill(#[expect(dead_code, reason = "owned, not used")] KernelWrite),
    /// The kernel reads from the buffer.
    Drain(#[expect(dead_code, reason = "owned, not used")] Buf),
}

pub(super) struct Receive {
    pub(super) file: Id,
    /// Goes on after each chunk.
    pub(super) multishot: bool,
    pub(super) step: Step,
}

/// Where a receive stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The kernel picks a buffer when bytes arrive.
    Provided,
    /// Without provided buffers: waiting until the socket is readable.
    Readable,
    /// Without provided buffers: receiving into this buffer, which is ours to give back.
    Into(u16),
    /// Waiting in [`super::Ring::starved`] for a buffer.
    Starved,
}

/// A batch that the kernel reads. Raw, because message and vectors are pointed at while this value moves.
pub(super) struct BatchInFlight(NonNull<TxBatch>);

impl BatchInFlight {
    pub(super) fn new(batch: Box<TxBatch>) -> Self {
        Self(NonNull::from(Box::leak(batch)))
    }

    pub(super) fn as_mut(&mut self) -> &mut TxBatch {
        // SAFETY: leaked in `new`, owned by this value alone. Called before submission and after the completion,
        // so the kernel does not read meanwhile.
        unsafe { self.0.as_mut() }
    }

    pub(super) fn into_box(self) -> Box<TxBatch> {
        let batch = self.0;
        std::mem::forget(self);
        // SAFETY: leaked in `new`; this value, forgotten just now, was its only owner.
        unsafe { Box::from_raw(batch.as_ptr()) }
    }
}

impl Drop for BatchInFlight {
    fn drop(&mut self) {
        // SAFETY: as in `into_box`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

pub(super) struct Op {
    pub(super) token: Token,
    generation: u32,
    pub(super) work: Work,
}

/// All operations of a ring.
pub(super) struct Slab {
    ops: Vec<Op>,
    free: u32,
    live: usize,
}

impl Slab {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            ops: Vec::with_capacity(capacity),
            free: NONE,
            live: 0,
        }
    }

    /// Adds an operation; allocates only when more are live than ever before and than there is capacity for.
    pub(super) fn insert(&mut self, token: Token, work: Work) -> u32 {
        self.live += 1;
        if let Some(op) = self.ops.get_mut(self.free as usize) {
            let index = self.free;
            let Work::Free { next } = std::mem::replace(&mut op.work, work) else {
                unreachable!("the free list holds free operations")
            };
            self.free = next;
            op.token = token;
            return index;
        }
        let index =
            u32::try_from(self.ops.len()).expect("fewer than 2^32 operations fit in memory");
        self.ops.push(Op {
            token,
            generation: 0,
            work,
        });
        index
    }

    pub(super) fn key(&self, index: u32) -> u64 {
        // The last generation is left out, so that no key equals `IGNORED`.
        u64::from(self.ops[index as usize].generation) << 32 | u64::from(index)
    }

    /// The index of the live operation with this key.
    pub(super) fn find(&self, key: u64) -> Option<u32> {
        let index = key as u32;
        let op = self.ops.get(index as usize)?;
        let live = op.generation == (key >> 32) as u32 && !matches!(op.work, Work::Free { .. });
        live.then_some(index)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Op {
        &mut self.ops[index as usize]
    }

    /// Ends an operation.
    pub(super) fn remove(&mut self, index: u32) -> Work {
        let op = &mut self.ops[index as usize];
        op.generation = (op.generation + 1) % u32::MAX;
        self.live -= 1;
        let work = std::mem::replace(&mut op.work, Work::Free { next: self.free });
        self.free = index;
        work
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Indices of the live operations with `token`.
    pub(super) fn with_token(&self, token: Token) -> impl Iterator<Item = u32> + '_ {
        self.indices()
            .filter(move |&index| self.ops[index as usize].token == token)
    }

    /// Indices of all live operations.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..)
            .zip(&self.ops)
            .filter(|(_, op)| !matches!(op.work, Work::Free { .. }))
            .map(|(index, _)| index)
    }
}
