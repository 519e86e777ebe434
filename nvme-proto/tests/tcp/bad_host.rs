//! What a host can get wrong, and what a controller's connection makes of it: for every rule the exact violation, the exact
//! termination request or status, and silence after a termination.

use crate::support::raw::{self, Raw};
use crate::support::{LIMITS, PLAIN, Target, block_command, pattern};
use nvme_proto::digest::Crc;
use nvme_proto::queue::controller::Stage;
use nvme_proto::queue::{QueueLimits, SlotId};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::pdu::{Fes, PduType};
use nvme_proto::tcp::{Pda, TX_HEADER_BYTES, TcpParams};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, Cqe, IoOpcode, SglDescriptor, Sqe, Status};
use zerocopy::FromBytes;

const DIGESTS: TcpParams = TcpParams {
    header_digest: true,
    data_digest: true,
    ..PLAIN
};
/// Two R2Ts of 4096 bytes at a time, H2CData of up to 4096 bytes.
const WINDOWS: TcpParams = TcpParams {
    max_r2t: 2,
    max_h2c_data_bytes: 4096,
    ..PLAIN
};
const SMALL_WINDOWS: QueueLimits = QueueLimits {
    r2t_window_bytes: 4096,
    ..LIMITS
};

fn target() -> Target {
    Target::new(PLAIN, LIMITS, 64)
}

fn write(cid: u16, dptr: SglDescriptor) -> Sqe {
    let mut sqe = block_command(IoOpcode::WRITE, 0, (dptr.length.get() / 512).max(1));
    sqe.cid.set(cid);
    sqe.dptr = dptr;
    sqe
}

fn sent(target: &mut Target) -> Vec<u8> {
    let mut wire = Vec::new();
    target.transmit(&mut wire);
    wire
}

/// The one response in `wire`.
fn one_response(wire: &[u8]) -> Cqe {
    assert_eq!(
        (wire.len() / 24, wire[0]),
        (1, 0x05),
        "one response capsule: {wire:02x?}"
    );
    Cqe::read_from_bytes(&wire[8..24]).unwrap()
}

/// `pdu` ends the connection of `target` with `violation` and a termination request that copies `offender`.
#[track_caller]
fn fatal(
    target: &mut Target,
    pdu: &[u8],
    violation: Violation,
    fes: Fes,
    fei: u32,
    offender: &[u8],
) {
    assert_eq!(target.receive(pdu), Err(violation));
    assert!(target.conn.is_terminating() && target.conn.wants_transmit());
    assert_eq!(
        sent(target),
        raw::term_req(0x03, fes.0, fei, offender),
        "{violation}"
    );
    // Once, and nothing else ever again, whatever comes in or gets completed.
    assert!(!target.conn.wants_transmit());
    let flush = raw::capsule(&PLAIN, &Sqe::new(IoOpcode::FLUSH), &[]).bytes();
    assert_eq!(target.receive(&flush), Ok(None));
    assert_eq!(target.receive(pdu), Ok(None));
    target.conn.close(|_| {});
    for slot in target.executing() {
        target.conn.complete(slot, Status::SUCCESS, 0);
    }
    assert_eq!(target.conn.poll_transmit(&mut [0; TX_HEADER_BYTES]), None);
    assert!(target.conn.is_idle(), "every slot is accounted for");
    assert!(target.conn.is_terminating());
}

const FIELD: Fes = Fes::INVALID_HEADER_FIELD;

#[test]
fn every_type_that_is_not_for_a_controller() {
    for pdu_type in (0..=255u8).filter(|t| ![0x02, 0x04, 0x06].contains(t)) {
        let pdu = raw::capsule(&PLAIN, &Sqe::new(IoOpcode::FLUSH), &[]).with(0, &[pdu_type]);
        let common = &pdu.header[..8];
        let (violation, fes) = if pdu_type == 0 {
            (
                Violation::PduOutOfSequence(PduType::IC_REQ),
                Fes::PDU_SEQUENCE_ERROR,
            )
        } else {
            (Violation::UnexpectedPdu(PduType(pdu_type)), FIELD)
        };
        fatal(&mut target(), &pdu.bytes(), violation, fes, 0, common);
    }
}

