//! A controller's connection against a host that sends anything, and a driver that answers in any order.
//!
//! The input is a program: PDUs that are nearly right, raw bytes, and what the driver does in between. A model checks each event.

use crate::input::Input;
use crate::raw::{self, Raw};
use nvme_proto::digest::Crc;
use nvme_proto::queue::controller::{AbortOutcome, Stage};
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::decoder::{Event, PduDecoder};
use nvme_proto::tcp::pdu::{PduType, TransferHeader};
use nvme_proto::tcp::{ControllerConn, TX_HEADER_BYTES, TcpParams, TxPdu};
use nvme_proto::violation::Outcome;
use nvme_proto::wire::{Cid, IoOpcode, Opcode, SglDescriptor, Sqe, Status};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

/// A command as the driver knows it.
struct Command {
    cid: Cid,
    transfer: Transfer,
    received: u32,
    /// All data came, or none were to come.
    ready: bool,
    granted: bool,
    completed: bool,
    requested: u32,
}

struct OpenR2t {
    slot: SlotId,
    cid: Cid,
    next: u32,
    end: u32,
}

struct Model {
    params: TcpParams,
    conn: ControllerConn,
    /// What the host sent and was not delivered yet.
    wire: Vec<u8>,
    commands: BTreeMap<SlotId, Command>,
    r2ts: Vec<OpenR2t>,
    /// A rule was broken or the host terminated: nothing but one termination request may follow.
    over: bool,
    term_reqs: usize,
    next_cid: u16,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (params, limits) = (input.params(), input.limits());
    let mut model = Model::new(params, limits);
    while !input.is_empty() {
        model.step(&mut input);
    }
    model.finish();
}

impl Model {
    fn new(params: TcpParams, limits: QueueLimits) -> Self {
        let mut conn = ControllerConn::new(params, limits);
        conn.accept_connect(Cid(0xffff), 1);
        Self {
            params,
            conn,
            wire: Vec::new(),
            commands: BTreeMap::new(),
            r2ts: Vec::new(),
            over: false,
            term_reqs: 0,
            next_cid: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 => {
                let n = usize::from(input.byte());
                self.wire.extend_from_slice(input.bytes(n));
            }
            1 | 2 => self.send_capsule(input),
            3 | 4 => self.send_data(input),
            5 => self
                .wire
                .extend(raw::term_req(2, input.u16(), input.u32(), &[0; 24])),
            6 => {
                let n = usize::from(input.u16());
                self.deliver(n, input.byte() & 1 != 0);
            }
            7 => self.grant(input),
            8 => self.complete(input),
            9 => self.abort(Cid(u16::from(input.byte()))),
            _ => self.transmit(usize::from(input.byte())),
        }
        assert!(self.conn.in_flight() >= self.commands.len());
    }

    /// Changes a byte of the header, mostly none.
    fn twist(pdu: Raw, input: &mut Input<'_>) -> Vec<u8> {
        let at = usize::from(input.byte());
        match at {
            0..72 if at < pdu.header.len() => {
                let byte = pdu.header[at] ^ input.byte();
                pdu.with(at, &[byte]).bytes()
            }
            72 => {
                let mut pdu = pdu;
                pdu.header_digest_error = input.u32();
                pdu.bytes()
            }
            73 => {
                let mut pdu = pdu;
                pdu.data_digest_error = input.u32();
                pdu.bytes()
            }
            _ => pdu.bytes(),
        }
    }

    fn send_capsule(&mut self, input: &mut Input<'_>) {
        let opcode = input.pick(&[
            IoOpcode::READ,
            IoOpcode::WRITE,
            IoOpcode::FLUSH,
            IoOpcode::DATASET_MANAGEMENT,
            Opcode::FABRICS,
            Opcode(0xc3),
        ]);
        let length = u32::from(input.u16()) % 20_000;
        let mut sqe = Sqe::new(opcode);
        // Mostly a fresh CID.
        let choice = input.byte();
        sqe.cid.set(if choice < 8 {
            u16::from(choice)
        } else {
            self.next_cid
        });
        self.next_cid = self.next_cid.wrapping_add(1);
        sqe.nsid.set(u32::from(input.byte() % 3));
        let in_capsule = input.byte() & 1 != 0;
        sqe.dptr = if in_capsule {
            SglDescriptor::in_capsule(length)
        } else {
            SglDescriptor::transport(length)
        };
        let data = vec![choice; if in_capsule { length as usize } else { 0 }];
        self.wire
            .extend(Self::twist(raw::capsule(&self.params, &sqe, &data), input));
    }

