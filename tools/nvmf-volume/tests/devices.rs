//! Volumes on loop devices, with the kernel and the real mkfs, fsck and resize programs. They need root and a loop driver; where
//! either is missing they say so and pass.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nvmf_volume::content::probe;
use nvmf_volume::mount::{self, device_number};
use nvmf_volume::mountinfo::{mount_at, users_elsewhere};
use nvmf_volume::stage::{grow_if_larger, remove_lost_and_found};
use nvmf_volume::stats::stats;
use nvmf_volume::{
    Attached, Content, Error, FsKind, FsSpec, Kind, Staged, VolumeLock, stage, unstage,
};

const MIB: u64 = 1 << 20;
const BOTH: [FsKind; 2] = [FsKind::Ext4, FsKind::Xfs];

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An image with a loop device, which goes away with it, and so does what is mounted in its folder.
struct Disk {
    folder: tempfile::TempDir,
    image: PathBuf,
    attached: Attached,
    lock: VolumeLock,
}

impl Disk {
    fn new(size_bytes: u64) -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(size_bytes).unwrap();
        Disk::of(folder, false)
    }

    /// Another disk with the same content.
    fn copy(&self, read_only: bool) -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        run(
            "cp",
            &["--sparse=always", &text(&self.image), &text(&image)],
        );
        Disk::of(folder, read_only)
    }

    fn of(folder: tempfile::TempDir, read_only: bool) -> Option<Disk> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("not tested: needs root and loop devices");
            return None;
        }
        let image = folder.path().join("image");
        let mut arguments = vec!["--find", "--show"];
        if read_only {
            arguments.push("--read-only");
        }
        let image_text = text(&image);
        arguments.push(&image_text);
        let device = PathBuf::from(run("losetup", &arguments));
        let attached = Attached {
            device,
            by_id: None,
            size_bytes: fs::metadata(&image).unwrap().len(),
            block_bytes: 512,
            read_only,
        };
        let lock = VolumeLock::take(folder.path(), "v").unwrap();
        Some(Disk {
            folder,
            image,
            attached,
            lock,
        })
    }

    fn at(&self) -> PathBuf {
        self.folder.path().join("at")
    }

    fn stage(&self, kind: FsKind) -> nvmf_volume::Result<Staged> {
        self.stage_as(&FsSpec::new(kind))
    }

    fn stage_as(&self, spec: &FsSpec) -> nvmf_volume::Result<Staged> {
        stage(&self.lock, &self.attached, spec, &self.at())
    }

    fn unstage(&self) -> bool {
        unstage(&self.lock, &self.at()).unwrap()
    }

    fn grow(&mut self, size_bytes: u64) {
        File::options()
            .write(true)
            .open(&self.image)
            .unwrap()
            .set_len(size_bytes)
            .unwrap();
        run("losetup", &["--set-capacity", &text(&self.attached.device)]);
        self.attached.size_bytes = size_bytes;
    }

    fn content(&self) -> Content {
        probe(&self.attached.device).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for name in ["at", "bound", "second"] {
            let _ = mount::unmount(&self.folder.path().join(name));
        }
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.attached.device)
            .status();
    }
}

/// Whether this process may have a mounted ext4 grown: containers and sandboxes lack that.
fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    u64::from_str_radix(effective.unwrap().trim(), 16).unwrap() & 1 << 24 != 0
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

const MADE: Staged = Staged {
    made: true,
    mounted: true,
    grown: false,
};
const MOUNTED: Staged = Staged {
    made: false,
    mounted: true,
    grown: false,
};
const NOTHING: Staged = Staged {
    made: false,
    mounted: false,
    grown: false,
};

#[test]
fn a_file_system_is_made_once_and_every_step_can_be_repeated() {
    for kind in BOTH {
        let Some(disk) = Disk::new(512 * MIB) else {
            return;
        };
        assert_eq!(disk.stage(kind).unwrap(), MADE);
        assert_eq!(mount_at(&disk.at()).unwrap().unwrap().kind, kind.name());
        fs::write(disk.at().join("data"), "x").unwrap();
        assert_eq!(disk.stage(kind).unwrap(), NOTHING);
        assert!(disk.unstage());
        assert!(!disk.unstage());
        assert!(!disk.at().exists());
        assert_eq!(disk.stage(kind).unwrap(), MOUNTED);
        assert_eq!(fs::read(disk.at().join("data")).unwrap(), b"x");
    }
}

