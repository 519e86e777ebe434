//! What a controller can get wrong, and what a host's connection makes of it.

use crate::support::raw::{self, LAST, Raw, SUCCESS};
use crate::support::{Initiator, LIMITS, PLAIN, block_command, host_limits, pattern};
use nvme_proto::digest::Crc;
use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::tcp::host::{HostReceived, SubmitError};
use nvme_proto::tcp::pdu::{Fes, PduType};
use nvme_proto::tcp::{Pda, TX_HEADER_BYTES, TcpParams};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, Cqe, IoOpcode, Sqe, Status};

const DIGESTS: TcpParams = TcpParams {
    header_digest: true,
    data_digest: true,
    ..PLAIN
};
const FIELD: Fes = Fes::INVALID_HEADER_FIELD;
const RANGE: Fes = Fes::DATA_TRANSFER_OUT_OF_RANGE;
const SEQUENCE: Fes = Fes::PDU_SEQUENCE_ERROR;

fn host(params: TcpParams) -> Initiator {
    Initiator::new(params, host_limits(LIMITS))
}

/// A host with a read of 8192 bytes in slot 0 and a write of 16384 bytes, to be fetched, in slot 1; both sent.
fn busy(params: TcpParams) -> Initiator {
    let mut host = host(params);
    host.read(0, 16).unwrap();
    let slot = host
        .conn
        .submit(
            &block_command(IoOpcode::WRITE, 0, 32),
            Transfer::FromHost(16384),
        )
        .unwrap();
    host.buffers[slot.index()] = pattern(9, 16384);
    host.transmit(&mut Vec::new());
    host
}

fn sent(host: &mut Initiator) -> Vec<u8> {
    let mut wire = Vec::new();
    host.transmit(&mut wire);
    wire
}

fn success(cid: u16) -> Cqe {
    Cqe::new(Cid(cid), 1, Status::SUCCESS, 0)
}

/// `pdu` ends the connection of `host` with `violation` and a termination request that copies its header.
#[track_caller]
fn fatal(host: &mut Initiator, pdu: &Raw, violation: Violation, fes: Fes, fei: u32) {
    fatal_copying(host, &pdu.bytes(), violation, fes, fei, &pdu.header);
}

/// The same where the termination request copies `offender`.
#[track_caller]
fn fatal_copying(
    host: &mut Initiator,
    pdu: &[u8],
    violation: Violation,
    fes: Fes,
    fei: u32,
    offender: &[u8],
) {
    let open = host.conn.in_flight();
    assert_eq!(host.receive(pdu), Err(violation));
    assert!(host.conn.is_terminating() && host.conn.wants_transmit());
    assert_eq!(
        sent(host),
        raw::term_req(0x02, fes.0, fei, offender),
        "{violation}"
    );
    assert!(!host.conn.wants_transmit());
    let flush = Sqe::new(IoOpcode::FLUSH);
    assert_eq!(
        host.conn.submit(&flush, Transfer::None),
        Err(SubmitError::Closed)
    );
    assert_eq!(host.receive(pdu), Ok(None));
    let mut released = Vec::new();
    host.conn.close(|slot| released.push(slot));
    assert_eq!(released.len(), open, "every open command is named");
    assert!(host.conn.is_idle());
    assert_eq!(host.conn.poll_transmit(&mut [0; TX_HEADER_BYTES]), None);
}

#[test]
fn every_type_that_is_not_for_a_host() {
    for pdu_type in (0..=255u8).filter(|t| ![0x03, 0x05, 0x07, 0x09].contains(t)) {
        let pdu = raw::response(&PLAIN, &success(0)).with(0, &[pdu_type]);
        let (violation, fes) = if pdu_type == 1 {
            (Violation::PduOutOfSequence(PduType::IC_RESP), SEQUENCE)
        } else {
            (Violation::UnexpectedPdu(PduType(pdu_type)), FIELD)
        };
        fatal_copying(
            &mut busy(PLAIN),
            &pdu.bytes(),
            violation,
            fes,
            0,
            &pdu.header[..8],
        );
    }
}

