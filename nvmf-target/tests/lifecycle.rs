//! Pauses, drains, drops, aborts, and namespaces that change while hosts are connected.

mod common;

use std::io::Write;
use std::os::unix::fs::FileExt;

use common::host::io;
use common::*;
use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::wire::{FabricsType, IoOpcode, Nsid, Opcode, Qid, Sqe, Status};
use nvmf_target::backend::{Backing, BackingOptions};
use nvmf_target::model::{Geometry, Namespace};
use nvmf_target::shard::{CloseReason, Scope, ShardMessage};
use rig::{HOST, SUBSYSTEM};
use zerocopy::little_endian::U32;

/// Waits until the shard has received `commands` commands on all its queues. It handles the request for its state after what it received before.
fn wait_received(rig: &Rig, commands: u64) {
    let deadline = std::time::Instant::now() + host::PATIENCE;
    while rig
        .stats()
        .queues
        .iter()
        .map(|queue| queue.commands)
        .sum::<u64>()
        < commands
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the commands do not arrive"
        );
        std::thread::yield_now();
    }
}

fn abort(rig: &Rig, host: &TestHost, slot: SlotId) -> bool {
    let cid = host.cid(slot);
    rig.call(|reply| ShardMessage::Abort {
        controller: rig.key(1),
        qid: Qid(1),
        cid,
        reply,
    })
}

#[test]
fn a_pause_holds_commands_and_resume_runs_them_in_order() {
    let mut rig = Rig::new(&[memory(), memory()]);
    let mut host = rig.connect();
    for scope in [
        Scope::Namespace(SUBSYSTEM, Nsid(1)),
        Scope::Subsystem(SUBSYSTEM),
        Scope::Controller(rig.key(1)),
        Scope::Host(HOST.parse().unwrap()),
    ] {
        host.nsid = Nsid(1);
        rig.pause(scope.clone());
        rig.pause(scope.clone());
        let before = rig.stats().queues[0].commands;
        // In the capsule, by R2T, a read and a flush; each later write to the same block replaces the earlier.
        let mut slots = vec![
            host.start_write(0, vec![1; 4096]),
            host.start_write(0, vec![2; 64 << 10]),
        ];
        slots.push(host.start_write(0, vec![3; 4096]));
        slots.push(host.start_read(0, 4096));
        slots.push(host.submit(
            &io(IoOpcode::FLUSH, Nsid(1), 0, 1),
            Transfer::None,
            Vec::new(),
        ));
        host.flush();
        wait_received(&rig, before + 5);
        // The R2T is answered while the namespace is paused: it is only execution that waits.
        assert!(host.receive());
        host.flush();
        if matches!(scope, Scope::Namespace(..)) {
            host.nsid = Nsid(2);
            assert_eq!(
                host.write(0, vec![9; 4096]),
                Status::SUCCESS,
                "another namespace goes on"
            );
            host.nsid = Nsid(1);
        }
        assert_eq!(host.completed(), 0);
        rig.call(|ack| ShardMessage::Drain {
            scope: scope.clone(),
            ack,
        });
        rig.resume(scope.clone());
        rig.stats();
        assert_eq!(host.completed(), 0, "pauses nest");
        rig.resume(scope);
        let last = slots[3];
        for slot in slots {
            let done = host.wait(slot);
            assert_eq!(done.status, Status::SUCCESS);
            if slot == last {
                assert_eq!(done.data, vec![3; 4096]);
            }
        }
    }
}

