//! The ring on real TCP connections, with what the kernel offers and with the fallbacks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use nvmf_io::{
    BufPool, Completion, Errno, PoolConfig, Ring, RingConfig, RxScatter, SockId, Token, TxBatch,
    Wait,
};

const RECV: Token = Token(1);
const SEND: Token = Token(2);

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (peer, ours.into())
}

/// Each test runs on the newest features of this kernel and on the oldest that is supported.
fn both(test: impl Fn(&RingConfig)) {
    for baseline in [false, true] {
        test(&RingConfig {
            baseline,
            ..RingConfig::default()
        });
    }
}

fn next(ring: &mut Ring) -> Completion {
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        ring.wait(Wait::Block).unwrap();
    }
}

fn receive(ring: &mut Ring, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let done = next(ring);
        assert_eq!(done.token, RECV);
        assert!(done.more, "{done:?}");
        let chunk = done.rx.expect("a chunk");
        assert_eq!(chunk.len() as u32, done.result.unwrap());
        bytes.extend_from_slice(&chunk);
    }
    bytes
}

fn connected(config: &RingConfig) -> (Ring, TcpStream, SockId) {
    let mut ring = Ring::new(config).unwrap();
    let (peer, ours) = pair();
    let socket = ring.add_socket(ours);
    (ring, peer, socket)
}

#[test]
fn multishot_receive_until_the_stream_ends() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        ring.recv_multishot(socket, RECV);
        for round in 0..200u8 {
            peer.write_all(&[round; 300]).unwrap();
            assert_eq!(receive(&mut ring, 300), [round; 300]);
        }
        assert_eq!(ring.rx_available(), 64);
        drop(peer);
        let end = next(&mut ring);
        assert_eq!((end.token, end.result, end.more), (RECV, Ok(0), false));
        assert_eq!(ring.in_flight(), 0);
    });
}

#[test]
fn receive_buffers_that_run_out_stop_and_restart_the_receive() {
    for baseline in [false, true] {
        let config = RingConfig {
            rx_buffers: 2,
            rx_buffer_bytes: 4096,
            baseline,
            ..RingConfig::default()
        };
        let (mut ring, mut peer, socket) = connected(&config);
        ring.recv_multishot(socket, RECV);
        let sent: Vec<u8> = (0..64 * 1024u32).map(|n| (n % 251) as u8).collect();
        peer.write_all(&sent).unwrap();
        let mut got = Vec::new();
        let mut held = Vec::new();
        while got.len() < sent.len() {
            if held.len() == 2 {
                // Both buffers are held: nothing can arrive, whatever is there to be read.
                assert_eq!(ring.rx_available(), 0);
                ring.wait(Wait::Poll).unwrap();
                assert!(ring.next().is_none());
                held.clear();
            }
            let done = next(&mut ring);
            let chunk = done.rx.expect("a chunk");
            got.extend_from_slice(&chunk);
            held.push(chunk);
        }
        assert!(got == sent);
    }
}

#[test]
fn batches_are_sent_whole_and_come_back() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        let pool = BufPool::new(&PoolConfig::default());
        let mut batch = TxBatch::new(1024, 16);
        for round in 0..4u8 {
            // More than the socket buffers hold, so that it is sent in parts.
            let buf = pool.alloc(2 << 20).unwrap();
            buf.fill(0..1 << 20, round);
            buf.fill(1 << 20..2 << 20, !round);
            let mut expected = Vec::new();
            for header in 0..3u8 {
                batch.push_header(&[header; 24]).unwrap();
                batch.push_payload(&buf, 0..2 << 20).unwrap();
                expected.extend_from_slice(&[header; 24]);
                expected.extend(std::iter::repeat_n(round, 1 << 20));
                expected.extend(std::iter::repeat_n(!round, 1 << 20));
            }
            batch.push_trailer(b"digest").unwrap();
            expected.extend_from_slice(b"digest");
            drop(buf);
            let total = expected.len();
            ring.send(socket, batch, SEND);
            ring.wait(Wait::Poll).unwrap();
            assert_eq!(pool.in_use(), 1, "the batch holds the payload");
            let reader = std::thread::spawn({
                let mut peer = peer.try_clone().unwrap();
                move || {
                    let mut got = vec![0; total];
                    peer.read_exact(&mut got).unwrap();
                    got
                }
            });
            let done = next(&mut ring);
            assert_eq!((done.token, done.result), (SEND, Ok(total as u32)));
            assert!(reader.join().unwrap() == expected);
            batch = done.batch.expect("the batch");
            batch.clear();
            assert_eq!(pool.in_use(), 0);
        }
        // The peer is gone: the send fails and the batch comes back all the same.
        peer.shutdown(std::net::Shutdown::Both).unwrap();
        let _ = peer.read(&mut [0]);
        drop(peer);
        let failed = loop {
            batch.clear();
            batch.push_header(&[0; 512]).unwrap();
            ring.send(socket, batch, SEND);
            let done = next(&mut ring);
            match done.result {
                Ok(_) => batch = done.batch.unwrap(),
                Err(errno) => break (errno, done.batch.is_some()),
            }
        };
        assert!(
            matches!(failed, (Errno::PIPE | Errno::CONNRESET, true)),
            "{failed:?}"
        );
    });
}