#[test]
fn every_wrong_header_length() {
    for pdu_type in [0x03, 0x05, 0x07, 0x09] {
        for hlen in (0..=255u8).filter(|h| *h != 24) {
            let pdu = Raw::new(&PLAIN, pdu_type, 0, &[0; 16], &[]).with(2, &[hlen]);
            let violation = Violation::HeaderLength {
                pdu_type: PduType(pdu_type),
                hlen,
            };
            fatal_copying(
                &mut busy(PLAIN),
                &pdu.bytes(),
                violation,
                FIELD,
                2,
                &pdu.header[..8],
            );
        }
    }
}

#[test]
fn every_wrong_length_of_a_pdu_without_data() {
    for params in [PLAIN, DIGESTS] {
        let right = if params.header_digest { 28 } else { 24 };
        for plen in (0..100u32).chain([u32::MAX]).filter(|plen| *plen != right) {
            for pdu in [
                raw::response(&params, &success(0)),
                raw::r2t(&params, 1, 0, 0, 4096),
            ] {
                let pdu = pdu.with(4, &plen.to_le_bytes());
                let violation = Violation::PduLength {
                    pdu_type: PduType(pdu.header[0]),
                    plen,
                };
                fatal(&mut busy(params), &pdu, violation, FIELD, 4);
            }
        }
    }
}

#[test]
fn a_wrong_header_digest() {
    let mut pdu = raw::response(&DIGESTS, &success(0));
    pdu.header_digest_error = 0x100;
    let computed = Crc::of(&pdu.header).0;
    let violation = Violation::HeaderDigest {
        received: computed ^ 0x100,
        computed,
    };
    fatal(
        &mut busy(DIGESTS),
        &pdu,
        violation,
        Fes::HEADER_DIGEST_ERROR,
        computed ^ 0x100,
    );
}

#[test]
fn a_wrong_data_digest_is_told_with_the_completion() {
    let mut host = busy(DIGESTS);
    let mut pdu = raw::c2h_data(&DIGESTS, 0, 0, 0, &pattern(1, 4096));
    pdu.data_digest_error = 1;
    host.receive(&pdu.bytes()).unwrap();
    host.receive(&raw::c2h_data(&DIGESTS, LAST, 0, 4096, &pattern(2, 4096)).bytes())
        .unwrap();
    host.receive(&raw::response(&DIGESTS, &success(0)).bytes())
        .unwrap();
    let done = host.done.pop_front().unwrap();
    assert_eq!(
        (done.cqe, done.digest_error, done.data_bytes),
        (success(0), true, 8192)
    );
    // The slot's next command starts afresh.
    let slot = host.read(0, 1).unwrap();
    assert_eq!(slot, done.slot);
    let cid = host.conn.command(slot).cid();
    assert_ne!(cid, Cid(0), "another generation");
    sent(&mut host);
    host.receive(&raw::c2h_data(&DIGESTS, LAST | SUCCESS, cid.0, 0, &pattern(3, 512)).bytes())
        .unwrap();
    let done = host.done.pop_front().unwrap();
    assert_eq!(
        (done.cqe.cid(), done.digest_error, done.data),
        (cid, false, pattern(3, 512))
    );
}

#[test]
fn responses_to_commands_that_are_not_open() {
    // 1 is open, as are 0 and nothing else; 16 is the next generation of slot 0.
    for cid in [2u16, 14, 15, 16, 0x7fff, 0xffff] {
        let pdu = raw::response(&PLAIN, &success(cid));
        fatal(
            &mut busy(PLAIN),
            &pdu,
            Violation::ResponseCid(Cid(cid)),
            FIELD,
            20,
        );
    }
    // The same response twice.
    let mut host = busy(PLAIN);
    let pdu = raw::response(&PLAIN, &success(1));
    host.receive(&pdu.bytes()).unwrap();
    fatal(&mut host, &pdu, Violation::ResponseCid(Cid(1)), FIELD, 20);
    // Again, when the slot has a new command.
    let mut host = busy(PLAIN);
    host.receive(&pdu.bytes()).unwrap();
    assert_eq!(
        host.conn.submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None),
        Ok(SlotId(1))
    );
    sent(&mut host);
    fatal(&mut host, &pdu, Violation::ResponseCid(Cid(1)), FIELD, 20);
    // Before the command was sent.
    let mut host = busy(PLAIN);
    host.conn
        .submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None)
        .unwrap();
    let pdu = raw::response(&PLAIN, &success(2));
    fatal(&mut host, &pdu, Violation::ResponseCid(Cid(2)), FIELD, 20);
}

