//! One I/O queue: commands on a connection, over either transport.
//!
//! [`tcp`] and [`rdma`] are the wires: how commands, data and answers travel. All else is the same for both.
//!
//! Invariants:
//! - a command sits in the slot that the protocol gave it until its completion or until the queue is closed; its buffer
//!   is held there, and by ring or device while they may touch it;
//! - after `IoQueue::fail` no completion is reported any more. Once nothing is in flight the connection is closed, and
//!   only then do the open commands come out again ([`IoQueue::take_open`]), so that no byte of the old connection is
//!   sent or stored after one of them was issued elsewhere;
//! - where the target broke a rule over TCP, one termination request is the last thing that it is sent. RDMA has none.

mod rdma;
mod tcp;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nvme_proto::queue::SlotId;
use nvme_proto::wire::nvm::DsmRange;
use nvme_proto::wire::{Cid, Qid, Sqe, Status};
use nvmf_io::verbs::WorkCounts;
use nvmf_io::{Buf, BufPool, Completion, Ring};
use zerocopy::IntoBytes;

use self::rdma::RdmaWire;
use self::tcp::{Progress, TcpWire};
use super::error::QueueError;
use super::message::{ControllerKey, EventSink, FromShard, NewQueue, NewWire};
use super::rdma::Registrars;
use crate::tokens::TokenSpace;

/// A part of a request: what one command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the request on this shard.
    pub request: u32,
    /// First block, relative to the request.
    pub first: u64,
    /// Blocks.
    pub blocks: u32,
    /// How often it was tried and refused before.
    pub retries: u8,
}

/// Data of a command.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// None.
    None,
    /// To the controller, from this place on.
    Out(Buf, u32, u32),
    /// From the controller, to this place.
    In(Buf, u32, u32),
}

#[derive(Debug)]
struct Slot {
    part: Part,
    buf: Option<Buf>,
    buf_offset: u32,
    /// Bytes that a successful command must bring.
    expected_in: u32,
    /// When it was issued, or when its abort was asked for.
    since_ms: u32,
    /// It was late once: its abort was asked for.
    abort_asked: bool,
}

/// The open commands, by slot.
struct Slots {
    list: Box<[Option<Slot>]>,
    open: usize,
}

impl Slots {
    fn get(&self, slot: SlotId) -> Option<&Slot> {
        self.list[slot.index()].as_ref()
    }

    fn put(&mut self, slot: SlotId, command: Slot) {
        self.list[slot.index()] = Some(command);
        self.open += 1;
    }

    fn take(&mut self, slot: SlotId) -> Option<Slot> {
        let taken = self.list[slot.index()].take()?;
        self.open -= 1;
        Some(taken)
    }
}

/// How a command ended on this queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    pub part: Part,
    pub status: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    /// The target broke a rule: the termination request goes out, and the target has until this time to close the connection.
    Terminating(u32),
    /// Shut; waits for kernel and device to give back what they hold, the device until this time.
    Closing(u32),
    Closed,
}

/// How long a target that was sent a termination request gets to close the connection. Commands are held meanwhile, so it is
/// not the half minute that a controller gives; one that reads its socket at all needs a round trip.
pub(crate) const TERMINATION_WAIT_MS: u32 = 1000;

/// How long a device gets to give back what is posted on a queue pair that was disconnected. It does so at once, unless it is
/// going away; then all goes with the queue pair.
pub(crate) const FLUSH_WAIT_MS: u32 = 2000;

const DSM_RANGE_BYTES: u32 = DsmRange::SIZE as u32;

/// What carries the queue.
#[expect(
    clippy::large_enum_variant,
    reason = "TCP's path is the one that another step would cost most"
)]
enum Wire {
    Tcp(TcpWire),
    Rdma(Box<RdmaWire>),
}