    fn send_data(&mut self, input: &mut Input<'_>) {
        if self.r2ts.is_empty() {
            return;
        }
        let at = usize::from(input.byte()) % self.r2ts.len();
        let max = self.params.max_h2c_data_bytes;
        let r2t = &mut self.r2ts[at];
        let left = r2t.end - r2t.next;
        let bytes = if input.byte() & 1 != 0 {
            left
        } else {
            u32::from(input.u16()).clamp(1, left)
        }
        .min(max);
        let last = if bytes == left { raw::LAST } else { 0 };
        let pdu = raw::h2c_data(
            &self.params,
            last,
            r2t.cid.0,
            r2t.slot.0,
            r2t.next,
            &vec![0x77; bytes as usize],
        );
        r2t.next += bytes;
        if bytes == left {
            self.r2ts.remove(at);
        }
        self.wire.extend(Self::twist(pdu, input));
    }

    fn payload(&mut self, slot: SlotId, offset: u32, bytes: usize) {
        let command = self
            .commands
            .get_mut(&slot)
            .expect("payload for a slot without a command");
        assert!(
            !command.completed && !command.ready,
            "payload nobody waits for"
        );
        assert_eq!(offset, command.received, "payload comes in order");
        command.received += bytes as u32;
        assert!(
            command.received <= command.transfer.bytes_from_host(),
            "payload beyond the buffer"
        );
        if matches!(command.transfer, Transfer::FromHost(_)) {
            assert!(
                command.received <= command.requested,
                "payload beyond what was asked for"
            );
        }
    }

