//! A host and a controller over RDMA, wired in memory: what each posts is carried out on the other's memory at once, in order, or held
//! back by the test.

use std::collections::HashMap;

use nvme_proto::queue::controller::AbortOutcome;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::rdma::controller::{Received, Work};
use nvme_proto::rdma::host::{Completed, HostLimits, LocalMemory, SubmitError};
use nvme_proto::rdma::{ControllerConn, HostConn, RemoteMemory};
use nvme_proto::violation::{Outcome, Violation};
use nvme_proto::wire::{Cid, Cqe, IoOpcode, Sqe, Status};
use proptest::prelude::*;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

const IN_CAPSULE_BYTES: u32 = 4096;
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
const CNTLID: u32 = 7;

fn limits(depth: u16, flow_control: bool) -> QueueLimits {
    QueueLimits {
        depth,
        in_capsule_bytes: IN_CAPSULE_BYTES,
        max_transfer_bytes: MAX_TRANSFER_BYTES,
        r2t_window_bytes: 0,
        flow_control,
        success_flag: true,
        admin: false,
    }
}

fn controller(depth: u16) -> ControllerConn {
    ControllerConn::new(limits(depth, true), true)
}

/// A message with a command and so many bytes of data.
fn receive(conn: &mut ControllerConn, sqe: &Sqe, data_bytes: u32) -> Result<Received, Violation> {
    conn.receive(sqe.as_bytes(), 64 + data_bytes)
}

fn command(opcode: nvme_proto::wire::Opcode, cid: u16, memory: (u64, u32, u32, bool)) -> Sqe {
    let (address, bytes, key, invalidate) = memory;
    Sqe {
        cid: U16::new(cid),
        dptr: nvme_proto::wire::SglDescriptor::keyed(address, bytes, key, invalidate).unwrap(),
        ..Sqe::new(opcode)
    }
}

fn slot(received: Result<Received, Violation>) -> SlotId {
    match received {
        Ok(Received::Command { slot }) => slot,
        other => panic!("{other:?}"),
    }
}