impl Wire {
    fn next_slot(&self) -> Option<SlotId> {
        match self {
            Wire::Tcp(tcp) => tcp.conn.next_slot(),
            Wire::Rdma(rdma) => rdma.conn()?.next_slot(),
        }
    }

    fn submit(&mut self, sqe: &Sqe, data: &Data) -> Result<Option<SlotId>, QueueError> {
        match self {
            Wire::Tcp(tcp) => Ok(tcp.submit(sqe, data)),
            Wire::Rdma(rdma) => rdma.submit(sqe, data),
        }
    }

    fn cid(&self, slot: SlotId) -> Option<Cid> {
        match self {
            Wire::Tcp(tcp) => Some(tcp.conn.command(slot).cid()),
            Wire::Rdma(rdma) => Some(rdma.conn()?.command(slot).cid()),
        }
    }
}

/// See the module's text.
pub(crate) struct IoQueue {
    pub controller: ControllerKey,
    pub association: u32,
    pub qid: Qid,
    wire: Wire,
    slots: Slots,
    /// 16 bytes for each slot, for the ranges of Dataset Management.
    ranges: Buf,
    phase: Phase,
    /// Why no command can be taken any more; the next flush says so.
    broken: Option<QueueError>,
    io_timeout_ms: u32,
    events: EventSink,
    /// Set when anything was received: traffic stands in for keep-alive.
    traffic: Arc<AtomicBool>,
    /// In the shard's list of queues with something to send.
    pub dirty: bool,
}

impl IoQueue {
    /// Takes a connected queue over and begins to receive.
    pub fn new(
        new: NewQueue,
        tokens: TokenSpace,
        ring: &mut Ring,
        pool: &BufPool,
        registrars: &mut Registrars,
        out: &mut Vec<Finished>,
    ) -> Result<Self, QueueError> {
        let capacity = new.wire.capacity();
        let ranges = pool
            .alloc(capacity as u32 * DSM_RANGE_BYTES)
            .ok_or(QueueError::NoBuffer)?;
        let mut slots = Slots {
            list: std::iter::repeat_with(|| None).take(capacity).collect(),
            open: 0,
        };
        let wire = match new.wire {
            NewWire::Tcp {
                socket,
                conn,
                bytes,
            } => {
                let mut tcp = TcpWire::new(socket, conn, tokens, ring);
                tcp.consume(&bytes, &mut slots, out)?;
                tcp.arm(ring);
                Wire::Tcp(tcp)
            }
            NewWire::Rdma { qp, conn } => {
                let rdma = RdmaWire::new(*qp, conn, tokens, ring, registrars)?;
                Wire::Rdma(Box::new(rdma))
            }
        };
        Ok(IoQueue {
            controller: new.controller,
            association: new.association,
            qid: new.qid,
            wire,
            slots,
            ranges,
            phase: Phase::Live,
            broken: None,
            io_timeout_ms: new.io_timeout_ms,
            events: new.events,
            traffic: new.traffic,
            dirty: false,
        })
    }

    /// Whether commands can be submitted.
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Whether RDMA carries it: it has to be polled in each turn, and armed before the shard sleeps.
    pub fn is_rdma(&self) -> bool {
        matches!(self.wire, Wire::Rdma(_))
    }

    /// Whether the connection is gone and nothing is in flight.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether something here may be late: a command, or the end of the connection.
    pub fn needs_time(&self) -> bool {
        self.slots.open > 0 || self.is_ending()
    }

    /// Whether another command fits.
    pub fn has_room(&self) -> bool {
        self.is_live() && self.slots.open < self.slots.list.len() && self.broken.is_none()
    }

