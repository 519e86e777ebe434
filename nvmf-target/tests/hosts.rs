//! Hosts that misbehave: broken protocol, silence, no reading, more than the target has buffers for. Each gets what the standard names,
//! and the connections beside it do not notice.

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::host::PATIENCE;
use common::*;
use nvme_proto::queue::Transfer;
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::wire::{IoOpcode, Qid, Status};
use nvmf_target::backend::BackingSpec;
use nvmf_target::shard::{CloseReason, Patience, Scope, ShardConfig};
use rig::SUBSYSTEM;

fn qid(qid: u16) -> ConnectOptions {
    ConnectOptions {
        qid,
        ..ConnectOptions::default()
    }
}

/// A small pool: one chunk of 2 MiB for each class of buffers, no more.
fn small_pool() -> ShardConfig {
    ShardConfig {
        buffer_bytes: 12 << 20,
        ..ShardConfig::new(0)
    }
}

/// Writes and reads back, so that a connection that was harmed shows it.
fn is_unharmed(host: &mut TestHost, seed: u8) {
    for len in [4096, 128 << 10] {
        assert_eq!(host.write(32 << 20, vec![seed; len]), Status::SUCCESS);
        assert_eq!(host.read(32 << 20, len), Ok(vec![seed; len]));
    }
}

