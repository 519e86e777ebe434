//! Transferred data land in their final buffer: not a byte is copied on the way, whatever the host sends in which order.

mod common;

use common::*;
use nvme_proto::queue::SlotId;
use nvme_proto::wire::{Cid, Nsid, Qid, Status};
use nvmf_io::RingConfig;
use nvmf_target::backend::BackingSpec;
use nvmf_target::shard::{ShardConfig, ShardMessage};
use std::io::Write;

/// Bytes that differ everywhere, and from one `seed` to the next.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A generator of numbers, the same for the same seed (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// On the ring that this kernel offers, and on the oldest that is supported.
fn on_rings(specs: &[BackingSpec], test: impl Fn(&mut Rig)) {
    for baseline in [false, true] {
        let mut config = ShardConfig::new(0);
        config.ring = RingConfig {
            baseline,
            ..config.ring
        };
        test(&mut Rig::with_config(config, specs));
    }
}

fn copied_bytes(rig: &Rig) -> u64 {
    rig.stats().copied_bytes
}

fn all_options() -> [ConnectOptions; 2] {
    [false, true].map(|digests| ConnectOptions {
        digests,
        ..ConnectOptions::default()
    })
}

/// Writes `count` pieces of `len` bytes, `depth` at a time, and reads them back.
fn stream_of_writes(host: &mut TestHost, len: usize, count: usize, depth: usize) {
    let at = |index: usize| (index * len) as u64 % SIZE;
    let mut open: Vec<SlotId> = Vec::new();
    for index in 0..count {
        if open.len() == depth {
            assert_eq!(host.wait(open.remove(0)).status, Status::SUCCESS);
        }
        open.push(host.start_write(at(index), pattern(len, index as u64)));
    }
    for slot in open {
        assert_eq!(host.wait(slot).status, Status::SUCCESS);
    }
    for index in count.saturating_sub(SIZE as usize / len)..count {
        assert!(host.read(at(index), len) == Ok(pattern(len, index as u64)));
    }
}

#[test]
fn no_byte_of_a_stream_of_large_writes_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    for spec in [memory(), file_in(dir.path())] {
        on_rings(&[spec], |rig| {
            for options in all_options() {
                for (len, count, depth) in [
                    (128 << 10, 40, 1),
                    (128 << 10, 96, 32),
                    (1 << 20, 10, 1),
                    (1 << 20, 24, 8),
                    (20 << 10, 100, 16),
                ] {
                    let mut host = rig.connect_with(&options);
                    stream_of_writes(&mut host, len, count, depth);
                    let digests = options.digests;
                    assert_eq!(copied_bytes(rig), 0, "{count} x {len}, digests {digests}");
                    drop(host);
                    rig.closed();
                }
            }
        });
    }
}

#[test]
fn small_transfers_and_small_pdus_are_not_copied_either() {
    on_rings(&[memory()], |rig| {
        for digests in [false, true] {
            let options = ConnectOptions {
                digests,
                in_capsule_bytes: 0,
                r2t_window_bytes: 8192,
                max_h2c_data_bytes: 4096,
                ..ConnectOptions::default()
            };
            let mut host = rig.connect_with(&options);
            for len in [512, 4096, 16 << 10, 64 << 10] {
                stream_of_writes(&mut host, len, 40, 16);
            }
            assert_eq!(copied_bytes(rig), 0);
            drop(host);
            rig.closed();
        }
    });
}

