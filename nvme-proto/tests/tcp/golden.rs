//! The bytes of every PDU that either side sends, as the wire has them.

use crate::support::{Initiator, LIMITS, PLAIN, Target, block_command, host_limits, raw};
use nvme_proto::digest::Crc;
use nvme_proto::queue::{QueueLimits, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::handshake::answer;
use nvme_proto::tcp::pdu::IcReq;
use nvme_proto::tcp::{ControllerOffer, HostHandshake, HostRequest, Pda, TcpParams};
use nvme_proto::wire::{Cid, IoOpcode, Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

const DIGESTS: TcpParams = TcpParams {
    header_digest: true,
    data_digest: true,
    ..PLAIN
};

#[test]
fn icreq_and_icresp() {
    let host = HostHandshake::new(HostRequest {
        header_digest: true,
        data_digest: false,
        hpda: Pda::from_wire(3).unwrap(),
        max_r2t: 4,
    });
    let mut expected = [0; 128];
    expected[..16].copy_from_slice(&[0x00, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 0b01, 3, 0, 0, 0]);
    assert_eq!(host.request(), expected);

    let offer = ControllerOffer {
        header_digest: true,
        data_digest: true,
        cpda: Pda::DWORD,
        max_h2c_data_bytes: 0x0002_0000,
    };
    let (response, _) = answer(IcReq::ref_from_bytes(&expected).unwrap(), &offer).unwrap();
    let mut expected = [0; 128];
    expected[..16].copy_from_slice(&[0x01, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 0b01, 0, 0, 2, 0]);
    assert_eq!(response.as_bytes(), expected);
}

/// What a host sends for `sqe` with `data`.
fn host_sends(
    params: TcpParams,
    limits: QueueLimits,
    sqe: &Sqe,
    transfer: Transfer,
    data: &[u8],
) -> Vec<u8> {
    let mut host = Initiator::new(params, host_limits(limits));
    let slot = host.conn.submit(sqe, transfer).unwrap();
    host.buffers[slot.index()] = data.to_vec();
    let mut wire = Vec::new();
    assert_eq!(host.transmit(&mut wire), 1);
    wire
}

#[test]
fn command_capsules() {
    let read = block_command(IoOpcode::READ, 0x55, 8);
    let wire = host_sends(PLAIN, LIMITS, &read, Transfer::ToHost(4096), &[]);
    let mut expected = vec![0x04, 0, 72, 0, 72, 0, 0, 0, 0x02, 0x40, 0, 0, 1, 0, 0, 0];
    expected.resize(8 + 24, 0);
    expected.extend([0; 8]);
    expected.extend([0, 0x10, 0, 0, 0, 0, 0, 0x5a, 0x55, 0, 0, 0, 0, 0, 0, 0, 7]);
    expected.resize(72, 0);
    assert_eq!(wire, expected);

    // Both digests, data aligned to 128 bytes.
    let write = block_command(IoOpcode::WRITE, 0, 1);
    let data = crate::support::pattern(1, 512);
    let params = TcpParams {
        pda: Pda::MAX,
        ..DIGESTS
    };
    let wire = host_sends(params, LIMITS, &write, Transfer::InCapsule(512), &data);
    assert_eq!(
        wire[..8],
        [0x04, 0b11, 72, 128, 132, 2, 0, 0],
        "PLEN 128 + 512 + 4"
    );
    assert_eq!(wire[8..10], [0x01, 0x40]);
    assert_eq!(
        wire[8 + 24..8 + 40],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0x01]
    );
    assert_eq!(wire[72..76], Crc::of(&wire[..72]).to_wire());
    assert_eq!(wire[76..128], [0; 52], "padding");
    assert_eq!(wire[128..640], data);
    assert_eq!(wire[640..], Crc::of(&data).to_wire());

    // A Flush: an empty transport descriptor.
    let wire = host_sends(
        PLAIN,
        LIMITS,
        &Sqe::new(IoOpcode::FLUSH),
        Transfer::None,
        &[],
    );
    assert_eq!(
        wire[8 + 24..8 + 40],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x5a]
    );
}