#[test]
fn exact_receive_into_a_buffer() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        let pool = BufPool::new(&PoolConfig::default());
        let mut buf = pool.alloc(8192).unwrap();
        ring.recv_into(socket, &buf, 100..8100, RECV);
        ring.wait(Wait::Poll).unwrap();
        for part in 0..8u8 {
            assert!(ring.next().is_none(), "complete only when all has come");
            assert!(
                buf.get_mut().is_none() && buf.bytes().is_none(),
                "the kernel writes"
            );
            peer.write_all(&[part + 1; 1000]).unwrap();
            ring.wait(Wait::Poll).unwrap();
        }
        let done = next(&mut ring);
        assert_eq!(
            (done.token, done.result, done.more),
            (RECV, Ok(8000), false)
        );
        let bytes = buf.get_mut().expect("the operation let go");
        assert_eq!(bytes[99], 0);
        for part in 0..8 {
            assert!(
                bytes[100 + part * 1000..][..1000]
                    .iter()
                    .all(|&b| b == part as u8 + 1)
            );
        }
        assert_eq!(bytes[8100], 0);

        peer.write_all(&[9; 10]).unwrap();
        drop(peer);
        ring.recv_into(socket, &buf, 0..20, RECV);
        assert_eq!(next(&mut ring).result, Ok(10), "the stream ended early");
        ring.recv_into(socket, &buf, 0..20, RECV);
        assert_eq!(next(&mut ring).result, Ok(0));
    });
}

