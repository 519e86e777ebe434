//! The target's driver: associations, a pool of few buffers, and a backend that finishes operations when it likes.
//!
//! Two rules keep it from waiting for ever. An R2T or a read never takes the last buffer: a capsule's data do, since the stream stands
//! still until they have one and nothing behind them in the stream is needed to free it. And commands of an association start only
//! when all older associations have come to rest, which needs nothing but the backend.

use crate::app::{App, BLOCK_BYTES, BLOCKS};
use crate::rng::Rng;
use nvme_proto::digest::Crc;
use nvme_proto::queue::controller::AbortOutcome;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::{
    ControllerConn, ControllerHandshake, ControllerOffer, HandshakeEvent, TX_HEADER_BYTES,
};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, IoOpcode, Status};
use std::collections::VecDeque;

/// Buffers, told by their index. A free one is filled with garbage.
struct Pool {
    buffers: Vec<Vec<u8>>,
    free: Vec<usize>,
}

const BUFFER_BYTES: usize = 40 * BLOCK_BYTES;

impl Pool {
    fn take(&mut self, may_be_last: bool) -> Option<usize> {
        if self.free.len() < if may_be_last { 1 } else { 2 } {
            None
        } else {
            self.free.pop()
        }
    }

    fn give(&mut self, buffer: usize) {
        self.buffers[buffer].fill(0xdb);
        self.free.push(buffer);
    }
}

struct BackendOp {
    association: u64,
    slot: SlotId,
    applied: bool,
}

#[allow(clippy::large_enum_variant)]
enum Phase {
    Handshake(ControllerHandshake),
    Queue(ControllerConn),
}

pub struct Association {
    id: u64,
    limits: QueueLimits,
    phase: Phase,
    /// What the host sent and nobody has looked at yet, and whether more may follow.
    pub inbound: Vec<u8>,
    pub inbound_ended: bool,
    /// What goes to the host; dropped when the connection is cut.
    pub outbound: Vec<u8>,
    closed: bool,
    buffers: Vec<Option<usize>>,
    /// A capsule's data are next in the stream and have no buffer yet.
    stalled: Option<SlotId>,
    /// Reads, and writes to be fetched, that wait for a buffer.
    hungry: VecDeque<SlotId>,
    /// Commands that could start.
    ready: VecDeque<SlotId>,
}

pub struct Target {
    disk: Vec<u8>,
    pool: Pool,
    pub associations: Vec<Association>,
    backend: Vec<BackendOp>,
    fencing: bool,
    next_id: u64,
    pub pool_dry: u64,
    pub damaged: u64,
    pub aborted: u64,
    /// Commands that came in on an association whose host had gone.
    pub stale_commands: u64,
}

impl Target {
    pub fn new(buffers: usize, fencing: bool) -> Self {
        Self {
            disk: vec![0; BLOCKS * BLOCK_BYTES],
            pool: Pool {
                buffers: vec![vec![0xdb; BUFFER_BYTES]; buffers],
                free: (0..buffers).collect(),
            },
            associations: Vec::new(),
            backend: Vec::new(),
            fencing,
            next_id: 0,
            pool_dry: 0,
            damaged: 0,
            aborted: 0,
            stale_commands: 0,
        }
    }

    /// A connection arrives.
    pub fn open(&mut self, offer: ControllerOffer, limits: QueueLimits) {
        self.associations.push(Association {
            id: self.next_id,
            limits,
            phase: Phase::Handshake(ControllerHandshake::new(offer)),
            inbound: Vec::new(),
            inbound_ended: false,
            outbound: Vec::new(),
            closed: false,
            buffers: vec![None; usize::from(limits.depth)],
            stalled: None,
            hungry: VecDeque::new(),
            ready: VecDeque::new(),
        });
        self.next_id += 1;
    }

