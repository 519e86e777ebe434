//! The front end on a real ring and real sockets, with a backing that answers when the test says so.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nvmf_io::{BufPool, PoolConfig, Ring, RingConfig, Wait};
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::block::nbd::wire::{
    NbdError, REQUEST_MAGIC, RequestHeader, SIMPLE_REPLY_MAGIC, SimpleReply, command,
};
use crate::block::nbd::{MAX_TRANSFER_BYTES, PART_BYTES, test_export, test_spec};
use crate::block::{BlockOp, BlockRequest};

/// Nothing waits that long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

const GREETING_BYTES: usize = 18;
/// Three answers to GO: 12 and 14 bytes of information, and the end.
const GO_ANSWER_BYTES: usize = 3 * 20 + 12 + 14;

struct Server {
    ring: Ring,
    pool: BufPool,
    front: NbdFrontEnd,
    requests: Vec<BlockRequest>,
    clients: Arc<Clients>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Server {
    fn new() -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let clients = Arc::<Clients>::default();
        let source = Source::Listener {
            fd: Arc::new(listener.into()),
            clients: clients.clone(),
        };
        let spec = test_spec();
        let front = NbdFrontEnd::new(source, test_export(), spec.limits, spec.queue_depth);
        let mut server = Server {
            ring: Ring::new(&RingConfig::default()).unwrap(),
            pool: BufPool::new(&PoolConfig::default()),
            front,
            requests: Vec::new(),
            clients,
            path,
            _dir: dir,
        };
        server
            .with(|front, io| front.start(TokenSpace::new(5), io))
            .unwrap();
        server
    }

    fn with<R>(&mut self, call: impl FnOnce(&mut NbdFrontEnd, &mut FrontEndIo<'_>) -> R) -> R {
        let mut io = FrontEndIo {
            ring: &mut self.ring,
            pool: &self.pool,
            requests: &mut self.requests,
            front_ends: 1,
        };
        call(&mut self.front, &mut io)
    }

    /// One turn of the loop.
    fn turn(&mut self) {
        self.with(|front, io| front.end_turn(io));
        self.ring.wait(Wait::Poll).unwrap();
        while let Some(completion) = self.ring.next() {
            self.with(|front, io| front.on_completion(completion, io));
        }
    }

    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Server) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{what} did not happen");
            self.turn();
        }
    }

    /// A few turns, after which whatever could happen has happened: each finds nothing to do.
    fn settle(&mut self) {
        for _ in 0..64 {
            self.turn();
        }
    }

    /// Answers the oldest request.
    fn answer(&mut self, result: Result<(), Errno>) {
        let request = self.requests.remove(0);
        if request.op == BlockOp::Read
            && let Some(buf) = &request.buf
        {
            buf.fill(0..request.len_bytes, request.offset_bytes as u8 | 1);
        }
        let tag = request.tag;
        drop(request);
        self.with(|front, io| front.on_done(BlockDone { tag, result }, io));
    }

    /// A client that has said nothing yet.
    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        Client(stream)
    }

    /// A client that may send requests.
    fn client(&mut self) -> Client {
        let mut client = self.connect();
        client.send(&[0, 0, 0, 3]);
        client.send(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
        client.receive(self, GREETING_BYTES + GO_ANSWER_BYTES);
        client
    }
}

struct Client(UnixStream);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Bytes more than the socket holds: turns of the server in between.
    fn send_all(&mut self, server: &mut Server, mut bytes: &[u8]) {
        server.until("sending", |_| match self.0.write(bytes) {
            Ok(count) => {
                bytes = &bytes[count..];
                bytes.is_empty()
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                false
            }
        });
    }

    fn request(&mut self, command: u16, cookie: u64, offset_bytes: u64, len_bytes: u32) {
        self.send(header(command, cookie, offset_bytes, len_bytes).as_bytes());
    }

    fn receive(&mut self, server: &mut Server, count: usize) -> Vec<u8> {
        let (mut bytes, mut at) = (vec![0; count], 0);
        server.until("receiving", |_| {
            match self.0.read(&mut bytes[at..]) {
                Ok(0) => panic!("the connection ended"),
                Ok(count) => at += count,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            at == count
        });
        bytes
    }

    /// Cookie and error of the next reply.
    fn reply(&mut self, server: &mut Server) -> (u64, u32) {
        let bytes = self.receive(server, size_of::<SimpleReply>());
        let reply = SimpleReply::read_from_bytes(&bytes).unwrap();
        assert_eq!(reply.magic.get(), SIMPLE_REPLY_MAGIC);
        (reply.cookie.get(), reply.error.get())
    }

    /// Waits for the server to end the connection.
    fn ended(&mut self, server: &mut Server) {
        server.until("the end of the connection", |_| {
            match self.0.read(&mut [0; 4096]) {
                Ok(0) => true,
                Ok(_) => false,
                // It had not read all that we sent.
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            }
        });
    }
}

