//! SQHD and flow control, Abort, commands that end early, and the end of a connection.

use crate::support::{
    BLOCK_BYTES, Initiator, LIMITS, PLAIN, Pair, Target, block_command, host_limits, pattern, raw,
};
use nvme_proto::queue::controller::{AbortOutcome, Stage};
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::host::SubmitError;
use nvme_proto::tcp::{TX_HEADER_BYTES, TcpParams};
use nvme_proto::wire::{Cid, Cqe, IoOpcode, SglDescriptor, Sqe, Status};
use zerocopy::FromBytes;

fn flush(cid: u16) -> Vec<u8> {
    let mut sqe = Sqe::new(IoOpcode::FLUSH);
    sqe.cid.set(cid);
    raw::capsule(&PLAIN, &sqe, &[]).bytes()
}

fn responses(target: &mut Target) -> Vec<Cqe> {
    let mut wire = Vec::new();
    target.transmit(&mut wire);
    wire.chunks(24)
        .map(|pdu| Cqe::read_from_bytes(&pdu[8..]).unwrap())
        .collect()
}

#[test]
fn sqhd_moves_with_each_response_and_wraps() {
    let mut target = Target::new(PLAIN, QueueLimits { depth: 3, ..LIMITS }, 1);
    target.conn.accept_connect(Cid(0), 1);
    assert_eq!(responses(&mut target)[0].sqhd.get(), 1);
    for n in 0..7u16 {
        target.receive(&flush(n)).unwrap();
        assert_eq!(responses(&mut target)[0].sqhd.get(), (2 + n) % 3);
    }
    // An entry comes back with the response, not when the command is fetched.
    target.manual = true;
    let mut read = block_command(IoOpcode::READ, 0, 1);
    read.cid.set(100);
    read.dptr = SglDescriptor::transport(512);
    target
        .receive(&raw::capsule(&PLAIN, &read, &[]).bytes())
        .unwrap();
    target.manual = false;
    target.receive(&flush(101)).unwrap();
    let first = responses(&mut target)[0];
    assert_eq!((first.cid(), first.sqhd.get()), (Cid(101), 0));
}

#[test]
fn every_cid_is_a_good_one() {
    let mut target = Target::new(PLAIN, QueueLimits { depth: 8, ..LIMITS }, 1);
    for cid in (0..=u16::MAX).step_by(7).chain([0, u16::MAX]) {
        target.receive(&flush(cid)).unwrap();
        assert_eq!(responses(&mut target)[0].cid(), Cid(cid));
    }
    assert!(target.refused.is_empty());
}

#[test]
fn responses_go_in_the_order_of_completion() {
    let mut target = Target::new(PLAIN, LIMITS, 1);
    target.manual = true;
    let mut slots = Vec::new();
    for cid in 0..5 {
        let mut read = block_command(IoOpcode::READ, 0, 1);
        read.cid.set(cid);
        read.dptr = SglDescriptor::transport(512);
        let Ok(Some(Received::Command { slot })) =
            target.receive(&raw::capsule(&PLAIN, &read, &[]).bytes())
        else {
            panic!()
        };
        slots.push(slot);
    }
    for n in [3, 0, 4, 2, 1] {
        target
            .conn
            .complete(slots[n], Status::new(7, n as u8), n as u64);
    }
    let order: Vec<_> = responses(&mut target)
        .iter()
        .map(|cqe| (cqe.cid().0, cqe.status().sc(), cqe.result()))
        .collect();
    assert_eq!(
        order,
        [(3, 3, 3), (0, 0, 0), (4, 4, 4), (2, 2, 2), (1, 1, 1)]
    );
}

/// A host that has sent flushes as long as it could.
fn full_host(depth: u16, flow_control: bool) -> Initiator {
    let mut host = Initiator::new(
        PLAIN,
        host_limits(QueueLimits {
            depth,
            flow_control,
            ..LIMITS
        }),
    );
    while host
        .conn
        .submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None)
        .is_ok()
    {}
    host.transmit(&mut Vec::new());
    host
}