#[test]
fn a_pause_of_one_controller_leaves_the_others() {
    let mut rig = Rig::new(&[memory()]);
    let mut first = rig.connect();
    rig.pause(Scope::Controller(rig.key(1)));
    let other = ConnectOptions {
        cntlid: 2,
        host_nqn: "nqn.2014-08.org.example:other",
        ..ConnectOptions::default()
    };
    let mut second = rig.connect_with(&other);
    let slot = first.start_write(0, vec![1; 4096]);
    first.flush();
    assert_eq!(second.write(0, vec![2; 4096]), Status::SUCCESS);
    rig.pause(Scope::Host(other.host_nqn.parse().unwrap()));
    let held = second.start_read(0, 4096);
    second.flush();
    // A queue that comes later is paused too.
    let mut third = rig.connect_with(&ConnectOptions { qid: 2, ..other });
    let late = third.start_read(0, 4096);
    third.flush();
    wait_received(&rig, 4);
    rig.resume(Scope::Controller(rig.key(1)));
    assert_eq!(first.wait(slot).status, Status::SUCCESS);
    assert_eq!((second.completed(), third.completed()), (0, 0));
    rig.resume(Scope::Host(other.host_nqn.parse().unwrap()));
    assert_eq!(second.wait(held).data, vec![1; 4096]);
    assert_eq!(third.wait(late).data, vec![1; 4096]);
}

/// A file on a file system that can be frozen, so that a write stays in the backing as long as the test wants.
struct Frozen {
    mount: Mount,
    rig: Rig,
    host: TestHost,
    slot: SlotId,
}

impl Frozen {
    /// With a write of 7 to the first page in the backing.
    fn new(test: &str) -> Option<Self> {
        let mut mount = Mount::ext4(test, 64 << 20)?;
        let mut rig = Rig::new(&[file_in(&mount.root())]);
        let mut host = rig.connect();
        assert_eq!(host.write(0, vec![1; 4096]), Status::SUCCESS);
        mount.freeze();
        let slot = host.start_write(0, vec![7; 4096]);
        host.flush();
        wait_received(&rig, 2);
        Some(Self {
            mount,
            rig,
            host,
            slot,
        })
    }

    fn on_disk(&self) -> u8 {
        let mut byte = [0];
        let file = std::fs::File::open(self.mount.path("disk")).unwrap();
        file.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    }
}

#[test]
fn drain_waits_for_what_the_backing_has() {
    let Some(mut frozen) = Frozen::new("drain") else {
        return;
    };
    let scopes = [
        Scope::Namespace(SUBSYSTEM, Nsid(1)),
        Scope::Subsystem(SUBSYSTEM),
        Scope::Controller(frozen.rig.key(1)),
        Scope::Host(HOST.parse().unwrap()),
    ];
    let mut acks: Vec<_> = scopes
        .into_iter()
        .map(|scope| frozen.rig.ask(|ack| ShardMessage::Drain { scope, ack }))
        .collect();
    // Scopes that have nothing to do with it are drained at once.
    frozen.rig.call(|ack| ShardMessage::Drain {
        scope: Scope::Controller(frozen.rig.key(9)),
        ack,
    });
    frozen.rig.call(|ack| ShardMessage::Drain {
        scope: Scope::Namespace(SUBSYSTEM, Nsid(2)),
        ack,
    });
    for ack in &mut acks {
        assert!(ack.try_recv().is_err(), "the write still runs");
    }
    frozen.mount.thaw();
    for ack in acks {
        ack.blocking_recv().unwrap();
    }
    assert_eq!(frozen.on_disk(), 7);
    assert_eq!(frozen.host.wait(frozen.slot).status, Status::SUCCESS);
}

#[test]
fn a_dropped_controller_is_acknowledged_only_when_nothing_of_it_can_reach_storage() {
    let Some(mut frozen) = Frozen::new("drop") else {
        return;
    };
    // Behind the write that runs: one that waits for its data, which come too late.
    let waiting = frozen.host.start_write(0, vec![8; 256 << 10]);
    let capsule = frozen.host.outgoing();
    std::io::Write::write_all(&mut frozen.host.stream, &capsule).unwrap();
    wait_received(&frozen.rig, 3);
    assert!(frozen.host.receive(), "the R2T");
    let late_data = frozen.host.outgoing();
    assert!(late_data.len() > 128 << 10);
    let _ = waiting;

    let controller = frozen.rig.key(1);
    let mut ack = frozen
        .rig
        .ask(|ack| ShardMessage::DropController { controller, ack });
    frozen.rig.stats();
    assert!(ack.try_recv().is_err(), "the write still runs");
    // The host writes on, into a socket that nobody reads.
    let _ = std::io::Write::write_all(&mut frozen.host.stream, &late_data);
    frozen.mount.thaw();
    ack.blocking_recv().unwrap();
    assert_eq!(frozen.on_disk(), 7);
    let fence = std::fs::File::options()
        .write(true)
        .open(frozen.mount.path("disk"))
        .unwrap();
    fence.write_all_at(&[9; 4096], 0).unwrap();
    assert!(frozen.rig.stats().queues.is_empty());
    frozen.host.wait_closed();
    assert_eq!(
        frozen.rig.closed(),
        (controller, Qid(1), CloseReason::Dropped)
    );
    assert_eq!(
        frozen.on_disk(),
        9,
        "nothing of the old association comes after the acknowledgement"
    );
}