#[test]
fn a_second_icreq() {
    let mut icreq = vec![0, 0, 128, 0, 128, 0, 0, 0];
    icreq.resize(128, 0);
    let violation = Violation::PduOutOfSequence(PduType::IC_REQ);
    fatal(
        &mut target(),
        &icreq,
        violation,
        Fes::PDU_SEQUENCE_ERROR,
        0,
        &icreq[..8],
    );
}

#[test]
fn every_wrong_header_length() {
    for (pdu_type, right) in [(0x02, 24), (0x04, 72), (0x06, 24)] {
        for hlen in (0..=255u8).filter(|h| *h != right) {
            let pdu = Raw::new(&PLAIN, pdu_type, 0, &[0; 64], &[]).with(2, &[hlen]);
            let violation = Violation::HeaderLength {
                pdu_type: PduType(pdu_type),
                hlen,
            };
            fatal(
                &mut target(),
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
fn digest_flags_that_were_not_agreed_on() {
    let flush = Sqe::new(IoOpcode::FLUSH);
    let pdu_type = PduType::CAPSULE_CMD;
    let pdu = raw::capsule(&PLAIN, &flush, &[]).with(1, &[raw::HEADER_DIGEST]);
    let violation = Violation::HeaderDigestFlag { pdu_type, flags: 1 };
    fatal(
        &mut target(),
        &pdu.bytes(),
        violation,
        FIELD,
        1,
        &pdu.header[..8],
    );

    let pdu = raw::capsule(&DIGESTS, &flush, &[]).with(1, &[0]);
    let violation = Violation::HeaderDigestFlag { pdu_type, flags: 0 };
    fatal(
        &mut Target::new(DIGESTS, LIMITS, 1),
        &pdu.bytes(),
        violation,
        FIELD,
        1,
        &pdu.header[..8],
    );

    let data = pattern(0, 512);
    let pdu = raw::capsule(&PLAIN, &write(0, SglDescriptor::in_capsule(512)), &data)
        .with(1, &[raw::DATA_DIGEST]);
    let violation = Violation::DataDigestFlag { pdu_type, flags: 2 };
    fatal(
        &mut target(),
        &pdu.bytes(),
        violation,
        FIELD,
        1,
        &pdu.header,
    );

    let pdu = raw::capsule(&DIGESTS, &write(0, SglDescriptor::in_capsule(512)), &data)
        .with(1, &[raw::HEADER_DIGEST]);
    let violation = Violation::DataDigestFlag { pdu_type, flags: 1 };
    fatal(
        &mut Target::new(DIGESTS, LIMITS, 1),
        &pdu.bytes(),
        violation,
        FIELD,
        1,
        &pdu.header,
    );
}

#[test]
fn the_data_digest_flag_means_nothing_without_data() {
    let mut target = target();
    target
        .receive(
            &raw::capsule(&PLAIN, &Sqe::new(IoOpcode::FLUSH), &[])
                .with(1, &[raw::DATA_DIGEST])
                .bytes(),
        )
        .unwrap();
    assert_eq!(one_response(&sent(&mut target)).status(), Status::SUCCESS);
}

#[test]
fn every_wrong_length_of_a_capsule_without_data() {
    let pdu_type = PduType::CAPSULE_CMD;
    for plen in (0..72u32).chain(73..300).chain([0x8000_0000, u32::MAX]) {
        let pdu =
            raw::capsule(&PLAIN, &Sqe::new(IoOpcode::FLUSH), &[]).with(4, &plen.to_le_bytes());
        let (violation, fei) = if plen < 72 {
            (Violation::PduLength { pdu_type, plen }, 4)
        } else {
            // There would be data, but PDO says that there are none.
            (Violation::DataOffset { pdu_type, pdo: 0 }, 3)
        };
        fatal(
            &mut target(),
            &pdu.bytes(),
            violation,
            FIELD,
            fei,
            &pdu.header,
        );
    }
}

#[test]
fn every_wrong_data_offset() {
    let data = pattern(0, 512);
    let params = TcpParams {
        receive_pda: Pda::from_wire(2).unwrap(),
        ..PLAIN
    };
    for pdo in 0..=255u8 {
        // PLEN stays, so with any other offset the data get shorter or longer than the SGL says.
        let pdu =
            raw::capsule(&params, &write(7, SglDescriptor::in_capsule(512)), &data).with(3, &[pdo]);
        let mut target = Target::new(params, LIMITS, 64);
        if pdo < 72 || pdo % 12 != 0 {
            let violation = Violation::DataOffset {
                pdu_type: PduType::CAPSULE_CMD,
                pdo,
            };
            fatal(&mut target, &pdu.bytes(), violation, FIELD, 3, &pdu.header);
        } else if pdo == 72 {
            target.receive(&pdu.bytes()).unwrap();
            assert_eq!(one_response(&sent(&mut target)).status(), Status::SUCCESS);
        } else {
            target.receive(&pdu.bytes()[..72 + 512]).unwrap();
            let capsule_bytes = 512 - (u32::from(pdo) - 72);
            assert_eq!(
                target.refused,
                [Violation::SglLength {
                    sgl_bytes: 512,
                    capsule_bytes
                }]
            );
            assert_eq!(
                one_response(&sent(&mut target)).status(),
                Status::DATA_SGL_LENGTH_INVALID.dnr()
            );
        }
    }
}

#[test]
fn every_short_length_of_a_capsule_with_data() {
    for params in [PLAIN, DIGESTS] {
        let pdu = raw::capsule(&params, &write(7, SglDescriptor::in_capsule(8)), &[1; 8]);
        let right = pdu.bytes().len() as u32;
        let (pdo, digest) = (
            u32::from(pdu.header[3]),
            if params.data_digest { 4 } else { 0 },
        );
        for plen in 0..right {
            let mut target = Target::new(params, LIMITS, 64);
            let pdu = pdu.clone().with(4, &plen.to_le_bytes());
            if plen == pdo {
                // No data at all, as far as PLEN goes: the SGL disagrees.
                target.receive(&pdu.bytes()[..pdo as usize]).unwrap();
                assert_eq!(
                    target.refused,
                    [Violation::SglLength {
                        sgl_bytes: 8,
                        capsule_bytes: 0
                    }]
                );
            } else if plen <= pdo + digest {
                let violation = Violation::PduLength {
                    pdu_type: PduType::CAPSULE_CMD,
                    plen,
                };
                fatal(&mut target, &pdu.bytes(), violation, FIELD, 4, &pdu.header);
            } else {
                target.receive(&pdu.bytes()[..plen as usize]).unwrap();
                let capsule_bytes = plen - pdo - digest;
                assert_eq!(
                    target.refused,
                    [Violation::SglLength {
                        sgl_bytes: 8,
                        capsule_bytes
                    }]
                );
                // The digest is not looked at: the command failed for another reason, and the stream is still in step.
                assert_eq!(
                    one_response(&sent(&mut target)).status(),
                    Status::DATA_SGL_LENGTH_INVALID.dnr()
                );
                target
                    .receive(&raw::capsule(&params, &Sqe::new(IoOpcode::FLUSH), &[]).bytes())
                    .unwrap();
                assert_eq!(one_response(&sent(&mut target)).status(), Status::SUCCESS);
            }
        }
    }
}

#[test]
fn more_data_than_a_capsule_may_carry() {
    let limits = QueueLimits {
        in_capsule_bytes: 512,
        ..LIMITS
    };
    for bytes in [513u32, 8192, 0x4000_0000, u32::MAX - 72] {
        let mut pdu = raw::capsule(
            &PLAIN,
            &write(0, SglDescriptor::in_capsule(bytes)),
            &[0; 16],
        );
        pdu = pdu.with(4, &(72 + bytes).to_le_bytes());
        let violation = Violation::InCapsuleLimit { bytes, limit: 512 };
        let mut target = Target::new(PLAIN, limits, 64);
        fatal(
            &mut target,
            &pdu.bytes(),
            violation,
            Fes::LIMIT_EXCEEDED,
            0,
            &pdu.header,
        );
    }
}

#[test]
fn a_wrong_header_digest() {
    for error in [1, 0x8000_0000, 0xffff_ffff] {
        let mut pdu = raw::capsule(&DIGESTS, &Sqe::new(IoOpcode::FLUSH), &[]);
        pdu.header_digest_error = error;
        let computed = Crc::of(&pdu.header).0;
        let received = computed ^ error;
        let violation = Violation::HeaderDigest { received, computed };
        let mut target = Target::new(DIGESTS, LIMITS, 1);
        fatal(
            &mut target,
            &pdu.bytes(),
            violation,
            Fes::HEADER_DIGEST_ERROR,
            received,
            &pdu.header,
        );
    }
    // A flipped bit anywhere behind the fields that framing depends on.
    for byte in 3..72 {
        let pdu = raw::capsule(&DIGESTS, &Sqe::new(IoOpcode::FLUSH), &[]);
        let mut bytes = pdu.bytes();
        let received = Crc::of(&pdu.header).0;
        bytes[byte] ^= 0x10;
        let violation = Violation::HeaderDigest {
            received,
            computed: Crc::of(&bytes[..72]).0,
        };
        let offender = bytes[..72].to_vec();
        let mut target = Target::new(DIGESTS, LIMITS, 1);
        fatal(
            &mut target,
            &bytes,
            violation,
            Fes::HEADER_DIGEST_ERROR,
            received,
            &offender,
        );
    }
}

#[test]
fn a_wrong_data_digest_fails_the_command_only() {
    let mut target = Target::new(DIGESTS, LIMITS, 64);
    let data = pattern(1, 512);
    let mut pdu = raw::capsule(&DIGESTS, &write(3, SglDescriptor::in_capsule(512)), &data);
    pdu.data_digest_error = 1;
    assert_eq!(
        target.receive(&pdu.bytes()),
        Ok(Some(Received::DataDigestError { slot: SlotId(0) }))
    );
    let cqe = Cqe::read_from_bytes(&sent(&mut target)[8..24]).unwrap();
    assert_eq!(
        (cqe.cid(), cqe.status()),
        (Cid(3), Status::TRANSIENT_TRANSPORT_ERROR)
    );
    assert!(target.disk.iter().all(|b| *b == 0), "nothing was written");
    // The same again, undamaged.
    pdu.data_digest_error = 0;
    target.receive(&pdu.bytes()).unwrap();
    let cqe = Cqe::read_from_bytes(&sent(&mut target)[8..24]).unwrap();
    assert_eq!(cqe.status(), Status::SUCCESS);
    assert_eq!(target.disk[..512], data);
}

#[test]
fn a_wrong_data_digest_between_r2ts() {
    let params = TcpParams {
        max_r2t: 2,
        max_h2c_data_bytes: 4096,
        ..DIGESTS
    };
    let mut target = Target::new(params, SMALL_WINDOWS, 64);
    target
        .receive(&raw::capsule(&params, &write(3, SglDescriptor::transport(16384)), &[]).bytes())
        .unwrap();
    assert_eq!(sent(&mut target).len(), 2 * 28, "two R2Ts");
    let data = pattern(1, 4096);
    let mut first = raw::h2c_data(&params, raw::LAST, 3, 0, 0, &data);
    first.data_digest_error = 1;
    assert_eq!(
        target.receive(&first.bytes()),
        Ok(Some(Received::DataDigestError { slot: SlotId(0) }))
    );
    // The second R2T is open still: its data are swallowed before the command ends, and no third one goes out.
    assert_eq!(sent(&mut target), []);
    let second = raw::h2c_data(&params, raw::LAST, 3, 0, 4096, &data);
    let received = target.receive(&second.bytes()).unwrap();
    assert_eq!(received, None, "no payload for a command that has failed");
    let wire = sent(&mut target);
    assert_eq!((wire[0], wire.len()), (0x05, 28));
    let cqe = Cqe::read_from_bytes(&wire[8..24]).unwrap();
    assert_eq!(
        (cqe.cid(), cqe.status()),
        (Cid(3), Status::TRANSIENT_TRANSPORT_ERROR)
    );
    assert!(target.conn.is_idle());
}

/// A target whose slot 0 has a write of 16 KiB with two R2Ts of 4096 bytes open, CID 9.
fn fetching() -> Target {
    let mut target = Target::new(WINDOWS, SMALL_WINDOWS, 64);
    target
        .receive(&raw::capsule(&WINDOWS, &write(9, SglDescriptor::transport(16384)), &[]).bytes())
        .unwrap();
    let mut expected = raw::r2t(&WINDOWS, 9, 0, 0, 4096).bytes();
    expected.extend(raw::r2t(&WINDOWS, 9, 0, 4096, 4096).bytes());
    assert_eq!(sent(&mut target), expected);
    target
}

#[test]
fn r2ts_follow_the_data_window_by_window() {
    let mut target = fetching();
    let data = pattern(5, 16384);
    // Two halves; LAST only on the second.
    target
        .receive(&raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &data[..2048]).bytes())
        .unwrap();
    assert_eq!(sent(&mut target), []);
    target
        .receive(&raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 2048, &data[2048..4096]).bytes())
        .unwrap();
    assert_eq!(
        sent(&mut target),
        raw::r2t(&WINDOWS, 9, 0, 8192, 4096).bytes()
    );
    target
        .receive(&raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 4096, &data[4096..8192]).bytes())
        .unwrap();
    assert_eq!(
        sent(&mut target),
        raw::r2t(&WINDOWS, 9, 0, 12288, 4096).bytes()
    );
    target
        .receive(&raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 8192, &data[8192..12288]).bytes())
        .unwrap();
    assert_eq!(sent(&mut target), [], "all is asked for");
    target
        .receive(&raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 12288, &data[12288..]).bytes())
        .unwrap();
    assert_eq!(one_response(&sent(&mut target)).status(), Status::SUCCESS);
    assert_eq!(target.disk[..16384], data);
}