fn submit(host: &mut Initiator) -> Result<SlotId, SubmitError> {
    let result = host.conn.submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None);
    host.transmit(&mut Vec::new());
    result
}

fn respond(host: &mut Initiator, cid: u16, sqhd: u16) {
    host.receive(&raw::response(&PLAIN, &Cqe::new(Cid(cid), sqhd, Status::SUCCESS, 0)).bytes())
        .unwrap();
}

#[test]
fn the_head_bounds_what_a_host_submits() {
    let mut host = full_host(8, true);
    assert_eq!(
        host.conn.in_flight(),
        7,
        "a ring is full with one entry less"
    );
    // A completion that frees no entry: the head stays where it was.
    respond(&mut host, 0, 0);
    assert_eq!(
        submit(&mut host),
        Err(SubmitError::QueueFull(nvme_proto::queue::host::QueueFull))
    );
    // Three more are free, but only one of the slots is beside that of the first.
    respond(&mut host, 1, 3);
    assert!(submit(&mut host).is_ok() && submit(&mut host).is_ok());
    assert!(submit(&mut host).is_err(), "seven are open again");
    // Nonsense and steps back are passed over.
    for (cid, sqhd) in [(2, 0xffff), (3, 8), (4, 2)] {
        respond(&mut host, cid, sqhd);
    }
    assert!(
        submit(&mut host).is_ok(),
        "of what the 3 allowed one is left"
    );
    assert!(submit(&mut host).is_err());
}

#[test]
fn an_empty_queue_has_room_whatever_the_head_was() {
    let mut host = full_host(4, true);
    for cid in 0..3 {
        respond(&mut host, cid, 0);
    }
    assert!(host.conn.is_idle());
    for _ in 0..3 {
        submit(&mut host).unwrap();
    }
    assert!(submit(&mut host).is_err());
}

#[test]
fn without_flow_control_the_head_means_nothing() {
    let mut host = full_host(4, false);
    respond(&mut host, 1, 0);
    assert!(submit(&mut host).is_ok());
    assert!(submit(&mut host).is_err());
}

#[test]
fn success_without_a_response_moves_the_head_too() {
    // SPDK's target tells success with the data although flow control is on.
    let mut host = Initiator::new(
        PLAIN,
        host_limits(QueueLimits {
            depth: 3,
            flow_control: true,
            ..LIMITS
        }),
    );
    for n in 0..10 {
        let slots = [host.read(0, 1).unwrap(), host.read(0, 1).unwrap()];
        host.transmit(&mut Vec::new());
        for cid in slots.map(|slot| host.conn.command(slot).cid()) {
            let flags = raw::LAST | raw::SUCCESS;
            host.receive(&raw::c2h_data(&PLAIN, flags, cid.0, 0, &pattern(n, 512)).bytes())
                .unwrap();
            let done = host.done.pop_front().unwrap();
            assert_eq!(
                (done.cqe.status(), done.data),
                (Status::SUCCESS, pattern(n, 512))
            );
        }
    }
}

/// A target with a write of 8 KiB whose R2T is out (slot 0, CID 5), of which `arrived` bytes are there.
fn fetching(arrived: &[u8]) -> Target {
    let mut target = Target::new(PLAIN, LIMITS, 64);
    let mut write = block_command(IoOpcode::WRITE, 0, 16);
    write.cid.set(5);
    write.dptr = SglDescriptor::transport(8192);
    target
        .receive(&raw::capsule(&PLAIN, &write, &[]).bytes())
        .unwrap();
    target.transmit(&mut Vec::new());
    target.receive(arrived).unwrap();
    target
}

