//! The controller's end of a queue.
//!
//! A command is admitted into a slot, gets its data (the transport reports what lands), is executed by the driver, is completed, and
//! leaves its slot when its response is handed to the transport. Invariants:
//! - the CIDs of open commands differ; a command whose CID is in use has a slot for its refusal but is not listed;
//! - a slot is in the ring of things to send at most once, and only while it has something to send;
//! - a response never overtakes data that still arrives for its command: a command that ends early waits, silently, until everything
//!   that the host was asked for (or that its capsule carries) has come and been thrown away. Otherwise data would arrive for a slot
//!   that by then belongs to another command;
//! - data are fetched in windows, in order, without gaps; at most `max_fetches` windows are open for a command.

use super::cid_map::CidMap;
use super::slot_ring::SlotRing;
use super::{MAX_QUEUE_DEPTH, SlotId, Transfer};
use crate::violation::Violation;
use crate::wire::{Cid, Cqe, Opcode, Sqe, Status};

/// SQHD in the response to Connect when SQ flow control is disabled.
const SQHD_DISABLED: u16 = 0xffff;

/// What a queue is made with, once transport and limits are known.
#[derive(Clone, Copy, Debug)]
pub struct ControllerQueueConfig {
    /// Entries of the submission queue.
    pub depth: u16,
    /// Whether the host minds SQHD.
    pub flow_control: bool,
    /// Most data that one fetch asks for, in bytes.
    pub fetch_window_bytes: u32,
    /// Most fetches open for one command.
    pub max_fetches: u32,
    /// Whether the transport can say "data sent and all went well" without a response.
    pub elide_success: bool,
}

/// The smallest fetch window: below it, headers would outweigh data.
const MIN_FETCH_WINDOW_BYTES: u32 = 4096;

/// Who has a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The command waits for its data: for the driver's buffer, or for bytes from the host.
    Waiting,
    /// The driver has it and will complete it.
    Executing,
    /// It is completed; data or response are not yet handed out.
    Finishing,
}

/// What Abort found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortOutcome {
    /// No such command is open, or it is finished already.
    NotFound,
    /// It waits for data: complete it with [`Status::ABORT_REQUESTED`].
    Waiting(SlotId),
    /// It is being executed: cancel it if that can be done.
    Executing(SlotId),
}

/// What the transport shall do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fetch a range of a command's data from the host.
    Fetch {
        /// The slot.
        slot: SlotId,
        /// Its command.
        cid: Cid,
        /// Start of the range in the command's data.
        offset: u32,
        /// Length in bytes.
        bytes: u32,
    },
    /// Send the command's data, from offset 0.
    Send {
        /// The slot.
        slot: SlotId,
        /// Its command.
        cid: Cid,
        /// Length in bytes.
        bytes: u32,
        /// No response follows: the transport tells the success with the data, and the slot is free.
        elided: bool,
    },
    /// Send the response; the slot is free.
    Respond {
        /// The slot.
        slot: SlotId,
        /// The completion.
        cqe: Cqe,
    },
}

/// What the end of a piece of payload means for its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landed {
    /// Nothing for the driver.
    Nothing,
    /// All data are there: execute it.
    Ready,
    /// The data are damaged: the driver completes it with [`Status::TRANSIENT_TRANSPORT_ERROR`].
    Damaged,
}

/// The oldest fetch of a command that is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFetch {
    /// The command.
    pub cid: Cid,
    /// Offset of the next byte.
    pub next: u32,
    /// Where the window ends.
    pub end: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Waiting,
    Executing,
    Finishing,
}

#[derive(Clone, Debug)]
struct Slot {
    phase: Phase,
    /// In the ring.
    queued: bool,
    /// Payload for it is arriving right now.
    arriving: bool,
    /// In the CID map.
    listed: bool,
    /// The driver has a buffer for the data.
    granted: bool,
    status: Status,
    cid: Cid,
    open_fetches: u32,
    transfer: Transfer,
    /// Bytes of data that arrived, thrown away ones included.
    received: u32,
    /// Bytes that the host was asked for, or that the capsule carries.
    requested: u32,
    /// End of the oldest open window.
    window_end: u32,
    /// Bytes to send before the response.
    send_bytes: u32,
    result: u64,
}

