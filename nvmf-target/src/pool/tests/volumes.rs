//! What a pool does with volumes, snapshots and clones, and what it refuses.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;

use super::*;

/// Names of the files in a pool's folders.
fn files(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["volumes", "snapshots"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            names.push(format!("{folder}/{name}"));
        }
    }
    names.sort();
    names
}

fn write(pool: &Pool, name: &str, offset: u64, byte: u8) {
    let file = fs::OpenOptions::new()
        .write(true)
        .open(pool.volume_path(name))
        .unwrap();
    file.write_all_at(&[byte; 4096], offset).unwrap();
    file.sync_all().unwrap();
}

fn read(path: &Path, offset: u64) -> u8 {
    let mut bytes = [0; 4096];
    fs::File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "torn");
    bytes[0]
}

#[test]
fn a_volume_lives_through_restarts_and_goes_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(dir.path());
    let made = NewVolume {
        hosts: ["nqn.2025-01.org.example:h".to_owned()].into(),
        labels: [("owner".to_owned(), "me".to_owned())].into(),
        read_only: true,
        ..new("v", 10 * MIB + 1)
    };
    let record = pool.create_volume(&made).unwrap();
    assert_eq!(record.size_bytes, 10 * MIB + 4096, "whole blocks");
    assert_eq!(record.nqn, "nqn.2025-01.org.example:p:v");
    assert_eq!(
        (record.nsid, record.shared, record.serial.len()),
        (1, false, 20)
    );
    assert_eq!(pool.volume_allocated("v"), 0);
    write(&pool, "v", 4096, 7);
    assert!(pool.volume_allocated("v") >= 4096);
    drop(pool);

    let (pool, repairs) = Pool::open(config(dir.path()), PATIENCE).unwrap();
    assert!(repairs.is_empty(), "{repairs:?}");
    assert_eq!(pool.volumes(), std::slice::from_ref(&record));
    assert_eq!(read(&pool.volume_path("v"), 4096), 7);
    let second = pool.create_volume(&made).unwrap_err();
    assert_eq!(second.code(), -17);
    assert!(matches!(second, PoolError::VolumeExists(existing) if *existing == record));

    pool.delete_volume("v").unwrap().reclaim();
    assert_eq!(pool.volume("v").unwrap_err().code(), -2);
    assert_eq!(pool.delete_volume("v").unwrap_err().code(), -2);
    assert!(files(dir.path()).is_empty(), "{:?}", files(dir.path()));
    let again = pool.create_volume(&made).unwrap();
    assert_ne!(
        again.id, record.id,
        "another volume of that name is another volume"
    );
    assert_ne!(again.serial, record.serial);
}

#[test]
fn what_is_no_volume_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(dir.path());
    let code = |new: &NewVolume| pool.create_volume(new).unwrap_err().code();
    assert_eq!(code(&new("../v", MIB)), -22);
    assert_eq!(code(&new("v", 0)), -22);
    assert_eq!(code(&new("v", u64::MAX)), -22);
    let sizeless = NewVolume {
        size_bytes: None,
        ..new("v", 0)
    };
    assert_eq!(code(&sizeless), -22);
    let blocks = NewVolume {
        block_bytes: Some(1024),
        ..new("v", MIB)
    };
    assert_eq!(code(&blocks), -22);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn volumes_grow_and_never_shrink() {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(dir.path());
    pool.create_volume(&new("v", MIB)).unwrap();
    write(&pool, "v", 0, 3);
    let grown = pool.grow_volume("v", 4 * MIB).unwrap();
    assert_eq!(grown.size_bytes, 4 * MIB);
    assert_eq!(pool.grow_volume("v", 4 * MIB).unwrap(), grown);
    assert_eq!(pool.grow_volume("v", MIB).unwrap_err().code(), -22);
    assert_eq!(pool.grow_volume("w", MIB).unwrap_err().code(), -2);
    assert_eq!(fs::metadata(pool.volume_path("v")).unwrap().len(), 4 * MIB);
    let path = pool.volume_path("v");
    assert_eq!((read(&path, 0), read(&path, 3 * MIB)), (3, 0));
    drop(pool);
    assert_eq!(open(dir.path()).volume("v").unwrap(), grown);
}

#[test]
fn hosts_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(dir.path());
    pool.create_volume(&new("v", MIB)).unwrap();
    let hosts: std::collections::BTreeSet<String> = ["nqn.x:1".to_owned()].into();
    pool.set_hosts("v", hosts.clone()).unwrap();
    drop(pool);
    let pool = open(dir.path());
    assert_eq!(pool.volume("v").unwrap().hosts, hosts);
    pool.set_hosts("v", [].into()).unwrap();
    assert!(pool.volume("v").unwrap().hosts.is_empty());
}