#[test]
fn h2c_data_with_a_wrong_tag() {
    let data = [0; 512];
    for ttag in [1u16, 15, 16, 0x7fff, 0xffff] {
        let pdu = raw::h2c_data(&WINDOWS, 0, 9, ttag, 0, &data);
        fatal(
            &mut fetching(),
            &pdu.bytes(),
            Violation::TransferTag(ttag),
            FIELD,
            10,
            &pdu.header,
        );
    }
    // Tag 0 without any command.
    let pdu = raw::h2c_data(&WINDOWS, 0, 0, 0, 0, &data);
    fatal(
        &mut target(),
        &pdu.bytes(),
        Violation::TransferTag(0),
        FIELD,
        10,
        &pdu.header,
    );
    // Of a command that has all its data and is being executed.
    let mut busy = target();
    busy.manual = true;
    busy.receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::in_capsule(512)), &data).bytes())
        .unwrap();
    assert_eq!(busy.executing(), [SlotId(0)]);
    let pdu = raw::h2c_data(&PLAIN, raw::LAST, 9, 0, 0, &data);
    fatal(
        &mut busy,
        &pdu.bytes(),
        Violation::TransferTag(0),
        FIELD,
        10,
        &pdu.header,
    );
    // Of a command that waits for a buffer, so that no R2T was sent.
    let mut waiting = target();
    waiting.manual = true;
    waiting
        .receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::transport(512)), &[]).bytes())
        .unwrap();
    fatal(
        &mut waiting,
        &pdu.bytes(),
        Violation::TransferTag(0),
        FIELD,
        10,
        &pdu.header,
    );
    // Of a read.
    let mut reading = target();
    reading.manual = true;
    let mut read = block_command(IoOpcode::READ, 0, 1);
    read.cid.set(9);
    read.dptr = SglDescriptor::transport(512);
    reading
        .receive(&raw::capsule(&PLAIN, &read, &[]).bytes())
        .unwrap();
    fatal(
        &mut reading,
        &pdu.bytes(),
        Violation::TransferTag(0),
        FIELD,
        10,
        &pdu.header,
    );
    // Of a command whose data are complete and which has ended since.
    let mut ended = target();
    ended
        .receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::transport(512)), &[]).bytes())
        .unwrap();
    sent(&mut ended);
    ended.receive(&pdu.bytes()).unwrap();
    sent(&mut ended);
    fatal(
        &mut ended,
        &pdu.bytes(),
        Violation::TransferTag(0),
        FIELD,
        10,
        &pdu.header,
    );
}

