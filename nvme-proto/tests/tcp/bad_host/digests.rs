//! Wrong digests: of a header, which end the connection, and of data, which fail the command alone.

use super::{DIGESTS, SMALL_WINDOWS, fatal, fatal_copying, sent, write};
use crate::support::raw;
use crate::support::{LIMITS, Target, pattern};
use nvme_proto::digest::Crc;
use nvme_proto::queue::SlotId;
use nvme_proto::tcp::TcpParams;
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, Cqe, IoOpcode, SglDescriptor, Sqe, Status};
use zerocopy::FromBytes;

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
            &pdu,
            violation,
            Fes::HEADER_DIGEST_ERROR,
            received,
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
        fatal_copying(
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
