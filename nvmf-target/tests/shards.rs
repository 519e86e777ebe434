//! Several shards with hosts on each: what has to hold across all of them.

mod common;

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::*;
use nvme_proto::wire::{Nsid, Qid, Status};
use nvmf_target::backend::BackingSpec;
use nvmf_target::shard::{CloseReason, Scope, ShardConfig, ShardMessage};
use rig::{HOST, SUBSYSTEM};

const SHARDS: usize = 4;

fn rig(specs: &[BackingSpec]) -> Rig {
    Rig::with_shards((0..SHARDS).map(ShardConfig::new), specs)
}

/// Queue `1 + shard` of controller `cntlid`, on that shard.
fn queue_on(rig: &mut Rig, shard: usize, cntlid: u16) -> TestHost {
    let options = ConnectOptions {
        cntlid,
        qid: shard as u16 + 1,
        ..ConnectOptions::default()
    };
    rig.connect_to(shard, &options)
}

/// A queue of controller 1 on each shard.
fn queues(rig: &mut Rig) -> Vec<TestHost> {
    (0..SHARDS).map(|shard| queue_on(rig, shard, 1)).collect()
}

/// Waits until every shard has received `commands` commands of each of its queues.
fn wait_received(rig: &Rig, commands: u64) {
    let deadline = std::time::Instant::now() + host::PATIENCE;
    loop {
        let stats = rig.call_each(|reply| ShardMessage::Stats { reply });
        let mut queues = stats.iter().flat_map(|shard| &shard.queues);
        if queues.all(|queue| queue.commands >= commands) {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the commands do not arrive: {stats:?}"
        );
        std::thread::yield_now();
    }
}

#[test]
fn a_pause_holds_the_queues_of_every_shard() {
    let mut rig = rig(&[memory(), memory()]);
    let mut hosts = queues(&mut rig);
    let scopes = [
        Scope::Namespace(SUBSYSTEM, Nsid(1)),
        Scope::Subsystem(SUBSYSTEM),
        Scope::Controller(rig.key(1)),
        Scope::Host(HOST.parse().unwrap()),
    ];
    let mut received = 0;
    for (value, scope) in (1..).zip(scopes) {
        rig.call_each(|ack| ShardMessage::Pause {
            scope: scope.clone(),
            ack,
        });
        let blocks = (0..).map(|shard| shard * 4096);
        let mut slots = Vec::new();
        for (host, at) in hosts.iter_mut().zip(blocks.clone()) {
            slots.push(host.start_write(at, vec![value; 4096]));
            host.flush();
        }
        received += 1;
        wait_received(&rig, received);
        rig.call_each(|ack| ShardMessage::Drain {
            scope: scope.clone(),
            ack,
        });
        if let Scope::Namespace(..) = scope {
            for host in &mut hosts {
                host.nsid = Nsid(2);
                assert_eq!(host.write(0, vec![9; 4096]), Status::SUCCESS, "another one");
                host.nsid = Nsid(1);
            }
            received += 1;
        }
        assert!(hosts.iter().all(|host| host.completed() == 0), "{scope:?}");
        rig.call_each(|ack| ShardMessage::Resume {
            scope: scope.clone(),
            ack,
        });
        for (host, slot) in hosts.iter_mut().zip(slots) {
            assert_eq!(host.wait(slot).status, Status::SUCCESS);
        }
        // What one shard wrote the others read.
        hosts.rotate_left(1);
        for (host, at) in hosts.iter_mut().zip(blocks) {
            assert_eq!(host.read(at, 4096), Ok(vec![value; 4096]));
        }
        received += 1;
    }
}

/// A file on a file system that is frozen, with a write of 7 from shard [`SLOW`] in the kernel.
struct Frozen {
    mount: Mount,
    rig: Rig,
    hosts: Vec<TestHost>,
    slot: nvme_proto::queue::SlotId,
}

const SLOW: usize = 2;

impl Frozen {
    fn new(test: &str) -> Option<Self> {
        let mut mount = Mount::ext4(test, 64 << 20)?;
        let mut rig = rig(&[file_in(&mount.root())]);
        let mut hosts = queues(&mut rig);
        for host in &mut hosts {
            assert_eq!(host.write(0, vec![1; 4096]), Status::SUCCESS);
        }
        mount.freeze();
        let slot = hosts[SLOW].start_write(0, vec![7; 4096]);
        hosts[SLOW].flush();
        for (shard, host) in hosts.iter_mut().enumerate() {
            if shard != SLOW {
                assert!(host.read(0, 4096).is_ok(), "reads go on");
            }
        }
        wait_received(&rig, 2);
        Some(Self {
            mount,
            rig,
            hosts,
            slot,
        })
    }

    fn file(&self) -> std::fs::File {
        let path = self.mount.path("disk");
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }

    fn on_disk(&self) -> u8 {
        let mut byte = [0];
        self.file().read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    }
}