#[test]
fn h2c_data_with_the_cid_of_another_command() {
    for cccid in [0u16, 8, 10, 0xffff] {
        let pdu = raw::h2c_data(&WINDOWS, 0, cccid, 0, 0, &[0; 512]);
        let violation = Violation::TransferCid {
            ttag: 0,
            cccid: Cid(cccid),
            expected: Cid(9),
        };
        fatal(
            &mut fetching(),
            &pdu.bytes(),
            violation,
            FIELD,
            8,
            &pdu.header,
        );
    }
}

#[test]
fn h2c_data_out_of_order_or_out_of_range() {
    let range = Fes::DATA_TRANSFER_OUT_OF_RANGE;
    for offset in [1u32, 4, 512, 4096, 16384, u32::MAX, u32::MAX - 511] {
        let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, offset, &[0; 512]);
        let violation = Violation::TransferOffset {
            offset,
            expected: 0,
        };
        fatal(
            &mut fetching(),
            &pdu.bytes(),
            violation,
            range,
            0,
            &pdu.header,
        );
    }
    // The same data twice.
    let mut twice = fetching();
    let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[0; 512]);
    twice.receive(&pdu.bytes()).unwrap();
    fatal(
        &mut twice,
        &pdu.bytes(),
        Violation::TransferOffset {
            offset: 0,
            expected: 512,
        },
        range,
        0,
        &pdu.header,
    );
    // Over the end of the R2T, although the next one is open as well.
    let mut over = fetching();
    over.receive(&pdu.bytes()).unwrap();
    let pdu = raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 512, &[0; 4096]);
    let violation = Violation::TransferRange {
        offset: 512,
        length: 4096,
        end: 4096,
    };
    fatal(&mut over, &pdu.bytes(), violation, range, 0, &pdu.header);
    // More than MAXH2CDATA.
    let pdu = raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 0, &[0; 4100]);
    let violation = Violation::TransferLimit {
        length: 4100,
        limit: 4096,
    };
    fatal(
        &mut fetching(),
        &pdu.bytes(),
        violation,
        Fes::LIMIT_EXCEEDED,
        0,
        &pdu.header,
    );
}

