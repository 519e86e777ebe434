//! What a host can get wrong, and what a controller's connection makes of it: for every rule the exact violation, the exact
//! termination request or status, and silence after a termination.

mod commands;
mod digests;
mod endings;
mod headers;
mod transfers;

use crate::support::raw::{self, Raw};
use crate::support::{LIMITS, PLAIN, Target, block_command};
use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::tcp::{TX_HEADER_BYTES, TcpParams};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cqe, IoOpcode, SglDescriptor, Sqe, Status};
use zerocopy::FromBytes;

const DIGESTS: TcpParams = TcpParams {
    header_digest: true,
    data_digest: true,
    ..PLAIN
};
const FIELD: Fes = Fes::INVALID_HEADER_FIELD;
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

/// `pdu` ends the connection of `target` with `violation` and a termination request that copies its header.
#[track_caller]
fn fatal(target: &mut Target, pdu: &Raw, violation: Violation, fes: Fes, fei: u32) {
    fatal_copying(target, &pdu.bytes(), violation, fes, fei, &pdu.header);
}

/// The same where the termination request copies `offender`.
#[track_caller]
fn fatal_copying(
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
