//! Commands in good PDUs that a queue refuses: a CID in use, too many, wrong SGLs.

use super::{fatal, one_response, sent, target, write};
use crate::support::raw;
use crate::support::{LIMITS, PLAIN, Target};
use nvme_proto::queue::controller::Stage;
use nvme_proto::queue::{QueueLimits, SlotId};
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, IoOpcode, SglDescriptor, Sqe, Status};

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
        fatal(&mut target, &pdu, violation, Fes::PDU_SEQUENCE_ERROR, 0);
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
