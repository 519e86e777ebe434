//! FUSE and loop.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use nvmf_initiator::block::{BlockForm, Device, DeviceState};

use crate::served::{Keeper, Served, available, eventually, fio_verify, output, run, size_bytes};

const MIB: u64 = 1 << 20;

#[test]
fn a_file_system_lives_on_it() {
    if !available(BlockForm::Fuse) {
        return;
    }
    for block_size in ["512", "4096"] {
        let mut served = Served::start(&[
            "--block",
            "fuse",
            "--size",
            "268435456",
            "--block-size",
            block_size,
        ]);
        let device = served.path.to_str().unwrap().to_owned();
        assert_eq!(run("blockdev", &["--getss", &device]).trim(), block_size);
        run("mkfs.ext4", &["-q", &device]);
        let dir = tempfile::tempdir().unwrap();
        let mount = Mount::new(&device, dir.path());
        fs::write(dir.path().join("file"), vec![0x5a; 10 << 20]).unwrap();
        File::open(dir.path().join("file"))
            .unwrap()
            .sync_all()
            .unwrap();
        assert!(
            served.count("flushes") > 0,
            "fsync reaches the backing as a flush"
        );
        fs::remove_file(dir.path().join("file")).unwrap();
        run("sync", &["-f", dir.path().to_str().unwrap()]);
        let before = served.count("write-zeroes");
        run("fstrim", &[dir.path().to_str().unwrap()]);
        assert!(
            served.count("write-zeroes") > before,
            "fstrim reaches the backing"
        );

        let refusal = served.command("detach");
        assert!(refusal.contains("is in use: mounted on"), "{refusal}");
        drop(mount);
        run("fsck.ext4", &["-fn", &device]);
        let path = served.path.clone();
        served.detach();
        eventually("detaching the loop device", || size_bytes(&path) == 0);
    }
}

#[test]
fn data_is_verified_in_all_sizes_over_several_queues() {
    if !available(BlockForm::Fuse) {
        return;
    }
    for (queues, max_transfer) in [("1", "1048576"), ("2", "131072")] {
        let served = Served::start(&[
            "--block",
            "fuse",
            "--size",
            "134217728",
            "--queues",
            queues,
            "--max-transfer",
            max_transfer,
        ]);
        for block in ["4k", "64k", "1m"] {
            fio_verify(&served.path, block, &["--rw=randwrite", "--size=64m"]);
        }
        // Sizes and offsets that make the block layer merge and split.
        fio_verify(
            &served.path,
            "512-256k",
            &["--rw=randwrite", "--size=32m", "--bs_unaligned"],
        );
        served.detach();
    }
}

#[test]
fn discard_and_zeroes_reach_the_file() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("backing");
    let name = file.to_str().unwrap();
    let served = Served::start(&["--block", "fuse", "--size", "67108864", "--backing", name]);
    let device = served.path.to_str().unwrap().to_owned();
    let allocated = || fs::metadata(&file).unwrap().blocks() * 512;

    run(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={device}"),
            "bs=1M",
            "count=64",
            "oflag=direct",
        ],
    );
    assert_eq!(allocated(), 64 * MIB);
    run("blkdiscard", &["-o", "1048576", "-l", "8388608", &device]);
    assert_eq!(allocated(), 56 * MIB);
    run(
        "blkdiscard",
        &["-z", "-o", "16777216", "-l", "1048576", &device],
    );
    let mut block = vec![1; MIB as usize];
    let reader = direct(&served.path);
    for offset in [MIB, 8 * MIB, 16 * MIB] {
        reader.read_exact_at(&mut block, offset).unwrap();
        assert!(block.iter().all(|&byte| byte == 0), "at {offset}");
    }
    reader.read_exact_at(&mut block, 0).unwrap();
    assert!(block.iter().any(|&byte| byte != 0));
    run("blkdiscard", &[&device]);
    assert_eq!(allocated(), 0);
    drop(reader);
    served.detach();
}

/// The page cache of the loop device is left out of it.
fn direct(device: &Path) -> File {
    run("blockdev", &["--flushbufs", device.to_str().unwrap()]);
    File::open(device).unwrap()
}

#[test]
fn it_grows_and_shrinks_while_open() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let mut served = Served::start(&["--block", "fuse", "--size", "67108864"]);
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&served.path)
        .unwrap();
    for size in [256 * MIB, 128 * MIB] {
        assert_eq!(served.command(&format!("resize {size}")), "ok");
        assert_eq!(size_bytes(&served.path), size);
        open.write_all_at(&[7; 4096], size - 4096).unwrap();
        assert!(open.write_at(&[7; 4096], size).is_err(), "beyond the end");
    }
    open.sync_all().unwrap();
    let refusal = served.command("resize 1000");
    assert!(
        refusal.contains("not a whole number of 512-byte blocks"),
        "{refusal}"
    );
    drop(open);
    served.detach();
}

