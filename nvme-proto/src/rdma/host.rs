//! A queue's connection, the host's side.
//!
//! The same [`HostQueue`] as over TCP. Built right after the connection stands: Connect is the first command that is submitted. The
//! driver's part: submit commands with the key to the memory that they move; post what [`HostConn::poll_work`] gives; report each message
//! with [`HostConn::receive`]. A response can be seen before the completion of the SEND that it answers: the command's capsule data stay the
//! device's until their own completion. After an error, or when the connection ends, call [`HostConn::close`], which names the commands that
//! are still open, so that they can be submitted again elsewhere.

use super::RESPONSE_BYTES;
use crate::queue::host::{HostQueue, QueueFull};
use crate::queue::slot_ring::SlotRing;
use crate::queue::{SlotId, Transfer};
use crate::violation::Violation;
use crate::wire::{Cqe, SglDescriptor, Sqe};
use thiserror::Error;
use zerocopy::FromBytes;

/// What a host's connection is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Entries of the submission queue (SQSIZE + 1), 2 to [`MAX_QUEUE_DEPTH`](crate::queue::MAX_QUEUE_DEPTH); clamped to that.
    pub depth: u16,
    /// Most data in the capsule: IOCCSZ * 16 - 64 on an I/O queue, 0 on the admin queue.
    pub in_capsule_bytes: u32,
    /// Whether SQHD counts: `false` when Connect asks to disable SQ flow control.
    pub flow_control: bool,
}

/// Memory that the controller may use for a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalMemory {
    /// Its address.
    pub address: u64,
    /// The key that opens it.
    pub key: u32,
    /// Ask the controller to make the key invalid with its response. Not for keys of a plain registration.
    pub invalidate: bool,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// No more commands can be open; try again after a completion.
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    /// The controller takes less data in a capsule: use [`Transfer::FromHost`].
    #[error("{bytes} bytes of in-capsule data, the controller takes {limit}")]
    InCapsuleTooLong {
        /// Bytes asked for.
        bytes: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// A keyed descriptor has 24 bits for the length.
    #[error("{0} bytes are more than a keyed descriptor can name")]
    TransferTooLong(u32),
    /// Data outside the capsule need memory.
    #[error("the command moves data, and no memory was named")]
    MemoryMissing,
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
}

/// A command to send: [`HostConn::command`], and behind it the first bytes of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostWork {
    /// The slot.
    pub slot: SlotId,
    /// Data in the capsule.
    pub in_capsule_bytes: u32,
}

/// A command ended; its slot is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// The slot that it had.
    pub slot: SlotId,
    /// Its completion.
    pub cqe: Cqe,
    /// The command's key was made invalid by the response. Where that was asked for and did not happen, the driver has to.
    pub invalidated: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct HostConn {
    queue: HostQueue,
    out: SlotRing,
    limits: HostLimits,
    is_live: bool,
}

impl HostConn {
    /// A connection that stands. Allocates all it will ever need.
    pub fn new(limits: HostLimits) -> Self {
        let queue = HostQueue::new(limits.depth, limits.flow_control);
        Self {
            out: SlotRing::new(queue.capacity() as u16),
            queue,
            limits,
            is_live: true,
        }
    }

    /// How to send `bytes` of data with a command: in its capsule where that is allowed, else when the controller fetches them.
    #[inline]
    pub fn write_transfer(&self, bytes: u32) -> Transfer {
        match bytes {
            0 => Transfer::None,
            _ if bytes <= self.limits.in_capsule_bytes => Transfer::InCapsule(bytes),
            _ => Transfer::FromHost(bytes),
        }
    }

    /// Takes a command. CID, PSDT and the data pointer are filled in here. `memory` is for data that do not go in the capsule.
    #[inline]
    pub fn submit(
        &mut self,
        sqe: &Sqe,
        transfer: Transfer,
        memory: Option<LocalMemory>,
    ) -> Result<SlotId, SubmitError> {
        if !self.is_live {
            return Err(SubmitError::Closed);
        }
        let dptr = match transfer {
            Transfer::InCapsule(bytes) => {
                let limit = self.limits.in_capsule_bytes;
                if bytes > limit {
                    return Err(SubmitError::InCapsuleTooLong { bytes, limit });
                }
                SglDescriptor::in_capsule(bytes)
            }
            // An empty keyed descriptor, as Linux's host sends it.
            Transfer::None => SglDescriptor {
                kind: SglDescriptor::KIND_KEYED,
                ..SglDescriptor::default()
            },
            Transfer::FromHost(bytes) | Transfer::ToHost(bytes) => {
                let memory = memory.ok_or(SubmitError::MemoryMissing)?;
                SglDescriptor::keyed(memory.address, bytes, memory.key, memory.invalidate)
                    .ok_or(SubmitError::TransferTooLong(bytes))?
            }
        };
        let slot = self.queue.submit(sqe, dptr, transfer)?;
        self.out.push(slot);
        Ok(slot)
    }

