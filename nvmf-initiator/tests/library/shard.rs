//! One shard with one queue, turned by the test, and the controller's end of the connection in the test's hands: what arrives when, and
//! what time it is, is the test's choice.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nvme_proto::digest::Crc;
use nvme_proto::queue::{QueueLimits, SlotId};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::host::HostLimits;
use nvme_proto::tcp::{ControllerConn, HostConn, Pda, TX_HEADER_BYTES, TcpParams, TxHeader};
use nvme_proto::wire::{Lba, Nsid, Qid};
use nvmf_initiator::core::error::QueueError;
use nvmf_initiator::core::message::{
    ControllerKey, FromShard, HeadKey, HeadState, NewQueue, NewWire, ToShard,
};
use nvmf_initiator::core::namespace::{Limits, NamespaceIdentity, NamespaceInfo};
use nvmf_initiator::core::shard::Shard;
use nvmf_initiator::polled::{Done, IoError, Op, Request};
use nvmf_io::{Buf, BufPool, PoolConfig, Ring, RingConfig, Wait};
use tokio::sync::{mpsc, oneshot};

use crate::target::PATIENCE;

const IO_TIMEOUT_MS: u32 = 30_000;

/// Several receive buffers, and no multiple of one.
const LARGE_BYTES: u32 = 60 << 10;

/// The controller's end of a connection.
struct Peer {
    stream: TcpStream,
    conn: ControllerConn,
}

struct Rig {
    shard: Shard,
    controller: ControllerKey,
    head: HeadKey,
    params: TcpParams,
    peer: Peer,
    associations: u32,
    sink: mpsc::UnboundedSender<FromShard>,
    events: mpsc::UnboundedReceiver<FromShard>,
    done: Vec<Done>,
    start: Instant,
}

impl Rig {
    fn new(digests: bool) -> Rig {
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        let pool = BufPool::new(&PoolConfig::default());
        ring.register_pool(&pool);
        let (sink, events) = mpsc::unbounded_channel();
        let params = TcpParams {
            header_digest: digests,
            data_digest: digests,
            pda: Pda::DWORD,
            receive_pda: Pda::DWORD,
            max_h2c_data_bytes: 128 << 10,
            max_r2t: 1,
        };
        let (controller, head) = (ControllerKey::unique(), HeadKey::unique());
        let info = NamespaceInfo {
            nsid: Nsid(1),
            identity: NamespaceIdentity::default(),
            block_bytes: 512,
            blocks: 1 << 20,
            physical_block_bytes: 512,
            read_only: false,
            volatile_cache: true,
            limits: Limits {
                max_transfer_blocks: 2048,
                max_write_zeroes_blocks: 2048,
                max_discard_blocks: 2048,
                compare: true,
            },
        };
        let mut shard = Shard::new(ring, pool, 64);
        shard.handle(ToShard::OpenHead {
            head,
            controller,
            info: Arc::new(info),
            state: HeadState::Live,
        });
        let (peer, queue) = connection(controller, 1, params, &sink);
        shard.handle(ToShard::AddQueue(Box::new(queue)));
        Rig {
            shard,
            controller,
            head,
            params,
            peer,
            associations: 1,
            sink,
            events,
            done: Vec::new(),
            start: Instant::now(),
        }
    }

    /// A new association, on which commands that were held go out.
    fn reconnect(&mut self) {
        self.associations += 1;
        let (peer, queue) = connection(self.controller, self.associations, self.params, &self.sink);
        self.peer = peer;
        self.shard.handle(ToShard::AddQueue(Box::new(queue)));
        let (head, state) = (self.head, HeadState::Live);
        self.shard.handle(ToShard::SetState { head, state });
    }

    fn read(&mut self, bytes: u32, tag: u64) -> Buf {
        let buf = self.shard.pool().alloc(bytes).unwrap();
        buf.fill(0..bytes, 0xee);
        let head = self.shard.head(self.head).unwrap();
        let request = Request {
            op: Op::Read,
            slba: Lba(tag * 1000),
            blocks: u64::from(bytes) / 512,
            buf: Some(buf.clone()),
            buf_offset_bytes: 0,
            tag,
        };
        self.shard.submit(head, request).unwrap();
        buf
    }

