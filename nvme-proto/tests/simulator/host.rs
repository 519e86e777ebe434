//! The host's driver: one connection at a time, its operations by slot, and what happens to them when the connection goes.

use crate::app::{App, BLOCK_BYTES, Kind, Op, Trouble};
use crate::rng::Rng;
use nvme_proto::digest::Crc;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::host::{HostLimits, HostReceived};
use nvme_proto::tcp::{HostConn, HostHandshake, HostRequest, TX_HEADER_BYTES, TcpParams};
use nvme_proto::violation::Violation;
use nvme_proto::wire::fabrics::ConnectData;
use nvme_proto::wire::{Cid, FabricsType, IoOpcode, Opcode, Sqe, Status};
use zerocopy::IntoBytes;

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    Yes,
    /// It ended; `true`: because of a rule that the other side broke.
    No {
        violation: Option<Violation>,
    },
}

pub struct Host {
    state: State,
}

#[allow(clippy::large_enum_variant)] // one of it in the program
enum State {
    Down,
    Handshake {
        handshake: HostHandshake,
        limits: QueueLimits,
    },
    Up(Up),
}

struct Up {
    conn: HostConn,
    /// The operation in each slot.
    ops: Vec<Option<Op>>,
    buffers: Vec<Vec<u8>>,
    connect: Option<SlotId>,
}

impl Host {
    pub fn new() -> Self {
        Self { state: State::Down }
    }

    /// Opens a connection; returns what is to be sent first.
    pub fn open(&mut self, request: HostRequest, limits: QueueLimits) -> Vec<u8> {
        let handshake = HostHandshake::new(request);
        let first = handshake.request().to_vec();
        self.state = State::Handshake { handshake, limits };
        first
    }

    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Down)
    }

    /// Both digests protect what is on the wire from here on.
    pub fn is_protected(&self, params: &HostRequest) -> bool {
        matches!(&self.state, State::Up(up) if up.connect.is_none())
            && params.header_digest
            && params.data_digest
    }

    /// The connection is gone: everything open is held.
    pub fn down(&mut self, app: &mut App) -> Result<(), String> {
        let State::Up(mut up) = core::mem::replace(&mut self.state, State::Down) else {
            return Ok(());
        };
        let mut lost = Vec::new();
        up.conn.close(|slot| lost.push(slot));
        if !up.conn.is_idle() {
            return Err("a closed host connection still has commands".into());
        }
        for slot in lost {
            if let Some(op) = up.ops[slot.index()].take() {
                app.failed(op, Trouble::ConnectionLost)?;
            }
        }
        if up.ops.iter().any(Option::is_some) {
            return Err("close did not name every open command".into());
        }
        Ok(())
    }

    /// Submits one operation if the connection takes it.
    pub fn submit(&mut self, app: &mut App, rng: &mut Rng, new: bool) -> bool {
        let State::Up(up) = &mut self.state else {
            return false;
        };
        if up.connect.is_some() {
            return false;
        }
        let Some(mut op) = app.next(rng, new) else {
            return false;
        };
        let mut sqe = Sqe::new(match op.kind {
            Kind::Read => IoOpcode::READ,
            Kind::Write => IoOpcode::WRITE,
            Kind::Flush => IoOpcode::FLUSH,
        });
        sqe.cdw10.set(op.slba as u32);
        sqe.cdw12.set(op.blocks as u32);
        let bytes = op.bytes() as u32;
        let transfer = match op.kind {
            Kind::Read => Transfer::ToHost(bytes),
            // Now and then fetched although the capsule would have taken it.
            Kind::Write if rng.chance(70) => up.conn.write_transfer(&sqe, bytes),
            Kind::Write => Transfer::FromHost(bytes),
            Kind::Flush => Transfer::None,
        };
        match up.conn.submit(&sqe, transfer) {
            Ok(slot) => {
                up.buffers[slot.index()] = match op.kind {
                    Kind::Write => op.data(),
                    _ => vec![0xdd; op.bytes()],
                };
                app.submitted(&mut op);
                up.ops[slot.index()] = Some(op);
                true
            }
            Err(_) => {
                app.put_back(op);
                false
            }
        }
    }

    /// CID of a random open operation.
    pub fn random_cid(&self, rng: &mut Rng) -> Option<Cid> {
        let State::Up(up) = &self.state else {
            return None;
        };
        let open: Vec<_> = up
            .conn
            .live_slots()
            .filter(|slot| up.ops[slot.index()].is_some())
            .collect();
        (!open.is_empty()).then(|| up.conn.command(rng.pick(&open)).cid())
    }

    /// Puts up to `pdus` PDUs on the wire.
    pub fn transmit(&mut self, pdus: usize, wire: &mut Vec<u8>) -> bool {
        let State::Up(up) = &mut self.state else {
            return false;
        };
        let mut header = [0; TX_HEADER_BYTES];
        let mut sent = false;
        for _ in 0..pdus {
            let Some(pdu) = up.conn.poll_transmit(&mut header) else {
                break;
            };
            sent = true;
            wire.extend_from_slice(&header[..usize::from(pdu.header_bytes)]);
            if let Some(payload) = pdu.payload {
                let start = payload.offset as usize;
                let data = &up.buffers[payload.slot.index()][start..start + payload.len as usize];
                wire.extend_from_slice(data);
                if payload.digest {
                    wire.extend_from_slice(&Crc::of(data).to_wire());
                }
            }
        }
        sent
    }

    pub fn receive(
        &mut self,
        mut input: &[u8],
        app: &mut App,
        rng: &mut Rng,
    ) -> Result<Alive, String> {
        if let State::Handshake { handshake, limits } = &mut self.state {
            let (taken, params) = match handshake.receive(input) {
                Ok(result) => result,
                Err(violation) => {
                    return Ok(Alive::No {
                        violation: Some(violation),
                    });
                }
            };
            input = &input[taken..];
            let Some(params) = params else {
                return Ok(Alive::Yes);
            };
            let limits = *limits;
            self.state = State::Up(Up::new(params, limits));
        }
        match &mut self.state {
            State::Up(up) => up.receive(input, app, rng),
            _ => Ok(Alive::Yes),
        }
    }
}