#[test]
fn a_queue_outlives_its_host_until_its_commands_have_ended() {
    let Some(mut frozen) = Frozen::new("host closed") else {
        return;
    };
    frozen
        .host
        .stream
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    let mut ack = frozen.rig.ask(|ack| {
        let scope = Scope::Controller(frozen.rig.key(1));
        ShardMessage::Drain { scope, ack }
    });
    frozen.rig.stats();
    assert!(!frozen.rig.has_closed());
    assert!(ack.try_recv().is_err());
    frozen.mount.thaw();
    let (_, _, reason) = frozen.rig.closed();
    assert_eq!(reason, CloseReason::HostClosed);
    ack.blocking_recv().unwrap();
    assert_eq!(frozen.on_disk(), 7);
}

#[test]
fn abort_tells_the_truth_about_what_runs() {
    let Some(mut frozen) = Frozen::new("abort") else {
        return;
    };
    let cid = frozen.host.cid(frozen.slot);
    let controller = frozen.rig.key(1);
    let mut answer = frozen.rig.ask(|reply| ShardMessage::Abort {
        controller,
        qid: Qid(1),
        cid,
        reply,
    });
    frozen.rig.stats();
    // Whether the kernel can recall it is a matter of where it waits: before a worker took it up, at once; in the file system, not
    // until that is thawed. Then "done" cannot be known yet, and answer, status and file have to agree in either case.
    let early = answer.try_recv().ok();
    assert_ne!(early, Some(false), "the file system still has it");
    frozen.mount.thaw();
    let aborted = early.unwrap_or_else(|| answer.blocking_recv().unwrap());
    let expected = match aborted {
        true => (Status::ABORT_REQUESTED, 1),
        false => (Status::SUCCESS, 7),
    };
    let status = frozen.host.wait(frozen.slot).status;
    assert_eq!((status, frozen.on_disk()), expected);
}

#[test]
fn what_waits_for_its_share_of_a_disk_is_aborted_dropped_or_run() {
    let Some(mut frozen) = Frozen::new("share") else {
        return;
    };
    // The one write of the first host bounds what the others have on its disk.
    let mut connect = |cntlid| {
        frozen.rig.connect_with(&ConnectOptions {
            cntlid,
            ..ConnectOptions::default()
        })
    };
    let (mut deep, mut dropped) = (connect(2), connect(3));
    let slots: Vec<SlotId> = (1..=100)
        .map(|at| deep.start_write(u64::from(at) * 4096, vec![at; 4096]))
        .collect();
    deep.flush();
    for at in 201..=300 {
        dropped.start_write(at * 4096, vec![9; 4096]);
    }
    dropped.flush();
    wait_received(&frozen.rig, 2 + 200);
    let waiting = frozen.rig.stats().waiting_for_disk;
    assert!((2 * (100 - 64)..2 * 100).contains(&waiting), "{waiting}");

    let (last, others) = slots.split_last().unwrap();
    let (controller, cid) = (frozen.rig.key(2), deep.cid(*last));
    assert!(frozen.rig.call(|reply| ShardMessage::Abort {
        controller,
        qid: Qid(1),
        cid,
        reply,
    }));
    assert_eq!(deep.wait(*last).status, Status::ABORT_REQUESTED);
    assert_eq!(frozen.rig.stats().waiting_for_disk, waiting - 1);
    let controller = frozen.rig.key(3);
    let gone = frozen
        .rig
        .ask(|ack| ShardMessage::DropController { controller, ack });
    frozen.mount.thaw();
    gone.blocking_recv().unwrap();
    for slot in others {
        assert_eq!(deep.wait(*slot).status, Status::SUCCESS);
    }
    assert_eq!(frozen.host.wait(frozen.slot).status, Status::SUCCESS);
    let mut expected: Vec<u8> = (1..=100).flat_map(|at| vec![at; 4096]).collect();
    expected[99 * 4096..].fill(0);
    assert_eq!(deep.read(4096, 100 * 4096).unwrap(), expected);
}