#[test]
fn pdus_cut_at_every_byte_are_put_together() {
    for digests in [false, true] {
        let mut rig = Rig::new(&[memory()]);
        let mut host = rig.connect_with(&ConnectOptions {
            digests,
            ..ConnectOptions::default()
        });
        host.stream.set_nodelay(true).unwrap();
        let write = host.start_write(0, (0..=255).cycle().take(512).collect());
        let read = host.start_read(0, 512);
        for byte in host.outgoing() {
            host.stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(host.wait(write).status, Status::SUCCESS);
        let written: Vec<u8> = (0..=255).cycle().take(512).collect();
        assert!([vec![0; 512], written.clone()].contains(&host.wait(read).data));
        assert_eq!(host.read(0, 512), Ok(written));
    }
}

#[test]
fn streams_cut_short_at_every_byte_harm_nobody() {
    let mut rig = Rig::new(&[memory()]);
    let mut witness = rig.connect();
    let mut whole = rig.connect_with(&qid(2));
    whole.start_write(0, vec![0; 512]);
    let capsule = whole.outgoing();
    whole.start_write(0, vec![0; 32 << 10]);
    let request = whole.outgoing();
    for cut in 0..capsule.len() + request.len() {
        let mut host = rig.connect_with(&qid(3));
        let bytes = [&capsule[..], &request[..]].concat();
        host.stream.write_all(&bytes[..cut]).unwrap();
        host.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let (_, closed, reason) = rig.closed();
        assert_eq!(
            (closed, reason),
            (Qid(3), CloseReason::HostClosed),
            "cut at {cut}"
        );
    }
    is_unharmed(&mut witness, 1);
    assert_eq!(rig.stats().queues.len(), 2);
}

/// What a broken PDU is answered with.
struct Bad {
    name: &'static str,
    bytes: Vec<u8>,
    /// Whether the termination request is about a field, and which.
    fes: Fes,
    fei: Option<u32>,
}

fn capsule(host: &mut TestHost) -> Vec<u8> {
    host.start_read(0, 512);
    host.outgoing()
}

fn bad_pdus(host: &mut TestHost) -> Vec<Bad> {
    let good = capsule(host);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    host.start_write(0, vec![0; 512]);
    let mut inside = host.outgoing();
    inside[3] = 8;
    let field = Fes::INVALID_HEADER_FIELD;
    let bad = |name, bytes, fes, fei| Bad {
        name,
        bytes,
        fes,
        fei,
    };
    let mut icreq = vec![0; 128];
    (icreq[2], icreq[4]) = (128, 128);
    // H2CData for a tag that was never given out: 24 bytes of header, 512 of data, LAST.
    let mut h2c = vec![0; 24 + 512];
    (h2c[0], h2c[1], h2c[2], h2c[3]) = (0x06, 1 << 2, 24, 24);
    h2c[4..8].copy_from_slice(&(24u32 + 512).to_le_bytes());
    h2c[16..20].copy_from_slice(&512u32.to_le_bytes());
    let mut huge = h2c.clone();
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    vec![
        bad("a second ICReq", icreq, Fes::PDU_SEQUENCE_ERROR, None),
        bad("unknown type", with(0, 0x0a), field, Some(0)),
        bad("type FFh", with(0, 0xff), field, Some(0)),
        bad(
            "a PDU that only controllers send",
            with(0, 0x05),
            field,
            Some(0),
        ),
        bad("HLEN too small", with(2, 71), field, Some(2)),
        bad("HLEN too large", with(2, 255), field, Some(2)),
        bad("PLEN below HLEN", with(4, 8), field, None),
        bad("PLEN of 4 GiB", huge, field, None),
        bad("PDO inside the header", inside, field, Some(3)),
        bad("H2CData for an unknown tag", h2c, field, None),
    ]
}

#[test]
fn broken_pdus_are_answered_with_a_termination_request() {
    let patience = Patience {
        termination: Duration::from_millis(50),
        ..Patience::default()
    };
    let mut rig = Rig::with_config(
        ShardConfig {
            patience,
            ..ShardConfig::new(0)
        },
        &[memory()],
    );
    let mut witness = rig.connect();
    let count = bad_pdus(&mut rig.connect_with(&qid(9))).len();
    assert_eq!(rig.closed().1, Qid(9));
    for (round, closes) in [(0, true), (1, false)] {
        for index in 0..count {
            let mut host = rig.connect_with(&qid(2));
            let bad = bad_pdus(&mut host).swap_remove(index);
            host.stream.write_all(&bad.bytes).unwrap();
            // More of anything is thrown away.
            let _ = host.stream.write_all(&[0xff; 1000]);
            while host.terminated.is_none() {
                assert!(host.receive(), "{}: closed without a word", bad.name);
            }
            let (fes, fei) = host.terminated.unwrap();
            assert_eq!(fes, bad.fes, "{}", bad.name);
            if let Some(expected) = bad.fei {
                assert_eq!(fei, expected, "{}", bad.name);
            }
            is_unharmed(&mut witness, index as u8 ^ round);
            if closes {
                drop(host);
            } else {
                // It does not close: the target does, after its patience.
                host.wait_closed();
            }
            let (_, closed, reason) = rig.closed();
            assert_eq!(closed, Qid(2));
            assert!(
                matches!(reason, CloseReason::Violation(_)),
                "{}: {reason:?}",
                bad.name
            );
        }
    }
}

#[test]
fn a_termination_request_of_the_host_closes() {
    let mut rig = Rig::new(&[memory()]);
    let mut host = rig.connect();
    let mut term = vec![0; 24];
    (term[0], term[2], term[4], term[8]) = (0x02, 24, 24, 2);
    host.stream.write_all(&term).unwrap();
    host.wait_closed();
    let (_, _, reason) = rig.closed();
    assert!(matches!(reason, CloseReason::Terminated(_)), "{reason:?}");
}

#[test]
fn a_cid_that_is_in_use_and_a_queue_that_is_too_full() {
    let mut rig = Rig::new(&[memory()]);
    let mut host = rig.connect_with(&ConnectOptions {
        depth: 4,
        ..ConnectOptions::default()
    });
    rig.pause(Scope::Subsystem(SUBSYSTEM));
    let slot = host.start_read(0, 512);
    let capsule = host.outgoing();
    host.stream
        .write_all(&[&capsule[..], &capsule[..]].concat())
        .unwrap();
    // The second is answered with Command ID Conflict, under the identifier of the first.
    let done = host.wait(slot);
    assert!(
        done.status.is(Status::COMMAND_ID_CONFLICT),
        "{:?}",
        done.status
    );

    let mut other = rig.connect_with(&ConnectOptions {
        depth: 4,
        qid: 2,
        ..ConnectOptions::default()
    });
    for cid in 0..16u8 {
        let mut bytes = capsule.clone();
        (bytes[8 + 2], bytes[8 + 3]) = (cid, 0x77);
        let _ = other.stream.write_all(&bytes);
    }
    while other.terminated.is_none() {
        assert!(other.receive(), "closed without a word");
    }
    rig.resume(Scope::Subsystem(SUBSYSTEM));
}

#[test]
fn a_host_that_does_not_read_costs_no_more_than_its_share() {
    let mut rig = Rig::with_config(
        small_pool(),
        &[
            memory(),
            BackingSpec::Null {
                size_bytes: 1 << 40,
            },
        ],
    );
    let mut deaf = rig.connect();
    let mut witness = rig.connect_with(&qid(2));
    for _ in 0..120 {
        deaf.start_read(0, 1 << 20);
    }
    deaf.flush();
    for round in 0..8 {
        is_unharmed(&mut witness, round);
    }
    let stats = rig.stats();
    assert!(stats.buffer_bytes_reserved <= 12 << 20, "{stats:?}");
    assert!(stats.waiting_for_buffer > 0, "{stats:?}");
    // When it reads at last, all is there.
    for _ in 0..120 {
        assert_eq!(deaf.wait_any().1.data.len(), 1 << 20);
    }
}

#[test]
fn a_host_that_stalls_while_others_wait_for_its_buffers_is_given_up() {
    let patience = Patience {
        stall: Duration::from_millis(500),
        ..Patience::default()
    };
    let config = ShardConfig {
        patience,
        ..small_pool()
    };
    let mut rig = Rig::with_config(config, &[memory()]);
    // Two hosts that ask for much and go no further: one does not read, one does not send.
    let mut deaf = rig.connect();
    let mut mute = rig.connect_with(&qid(2));
    for _ in 0..100 {
        deaf.start_read(0, 1 << 20);
        mute.start_write(0, vec![1; 1 << 20]);
    }
    deaf.flush();
    mute.flush();
    let mut witness = rig.connect_with(&qid(3));
    is_unharmed(&mut witness, 1);
    let mut closed = [rig.closed(), rig.closed()].map(|(_, qid, reason)| (qid, reason));
    closed.sort_by_key(|(qid, _)| *qid);
    assert_eq!(
        closed,
        [
            (Qid(1), CloseReason::Stalled),
            (Qid(2), CloseReason::Stalled)
        ]
    );
    assert_eq!(witness.write(0, vec![1; 1 << 20]), Status::SUCCESS);
}

#[test]
fn a_host_that_stalls_with_all_its_buffers_in_a_send_is_given_up() {
    let config = ShardConfig {
        patience: Patience {
            stall: Duration::from_millis(500),
            ..Patience::default()
        },
        ..small_pool()
    };
    let mut rig = Rig::with_config(config, &[memory()]);
    // It takes nothing of what it reads, one after another: no command has a buffer when the socket is full.
    let mut deaf = rig.connect();
    for _ in 0..40 {
        deaf.start_read(0, 1 << 20);
        deaf.flush();
    }
    let mut witness = rig.connect_with(&qid(2));
    assert_eq!(witness.write(0, vec![1; 1 << 20]), Status::SUCCESS);
    let (_, closed, reason) = rig.closed();
    assert_eq!((closed, reason), (Qid(1), CloseReason::Stalled));
}

#[test]
fn more_commands_than_buffers_all_complete() {
    for spec in [memory(), BackingSpec::Null { size_bytes: SIZE }] {
        let mut rig = Rig::with_config(small_pool(), &[spec]);
        let mut hosts: Vec<_> = (1..=6).map(|id| rig.connect_with(&qid(id))).collect();
        // Each on its own thread: a host that is not served for a while would be one that stalls.
        std::thread::scope(|threads| {
            for (index, host) in hosts.iter_mut().enumerate() {
                threads.spawn(move || {
                    for round in 0..3 {
                        for n in 0..20 {
                            let at = ((index as u64 * 20 + n) % 60) << 20;
                            let len = [4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
                                [(n as usize + round) % 5];
                            match n % 2 {
                                0 => host.start_write(at, vec![1; len]),
                                _ => host.start_read(at, len),
                            };
                        }
                        for _ in 0..20 {
                            assert_eq!(host.wait_any().1.status, Status::SUCCESS);
                        }
                    }
                });
            }
        });
        assert_eq!(rig.stats().waiting_for_buffer, 0);
    }
}

#[test]
fn in_capsule_data_never_wait_for_what_is_behind_them() {
    // All buffers of the class that capsules use, and of that of the transfers, are held by commands of the same connections: writes that wait for data which
    // come behind capsules that need a buffer. Only the reserve gets on.
    let mut rig = Rig::with_config(small_pool(), &[memory()]);
    let mut hosts: Vec<_> = (1..=4).map(|id| rig.connect_with(&qid(id))).collect();
    let mut expected = 0;
    for host in &mut hosts {
        for n in 0..60 {
            // By R2T although it would fit: takes a buffer of the capsules' class before its data come.
            let sqe = host.command(IoOpcode::WRITE, n << 14, 16 << 10);
            host.submit(&sqe, Transfer::FromHost(16 << 10), vec![2; 16 << 10]);
        }
        let requests = host.outgoing();
        host.stream.write_all(&requests).unwrap();
        expected += 60;
    }
    let deadline = Instant::now() + PATIENCE;
    while rig
        .stats()
        .queues
        .iter()
        .map(|queue| queue.commands)
        .sum::<u64>()
        < expected
    {
        assert!(Instant::now() < deadline);
    }
    assert!(rig.stats().waiting_for_buffer > 0);
    std::thread::scope(|threads| {
        for host in &mut hosts {
            threads.spawn(move || {
                // Capsules first, then the data that the R2Ts asked for.
                for n in 0..60 {
                    host.start_write((1 << 20) + (n << 14), vec![3; 16 << 10]);
                }
                for _ in 0..120 {
                    assert_eq!(host.wait_any().1.status, Status::SUCCESS);
                }
                assert_eq!(host.read(59 << 14, 16 << 10), Ok(vec![2; 16 << 10]));
                assert_eq!(
                    host.read((1 << 20) + (59 << 14), 16 << 10),
                    Ok(vec![3; 16 << 10])
                );
            });
        }
    });
}

#[test]
fn a_silent_host_costs_nothing() {
    let mut rig = Rig::new(&[memory()]);
    let mut silent: Vec<_> = (1..=64).map(|id| rig.connect_with(&qid(id))).collect();
    let before = rig.stats().enters;
    let mut witness = rig.connect_with(&qid(100));
    is_unharmed(&mut witness, 1);
    // The shard sleeps while nothing happens: it goes to the kernel for what the witness and the requests for its state need.
    let after = rig.stats().enters;
    std::thread::sleep(Duration::from_millis(50));
    assert!(rig.stats().enters - after <= 3, "the shard sleeps");
    assert!(after - before < 200, "{}", after - before);
    for host in &mut silent {
        host.stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        assert!(
            host.stream.read(&mut [0; 1]).is_err(),
            "nothing is said to it"
        );
    }
}

#[test]
fn a_deep_queue_leaves_room_for_a_shallow_one() {
    // Both on memory. The shallow queue's commands complete while the deep one's are far from done.
    let mut rig = Rig::new(&[memory()]);
    let mut greedy = rig.connect_with(&ConnectOptions {
        depth: 1024,
        ..ConnectOptions::default()
    });
    let mut modest = rig.connect_with(&qid(2));
    for n in 0..1000 {
        greedy.start_read(n << 14, 16 << 10);
    }
    greedy.flush();
    for _ in 0..10 {
        modest.read(0, 4096).unwrap();
    }
    // The greedy host has read nothing: its responses fill the sockets, no more.
    assert!(greedy.completed() == 0);
    for _ in 0..1000 {
        assert_eq!(greedy.wait_any().1.status, Status::SUCCESS);
    }
}