#[test]
fn a_pool_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(dir.path());
    let error = Pool::open(config(dir.path()), Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(pool);
    open(dir.path());
}

#[test]
fn a_folder_must_be_a_mount_unless_it_is_said_not_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let strict = PoolConfig::new("p", dir.path(), PREFIX);
    let error = Pool::open(strict, PATIENCE).unwrap_err().to_string();
    assert!(error.contains("require-mount = false"), "{error}");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing was made"
    );
    let Some(mount) = Mount::tmpfs("pool on a mount", 16 * MIB) else {
        return;
    };
    let strict = PoolConfig::new("p", mount.root(), PREFIX);
    Pool::open(strict, PATIENCE).unwrap();
}

#[test]
fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("volumes")).unwrap();
    let error = Pool::open(config(dir.path()), PATIENCE).unwrap_err();
    assert!(error.to_string().contains("is no pool"), "{error}");
    fs::remove_dir(dir.path().join("volumes")).unwrap();

    drop(open(dir.path()));
    let foreign = dir.path().join("volumes/old.raw");
    fs::write(&foreign, "precious").unwrap();
    fs::write(dir.path().join("volumes/.hidden.raw"), "precious").unwrap();
    let (pool, repairs) = Pool::open(config(dir.path()), PATIENCE).unwrap();
    assert!(repairs.is_empty(), "{repairs:?}");
    let error = pool.create_volume(&new("old", MIB)).unwrap_err();
    assert_eq!(error.code(), -5, "{error}");
    assert_eq!(fs::read(&foreign).unwrap(), b"precious");
    assert!(dir.path().join("volumes/.hidden.raw").exists());
}

#[test]
fn damage_is_confined_to_its_volume() {
    let dir = tempfile::tempdir().unwrap();
    let pool = open(dir.path());
    for name in ["whole", "cut", "garbled", "lost", "newer"] {
        pool.create_volume(&new(name, MIB)).unwrap();
    }
    drop(pool);
    let file = |name: &str| dir.path().join("volumes").join(name);
    let cut = fs::OpenOptions::new()
        .write(true)
        .open(file("cut.raw"))
        .unwrap();
    cut.set_len(4096).unwrap();
    fs::write(file("garbled.json"), "{").unwrap();
    fs::remove_file(file("lost.raw")).unwrap();
    let newer = fs::read_to_string(file("newer.json")).unwrap();
    fs::write(
        file("newer.json"),
        newer.replace("\"version\": 1", "\"version\": 99"),
    )
    .unwrap();
    let pool = open(dir.path());
    let names: Vec<String> = pool
        .volumes()
        .into_iter()
        .map(|volume| volume.name)
        .collect();
    assert_eq!(names, ["whole"]);
    for name in ["cut", "garbled", "lost", "newer"] {
        let error = pool.volume(name).unwrap_err();
        assert!(matches!(error, PoolError::Damaged { .. }), "{error}");
        assert!(
            pool.create_volume(&new(name, MIB)).is_err(),
            "the name stays taken"
        );
    }
    // Repaired by hand, it is back.
    cut.set_len(MIB).unwrap();
    drop(pool);
    assert!(open(dir.path()).volume("cut").is_ok());
}

#[test]
fn promises_are_kept_by_policy() {
    let Some(mount) = Mount::tmpfs("pool's promises", 64 * MIB) else {
        return;
    };
    let with = |overcommit| {
        let config = PoolConfig {
            overcommit,
            ..config(&mount.root())
        };
        Pool::open(config, PATIENCE).unwrap().0
    };
    let pool = with(Overcommit::Refuse);
    pool.create_volume(&new("a", 40 * MIB)).unwrap();
    let error = pool.create_volume(&new("b", 40 * MIB)).unwrap_err();
    assert_eq!(error.code(), -28);
    assert!(error.to_string().contains("overcommit"), "{error}");
    assert_eq!(pool.grow_volume("a", 80 * MIB).unwrap_err().code(), -28);
    assert_eq!(
        pool.usage().unwrap().provisioned_bytes,
        40 * MIB,
        "what failed reserves nothing"
    );
    drop(pool);
    let pool = with(Overcommit::Warn);
    pool.create_volume(&new("b", 40 * MIB)).unwrap();
    let usage = pool.usage().unwrap();
    assert_eq!((usage.provisioned_bytes, usage.volumes), (80 * MIB, 2));
    let thick = NewVolume {
        provisioning: Provisioning::Thick,
        ..new("thick", 80 * MIB)
    };
    let error = pool.create_volume(&thick).unwrap_err();
    assert!(matches!(error, PoolError::Full { .. }), "{error}");
    assert_eq!(
        pool.usage().unwrap().space.free_bytes / MIB,
        63,
        "what failed takes no space"
    );
    let thick = NewVolume {
        size_bytes: Some(8 * MIB),
        ..thick
    };
    pool.create_volume(&thick).unwrap();
    assert!(pool.volume_allocated("thick") >= 8 * MIB);
    let grown = pool.grow_volume("thick", 16 * MIB).unwrap();
    assert!(pool.volume_allocated("thick") >= 16 * MIB);
    assert!(matches!(
        pool.grow_volume("thick", 100 * MIB),
        Err(PoolError::Full { .. })
    ));
    assert_eq!(pool.volume("thick").unwrap(), grown);
    assert!(pool.volume_allocated("thick") < 17 * MIB);
}

