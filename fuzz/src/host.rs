//! A host's connection against a controller that sends anything.

use crate::input::Input;
use crate::raw::{self, LAST, Raw, SUCCESS};
use nvme_proto::digest::Crc;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::decoder::{Event, PduDecoder};
use nvme_proto::tcp::host::{HostLimits, HostReceived};
use nvme_proto::tcp::pdu::{PduType, TransferHeader};
use nvme_proto::tcp::{HostConn, TX_HEADER_BYTES, TcpParams, TxPdu};
use nvme_proto::violation::Outcome;
use nvme_proto::wire::{Cid, Cqe, IoOpcode, Sqe, Status};
use std::collections::BTreeMap;
use zerocopy::FromBytes;

struct Command {
    cid: Cid,
    transfer: Transfer,
    sent: bool,
    received: u32,
    /// End of what R2Ts that were put on the wire asked for, and what was sent of that.
    asked: u32,
    given: u32,
}

struct Model {
    params: TcpParams,
    conn: HostConn,
    wire: Vec<u8>,
    commands: BTreeMap<SlotId, Command>,
    over: bool,
    term_reqs: usize,
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

fn twist(pdu: Raw, input: &mut Input<'_>) -> Vec<u8> {
    let at = usize::from(input.byte());
    if at < pdu.header.len() {
        let byte = pdu.header[at] ^ input.byte();
        return pdu.with(at, &[byte]).bytes();
    }
    let mut pdu = pdu;
    match at {
        24 => pdu.header_digest_error = input.u32(),
        25 => pdu.data_digest_error = input.u32(),
        _ => {}
    }
    pdu.bytes()
}

impl Model {
    fn new(params: TcpParams, limits: QueueLimits) -> Self {
        let limits = HostLimits {
            depth: limits.depth,
            in_capsule_bytes: limits.in_capsule_bytes,
            flow_control: limits.flow_control,
            admin: limits.admin,
        };
        Self {
            params,
            conn: HostConn::new(params, limits),
            wire: Vec::new(),
            commands: BTreeMap::new(),
            over: false,
            term_reqs: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 => {
                let n = usize::from(input.byte());
                self.wire.extend_from_slice(input.bytes(n));
            }
            1 | 2 => self.submit(input),
            3 => self.send_response(input),
            4 | 5 => self.send_data(input),
            6 => self.send_r2t(input),
            7 => self
                .wire
                .extend(raw::term_req(3, input.u16(), input.u32(), &[0; 24])),
            8 | 9 => {
                let n = usize::from(input.u16());
                self.deliver(n, input.byte() & 1 != 0);
            }
            _ => self.transmit(usize::from(input.byte())),
        }
        assert_eq!(self.conn.in_flight(), self.commands.len());
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let bytes = u32::from(input.u16()) % 20_000;
        let mut sqe = Sqe::new(IoOpcode::WRITE);
        let transfer = match input.byte() % 4 {
            0 => Transfer::ToHost(bytes.max(1)),
            1 => Transfer::FromHost(bytes.max(1)),
            2 => self.conn.write_transfer(&sqe, bytes),
            _ => {
                sqe = Sqe::new(IoOpcode::FLUSH);
                Transfer::None
            }
        };
        if let Ok(slot) = self.conn.submit(&sqe, transfer) {
            assert!(!self.over);
            let cid = self.conn.command(slot).cid();
            assert!(self.commands.values().all(|c| c.cid != cid));
            let command = Command {
                cid,
                transfer,
                sent: false,
                received: 0,
                asked: 0,
                given: 0,
            };
            assert!(self.commands.insert(slot, command).is_none());
        }
    }

    /// A command that is open, mostly one that was sent.
    fn some_slot(&self, input: &mut Input<'_>) -> Option<SlotId> {
        let slots: Vec<_> = self.commands.keys().copied().collect();
        input.pick_any(&slots)
    }

    fn send_response(&mut self, input: &mut Input<'_>) {
        let cid = self
            .some_slot(input)
            .map_or(Cid(input.u16()), |slot| self.commands[&slot].cid);
        let cqe = Cqe::new(
            cid,
            input.u16() % 40,
            Status(u16::from(input.byte())),
            u64::from(input.byte()),
        );
        self.wire
            .extend(twist(raw::response(&self.params, &cqe), input));
    }

    fn send_data(&mut self, input: &mut Input<'_>) {
        let Some(slot) = self.some_slot(input) else {
            return;
        };
        let command = &mut self.commands.get_mut(&slot).expect("it is open");
        let left = command
            .transfer
            .bytes()
            .saturating_sub(command.asked)
            .max(1);
        let bytes = u32::from(input.u16()).clamp(1, left);
        let flags =
            if bytes == left { LAST } else { 0 } | if input.byte() & 1 != 0 { SUCCESS } else { 0 };
        let pdu = raw::c2h_data(
            &self.params,
            flags,
            command.cid.0,
            command.asked,
            &vec![0x77; bytes as usize],
        );
        // Of a read, `asked` is where the next piece starts.
        if matches!(command.transfer, Transfer::ToHost(_)) {
            command.asked += bytes;
        }
        self.wire.extend(twist(pdu, input));
    }

