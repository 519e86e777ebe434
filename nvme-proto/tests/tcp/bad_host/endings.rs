//! Connections that a host ends: by a termination request, or in the middle of a PDU.

use super::{DIGESTS, sent, target, write};
use crate::support::raw;
use crate::support::{LIMITS, PLAIN, Target, pattern};
use nvme_proto::queue::SlotId;
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::tcp::{Pda, TcpParams};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{IoOpcode, SglDescriptor, Sqe, Status};

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
