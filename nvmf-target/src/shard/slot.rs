//! What a shard knows of a command beside what the protocol's queue knows: its plan, its buffer, how far it is.
//!
//! Slots are preallocated, one for each entry of the queue, under the index that the protocol gave the command.

use std::ops::{Index, IndexMut};
use std::time::Instant;

use nvme_proto::digest::Crc;
use nvme_proto::queue::SlotId;
use nvmf_io::Buf;

use super::spaces::SpaceId;
use crate::backend::Work;
use crate::model::IoClass;

/// Where a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No command of ours.
    Free,
    /// Waits for a buffer.
    Buffer,
    /// Its data are on their way from the host.
    Data,
    /// Held by a pause.
    Held,
    /// Waits until its connection may have more on the disk.
    Queued,
    /// Waits for the compare buffer; counts as running.
    Comparing,
    /// An operation of it is in flight on its backing.
    Running,
    /// Completed; its data are to be sent.
    Sending,
}

/// A command.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) command: Option<Command>,
    /// Its data buffer.
    pub(super) data: Option<Buf>,
    /// The buffer is the queue's reserve and goes back there.
    pub(super) is_reserve: bool,
    /// The host was asked for its data, which go into the buffer and have not all come.
    pub(super) is_owed: bool,
    /// Of all of its data, where the backing computed it.
    pub(super) digest: Option<Crc>,
}

/// What is known of a checked command.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) space: SpaceId,
    /// Of the space when the command was checked.
    pub(super) revision: u32,
    pub(super) work: Work,
    /// Goes on with the subsystem's next namespace when it succeeded on this one.
    pub(super) for_all: bool,
    /// Bytes to the host when it succeeds.
    pub(super) to_host_bytes: u32,
    pub(super) class: IoClass,
    pub(super) counted_bytes: u64,
    pub(super) received: Instant,
}

/// The slots of a queue.
#[derive(Debug)]
pub(super) struct Slots(Box<[Slot]>);

impl Slots {
    pub(super) fn new(count: u16) -> Self {
        let free = || Slot {
            phase: Phase::Free,
            command: None,
            data: None,
            is_reserve: false,
            is_owed: false,
            digest: None,
        };
        Self((0..count).map(|_| free()).collect())
    }

    /// All slots that a command of ours is in.
    pub(super) fn busy(&self) -> impl Iterator<Item = (SlotId, &Slot)> + '_ {
        let slots = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.phase != Phase::Free);
        slots.map(|(index, slot)| (SlotId(index as u16), slot))
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;
    #[inline]
    fn index(&self, id: SlotId) -> &Slot {
        &self.0[id.index()]
    }
}

impl IndexMut<SlotId> for Slots {
    #[inline]
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        &mut self.0[id.index()]
    }
}
