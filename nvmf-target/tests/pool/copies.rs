//! Snapshots under load: every copy shows one instant.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use nvme_proto::wire::Status;
use nvmf_rpc::types::{CreateSnapshots, SnapshotSpec, Source};

use super::*;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;

/// A block that says which write it is from.
fn stamped(count: u64) -> Vec<u8> {
    count.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn stamp_of(block: &[u8]) -> u64 {
    let stamp = u64::from_le_bytes(block[..8].try_into().unwrap());
    assert_eq!(block, stamped(stamp), "a torn block");
    stamp
}

/// The stamp of every block of a volume.
fn stamps(rig: &Rig, volume: &Volume) -> Vec<u64> {
    let (_session, mut queue) = rig.connect(volume);
    let all = queue.read(0, (BLOCK * BLOCKS) as usize).unwrap();
    all.chunks(BLOCK as usize).map(stamp_of).collect()
}

/// A host that writes stamps 1, 2, 3 … around its volumes, one after the other, each when the one before was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(rig: &Rig, volumes: &[Volume]) -> Self {
        let mut connected: Vec<_> = volumes.iter().map(|volume| rig.connect(volume)).collect();
        let (stop, acknowledged) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopping, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                let stamp = count.load(Ordering::Relaxed) + 1;
                for (_, queue) in &mut connected {
                    let offset = (stamp % BLOCKS) * BLOCK;
                    assert_eq!(queue.write(offset, stamped(stamp)), Status::SUCCESS);
                }
                count.store(stamp, Ordering::Release);
            }
        });
        Writer {
            stop,
            acknowledged,
            thread: Some(thread),
        }
    }

    fn written(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits for so many more writes.
    fn wait_for(&self, more: u64) {
        let goal = self.written() + more;
        while self.written() < goal {
            assert!(
                !self.thread.as_ref().unwrap().is_finished(),
                "the writer failed"
            );
            std::thread::yield_now();
        }
    }

    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The last stamp in `found`, after proving that every block has the last stamp before or at it that belongs there: one instant.
fn instant_of(found: &[u64]) -> u64 {
    let last = *found.iter().max().unwrap();
    for (index, stamp) in found.iter().enumerate() {
        let back = (last + BLOCKS - index as u64) % BLOCKS;
        assert_eq!(
            *stamp,
            last.saturating_sub(back),
            "block {index} of {found:?}"
        );
    }
    last
}

fn under_load(rig: &Rig) {
    let source = rig.volume("v", BLOCK * BLOCKS);
    let writer = Writer::start(rig, std::slice::from_ref(&source));
    let mut expected = Vec::new();
    for round in 0..5 {
        writer.wait_for(2 * BLOCKS);
        let before = writer.written();
        let name = format!("s{round}");
        let snapshot = rig.snapshot("v", &name);
        let after = writer.written();
        assert!(snapshot.pause_us.unwrap() > 0 && snapshot.extents.unwrap() > 0);
        expected.push((name.clone(), Source::Snapshot(name), before, after));
        let before = writer.written();
        let name = format!("direct{round}");
        rig.make_clone(&name, Source::Volume("v".into()));
        expected.push((
            name.clone(),
            Source::Volume("v".into()),
            before,
            writer.written(),
        ));
    }
    writer.wait_for(2 * BLOCKS);
    writer.finish();
    for (name, source, before, after) in expected {
        let copy = match &source {
            Source::Snapshot(_) => rig.make_clone(&format!("c-{name}"), source),
            Source::Volume(_) => {
                let found = rig.ask(nvmf_rpc::types::GetVolumes {
                    name: Some(name.clone()),
                    ..Default::default()
                });
                found.into_iter().next().unwrap()
            }
        };
        let instant = instant_of(&stamps(rig, &copy));
        // One write may have been on its way when the counter was read.
        assert!(
            (before..=after + 1).contains(&instant),
            "{name}: {instant} is not in {before}..={after}"
        );
    }
}

#[test]
fn a_snapshot_under_load_shows_one_instant_on_xfs() {
    if let Some(rig) = Rig::xfs("snapshots under load", "") {
        under_load(&rig);
    }
}

#[test]
fn a_snapshot_under_load_shows_one_instant_on_btrfs() {
    for more in ["", "nocow = true"] {
        let Some(mount) = Mount::btrfs("snapshots under load on btrfs", 512 * MIB) else {
            return;
        };
        under_load(&Rig::on(mount, more));
    }
}

/// Makes a volume that takes long to copy: thousands of extents.
fn slow_volume(rig: &Rig, name: &str) {
    const EXTENTS: u64 = 10_000;
    let size_bytes = EXTENTS * 4 * BLOCK;
    rig.volume(name, size_bytes);
    let path = rig.mount.path(&format!("volumes/{name}.raw"));
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    for index in 0..EXTENTS {
        file.write_all_at(&stamped(index), index * 4 * BLOCK)
            .unwrap();
    }
    file.sync_all().unwrap();
}

#[test]
fn a_group_shows_one_instant_of_all_members() {
    let more = "extent-size = \"0\"\novercommit = \"allow\"";
    let Some(rig) = Rig::xfs("groups under load", more) else {
        return;
    };
    let names = ["a", "b", "c"];
    let volumes = names.map(|name| rig.volume(name, BLOCK * BLOCKS));
    // Between the first member and the others: without a hold the writer would come far in the meantime.
    slow_volume(&rig, "slow");
    let writer = Writer::start(&rig, &volumes);
    let mut groups = Vec::new();
    for round in 0..5 {
        writer.wait_for(2 * BLOCKS);
        let wanted = ["a", "slow", "b", "c"].iter().map(|name| SnapshotSpec {
            volume: (*name).to_owned(),
            name: format!("{name}{round}"),
            ..SnapshotSpec::default()
        });
        let taken = rig.ask(CreateSnapshots {
            pool: POOL.into(),
            snapshots: wanted.collect(),
        });
        assert!(
            taken
                .iter()
                .all(|one| one.group.is_some() && one.group == taken[0].group)
        );
        groups.push(taken);
    }
    writer.finish();
    for mut group in groups {
        assert_eq!(group.remove(1).volume, "slow");
        let instants: Vec<u64> = group
            .iter()
            .map(|snapshot| {
                let name = format!("c-{}", snapshot.name);
                let copy = rig.make_clone(&name, Source::Snapshot(snapshot.name.clone()));
                instant_of(&stamps(&rig, &copy))
            })
            .collect();
        // Each stamp went to a, then b, then c: at one instant none is behind the next, and the first at most one ahead of the last.
        assert!(
            instants.is_sorted_by(|one, next| one >= next) && instants[0] - instants[2] <= 1,
            "{instants:?}"
        );
    }
}

#[test]
fn copies_from_many_clients_do_not_mix() {
    let Some(rig) = Rig::xfs("many copies", "overcommit = \"allow\"") else {
        return;
    };
    let source = rig.volume("v", BLOCK * BLOCKS);
    let (_session, mut queue) = rig.connect(&source);
    for index in 0..BLOCKS {
        assert_eq!(queue.write(index * BLOCK, stamped(index)), Status::SUCCESS);
    }
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for index in 0..10 {
            let (client, failures) = (rig.target.rpc(), &failures);
            scope.spawn(move || {
                let params =
                    |name: &str| serde_json::json!({"pool": POOL, "volume": "v", "name": name});
                // The same name from all, and one of its own.
                let same = client.call("pool_create_snapshot", params("same"));
                if let Err(error) = same
                    && error.code() != Some(-17)
                {
                    failures.lock().unwrap().push(error.to_string());
                }
                let own = client.call("pool_create_snapshot", params(&format!("own{index}")));
                failures
                    .lock()
                    .unwrap()
                    .extend(own.err().map(|error| error.to_string()));
            });
        }
    });
    assert!(failures.lock().unwrap().is_empty(), "{failures:?}");
    let all = rig.ask(nvmf_rpc::types::GetSnapshots::default());
    assert_eq!(all.len(), 11);
}