    fn turn(&mut self, wait: Wait) {
        self.shard.flush();
        self.shard.ring().wait(wait).unwrap();
        while let Some(completion) = self.shard.ring().next() {
            assert!(self.shard.on_completion(completion).is_none());
        }
        while let Some(completed) = self.shard.take_completed() {
            self.done.push(completed.done);
        }
    }

    /// Turns until the condition holds.
    #[track_caller]
    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Rig) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < PATIENCE, "{what} does not happen");
            self.turn(Wait::Until(Instant::now() + Duration::from_millis(5)));
        }
    }

    /// Turns until the controller has so many commands that it did not have before.
    fn commands(&mut self, count: usize) -> Vec<SlotId> {
        let mut slots = Vec::new();
        self.until("a command", |rig| {
            rig.peer.take(&mut slots);
            slots.len() >= count
        });
        slots
    }

    /// Lets the host see what has arrived. On loopback that is everything that was written.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.turn(Wait::Poll);
        }
    }

    /// Moves the shard's clock to so long after the start, in the steps in which a runner would.
    fn tick_to(&mut self, from_ms: u32, to_ms: u32) {
        for at_ms in (from_ms..=to_ms).step_by(500) {
            let at = self.start + Duration::from_millis(at_ms.into());
            self.shard.tick(at);
        }
    }

    #[track_caller]
    fn expect_done(&mut self, tag: u64) {
        let done = self.done.iter().find(|done| done.tag == tag);
        assert_eq!(done.map(|done| done.result), Some(Ok(())));
    }
}

fn connection(
    controller: ControllerKey,
    association: u32,
    params: TcpParams,
    sink: &mpsc::UnboundedSender<FromShard>,
) -> (Peer, NewQueue) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    let limits = QueueLimits {
        depth: 16,
        in_capsule_bytes: 8192,
        max_transfer_bytes: 1 << 20,
        r2t_window_bytes: 1 << 20,
        flow_control: false,
        success_flag: true,
        admin: false,
    };
    let host = HostLimits {
        depth: limits.depth,
        in_capsule_bytes: limits.in_capsule_bytes,
        flow_control: false,
        admin: false,
    };
    let queue = NewQueue {
        controller,
        association,
        qid: Qid(1),
        wire: NewWire::Tcp {
            socket,
            conn: HostConn::new(params, host),
            bytes: Vec::new(),
        },
        io_timeout_ms: IO_TIMEOUT_MS,
        events: sink.clone(),
        traffic: Arc::new(AtomicBool::new(false)),
    };
    let conn = ControllerConn::new(params, limits);
    (Peer { stream, conn }, queue)
}

impl Peer {
    /// Takes the commands that have arrived. None of them brings data.
    fn take(&mut self, slots: &mut Vec<SlotId>) {
        let mut buf = [0; 4096];
        loop {
            let read = match self.stream.read(&mut buf) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            };
            let mut input = &buf[..read];
            loop {
                let (taken, received) = self.conn.receive(input).unwrap();
                input = &input[taken..];
                match received {
                    Received::NeedMore => break,
                    Received::Command { slot } => slots.push(slot),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    /// What answers these reads.
    fn answers(&mut self, slots: &[SlotId]) -> Vec<u8> {
        for slot in slots {
            let bytes = self.conn.transfer(*slot).bytes();
            self.conn.complete_with_data(*slot, bytes, 0);
        }
        let mut wire = Vec::new();
        let mut header: TxHeader = [0; TX_HEADER_BYTES];
        while let Some(pdu) = self.conn.poll_transmit(&mut header) {
            wire.extend_from_slice(&header[..usize::from(pdu.header_bytes)]);
            let Some(payload) = pdu.payload else { continue };
            let data = pattern(payload.len);
            wire.extend_from_slice(&data);
            if payload.digest {
                wire.extend_from_slice(&Crc::of(&data).to_wire());
            }
        }
        wire
    }
}

/// The data of every read, by its length.
fn pattern(bytes: u32) -> Vec<u8> {
    (0..bytes / 4)
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b9) ^ bytes).to_le_bytes())
        .collect()
}