    /// Submits a command; it goes out with the next [`IoQueue::flush`]. False when the queue takes no more, for now or because it
    /// broke, which the flush then says.
    pub fn submit(&mut self, sqe: &Sqe, data: Data, part: Part, now_ms: u32) -> bool {
        let slot = match self.wire.submit(sqe, &data) {
            Ok(Some(slot)) => slot,
            Ok(None) => return false,
            Err(error) => {
                self.broken.get_or_insert(error);
                return false;
            }
        };
        let (buf, buf_offset, expected_in) = match data {
            Data::None => (None, 0, 0),
            Data::Out(buf, offset, _) => (Some(buf), offset, 0),
            Data::In(buf, offset, len) => (Some(buf), offset, len),
        };
        let command = Slot {
            part,
            buf,
            buf_offset,
            expected_in,
            since_ms: now_ms,
            abort_asked: false,
        };
        self.slots.put(slot, command);
        true
    }

    /// Submits a command whose data is a range of blocks, from the queue's own memory; see [`IoQueue::submit`].
    pub fn submit_range(&mut self, sqe: &Sqe, range: DsmRange, part: Part, now_ms: u32) -> bool {
        let Some(slot) = self.wire.next_slot() else {
            return false;
        };
        let at = u32::from(slot.0) * DSM_RANGE_BYTES;
        self.ranges.copy_in(at, range.as_bytes());
        let data = Data::Out(self.ranges.clone(), at, DSM_RANGE_BYTES);
        self.submit(sqe, data, part, now_ms)
    }

    /// A ring operation of this queue completed.
    pub fn on_completion(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        now_ms: u32,
        out: &mut Vec<Finished>,
    ) -> Result<(), QueueError> {
        let is_live = self.is_live();
        let result = match &mut self.wire {
            Wire::Tcp(tcp) => {
                let (phase, slots) = (self.phase, &mut self.slots);
                tcp.on_completion(completion, phase, ring, slots, &self.traffic, out)
            }
            Wire::Rdma(rdma) => rdma
                .on_completion(&completion, !is_live, ring)
                .map(|()| Progress::Done),
        };
        if is_live {
            return result.map(drop);
        }
        if !matches!(result, Ok(Progress::Done)) {
            // There is nobody to hear the termination request.
            self.shut(ring, now_ms);
        }
        self.try_close(ring, false);
        Ok(())
    }

    /// Looks for answers, where they are not brought by the ring. Whether there was anything.
    pub fn poll(&mut self, ring: &mut Ring, out: &mut Vec<Finished>) -> Result<bool, QueueError> {
        let Wire::Rdma(rdma) = &mut self.wire else {
            return Ok(false);
        };
        if self.phase == Phase::Live {
            return rdma.poll(&mut self.slots, &self.traffic, out);
        }
        let drained = rdma.drain();
        self.try_close(ring, drained.is_err());
        Ok(false)
    }

    /// Before the shard sleeps: asks to be woken by answers. True where answers may have come meanwhile.
    pub fn arm(&mut self) -> Result<bool, QueueError> {
        match &mut self.wire {
            Wire::Tcp(_) => Ok(false),
            Wire::Rdma(rdma) => rdma.arm(),
        }
    }

    /// What was done on the queue pair, where there is one.
    pub fn counts(&self) -> WorkCounts {
        match &self.wire {
            Wire::Tcp(_) => WorkCounts::default(),
            Wire::Rdma(rdma) => rdma.counts(),
        }
    }