impl Up {
    fn new(params: TcpParams, limits: QueueLimits) -> Self {
        let mut conn = HostConn::new(
            params,
            HostLimits {
                depth: limits.depth,
                in_capsule_bytes: limits.in_capsule_bytes,
                flow_control: limits.flow_control,
                admin: false,
            },
        );
        let mut buffers = vec![Vec::new(); conn.capacity()];
        let mut sqe = Sqe::new(Opcode::FABRICS);
        sqe.as_mut_bytes()[4] = FabricsType::CONNECT.0;
        let slot = conn
            .submit(&sqe, Transfer::InCapsule(ConnectData::SIZE as u32))
            .expect("a fresh queue has room");
        buffers[slot.index()] = vec![0x11; ConnectData::SIZE];
        Self {
            ops: vec![None; conn.capacity()],
            conn,
            buffers,
            connect: Some(slot),
        }
    }

    fn receive(&mut self, mut input: &[u8], app: &mut App, rng: &mut Rng) -> Result<Alive, String> {
        loop {
            if rng.chance(50)
                && let Some(pending) = self.conn.pending_payload()
            {
                let (now, rest) = input.split_at(input.len().min(pending.len as usize));
                let start = pending.offset as usize;
                self.buffers[pending.slot.index()][start..start + now.len()].copy_from_slice(now);
                self.conn
                    .payload_received(now.len() as u32, pending.crc.map(|crc| crc.and(now)));
                input = rest;
            }
            let (taken, received) = match self.conn.receive(input) {
                Ok(received) => received,
                Err(violation) => {
                    return Ok(Alive::No {
                        violation: Some(violation),
                    });
                }
            };
            match received {
                HostReceived::NeedMore => return Ok(Alive::Yes),
                HostReceived::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let start = offset as usize;
                    self.buffers[slot.index()][start..start + range.len()]
                        .copy_from_slice(&input[range]);
                }
                HostReceived::Complete {
                    slot,
                    cqe,
                    data_bytes,
                    digest_error,
                } => {
                    self.complete(slot, cqe.status(), data_bytes as usize, digest_error, app)?;
                }
                HostReceived::TermReq { .. } => return Ok(Alive::No { violation: None }),
            }
            input = &input[taken..];
        }
    }

    fn complete(
        &mut self,
        slot: SlotId,
        status: Status,
        moved: usize,
        damaged: bool,
        app: &mut App,
    ) -> Result<(), String> {
        if self.connect == Some(slot) {
            self.connect = None;
            return if status.is_success() {
                Ok(())
            } else {
                Err(format!("Connect failed: {status}"))
            };
        }
        let op = self.ops[slot.index()]
            .take()
            .ok_or("a completion for a slot without an operation")?;
        let data = core::mem::take(&mut self.buffers[slot.index()]);
        if damaged || status.is(Status::TRANSIENT_TRANSPORT_ERROR) {
            return app.failed(op, Trouble::Damaged);
        }
        if status.is(Status::ABORT_REQUESTED) {
            return app.failed(op, Trouble::Aborted);
        }
        if !status.is_success() {
            return Err(format!("{op:?} failed: {status}"));
        }
        if moved != op.blocks * BLOCK_BYTES {
            return Err(format!("{op:?} moved {moved} bytes"));
        }
        app.succeeded(op, &data)
    }
}