#[test]
fn data_and_r2ts_for_commands_that_are_not_open() {
    for cccid in [2u16, 16, 0xffff] {
        for pdu in [
            raw::c2h_data(&PLAIN, LAST, cccid, 0, &[0; 512]),
            raw::r2t(&PLAIN, cccid, 0, 0, 512),
        ] {
            let pdu_type = PduType(pdu.header[0]);
            let violation = Violation::DataCid {
                pdu_type,
                cccid: Cid(cccid),
            };
            fatal(&mut busy(PLAIN), &pdu, violation, FIELD, 8);
        }
    }
}

#[test]
fn data_in_the_wrong_direction() {
    let pdu = raw::c2h_data(&PLAIN, LAST, 1, 0, &[0; 512]);
    let violation = Violation::DataDirection {
        pdu_type: PduType::C2H_DATA,
        cccid: Cid(1),
    };
    fatal(&mut busy(PLAIN), &pdu, violation, SEQUENCE, 0);
    let pdu = raw::r2t(&PLAIN, 0, 0, 0, 512);
    let violation = Violation::DataDirection {
        pdu_type: PduType::R2T,
        cccid: Cid(0),
    };
    fatal(&mut busy(PLAIN), &pdu, violation, SEQUENCE, 0);
    // An R2T for data that went with the capsule.
    let mut host = host(PLAIN);
    host.write(0, &[1; 512]).unwrap();
    sent(&mut host);
    fatal(&mut host, &pdu, violation, SEQUENCE, 0);
}

#[test]
fn c2h_data_out_of_order_or_out_of_range() {
    for offset in [1u32, 512, 8192, u32::MAX] {
        let pdu = raw::c2h_data(&PLAIN, 0, 0, offset, &[0; 512]);
        let violation = Violation::TransferOffset {
            offset,
            expected: 0,
        };
        fatal(&mut busy(PLAIN), &pdu, violation, RANGE, 0);
    }
    let pdu = raw::c2h_data(&PLAIN, LAST, 0, 0, &[0; 8193]);
    let violation = Violation::TransferRange {
        offset: 0,
        length: 8193,
        end: 8192,
    };
    fatal(&mut busy(PLAIN), &pdu, violation, RANGE, 0);
    let mut host = busy(PLAIN);
    host.receive(&raw::c2h_data(&PLAIN, 0, 0, 0, &[0; 8192]).bytes())
        .unwrap();
    let pdu = raw::c2h_data(&PLAIN, LAST, 0, 8192, &[0; 1]);
    let violation = Violation::TransferRange {
        offset: 8192,
        length: 1,
        end: 8192,
    };
    fatal(&mut host, &pdu, violation, RANGE, 0);
}

#[test]
fn c2h_data_with_wrong_lengths() {
    let pdu_type = PduType::C2H_DATA;
    let pdu = raw::c2h_data(&PLAIN, LAST, 0, 0, &[]);
    fatal(
        &mut busy(PLAIN),
        &pdu,
        Violation::EmptyTransfer(pdu_type),
        FIELD,
        16,
    );
    for datal in [1u32, 511, 513, u32::MAX] {
        let pdu = raw::c2h_data(&PLAIN, LAST, 0, 0, &[0; 512]).with(16, &datal.to_le_bytes());
        let violation = Violation::DataLength {
            pdu_type,
            carried: 512,
            datal,
        };
        fatal(&mut busy(PLAIN), &pdu, violation, FIELD, 16);
    }
    let aligned = TcpParams {
        receive_pda: Pda::MAX,
        ..PLAIN
    };
    for pdo in (0..=255u8).filter(|pdo| *pdo != 128) {
        let pdu = raw::c2h_data(&aligned, LAST, 0, 0, &[0; 512]).with(3, &[pdo]);
        fatal(
            &mut busy(aligned),
            &pdu,
            Violation::DataOffset { pdu_type, pdo },
            FIELD,
            3,
        );
    }
}