#[test]
fn options_reach_mkfs_and_mount() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    let spec = FsSpec {
        mkfs_options: ["-L", "label7"].map(str::to_owned).to_vec(),
        mount_options: ["noatime", "nodev", "data=journal"]
            .map(str::to_owned)
            .to_vec(),
        ..FsSpec::new(FsKind::Ext4)
    };
    disk.stage_as(&spec).unwrap();
    let mount = mount_at(&disk.at()).unwrap().unwrap();
    assert!(
        mount.options.contains(&"noatime".to_owned())
            && mount.options.contains(&"nodev".to_owned())
    );
    assert_eq!(
        run(
            "blkid",
            &[
                "-p",
                "-s",
                "LABEL",
                "-o",
                "value",
                &text(&disk.attached.device)
            ]
        ),
        "label7"
    );
    disk.unstage();
    let spec = FsSpec {
        mount_options: vec!["no-such-option".into()],
        ..spec
    };
    let error = disk.stage_as(&spec).unwrap_err().to_string();
    assert!(error.contains("no-such-option"), "{error}");
}

#[test]
fn what_is_on_a_device_is_never_overwritten() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    let device = text(&disk.attached.device);
    let refused = |disk: &Disk, kind| {
        let before = fs::read(&disk.image).unwrap();
        let error = disk.stage(kind).unwrap_err();
        assert_eq!(error.kind(), Kind::Precondition, "{error}");
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        assert!(
            before == fs::read(&disk.image).unwrap(),
            "the device was changed"
        );
        assert!(mount_at(&disk.at()).unwrap().is_none());
        error.to_string()
    };
    run("mkswap", &[&device]);
    assert!(refused(&disk, FsKind::Ext4).contains("swap"));
    run("mkfs.xfs", &["-q", "-f", &device]);
    assert!(refused(&disk, FsKind::Ext4).contains("xfs"));
    run("wipefs", &["-aq", &device]);
    // What remains of XFS is data that nothing knows.
    assert!(refused(&disk, FsKind::Ext4).contains("unknown form"));
    run("blkdiscard", &["-z", &device]);
    assert_eq!(disk.stage(FsKind::Ext4).unwrap(), MADE);
}

#[test]
fn clones_are_mounted_beside_their_source() {
    for kind in BOTH {
        let Some(source) = Disk::new(512 * MIB) else {
            return;
        };
        source.stage(kind).unwrap();
        fs::write(source.at().join("data"), "x").unwrap();
        run("sync", &["-f", &text(&source.at())]);
        // Taken while it is mounted, as a snapshot is: the journal must be replayed.
        let clone = source.copy(false).unwrap();
        assert_eq!(clone.stage(kind).unwrap(), MOUNTED);
        assert_eq!(fs::read(clone.at().join("data")).unwrap(), b"x");
        fs::write(clone.at().join("data"), "y").unwrap();
        assert_eq!(fs::read(source.at().join("data")).unwrap(), b"x");
        // Nothing can be replayed here: it is as it was when the journal was last emptied.
        let read_only = source.copy(true).unwrap();
        assert_eq!(read_only.stage(kind).unwrap(), MOUNTED);
        assert!(mount_at(&read_only.at()).unwrap().unwrap().fs_read_only);
        assert_eq!(read_only.stage(kind).unwrap(), NOTHING);
        source.unstage();
        let read_only = source.copy(true).unwrap();
        read_only.stage(kind).unwrap();
        assert_eq!(fs::read(read_only.at().join("data")).unwrap(), b"x");
    }
}

#[test]
fn a_writable_device_that_is_mounted_read_only_has_its_journal_replayed() {
    for kind in BOTH {
        let Some(source) = Disk::new(512 * MIB) else {
            return;
        };
        source.stage(kind).unwrap();
        fs::write(source.at().join("data"), "x").unwrap();
        run("sync", &["-f", &text(&source.at())]);
        let clone = source.copy(false).unwrap();
        let spec = FsSpec {
            read_only: true,
            ..FsSpec::new(kind)
        };
        clone.stage_as(&spec).unwrap();
        assert_eq!(fs::read(clone.at().join("data")).unwrap(), b"x");
        let error = fs::write(clone.at().join("data"), "y").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let blank = Disk::new(512 * MIB).unwrap();
        assert!(matches!(
            blank.stage_as(&spec).unwrap_err(),
            Error::BlankReadOnly(_)
        ));
        assert_eq!(blank.content(), Content::Blank);
    }
}