const FREE: Slot = Slot {
    phase: Phase::Free,
    queued: false,
    arriving: false,
    listed: false,
    granted: false,
    status: Status::SUCCESS,
    cid: Cid(0),
    open_fetches: 0,
    transfer: Transfer::None,
    received: 0,
    requested: 0,
    window_end: 0,
    send_bytes: 0,
    result: 0,
};

impl Slot {
    /// Nothing that the host was asked for is still to come.
    #[inline]
    fn quiet(&self) -> bool {
        !self.arriving && self.received == self.requested
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct ControllerQueue {
    slots: Box<[Slot]>,
    sqes: Box<[Sqe]>,
    free: Vec<SlotId>,
    cids: CidMap,
    out: SlotRing,
    depth: u16,
    sqhd: u16,
    flow_control: bool,
    elide_success: bool,
    closed: bool,
    window_bytes: u32,
    max_fetches: u32,
}

impl ControllerQueue {
    /// Allocates everything.
    pub fn new(config: ControllerQueueConfig) -> Self {
        // As many slots as entries. A ring is full with one entry less, but Linux's host, which does not look at SQHD, opens as many
        // commands on its admin queue as the queue has entries.
        let depth = config.depth.clamp(2, MAX_QUEUE_DEPTH);
        Self {
            slots: vec![FREE; usize::from(depth)].into(),
            sqes: vec![Sqe::new(Opcode(0)); usize::from(depth)].into(),
            free: (0..depth).rev().map(SlotId).collect(),
            cids: CidMap::new(depth),
            out: SlotRing::new(depth),
            depth,
            sqhd: 0,
            flow_control: config.flow_control,
            elide_success: config.elide_success,
            closed: false,
            // Windows begin at multiples of their length, which keeps their starts aligned.
            window_bytes: config.fetch_window_bytes.max(MIN_FETCH_WINDOW_BYTES)
                & !(MIN_FETCH_WINDOW_BYTES - 1),
            max_fetches: config.max_fetches.max(1),
        }
    }

    /// Takes a command in. `false`: its CID is in use by another one, so it must be refused.
    #[inline]
    pub fn admit(&mut self, sqe: &Sqe) -> Result<(SlotId, bool), Violation> {
        let Some(id) = self.free.pop() else {
            return Err(Violation::QueueOverrun { depth: self.depth });
        };
        let cid = sqe.cid();
        let listed = self.cids.insert(cid, id);
        self.slots[id.index()] = Slot {
            phase: Phase::Executing,
            cid,
            listed,
            ..FREE
        };
        self.sqes[id.index()] = *sqe;
        Ok((id, listed))
    }

    /// Says which data an admitted command moves.
    #[inline]
    pub fn begin(&mut self, id: SlotId, transfer: Transfer) {
        let slot = &mut self.slots[id.index()];
        slot.transfer = transfer;
        match transfer {
            Transfer::InCapsule(bytes) => {
                slot.phase = Phase::Waiting;
                slot.requested = bytes;
            }
            Transfer::FromHost(_) => slot.phase = Phase::Waiting,
            Transfer::None | Transfer::ToHost(_) => {}
        }
    }

    /// Refuses an admitted command of which `arriving_bytes` of payload are still to come.
    pub fn refuse(&mut self, id: SlotId, status: Status, arriving_bytes: u32) {
        let slot = &mut self.slots[id.index()];
        slot.requested = arriving_bytes;
        slot.arriving = arriving_bytes > 0;
        self.complete(id, status, 0);
    }

    /// The command.
    #[inline]
    pub fn command(&self, id: SlotId) -> &Sqe {
        &self.sqes[id.index()]
    }

    /// The data that the command moves.
    #[inline]
    pub fn transfer(&self, id: SlotId) -> Transfer {
        self.slots[id.index()].transfer
    }

    /// The driver has a buffer: the transport may fetch the data.
    #[inline]
    pub fn request_data(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.index()];
        debug_assert!(
            slot.phase == Phase::Waiting && matches!(slot.transfer, Transfer::FromHost(_))
        );
        if slot.phase == Phase::Waiting && slot.requested < slot.transfer.bytes_from_host() {
            slot.granted = true;
            self.enqueue(id);
        }
    }

    /// The oldest open fetch of the command in slot `tag`, if that is a slot with one.
    #[inline]
    pub fn open_fetch(&self, tag: u16) -> Option<OpenFetch> {
        let slot = self.slots.get(usize::from(tag))?;
        (slot.open_fetches > 0).then_some(OpenFetch {
            cid: slot.cid,
            next: slot.received,
            end: slot.window_end,
        })
    }

    /// Payload for the command begins to arrive.
    #[inline]
    pub fn payload_begins(&mut self, id: SlotId) {
        self.slots[id.index()].arriving = true;
    }

    /// Where the next payload of the command belongs; `None`: throw it away.
    #[inline]
    pub fn payload_offset(&self, id: SlotId) -> Option<u32> {
        let slot = &self.slots[id.index()];
        (slot.phase == Phase::Waiting).then_some(slot.received)
    }

    /// `bytes` of payload arrived.
    #[inline]
    pub fn payload_arrived(&mut self, id: SlotId, bytes: u32) {
        self.slots[id.index()].received += bytes;
    }

    /// The piece of payload that arrived is complete.
    #[inline]
    pub fn payload_ends(&mut self, id: SlotId, undamaged: bool) -> Landed {
        let window_bytes = self.window_bytes;
        let slot = &mut self.slots[id.index()];
        let all = slot.transfer.bytes_from_host();
        slot.arriving = false;
        if slot.open_fetches > 0 && slot.received == slot.window_end {
            slot.open_fetches -= 1;
            slot.window_end = slot.window_end.saturating_add(window_bytes).min(all);
        }
        match slot.phase {
            Phase::Waiting if !undamaged => {
                slot.phase = Phase::Executing;
                Landed::Damaged
            }
            Phase::Waiting if slot.received == all => {
                slot.phase = Phase::Executing;
                Landed::Ready
            }
            Phase::Waiting => {
                if slot.granted && slot.requested < all {
                    self.enqueue(id);
                }
                Landed::Nothing
            }
            Phase::Finishing if slot.quiet() => {
                self.enqueue(id);
                Landed::Nothing
            }
            _ => Landed::Nothing,
        }
    }

    /// Completes a command without data for the host. `result` becomes dwords 0 and 1 of the CQE.
    #[inline]
    pub fn complete(&mut self, id: SlotId, status: Status, result: u64) {
        self.finish(id, status, result, 0);
    }

    /// Completes a command successfully with the first `bytes` of its buffer as data for the host.
    #[inline]
    pub fn complete_with_data(&mut self, id: SlotId, bytes: u32, result: u64) {
        let Transfer::ToHost(limit) = self.slots[id.index()].transfer else {
            debug_assert!(bytes == 0, "data for a command that reads none");
            return self.finish(id, Status::SUCCESS, result, 0);
        };
        debug_assert!(bytes <= limit);
        self.finish(id, Status::SUCCESS, result, bytes.min(limit));
    }

    #[inline]
    fn finish(&mut self, id: SlotId, status: Status, result: u64, send_bytes: u32) {
        let slot = &mut self.slots[id.index()];
        debug_assert!(
            matches!(slot.phase, Phase::Waiting | Phase::Executing),
            "completed twice: {slot:?}"
        );
        if !matches!(slot.phase, Phase::Waiting | Phase::Executing) {
            return;
        }
        if self.closed {
            return self.release(id);
        }
        slot.phase = Phase::Finishing;
        slot.status = status;
        slot.result = result;
        slot.send_bytes = send_bytes;
        if slot.quiet() {
            self.enqueue(id);
        }
    }

    /// What Abort of `cid` can do.
    pub fn abort(&self, cid: Cid) -> AbortOutcome {
        let Some(id) = self.cids.get(cid) else {
            return AbortOutcome::NotFound;
        };
        match self.slots[id.index()].phase {
            Phase::Waiting => AbortOutcome::Waiting(id),
            Phase::Executing => AbortOutcome::Executing(id),
            Phase::Finishing | Phase::Free => AbortOutcome::NotFound,
        }
    }

    /// The next thing for the transport to do.
    #[inline]
    pub fn poll(&mut self) -> Option<Action> {
        loop {
            let id = self.out.front()?;
            let slot = &mut self.slots[id.index()];
            match slot.phase {
                Phase::Finishing if slot.quiet() => {
                    let bytes = core::mem::take(&mut slot.send_bytes);
                    if bytes == 0 {
                        let (cid, status, result) = (slot.cid, slot.status, slot.result);
                        self.out.pop();
                        self.release(id);
                        let sqhd = self.advance_sqhd();
                        return Some(Action::Respond {
                            slot: id,
                            cqe: Cqe::new(cid, sqhd, status, result),
                        });
                    }
                    let (cid, elided) = (slot.cid, self.elide_success && slot.result == 0);
                    if elided {
                        self.out.pop();
                        self.release(id);
                        self.advance_sqhd();
                    }
                    return Some(Action::Send {
                        slot: id,
                        cid,
                        bytes,
                        elided,
                    });
                }
                Phase::Waiting if slot.granted && slot.open_fetches < self.max_fetches => {
                    let all = slot.transfer.bytes_from_host();
                    let offset = slot.requested;
                    let bytes = (all - offset).min(self.window_bytes);
                    slot.requested += bytes;
                    if slot.open_fetches == 0 {
                        slot.window_end = slot.requested;
                    }
                    slot.open_fetches += 1;
                    let cid = slot.cid;
                    if slot.requested == all || slot.open_fetches == self.max_fetches {
                        slot.queued = false;
                        self.out.pop();
                    }
                    return Some(Action::Fetch {
                        slot: id,
                        cid,
                        offset,
                        bytes,
                    });
                }
                // It was to fetch when it got completed; it comes back once what is under way has arrived.
                _ => {
                    slot.queued = false;
                    self.out.pop();
                }
            }
        }
    }

    /// Whether [`ControllerQueue::poll`] may have something to do.
    #[inline]
    pub fn has_actions(&self) -> bool {
        !self.out.is_empty()
    }

    /// The response to a successful Connect, which was received before there was a queue.
    pub fn connect_response(&mut self, cid: Cid, result: u32) -> Cqe {
        let sqhd = self.advance_sqhd();
        let sqhd = if self.flow_control {
            sqhd
        } else {
            SQHD_DISABLED
        };
        Cqe::new(cid, sqhd, Status::SUCCESS, u64::from(result))
    }

    /// One more entry of the submission queue is free; what SQHD says from there on. 0 where it is reserved.
    ///
    /// An entry is given back with the response, not when the command is fetched, so that flow control bounds what is open.
    #[inline]
    fn advance_sqhd(&mut self) -> u16 {
        if !self.flow_control {
            return 0;
        }
        self.sqhd += 1;
        if self.sqhd == self.depth {
            self.sqhd = 0;
        }
        self.sqhd
    }

    #[inline]
    fn enqueue(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.index()];
        if !slot.queued && !self.closed {
            slot.queued = true;
            self.out.push(id);
        }
    }