#[test]
fn success_and_last() {
    let pdu = raw::c2h_data(&PLAIN, SUCCESS, 0, 0, &[0; 512]);
    fatal(
        &mut busy(PLAIN),
        &pdu,
        Violation::SuccessWithoutLast,
        FIELD,
        1,
    );
    let mut host = busy(PLAIN);
    host.receive(&raw::c2h_data(&PLAIN, LAST, 0, 0, &[0; 512]).bytes())
        .unwrap();
    let pdu = raw::c2h_data(&PLAIN, LAST, 0, 512, &[0; 512]);
    fatal(
        &mut host,
        &pdu,
        Violation::DataAfterLast(Cid(0)),
        SEQUENCE,
        0,
    );
    // A success with fewer data than asked for is told as such.
    let mut host = busy(PLAIN);
    host.receive(&raw::c2h_data(&PLAIN, LAST | SUCCESS, 0, 0, &[0; 512]).bytes())
        .unwrap();
    assert_eq!(host.done.pop_front().unwrap().data_bytes, 512);
}

#[test]
fn r2ts_out_of_order_or_out_of_range() {
    let params = TcpParams {
        max_r2t: 2,
        ..PLAIN
    };
    for offset in [1u32, 4096, 16384, u32::MAX] {
        let pdu = raw::r2t(&params, 1, 7, offset, 512);
        let violation = Violation::TransferOffset {
            offset,
            expected: 0,
        };
        fatal(&mut busy(params), &pdu, violation, RANGE, 0);
    }
    for length in [16385u32, u32::MAX] {
        let pdu = raw::r2t(&params, 1, 7, 0, length);
        let violation = Violation::TransferRange {
            offset: 0,
            length,
            end: 16384,
        };
        fatal(&mut busy(params), &pdu, violation, RANGE, 0);
    }
    let pdu = raw::r2t(&params, 1, 7, 0, 0);
    fatal(
        &mut busy(params),
        &pdu,
        Violation::EmptyTransfer(PduType::R2T),
        FIELD,
        16,
    );
    // The same range twice.
    let mut host = busy(params);
    let pdu = raw::r2t(&params, 1, 7, 0, 4096);
    host.receive(&pdu.bytes()).unwrap();
    fatal(
        &mut host,
        &pdu,
        Violation::TransferOffset {
            offset: 0,
            expected: 4096,
        },
        RANGE,
        0,
    );
    // More than MAXR2T at once: the third before the data of the first are handed out.
    let mut host = busy(params);
    host.receive(&pdu.bytes()).unwrap();
    host.receive(&raw::r2t(&params, 1, 8, 4096, 4096).bytes())
        .unwrap();
    let pdu = raw::r2t(&params, 1, 9, 8192, 4096);
    let violation = Violation::R2tLimit {
        cccid: Cid(1),
        limit: 2,
    };
    fatal(&mut host, &pdu, violation, Fes::LIMIT_EXCEEDED, 0);
}

#[test]
fn several_r2ts_are_served_in_order_each_under_its_tag() {
    let params = TcpParams {
        max_r2t: 3,
        max_h2c_data_bytes: 4096,
        ..PLAIN
    };
    let mut host = busy(params);
    let data = pattern(9, 16384);
    for (ttag, offset, length) in [(7, 0, 8192u32), (0xffff, 8192, 100), (0, 8292, 8092)] {
        host.receive(&raw::r2t(&params, 1, ttag, offset, length).bytes())
            .unwrap();
    }
    let mut expected = Vec::new();
    for (ttag, range, last) in [
        (7, 0..4096, 0),
        (7, 4096..8192, LAST),
        (0xffff, 8192..8292, LAST),
        (0, 8292..12388, 0),
        (0, 12388..16384, LAST),
    ] {
        expected.extend(
            raw::h2c_data(&params, last, 1, ttag, range.start as u32, &data[range]).bytes(),
        );
    }
    assert_eq!(sent(&mut host), expected);
}