#[test]
fn a_drain_ends_with_the_last_shard_that_writes() {
    let Some(mut frozen) = Frozen::new("drain of several shards") else {
        return;
    };
    let scope = Scope::Namespace(SUBSYSTEM, Nsid(1));
    frozen.rig.call_each(|ack| ShardMessage::Pause {
        scope: scope.clone(),
        ack,
    });
    let mut acks = frozen.rig.ask_each(|ack| ShardMessage::Drain {
        scope: scope.clone(),
        ack,
    });
    let mut slow = acks.remove(SLOW);
    for ack in acks {
        ack.blocking_recv().unwrap();
    }
    assert!(slow.try_recv().is_err(), "its write still runs");
    frozen.mount.thaw();
    slow.blocking_recv().unwrap();
    assert_eq!(frozen.on_disk(), 7);
    let slot = frozen.slot;
    assert_eq!(frozen.hosts[SLOW].wait(slot).status, Status::SUCCESS);
}

#[test]
fn a_fence_waits_for_every_shard_of_the_old_association() {
    let Some(mut frozen) = Frozen::new("fence of several shards") else {
        return;
    };
    // On the other shards, writes that wait for their data: they must never reach the file.
    for (shard, host) in frozen.hosts.iter_mut().enumerate() {
        if shard != SLOW {
            host.start_write(0, vec![8; 256 << 10]);
            host.flush();
            assert!(host.receive(), "the R2T");
        }
    }
    let controller = frozen.rig.key(1);
    let mut acks = frozen
        .rig
        .ask_each(|ack| ShardMessage::DropController { controller, ack });
    let mut slow = acks.remove(SLOW);
    for ack in acks {
        ack.blocking_recv().unwrap();
    }
    assert!(slow.try_recv().is_err(), "its write still runs");
    for (shard, host) in frozen.hosts.iter_mut().enumerate() {
        if shard != SLOW {
            // Data that nobody reads any more.
            let late = host.outgoing();
            let _ = std::io::Write::write_all(&mut host.stream, &late);
            host.wait_closed();
        }
    }
    frozen.mount.thaw();
    slow.blocking_recv().unwrap();
    assert_eq!(frozen.on_disk(), 7, "finished before it was acknowledged");

    // The successor, on the shards where the old association was.
    let mut successor = queue_on(&mut frozen.rig, 0, 2);
    assert_eq!(successor.write(0, vec![9; 4096]), Status::SUCCESS);
    let mut closed: Vec<_> = (0..SHARDS).map(|_| frozen.rig.closed()).collect();
    closed.sort_by_key(|(_, qid, _)| *qid);
    let dropped = |qid| (controller, Qid(qid), CloseReason::Dropped);
    assert_eq!(closed, (1..=SHARDS as u16).map(dropped).collect::<Vec<_>>());
    assert_eq!(frozen.on_disk(), 9);
    let left: Vec<_> = frozen
        .rig
        .call_each(|reply| ShardMessage::Stats { reply })
        .into_iter()
        .map(|stats| stats.queues.len())
        .collect();
    assert_eq!(left, [1, 0, 0, 0]);
}

#[test]
fn a_namespace_leaves_every_shard() {
    let mut rig = rig(&[memory(), memory()]);
    let mut hosts = queues(&mut rig);
    let whole = rig.table.clone();
    rig.set_namespaces(whole.without(Nsid(1)));
    for host in &mut hosts {
        assert_eq!(host.read(0, 512), Err(Status::INVALID_NAMESPACE.dnr()));
        host.nsid = Nsid(2);
        assert!(host.read(0, 512).is_ok());
        host.nsid = Nsid(1);
    }
    rig.set_namespaces((*whole).clone());
    for host in &mut hosts {
        assert!(host.read(0, 512).is_ok());
    }
}

#[test]
fn no_shard_sees_half_a_block_of_another_in_memory() {
    let mut rig = rig(&[memory()]);
    let mut hosts = queues(&mut rig);
    let stop = AtomicBool::new(false);
    let (writers, readers) = hosts.split_at_mut(2);
    std::thread::scope(|threads| {
        let mut reading = Vec::new();
        for host in readers {
            let stop = &stop;
            reading.push(threads.spawn(move || {
                let mut changes = 0u32;
                let mut last = 0;
                let mut over = false;
                while !over {
                    // Once more after the end, so that there is something to see in any case.
                    over = stop.load(Relaxed);
                    for block in host.read(0, 64 << 10).unwrap().chunks_exact(512) {
                        let first = block[0];
                        assert!(block.iter().all(|byte| *byte == first), "a torn block");
                        changes += u32::from(first != last);
                        last = first;
                    }
                }
                changes
            }));
        }
        let writing: Vec<_> = (0..)
            .zip(writers)
            .map(|(odd, host)| {
                threads.spawn(move || {
                    for round in 0..300u32 {
                        let value = (round * 2 + odd) as u8;
                        assert_eq!(host.write(0, vec![value; 64 << 10]), Status::SUCCESS);
                    }
                })
            })
            .collect();
        let written: Vec<_> = writing.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Relaxed);
        for result in written {
            result.unwrap();
        }
        for thread in reading {
            assert!(thread.join().unwrap() > 0, "nothing was read meanwhile");
        }
    });
}
