//! What operations do, with everything that their entries point at.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use super::files::Id;
use super::message::Message;
use super::scatter::RxScatter;
use crate::buf::{Buf, KernelWrite};
use crate::tx::TxBatch;

/// What an operation does, with everything that its entry points at.
pub(super) enum Work {
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
    /// A receive into a buffer and a room of its own.
    Scatter {
        scatter: InFlight<RxScatter>,
    },
    Send {
        file: Id,
        batch: InFlight<TxBatch>,
        done: u32,
    },
    WriteVectored {
        batch: InFlight<TxBatch>,
    },
    /// Waiting for a descriptor. Its own, since the entry names it by number.
    Poll {
        fd: OwnedFd,
        events: u32,
        multishot: bool,
    },
    /// A read that waits for a message.
    Message(Message),
    /// The kernel writes to the buffer.
    Fill(#[expect(dead_code, reason = "owned, not used")] KernelWrite),
    /// The kernel reads from the buffer.
    Drain(#[expect(dead_code, reason = "owned, not used")] Buf),
}

// Two cache lines with token and generation.
const _: () = assert!(size_of::<Work>() <= 64);

pub(super) struct Receive {
    pub(super) file: Id,
    /// Goes on after each chunk.
    pub(super) multishot: bool,
    /// Most bytes to receive; 0 for as many as a buffer holds.
    pub(super) limit: u32,
    /// Its end was asked for: it is not armed again. The kernel may have had nothing of it to cancel.
    pub(super) cancelled: bool,
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

/// What the kernel reads or writes by a message and its vector, which are part of it. Raw, because they are pointed at while this
/// value moves.
pub(super) struct InFlight<T>(NonNull<T>);

impl<T> InFlight<T> {
    pub(super) fn new(value: Box<T>) -> Self {
        Self(NonNull::from(Box::leak(value)))
    }

    pub(super) fn as_mut(&mut self) -> &mut T {
        // SAFETY: leaked in `new`, owned by this value alone. Called before submission and after the completion,
        // so the kernel does not use it meanwhile.
        unsafe { self.0.as_mut() }
    }

    pub(super) fn into_box(self) -> Box<T> {
        let value = self.0;
        std::mem::forget(self);
        // SAFETY: leaked in `new`; this value, forgotten just now, was its only owner.
        unsafe { Box::from_raw(value.as_ptr()) }
    }
}

impl<T> Drop for InFlight<T> {
    fn drop(&mut self) {
        // SAFETY: as in `into_box`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
