//! What a host can get wrong in the headers of its PDUs: types, lengths, flags, where data begin.

use super::{DIGESTS, FIELD, fatal, fatal_copying, one_response, sent, target, write};
use crate::support::raw::{self, Raw};
use crate::support::{LIMITS, PLAIN, Target, pattern};
use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::pdu::{Fes, PduType};
use nvme_proto::tcp::{Pda, TcpParams};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{IoOpcode, SglDescriptor, Sqe, Status};

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
        fatal_copying(&mut target(), &pdu.bytes(), violation, fes, 0, common);
    }
}

#[test]
fn a_second_icreq() {
    let mut icreq = vec![0, 0, 128, 0, 128, 0, 0, 0];
    icreq.resize(128, 0);
    let violation = Violation::PduOutOfSequence(PduType::IC_REQ);
    fatal_copying(
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
            fatal_copying(
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
    fatal_copying(
        &mut target(),
        &pdu.bytes(),
        violation,
        FIELD,
        1,
        &pdu.header[..8],
    );

    let pdu = raw::capsule(&DIGESTS, &flush, &[]).with(1, &[0]);
    let violation = Violation::HeaderDigestFlag { pdu_type, flags: 0 };
    fatal_copying(
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
    fatal(&mut target(), &pdu, violation, FIELD, 1);

    let pdu = raw::capsule(&DIGESTS, &write(0, SglDescriptor::in_capsule(512)), &data)
        .with(1, &[raw::HEADER_DIGEST]);
    let violation = Violation::DataDigestFlag { pdu_type, flags: 1 };
    fatal(
        &mut Target::new(DIGESTS, LIMITS, 1),
        &pdu,
        violation,
        FIELD,
        1,
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
        fatal(&mut target(), &pdu, violation, FIELD, fei);
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
            fatal(&mut target, &pdu, violation, FIELD, 3);
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
                fatal(&mut target, &pdu, violation, FIELD, 4);
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
        fatal(&mut target, &pdu, violation, Fes::LIMIT_EXCEEDED, 0);
    }
}