fn header(command: u16, cookie: u64, offset_bytes: u64, len_bytes: u32) -> RequestHeader {
    RequestHeader {
        magic: REQUEST_MAGIC.into(),
        flags: 0.into(),
        command: command.into(),
        cookie: cookie.into(),
        offset_bytes: offset_bytes.into(),
        len_bytes: len_bytes.into(),
    }
}

#[test]
fn requests_are_answered_in_any_order_by_their_cookies() {
    let mut server = Server::new();
    let mut client = server.client();
    client.request(command::READ, 10, 8192, 512);
    client.request(command::FLUSH, 11, 0, 0);
    server.until("two requests", |server| server.requests.len() == 2);
    server.requests.swap(0, 1);
    server.answer(Ok(()));
    assert_eq!(client.reply(&mut server), (11, 0));
    server.answer(Ok(()));
    assert_eq!(client.reply(&mut server), (10, 0));
    assert_eq!(client.receive(&mut server, 512), [1; 512]);
    assert_eq!(server.pool.in_use(), 0);
}

#[test]
fn payloads_arrive_whole_however_they_are_cut() {
    let mut server = Server::new();
    let mut client = server.client();
    // The first is received with what follows it, the third straight into its buffer, the others into several.
    for len_bytes in [512, 4096, 100 << 10, (1 << 20) + 512, MAX_TRANSFER_BYTES] {
        let parts = len_bytes.div_ceil(PART_BYTES) as usize;
        let payload: Vec<u8> = (0..len_bytes).map(|at| (at / 7) as u8).collect();
        let mut bytes = header(command::WRITE, 1, 0, len_bytes).as_bytes().to_vec();
        bytes.extend(&payload);
        // The header in two parts, then a part of the payload, then the rest with another request behind it.
        client.send(&bytes[..20]);
        server.settle();
        client.send(&bytes[20..30]);
        server.settle();
        client.send_all(&mut server, &bytes[30..]);
        client.request(command::FLUSH, 2, 0, 0);
        server.until("both requests", |server| server.requests.len() == parts + 1);
        let mut received = vec![0; len_bytes as usize];
        for request in &server.requests[..parts] {
            assert_eq!(request.op, BlockOp::Write { fua: false });
            let at = request.offset_bytes as usize;
            let part = &mut received[at..at + request.len_bytes as usize];
            request.buf.as_ref().unwrap().copy_out(0, part);
        }
        assert!(received == payload);
        for _ in 0..parts {
            server.answer(Ok(()));
        }
        server.answer(Err(Errno::IO));
        assert_eq!(client.reply(&mut server), (1, 0));
        assert_eq!(client.reply(&mut server), (2, NbdError::IO.0));
    }
    assert_eq!(server.pool.in_use(), 0);
}

#[test]
fn a_long_read_is_answered_when_all_of_it_is_there_or_has_failed() {
    let mut server = Server::new();
    let mut client = server.client();
    for failing in [None, Some(0), Some(2)] {
        client.request(command::READ, 1, 0, 2 * PART_BYTES + 4096);
        server.until("its parts", |server| server.requests.len() == 3);
        let ranges: Vec<_> = server
            .requests
            .iter()
            .map(|r| (r.offset_bytes, r.len_bytes))
            .collect();
        let part = u64::from(PART_BYTES);
        assert_eq!(
            ranges,
            [(0, PART_BYTES), (part, PART_BYTES), (2 * part, 4096)]
        );
        for at in 0..3 {
            assert!(client.0.read(&mut [0; 1]).is_err(), "too early");
            let failed = failing == Some(at);
            server.answer(if failed { Err(Errno::NOMEM) } else { Ok(()) });
        }
        if failing.is_some() {
            assert_eq!(client.reply(&mut server), (1, NbdError::NOMEM.0));
        } else {
            assert_eq!(client.reply(&mut server), (1, 0));
            client.receive(&mut server, 2 * PART_BYTES as usize + 4096);
        }
        server.settle();
        assert_eq!(server.pool.in_use(), 0);
    }
    assert!(
        client.0.read(&mut [0; 1]).is_err(),
        "nothing follows an error"
    );
}