#[track_caller]
fn check(buf: &Buf) {
    let bytes = buf.bytes().expect("the operation is over");
    assert!(bytes[..] == pattern(buf.len())[..], "wrong data");
}

/// Writes all of it while the shard is turned, as the socket takes it.
fn write(rig: &mut Rig, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rig.peer.stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => rig.turn(Wait::Poll),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn answers_to_large_and_small_reads_cut_anywhere() {
    for digests in [false, true] {
        let mut rig = Rig::new(digests);
        // Around headers and ends at every byte, what lies between now and then.
        let end = LARGE_BYTES as usize;
        let cuts = (0..80)
            .chain((80..end).step_by(1499))
            .chain(end..end + 80)
            .chain(end + 512..end + 640);
        for cut in cuts {
            let large = rig.read(LARGE_BYTES, 1);
            let small = rig.read(512, 2);
            let again = rig.read(LARGE_BYTES, 3);
            let slots = rig.commands(3);
            let wire = rig.peer.answers(&slots);
            let (first, second) = wire.split_at(cut.min(wire.len()));
            write(&mut rig, first);
            rig.settle();
            write(&mut rig, second);
            rig.until("the answers", |rig| rig.done.len() == 3);
            for (tag, buf) in [(1, &large), (2, &small), (3, &again)] {
                rig.expect_done(tag);
                check(buf);
            }
            rig.done.clear();
        }
    }
}

#[test]
fn answers_that_come_in_many_pieces() {
    for digests in [false, true] {
        let mut rig = Rig::new(digests);
        for piece in [1000, 4096, 16_384, 33_000] {
            let bufs = [rig.read(LARGE_BYTES, 1), rig.read(1 << 20, 2)];
            let slots = rig.commands(2);
            let wire = rig.peer.answers(&slots);
            for piece in wire.chunks(piece) {
                write(&mut rig, piece);
                rig.turn(Wait::Poll);
            }
            rig.until("the answers", |rig| rig.done.len() == 2);
            bufs.iter().for_each(check);
            rig.done.clear();
        }
    }
}

#[test]
fn damaged_data_are_asked_for_again() {
    let mut rig = Rig::new(true);
    let buf = rig.read(LARGE_BYTES, 1);
    let slots = rig.commands(1);
    let mut wire = rig.peer.answers(&slots);
    let middle = wire.len() / 2;
    wire[middle] ^= 1;
    let (head, data) = wire.split_at(40);
    write(&mut rig, head);
    rig.settle();
    write(&mut rig, data);
    let slots = rig.commands(1);
    assert!(rig.done.is_empty());
    let wire = rig.peer.answers(&slots);
    write(&mut rig, &wire);
    rig.until("the answer", |rig| rig.done.len() == 1);
    rig.expect_done(1);
    check(&buf);
}

#[test]
fn a_connection_cut_in_the_middle_of_data_loses_nothing() {
    for cut in [10, 24, 100, 30_000, LARGE_BYTES as usize] {
        let mut rig = Rig::new(false);
        let buf = rig.read(LARGE_BYTES, 1);
        let slots = rig.commands(1);
        let wire = rig.peer.answers(&slots);
        write(&mut rig, &wire[..cut]);
        rig.settle();
        rig.peer.stream.shutdown(std::net::Shutdown::Both).unwrap();
        rig.until("the loss", |rig| {
            matches!(rig.events.try_recv(), Ok(FromShard::QueueFailed { .. }))
        });
        assert!(rig.done.is_empty(), "it is held");
        rig.reconnect();
        let slots = rig.commands(1);
        let wire = rig.peer.answers(&slots);
        write(&mut rig, &wire);
        rig.until("the answer", |rig| rig.done.len() == 1);
        rig.expect_done(1);
        check(&buf);
    }
}

#[test]
fn a_buffer_that_data_arrive_for_stays_until_the_queue_is_closed() {
    let mut rig = Rig::new(false);
    let before = rig.shard.pool().in_use();
    let buf = rig.read(LARGE_BYTES, 1);
    let slots = rig.commands(1);
    let wire = rig.peer.answers(&slots);
    write(&mut rig, &wire[..5000]);
    rig.settle();
    // The caller lets go of it, and so does the request when its head is closed; what is left is the queue's.
    drop(buf);
    let (closed, mut answered) = oneshot::channel();
    let (controller, head) = (rig.controller, rig.head);
    rig.shard
        .handle(ToShard::CloseQueues { controller, closed });
    rig.shard.handle(ToShard::CloseHead { head });
    if answered.try_recv().is_err() {
        assert!(rig.shard.pool().in_use() > 0, "not while the queue has it");
    }
    rig.until("the end of the queue", |_| answered.try_recv().is_ok());
    rig.turn(Wait::Poll);
    assert_eq!(rig.done.len(), 1);
    assert_eq!(rig.done[0].result, Err(IoError::Closed));
    // The queue's own buffer went with it.
    assert_eq!(rig.shard.pool().in_use(), before - 1);
}

#[test]
fn small_reads_go_on_as_before_after_large_ones() {
    let mut rig = Rig::new(false);
    for round in 0..200 {
        let bytes = if round == 20 { LARGE_BYTES } else { 4096 };
        let buf = rig.read(bytes, round);
        let slots = rig.commands(1);
        let wire = rig.peer.answers(&slots);
        write(&mut rig, &wire);
        rig.until("the answer", |rig| rig.done.len() == 1);
        check(&buf);
        rig.done.clear();
    }
}

#[test]
fn time_outs_in_two_steps() {
    let mut rig = Rig::new(false);
    rig.read(4096, 1);
    let slots = rig.commands(1);
    let cid = rig.peer.conn.command(slots[0]).cid();
    rig.tick_to(0, IO_TIMEOUT_MS - 1000);
    assert!(rig.events.try_recv().is_err(), "not yet");
    rig.tick_to(IO_TIMEOUT_MS - 500, IO_TIMEOUT_MS + 500);
    match rig.events.try_recv() {
        Ok(FromShard::CommandLate {
            association: 1,
            qid: Qid(1),
            cid: late,
        }) => assert_eq!(late, cid),
        other => panic!("{other:?}"),
    }
    // Once, and the queue goes on as if nothing was: another command is answered.
    rig.tick_to(IO_TIMEOUT_MS + 1000, IO_TIMEOUT_MS + 10_000);
    assert!(rig.events.try_recv().is_err());
    let buf = rig.read(512, 2);
    let other = rig.commands(1);
    let wire = rig.peer.answers(&other);
    write(&mut rig, &wire);
    rig.until("the other's answer", |rig| rig.done.len() == 1);
    rig.expect_done(2);
    check(&buf);
    // Without an answer for as long again the queue is given up, and the command is held.
    rig.tick_to(IO_TIMEOUT_MS + 10_500, 2 * IO_TIMEOUT_MS + 1500);
    match rig.events.try_recv() {
        Ok(FromShard::QueueFailed { error, .. }) => {
            assert_eq!(error, QueueError::CommandTimeout(IO_TIMEOUT_MS));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((rig.done.len(), rig.shard.open()), (1, 1));
    let (closed, mut answered) = oneshot::channel();
    let controller = rig.controller;
    rig.shard
        .handle(ToShard::CloseQueues { controller, closed });
    rig.until("the end of the queue", |_| answered.try_recv().is_ok());
    rig.reconnect();
    let slots = rig.commands(1);
    let wire = rig.peer.answers(&slots);
    write(&mut rig, &wire);
    rig.until("the answer", |rig| rig.done.len() == 2);
    rig.expect_done(1);
}