#[test]
fn abort_removes_what_waits() {
    let mut rig = Rig::new(&[memory()]);
    let mut host = rig.connect();

    // Waiting for its data: the R2T is out, the data come after the Abort and are thrown away.
    let slot = host.start_write(0, vec![1; 256 << 10]);
    host.flush();
    assert!(host.receive(), "the R2T");
    assert!(abort(&rig, &host, slot));
    assert_eq!(host.wait(slot).status, Status::ABORT_REQUESTED);

    // Held by a pause.
    rig.pause(Scope::Subsystem(SUBSYSTEM));
    let held = host.start_write(0, vec![2; 4096]);
    let other = host.start_write(4096, vec![3; 4096]);
    host.flush();
    wait_received(&rig, 3);
    assert!(abort(&rig, &host, held));
    assert_eq!(host.wait(held).status, Status::ABORT_REQUESTED);
    rig.resume(Scope::Subsystem(SUBSYSTEM));
    assert_eq!(host.wait(other).status, Status::SUCCESS);
    assert_eq!(
        host.read(0, 8192).unwrap(),
        [vec![0; 4096], vec![3; 4096]].concat()
    );

    // Unknown: completed, never there, another queue, another controller.
    assert!(!abort(&rig, &host, other));
    let cid = host.cid(other);
    for (cntlid, qid) in [(1, 2), (2, 1)] {
        let controller = rig.key(cntlid);
        assert!(!rig.call(|reply| ShardMessage::Abort {
            controller,
            qid: Qid(qid),
            cid,
            reply
        }));
    }
}

#[test]
fn a_removed_namespace_is_invalid_and_what_it_held_is_refused() {
    let mut rig = Rig::new(&[memory(), memory()]);
    let mut host = rig.connect();
    rig.pause(Scope::Namespace(SUBSYSTEM, Nsid(1)));
    let held = host.start_write(0, vec![1; 4096]);
    // Its data come after the namespace is gone.
    let late = host.start_write(0, vec![1; 64 << 10]);
    host.flush();
    wait_received(&rig, 2);
    let whole = rig.table.clone();
    rig.set_namespaces(whole.without(Nsid(1)));
    let invalid = Status::INVALID_NAMESPACE.dnr();
    assert_eq!(host.wait(held).status, invalid);
    assert_eq!(host.wait(late).status, invalid);
    assert_eq!(host.read(0, 4096), Err(invalid));
    host.nsid = Nsid(2);
    assert_eq!(host.read(0, 4096), Ok(vec![0; 4096]));
    // Another one takes its place: the pause still counts.
    rig.set_namespaces(whole.with(namespace(1, &memory())));
    host.nsid = Nsid(1);
    let slot = host.start_read(0, 4096);
    host.flush();
    wait_received(&rig, 5);
    assert_eq!(host.completed(), 0);
    rig.resume(Scope::Namespace(SUBSYSTEM, Nsid(1)));
    assert_eq!(host.wait(slot).data, vec![0; 4096]);
}