#[test]
fn a_read_only_device_refuses_writes() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let served = Served::start(&["--block", "fuse", "--size", "16777216", "--read-only"]);
    assert_eq!(
        run("blockdev", &["--getro", served.path.to_str().unwrap()]).trim(),
        "1"
    );
    let mut block = [1; 4096];
    File::open(&served.path)
        .unwrap()
        .read_exact(&mut block)
        .unwrap();
    assert!(block.iter().all(|&byte| byte == 0));
    let writer = OpenOptions::new().write(true).open(&served.path);
    assert!(
        writer
            .and_then(|writer| writer.write_at(&block, 0))
            .is_err()
    );
    served.detach();
}

#[test]
fn an_open_device_is_in_use_until_forced() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let mut served = Served::start(&["--block", "fuse", "--size", "16777216"]);
    let mut user = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "exec 3<{}; echo open; read word; dd bs=4096 count=1 <&3",
            served.path.display()
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    user.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    let refusal = served.command("detach");
    assert!(
        refusal.contains(&format!("open in sh (process {})", user.id())),
        "{refusal}"
    );
    assert_eq!(served.command("detach --force"), "ok");
    // What its user does now fails, and does not hang.
    user.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert!(!user.wait().unwrap().success());
    let path = served.path.clone();
    eventually("detaching the loop device", || size_bytes(&path) == 0);
}

#[test]
fn without_a_keeper_the_device_dies_with_its_server() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let name = "dies-with-its-server";
    for dirty in [false, true] {
        let served = Served::start(&["--block", "fuse", "--size", "16777216", "--name", name]);
        if dirty {
            // Pages that nobody has written back, which the last close of the device waits for.
            fs::write(&served.path, vec![7; 1 << 20]).unwrap();
        }
        let open = File::open(&served.path).unwrap();
        let path = served.kill();
        // At once: nothing hangs.
        assert!(open.read_exact_at(&mut [0; 4096], 8 * MIB).is_err());
        drop(open);
        let loop_number: u32 = path.to_str().unwrap()["/dev/loop".len()..].parse().unwrap();
        let state = DeviceState::Fuse { loop_number };
        assert!(Device::remove_leftover("another-name", &state).is_err());
        Device::remove_leftover(name, &state).unwrap();
        eventually("detaching the loop device", || size_bytes(&path) == 0);
    }
}

#[test]
fn a_killed_server_is_resumed_under_verification() {
    if !available(BlockForm::Fuse) {
        return;
    }
    if let Err(reason) = BlockForm::Fuse.survives_crash() {
        return eprintln!("skipped: {reason}");
    }
    const KILLS: u32 = 4;
    const REQUESTS_BETWEEN_KILLS: u64 = 3000;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("backing");
    let arguments = [
        "--block",
        "fuse",
        "--size",
        "134217728",
        "--queues",
        "2",
        "--backing",
        file.to_str().unwrap(),
    ];
    let mut keeper = Keeper::new();
    let mut served = keeper.serve(&arguments);
    let path = served.path.clone();
    // Far more requests than happen between the kills; then it reads everything back.
    let mut fio = Command::new("fio")
        .args([
            "--name=verify",
            "--rw=randwrite",
            "--bs=4k",
            "--size=128m",
            "--iodepth=32",
        ])
        .args([
            "--ioengine=libaio",
            "--direct=1",
            "--verify=crc32c",
            "--verify_fatal=1",
        ])
        .arg(format!("--filename={}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..KILLS {
        eventually("I/O", || {
            if let Some(status) = fio.try_wait().unwrap() {
                panic!("fio ended: {status}");
            }
            served.count("reads") + served.count("writes") > REQUESTS_BETWEEN_KILLS
        });
        served.kill();
        served = keeper.resume(&arguments);
        assert_eq!(served.path, path);
    }
    let result = fio.wait_with_output().unwrap();
    assert!(result.status.success(), "{result:?}");
    drop(keeper);
    served.detach();
    eventually("detaching the loop device", || size_bytes(&path) == 0);
}

struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(device: &str, dir: &'a Path) -> Self {
        run("mount", &[device, dir.to_str().unwrap()]);
        Mount(dir)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let result = output("umount", &[self.0.to_str().unwrap()]);
        assert!(
            result.status.success() || std::thread::panicking(),
            "{result:?}"
        );
    }
}