#[test]
fn h2c_data_with_wrong_lengths() {
    let pdu_type = PduType::H2C_DATA;
    let right = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[0; 512]);
    // DATAL 0, with and without data in the PDU.
    let pdu = right.clone().with(16, &[0, 0]);
    fatal(
        &mut fetching(),
        &pdu.bytes(),
        Violation::EmptyTransfer(pdu_type),
        FIELD,
        16,
        &pdu.header,
    );
    let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[]);
    fatal(
        &mut fetching(),
        &pdu.bytes(),
        Violation::EmptyTransfer(pdu_type),
        FIELD,
        16,
        &pdu.header,
    );
    for datal in [1u32, 511, 513, 0x0100_0200, u32::MAX - 1] {
        let pdu = right.clone().with(16, &datal.to_le_bytes());
        let violation = Violation::DataLength {
            pdu_type,
            carried: 512,
            datal,
        };
        fatal(
            &mut fetching(),
            &pdu.bytes(),
            violation,
            FIELD,
            16,
            &pdu.header,
        );
    }
    // DATAL FFFFFFFFh cannot be reached by any PLEN.
    let pdu = right.clone().with(16, &[0xff; 4]);
    fatal(
        &mut fetching(),
        &pdu.bytes(),
        Violation::DataLength {
            pdu_type,
            carried: 512,
            datal: u32::MAX,
        },
        FIELD,
        16,
        &pdu.header,
    );
    for plen in 0..=24u32 {
        let pdu = right.clone().with(4, &plen.to_le_bytes());
        fatal(
            &mut fetching(),
            &pdu.bytes(),
            Violation::PduLength { pdu_type, plen },
            FIELD,
            4,
            &pdu.header,
        );
    }
}