#[test]
fn one_receive_into_a_buffer_and_a_room() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        let pool = BufPool::new(&PoolConfig::default());
        let mut buf = pool.alloc(8192).unwrap();
        buf.fill(0..8192, 0xee);
        let mut scatter = RxScatter::new();
        let sent: Vec<u8> = (0..5000u32).map(|n| (n % 251) as u8).collect();

        // What there is, and no more than was asked for.
        peer.write_all(&sent).unwrap();
        ring.recv_scatter(socket, scatter, Some((&buf, 100..4100)), 24, RECV);
        ring.wait(Wait::Poll).unwrap();
        let done = next(&mut ring);
        assert_eq!(
            (done.token, done.result, done.more),
            (RECV, Ok(4024), false)
        );
        scatter = done.scatter.unwrap();
        assert_eq!(scatter.buffer_bytes(), 4000);
        assert_eq!(scatter.room(), &sent[4000..4024]);
        let bytes = buf.get_mut().expect("the operation let go");
        assert!(bytes[..100].iter().all(|byte| *byte == 0xee));
        assert!(bytes[100..4100] == sent[..4000]);
        assert!(bytes[4100..].iter().all(|byte| *byte == 0xee));

        // The room alone; more is asked for than it has.
        ring.recv_scatter(socket, scatter, None, u32::MAX, RECV);
        scatter = next(&mut ring).scatter.unwrap();
        assert_eq!(scatter.buffer_bytes(), 0);
        assert_eq!(scatter.room(), &sent[4024..4024 + 128]);

        // Less than the buffer takes: the room stays empty, whatever it held.
        let left = 5000 - 4024 - 128;
        ring.recv_scatter(socket, scatter, Some((&buf, 0..8192)), 24, RECV);
        let done = next(&mut ring);
        assert_eq!(done.result, Ok(left));
        scatter = done.scatter.unwrap();
        assert_eq!((scatter.buffer_bytes(), scatter.room()), (left, &[][..]));

        // Nothing: it waits, and the kernel may write until it is cancelled.
        ring.recv_scatter(socket, scatter, Some((&buf, 0..10)), 24, RECV);
        ring.wait(Wait::Poll).unwrap();
        assert!(ring.next().is_none());
        assert!(buf.get_mut().is_none() && buf.bytes().is_none());
        ring.cancel(RECV);
        let done = next(&mut ring);
        assert_eq!(done.result, Err(Errno::CANCELED));
        scatter = done.scatter.unwrap();
        assert_eq!((scatter.buffer_bytes(), scatter.room()), (0, &[][..]));
        assert!(buf.get_mut().is_some());

        // It comes back from receives that cannot be, too, and from those that wait when the ring goes.
        let read = buf.bytes().unwrap();
        ring.recv_scatter(socket, scatter, Some((&buf, 0..10)), 24, RECV);
        let done = next(&mut ring);
        assert_eq!(done.result, Err(Errno::BUSY));
        scatter = done.scatter.unwrap();
        drop(read);
        let (_other, ours) = pair();
        let gone = ring.add_socket(ours);
        ring.remove_socket(gone);
        ring.recv_scatter(gone, scatter, Some((&buf, 0..10)), 24, RECV);
        let done = next(&mut ring);
        assert_eq!(done.result, Err(Errno::BADF));
        scatter = done.scatter.unwrap();
        ring.recv_scatter(socket, scatter, Some((&buf, 0..10)), 24, RECV);
        ring.wait(Wait::Poll).unwrap();
        drop(ring);
        assert!(buf.is_unique());
    });
}

#[test]
fn a_receive_of_at_most_so_much() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        peer.write_all(b"this and no more").unwrap();
        ring.recv_at_most(socket, 4, RECV);
        let done = next(&mut ring);
        assert_eq!((&done.rx.unwrap()[..], done.more), (&b"this"[..], false));
        ring.recv_at_most(socket, 1 << 30, RECV);
        assert_eq!(&next(&mut ring).rx.unwrap()[..], b" and no more");
    });
}

/// Whatever step a receive is at when it is cancelled, it ends, with what it came to.
#[test]
fn a_cancelled_receive_ends_in_the_middle_of_a_stream() {
    both(|config| {
        for turns in 0..6 {
            let (mut ring, mut peer, socket) = connected(config);
            peer.write_all(&[1; 256 << 10]).unwrap();
            ring.recv_multishot(socket, RECV);
            let mut got = 0;
            for _ in 0..turns {
                ring.wait(Wait::Poll).unwrap();
                while let Some(done) = ring.next() {
                    got += done.rx.unwrap().len();
                }
            }
            ring.cancel(RECV);
            loop {
                let done = next(&mut ring);
                got += done.rx.map_or(0, |chunk| chunk.len());
                if !done.more {
                    assert!(matches!(done.result, Ok(1..) | Err(Errno::CANCELED)));
                    break;
                }
            }
            assert_eq!(ring.in_flight(), 0, "after {turns} turns");
            // Nothing was lost.
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            ring.recv_multishot(socket, RECV);
            loop {
                let done = next(&mut ring);
                got += done.rx.map_or(0, |chunk| chunk.len());
                if !done.more && done.result == Ok(0) {
                    break;
                }
            }
            assert_eq!(got, 256 << 10);
        }
    });
}

#[test]
fn cancelling_and_shutting_down() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        ring.recv_multishot(socket, RECV);
        ring.wait(Wait::Poll).unwrap();
        ring.cancel(RECV);
        let done = next(&mut ring);
        assert_eq!((done.result, done.more), (Err(Errno::CANCELED), false));
        // The socket still works.
        peer.write_all(b"once").unwrap();
        ring.recv_once(socket, RECV);
        let done = next(&mut ring);
        assert_eq!((&done.rx.unwrap()[..], done.more), (&b"once"[..], false));
        ring.recv_multishot(socket, RECV);
        ring.wait(Wait::Poll).unwrap();
        ring.shutdown(socket).unwrap();
        let done = next(&mut ring);
        assert_eq!((done.result, done.more), (Ok(0), false));
        assert!(ring.remove_socket(socket).is_some());
        assert!(ring.remove_socket(socket).is_none());
        ring.recv_once(socket, RECV);
        assert_eq!(next(&mut ring).result, Err(Errno::BADF));
        assert_eq!(ring.in_flight(), 0);
    });
}

