//! Killed between every two side effects, and the power cut there.
//!
//! A child process (this test program again) does one operation and kills itself after step N. Then the pool is opened
//! twice: as it is, which is what a killed process leaves, and from a copy of the device, which is what a power cut leaves. Either must
//! show the state before the operation or the state after it, whole. N counts up until the child survives.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use super::*;
use crate::pool::step::KILL_AT;

const FOLDER: &str = "NVMF_POOL_TEST_FOLDER";
const OPERATION: &str = "NVMF_POOL_TEST_OPERATION";

/// An operation, and what it needs beforehand.
struct Case {
    name: &'static str,
    before: fn(&Arc<Pool>),
    operation: fn(&Arc<Pool>),
}

fn volume(pool: &Arc<Pool>) {
    pool.create_volume(&new("v", 4 * MIB)).unwrap();
    fill(pool, "v");
}

fn two_volumes(pool: &Arc<Pool>) {
    volume(pool);
    pool.create_volume(&new("w", 4 * MIB)).unwrap();
    fill(pool, "w");
}

fn volume_and_snapshot(pool: &Arc<Pool>) {
    volume(pool);
    snapshot(pool, &[snapshot_of("v", "s")]).unwrap();
}

fn fill(pool: &Pool, name: &str) {
    use std::os::unix::fs::FileExt;
    let path = pool.volume_path(name);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![name.as_bytes()[0]; MIB as usize], MIB)
        .unwrap();
    file.sync_all().unwrap();
}

const CASES: [Case; 9] = [
    Case {
        name: "create",
        before: |_| {},
        operation: |pool| drop(pool.create_volume(&new("n", 4 * MIB)).unwrap()),
    },
    Case {
        name: "create thick",
        before: |_| {},
        operation: |pool| {
            let thick = NewVolume {
                provisioning: Provisioning::Thick,
                ..new("n", 4 * MIB)
            };
            pool.create_volume(&thick).unwrap();
        },
    },
    Case {
        name: "delete",
        before: volume,
        operation: |pool| pool.delete_volume("v").unwrap().reclaim(),
    },
    Case {
        name: "grow",
        before: volume,
        operation: |pool| drop(pool.grow_volume("v", 8 * MIB).unwrap()),
    },
    Case {
        name: "hosts",
        before: volume,
        operation: |pool| {
            let hosts = ["nqn.2025-01.org.example:h".to_owned()].into();
            pool.set_hosts("v", hosts).unwrap();
        },
    },
    Case {
        name: "snapshot",
        before: volume,
        operation: |pool| {
            snapshot(pool, &[snapshot_of("v", "s")]).unwrap();
        },
    },
    Case {
        name: "group",
        before: two_volumes,
        operation: |pool| {
            snapshot(pool, &[snapshot_of("v", "s"), snapshot_of("w", "t")]).unwrap();
        },
    },
    Case {
        name: "clone",
        before: volume_and_snapshot,
        operation: |pool| {
            let larger = NewVolume {
                size_bytes: Some(8 * MIB),
                ..clone_of("n", Source::Snapshot("s".into()))
            };
            make_clone(pool, &larger).unwrap();
        },
    },
    Case {
        name: "delete snapshot",
        before: volume_and_snapshot,
        operation: |pool| pool.delete_snapshot("s").unwrap().reclaim(),
    },
];

/// The child's part: does the operation, or dies on the way. Does nothing when it is not called as a child.
#[test]
fn child() {
    let (Ok(folder), Ok(operation)) = (std::env::var(FOLDER), std::env::var(OPERATION)) else {
        return;
    };
    let case = CASES.iter().find(|case| case.name == operation).unwrap();
    (case.operation)(&open(Path::new(&folder)));
}

/// Runs the operation in a child that dies after step `kill_at`; whether it died.
fn run_child(folder: &Path, case: &Case, kill_at: u32) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pool::tests::crash::child", "--nocapture"])
        .env(FOLDER, folder)
        .env(OPERATION, case.name)
        .env(KILL_AT, kill_at.to_string())
        .output()
        .unwrap();
    let killed = output.status.signal() == Some(9);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(killed || output.status.success(), "{}: {said}", case.name);
    assert!(
        killed || said.contains("1 passed"),
        "the child did nothing: {said}"
    );
    killed
}

/// What a pool holds, in a form that does not depend on identities and times.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// Size, hosts, content.
    volumes: BTreeMap<String, (u64, usize, u64)>,
    snapshots: BTreeMap<String, (u64, u64)>,
    groups: usize,
}