    fn send_r2t(&mut self, input: &mut Input<'_>) {
        let Some(slot) = self.some_slot(input) else {
            return;
        };
        let command = &mut self.commands.get_mut(&slot).expect("it is open");
        let left = command
            .transfer
            .bytes()
            .saturating_sub(command.asked)
            .max(1);
        let bytes = u32::from(input.u16()).clamp(1, left);
        let pdu = raw::r2t(
            &self.params,
            command.cid.0,
            input.u16(),
            command.asked,
            bytes,
        );
        if matches!(command.transfer, Transfer::FromHost(_)) {
            command.asked += bytes;
        }
        self.wire.extend(twist(pdu, input));
    }

    fn payload(&mut self, slot: SlotId, offset: u32, bytes: usize) {
        let command = self
            .commands
            .get_mut(&slot)
            .expect("payload for a slot without a command");
        assert!(command.sent, "payload for a command that was not sent");
        let Transfer::ToHost(all) = command.transfer else {
            panic!("payload for a command that reads nothing")
        };
        assert_eq!(offset, command.received);
        command.received += bytes as u32;
        assert!(command.received <= all, "payload beyond the buffer");
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
                HostReceived::NeedMore => {
                    assert_eq!(taken, input.len());
                    return;
                }
                _ if self.over => panic!("{received:?} after the end"),
                HostReceived::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    assert!(range.end <= input.len() && !range.is_empty());
                    self.payload(slot, offset, range.len());
                }
                HostReceived::Complete {
                    slot,
                    cqe,
                    data_bytes,
                    digest_error,
                } => {
                    let command = self
                        .commands
                        .remove(&slot)
                        .expect("a completion for an open command");
                    assert!(command.sent && command.cid == cqe.cid());
                    assert!(!digest_error || self.params.data_digest);
                    match command.transfer {
                        Transfer::ToHost(_) => assert_eq!(data_bytes, command.received),
                        _ => assert_eq!(data_bytes, command.given),
                    }
                }
                HostReceived::TermReq { .. } => self.over = true,
            }
            input = &input[taken..];
        }
    }

    fn transmit(&mut self, most: usize) {
        let mut header = [0; TX_HEADER_BYTES];
        for _ in 0..most {
            let Some(pdu) = self.conn.poll_transmit(&mut header) else {
                break;
            };
            self.check_sent(&pdu, &header[..usize::from(pdu.header_bytes)]);
        }
    }

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
        let mut decoder = PduDecoder::for_controller(&mirrored);
        let (taken, event) = decoder.next(&wire).expect("what we send is well formed");
        let Event::Header(decoded) = event else {
            panic!("{event:?}")
        };
        if decoded.pdu_type == PduType::H2C_TERM_REQ {
            assert!(self.over);
            self.term_reqs += 1;
            assert_eq!(self.term_reqs, 1, "one termination request");
            return;
        }
        assert!(!self.over, "{:?} after the end", decoded.pdu_type);
        let carried = pdu.payload.map_or(0, |payload| payload.len);
        if decoded.pdu_type == PduType::CAPSULE_CMD {
            let cid = Cid(u16::from_le_bytes([decoded.bytes[10], decoded.bytes[11]]));
            let command = self
                .commands
                .values_mut()
                .find(|c| c.cid == cid)
                .expect("it was submitted");
            assert!(!command.sent, "sent twice");
            command.sent = true;
            command.given = carried;
            assert_eq!(
                carried,
                if let Transfer::InCapsule(bytes) = command.transfer {
                    bytes
                } else {
                    0
                }
            );
        } else {
            let transfer = TransferHeader::read_from_bytes(decoded.bytes).expect("24 bytes");
            let payload = pdu.payload.expect("H2CData carries data");
            let command = self
                .commands
                .get_mut(&payload.slot)
                .expect("data of an open command");
            assert!(command.sent && command.cid.0 == transfer.cccid.get());
            assert_eq!(
                (transfer.offset.get(), transfer.length.get()),
                (payload.offset, payload.len)
            );
            assert_eq!(payload.offset, command.given);
            assert!(payload.len <= self.params.max_h2c_data_bytes);
            command.given += payload.len;
            assert!(matches!(command.transfer, Transfer::FromHost(all) if command.given <= all));
        }
        if carried > 0 {
            let (more, event) = decoder.next(&wire[taken..]).expect("payload");
            assert!(matches!(event, Event::Payload(_)));
            let (_, event) = decoder.next(&wire[taken + more..]).expect("the end");
            assert_eq!(event, Event::End { digest_ok: true });
        }
    }

    fn finish(&mut self) {
        self.deliver(usize::MAX, false);
        self.transmit(usize::MAX);
        if self.over {
            assert!(self.term_reqs <= 1 && !self.conn.wants_transmit());
        }
        self.conn.close(|slot| {
            self.commands.remove(&slot).expect("an open command");
        });
        assert!(self.conn.is_idle() && self.commands.is_empty());
        self.transmit(1);
    }
}
