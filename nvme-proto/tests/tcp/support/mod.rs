//! A host and a controller wired together in memory, each with the simplest driver there can be: one buffer for each slot.
#![allow(dead_code)] // each test program uses its own part

pub mod raw;

use nvme_proto::digest::Crc;
use nvme_proto::queue::controller::Stage;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::host::{HostLimits, HostReceived, SubmitError};
use nvme_proto::tcp::{ControllerConn, HostConn, Pda, TX_HEADER_BYTES, TcpParams, TxHeader, TxPdu};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cqe, IoOpcode, Sqe, Status};
use std::collections::VecDeque;

/// Bytes of a logical block of the pretended namespace.
pub const BLOCK_BYTES: usize = 512;

/// No digests, no alignment, one R2T at a time.
pub const PLAIN: TcpParams = TcpParams {
    header_digest: false,
    data_digest: false,
    pda: Pda::DWORD,
    receive_pda: Pda::DWORD,
    max_h2c_data_bytes: 131_072,
    max_r2t: 1,
};

/// An I/O queue with everything roomy.
pub const LIMITS: QueueLimits = QueueLimits {
    depth: 16,
    in_capsule_bytes: 8192,
    max_transfer_bytes: 1 << 20,
    r2t_window_bytes: 1 << 20,
    flow_control: true,
    success_flag: true,
    admin: false,
};

/// The same parameters as the other side sees them.
pub fn mirrored(params: TcpParams) -> TcpParams {
    TcpParams {
        pda: params.receive_pda,
        receive_pda: params.pda,
        ..params
    }
}

pub fn host_limits(limits: QueueLimits) -> HostLimits {
    HostLimits {
        depth: limits.depth,
        in_capsule_bytes: limits.in_capsule_bytes,
        flow_control: limits.flow_control,
        admin: limits.admin,
    }
}

/// A Read or Write of `blocks` at `slba`.
pub fn block_command(opcode: nvme_proto::wire::Opcode, slba: u32, blocks: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode);
    sqe.nsid.set(1);
    sqe.cdw10.set(slba);
    sqe.cdw12.set(blocks - 1);
    sqe
}

/// Puts a PDU on the wire.
pub fn put(wire: &mut Vec<u8>, pdu: &TxPdu, header: &TxHeader, buffers: &[Vec<u8>]) {
    wire.extend_from_slice(&header[..usize::from(pdu.header_bytes)]);
    if let Some(payload) = pdu.payload {
        let start = payload.offset as usize;
        let data = &buffers[payload.slot.index()][start..start + payload.len as usize];
        wire.extend_from_slice(data);
        if payload.digest {
            wire.extend_from_slice(&Crc::of(data).to_wire());
        }
    }
}

/// The controller's side: executes reads, writes and flushes on a memory at once.
pub struct Target {
    pub conn: ControllerConn,
    pub buffers: Vec<Vec<u8>>,
    pub disk: Vec<u8>,
    /// Commands that were refused by the transport.
    pub refused: Vec<Violation>,
    pub digest_errors: usize,
    /// Grant buffers and execute only when told to.
    pub manual: bool,
}

impl Target {
    pub fn new(params: TcpParams, limits: QueueLimits, blocks: usize) -> Self {
        Self {
            conn: ControllerConn::new(params, limits),
            buffers: vec![Vec::new(); usize::from(limits.depth)],
            disk: vec![0; blocks * BLOCK_BYTES],
            refused: Vec::new(),
            digest_errors: 0,
            manual: false,
        }
    }

    /// Takes in all of `input`. Every other payload is received "straight into the buffer".
    pub fn receive(&mut self, mut input: &[u8]) -> Result<Option<Received>, Violation> {
        let mut last = None;
        loop {
            if let Some(pending) = self.conn.pending_payload()
                && pending.len.is_multiple_of(2)
            {
                let bytes = input.len().min(pending.len as usize);
                let (direct, rest) = input.split_at(bytes);
                let start = pending.offset as usize;
                self.buffers[pending.slot.index()][start..start + bytes].copy_from_slice(direct);
                self.conn
                    .payload_received(bytes as u32, pending.crc.map(|crc| crc.and(direct)));
                input = rest;
            }
            let (taken, received) = self.conn.receive(input)?;
            match &received {
                Received::NeedMore => {
                    assert_eq!(taken, input.len(), "all input is used");
                    return Ok(last);
                }
                Received::Command { slot } => self.command(*slot),
                Received::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let start = *offset as usize;
                    self.buffers[slot.index()][start..start + range.len()]
                        .copy_from_slice(&input[range.clone()]);
                }
                Received::DataReady { slot } if !self.manual => self.execute(*slot),
                Received::DataReady { .. } => {}
                Received::DataDigestError { slot } => {
                    self.digest_errors += 1;
                    self.conn
                        .complete(*slot, Status::TRANSIENT_TRANSPORT_ERROR, 0);
                }
                Received::Refused { violation, .. } => self.refused.push(*violation),
                Received::TermReq { .. } => {}
            }
            last = Some(received);
            input = &input[taken..];
        }
    }

    fn command(&mut self, slot: SlotId) {
        let transfer = self.conn.transfer(slot);
        self.buffers[slot.index()] = vec![0xee; transfer.bytes() as usize];
        match transfer {
            Transfer::InCapsule(_) => {}
            _ if self.manual => {}
            Transfer::FromHost(_) => self.conn.request_data(slot),
            Transfer::None | Transfer::ToHost(_) => self.execute(slot),
        }
    }

    /// Executes the command in `slot` and completes it.
    pub fn execute(&mut self, slot: SlotId) {
        let sqe = *self.conn.command(slot);
        let start = sqe.cdw10.get() as usize * BLOCK_BYTES;
        let bytes = (sqe.cdw12.get() as usize + 1) * BLOCK_BYTES;
        let buffer = &mut self.buffers[slot.index()];
        match sqe.opcode {
            IoOpcode::WRITE => {
                self.disk[start..start + bytes].copy_from_slice(buffer);
                self.conn.complete(slot, Status::SUCCESS, 0);
            }
            IoOpcode::READ => {
                buffer.copy_from_slice(&self.disk[start..start + bytes]);
                self.conn.complete_with_data(slot, bytes as u32, 0);
            }
            IoOpcode::FLUSH => self.conn.complete(slot, Status::SUCCESS, 0),
            _ => self.conn.complete(slot, Status::INVALID_OPCODE.dnr(), 0),
        }
    }

    pub fn transmit(&mut self, wire: &mut Vec<u8>) -> usize {
        let mut header = [0; TX_HEADER_BYTES];
        let mut pdus = 0;
        while let Some(pdu) = self.conn.poll_transmit(&mut header) {
            put(wire, &pdu, &header, &self.buffers);
            pdus += 1;
        }
        pdus
    }

    pub fn executing(&self) -> Vec<SlotId> {
        self.conn
            .live_slots()
            .filter(|(_, stage)| *stage == Stage::Executing)
            .map(|(slot, _)| slot)
            .collect()
    }
}