#[test]
fn a_write_that_ends_early_sends_no_more_data() {
    let params = TcpParams {
        max_h2c_data_bytes: 4096,
        ..PLAIN
    };
    let mut host = busy(params);
    host.receive(&raw::r2t(&params, 1, 7, 0, 16384).bytes())
        .unwrap();
    let mut header = [0; TX_HEADER_BYTES];
    assert!(host.conn.poll_transmit(&mut header).is_some());
    let failed = Cqe::new(Cid(1), 1, Status::ABORT_REQUESTED, 0);
    host.receive(&raw::response(&params, &failed).bytes())
        .unwrap();
    let done = host.done.pop_front().unwrap();
    assert_eq!((done.cqe, done.data_bytes), (failed, 4096));
    assert_eq!(host.conn.poll_transmit(&mut header), None);
    // The slot's next command is sent once and has none of the old one's R2Ts.
    let slot = host
        .conn
        .submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None)
        .unwrap();
    assert_eq!(slot, done.slot);
    assert_eq!(sent(&mut host).len(), 72);
}

#[test]
fn termination_requests_from_the_controller() {
    let mut host = busy(PLAIN);
    let received = host
        .receive(&raw::term_req(0x03, 6, 10, &[1, 2, 3]))
        .unwrap();
    assert_eq!(
        received,
        Some(HostReceived::TermReq {
            fes: Fes::UNSUPPORTED_PARAMETER,
            fei: 10
        })
    );
    assert_eq!(sent(&mut host), [], "it is not answered");
    assert_eq!(
        host.receive(&raw::response(&PLAIN, &success(0)).bytes()),
        Ok(None)
    );
    for plen in (0..24u32).chain([153, u32::MAX]) {
        let mut host = busy(PLAIN);
        let mut pdu = raw::term_req(0x03, 1, 0, &[0; 8]);
        pdu[4..8].copy_from_slice(&plen.to_le_bytes());
        assert_eq!(host.receive(&pdu), Err(Violation::TermReqLength { plen }));
        assert_eq!(sent(&mut host), []);
    }
}

#[test]
fn every_pdu_cut_at_every_byte() {
    for params in [
        PLAIN,
        TcpParams {
            receive_pda: Pda::MAX,
            ..DIGESTS
        },
    ] {
        let pdus = [
            raw::response(&params, &success(0)).bytes(),
            raw::c2h_data(&params, LAST | SUCCESS, 0, 0, &pattern(1, 512)).bytes(),
            raw::r2t(&params, 1, 3, 0, 4096).bytes(),
            raw::term_req(0x03, 1, 2, &[3; 40]),
        ];
        for pdu in &pdus {
            for cut in 0..pdu.len() {
                let mut host = busy(params);
                host.receive(&pdu[..cut]).unwrap();
                assert!(host.done.is_empty());
                assert_eq!(sent(&mut host), []);
                let mut released = Vec::new();
                host.conn.close(|slot| released.push(slot));
                assert_eq!(released, [SlotId(0), SlotId(1)]);
                assert_eq!(host.receive(&pdu[cut..]), Ok(None), "closed is closed");
                assert!(host.done.is_empty());
            }
        }
    }
}

#[test]
fn limits_of_submission() {
    let mut host = host(PLAIN);
    let write = block_command(IoOpcode::WRITE, 0, 32);
    let long = SubmitError::InCapsuleTooLong {
        bytes: 8193,
        limit: 8192,
    };
    assert_eq!(
        host.conn.submit(&write, Transfer::InCapsule(8193)),
        Err(long)
    );
    assert_eq!(
        host.conn.write_transfer(&write, 8192),
        Transfer::InCapsule(8192)
    );
    assert_eq!(
        host.conn.write_transfer(&write, 8193),
        Transfer::FromHost(8193)
    );
    for _ in 0..LIMITS.depth - 1 {
        host.conn
            .submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None)
            .unwrap();
    }
    assert!(matches!(
        host.conn.submit(&write, Transfer::None),
        Err(SubmitError::QueueFull(_))
    ));
    assert_eq!(host.conn.in_flight(), host.conn.capacity());
}