#[test]
fn an_aborted_write_is_answered_once_its_data_are_in() {
    let pdu = raw::h2c_data(&PLAIN, raw::LAST, 5, 0, 0, &pattern(1, 8192)).bytes();
    // Aborted before, in the middle of the header, in the middle of the data.
    for cut in [0, 10, 24, 30, 5000, pdu.len() - 1] {
        let mut target = fetching(&pdu[..cut]);
        assert_eq!(target.conn.abort(Cid(5)), AbortOutcome::Waiting(SlotId(0)));
        target.conn.complete(SlotId(0), Status::ABORT_REQUESTED, 0);
        assert_eq!(target.conn.abort(Cid(5)), AbortOutcome::NotFound);
        assert_eq!(
            responses(&mut target),
            [],
            "its data could otherwise arrive for the slot's next command"
        );
        assert_eq!(target.conn.pending_payload(), None, "nobody wants them");
        assert_eq!(target.receive(&pdu[cut..]), Ok(None));
        let cqe = responses(&mut target);
        assert_eq!(
            (cqe.len(), cqe[0].cid(), cqe[0].status()),
            (1, Cid(5), Status::ABORT_REQUESTED)
        );
        assert!(target.conn.is_idle() && target.disk.iter().all(|byte| *byte == 0));
        // The stream is in step.
        target.receive(&flush(6)).unwrap();
        assert_eq!(responses(&mut target).len(), 1);
    }
}

#[test]
fn a_write_aborted_while_its_data_are_received_straight_into_place() {
    let pdu = raw::h2c_data(&PLAIN, raw::LAST, 5, 0, 0, &pattern(1, 8192)).bytes();
    let mut target = fetching(&[]);
    // As a driver does it: the header through the decoder, the payload past it.
    let (taken, _) = target.conn.receive(&pdu[..24]).unwrap();
    assert_eq!(taken, 24);
    let pending = target.conn.pending_payload().unwrap();
    assert_eq!(
        (pending.slot, pending.offset, pending.len, pending.crc),
        (SlotId(0), 0, 8192, None)
    );
    target.conn.complete(SlotId(0), Status::ABORT_REQUESTED, 0);
    // The receive that was under way still delivers.
    target.conn.payload_received(8192, None);
    assert_eq!(
        target.receive(&flush(6)),
        Ok(Some(Received::Command { slot: SlotId(1) }))
    );
    let cids: Vec<_> = responses(&mut target)
        .iter()
        .map(|cqe| cqe.cid().0)
        .collect();
    assert_eq!(cids, [5, 6]);
}

#[test]
fn a_write_aborted_before_its_r2t_needs_no_data() {
    let mut target = Target::new(PLAIN, LIMITS, 64);
    target.manual = true;
    let mut write = block_command(IoOpcode::WRITE, 0, 16);
    write.dptr = SglDescriptor::transport(8192);
    for granted in [false, true] {
        target
            .receive(&raw::capsule(&PLAIN, &write, &[]).bytes())
            .unwrap();
        let AbortOutcome::Waiting(slot) = target.conn.abort(Cid(0)) else {
            panic!()
        };
        if granted {
            // The R2T is due but has not been handed out.
            target.conn.request_data(slot);
        }
        target.conn.complete(slot, Status::ABORT_REQUESTED, 0);
        let cqe = responses(&mut target);
        assert_eq!((cqe.len(), cqe[0].status()), (1, Status::ABORT_REQUESTED));
        assert!(target.conn.is_idle());
    }
}

#[test]
fn abort_finds_what_is_executed_and_nothing_else() {
    let mut target = Target::new(PLAIN, LIMITS, 1);
    target.manual = true;
    let mut read = block_command(IoOpcode::READ, 0, 1);
    read.cid.set(0xfedc);
    read.dptr = SglDescriptor::transport(512);
    target
        .receive(&raw::capsule(&PLAIN, &read, &[]).bytes())
        .unwrap();
    assert_eq!(
        target.conn.abort(Cid(0xfedc)),
        AbortOutcome::Executing(SlotId(0))
    );
    assert_eq!(target.conn.abort(Cid(0xdc)), AbortOutcome::NotFound);
    target.conn.complete_with_data(SlotId(0), 512, 0);
    assert_eq!(target.conn.abort(Cid(0xfedc)), AbortOutcome::NotFound);
}