#[test]
fn last_pdu_at_the_wrong_place() {
    let pdu = raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 0, &[0; 512]);
    fatal(
        &mut fetching(),
        &pdu.bytes(),
        Violation::LastFlag,
        FIELD,
        1,
        &pdu.header,
    );
    let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[0; 4096]);
    fatal(
        &mut fetching(),
        &pdu.bytes(),
        Violation::LastFlag,
        FIELD,
        1,
        &pdu.header,
    );
}

#[test]
fn a_cid_that_is_in_use() {
    let mut target = target();
    target.manual = true;
    target
        .receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::transport(512)), &[]).bytes())
        .unwrap();
    // With data in the capsule, which are thrown away.
    target
        .receive(
            &raw::capsule(
                &PLAIN,
                &write(9, SglDescriptor::in_capsule(1024)),
                &[1; 1024],
            )
            .bytes(),
        )
        .unwrap();
    assert_eq!(target.refused, [Violation::CidInUse(Cid(9))]);
    let cqe = one_response(&sent(&mut target));
    assert_eq!(
        (cqe.cid(), cqe.status()),
        (Cid(9), Status::COMMAND_ID_CONFLICT)
    );
    // The first one is not touched by that: its data come and it is executed.
    target.manual = false;
    assert_eq!(
        target.conn.live_slots().collect::<Vec<_>>(),
        [(SlotId(0), Stage::Waiting)]
    );
    target.conn.request_data(SlotId(0));
    sent(&mut target);
    target
        .receive(&raw::h2c_data(&PLAIN, raw::LAST, 9, 0, 0, &[7; 512]).bytes())
        .unwrap();
    assert_eq!(one_response(&sent(&mut target)).status(), Status::SUCCESS);
    assert_eq!(target.disk[..512], [7; 512]);
    // And now the CID is free.
    target
        .receive(
            &raw::capsule(&PLAIN, &write(9, SglDescriptor::in_capsule(512)), &[8; 512]).bytes(),
        )
        .unwrap();
    assert_eq!(one_response(&sent(&mut target)).status(), Status::SUCCESS);
}