#[test]
fn data_in_capsules_are_copied_at_most_once() {
    let dir = tempfile::tempdir().unwrap();
    on_rings(&[file_in(dir.path())], |rig| {
        let mut host = rig.connect();
        stream_of_writes(&mut host, 4096, 200, 64);
        assert_eq!(copied_bytes(rig), 200 * 4096);
    });
    on_rings(&[memory()], |rig| {
        let mut host = rig.connect();
        stream_of_writes(&mut host, 4096, 200, 64);
        // Memory takes what lies in one piece from the receive buffer.
        assert!(copied_bytes(rig) < 200 * 4096);
        // Beside transfers too, and these count for nothing.
        for round in 0..20 {
            let large = host.start_write(0, pattern(256 << 10, round));
            let small: Vec<_> = (0..8)
                .map(|place| host.start_write((1 << 20) + place * 4096, pattern(4096, place)))
                .collect();
            for slot in small.into_iter().chain([large]) {
                assert_eq!(host.wait(slot).status, Status::SUCCESS);
            }
        }
        assert!(copied_bytes(rig) <= (200 + 20 * 8) * 4096);
        assert!(host.read(0, 256 << 10) == Ok(pattern(256 << 10, 19)));
        for place in 0..8 {
            let at = (1 << 20) + place * 4096;
            assert!(host.read(at, 4096) == Ok(pattern(4096, place)));
        }
    });
}

#[test]
fn a_capsule_with_a_wrong_digest_changes_nothing_in_memory() {
    on_rings(&[memory()], |rig| {
        let options = ConnectOptions {
            digests: true,
            ..ConnectOptions::default()
        };
        let mut host = rig.connect_with(&options);
        for damaged_byte in [0, 2000, 4095] {
            let bad = host.start_write(4096, pattern(4096, 3));
            let mut capsule = host.outgoing();
            // Behind the header, the command and their digest.
            capsule[8 + 64 + 4 + damaged_byte] ^= 1;
            host.stream.write_all(&capsule).unwrap();
            assert_eq!(host.wait(bad).status, Status::TRANSIENT_TRANSPORT_ERROR);
            assert_eq!(host.read(4096, 4096), Ok(vec![0; 4096]));
        }
        assert_eq!(host.write(4096, pattern(4096, 3)), Status::SUCCESS);
        assert!(host.read(4096, 4096) == Ok(pattern(4096, 3)));
    });
}

/// A host that answers R2Ts when and in which order it likes, with commands in between, in pieces of any size.
#[test]
fn data_in_any_order_between_other_commands_land_where_they_belong() {
    const NULL: Nsid = Nsid(2);
    let null = BackingSpec::Null { size_bytes: SIZE };
    on_rings(&[memory(), null], |rig| {
        for (seed, options) in (0..12).zip(all_options().into_iter().cycle()) {
            let mut host = rig.connect_with(&options);
            let mut rng = Rng(seed);
            let mut expected = Vec::new();
            for at in 0..8 {
                expected.extend(host.read(at << 20, 1 << 20).unwrap());
            }
            let before = copied_bytes(rig);
            let mut in_capsules = 0;
            for _ in 0..6 {
                let mut open = Vec::new();
                for place in 0..12 {
                    // In a capsule, by one R2T or by several; some where nobody keeps what is written.
                    let len =
                        [4096, 16 << 10, 20 << 10, 128 << 10, 300 << 10, 512 << 10][rng.below(6)];
                    let (at, data) = (place << 19, pattern(len, rng.next()));
                    host.nsid = if rng.below(4) == 0 { NULL } else { Nsid(1) };
                    if host.nsid != NULL {
                        expected[at..][..len].copy_from_slice(&data);
                        in_capsules += if len <= 16 << 10 { len as u64 } else { 0 };
                    }
                    open.push(host.start_write(at as u64, data));
                    host.nsid = Nsid(1);
                    if rng.below(3) == 0 {
                        open.push(host.start_read(7 << 20, 4096));
                    }
                }
                // What is to be sent: the PDUs of each command in their order, those of different commands in any.
                let mut streams: Vec<(Cid, Vec<Vec<u8>>)> = Vec::new();
                while host.completed() < open.len() {
                    for (cid, pdu) in host.outgoing_pdus() {
                        match streams.iter_mut().find(|(other, _)| *other == cid) {
                            Some((_, pdus)) => pdus.push(pdu),
                            None => streams.push((cid, vec![pdu])),
                        }
                    }
                    if streams.is_empty() || rng.below(8) == 0 && host.is_readable() {
                        assert!(host.receive(), "the target closed the connection");
                        continue;
                    }
                    let turn = rng.below(streams.len());
                    let pdu = streams[turn].1.remove(0);
                    if streams[turn].1.is_empty() {
                        streams.swap_remove(turn);
                    }
                    let mut rest = &pdu[..];
                    while !rest.is_empty() {
                        let piece = match rng.below(3) {
                            0 => 1 + rng.below(100),
                            _ => 1 + rng.below(100_000),
                        };
                        let (now, later) = rest.split_at(piece.min(rest.len()));
                        host.stream.write_all(now).unwrap();
                        rest = later;
                    }
                }
                for slot in open {
                    assert_eq!(host.wait(slot).status, Status::SUCCESS);
                }
            }
            let copied = copied_bytes(rig) - before;
            assert!(
                copied <= in_capsules,
                "{copied} bytes copied, {in_capsules} in capsules"
            );
            for place in 0..12 {
                let at = place << 19;
                let read = host.read(at as u64, 512 << 10).unwrap();
                assert!(read == expected[at..][..512 << 10], "place {place}");
            }
            drop(host);
            rig.closed();
        }
    });
}