fn look(folder: &Path) -> Seen {
    let (pool, _) = Pool::open(config(folder), PATIENCE).unwrap();
    // What was repaired stays repaired.
    drop(pool);
    let (pool, repairs) = Pool::open(config(folder), PATIENCE).unwrap();
    assert!(repairs.is_empty(), "{repairs:?}");
    for sub in ["volumes", "snapshots"] {
        for entry in std::fs::read_dir(folder.join(sub)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.'), "left over: {name}");
        }
    }
    let content = |path: &Path| -> u64 {
        let bytes = std::fs::read(path).unwrap();
        bytes.iter().map(|byte| u64::from(*byte)).sum()
    };
    let volumes = pool.volumes().into_iter().map(|volume| {
        let path = pool.volume_path(&volume.name);
        let size = std::fs::metadata(&path).unwrap().len();
        assert_eq!(size, volume.size_bytes);
        (volume.name, (size, volume.hosts.len(), content(&path)))
    });
    let snapshots = pool.snapshots();
    let groups: std::collections::BTreeSet<_> = snapshots.iter().filter_map(|s| s.group).collect();
    let damaged =
        std::fs::read_dir(folder.join("volumes")).unwrap().count() - 2 * pool.volumes().len();
    assert_eq!(damaged, 0, "files without a volume");
    Seen {
        volumes: volumes.collect(),
        snapshots: snapshots
            .into_iter()
            .map(|snapshot| {
                let path = folder.join(format!("snapshots/{}.raw", snapshot.name));
                (snapshot.name, (snapshot.size_bytes, content(&path)))
            })
            .collect(),
        groups: groups.len(),
    }
}

/// Makes a file system for a test that is called so.
type Make = fn(&str) -> Option<Mount>;

fn xfs(test: &str) -> Option<Mount> {
    Mount::xfs(test, 320 * MIB)
}

fn btrfs(test: &str) -> Option<Mount> {
    Mount::btrfs(test, 192 * MIB)
}

/// A file system with the pool as `before` leaves it, everything on disk.
fn prepared(make: Make, case: &Case) -> Option<Mount> {
    let mount = make("crashes of a pool")?;
    let pool = open(&mount.root());
    (case.before)(&pool);
    drop(pool);
    rustix::fs::syncfs(std::fs::File::open(mount.root()).unwrap()).unwrap();
    Some(mount)
}

fn crash(make: Make, case: &Case) {
    let Some(mount) = prepared(make, case) else {
        return;
    };
    let before = look(&mount.root());
    assert!(!run_child(&mount.root(), case, 0));
    let after = look(&mount.root());
    assert_ne!(
        before, after,
        "{}: the operation changes something",
        case.name
    );
    drop(mount);

    let mut seen_old = 0;
    let mut kill_at = 1;
    loop {
        let mount = prepared(make, case).unwrap();
        if !run_child(&mount.root(), case, kill_at) {
            break;
        }
        let mut check = |what: &str, seen: Seen| {
            assert!(
                seen == before || seen == after,
                "{} {what} after step {kill_at}: {seen:#?}\nbefore {before:#?}\nafter {after:#?}",
                case.name
            );
            seen_old += u32::from(seen == before);
        };
        // What the device was sent until now, without what the kernel would still send.
        let cut = mount.image_now();
        check("killed", look(&mount.root()));
        drop(mount);
        check("power cut", look(&cut.mount().root()));
        kill_at += 1;
    }
    assert!(
        kill_at > 4 && seen_old > 0,
        "{}: no steps were seen",
        case.name
    );
}

macro_rules! crashes {
    ($($test:ident = $make:ident, $index:expr;)*) => {
        $(#[test] fn $test() { crash($make, &CASES[$index]); })*
    };
}
crashes! {
    killed_while_creating = xfs, 0;
    killed_while_creating_thick = xfs, 1;
    killed_while_deleting = xfs, 2;
    killed_while_growing = xfs, 3;
    killed_while_changing_hosts = xfs, 4;
    killed_while_taking_a_snapshot = xfs, 5;
    killed_while_taking_a_group = xfs, 6;
    killed_while_cloning = xfs, 7;
    killed_while_deleting_a_snapshot = xfs, 8;
    killed_on_btrfs_while_creating = btrfs, 0;
    killed_on_btrfs_while_deleting = btrfs, 2;
    killed_on_btrfs_while_taking_a_group = btrfs, 6;
}