    fn deliver(&mut self, n: usize, direct: bool) {
        let n = n.min(self.wire.len());
        let bytes: Vec<u8> = self.wire.drain(..n).collect();
        let mut input = &bytes[..];
        if direct && let Some(pending) = self.conn.pending_payload() {
            let (now, rest) = input.split_at(input.len().min(pending.len as usize));
            if !now.is_empty() {
                self.conn
                    .payload_received(now.len() as u32, pending.crc.map(|crc| crc.and(now)));
                self.payload(pending.slot, pending.offset, now.len());
            }
            input = rest;
        }
        loop {
            let (taken, received) = match self.conn.receive(input) {
                Ok(received) => received,
                Err(violation) => {
                    assert!(!self.over, "a violation after the end");
                    assert!(
                        !matches!(violation.outcome(), Outcome::Status(_)),
                        "{violation} ends no connection"
                    );
                    self.over = true;
                    return;
                }
            };
            match received {
                Received::NeedMore => {
                    assert_eq!(taken, input.len());
                    return;
                }
                _ if self.over => panic!("{received:?} after the end"),
                Received::Command { slot } => {
                    let transfer = self.conn.transfer(slot);
                    let cid = self.conn.command(slot).cid();
                    assert!(
                        self.commands.values().all(|c| c.cid != cid),
                        "two commands with one CID"
                    );
                    let ready = transfer.bytes_from_host() == 0;
                    let command = Command {
                        cid,
                        transfer,
                        received: 0,
                        ready,
                        granted: false,
                        completed: false,
                        requested: 0,
                    };
                    assert!(
                        self.commands.insert(slot, command).is_none(),
                        "the slot is taken"
                    );
                }
                Received::Refused { violation, .. } => assert!(violation.status().is_some()),
                Received::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    assert!(range.end <= input.len() && !range.is_empty());
                    self.payload(slot, offset, range.len());
                }
                Received::DataReady { slot } => {
                    let command = self.commands.get_mut(&slot).expect("a command");
                    assert!(
                        !command.ready && command.received == command.transfer.bytes_from_host()
                    );
                    command.ready = true;
                }
                Received::DataDigestError { slot } => {
                    assert!(self.params.data_digest);
                    let command = self.commands.get_mut(&slot).expect("a command");
                    assert!(!command.ready && !command.completed);
                    command.completed = true;
                    self.conn
                        .complete(slot, Status::TRANSIENT_TRANSPORT_ERROR, 0);
                }
                Received::TermReq { .. } => self.over = true,
            }
            input = &input[taken..];
        }
    }

    fn slots(&self, which: impl Fn(&Command) -> bool) -> Vec<SlotId> {
        self.commands
            .iter()
            .filter(|(_, c)| which(c))
            .map(|(slot, _)| *slot)
            .collect()
    }

    fn grant(&mut self, input: &mut Input<'_>) {
        let waiting = self
            .slots(|c| matches!(c.transfer, Transfer::FromHost(_)) && !c.granted && !c.completed);
        if let Some(slot) = input.pick_any(&waiting) {
            self.conn.request_data(slot);
            self.commands.get_mut(&slot).expect("it waits").granted = true;
        }
    }

    fn complete(&mut self, input: &mut Input<'_>) {
        // Also ones that still wait for data.
        let open = self.slots(|c| !c.completed);
        let Some(slot) = input.pick_any(&open) else {
            return;
        };
        let command = self.commands.get_mut(&slot).expect("it is open");
        command.completed = true;
        let choice = input.byte();
        match command.transfer {
            Transfer::ToHost(bytes) if choice & 1 != 0 => {
                self.conn.complete_with_data(
                    slot,
                    u32::from(input.u16()).min(bytes),
                    u64::from(choice >> 7),
                );
            }
            _ => self
                .conn
                .complete(slot, Status(u16::from(choice)), u64::from(choice)),
        }
        if self.over {
            self.commands.remove(&slot);
        }
    }

    fn abort(&mut self, cid: Cid) {
        let known = self
            .commands
            .iter()
            .find(|(_, c)| c.cid == cid)
            .map(|(slot, c)| (*slot, c.ready, c.completed));
        match (self.conn.abort(cid), known) {
            (AbortOutcome::Waiting(slot), Some((known, false, false))) => {
                assert_eq!(slot, known);
                self.conn.complete(slot, Status::ABORT_REQUESTED, 0);
                let command = self.commands.get_mut(&slot).expect("known");
                command.completed = true;
                if self.over {
                    self.commands.remove(&slot);
                }
            }
            (AbortOutcome::Executing(slot), Some((known, true, false))) => assert_eq!(slot, known),
            (AbortOutcome::NotFound, None | Some((_, _, true))) => {}
            other => panic!("{other:?}"),
        }
    }

    fn transmit(&mut self, most: usize) {
        let mut header = [0; TX_HEADER_BYTES];
        for _ in 0..most {
            let Some(pdu) = self.conn.poll_transmit(&mut header) else {
                break;
            };
            let bytes = &header[..usize::from(pdu.header_bytes)];
            self.check_sent(&pdu, bytes);
        }
    }

    /// What goes out is well formed, and right.
    fn check_sent(&mut self, pdu: &TxPdu, header: &[u8]) {
        let mut wire = header.to_vec();
        if let Some(payload) = pdu.payload {
            let data = vec![0; payload.len as usize];
            wire.extend_from_slice(&data);
            if payload.digest {
                wire.extend(Crc::of(&data).to_wire());
            }
        }
        let mirrored = TcpParams {
            pda: self.params.receive_pda,
            receive_pda: self.params.pda,
            ..self.params
        };
        let mut decoder = PduDecoder::for_host(&mirrored);
        let (taken, event) = decoder.next(&wire).expect("what we send is well formed");
        let Event::Header(decoded) = event else {
            panic!("{event:?}")
        };
        if decoded.pdu_type == PduType::C2H_TERM_REQ {
            assert!(self.over);
            self.term_reqs += 1;
            assert_eq!(self.term_reqs, 1, "one termination request");
            return;
        }
        assert!(!self.over, "{:?} after the end", decoded.pdu_type);
        if decoded.pdu_type == PduType::CAPSULE_RESP {
            let cid = u16::from_le_bytes([decoded.bytes[20], decoded.bytes[21]]);
            if let Some(slot) = pdu.finishes
                && let Some(command) = self.commands.remove(&slot)
            {
                assert!(command.completed && command.cid == Cid(cid));
            }
            return;
        }
        let transfer = TransferHeader::read_from_bytes(decoded.bytes).expect("24 bytes");
        let (offset, bytes) = (transfer.offset.get(), transfer.length.get());
        if decoded.pdu_type == PduType::R2T {
            let slot = SlotId(transfer.ttag.get());
            let command = self.commands.get_mut(&slot).expect("an R2T for a command");
            assert!(command.granted && !command.completed && command.cid.0 == transfer.cccid.get());
            assert_eq!(offset, command.requested);
            command.requested += bytes;
            assert!(command.requested <= command.transfer.bytes());
            self.r2ts.push(OpenR2t {
                slot,
                cid: command.cid,
                next: offset,
                end: offset + bytes,
            });
            return;
        }
        let payload = pdu.payload.expect("C2HData carries data");
        let command = &self.commands[&payload.slot];
        assert!(command.completed && command.cid.0 == transfer.cccid.get());
        assert!(matches!(command.transfer, Transfer::ToHost(most) if payload.len <= most));
        if pdu.finishes.is_some() {
            self.commands.remove(&payload.slot);
        }
        // The data and their digest are where the header says.
        let (more, event) = decoder.next(&wire[taken..]).expect("payload");
        assert!(matches!(event, Event::Payload(_)));
        let (_, event) = decoder.next(&wire[taken + more..]).expect("the end");
        assert_eq!(event, Event::End { digest_ok: true });
    }

    /// Everything is delivered and sent; then the connection closes.
    fn finish(&mut self) {
        self.deliver(usize::MAX, false);
        self.transmit(usize::MAX);
        if self.over {
            assert!(self.term_reqs <= 1 && !self.conn.wants_transmit());
        }
        self.conn.close(|slot| {
            self.commands.remove(&slot);
        });
        let executing: Vec<_> = self.conn.live_slots().collect();
        for (slot, stage) in executing {
            assert_eq!(
                stage,
                Stage::Executing,
                "only what is executed outlives the end"
            );
            let command = self.commands.remove(&slot).expect("the driver knows it");
            assert!(!command.completed);
            self.conn.complete(slot, Status::SUCCESS, 0);
        }
        assert!(self.conn.is_idle() && self.commands.is_empty());
        self.transmit(1);
    }
}