fn response(work: Option<Work>) -> (Cqe, Option<u32>) {
    match work {
        Some(Work::Respond {
            capsule,
            invalidate,
            ..
        }) => (Cqe::read_from_bytes(&capsule).unwrap(), invalidate),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_write_is_one_read_and_a_response() {
    let mut conn = controller(4);
    let write = command(IoOpcode::WRITE, 9, (0x1_0000, 1 << 20, 0x55, false));
    let id = slot(receive(&mut conn, &write, 0));
    assert_eq!(conn.queue().transfer(id), Transfer::FromHost(1 << 20));
    assert_eq!(conn.poll_work(), None, "no buffer yet");
    conn.queue_mut().request_data(id);
    let read = Work::Read {
        slot: id,
        offset: 0,
        bytes: 1 << 20,
        from: RemoteMemory {
            address: 0x1_0000,
            key: 0x55,
        },
    };
    assert_eq!(conn.poll_work(), Some(read));
    assert_eq!(conn.poll_work(), None, "one READ for all");
    assert!(conn.fetched(id, 1 << 20));
    conn.queue_mut().complete(id, Status::SUCCESS, 0);
    let (cqe, invalidate) = response(conn.poll_work());
    assert_eq!(
        (cqe.cid(), cqe.status(), cqe.sqhd.get()),
        (Cid(9), Status::SUCCESS, 1)
    );
    assert_eq!(invalidate, None);
    assert!(!conn.wants_post() && conn.queue().in_flight() == 0);
}

#[test]
fn a_write_in_the_capsule_needs_no_read() {
    let mut conn = controller(4);
    let mut write = Sqe::new(IoOpcode::WRITE);
    write.dptr = nvme_proto::wire::SglDescriptor::in_capsule(512);
    let id = slot(receive(&mut conn, &write, 512));
    assert_eq!(conn.queue().transfer(id), Transfer::InCapsule(512));
    conn.queue_mut().complete(id, Status::SUCCESS, 0);
    response(conn.poll_work());
    assert_eq!(conn.poll_work(), None);
}

#[test]
fn a_read_is_one_write_right_before_its_response() {
    let mut conn = controller(4);
    for (cid, key) in [(1, 0x11), (2, 0x22)] {
        let read = command(IoOpcode::READ, cid, (u64::from(cid) << 20, 8192, key, true));
        let id = slot(receive(&mut conn, &read, 0));
        conn.queue_mut().complete_with_data(id, 8192, 0);
    }
    for (cid, key) in [(1u16, 0x11), (2, 0x22)] {
        let Some(Work::Write { bytes, into, .. }) = conn.poll_work() else {
            panic!("data first");
        };
        let address = u64::from(cid) << 20;
        assert_eq!((bytes, into), (8192, RemoteMemory { address, key }));
        let (cqe, invalidate) = response(conn.poll_work());
        assert_eq!((cqe.cid(), invalidate), (Cid(cid), Some(key)));
    }
}

#[test]
fn keys_are_invalidated_only_where_asked_for_and_possible() {
    for (asked, possible) in [(true, true), (true, false), (false, true)] {
        let mut conn = ControllerConn::new(limits(4, true), possible);
        let read = command(IoOpcode::READ, 1, (0, 512, 0x33, asked));
        let id = slot(receive(&mut conn, &read, 0));
        // A command that fails gives its key up as well: the host asked for the key, not for success.
        conn.queue_mut().complete(id, Status::LBA_OUT_OF_RANGE, 0);
        let (_, invalidate) = response(conn.poll_work());
        assert_eq!(invalidate.is_some(), asked && possible);
    }
    // One that moves no data has no key.
    let mut conn = controller(4);
    let flush = command(IoOpcode::FLUSH, 1, (0, 512, 0x33, true));
    let id = slot(receive(&mut conn, &flush, 0));
    conn.queue_mut().complete(id, Status::SUCCESS, 0);
    assert_eq!(response(conn.poll_work()).1, None);
}

#[test]
fn an_aborted_write_answers_after_its_read() {
    let mut conn = controller(4);
    let write = command(IoOpcode::WRITE, 5, (0, 4096, 1, false));
    let id = slot(receive(&mut conn, &write, 0));
    conn.queue_mut().request_data(id);
    assert!(matches!(conn.poll_work(), Some(Work::Read { .. })));
    assert_eq!(conn.queue().abort(Cid(5)), AbortOutcome::Waiting(id));
    conn.queue_mut().complete(id, Status::ABORT_REQUESTED, 0);
    assert_eq!(conn.poll_work(), None, "the READ still fills its buffer");
    assert!(!conn.fetched(id, 4096), "nothing to execute");
    assert_eq!(
        response(conn.poll_work()).0.status(),
        Status::ABORT_REQUESTED
    );
}

#[test]
fn connect_is_answered_first() {
    for (flow_control, sqhd) in [(true, 1), (false, 0xffff)] {
        let mut conn = ControllerConn::new(limits(4, flow_control), true);
        conn.accept_connect(Cid(3), CNTLID);
        let flush = command(IoOpcode::FLUSH, 4, (0, 0, 0, false));
        let id = slot(receive(&mut conn, &flush, 0));
        conn.queue_mut().complete(id, Status::SUCCESS, 0);
        let (connect, _) = response(conn.poll_work());
        assert_eq!(
            (connect.cid(), connect.dw0.get(), connect.sqhd.get()),
            (Cid(3), CNTLID, sqhd)
        );
        assert_eq!(response(conn.poll_work()).0.cid(), Cid(4));
    }
}

#[test]
fn a_cid_in_use_is_refused_and_the_queue_lives() {
    let mut conn = controller(4);
    let read = command(IoOpcode::READ, 1, (0, 512, 1, false));
    let first = slot(receive(&mut conn, &read, 0));
    let Ok(Received::Refused { cid, violation }) = receive(&mut conn, &read, 0) else {
        panic!("taken twice");
    };
    assert_eq!((cid, violation), (Cid(1), Violation::CidInUse(Cid(1))));
    assert_eq!(
        response(conn.poll_work()).0.status(),
        Status::COMMAND_ID_CONFLICT
    );
    conn.queue_mut().complete(first, Status::SUCCESS, 0);
    assert_eq!(response(conn.poll_work()).0.status(), Status::SUCCESS);
}

#[test]
fn an_overrun_and_a_short_capsule_end_the_connection() {
    let mut conn = controller(2);
    for cid in [1, 2] {
        slot(receive(
            &mut conn,
            &command(IoOpcode::READ, cid, (0, 512, 1, false)),
            0,
        ));
    }
    let overrun = receive(
        &mut conn,
        &command(IoOpcode::READ, 3, (0, 512, 1, false)),
        0,
    );
    assert_eq!(overrun, Err(Violation::QueueOverrun { depth: 2 }));
    assert_eq!(conn.poll_work(), None);

    let mut conn = controller(2);
    let short = conn.receive(&[0; 64], 63).unwrap_err();
    assert_eq!(
        short,
        Violation::CapsuleLength {
            bytes: 63,
            least: 64
        }
    );
    assert_eq!(short.outcome(), Outcome::Close);
}

#[test]
fn after_the_end_nothing_is_posted_or_executed() {
    let mut conn = controller(4);
    let write = command(IoOpcode::WRITE, 1, (0, 4096, 1, false));
    let waiting = slot(receive(&mut conn, &write, 0));
    conn.queue_mut().request_data(waiting);
    assert!(conn.poll_work().is_some());
    let read = command(IoOpcode::READ, 2, (0, 4096, 1, false));
    let executing = slot(receive(&mut conn, &read, 0));
    let mut released = Vec::new();
    conn.close(|slot| released.push(slot));
    assert_eq!(released, [waiting]);
    assert!(
        !conn.fetched(waiting, 4096),
        "the READ ended after the connection"
    );
    conn.queue_mut().complete_with_data(executing, 4096, 0);
    assert!(!conn.wants_post() && conn.queue().in_flight() == 0);
}

// --- the host's side ---------------------------------------------------------------------------------------------------------

const MEMORY: LocalMemory = LocalMemory {
    address: 0x7000,
    key: 0xabcd,
    invalidate: true,
};

fn host() -> HostConn {
    HostConn::new(HostLimits {
        depth: 4,
        in_capsule_bytes: IN_CAPSULE_BYTES,
        flow_control: true,
    })
}

fn answer(host: &HostConn, slot: SlotId) -> [u8; 16] {
    let cqe = Cqe::new(host.command(slot).cid(), 1, Status::SUCCESS, 0);
    cqe.as_bytes().try_into().unwrap()
}

#[test]
fn commands_carry_the_descriptor_of_their_transfer() {
    let mut host = host();
    assert_eq!(host.write_transfer(0), Transfer::None);
    assert_eq!(host.write_transfer(4096), Transfer::InCapsule(4096));
    assert_eq!(host.write_transfer(4097), Transfer::FromHost(4097));
    let sqe = Sqe::new(IoOpcode::WRITE);
    let keyed = host
        .submit(&sqe, Transfer::FromHost(8192), Some(MEMORY))
        .unwrap();
    let sgl = host.command(keyed).dptr;
    assert_eq!(
        (sgl.kind, sgl.length_bytes(), sgl.key(), sgl.address.get()),
        (0x4f, 8192, 0xabcd, 0x7000)
    );
    let plain = LocalMemory {
        invalidate: false,
        ..MEMORY
    };
    let read = host
        .submit(&sqe, Transfer::ToHost(512), Some(plain))
        .unwrap();
    assert_eq!(host.command(read).dptr.kind, 0x40);
    let capsule = host.submit(&sqe, Transfer::InCapsule(512), None).unwrap();
    assert_eq!(host.command(capsule).dptr.kind, 0x01);
    let sent: Vec<(SlotId, u32)> = std::iter::from_fn(|| host.poll_work())
        .map(|work| (work.slot, work.in_capsule_bytes))
        .collect();
    assert_eq!(sent, [(keyed, 0), (read, 0), (capsule, 512)]);
    assert!(matches!(
        host.submit(&sqe, Transfer::None, None),
        Err(SubmitError::QueueFull(_))
    ));
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let mut host = host();
    let sqe = Sqe::new(IoOpcode::WRITE);
    let mut refused = |transfer, memory| host.submit(&sqe, transfer, memory).unwrap_err();
    let too_long = SubmitError::InCapsuleTooLong {
        bytes: 4097,
        limit: 4096,
    };
    assert_eq!(refused(Transfer::InCapsule(4097), None), too_long);
    assert_eq!(
        refused(Transfer::ToHost(512), None),
        SubmitError::MemoryMissing
    );
    let beyond = SubmitError::TransferTooLong(1 << 24);
    assert_eq!(refused(Transfer::FromHost(1 << 24), Some(MEMORY)), beyond);
    host.close(|_| {});
    assert_eq!(
        host.submit(&sqe, Transfer::None, None),
        Err(SubmitError::Closed)
    );
}

#[test]
fn each_rule_of_a_response_is_held() {
    let begun = |sent: bool| {
        let mut host = host();
        let slot = host
            .submit(
                &Sqe::new(IoOpcode::READ),
                Transfer::ToHost(512),
                Some(MEMORY),
            )
            .unwrap();
        if sent {
            host.poll_work().unwrap();
        }
        let capsule = answer(&host, slot);
        (host, slot, capsule)
    };
    let (mut host, slot, capsule) = begun(true);
    let done = Completed {
        slot,
        cqe: Cqe::read_from_bytes(&capsule).unwrap(),
        invalidated: true,
    };
    assert_eq!(host.receive(&capsule, 16, Some(MEMORY.key)), Ok(done));
    // Once more: the command is not open any more.
    let again = host.receive(&capsule, 16, None).unwrap_err();
    assert!(matches!(again, Violation::ResponseCid(_)), "{again:?}");

    let (mut host, _, capsule) = begun(false);
    assert!(matches!(
        host.receive(&capsule, 16, None),
        Err(Violation::ResponseCid(_))
    ));
    let (mut host, _, capsule) = begun(true);
    let short = Violation::CapsuleLength {
        bytes: 15,
        least: 16,
    };
    assert_eq!(host.receive(&capsule, 15, None), Err(short));
    assert_eq!(
        host.submit(&Sqe::new(IoOpcode::FLUSH), Transfer::None, None),
        Err(SubmitError::Closed)
    );

    // Another key than the command's.
    let (mut host, _, capsule) = begun(true);
    let foreign = host.receive(&capsule, 16, Some(1)).unwrap_err();
    assert!(
        matches!(foreign, Violation::ForeignKey { key: 1, .. }),
        "{foreign:?}"
    );
    // A key that was to stay.
    let mut host = self::host();
    let memory = LocalMemory {
        invalidate: false,
        ..MEMORY
    };
    let slot = host
        .submit(
            &Sqe::new(IoOpcode::READ),
            Transfer::ToHost(512),
            Some(memory),
        )
        .unwrap();
    host.poll_work().unwrap();
    let capsule = answer(&host, slot);
    let foreign = host.receive(&capsule, 16, Some(memory.key)).unwrap_err();
    assert!(
        matches!(foreign, Violation::ForeignKey { .. }),
        "{foreign:?}"
    );
}

// --- both --------------------------------------------------------------------------------------------------------------------

/// One command of a random run.
#[derive(Clone, Debug)]
struct Op {
    write: bool,
    blocks: u32,
    block: u32,
    /// Everything open is carried out after it.
    settle: bool,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (any::<bool>(), 1u32..40, 0u32..64, prop::bool::weighted(0.2));
    prop::collection::vec(
        op.prop_map(|(write, blocks, block, settle)| Op {
            write,
            blocks,
            block,
            settle,
        }),
        1..120,
    )
}

const BLOCK: usize = 512;

/// The controller's storage, buffers and what it has to carry out.
struct Target {
    conn: ControllerConn,
    disk: Vec<u8>,
    buffers: HashMap<SlotId, Vec<u8>>,
    ready: Vec<SlotId>,
}

impl Target {
    fn take(&mut self, sqe: &Sqe, data: &[u8]) {
        let id = slot(receive(&mut self.conn, sqe, data.len() as u32));
        match self.conn.queue().transfer(id) {
            Transfer::InCapsule(bytes) => {
                self.buffers.insert(id, data[..bytes as usize].to_vec());
                self.ready.push(id);
            }
            Transfer::FromHost(bytes) => {
                self.buffers.insert(id, vec![0; bytes as usize]);
                self.conn.queue_mut().request_data(id);
            }
            Transfer::ToHost(_) => self.ready.push(id),
            Transfer::None => panic!("all of them move data"),
        }
    }

    fn execute(&mut self, id: SlotId) {
        let sqe = *self.conn.queue().command(id);
        let at = sqe.cdw10.get() as usize * BLOCK;
        let bytes = self.conn.queue().transfer(id).bytes();
        let range = at..at + bytes as usize;
        if sqe.opcode == IoOpcode::WRITE {
            self.disk[range].copy_from_slice(&self.buffers[&id]);
            self.conn.queue_mut().complete(id, Status::SUCCESS, 0);
        } else {
            self.buffers.insert(id, self.disk[range].to_vec());
            self.conn.queue_mut().complete_with_data(id, bytes, 0);
        }
    }

    /// Carries out everything there is to post. Returns the responses.
    fn post(&mut self, memory: &mut HashMap<u32, Vec<u8>>) -> Vec<([u8; 16], Option<u32>)> {
        let mut sent = Vec::new();
        while let Some(work) = self.conn.poll_work() {
            match work {
                Work::Read {
                    slot,
                    offset,
                    bytes,
                    from,
                } => {
                    let (start, end) = (offset as usize, (offset + bytes) as usize);
                    let source = &memory[&from.key][from.address as usize..];
                    self.buffers.get_mut(&slot).unwrap()[start..end]
                        .copy_from_slice(&source[..bytes as usize]);
                    if self.conn.fetched(slot, bytes) {
                        self.ready.push(slot);
                    }
                }
                Work::Write { slot, bytes, into } => {
                    let target = &mut memory.get_mut(&into.key).unwrap()[into.address as usize..];
                    target[..bytes as usize]
                        .copy_from_slice(&self.buffers[&slot][..bytes as usize]);
                }
                Work::Respond {
                    capsule,
                    invalidate,
                    ..
                } => sent.push((capsule, invalidate)),
            }
        }
        sent
    }
}

proptest! {
    /// Data written come back, whatever the order and the sizes; no command is lost; keys end when asked for.
    #[test]
    fn random_commands_move_their_data(ops in ops(), depth in 2u16..20, flow_control: bool) {
        let mut host = HostConn::new(HostLimits { depth, in_capsule_bytes: 4096, flow_control });
        let mut target = Target {
            conn: ControllerConn::new(limits(depth, flow_control), true),
            disk: vec![0; 128 * BLOCK],
            buffers: HashMap::new(),
            ready: Vec::new(),
        };
        let mut model = vec![0u8; 128 * BLOCK];
        // Memory of the host, by key; what each open command reads is compared with what the model had.
        let mut memory: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut open: HashMap<SlotId, (Op, u32, Vec<u8>)> = HashMap::new();
        let mut next_key = 1u32;
        let mut ended = 0;
        let mut settle = |host: &mut HostConn, target: &mut Target, memory: &mut HashMap<u32, Vec<u8>>, open: &mut HashMap<SlotId, (Op, u32, Vec<u8>)>| {
            loop {
                while let Some(work) = host.poll_work() {
                    let sqe = *host.command(work.slot);
                    let (_, key, data) = &open[&work.slot];
                    let data = if work.in_capsule_bytes > 0 { data.clone() } else { Vec::new() };
                    assert_eq!(data.len() as u32, work.in_capsule_bytes);
                    assert!(*key > 0);
                    target.take(&sqe, &data);
                }
                for id in std::mem::take(&mut target.ready) {
                    target.execute(id);
                }
                let responses = target.post(memory);
                if responses.is_empty() && target.ready.is_empty() {
                    break;
                }
                for (capsule, invalidated) in responses {
                    let done = host.receive(&capsule, 16, invalidated).unwrap();
                    let (op, key, data) = open.remove(&done.slot).unwrap();
                    let keyed = !op.write || data.len() > 4096;
                    assert_eq!(done.invalidated, keyed && key.is_multiple_of(2));
                    if !op.write {
                        assert_eq!(memory[&key], data, "a read");
                    }
                    memory.remove(&key);
                    ended += 1;
                }
            }
        };
        for op in &ops {
            let bytes = op.blocks * BLOCK as u32;
            let at = op.block as usize * BLOCK;
            let range = at..at + bytes as usize;
            let key = next_key;
            next_key += 1;
            let mut sqe = Sqe::new(if op.write { IoOpcode::WRITE } else { IoOpcode::READ });
            sqe.cdw10 = op.block.into();
            // Every second key is to be invalidated.
            let local = LocalMemory { address: 0, key, invalidate: key.is_multiple_of(2) };
            // Order between commands that are open at once is nobody's, so those that overlap do not meet.
            let overlaps = |other: &Op| {
                op.block < other.block + other.blocks && other.block < op.block + op.blocks
            };
            if open.len() == host.capacity() || open.values().any(|(other, ..)| overlaps(other)) {
                settle(&mut host, &mut target, &mut memory, &mut open);
            }
            let (transfer, data) = if op.write {
                let data = vec![key as u8; bytes as usize];
                model[range].copy_from_slice(&data);
                (host.write_transfer(bytes), data)
            } else {
                (Transfer::ToHost(bytes), model[range].to_vec())
            };
            memory.insert(key, if op.write { data.clone() } else { vec![0xee; bytes as usize] });
            let next = host.next_slot();
            let id = host.submit(&sqe, transfer, Some(local)).unwrap();
            assert_eq!(next, Some(id));
            open.insert(id, (op.clone(), key, data));
            if op.settle {
                settle(&mut host, &mut target, &mut memory, &mut open);
            }
        }
        settle(&mut host, &mut target, &mut memory, &mut open);
        prop_assert_eq!(ended, ops.len());
        prop_assert!(open.is_empty() && host.in_flight() == 0);
        prop_assert_eq!(target.conn.queue().in_flight(), 0);
        prop_assert_eq!(&target.disk, &model);
    }
}