#[test]
fn more_commands_than_the_queue_has_entries() {
    for flow_control in [true, false] {
        let mut target = Target::new(
            PLAIN,
            QueueLimits {
                depth: 4,
                flow_control,
                ..LIMITS
            },
            64,
        );
        target.manual = true;
        let mut flush = Sqe::new(IoOpcode::FLUSH);
        for cid in 0..4 {
            flush.cid.set(cid * 0x1111);
            target
                .receive(&raw::capsule(&PLAIN, &flush, &[]).bytes())
                .unwrap();
        }
        flush.cid.set(0x9999);
        let pdu = raw::capsule(&PLAIN, &flush, &[]);
        let violation = Violation::QueueOverrun { depth: 4 };
        fatal(
            &mut target,
            &pdu.bytes(),
            violation,
            Fes::PDU_SEQUENCE_ERROR,
            0,
            &pdu.header,
        );
    }
}

#[test]
fn a_wrong_sgl_fails_the_command_and_its_data_are_skipped() {
    let mut target = target();
    let bad = [
        (
            SglDescriptor {
                kind: 0x40,
                ..SglDescriptor::in_capsule(512)
            },
            Status::SGL_DESCRIPTOR_TYPE_INVALID,
        ),
        (
            SglDescriptor::in_capsule(511),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            SglDescriptor::in_capsule(513),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            SglDescriptor::transport(512),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            SglDescriptor {
                address: 8.into(),
                ..SglDescriptor::in_capsule(512)
            },
            Status::SGL_OFFSET_INVALID,
        ),
    ];
    for (n, (dptr, status)) in bad.into_iter().enumerate() {
        let mut wire = raw::capsule(&PLAIN, &write(n as u16, dptr), &[0xbb; 512]).bytes();
        // The answer waits for the end of the capsule.
        let tail = wire.split_off(72 + 511);
        target.receive(&wire).unwrap();
        assert_eq!(sent(&mut target), []);
        target.receive(&tail).unwrap();
        let cqe = one_response(&sent(&mut target));
        assert_eq!((cqe.cid(), cqe.status()), (Cid(n as u16), status.dnr()));
    }
    assert!(target.conn.is_idle() && target.disk.iter().all(|b| *b == 0));
}