/// What a controller answers to a capsule of the command with CID 1234h.
fn target_sends(
    params: TcpParams,
    limits: QueueLimits,
    mut sqe: Sqe,
    transfer: Transfer,
) -> Vec<u8> {
    sqe.cid.set(0x1234);
    sqe.dptr = nvme_proto::wire::SglDescriptor::transport(transfer.bytes());
    let mut target = Target::new(params, limits, 16);
    target.disk = crate::support::pattern(2, target.disk.len());
    target
        .receive(&raw::capsule(&params, &sqe, &[]).bytes())
        .unwrap();
    let mut wire = Vec::new();
    target.transmit(&mut wire);
    wire
}

#[test]
fn response_capsules() {
    let wire = target_sends(PLAIN, LIMITS, Sqe::new(IoOpcode::FLUSH), Transfer::None);
    // SQHD 1, CID 1234h, success.
    assert_eq!(
        wire,
        [
            0x05, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x34, 0x12, 0, 0
        ]
    );
    let wire = target_sends(DIGESTS, LIMITS, Sqe::new(IoOpcode::COPY), Transfer::None);
    // Invalid Opcode with DNR; a PDU without data has no data digest.
    let header = [
        0x05, 0b01, 24, 0, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x34, 0x12, 0x02, 0x80,
    ];
    assert_eq!(wire[..24], header);
    assert_eq!(wire[24..], Crc::of(&header).to_wire());
    // Without flow control SQHD is reserved.
    let off = QueueLimits {
        flow_control: false,
        ..LIMITS
    };
    let wire = target_sends(PLAIN, off, Sqe::new(IoOpcode::FLUSH), Transfer::None);
    assert_eq!(wire[16..18], [0, 0]);
}

#[test]
fn the_response_to_connect() {
    for (flow_control, sqhd) in [(true, [1, 0]), (false, [0xff, 0xff])] {
        let mut target = Target::new(
            PLAIN,
            QueueLimits {
                flow_control,
                ..LIMITS
            },
            1,
        );
        target.conn.accept_connect(Cid(0x0201), 0x0007);
        let mut wire = Vec::new();
        assert_eq!(target.transmit(&mut wire), 1);
        let [low, high] = sqhd;
        assert_eq!(
            wire,
            [
                0x05, 0, 24, 0, 24, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, low, high, 0, 0, 0x01, 0x02,
                0, 0
            ]
        );
    }
}

#[test]
fn c2h_data() {
    let read = block_command(IoOpcode::READ, 3, 1);
    let disk = crate::support::pattern(2, 16 * 512);
    // With flow control the data are followed by a response.
    let wire = target_sends(PLAIN, LIMITS, read, Transfer::ToHost(512));
    assert_eq!(
        wire[..24],
        [
            0x07, 0b0100, 24, 24, 24, 2, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0
        ]
    );
    assert_eq!(wire[24..536], disk[3 * 512..4 * 512]);
    assert_eq!(
        wire[536..],
        [
            0x05, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x34, 0x12, 0, 0
        ]
    );
    // Without, SUCCESS takes its place; PDO is aligned to what the host asked for, here 12 bytes.
    let off = QueueLimits {
        flow_control: false,
        ..LIMITS
    };
    let params = TcpParams {
        pda: Pda::from_wire(2).unwrap(),
        ..DIGESTS
    };
    let wire = target_sends(params, off, read, Transfer::ToHost(512));
    assert_eq!(wire[..8], [0x07, 0b1111, 24, 36, 40, 2, 0, 0]);
    assert_eq!(wire[24..28], Crc::of(&wire[..24]).to_wire());
    assert_eq!(wire[36..548], disk[3 * 512..4 * 512]);
    assert_eq!(wire[548..], Crc::of(&disk[3 * 512..4 * 512]).to_wire());
    // The switch for old hosts.
    let wire = target_sends(
        PLAIN,
        QueueLimits {
            success_flag: false,
            ..off
        },
        read,
        Transfer::ToHost(512),
    );
    assert_eq!((wire[1], wire.len()), (0b0100, 24 + 512 + 24));
}