#[test]
fn a_command_completed_while_its_capsule_arrives_is_answered_after_it() {
    let mut write = block_command(IoOpcode::WRITE, 0, 1);
    write.dptr = SglDescriptor::in_capsule(512);
    let params = TcpParams {
        header_digest: true,
        data_digest: true,
        ..PLAIN
    };
    let pdu = raw::capsule(&params, &write, &pattern(1, 512)).bytes();
    let mut target = Target::new(params, LIMITS, 1);
    let Ok((76, Received::Command { slot })) = target.conn.receive(&pdu) else {
        panic!()
    };
    target
        .conn
        .complete(slot, Status::INVALID_NAMESPACE.dnr(), 0);
    let mut header = [0; TX_HEADER_BYTES];
    assert_eq!(target.conn.poll_transmit(&mut header), None);
    for byte in &pdu[76..pdu.len() - 1] {
        assert_eq!(
            target.conn.receive(&[*byte]),
            Ok((1, Received::NeedMore)),
            "no payload, no DataReady"
        );
        assert_eq!(target.conn.poll_transmit(&mut header), None);
    }
    target.conn.receive(&pdu[pdu.len() - 1..]).unwrap();
    assert!(
        target
            .conn
            .poll_transmit(&mut header)
            .is_some_and(|pdu| pdu.finishes == Some(slot))
    );
}

#[test]
fn closing_frees_all_but_what_is_executed() {
    let mut pair = Pair::new(PLAIN, LIMITS);
    pair.target.manual = true;
    let data = pattern(1, 64 * BLOCK_BYTES);
    pair.host.write(0, &data).unwrap();
    pair.host.write(0, &data[..BLOCK_BYTES]).unwrap();
    pair.host.read(0, 1).unwrap();
    pair.host.read(0, 1).unwrap();
    pair.run(usize::MAX);
    let executing = pair.target.executing();
    assert_eq!(executing.len(), 3, "the small write and both reads");
    pair.target.conn.complete_with_data(executing[2], 512, 0);
    let stages: Vec<_> = pair
        .target
        .conn
        .live_slots()
        .map(|(_, stage)| stage)
        .collect();
    assert_eq!(
        stages,
        [
            Stage::Waiting,
            Stage::Executing,
            Stage::Executing,
            Stage::Finishing
        ]
    );
    let mut released = Vec::new();
    pair.target.conn.close(|slot| released.push(slot.0));
    assert_eq!((released, pair.target.conn.in_flight()), (vec![0, 3], 2));
    assert!(!pair.target.conn.is_terminating() && !pair.target.conn.wants_transmit());
    // What the backend still does is waited for: only then the association is over.
    pair.target.conn.complete(executing[0], Status::SUCCESS, 0);
    assert!(!pair.target.conn.is_idle());
    pair.target.conn.complete_with_data(executing[1], 512, 0);
    assert!(pair.target.conn.is_idle());
    assert_eq!(pair.target.transmit(&mut Vec::new()), 0);
}

#[test]
fn small_commands_do_not_wait_behind_a_long_transfer() {
    let params = TcpParams {
        max_h2c_data_bytes: 4096,
        ..PLAIN
    };
    let mut host = Initiator::new(params, host_limits(LIMITS));
    host.write(0, &pattern(1, 256 * BLOCK_BYTES)).unwrap();
    host.transmit(&mut Vec::new());
    host.receive(&raw::r2t(&params, 0, 0, 0, 131_072).bytes())
        .unwrap();
    host.read(0, 1).unwrap();
    let mut header = [0; TX_HEADER_BYTES];
    let mut types = Vec::new();
    while host.conn.poll_transmit(&mut header).is_some() {
        types.push(header[0]);
    }
    assert_eq!(types.len(), 33);
    assert_eq!(
        types[..3],
        [0x06, 0x04, 0x06],
        "the read's capsule after one piece of data"
    );
}