#[test]
fn fua_of_what_has_none_is_a_flush_after_it() {
    let mut server = Server::new();
    let mut client = server.client();
    let mut trim = header(command::TRIM, 5, 0, 4096);
    trim.flags = 1.into();
    client.send(trim.as_bytes());
    server.until("the trim", |server| server.requests.len() == 1);
    assert_eq!(server.requests[0].op, BlockOp::Discard);
    server.answer(Ok(()));
    assert_eq!(server.requests[0].op, BlockOp::Flush);
    server.answer(Ok(()));
    assert_eq!(client.reply(&mut server), (5, 0));
    // After an error there is nothing to flush.
    client.send(trim.as_bytes());
    server.until("the trim", |server| server.requests.len() == 1);
    server.answer(Err(Errno::NOSPC));
    assert_eq!(client.reply(&mut server), (5, NbdError::NOSPC.0));
    assert!(server.requests.is_empty());
}

#[test]
fn a_refused_write_is_passed_over_and_the_next_request_understood() {
    let mut server = Server::new();
    let mut client = server.client();
    let len_bytes = MAX_TRANSFER_BYTES + 512;
    let mut bytes = header(command::WRITE, 1, 0, len_bytes).as_bytes().to_vec();
    bytes.resize(bytes.len() + len_bytes as usize, 0x25);
    bytes.extend(header(command::WRITE, 2, 0, 0).as_bytes());
    bytes.extend(header(command::READ, 3, 1, 512).as_bytes());
    client.send_all(&mut server, &bytes);
    assert_eq!(client.reply(&mut server), (1, NbdError::INVAL.0));
    assert_eq!(client.reply(&mut server), (2, 0));
    assert_eq!(client.reply(&mut server), (3, NbdError::INVAL.0));
    assert!(server.requests.is_empty());
}

#[test]
fn a_client_that_breaks_a_rule_is_cut_off_and_the_others_are_not() {
    let mut server = Server::new();
    let mut good = server.client();
    good.request(command::READ, 1, 0, 512);
    server.until("a request", |server| server.requests.len() == 1);
    let mut loses_count = server.client();
    loses_count.send(&[0xee; 28]);
    loses_count.ended(&mut server);
    let mut speaks_http = server.connect();
    speaks_http.send(b"\0\0\0\x03GET / HTTP/1.1\r\n");
    speaks_http.ended(&mut server);
    let mut floods = server.client();
    floods.request(command::WRITE, 2, 0, u32::MAX);
    floods.ended(&mut server);
    server.answer(Ok(()));
    assert_eq!(good.reply(&mut server), (1, 0));
}

#[test]
fn disconnecting_lets_what_was_asked_for_finish() {
    let mut server = Server::new();
    let mut client = server.client();
    let pid = std::process::id();
    assert_eq!(server.clients[0].load(Ordering::Acquire), pid);
    client.request(command::FLUSH, 1, 0, 0);
    client.request(command::DISC, 2, 0, 0);
    server.until("the flush", |server| server.requests.len() == 1);
    server.settle();
    server.answer(Ok(()));
    assert_eq!(client.reply(&mut server), (1, 0));
    client.ended(&mut server);
    assert_eq!(server.clients[0].load(Ordering::Acquire), 0);
}

#[test]
fn nothing_is_started_while_requests_of_an_ended_connection_are_open() {
    let mut server = Server::new();
    let mut dying = server.client();
    let mut living = server.client();
    let mut bytes = header(command::WRITE, 1, 0, 512).as_bytes().to_vec();
    bytes.resize(bytes.len() + 512, 7);
    dying.send(&bytes);
    server.until("the write", |server| server.requests.len() == 1);
    drop(dying);
    server.settle();
    // The same write again, by another connection and by a new one.
    living.send(&bytes);
    let mut fresh = server.client();
    fresh.send(&bytes);
    server.settle();
    assert_eq!(server.requests.len(), 1, "the late write comes first");
    server.answer(Ok(()));
    server.until("the others", |server| server.requests.len() == 2);
    server.answer(Ok(()));
    server.answer(Ok(()));
    assert_eq!(living.reply(&mut server), (1, 0));
    assert_eq!(fresh.reply(&mut server), (1, 0));
    assert_eq!(server.pool.in_use(), 0);
}