#[test]
fn a_result_other_than_zero_needs_a_response() {
    let mut target = Target::new(
        PLAIN,
        QueueLimits {
            flow_control: false,
            ..LIMITS
        },
        16,
    );
    target.manual = true;
    let mut sqe = block_command(IoOpcode::READ, 0, 1);
    sqe.dptr = nvme_proto::wire::SglDescriptor::transport(512);
    let received = target
        .receive(&raw::capsule(&PLAIN, &sqe, &[]).bytes())
        .unwrap();
    let Some(Received::Command { slot }) = received else {
        panic!("{received:?}")
    };
    target.conn.complete_with_data(slot, 512, 1 << 32);
    let mut wire = Vec::new();
    assert_eq!(target.transmit(&mut wire), 2);
    assert_eq!(wire[1], 0b0100, "LAST without SUCCESS");
    assert_eq!(
        wire[24 + 512 + 8..][..8],
        [0, 0, 0, 0, 1, 0, 0, 0],
        "DW0 and DW1"
    );
}

#[test]
fn r2t_and_h2c_data() {
    let mut write = block_command(IoOpcode::WRITE, 0, 16);
    let wire = target_sends(
        PLAIN,
        QueueLimits {
            r2t_window_bytes: 4096,
            ..LIMITS
        },
        write,
        Transfer::FromHost(8192),
    );
    // TTAG is the slot, the first one of a fresh queue.
    assert_eq!(
        wire,
        [
            0x09, 0, 24, 0, 24, 0, 0, 0, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0
        ]
    );

    write.cid.set(0);
    let mut host = Initiator::new(
        TcpParams {
            max_h2c_data_bytes: 4096,
            ..DIGESTS
        },
        host_limits(LIMITS),
    );
    let slot = host.conn.submit(&write, Transfer::FromHost(8192)).unwrap();
    host.buffers[slot.index()] = crate::support::pattern(3, 8192);
    host.transmit(&mut Vec::new());
    host.receive(&raw::r2t(&DIGESTS, 0, 0xbeef, 0, 8192).bytes())
        .unwrap();
    let mut wire = Vec::new();
    assert_eq!(host.transmit(&mut wire), 2, "split at MAXH2CDATA");
    for (n, (pdu, last)) in wire.chunks(28 + 4096 + 4).zip([0, 0b100]).enumerate() {
        let offset = n * 4096;
        let mut header = vec![
            0x06,
            0b11 | last,
            24,
            28,
            0x20,
            0x10,
            0,
            0,
            0,
            0,
            0xef,
            0xbe,
        ];
        header.extend((offset as u32).to_le_bytes());
        header.extend([0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(pdu[..24], header);
        assert_eq!(pdu[24..28], Crc::of(&header).to_wire());
        let data = &host.buffers[slot.index()][offset..offset + 4096];
        assert_eq!(pdu[28..28 + 4096], *data);
        assert_eq!(pdu[28 + 4096..], Crc::of(data).to_wire());
    }
}

#[test]
fn termination_requests() {
    // The header of the offending PDU is copied, without its digest; the request itself has no digests.
    let bad = raw::h2c_data(&DIGESTS, raw::LAST, 1, 9, 0, &[1, 2, 3, 4]);
    let mut target = Target::new(DIGESTS, LIMITS, 1);
    target.receive(&bad.bytes()).unwrap_err();
    let mut wire = Vec::new();
    assert_eq!(target.transmit(&mut wire), 1);
    let mut expected = vec![0x03, 0, 24, 0, 48, 0, 0, 0, 0x01, 0, 10, 0, 0, 0];
    expected.resize(24, 0);
    expected.extend(&bad.header);
    assert_eq!(wire, expected);

    let bad = raw::response(
        &DIGESTS,
        &nvme_proto::wire::Cqe::new(Cid(5), 0, Status::SUCCESS, 0),
    );
    let mut host = Initiator::new(DIGESTS, host_limits(LIMITS));
    host.receive(&bad.bytes()).unwrap_err();
    let mut wire = Vec::new();
    assert_eq!(host.transmit(&mut wire), 1);
    let mut expected = vec![0x02, 0, 24, 0, 48, 0, 0, 0, 0x01, 0, 20, 0, 0, 0];
    expected.resize(24, 0);
    expected.extend(&bad.header);
    assert_eq!(wire, expected);
}
