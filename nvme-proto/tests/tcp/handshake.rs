//! ICReq, ICResp and Connect: what is agreed on, and what is refused.

use crate::support::{LIMITS, PLAIN, host_limits, mirrored, pattern, put, raw};
use nvme_proto::queue::{QueueLimits, Transfer};
use nvme_proto::tcp::handshake::MAX_OPEN_R2TS;
use nvme_proto::tcp::host::HostReceived;
use nvme_proto::tcp::pdu::{Fes, PduType};
use nvme_proto::tcp::{
    ConnectCapsule, ControllerConn, ControllerHandshake, ControllerOffer, HandshakeEvent, HostConn,
    HostHandshake, HostRequest, Pda, TcpParams,
};
use nvme_proto::violation::Violation;
use nvme_proto::wire::fabrics::ConnectData;
use nvme_proto::wire::{Cid, Cqe, FabricsType, IoOpcode, Opcode, SglDescriptor, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

const OFFER: ControllerOffer = ControllerOffer {
    header_digest: true,
    data_digest: true,
    cpda: Pda::DWORD,
    max_h2c_data_bytes: 131_072,
};
const REQUEST: HostRequest = HostRequest {
    header_digest: true,
    data_digest: true,
    hpda: Pda::DWORD,
    max_r2t: 1,
};

fn icreq() -> Vec<u8> {
    HostHandshake::new(REQUEST).request().to_vec()
}

fn icresp() -> Vec<u8> {
    let mut controller = ControllerHandshake::new(OFFER);
    feed(&mut controller, &icreq()).unwrap();
    controller.take_output()
}

/// The last event but NeedMore.
fn feed(
    handshake: &mut ControllerHandshake,
    mut input: &[u8],
) -> Result<Option<HandshakeEvent>, Violation> {
    let mut last = None;
    loop {
        let (taken, event) = handshake.receive(input)?;
        input = &input[taken..];
        match event {
            HandshakeEvent::NeedMore => {
                assert!(input.is_empty());
                return Ok(last);
            }
            event => last = Some(event),
        }
    }
}

#[track_caller]
fn controller_refuses(bytes: &[u8], violation: Violation, fes: u16, fei: u32, offender: &[u8]) {
    let mut handshake = ControllerHandshake::new(OFFER);
    assert_eq!(feed(&mut handshake, bytes).unwrap_err(), violation);
    assert_eq!(
        handshake.take_output(),
        raw::term_req(0x03, fes, fei, offender)
    );
    assert!(
        feed(&mut handshake, bytes).unwrap().is_none(),
        "over is over"
    );
    assert!(handshake.take_output().is_empty());
}

#[track_caller]
fn host_refuses(
    request: HostRequest,
    bytes: &[u8],
    violation: Violation,
    fes: u16,
    fei: u32,
    offender: &[u8],
) {
    let mut handshake = HostHandshake::new(request);
    assert_eq!(handshake.receive(bytes), Err(violation));
    assert_eq!(
        handshake.termination(&violation).unwrap(),
        raw::term_req(0x02, fes, fei, offender)
    );
}

#[test]
fn both_sides_agree() {
    for bits in 0..16u8 {
        for (hpda, cpda, max_r2t) in [(0, 0, 1), (31, 0, 4), (2, 5, u16::MAX)] {
            let offer = ControllerOffer {
                cpda: Pda::from_wire(cpda).unwrap(),
                ..OFFER
            };
            let request = HostRequest {
                header_digest: bits & 1 != 0,
                data_digest: bits & 2 != 0,
                hpda: Pda::from_wire(hpda).unwrap(),
                max_r2t,
            };
            let mut host = HostHandshake::new(request);
            let mut controller = ControllerHandshake::new(offer);
            for byte in host.request() {
                assert!(feed(&mut controller, &[byte]).unwrap().is_none());
            }
            let response = controller.take_output();
            let (cut, agreed) = host.receive(&response[..100]).unwrap();
            assert_eq!((cut, agreed), (100, None));
            // What follows ICResp belongs to the queue.
            let (taken, agreed) = host
                .receive(&[&response[100..], &[5, 6, 7]].concat())
                .unwrap();
            assert_eq!(taken, 28);
            let expected = TcpParams {
                header_digest: request.header_digest,
                data_digest: request.data_digest,
                pda: offer.cpda,
                receive_pda: request.hpda,
                max_h2c_data_bytes: 131_072,
                max_r2t: u32::from(max_r2t.min(MAX_OPEN_R2TS)),
            };
            assert_eq!(agreed, Some(expected));
            let capsule = connect(&mirrored(expected), &data(), 1024);
            let Some(HandshakeEvent::Connect(connect)) = feed(&mut controller, &capsule).unwrap()
            else {
                panic!()
            };
            assert_eq!(
                connect.params,
                mirrored(expected),
                "both sides have the same in mind"
            );
        }
    }
}

#[test]
fn icreq_cut_at_every_byte_waits() {
    for cut in 0..128 {
        let mut handshake = ControllerHandshake::new(OFFER);
        assert!(feed(&mut handshake, &icreq()[..cut]).unwrap().is_none());
        assert!(handshake.take_output().is_empty());
        let mut handshake = HostHandshake::new(REQUEST);
        assert_eq!(handshake.receive(&icresp()[..cut]), Ok((cut, None)));
    }
}

#[test]
fn anything_but_icreq_first() {
    for pdu_type in 1..=255u8 {
        let mut pdu = icreq();
        pdu[0] = pdu_type;
        let known = matches!(pdu_type, 1..=7 | 9);
        let (violation, fes) = if known {
            (Violation::PduOutOfSequence(PduType(pdu_type)), 2)
        } else {
            (Violation::UnexpectedPdu(PduType(pdu_type)), 1)
        };
        controller_refuses(&pdu, violation, fes, 0, &pdu);
        // It does not take 128 bytes to see that.
        controller_refuses(&pdu[..8], violation, fes, 0, &pdu[..8]);
    }
}

#[test]
fn wrong_fields_in_icreq() {
    let with = |at: usize, byte: u8| {
        let mut pdu = icreq();
        pdu[at] = byte;
        pdu
    };
    let pdu_type = PduType::IC_REQ;
    for hlen in (0..=255).filter(|h| *h != 128) {
        let pdu = with(2, hlen);
        controller_refuses(&pdu, Violation::HeaderLength { pdu_type, hlen }, 1, 2, &pdu);
    }
    for (at, byte, plen) in [
        (4, 0, 0),
        (4, 127, 127),
        (4, 129, 129),
        (5, 1, 384),
        (7, 0x80, 0x8000_0080),
    ] {
        let pdu = with(at, byte);
        controller_refuses(&pdu, Violation::PduLength { pdu_type, plen }, 1, 4, &pdu);
    }
    let pdu = with(8, 1);
    controller_refuses(&pdu, Violation::PduFormatVersion(1), 1, 8, &pdu);
    let pdu = with(9, 1);
    controller_refuses(&pdu, Violation::PduFormatVersion(256), 1, 8, &pdu);
    for hpda in 32..=255 {
        let pdu = with(10, hpda);
        controller_refuses(&pdu, Violation::DataAlignment(hpda), 1, 10, &pdu);
    }
}

#[test]
fn digests_need_both_sides_and_maxr2t_may_be_anything() {
    let mut pdu = icreq();
    pdu[11] = 0xff;
    pdu[12..16].copy_from_slice(&[0xff; 4]);
    let mut handshake = ControllerHandshake::new(ControllerOffer {
        data_digest: false,
        ..OFFER
    });
    assert!(feed(&mut handshake, &pdu).unwrap().is_none());
    assert_eq!(
        handshake.take_output()[11],
        0b01,
        "unknown bits are not enabled"
    );
    let params = TcpParams {
        header_digest: true,
        ..PLAIN
    };
    let Some(HandshakeEvent::Connect(connect)) =
        feed(&mut handshake, &connect(&params, &data(), 1024)).unwrap()
    else {
        panic!()
    };
    assert_eq!(
        connect.params,
        TcpParams {
            max_r2t: u32::MAX,
            ..params
        }
    );
    // What is sent within that bound is ours to choose.
    ControllerConn::new(connect.params, LIMITS);
}

#[test]
fn wrong_icresp() {
    let with = |at: usize, bytes: &[u8]| {
        let mut pdu = icresp();
        pdu[at..at + bytes.len()].copy_from_slice(bytes);
        pdu
    };
    let pdu = with(0, &[0]);
    host_refuses(
        REQUEST,
        &pdu,
        Violation::PduOutOfSequence(PduType::IC_REQ),
        2,
        0,
        &pdu,
    );
    let pdu = with(0, &[5]);
    host_refuses(
        REQUEST,
        &pdu,
        Violation::PduOutOfSequence(PduType::CAPSULE_RESP),
        2,
        0,
        &pdu,
    );
    let pdu = with(0, &[0x77]);
    host_refuses(
        REQUEST,
        &pdu,
        Violation::UnexpectedPdu(PduType(0x77)),
        1,
        0,
        &pdu,
    );
    let pdu = with(2, &[24]);
    host_refuses(
        REQUEST,
        &pdu,
        Violation::HeaderLength {
            pdu_type: PduType::IC_RESP,
            hlen: 24,
        },
        1,
        2,
        &pdu,
    );
    let pdu = with(4, &[24]);
    host_refuses(
        REQUEST,
        &pdu,
        Violation::PduLength {
            pdu_type: PduType::IC_RESP,
            plen: 24,
        },
        1,
        4,
        &pdu,
    );
    let pdu = with(8, &[9]);
    host_refuses(REQUEST, &pdu, Violation::PduFormatVersion(9), 1, 8, &pdu);
    let pdu = with(10, &[32]);
    host_refuses(REQUEST, &pdu, Violation::DataAlignment(32), 1, 10, &pdu);
    for max in [0u32, 4092, 4097, 4098, u32::MAX] {
        let pdu = with(12, &max.to_le_bytes());
        host_refuses(REQUEST, &pdu, Violation::MaxH2cData(max), 1, 12, &pdu);
    }
    // Digests that were not asked for, and ones that were and are declined.
    for (asked, enabled) in [(0u8, 1u8), (0, 2), (1, 0), (1, 3), (3, 1), (3, 2), (0, 4)] {
        let request = HostRequest {
            header_digest: asked & 1 != 0,
            data_digest: asked & 2 != 0,
            ..REQUEST
        };
        let pdu = with(11, &[enabled]);
        host_refuses(
            request,
            &pdu,
            Violation::DigestMismatch { asked, enabled },
            1,
            11,
            &pdu,
        );
    }
}

fn data() -> Vec<u8> {
    pattern(1, 1024)
}

/// A capsule whose SGL says `length` bytes, as a host sends it that agreed on `params` (as the controller sees them).
fn connect(params: &TcpParams, data: &[u8], length: u32) -> Vec<u8> {
    let mut sqe = Sqe::new(Opcode::FABRICS);
    sqe.as_mut_bytes()[4] = FabricsType::CONNECT.0;
    sqe.cid.set(0x0102);
    sqe.dptr = SglDescriptor::in_capsule(length);
    raw::capsule(params, &sqe, data).bytes()
}

/// A controller after ICResp, without digests.
fn after_icresp() -> ControllerHandshake {
    let mut handshake = ControllerHandshake::new(ControllerOffer {
        header_digest: false,
        data_digest: false,
        ..OFFER
    });
    feed(&mut handshake, &icreq()).unwrap();
    handshake.take_output();
    handshake
}

#[test]
fn a_second_icreq_before_connect() {
    let mut handshake = after_icresp();
    assert_eq!(
        feed(&mut handshake, &icreq()).unwrap_err(),
        Violation::PduOutOfSequence(PduType::IC_REQ)
    );
    assert_eq!(
        handshake.take_output(),
        raw::term_req(0x03, 2, 0, &icreq()[..8])
    );
}

#[test]
fn commands_before_connect_are_refused() {
    let mut handshake = after_icresp();
    let mut get = Sqe::new(Opcode::FABRICS);
    get.as_mut_bytes()[4] = FabricsType::PROPERTY_GET.0;
    get.cid.set(7);
    let mut write = Sqe::new(IoOpcode::WRITE);
    write.cid.set(8);
    write.dptr = SglDescriptor::in_capsule(4096);
    for (capsule, cid) in [
        (raw::capsule(&PLAIN, &get, &[]), 7),
        (raw::capsule(&PLAIN, &write, &[1; 4096]), 8),
    ] {
        match feed(&mut handshake, &capsule.bytes()).unwrap() {
            Some(HandshakeEvent::Refused {
                cid: refused,
                violation,
            }) => {
                assert_eq!(
                    (refused, violation),
                    (Cid(cid), Violation::ConnectExpected(Cid(cid)))
                );
            }
            other => panic!("{other:?}"),
        }
        let cqe = Cqe::new(Cid(cid), 0, Status::COMMAND_SEQUENCE_ERROR.dnr(), 0);
        assert_eq!(handshake.take_output(), raw::response(&PLAIN, &cqe).bytes());
    }
    // Connect may still come.
    assert!(matches!(
        feed(&mut handshake, &connect(&PLAIN, &data(), 1024)),
        Ok(Some(HandshakeEvent::Connect(_)))
    ));
}

#[test]
fn connect_with_wrong_data_is_refused() {
    let transport = {
        let mut pdu = connect(&PLAIN, &[], 1024);
        pdu[8 + 39] = 0x5a;
        pdu
    };
    let offset = {
        let mut pdu = connect(&PLAIN, &data(), 1024);
        pdu[8 + 24] = 4;
        pdu
    };
    for (capsule, status) in [
        (
            connect(&PLAIN, &data()[..1023], 1024),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            connect(&PLAIN, &data()[..512], 512),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (
            connect(&PLAIN, &pattern(1, 2048), 2048),
            Status::DATA_SGL_LENGTH_INVALID,
        ),
        (connect(&PLAIN, &[], 0), Status::DATA_SGL_LENGTH_INVALID),
        (transport, Status::SGL_DESCRIPTOR_TYPE_INVALID),
        (offset, Status::SGL_OFFSET_INVALID),
    ] {
        let mut handshake = after_icresp();
        assert!(matches!(
            feed(&mut handshake, &capsule),
            Ok(Some(HandshakeEvent::Refused { .. }))
        ));
        let cqe = Cqe::new(Cid(0x0102), 0, status.dnr(), 0);
        assert_eq!(handshake.take_output(), raw::response(&PLAIN, &cqe).bytes());
    }
    // More than any capsule may carry.
    let capsule = connect(&PLAIN, &pattern(1, 8193), 8193);
    let violation = Violation::InCapsuleLimit {
        bytes: 8193,
        limit: 8192,
    };
    let mut handshake = after_icresp();
    assert_eq!(feed(&mut handshake, &capsule).unwrap_err(), violation);
    assert_eq!(
        handshake.take_output(),
        raw::term_req(0x03, 5, 0, &capsule[..72])
    );
}

#[test]
fn data_and_terminations_before_connect() {
    let pdu = raw::h2c_data(&PLAIN, raw::LAST, 0, 0, 0, &[0; 8]);
    let mut handshake = after_icresp();
    assert_eq!(
        feed(&mut handshake, &pdu.bytes()).unwrap_err(),
        Violation::TransferTag(0)
    );
    assert_eq!(
        handshake.take_output(),
        raw::term_req(0x03, 1, 10, &pdu.header)
    );
    let mut handshake = after_icresp();
    match feed(&mut handshake, &raw::term_req(0x02, 1, 5, &[9; 30])).unwrap() {
        Some(HandshakeEvent::TermReq {
            fes: Fes::INVALID_HEADER_FIELD,
            fei: 5,
        }) => {}
        other => panic!("{other:?}"),
    }
    assert!(handshake.take_output().is_empty());
    assert!(
        feed(&mut handshake, &connect(&PLAIN, &data(), 1024))
            .unwrap()
            .is_none(),
        "over is over"
    );
}

#[test]
fn a_wrong_data_digest_in_connect() {
    let mut handshake = ControllerHandshake::new(OFFER);
    feed(&mut handshake, &icreq()).unwrap();
    handshake.take_output();
    let params = TcpParams {
        header_digest: true,
        data_digest: true,
        ..PLAIN
    };
    let mut capsule = connect(&params, &data(), 1024);
    *capsule.last_mut().unwrap() ^= 1;
    match feed(&mut handshake, &capsule).unwrap() {
        Some(HandshakeEvent::Refused {
            violation: Violation::DataDigest(Cid(0x0102)),
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
    let cqe = Cqe::new(Cid(0x0102), 0, Status::TRANSIENT_TRANSPORT_ERROR, 0);
    assert_eq!(
        handshake.take_output(),
        raw::response(&params, &cqe).bytes()
    );
}

/// All of it, with our host: Connect goes through the host's connection, the answer through the controller's.
#[test]
fn from_icreq_to_the_first_command() {
    let mut host_side = HostHandshake::new(REQUEST);
    let mut handshake = ControllerHandshake::new(OFFER);
    feed(&mut handshake, &host_side.request()).unwrap();
    let (_, params) = host_side.receive(&handshake.take_output()).unwrap();
    let mut host = HostConn::new(params.unwrap(), host_limits(LIMITS));
    let mut sqe = Sqe::new(Opcode::FABRICS);
    sqe.as_mut_bytes()[4] = FabricsType::CONNECT.0;
    let slot = host
        .submit(&sqe, Transfer::InCapsule(ConnectData::SIZE as u32))
        .unwrap();
    let (mut wire, mut header) = (Vec::new(), [0; 152]);
    let pdu = host.poll_transmit(&mut header).unwrap();
    put(&mut wire, &pdu, &header, &[data()]);
    // The first command is on the wire right behind Connect, in the same read.
    wire.extend(b"rest");
    let (taken, event) = handshake.receive(&wire).unwrap();
    let (taken, event) = match event {
        HandshakeEvent::Connect(connect) => (taken, connect),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        &wire[taken..],
        b"rest",
        "what follows Connect is the queue's"
    );
    let ConnectCapsule {
        params,
        sqe,
        data: received,
    } = *event;
    assert_eq!(received.as_bytes(), data());
    assert_eq!(sqe.cid(), host.command(slot).cid());

    // Refused at first, accepted at the second try.
    handshake.refuse(
        sqe.cid(),
        Status::CONNECT_INVALID_PARAMETERS.dnr(),
        0x1_0000,
    );
    let (_, received) = host.receive(&handshake.take_output()).unwrap();
    match received {
        HostReceived::Complete { cqe, .. } => {
            assert_eq!(
                (cqe.status(), cqe.result()),
                (Status::CONNECT_INVALID_PARAMETERS.dnr(), 0x1_0000)
            );
        }
        other => panic!("{other:?}"),
    }
    let slot = host
        .submit(&sqe, Transfer::InCapsule(ConnectData::SIZE as u32))
        .unwrap();
    let mut conn = ControllerConn::new(
        params,
        QueueLimits {
            flow_control: false,
            ..LIMITS
        },
    );
    host.poll_transmit(&mut header).unwrap();
    conn.accept_connect(host.command(slot).cid(), 5);
    assert!(conn.wants_transmit());
    let pdu = conn.poll_transmit(&mut header).unwrap();
    assert!(!conn.wants_transmit());
    let (_, received) = host
        .receive(&header[..usize::from(pdu.header_bytes)])
        .unwrap();
    match received {
        HostReceived::Complete {
            slot: done,
            cqe,
            data_bytes: 1024,
            digest_error: false,
        } => {
            assert_eq!((done, cqe.result(), cqe.sqhd.get()), (slot, 5, 0xffff));
        }
        other => panic!("{other:?}"),
    }
    assert!(ConnectData::read_from_bytes(&data()).is_ok());
}