#[test]
fn promises_can_exceed_what_64_bits_count() {
    let Some(mount) = Mount::xfs("pool of huge volumes", 512 * MIB) else {
        return;
    };
    let config = PoolConfig {
        overcommit: Overcommit::Allow,
        ..config(&mount.root())
    };
    let pool = Pool::open(config, PATIENCE).unwrap().0;
    let largest = (1 << 63) - 4096;
    for name in ["a", "b", "c"] {
        pool.create_volume(&new(name, largest)).unwrap();
    }
    assert_eq!(pool.usage().unwrap().provisioned_bytes, u64::MAX);
    pool.delete_volume("a").unwrap().reclaim();
    let two = pool.usage().unwrap().provisioned_bytes;
    assert_eq!(two, 2 * largest, "what is gone counts no more");
}

/// Takes all the room that there is, to the last byte.
fn fill(root: &Path) {
    let mut file = File::create(root.join("filler")).unwrap();
    let chunk = vec![1; 1 << 20];
    let mut len = chunk.len();
    while len > 0 {
        match file.write(&chunk[..len]).and_then(|_| file.sync_data()) {
            Ok(()) => {}
            Err(_) => len /= 2,
        }
    }
}

#[test]
fn a_full_pool_can_be_opened_and_emptied() {
    let tmpfs = Mount::tmpfs("full pool on tmpfs", 8 * MIB);
    let xfs = Mount::xfs("full pool on XFS", 512 * MIB);
    for (mount, reflink) in [(tmpfs, false), (xfs, true)] {
        let Some(mount) = mount else {
            continue;
        };
        let root = mount.root();
        open(&root).create_volume(&new("v", MIB)).unwrap();
        fill(&root);
        let pool = open(&root);
        assert_eq!(pool.file_system().reflink, reflink);
        pool.delete_volume("v").unwrap().reclaim();
        assert!(pool.volumes().is_empty());
    }
}

#[test]
fn without_reflinks_copies_are_refused_with_what_to_use() {
    let Some(mount) = Mount::ext4("pool on ext4", 64 * MIB) else {
        return;
    };
    let pool = Pool::open(PoolConfig::new("p", mount.root(), PREFIX), PATIENCE);
    let pool = pool.unwrap().0;
    assert_eq!(pool.file_system().type_name, "ext4");
    pool.create_volume(&new("v", MIB)).unwrap();
    let refused = snapshot(&pool, &[snapshot_of("v", "s")]).unwrap_err();
    let clone = make_clone(&pool, &clone_of("w", Source::Volume("v".into()))).unwrap_err();
    for error in [refused, clone] {
        assert_eq!(error.code(), -95);
        assert!(
            error.to_string().contains("mkfs.xfs -m reflink=1"),
            "{error}"
        );
    }
}