#[test]
fn a_file_system_grows_with_its_device_mounted_or_not() {
    for kind in BOTH {
        let Some(mut disk) = Disk::new(512 * MIB) else {
            return;
        };
        disk.stage(kind).unwrap();
        fs::write(disk.at().join("data"), "x").unwrap();
        let before = stats(&disk.at()).unwrap().total_bytes;
        disk.grow(768 * MIB);
        if kind == FsKind::Ext4 && !has_sys_resource() {
            let error = grow_if_larger(&disk.lock, &disk.attached, &disk.at()).unwrap_err();
            assert!(error.to_string().contains("CAP_SYS_RESOURCE"), "{error}");
            disk.unstage();
            assert!(
                disk.stage(kind).unwrap().grown,
                "without the capability it is grown before it is mounted"
            );
        } else {
            assert!(grow_if_larger(&disk.lock, &disk.attached, &disk.at()).unwrap());
        }
        let online = stats(&disk.at()).unwrap().total_bytes;
        assert!(online > before + 200 * MIB, "{before} {online}");
        assert!(!grow_if_larger(&disk.lock, &disk.attached, &disk.at()).unwrap());
        disk.unstage();
        disk.grow(1024 * MIB);
        let grown = disk.stage(kind).unwrap();
        assert_eq!((grown.made, grown.grown), (false, true));
        assert!(stats(&disk.at()).unwrap().total_bytes > online + 200 * MIB);
        assert_eq!(fs::read(disk.at().join("data")).unwrap(), b"x");
    }
}

#[test]
fn too_small_a_device_is_refused_before_anything_is_written() {
    let Some(disk) = Disk::new(100 * MIB) else {
        return;
    };
    let error = disk.stage(FsKind::Xfs).unwrap_err();
    assert!(matches!(error, Error::TooSmall { .. }), "{error}");
    assert_eq!(disk.content(), Content::Blank);
}

#[test]
fn damage_that_needs_a_human_is_told_with_the_command() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    disk.stage(FsKind::Ext4).unwrap();
    disk.unstage();
    // The root folder is gone, and the file system knows that it has errors.
    let device = text(&disk.attached.device);
    run("debugfs", &["-w", "-R", "clri <2>", &device]);
    run("debugfs", &["-w", "-R", "ssv state 2", &device]);
    let error = disk.stage(FsKind::Ext4).unwrap_err();
    assert!(matches!(error, Error::NeedsRepair { .. }), "{error}");
    assert!(error.to_string().contains("e2fsck -f /dev/loop"), "{error}");
}

#[test]
fn damage_of_xfs_is_told_with_the_command() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    disk.stage(FsKind::Xfs).unwrap();
    disk.unstage();
    let device = text(&disk.attached.device);
    let no_root = [
        "-c",
        "sb 0",
        "-c",
        "addr rootino",
        "-c",
        "write -d core.magic 0",
    ];
    run("xfs_db", &[&["-x"], &no_root[..], &[&device]].concat());
    let error = disk.stage(FsKind::Xfs).unwrap_err();
    assert!(matches!(error, Error::NeedsRepair { .. }), "{error}");
    assert!(
        error.to_string().contains("xfs_repair /dev/loop"),
        "{error}"
    );
}

#[test]
fn another_file_system_on_the_mount_point_is_refused() {
    let (Some(one), Some(two)) = (Disk::new(512 * MIB), Disk::new(512 * MIB)) else {
        return;
    };
    one.stage(FsKind::Ext4).unwrap();
    let error = stage(
        &two.lock,
        &two.attached,
        &FsSpec::new(FsKind::Ext4),
        &one.at(),
    )
    .unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    assert_eq!(two.content(), Content::Blank);
}

#[test]
fn a_bind_mount_has_its_own_read_only() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    disk.stage(FsKind::Ext4).unwrap();
    let bound = disk.folder.path().join("bound");
    for read_only in [true, true, false, true] {
        mount::bind(&disk.at(), &bound, read_only).unwrap();
        assert_eq!(fs::write(bound.join("data"), "x").is_err(), read_only);
        fs::write(disk.at().join("data"), "x").unwrap();
    }
    // Something else is there.
    let error = mount::bind(disk.folder.path(), &bound, false).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    assert!(mount::unmount_and_remove(&bound).unwrap());
    // A device is bound to a file.
    mount::bind(&disk.attached.device, &bound, false).unwrap();
    assert_eq!(
        device_number(&bound).unwrap(),
        device_number(&disk.attached.device).unwrap()
    );
    mount::bind(&disk.attached.device, &bound, false).unwrap();
    assert!(mount::unmount_and_remove(&bound).unwrap());
    assert!(!bound.exists());
    mount::remount_fs(&disk.at(), true).unwrap();
    assert!(fs::write(disk.at().join("data"), "x").is_err());
}