#[test]
fn a_client_that_reads_nothing_holds_up_only_itself() {
    let mut server = Server::new();
    let mut greedy = server.client();
    const REQUESTS: u64 = 40;
    for cookie in 0..REQUESTS {
        greedy.request(command::READ, cookie, 0, MAX_TRANSFER_BYTES);
    }
    let mut served = 0;
    for _ in 0..64 {
        server.settle();
        while !server.requests.is_empty() {
            server.answer(Ok(()));
            served += 1;
        }
    }
    assert!(served < 4 * REQUESTS, "{served} parts were read for nobody");
    let held = server.pool.in_use() as u64 * u64::from(PART_BYTES);
    assert!(held <= CLIENT_MEMORY_BYTES.into(), "{held} bytes");

    let mut modest = server.client();
    modest.request(command::READ, 77, 0, MAX_TRANSFER_BYTES);
    server.until("its read", |server| server.requests.len() == 4);
    while !server.requests.is_empty() {
        server.answer(Ok(()));
    }
    assert_eq!(modest.reply(&mut server), (77, 0));
    modest.receive(&mut server, MAX_TRANSFER_BYTES as usize);
    // And when the other one reads at last, it gets everything.
    for cookie in 0..REQUESTS {
        while !server.requests.is_empty() {
            server.answer(Ok(()));
        }
        let mut header = [0; 16];
        let mut at = 0;
        server.until("a reply", |server| {
            if !server.requests.is_empty() {
                server.answer(Ok(()));
            }
            at += greedy.0.read(&mut header[at..]).unwrap_or(0);
            at == header.len()
        });
        assert_eq!(u64::from_be_bytes(header[8..].try_into().unwrap()), cookie);
        greedy.receive(&mut server, MAX_TRANSFER_BYTES as usize);
    }
    assert_eq!(server.pool.in_use(), 0);
}

#[test]
fn a_connection_has_no_more_requests_open_than_its_depth() {
    let mut server = Server::new();
    let mut client = server.client();
    let depth = usize::from(test_spec().queue_depth);
    for cookie in 0..2 * depth as u64 {
        client.request(command::FLUSH, cookie, 0, 0);
    }
    server.until("requests", |server| server.requests.len() == depth);
    server.settle();
    assert_eq!(server.requests.len(), depth);
    for cookie in 0..2 * depth as u64 {
        server.until("another", |server| !server.requests.is_empty());
        server.answer(Ok(()));
        assert_eq!(client.reply(&mut server), (cookie, 0));
    }
}

#[test]
fn clients_that_say_nothing_make_room_for_one_that_does() {
    let mut server = Server::new();
    let mut serving = server.client();
    let mut silent: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| server.connect()).collect();
    let mut late = server.client();
    late.request(command::FLUSH, 9, 0, 0);
    server.until("its flush", |server| server.requests.len() == 1);
    server.answer(Ok(()));
    assert_eq!(late.reply(&mut server), (9, 0));
    silent[0].ended(&mut server);
    serving.request(command::FLUSH, 1, 0, 0);
    server.until("the flush", |server| server.requests.len() == 1);
    server.answer(Ok(()));
    assert_eq!(serving.reply(&mut server), (1, 0));
}

#[test]
fn clients_beyond_the_limit_are_served_when_one_leaves() {
    let mut server = Server::new();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| server.client()).collect();
    let mut late = server.connect();
    late.send(&[0, 0, 0, 3]);
    server.settle();
    assert!(late.0.read(&mut [0; 1]).is_err(), "nothing to read yet");
    clients.pop();
    late.receive(&mut server, GREETING_BYTES);
}

#[test]
fn stopping_ends_connections_and_waits_for_the_backing() {
    let mut server = Server::new();
    let mut client = server.client();
    client.request(command::READ, 1, 0, 512);
    server.until("the read", |server| server.requests.len() == 1);
    server.with(|front, io| front.stop(io));
    client.ended(&mut server);
    server.settle();
    assert!(!server.front.is_finished());
    server.answer(Ok(()));
    server.until("the end", |server| server.front.is_finished());
    assert_eq!(server.pool.in_use(), 0);
}

#[test]
fn the_driver_begins_with_requests_and_ends_the_device() {
    let mut server = Server::new();
    let (kernel, ours) = UnixStream::pair().unwrap();
    kernel.set_nonblocking(true).unwrap();
    let spec = test_spec();
    server.front = NbdFrontEnd::new(
        Source::Driver(ours.into()),
        test_export(),
        spec.limits,
        spec.queue_depth,
    );
    server
        .with(|front, io| front.start(TokenSpace::new(6), io))
        .unwrap();
    let mut kernel = Client(kernel);
    kernel.request(command::FLUSH, 1, 0, 0);
    server.until("the flush", |server| server.requests.len() == 1);
    server.answer(Ok(()));
    assert_eq!(kernel.reply(&mut server), (1, 0));
    assert!(!server.front.is_finished());
    kernel.request(command::DISC, 2, 0, 0);
    server.until("the end", |server| server.front.is_finished());
}