    /// The slot that the next command gets, if there is one: for data that lie in a place of the slot's.
    #[inline]
    pub fn next_slot(&self) -> Option<SlotId> {
        self.queue.next_slot()
    }

    /// The command in a slot as it is sent, its CID included.
    #[inline]
    pub fn command(&self, slot: SlotId) -> &Sqe {
        self.queue.command(slot)
    }

    /// The data that the command in a slot moves.
    #[inline]
    pub fn transfer(&self, slot: SlotId) -> Transfer {
        self.queue.transfer(slot)
    }

    /// The next command to send.
    #[inline]
    pub fn poll_work(&mut self) -> Option<HostWork> {
        let slot = self.out.front()?;
        self.out.pop();
        self.queue.sent(slot);
        let in_capsule_bytes = match self.queue.transfer(slot) {
            Transfer::InCapsule(bytes) => bytes,
            _ => 0,
        };
        Some(HostWork {
            slot,
            in_capsule_bytes,
        })
    }

    /// Whether [`HostConn::poll_work`] has something to send.
    #[inline]
    pub fn wants_post(&self) -> bool {
        !self.out.is_empty()
    }

    /// The command that a message of `bytes`, which begins with `header`, would complete, if it is a response to one that was sent and is
    /// open: for drivers that have to do something before they let [`HostConn::receive`] complete it.
    #[inline]
    pub fn responds_to(&self, header: &[u8], bytes: u32) -> Option<SlotId> {
        let (cqe, _) = Cqe::read_from_prefix(header).ok()?;
        (bytes >= RESPONSE_BYTES).then(|| self.queue.find(cqe.cid()))?
    }

    /// A message of `bytes` arrived, which begins with `header` and made the key `invalidated` invalid. After an error the connection is
    /// over.
    #[inline]
    pub fn receive(
        &mut self,
        header: &[u8],
        bytes: u32,
        invalidated: Option<u32>,
    ) -> Result<Completed, Violation> {
        let completed = self.response(header, bytes, invalidated);
        if completed.is_err() {
            self.is_live = false;
            self.out.clear();
        }
        completed
    }

    #[inline]
    fn response(
        &mut self,
        header: &[u8],
        bytes: u32,
        invalidated: Option<u32>,
    ) -> Result<Completed, Violation> {
        let cqe = match Cqe::read_from_prefix(header) {
            Ok((cqe, _)) if bytes >= RESPONSE_BYTES => cqe,
            _ => {
                return Err(Violation::CapsuleLength {
                    bytes,
                    least: RESPONSE_BYTES,
                });
            }
        };
        let cid = cqe.cid();
        let slot = self.queue.find(cid).ok_or(Violation::ResponseCid(cid))?;
        if let Some(key) = invalidated {
            let sgl = &self.queue.command(slot).dptr;
            // A controller that may invalidate any key could take the memory of commands away that still use it.
            if sgl.kind != SglDescriptor::KIND_KEYED_INVALIDATE || sgl.key() != key {
                return Err(Violation::ForeignKey { cid, key });
            }
        }
        self.queue.complete(slot, Some(cqe.sqhd.get()));
        Ok(Completed {
            slot,
            cqe,
            invalidated: invalidated.is_some(),
        })
    }

    /// Nothing is sent or completed any more. `released` is told each command that ends unanswered, before its slot is used again.
    pub fn close(&mut self, released: impl FnMut(SlotId)) {
        self.is_live = false;
        self.out.clear();
        self.queue.close(released);
    }

    /// The open commands.
    pub fn live_slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.queue.live_slots()
    }

    /// How many commands are open.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Most commands that can be open.
    pub fn capacity(&self) -> usize {
        self.queue.capacity()
    }
}