#[test]
fn a_dropped_ring_ends_what_is_in_flight() {
    both(|config| {
        let pool = BufPool::new(&PoolConfig::default());
        let (mut ring, peer, socket) = connected(config);
        let (peer2, ours2) = pair();
        let socket2 = ring.add_socket(ours2);
        let buf = pool.alloc(4096).unwrap();
        let mut batch = TxBatch::new(64, 64);
        let big = pool.alloc(2 << 20).unwrap();
        for _ in 0..32 {
            batch.push_payload(&big, 0..2 << 20).unwrap();
        }
        ring.recv_multishot(socket, RECV);
        ring.recv_into(socket2, &buf, 0..4096, RECV);
        ring.send(socket, batch, SEND);
        ring.wait(Wait::Poll).unwrap();
        ring.recv_multishot(socket2, Token(9)); // not submitted yet
        assert_eq!(ring.in_flight(), 4);
        drop(ring);
        assert!(
            buf.is_unique() && big.is_unique(),
            "operations gave their handles back"
        );
        drop((peer, peer2));
    });
}

#[test]
fn a_reset_ends_everything_on_its_connection_only() {
    both(|config| {
        let (mut ring, peer, socket) = connected(config);
        let (mut other_peer, other) = pair();
        let other = ring.add_socket(other);
        let pool = BufPool::new(&PoolConfig::default());
        ring.recv_multishot(socket, RECV);
        ring.recv_multishot(other, Token(7));
        ring.wait(Wait::Poll).unwrap();
        rustix::net::sockopt::set_socket_linger(&peer, Some(std::time::Duration::ZERO)).unwrap();
        drop(peer);
        let done = next(&mut ring);
        assert_eq!((done.token, done.result), (RECV, Err(Errno::CONNRESET)));
        assert!(!done.more && done.rx.is_none());
        // Exact receives and sends fail too.
        let buf = pool.alloc(4096).unwrap();
        ring.recv_into(socket, &buf, 0..4096, RECV);
        let done = next(&mut ring);
        assert!(
            matches!(done.result, Ok(0) | Err(Errno::CONNRESET)),
            "{done:?}"
        );
        let mut batch = TxBatch::new(64, 4);
        batch.push_header(&[1; 64]).unwrap();
        ring.send(socket, batch, SEND);
        let done = next(&mut ring);
        assert_eq!((done.token, done.result), (SEND, Err(Errno::PIPE)));
        assert!(done.batch.is_some());
        // The other connection does not notice.
        other_peer.write_all(b"well").unwrap();
        let done = next(&mut ring);
        assert_eq!((done.token, done.more), (Token(7), true));
        assert_eq!(&done.rx.unwrap()[..], b"well");
        assert_eq!(ring.rx_available(), 64);
    });
}

#[test]
fn an_exact_receive_ends_with_its_connection() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(4096).unwrap();
        ring.recv_into(socket, &buf, 0..4096, RECV);
        ring.wait(Wait::Poll).unwrap();
        peer.write_all(&[1; 1000]).unwrap();
        ring.wait(Wait::Poll).unwrap();
        assert!(ring.next().is_none());
        rustix::net::sockopt::set_socket_linger(&peer, Some(std::time::Duration::ZERO)).unwrap();
        drop(peer);
        let done = next(&mut ring);
        // The kernel may have told of the reset together with the bytes before it.
        assert!(
            matches!(done.result, Ok(1000) | Err(Errno::CONNRESET)),
            "{done:?}"
        );
        assert!(buf.is_unique());
    });
}