#[test]
fn use_is_seen_here_and_in_other_mount_namespaces() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    disk.stage(FsKind::Ext4).unwrap();
    let number = device_number(&disk.attached.device).unwrap();
    assert!(users_elsewhere(number).is_empty());
    let open = File::create(disk.at().join("data")).unwrap();
    let error = unstage(&disk.lock, &disk.at()).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(open);
    // A service with a copy of all mounts.
    let mut service = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            "echo && exec sleep 100",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(service.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    assert!(users_elsewhere(number).is_empty());
    // A container: the volume bound to a place in its own mounts, which stays when ours goes.
    let script = "mount --bind \"$0\" \"$1\" && echo && exec sleep 100";
    let second = disk.folder.path().join("second");
    fs::create_dir(&second).unwrap();
    let mut container = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .args([disk.at(), second])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(container.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    assert!(disk.unstage());
    assert_eq!(users_elsewhere(number), [container.id()]);
    for mut process in [container, service] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert!(users_elsewhere(number).is_empty());
}

#[test]
fn of_many_at_once_one_makes_the_file_system() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    let made: usize = std::thread::scope(|scope| {
        let attempt = || {
            let lock = VolumeLock::take(disk.folder.path(), "shared").unwrap();
            stage(
                &lock,
                &disk.attached,
                &FsSpec::new(FsKind::Ext4),
                &disk.at(),
            )
            .unwrap()
            .made
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(attempt)).collect();
        threads
            .into_iter()
            .map(|thread| usize::from(thread.join().unwrap()))
            .sum()
    });
    assert_eq!(made, 1);
}

#[test]
fn an_empty_volume_is_empty() {
    let Some(disk) = Disk::new(512 * MIB) else {
        return;
    };
    disk.stage(FsKind::Ext4).unwrap();
    let lost_and_found = disk.at().join("lost+found");
    fs::write(disk.at().join("data"), "x").unwrap();
    remove_lost_and_found(&disk.at()).unwrap();
    assert!(lost_and_found.exists(), "beside data it harms nobody");
    fs::remove_file(disk.at().join("data")).unwrap();
    fs::write(lost_and_found.join("#12"), "found").unwrap();
    remove_lost_and_found(&disk.at()).unwrap();
    assert!(
        lost_and_found.join("#12").exists(),
        "what was found is data"
    );
    fs::remove_file(lost_and_found.join("#12")).unwrap();
    remove_lost_and_found(&disk.at()).unwrap();
    remove_lost_and_found(&disk.at()).unwrap();
    assert_eq!(fs::read_dir(disk.at()).unwrap().count(), 0);
}

/// Kills mkfs before each of its writes in turn: what it leaves is never mounted as half a file system, and never taken for
/// somebody's data but within the few writes of mke2fs' superblock.
#[test]
fn a_mkfs_that_was_killed_anywhere_is_made_again() {
    if Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        eprintln!("not tested: needs strace");
        return;
    }
    for (kind, options) in [
        (FsKind::Ext4, "mkfs.ext4 -q -F -b 4096 -m 0 -E nodiscard"),
        (FsKind::Xfs, "mkfs.xfs -q -f -K"),
    ] {
        let (mut blank, mut interrupted, mut whole, mut torn) = (0, 0, 0, 0);
        for number in 1.. {
            let Some(disk) = Disk::new(320 * MIB) else {
                return;
            };
            let device = text(&disk.attached.device);
            let (writes, kill) = (
                "trace=pwrite64",
                format!("inject=pwrite64:signal=KILL:when={number}"),
            );
            let mut arguments = vec!["-f", "-qq", "-o", "/dev/null", "-e", writes, "-e", &kill];
            arguments.extend(options.split(' '));
            arguments.push(&device);
            let ended = Command::new("strace")
                .args(arguments)
                .stderr(Stdio::null())
                .status()
                .unwrap();
            match disk.content() {
                Content::Blank => blank += 1,
                Content::Interrupted(_) => interrupted += 1,
                Content::FileSystem { .. } => whole += 1,
                // mke2fs writes its superblock in a few pieces, and nothing but that after it.
                Content::Foreign(what) => {
                    let head = fs::read(&disk.attached.device).unwrap();
                    let beside = head[..1024].iter().chain(&head[2048..4096]);
                    assert!(
                        kind == FsKind::Ext4 && beside.into_iter().all(|&byte| byte == 0),
                        "{kind}, killed at call {number}: {what}"
                    );
                    torn += 1;
                    continue;
                }
            }
            // Few enough of them for each to be tried, and a quick form of the rest.
            if number % 8 == 1 || ended.success() {
                let staged = disk
                    .stage(kind)
                    .unwrap_or_else(|error| panic!("{kind}, killed at call {number}: {error}"));
                assert!(staged.mounted);
                fs::write(disk.at().join("data"), "x").unwrap();
            }
            if ended.success() {
                break;
            }
        }
        eprintln!("{kind}: {blank} blank, {interrupted} interrupted, {torn} torn, {whole} whole");
        assert!(torn <= 16, "{torn}");
        assert!(blank > 0 && whole > 0);
        assert!(kind != FsKind::Xfs || interrupted > 0);
    }
}