#[test]
fn a_namespace_is_resized_under_its_host() {
    let dir = tempfile::tempdir().unwrap();
    let spec = file_in(dir.path());
    let backing = std::sync::Arc::new(Backing::open(&spec, &BackingOptions::default()).unwrap());
    let small = namespace_on(1, backing.clone());
    let mut rig = Rig::new(&[]);
    rig.set_namespaces([small.clone()].into_iter().collect());
    let mut host = rig.connect();
    assert_eq!(
        host.write(SIZE, vec![1; 4096]),
        Status::LBA_OUT_OF_RANGE.dnr()
    );
    backing.resize(Some(2 * SIZE)).unwrap();
    let large = namespace_on(1, backing);
    rig.set_namespaces([large].into_iter().collect());
    assert_eq!(host.write(SIZE, vec![1; 4096]), Status::SUCCESS);
    assert_eq!(host.read(SIZE, 4096), Ok(vec![1; 4096]));

    // Shrunk while commands beyond the new end are held, one of them waiting for its data.
    rig.pause(Scope::Subsystem(SUBSYSTEM));
    let inside = host.start_write(0, vec![2; 4096]);
    let outside = host.start_write(SIZE, vec![2; 4096]);
    let late = host.start_write(SIZE, vec![2; 64 << 10]);
    host.flush();
    wait_received(&rig, 6);
    let geometry = Geometry::new(512, SIZE).unwrap();
    let shrunk = Namespace {
        geometry,
        ..(*small).clone()
    };
    rig.set_namespaces([std::sync::Arc::new(shrunk)].into_iter().collect());
    rig.resume(Scope::Subsystem(SUBSYSTEM));
    assert_eq!(host.wait(inside).status, Status::SUCCESS);
    assert_eq!(host.wait(outside).status, Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(host.wait(late).status, Status::LBA_OUT_OF_RANGE.dnr());
}

#[test]
fn disconnect_answers_and_closes() {
    let mut rig = Rig::new(&[memory()]);
    let mut host = rig.connect();
    let mut sqe = Sqe::new(Opcode::FABRICS);
    sqe.nsid = U32::new(FabricsType::DISCONNECT.0.into());
    sqe.cdw10 = U32::new(1);
    assert_eq!(
        host.plain(&sqe),
        Status::CONNECT_INCOMPATIBLE_FORMAT.dnr(),
        "record format 1 is unknown"
    );
    assert_eq!(host.write(0, vec![1; 4096]), Status::SUCCESS);
    sqe.cdw10 = U32::new(0);
    assert_eq!(host.plain(&sqe), Status::SUCCESS);
    host.wait_closed();
    assert_eq!(
        rig.closed(),
        (rig.key(1), Qid(1), CloseReason::Disconnected)
    );
}

/// A read of memory waits for what comes behind it, and that ends the connection: nothing is left of it.
#[test]
fn a_read_before_the_end_of_its_connection_is_done_with() {
    let mut disconnect = Sqe::new(Opcode::FABRICS);
    disconnect.nsid = U32::new(FabricsType::DISCONNECT.0.into());
    for is_polite in [true, false] {
        let mut rig = Rig::new(&[memory()]);
        let mut host = rig.connect();
        host.start_read(0, 4096);
        let mut behind = host.outgoing();
        if is_polite {
            host.submit(&disconnect, Transfer::None, Vec::new());
            behind.extend(host.outgoing());
        } else {
            // No PDU begins so.
            behind.extend([0xff; 128]);
        }
        host.stream.write_all(&behind).unwrap();
        // Who has been told of a violation closes.
        host.stream.shutdown(std::net::Shutdown::Write).unwrap();
        host.wait_closed();
        let (key, qid, reason) = rig.closed();
        assert_eq!((key, qid), (rig.key(1), Qid(1)));
        assert_eq!(is_polite, reason == CloseReason::Disconnected, "{reason:?}");
        // Nothing of it is left in the backing, which would hold this up.
        let scope = Scope::Subsystem(SUBSYSTEM);
        rig.pause(scope.clone());
        rig.call(|ack| ShardMessage::Drain { scope, ack });
    }
}

#[test]
fn stop_answers_what_runs_and_drops_what_waits() {
    let mut rig = Rig::new(&[memory()]);
    let mut first = rig.connect();
    let mut second = rig.connect_with(&ConnectOptions {
        qid: 2,
        ..ConnectOptions::default()
    });
    rig.pause(Scope::Subsystem(SUBSYSTEM));
    let held = first.start_write(0, vec![1; 4096]);
    first.flush();
    wait_received(&rig, 1);
    drop(rig);
    first.wait_closed();
    second.wait_closed();
    assert_eq!((first.completed(), second.completed()), (0, 0));
    let _ = held;
}
