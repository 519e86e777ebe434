//! H2CData that no R2T asked for, or not so: tags, order, ranges and lengths.

use super::{FIELD, SMALL_WINDOWS, WINDOWS, fatal, one_response, sent, target, write};
use crate::support::raw;
use crate::support::{PLAIN, Target, block_command, pattern};
use nvme_proto::queue::SlotId;
use nvme_proto::tcp::pdu::{Fes, PduType};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, IoOpcode, SglDescriptor, Status};

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
            &pdu,
            Violation::TransferTag(ttag),
            FIELD,
            10,
        );
    }
    // Tag 0 without any command.
    let pdu = raw::h2c_data(&WINDOWS, 0, 0, 0, 0, &data);
    fatal(&mut target(), &pdu, Violation::TransferTag(0), FIELD, 10);
    // Of a command that has all its data and is being executed.
    let mut busy = target();
    busy.manual = true;
    busy.receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::in_capsule(512)), &data).bytes())
        .unwrap();
    assert_eq!(busy.executing(), [SlotId(0)]);
    let pdu = raw::h2c_data(&PLAIN, raw::LAST, 9, 0, 0, &data);
    fatal(&mut busy, &pdu, Violation::TransferTag(0), FIELD, 10);
    // Of a command that waits for a buffer, so that no R2T was sent.
    let mut waiting = target();
    waiting.manual = true;
    waiting
        .receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::transport(512)), &[]).bytes())
        .unwrap();
    fatal(&mut waiting, &pdu, Violation::TransferTag(0), FIELD, 10);
    // Of a read.
    let mut reading = target();
    reading.manual = true;
    let mut read = block_command(IoOpcode::READ, 0, 1);
    read.cid.set(9);
    read.dptr = SglDescriptor::transport(512);
    reading
        .receive(&raw::capsule(&PLAIN, &read, &[]).bytes())
        .unwrap();
    fatal(&mut reading, &pdu, Violation::TransferTag(0), FIELD, 10);
    // Of a command whose data are complete and which has ended since.
    let mut ended = target();
    ended
        .receive(&raw::capsule(&PLAIN, &write(9, SglDescriptor::transport(512)), &[]).bytes())
        .unwrap();
    sent(&mut ended);
    ended.receive(&pdu.bytes()).unwrap();
    sent(&mut ended);
    fatal(&mut ended, &pdu, Violation::TransferTag(0), FIELD, 10);
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
        fatal(&mut fetching(), &pdu, violation, FIELD, 8);
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
        fatal(&mut fetching(), &pdu, violation, range, 0);
    }
    // The same data twice.
    let mut twice = fetching();
    let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[0; 512]);
    twice.receive(&pdu.bytes()).unwrap();
    fatal(
        &mut twice,
        &pdu,
        Violation::TransferOffset {
            offset: 0,
            expected: 512,
        },
        range,
        0,
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
    fatal(&mut over, &pdu, violation, range, 0);
    // More than MAXH2CDATA.
    let pdu = raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 0, &[0; 4100]);
    let violation = Violation::TransferLimit {
        length: 4100,
        limit: 4096,
    };
    fatal(&mut fetching(), &pdu, violation, Fes::LIMIT_EXCEEDED, 0);
}

#[test]
fn h2c_data_with_wrong_lengths() {
    let pdu_type = PduType::H2C_DATA;
    let right = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[0; 512]);
    // DATAL 0, with and without data in the PDU.
    let pdu = right.clone().with(16, &[0, 0]);
    fatal(
        &mut fetching(),
        &pdu,
        Violation::EmptyTransfer(pdu_type),
        FIELD,
        16,
    );
    let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[]);
    fatal(
        &mut fetching(),
        &pdu,
        Violation::EmptyTransfer(pdu_type),
        FIELD,
        16,
    );
    for datal in [1u32, 511, 513, 0x0100_0200, u32::MAX - 1] {
        let pdu = right.clone().with(16, &datal.to_le_bytes());
        let violation = Violation::DataLength {
            pdu_type,
            carried: 512,
            datal,
        };
        fatal(&mut fetching(), &pdu, violation, FIELD, 16);
    }
    // DATAL FFFFFFFFh cannot be reached by any PLEN.
    let pdu = right.clone().with(16, &[0xff; 4]);
    fatal(
        &mut fetching(),
        &pdu,
        Violation::DataLength {
            pdu_type,
            carried: 512,
            datal: u32::MAX,
        },
        FIELD,
        16,
    );
    for plen in 0..=24u32 {
        let pdu = right.clone().with(4, &plen.to_le_bytes());
        fatal(
            &mut fetching(),
            &pdu,
            Violation::PduLength { pdu_type, plen },
            FIELD,
            4,
        );
    }
}

#[test]
fn last_pdu_at_the_wrong_place() {
    let pdu = raw::h2c_data(&WINDOWS, raw::LAST, 9, 0, 0, &[0; 512]);
    fatal(&mut fetching(), &pdu, Violation::LastFlag, FIELD, 1);
    let pdu = raw::h2c_data(&WINDOWS, 0, 9, 0, 0, &[0; 4096]);
    fatal(&mut fetching(), &pdu, Violation::LastFlag, FIELD, 1);
}