#[test]
fn many_connections_share_few_receive_buffers() {
    for baseline in [false, true] {
        let config = RingConfig {
            rx_buffers: 4,
            rx_buffer_bytes: 4096,
            baseline,
            ..RingConfig::default()
        };
        let mut ring = Ring::new(&config).unwrap();
        const CONNECTIONS: u64 = 40;
        let peers: Vec<TcpStream> = (0..CONNECTIONS)
            .map(|n| {
                let (peer, ours) = pair();
                let socket = ring.add_socket(ours);
                ring.recv_multishot(socket, Token(n));
                peer
            })
            .collect();
        ring.wait(Wait::Poll).unwrap();
        assert_eq!(
            ring.in_flight() as u64,
            CONNECTIONS,
            "idle connections hold no buffer"
        );
        assert_eq!(ring.rx_available(), 4);
        let mut got = vec![0usize; CONNECTIONS as usize];
        let mut held = Vec::new();
        for round in 0..3 {
            for mut peer in &peers {
                peer.write_all(&[round; 1000]).unwrap();
            }
            while got
                .iter()
                .any(|&bytes| bytes < 1000 * (usize::from(round) + 1))
            {
                let done = next(&mut ring);
                let chunk = done.rx.expect("a chunk");
                assert!(done.more);
                assert!(chunk.iter().all(|&byte| byte == round));
                got[done.token.0 as usize] += chunk.len();
                held.push(chunk);
                if held.len() == 4 {
                    held.clear();
                }
            }
            held.clear();
        }
    }
}

#[test]
fn cancelling_a_receive_that_waits_for_buffers() {
    for baseline in [false, true] {
        let config = RingConfig {
            rx_buffers: 1,
            rx_buffer_bytes: 4096,
            baseline,
            ..RingConfig::default()
        };
        let (mut ring, mut peer, socket) = connected(&config);
        ring.recv_multishot(socket, RECV);
        peer.write_all(&[1; 8192]).unwrap();
        let chunk = next(&mut ring).rx.unwrap();
        // The only buffer is held, so the receive cannot go on.
        ring.wait(Wait::Poll).unwrap();
        assert!(ring.next().is_none());
        ring.cancel(RECV);
        let done = next(&mut ring);
        assert_eq!(
            (done.token, done.result, done.more),
            (RECV, Err(Errno::CANCELED), false)
        );
        assert_eq!(ring.in_flight(), 0);
        drop(chunk);
        ring.recv_once(socket, RECV);
        assert_eq!(next(&mut ring).rx.unwrap().len(), 4096);
    }
}

#[test]
fn a_chunk_outlives_its_ring() {
    both(|config| {
        let (mut ring, mut peer, socket) = connected(config);
        ring.recv_multishot(socket, RECV);
        peer.write_all(b"kept").unwrap();
        let chunk = next(&mut ring).rx.unwrap();
        drop(ring);
        assert_eq!(&chunk[..], b"kept");
    });
}

#[test]
fn sending_and_receiving_at_once() {
    both(|config| {
        let (mut ring, peer, socket) = connected(config);
        let total = 24usize << 20;
        // The peer sends back all that it gets.
        let echo = std::thread::spawn(move || {
            let mut reader = &peer;
            let mut writer = &peer;
            std::io::copy(&mut reader, &mut writer).unwrap()
        });
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(1 << 20).unwrap();
        for at in 0..1u32 << 18 {
            buf.copy_in(at * 4, &at.to_le_bytes());
        }
        ring.recv_multishot(socket, RECV);
        let mut sent = 0;
        let mut got = Vec::with_capacity(total);
        let mut batch = TxBatch::new(64, 4);
        batch.push_payload(&buf, 0..1 << 20).unwrap();
        ring.send(socket, batch, SEND);
        while got.len() < total {
            let done = next(&mut ring);
            match done.token {
                SEND => {
                    sent += done.result.unwrap() as usize;
                    let mut batch = done.batch.unwrap();
                    batch.clear();
                    if sent < total {
                        batch.push_payload(&buf, 0..1 << 20).unwrap();
                        ring.send(socket, batch, SEND);
                    }
                }
                _ => got.extend_from_slice(&done.rx.expect("a chunk")),
            }
        }
        let expected = buf.bytes().unwrap();
        assert!(got.chunks(1 << 20).all(|part| part == &expected[..]));
        ring.shutdown(socket).unwrap();
        assert_eq!(echo.join().unwrap() as usize, total);
    });
}
