//! The host's end of a queue: slots, command identifiers, and how many commands may be open.
//!
//! A command identifier is the slot's index with a generation above it, so that an answer to a command that has ended is told from
//! one to the command that uses its slot now. Invariants:
//! - no more commands are open than the ring has entries, less one;
//! - with flow control, no command is submitted that would overtake the head that the controller reported, except on an empty
//!   queue, where the head must be the tail whatever was reported last.

use super::{MAX_QUEUE_DEPTH, SlotId, Transfer};
use crate::wire::{Cid, Opcode, SglDescriptor, Sqe};
use zerocopy::little_endian::U16;

/// No more commands can be open; try again after a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the submission queue is full")]
pub struct QueueFull;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Submitted,
    Sent,
}

#[derive(Clone, Debug)]
struct Slot {
    phase: Phase,
    generation: u16,
    transfer: Transfer,
    /// Bytes that moved, in either direction.
    moved: u32,
}

/// See the module's text.
#[derive(Debug)]
pub struct HostQueue {
    slots: Box<[Slot]>,
    sqes: Box<[Sqe]>,
    free: Vec<SlotId>,
    index_bits: u32,
    depth: u16,
    flow_control: bool,
    head: u16,
    tail: u16,
}

impl HostQueue {
    /// A queue of `depth` entries (clamped to 2..=[`MAX_QUEUE_DEPTH`]). Allocates everything.
    pub fn new(depth: u16, flow_control: bool) -> Self {
        let depth = depth.clamp(2, MAX_QUEUE_DEPTH);
        let slots = depth - 1;
        Self {
            slots: vec![
                Slot {
                    phase: Phase::Free,
                    generation: 0,
                    transfer: Transfer::None,
                    moved: 0
                };
                usize::from(slots)
            ]
            .into(),
            sqes: vec![Sqe::new(Opcode(0)); usize::from(slots)].into(),
            free: (0..slots).rev().map(SlotId).collect(),
            index_bits: slots.next_power_of_two().trailing_zeros(),
            depth,
            flow_control,
            head: 0,
            tail: 0,
        }
    }

    /// Takes a command. CID, PSDT and the data pointer are filled in here.
    #[inline]
    pub fn submit(
        &mut self,
        sqe: &Sqe,
        dptr: SglDescriptor,
        transfer: Transfer,
    ) -> Result<SlotId, QueueFull> {
        let in_flight = self.in_flight();
        let next_tail = if self.tail + 1 == self.depth {
            0
        } else {
            self.tail + 1
        };
        if self.flow_control {
            if in_flight == 0 {
                self.head = self.tail;
            } else if next_tail == self.head {
                return Err(QueueFull);
            }
        }
        let id = self.free.pop().ok_or(QueueFull)?;
        self.tail = next_tail;
        let slot = &mut self.slots[id.index()];
        slot.phase = Phase::Submitted;
        slot.transfer = transfer;
        slot.moved = 0;
        let cid = id.0 | slot.generation << self.index_bits;
        let entry = &mut self.sqes[id.index()];
        *entry = *sqe;
        entry.cid = U16::new(cid);
        entry.flags = entry.flags & 0x3f | Sqe::FLAGS_SGL;
        entry.dptr = dptr;
        Ok(id)
    }

    /// The slot that the next command gets, if there is one.
    #[inline]
    pub fn next_slot(&self) -> Option<SlotId> {
        self.free.last().copied()
    }

    /// The command as it is sent.
    #[inline]
    pub fn command(&self, id: SlotId) -> &Sqe {
        &self.sqes[id.index()]
    }

    /// The data that the command moves.
    #[inline]
    pub fn transfer(&self, id: SlotId) -> Transfer {
        self.slots[id.index()].transfer
    }

    /// The command is handed to the transport.
    #[inline]
    pub fn sent(&mut self, id: SlotId) {
        self.slots[id.index()].phase = Phase::Sent;
    }

    /// Whether the command is open and has not been handed to the transport yet.
    #[inline]
    pub fn is_submitted(&self, id: SlotId) -> bool {
        self.slots[id.index()].phase == Phase::Submitted
    }

    /// The command with this identifier, if it is one that was sent and is open.
    #[inline]
    pub fn find(&self, cid: Cid) -> Option<SlotId> {
        let index = cid.0 & ((1 << self.index_bits) - 1);
        let slot = self.slots.get(usize::from(index))?;
        (slot.phase == Phase::Sent && slot.generation == cid.0 >> self.index_bits)
            .then_some(SlotId(index))
    }

    /// Bytes of the command's data that moved so far.
    #[inline]
    pub fn moved(&self, id: SlotId) -> u32 {
        self.slots[id.index()].moved
    }

    /// `bytes` more of the command's data moved.
    #[inline]
    pub fn add_moved(&mut self, id: SlotId, bytes: u32) {
        self.slots[id.index()].moved += bytes;
    }

    /// The command ended. `sqhd` is what its response said, `None` if there was none.
    #[inline]
    pub fn complete(&mut self, id: SlotId, sqhd: Option<u16>) {
        if self.flow_control {
            self.update_head(sqhd);
        }
        self.release(id);
    }

    fn release(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.index()];
        slot.phase = Phase::Free;
        slot.generation = (slot.generation + 1) & (u16::MAX >> self.index_bits);
        self.free.push(id);
    }

    /// The head only ever moves forward, up to the tail. Linux's target completes on several CPUs and its SQHD may step back for a
    /// moment; what does not fit is passed over, since all it could do is to give us space.
    #[inline]
    fn update_head(&mut self, sqhd: Option<u16>) {
        let distance = |to: u16| {
            if to >= self.head {
                to - self.head
            } else {
                to + self.depth - self.head
            }
        };
        let used = distance(self.tail);
        match sqhd {
            Some(sqhd) if sqhd < self.depth && distance(sqhd) <= used => self.head = sqhd,
            Some(_) => {}
            // Success told without a response, which some targets do with flow control on: its entry was consumed.
            None if used > 0 => {
                self.head = if self.head + 1 == self.depth {
                    0
                } else {
                    self.head + 1
                }
            }
            None => {}
        }
    }

    /// All commands end unanswered; `released` is told each.
    pub fn close(&mut self, mut released: impl FnMut(SlotId)) {
        for id in (0..self.slots.len() as u16).map(SlotId) {
            if self.slots[id.index()].phase != Phase::Free {
                self.release(id);
                released(id);
            }
        }
    }

    /// The open commands.
    pub fn live_slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.phase != Phase::Free)
            .map(|(n, _)| SlotId(n as u16))
    }

    /// Open commands.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Most commands that can be open: one less than the entries.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }
}