    /// Sends what the connection has to say.
    pub fn flush(&mut self, ring: &mut Ring) -> Result<(), QueueError> {
        match (&mut self.wire, self.phase) {
            (Wire::Tcp(tcp), Phase::Live | Phase::Terminating(_)) => tcp.flush(ring, &self.slots),
            (Wire::Rdma(rdma), Phase::Live) => {
                if let Some(error) = self.broken.take() {
                    return Err(error);
                }
                rdma.flush()?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Looks for commands that have no answer in time. The abort of one is asked for, once; one that has no answer for as long again
    /// after that ends the queue.
    pub fn check_times(&mut self, now_ms: u32) -> Result<(), QueueError> {
        if self.phase != Phase::Live || self.slots.open == 0 {
            return Ok(());
        }
        for (index, slot) in self.slots.list.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            if now_ms.wrapping_sub(slot.since_ms) < self.io_timeout_ms {
                continue;
            }
            if slot.abort_asked {
                return Err(QueueError::CommandTimeout(self.io_timeout_ms));
            }
            slot.abort_asked = true;
            slot.since_ms = now_ms;
            let Some(cid) = self.wire.cid(SlotId(index as u16)) else {
                continue;
            };
            // Without a receiver the controller is being ended, and the queue with it.
            let _ = self.events.send(FromShard::CommandLate {
                association: self.association,
                qid: self.qid,
                cid,
            });
        }
        Ok(())
    }

    /// Tells the control thread that the queue is of no use any more.
    pub fn report(&self, error: QueueError) {
        // Without a receiver the controller is being ended, and nobody will reconnect.
        let _ = self.events.send(FromShard::QueueFailed {
            association: self.association,
            qid: self.qid,
            error,
        });
    }

    /// Ends the queue: shuts the connection and closes it as soon as kernel and device hold nothing of it. Where the target broke a
    /// rule over TCP it is told so first, and gets some time to close the connection itself.
    pub fn fail(&mut self, ring: &mut Ring, now_ms: u32) {
        if self.phase != Phase::Live {
            return;
        }
        if let Wire::Tcp(tcp) = &mut self.wire {
            tcp.conn.close(|_| {});
            if tcp.conn.is_terminating() {
                self.phase = Phase::Terminating(now_ms.wrapping_add(TERMINATION_WAIT_MS));
                tcp.arm(ring);
                return tcp.flush(ring, &self.slots);
            }
        }
        self.shut(ring, now_ms);
    }

    /// Whether the connection is ending, and somebody has until a time to do their part.
    pub fn is_ending(&self) -> bool {
        match self.phase {
            Phase::Terminating(_) => true,
            Phase::Closing(_) => self.is_rdma(),
            Phase::Live | Phase::Closed => false,
        }
    }

    /// The target had its time to close the connection, or the device to give back what it holds.
    pub fn check_ending(&mut self, ring: &mut Ring, now_ms: u32) {
        let is_past = |until_ms: u32| now_ms.wrapping_sub(until_ms) < u32::MAX / 2;
        match self.phase {
            Phase::Terminating(until_ms) if is_past(until_ms) => self.shut(ring, now_ms),
            Phase::Closing(until_ms) if is_past(until_ms) => self.try_close(ring, true),
            _ => {}
        }
    }

    fn shut(&mut self, ring: &mut Ring, now_ms: u32) {
        if matches!(self.phase, Phase::Closing(_) | Phase::Closed) {
            return;
        }
        self.phase = Phase::Closing(now_ms.wrapping_add(FLUSH_WAIT_MS));
        match &mut self.wire {
            Wire::Tcp(tcp) => tcp.shut(ring),
            Wire::Rdma(rdma) => rdma.shut(ring),
        }
        self.try_close(ring, false);
    }

    fn try_close(&mut self, ring: &mut Ring, give_up: bool) {
        if !matches!(self.phase, Phase::Closing(_)) {
            return;
        }
        let closed = match &mut self.wire {
            Wire::Tcp(tcp) => tcp.close(ring),
            Wire::Rdma(rdma) => rdma.close(ring, give_up),
        };
        if closed {
            self.phase = Phase::Closed;
        }
    }

    /// The commands that never completed; only of a closed queue.
    pub fn take_open(&mut self) -> impl Iterator<Item = Part> + '_ {
        assert!(
            self.is_closed(),
            "commands stay with their queue until its connection is closed"
        );
        self.slots.open = 0;
        let early = match &mut self.wire {
            Wire::Tcp(_) => None,
            Wire::Rdma(rdma) => Some(rdma.take_early()),
        };
        let open = self.slots.list.iter_mut();
        open.filter_map(|slot| Some(slot.take()?.part))
            .chain(early.into_iter().flatten())
    }
}