    #[inline]
    fn release(&mut self, id: SlotId) {
        let slot = &mut self.slots[id.index()];
        slot.phase = Phase::Free;
        slot.queued = false;
        slot.open_fetches = 0;
        if slot.listed {
            slot.listed = false;
            let cid = slot.cid;
            self.cids.remove(cid);
        }
        self.free.push(id);
    }

    /// Nothing is sent any more. Commands that are being executed stay until the driver completes them; all others end now, and
    /// `released` is told each, so that their buffers can go.
    pub fn close(&mut self, mut released: impl FnMut(SlotId)) {
        self.stop();
        for id in (0..self.depth).map(SlotId) {
            if matches!(
                self.slots[id.index()].phase,
                Phase::Waiting | Phase::Finishing
            ) {
                self.release(id);
                released(id);
            }
        }
    }

    /// The first half of [`ControllerQueue::close`]: nothing is sent any more.
    pub(crate) fn stop(&mut self) {
        self.closed = true;
        self.out.clear();
    }

    /// The open commands.
    pub fn live_slots(&self) -> impl Iterator<Item = (SlotId, Stage)> + '_ {
        self.slots.iter().enumerate().filter_map(|(n, slot)| {
            let stage = match slot.phase {
                Phase::Free => return None,
                Phase::Waiting => Stage::Waiting,
                Phase::Executing => Stage::Executing,
                Phase::Finishing => Stage::Finishing,
            };
            Some((SlotId(n as u16), stage))
        })
    }

    /// Open commands, those whose response is not yet handed out included.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Entries of the submission queue.
    pub fn depth(&self) -> u16 {
        self.depth
    }
}