    /// Looks at up to `bytes` of what association `index` got. `Err`: the host broke a rule.
    pub fn receive(&mut self, index: usize, bytes: usize, rng: &mut Rng) -> Result<(), Violation> {
        let association = &mut self.associations[index];
        if association.closed {
            association.inbound.clear();
            return Ok(());
        }
        if let Some(slot) = association.stalled {
            let Some(buffer) = self.pool.take(true) else {
                self.pool_dry += 1;
                return Ok(());
            };
            association.buffers[slot.index()] = Some(buffer);
            association.stalled = None;
        }
        let taken = bytes.min(association.inbound.len());
        let mut input: Vec<u8> = association.inbound.drain(..taken).collect();
        if let Phase::Handshake(handshake) = &mut association.phase {
            let (taken, event) = handshake.receive(&input)?;
            association.outbound.extend(handshake.take_output());
            let HandshakeEvent::Connect(connect) = event else {
                return Ok(());
            };
            input.drain(..taken);
            let mut conn = ControllerConn::new(connect.params, association.limits);
            conn.accept_connect(connect.sqe.cid(), 1);
            association.phase = Phase::Queue(conn);
            self.replace_older(index);
        }
        self.receive_commands(index, &input, rng)
    }

    fn receive_commands(
        &mut self,
        index: usize,
        mut input: &[u8],
        rng: &mut Rng,
    ) -> Result<(), Violation> {
        let association = &mut self.associations[index];
        let Phase::Queue(conn) = &mut association.phase else {
            return Ok(());
        };
        loop {
            if rng.chance(50)
                && let Some(pending) = conn.pending_payload()
                && let Some(buffer) = association.buffers[pending.slot.index()]
            {
                let (now, rest) = input.split_at(input.len().min(pending.len as usize));
                let start = pending.offset as usize;
                self.pool.buffers[buffer][start..start + now.len()].copy_from_slice(now);
                conn.payload_received(now.len() as u32, pending.crc.map(|crc| crc.and(now)));
                input = rest;
            }
            let (taken, received) = conn.receive(input)?;
            let rest = &input[taken..];
            match received {
                Received::NeedMore => return Ok(()),
                Received::Command { slot } => {
                    self.stale_commands += u64::from(association.inbound_ended);
                    match conn.transfer(slot) {
                        Transfer::None => association.ready.push_back(slot),
                        Transfer::FromHost(_) | Transfer::ToHost(_) => {
                            association.hungry.push_back(slot)
                        }
                        Transfer::InCapsule(_) => match self.pool.take(true) {
                            Some(buffer) => association.buffers[slot.index()] = Some(buffer),
                            None => {
                                // The rest of the stream waits.
                                self.pool_dry += 1;
                                association.stalled = Some(slot);
                                association.inbound.splice(0..0, rest.iter().copied());
                                return Ok(());
                            }
                        },
                    }
                }
                Received::Refused { violation, .. } => return Err(violation),
                Received::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let buffer = association.buffers[slot.index()].expect("payload has a buffer");
                    let start = offset as usize;
                    self.pool.buffers[buffer][start..start + range.len()]
                        .copy_from_slice(&input[range]);
                }
                Received::DataReady { slot } => association.ready.push_back(slot),
                Received::DataDigestError { slot } => {
                    self.damaged += 1;
                    conn.complete(slot, Status::TRANSIENT_TRANSPORT_ERROR, 0);
                }
                Received::TermReq { .. } => {
                    self.close(index);
                    return Ok(());
                }
            }
            input = rest;
        }
    }

    /// The host has a new association: the ones before it end.
    fn replace_older(&mut self, index: usize) {
        if self.fencing {
            for older in 0..index {
                self.close(older);
            }
        }
    }

    pub fn close(&mut self, index: usize) {
        let association = &mut self.associations[index];
        association.closed = true;
        association.stalled = None;
        association.hungry.clear();
        if let Phase::Queue(conn) = &mut association.phase {
            // Nobody started these: the driver has them, as far as the connection knows.
            for slot in association.ready.drain(..) {
                conn.complete(slot, Status::ABORTED_SQ_DELETION, 0);
            }
            conn.close(|_| {});
            let executing: Vec<_> = self
                .backend
                .iter()
                .filter(|op| op.association == association.id)
                .map(|op| op.slot)
                .collect();
            for (slot, buffer) in association.buffers.iter_mut().enumerate() {
                if !executing.contains(&SlotId(slot as u16))
                    && let Some(buffer) = buffer.take()
                {
                    self.pool.give(buffer);
                }
            }
            // Reads that waited for a buffer were the driver's as well.
            let waiting: Vec<_> = conn
                .live_slots()
                .map(|(slot, _)| slot)
                .filter(|slot| !executing.contains(slot))
                .collect();
            for slot in waiting {
                conn.complete(slot, Status::ABORTED_SQ_DELETION, 0);
            }
        }
    }

    fn at_rest(association: &Association) -> bool {
        match &association.phase {
            Phase::Handshake(_) => true,
            Phase::Queue(conn) => association.closed && conn.is_idle(),
        }
    }

    /// Gives buffers to those that wait and starts what can start. Returns whether anything happened.
    pub fn advance(&mut self) -> bool {
        let mut busy = false;
        for index in 0..self.associations.len() {
            let fenced = self.fencing && !self.associations[..index].iter().all(Self::at_rest);
            let association = &mut self.associations[index];
            let Phase::Queue(conn) = &mut association.phase else {
                continue;
            };
            while let Some(&slot) = association.hungry.front() {
                let Some(buffer) = self.pool.take(false) else {
                    self.pool_dry += 1;
                    break;
                };
                association.hungry.pop_front();
                association.buffers[slot.index()] = Some(buffer);
                match conn.transfer(slot) {
                    Transfer::FromHost(_) => conn.request_data(slot),
                    _ => association.ready.push_back(slot),
                }
                busy = true;
            }
            if !fenced {
                for slot in association.ready.drain(..) {
                    self.backend.push(BackendOp {
                        association: association.id,
                        slot,
                        applied: false,
                    });
                    busy = true;
                }
            }
        }
        busy
    }

    /// Lets the backend do something to one of its operations, the order being its own.
    pub fn backend_step(&mut self, rng: &mut Rng) -> bool {
        if self.backend.is_empty() {
            return false;
        }
        let at = rng.below(self.backend.len());
        let op = &mut self.backend[at];
        let id = op.association;
        let association = self
            .associations
            .iter_mut()
            .find(|a| a.id == id)
            .expect("associations with operations stay");
        let Phase::Queue(conn) = &mut association.phase else {
            return false;
        };
        let sqe = *conn.command(op.slot);
        let start = sqe.cdw10.get() as usize * BLOCK_BYTES;
        let bytes = sqe.cdw12.get() as usize * BLOCK_BYTES;
        let slot = op.slot;
        if !op.applied {
            op.applied = true;
            if let Some(buffer) = association.buffers[slot.index()] {
                let buffer = &mut self.pool.buffers[buffer][..bytes];
                match sqe.opcode {
                    IoOpcode::WRITE => self.disk[start..start + bytes].copy_from_slice(buffer),
                    _ => buffer.copy_from_slice(&self.disk[start..start + bytes]),
                }
            }
            return true;
        }
        self.backend.swap_remove(at);
        if sqe.opcode == IoOpcode::READ {
            conn.complete_with_data(slot, bytes as u32, 0);
        } else {
            conn.complete(slot, Status::SUCCESS, 0);
        }
        if association.closed
            && let Some(buffer) = association.buffers[slot.index()].take()
        {
            self.pool.give(buffer);
        }
        true
    }

    /// Puts up to `pdus` PDUs of association `index` on the wire.
    pub fn transmit(&mut self, index: usize, pdus: usize) -> bool {
        let association = &mut self.associations[index];
        let Phase::Queue(conn) = &mut association.phase else {
            return false;
        };
        let mut header = [0; TX_HEADER_BYTES];
        let mut sent = false;
        for _ in 0..pdus {
            let Some(pdu) = conn.poll_transmit(&mut header) else {
                break;
            };
            sent = true;
            let wire = &mut association.outbound;
            wire.extend_from_slice(&header[..usize::from(pdu.header_bytes)]);
            if let Some(payload) = pdu.payload {
                let buffer =
                    association.buffers[payload.slot.index()].expect("a read has a buffer");
                let start = payload.offset as usize;
                let data = &self.pool.buffers[buffer][start..start + payload.len as usize];
                wire.extend_from_slice(data);
                if payload.digest {
                    wire.extend_from_slice(&Crc::of(data).to_wire());
                }
            }
            if let Some(slot) = pdu.finishes
                && let Some(buffer) = association.buffers[slot.index()].take()
            {
                self.pool.give(buffer);
            }
        }
        sent
    }

    /// Abort of a command on the newest association.
    pub fn abort(&mut self, cid: Cid) {
        let Some(association) = self.associations.last_mut() else {
            return;
        };
        let Phase::Queue(conn) = &mut association.phase else {
            return;
        };
        let slot = match conn.abort(cid) {
            AbortOutcome::Waiting(slot) => slot,
            AbortOutcome::Executing(slot)
                if association.ready.contains(&slot) || association.hungry.contains(&slot) =>
            {
                slot
            }
            // The backend has it.
            AbortOutcome::Executing(_) | AbortOutcome::NotFound => return,
        };
        association.ready.retain(|s| *s != slot);
        association.hungry.retain(|s| *s != slot);
        if association.stalled == Some(slot) {
            association.stalled = None;
        }
        conn.complete(slot, Status::ABORT_REQUESTED, 0);
        self.aborted += 1;
    }

    /// Ended associations that nothing belongs to any more go.
    pub fn sweep(&mut self) {
        for index in 0..self.associations.len() {
            let association = &self.associations[index];
            if association.inbound_ended && association.inbound.is_empty() && !association.closed {
                self.close(index);
            }
        }
        self.associations
            .retain(|a| !(a.closed && a.inbound_ended && Self::at_rest(a)));
    }

    /// The termination request, if one is due, then the end.
    pub fn terminate(&mut self, index: usize) {
        self.close(index);
        self.transmit(index, 2);
        let association = &mut self.associations[index];
        if let Phase::Handshake(handshake) = &mut association.phase {
            association.outbound.extend(handshake.take_output());
        }
    }

    pub fn check_at_rest(&self, app: &App) -> Result<(), String> {
        if self.pool.free.len() != self.pool.buffers.len() {
            return Err(format!(
                "{} of {} buffers are lost",
                self.pool.buffers.len() - self.pool.free.len(),
                self.pool.buffers.len()
            ));
        }
        if !self.backend.is_empty() {
            return Err("the backend is still at it".into());
        }
        for association in &self.associations {
            if let Phase::Queue(conn) = &association.phase
                && !conn.is_idle()
            {
                return Err(format!(
                    "association {} has {} commands",
                    association.id,
                    conn.in_flight()
                ));
            }
        }
        for block in 0..BLOCKS {
            app.check(
                block,
                &self.disk[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES],
            )?;
        }
        Ok(())
    }

    pub fn describe(&self) -> String {
        let mut text = format!(
            "free buffers {}, backend {}\n",
            self.pool.free.len(),
            self.backend.len()
        );
        for a in &self.associations {
            let queue = match &a.phase {
                Phase::Handshake(_) => "handshake".to_string(),
                Phase::Queue(conn) => format!("{:?}", conn.live_slots().collect::<Vec<_>>()),
            };
            text += &format!(
                "association {}: closed {} ended {} inbound {} outbound {} stalled {:?} hungry {:?} ready {:?} {queue}\n",
                a.id,
                a.closed,
                a.inbound_ended,
                a.inbound.len(),
                a.outbound.len(),
                a.stalled,
                a.hungry,
                a.ready
            );
        }
        text
    }
}