/// Snapshots and clones on a file system that has them.
fn copies(mount: &Mount, nocow: bool) {
    let config = PoolConfig {
        nocow,
        ..PoolConfig::new("p", mount.root(), PREFIX)
    };
    let pool = Pool::open(config, PATIENCE).unwrap().0;
    assert!(pool.file_system().reflink);
    pool.create_volume(&new("v", 4 * MIB)).unwrap();
    write(&pool, "v", 0, 1);
    write(&pool, "v", 2 * MIB, 1);
    let report = snapshot(&pool, &[snapshot_of("v", "s")]).unwrap();
    assert!(report.extents >= 2 && !report.share.is_zero(), "{report:?}");
    write(&pool, "v", 0, 2);
    let from_snapshot = clone_of("c", Source::Snapshot("s".into()));
    make_clone(&pool, &from_snapshot).unwrap();
    let larger = NewVolume {
        size_bytes: Some(8 * MIB),
        ..clone_of("d", Source::Volume("v".into()))
    };
    make_clone(&pool, &larger).unwrap();
    write(&pool, "c", 2 * MIB, 9);
    let at = |name: &str| {
        let path = pool.volume_path(name);
        (read(&path, 0), read(&path, 2 * MIB), read(&path, MIB))
    };
    assert_eq!(at("v"), (2, 1, 0));
    assert_eq!(at("c"), (1, 9, 0));
    assert_eq!(at("d"), (2, 1, 0));
    assert_eq!(read(&pool.volume_path("d"), 7 * MIB), 0);
    let kept = mount.path("snapshots/s.raw");
    assert_eq!((read(&kept, 0), read(&kept, 2 * MIB)), (1, 1));
    assert_eq!(pool.volume("d").unwrap().size_bytes, 8 * MIB);
    let snapshot_record = pool.snapshot("s").unwrap();
    assert_eq!(
        (snapshot_record.volume.as_str(), snapshot_record.group),
        ("v", None)
    );

    let refused = |new: &NewVolume| make_clone(&pool, new).unwrap_err().code();
    let smaller = NewVolume {
        size_bytes: Some(MIB),
        ..from_snapshot.clone()
    };
    assert_eq!(
        refused(&NewVolume {
            name: "e".into(),
            ..smaller
        }),
        -22
    );
    let thick = NewVolume {
        name: "e".into(),
        provisioning: Provisioning::Thick,
        ..from_snapshot.clone()
    };
    assert_eq!(refused(&thick), -22);
    assert_eq!(refused(&clone_of("e", Source::Snapshot("none".into()))), -2);
    assert_eq!(refused(&clone_of("c", Source::Snapshot("s".into()))), -17);

    let group = [snapshot_of("v", "g1"), snapshot_of("c", "g2")];
    snapshot(&pool, &group).unwrap();
    let (one, two) = (pool.snapshot("g1").unwrap(), pool.snapshot("g2").unwrap());
    assert!(one.group.is_some() && one.group == two.group);
    let again = [snapshot_of("v", "g3"), snapshot_of("c", "g2")];
    assert_eq!(snapshot(&pool, &again).unwrap_err().code(), -17);
    assert_eq!(pool.snapshot("g3").unwrap_err().code(), -2, "all or none");

    // While a copy is being made neither side can go.
    let mut copying = pool
        .prepare_clone(&clone_of("f", Source::Volume("v".into())))
        .unwrap();
    assert_eq!(pool.delete_volume("v").unwrap_err().code(), -16);
    assert_eq!(pool.create_volume(&new("f", MIB)).unwrap_err().code(), -16);
    copying.take().unwrap();
    drop(copying);
    assert_eq!(pool.volume("f").unwrap_err().code(), -2);

    for name in ["v", "c", "d"] {
        pool.delete_volume(name).unwrap().reclaim();
    }
    assert_eq!(read(&kept, 0), 1, "a snapshot outlives its volume");
    for name in ["s", "g1", "g2"] {
        pool.delete_snapshot(name).unwrap().reclaim();
    }
    assert!(
        files(&mount.root()).is_empty(),
        "{:?}",
        files(&mount.root())
    );
    let usage = pool.usage().unwrap();
    assert_eq!((usage.provisioned_bytes, usage.allocated_bytes), (0, 0));
}

#[test]
fn xfs_snapshots_and_clones() {
    if let Some(mount) = Mount::xfs("pool on XFS", 512 * MIB) {
        copies(&mount, false);
    }
}

#[test]
fn btrfs_snapshots_and_clones() {
    if let Some(mount) = Mount::btrfs("pool on btrfs", 256 * MIB) {
        copies(&mount, false);
        copies(&mount, true);
    }
}

#[test]
fn xfs_allocates_in_large_units() {
    let Some(mount) = Mount::xfs("pool's extents on XFS", 512 * MIB) else {
        return;
    };
    let pool = open(&mount.root());
    pool.create_volume(&new("v", 64 * MIB)).unwrap();
    let file = fs::File::open(pool.volume_path("v")).unwrap();
    let hint = nvmf_io::sys::file::extent_size_hint(&file).unwrap();
    assert_eq!(hint, config::DEFAULT_EXTENT_BYTES);
    write(&pool, "v", 8 * MIB + 4096, 1);
    assert_eq!(pool.volume_allocated("v"), MIB);
}

#[test]
fn a_snapshot_counts_what_its_volume_may_overwrite() {
    let Some(mount) = Mount::xfs("pool's promises on XFS", 512 * MIB) else {
        return;
    };
    let pool = open(&mount.root());
    pool.create_volume(&new("v", 64 * MIB)).unwrap();
    write(&pool, "v", 0, 1);
    let before = pool.usage().unwrap().provisioned_bytes;
    snapshot(&pool, &[snapshot_of("v", "s")]).unwrap();
    let usage = pool.usage().unwrap();
    let kept = pool.snapshot_allocated("s");
    assert!(kept >= 4096);
    assert_eq!(usage.provisioned_bytes, before + kept);
}