/// Sends two write commands, and waits for what their R2Ts ask for: a PDU each, of the first and of the second.
fn data_of_two(host: &mut TestHost) -> Vec<(Cid, Vec<u8>)> {
    host.flush();
    let mut pdus = Vec::new();
    while pdus.len() < 2 {
        assert!(host.receive(), "the R2Ts");
        pdus.extend(host.outgoing_pdus());
    }
    pdus
}

#[test]
fn a_write_that_is_aborted_leaves_the_transfers_beside_it_alone() {
    on_rings(&[memory()], |rig| {
        for options in all_options() {
            let mut host = rig.connect_with(&options);
            let key = rig.key(1);
            let doomed = host.start_write(0, pattern(128 << 10, 1));
            let kept = host.start_write(1 << 20, pattern(128 << 10, 2));
            let pdus = data_of_two(&mut host);
            // In the middle of the payload of the first.
            let (first, second) = (&pdus[0].1, &pdus[1].1);
            host.stream.write_all(&first[..50_000]).unwrap();
            let (cid, qid) = (host.cid(doomed), Qid(1));
            let aborted = rig.call(|reply| ShardMessage::Abort {
                controller: key,
                qid,
                cid,
                reply,
            });
            assert!(aborted);
            host.stream.write_all(&first[50_000..]).unwrap();
            host.stream.write_all(second).unwrap();
            assert_eq!(host.wait(kept).status, Status::SUCCESS);
            assert_eq!(host.wait(doomed).status, Status::ABORT_REQUESTED);
            assert!(host.read(1 << 20, 128 << 10) == Ok(pattern(128 << 10, 2)));
            assert_eq!(host.read(0, 128 << 10), Ok(vec![0; 128 << 10]));
            assert_eq!(host.write(1 << 20, vec![0; 128 << 10]), Status::SUCCESS);
            assert_eq!(copied_bytes(rig), 0);
            drop(host);
            rig.closed();
        }
    });
}

#[test]
fn a_wrong_digest_is_found_where_data_land_in_place() {
    on_rings(&[memory()], |rig| {
        let options = ConnectOptions {
            digests: true,
            ..ConnectOptions::default()
        };
        let mut host = rig.connect_with(&options);
        for damaged_byte in [0, 70_000, (128 << 10) - 1] {
            let good = host.start_write(1 << 20, pattern(128 << 10, 5));
            let bad = host.start_write(0, pattern(128 << 10, 6));
            let mut pdus = data_of_two(&mut host);
            for (cid, pdu) in &mut pdus {
                if *cid == host.cid(bad) {
                    // Behind the header and its digest.
                    pdu[28 + damaged_byte] ^= 1;
                }
                host.stream.write_all(pdu).unwrap();
            }
            assert_eq!(host.wait(good).status, Status::SUCCESS);
            let status = host.wait(bad).status;
            assert_eq!(status, Status::TRANSIENT_TRANSPORT_ERROR);
            assert!(host.read(1 << 20, 128 << 10) == Ok(pattern(128 << 10, 5)));
            assert_eq!(host.read(0, 128 << 10), Ok(vec![0; 128 << 10]));
        }
        assert_eq!(copied_bytes(rig), 0);
    });
}