#[test]
fn termination_requests_from_the_host() {
    for copied in [0, 1, 24, 128] {
        let mut target = target();
        target.manual = true;
        target
            .receive(&raw::capsule(&PLAIN, &Sqe::new(IoOpcode::FLUSH), &[]).bytes())
            .unwrap();
        let received = target
            .receive(&raw::term_req(0x02, 2, 0x0102_0304, &vec![0xcc; copied]))
            .unwrap();
        assert_eq!(
            received,
            Some(Received::TermReq {
                fes: Fes::PDU_SEQUENCE_ERROR,
                fei: 0x0102_0304
            })
        );
        // It is not answered, and nothing else is sent either.
        target.conn.complete(SlotId(0), Status::SUCCESS, 0);
        assert_eq!(sent(&mut target), []);
        assert!(!target.conn.is_terminating() && target.conn.is_idle());
    }
}

#[test]
fn termination_requests_of_a_wrong_length_close_without_a_word() {
    for plen in (0..24u32).chain([153, 1000, u32::MAX]) {
        let mut target = target();
        let mut pdu = raw::term_req(0x02, 1, 0, &[0; 8]);
        pdu[4..8].copy_from_slice(&plen.to_le_bytes());
        assert_eq!(target.receive(&pdu), Err(Violation::TermReqLength { plen }));
        assert_eq!(sent(&mut target), []);
        assert_eq!(target.receive(&pdu), Ok(None));
    }
}

/// Whatever a PDU is, a stream that ends within it leaves a connection that waits, and closing that leaves no slot behind.
#[test]
fn every_pdu_cut_at_every_byte() {
    for params in [
        PLAIN,
        TcpParams {
            receive_pda: Pda::MAX,
            ..DIGESTS
        },
    ] {
        let data = pattern(1, 512);
        let fetch = |target: &mut Target| {
            target
                .receive(
                    &raw::capsule(&params, &write(9, SglDescriptor::transport(512)), &[]).bytes(),
                )
                .unwrap();
            assert_eq!(sent(target)[0], 0x09);
        };
        let pdus = [
            raw::capsule(&params, &Sqe::new(IoOpcode::FLUSH), &[]).bytes(),
            raw::capsule(&params, &write(1, SglDescriptor::in_capsule(512)), &data).bytes(),
            raw::h2c_data(&params, raw::LAST, 9, 0, 0, &data).bytes(),
            raw::term_req(0x02, 1, 2, &[3; 40]),
        ];
        for pdu in &pdus {
            for cut in 0..pdu.len() {
                let mut target = Target::new(params, LIMITS, 64);
                let is_data = pdu[0] == 0x06;
                if is_data {
                    fetch(&mut target);
                }
                let received = target.receive(&pdu[..cut]).unwrap();
                if pdu[0] == 0x02 {
                    assert_eq!(
                        received.is_some(),
                        cut >= 24,
                        "a termination request counts from its header on"
                    );
                    continue;
                }
                assert!(!matches!(received, Some(Received::DataReady { .. })));
                assert!(target.executing().is_empty());
                assert_eq!(sent(&mut target), [], "nothing to answer at byte {cut}");
                let mut released = 0;
                target.conn.close(|_| released += 1);
                assert_eq!(
                    released,
                    usize::from(
                        is_data
                            || pdu.len() > 100 && cut >= 72 + usize::from(params.header_digest) * 4
                    )
                );
                assert!(target.conn.is_idle());
                assert_eq!(target.receive(&pdu[cut..]), Ok(None), "closed is closed");
            }
        }
    }
}