/// A command that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub slot: SlotId,
    pub cqe: Cqe,
    pub data_bytes: u32,
    pub digest_error: bool,
    pub data: Vec<u8>,
}

/// The host's side.
pub struct Initiator {
    pub conn: HostConn,
    pub buffers: Vec<Vec<u8>>,
    pub done: VecDeque<Done>,
}

impl Initiator {
    pub fn new(params: TcpParams, limits: HostLimits) -> Self {
        let conn = HostConn::new(params, limits);
        Self {
            buffers: vec![Vec::new(); conn.capacity()],
            conn,
            done: VecDeque::new(),
        }
    }

    pub fn write(&mut self, slba: u32, data: &[u8]) -> Result<SlotId, SubmitError> {
        let sqe = block_command(IoOpcode::WRITE, slba, (data.len() / BLOCK_BYTES) as u32);
        let slot = self
            .conn
            .submit(&sqe, self.conn.write_transfer(&sqe, data.len() as u32))?;
        self.buffers[slot.index()] = data.to_vec();
        Ok(slot)
    }

    pub fn read(&mut self, slba: u32, blocks: u32) -> Result<SlotId, SubmitError> {
        let bytes = blocks * BLOCK_BYTES as u32;
        let slot = self.conn.submit(
            &block_command(IoOpcode::READ, slba, blocks),
            Transfer::ToHost(bytes),
        )?;
        self.buffers[slot.index()] = vec![0xdd; bytes as usize];
        Ok(slot)
    }

    pub fn receive(&mut self, mut input: &[u8]) -> Result<Option<HostReceived>, Violation> {
        let mut last = None;
        loop {
            if let Some(pending) = self.conn.pending_payload()
                && pending.len.is_multiple_of(2)
            {
                let bytes = input.len().min(pending.len as usize);
                let (direct, rest) = input.split_at(bytes);
                let start = pending.offset as usize;
                self.buffers[pending.slot.index()][start..start + bytes].copy_from_slice(direct);
                self.conn
                    .payload_received(bytes as u32, pending.crc.map(|crc| crc.and(direct)));
                input = rest;
            }
            let (taken, received) = self.conn.receive(input)?;
            match &received {
                HostReceived::NeedMore => {
                    assert_eq!(taken, input.len(), "all input is used");
                    return Ok(last);
                }
                HostReceived::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let start = *offset as usize;
                    self.buffers[slot.index()][start..start + range.len()]
                        .copy_from_slice(&input[range.clone()]);
                }
                &HostReceived::Complete {
                    slot,
                    cqe,
                    data_bytes,
                    digest_error,
                } => {
                    let data = core::mem::take(&mut self.buffers[slot.index()]);
                    self.done.push_back(Done {
                        slot,
                        cqe,
                        data_bytes,
                        digest_error,
                        data,
                    });
                }
                HostReceived::TermReq { .. } => {}
            }
            last = Some(received);
            input = &input[taken..];
        }
    }

    pub fn transmit(&mut self, wire: &mut Vec<u8>) -> usize {
        let mut header = [0; TX_HEADER_BYTES];
        let mut pdus = 0;
        while let Some(pdu) = self.conn.poll_transmit(&mut header) {
            put(wire, &pdu, &header, &self.buffers);
            pdus += 1;
        }
        pdus
    }
}

/// Both, and the wires between them.
pub struct Pair {
    pub host: Initiator,
    pub target: Target,
}

impl Pair {
    /// `params` as the controller sees them.
    pub fn new(params: TcpParams, limits: QueueLimits) -> Self {
        Self {
            host: Initiator::new(mirrored(params), host_limits(limits)),
            target: Target::new(params, limits, 4096),
        }
    }

    /// Moves bytes until nobody has anything to say, in pieces of at most `chunk` bytes.
    pub fn run(&mut self, chunk: usize) {
        loop {
            let (mut to_target, mut to_host) = (Vec::new(), Vec::new());
            self.host.transmit(&mut to_target);
            self.target.transmit(&mut to_host);
            if to_target.is_empty() && to_host.is_empty() {
                return;
            }
            for piece in to_target.chunks(chunk) {
                self.target
                    .receive(piece)
                    .expect("the host keeps to the rules");
            }
            for piece in to_host.chunks(chunk) {
                self.host
                    .receive(piece)
                    .expect("the controller keeps to the rules");
            }
        }
    }
}

/// Bytes that tell blocks and runs apart.
pub fn pattern(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}
