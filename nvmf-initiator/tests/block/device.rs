//! What every form of block device must do.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nvmf_initiator::block::BlockForm;

use crate::served::{Keeper, Served, available, eventually, fio_verify, output, run, size_bytes};

pub const MIB: u64 = 1 << 20;

/// Tests of one form.
macro_rules! device_tests {
    ($form:expr) => {
        #[test]
        fn a_file_system_lives_on_it() {
            crate::device::file_system($form);
        }

        #[test]
        fn data_is_verified_in_all_sizes_over_several_queues() {
            crate::device::verification($form);
        }

        #[test]
        fn discard_and_zeroes_reach_the_file() {
            crate::device::discard_and_zeroes($form);
        }

        #[test]
        fn a_durable_write_is_flushed_or_forced() {
            crate::device::durability($form);
        }

        #[test]
        fn a_read_only_device_refuses_writes() {
            crate::device::read_only($form);
        }

        #[test]
        fn an_open_device_is_in_use_until_forced() {
            crate::device::in_use($form);
        }

        #[test]
        fn a_device_that_is_looked_at_goes_once_it_is_closed() {
            crate::device::looked_at($form);
        }

        #[test]
        fn a_killed_server_is_resumed_under_verification() {
            crate::device::resumed($form);
        }
    };
}
pub(crate) use device_tests;

pub fn file_system(form: BlockForm) {
    if !available(form) {
        return;
    }
    for block_size in ["512", "4096"] {
        let mut served = Served::start(form, &["--size", "268435456", "--block-size", block_size]);
        let device = served.path.to_str().unwrap().to_owned();
        assert_eq!(run("blockdev", &["--getss", &device]).trim(), block_size);
        run("mkfs.ext4", &["-q", &device]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let mount = Mount::new(&device, dir.path());
        fs::write(dir.path().join("file"), vec![0x5a; 10 << 20]).unwrap();
        // Only this file system: another one may hang.
        run("sync", &["-f", path]);
        fs::remove_file(dir.path().join("file")).unwrap();
        run("sync", &["-f", path]);
        let discards =
            |served: &mut Served| served.count("discards") + served.count("write-zeroes");
        let before = discards(&mut served);
        run("fstrim", &[path]);
        assert!(discards(&mut served) > before, "fstrim reaches the backing");

        let refusal = served.command("detach");
        assert!(refusal.contains("is in use: mounted on"), "{refusal}");
        drop(mount);
        run("fsck.ext4", &["-fn", &device]);
        let path = served.path.clone();
        served.detach();
        eventually("removal of the device", || size_bytes(&path) == 0);
    }
}

pub fn verification(form: BlockForm) {
    if !available(form) {
        return;
    }
    for (queues, max_transfer) in [("1", "1048576"), ("2", "131072")] {
        let arguments = [
            "--size",
            "134217728",
            "--queues",
            queues,
            "--max-transfer",
            max_transfer,
        ];
        let served = Served::start(form, &arguments);
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

pub fn discard_and_zeroes(form: BlockForm) {
    if !available(form) {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("backing");
    let served = Served::start(
        form,
        &["--size", "67108864", "--backing", file.to_str().unwrap()],
    );
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
    run("blockdev", &["--flushbufs", &device]);
    let reader = File::open(&served.path).unwrap();
    let mut block = vec![1; MIB as usize];
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

pub fn durability(form: BlockForm) {
    if !available(form) {
        return;
    }
    const WRITES: u64 = 8;
    let mut served = Served::start(form, &["--size", "16777216"]);
    let target = format!("of={}", served.path.display());
    let mut durable = |extra: &[&str]| {
        let forced = |served: &mut Served| served.count("fua-writes") + served.count("flushes");
        let before = forced(&mut served);
        let mut arguments = vec!["if=/dev/zero", &target, "bs=4k", "count=8"];
        arguments.extend(extra);
        run("dd", &arguments);
        forced(&mut served) - before
    };
    // The kernel may flush when the device is closed, but not for each write.
    assert!(durable(&["oflag=direct"]) < WRITES);
    // Forced one by one, or flushed after each, or both.
    assert!(durable(&["oflag=direct,dsync"]) >= WRITES);
    assert!(durable(&["oflag=direct", "conv=fsync"]) >= 1);
    served.detach();
}

pub fn read_only(form: BlockForm) {
    if !available(form) {
        return;
    }
    let served = Served::start(form, &["--size", "16777216", "--read-only"]);
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

pub fn in_use(form: BlockForm) {
    if !available(form) {
        return;
    }
    let mut served = Served::start(form, &["--size", "16777216"]);
    let mut user = opener(
        &served.path,
        "dd bs=4096 skip=1 count=1 iflag=direct <&3 | wc -c",
    );
    let refusal = served.command("detach");
    assert!(
        refusal.contains(&format!("open in sh (process {})", user.id())),
        "{refusal}"
    );
    assert_eq!(served.command("detach --force"), "ok");
    // What its user reads now is an error or the end of the device, and does not hang.
    user.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let mut read = String::new();
    user.stdout
        .take()
        .unwrap()
        .read_to_string(&mut read)
        .unwrap();
    assert_eq!(read.trim(), "0", "bytes read from a device that is gone");
    user.wait().unwrap();
    eventually("removal of the device", || size_bytes(&served.path) == 0);
}

/// A process that has the device open as descriptor 3, and does something when it is told to go on.
fn opener(device: &Path, then: &str) -> Child {
    let device = device.display();
    let mut opener = Command::new("sh")
        .arg("-c")
        .arg(format!("exec 3<{device}; echo open; read word; {then}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 5];
    let said = opener.stdout.as_mut().unwrap();
    said.read_exact(&mut ready).unwrap();
    opener
}

pub fn looked_at(form: BlockForm) {
    if !available(form) {
        return;
    }
    let served = Served::start_with_log(form, &["--size", "16777216"]);
    let path = served.path.clone();
    let mut looking = opener(&path, "exit 0");
    served.detach_after(|| {
        // It ends with its standard input.
        drop(looking.stdin.take());
        looking.wait().unwrap();
    });
    eventually("removal of the device", || size_bytes(&path) == 0);
}

pub fn resumed(form: BlockForm) {
    if !available(form) {
        return;
    }
    if let Err(reason) = form.survives_crash() {
        return eprintln!("skipped: {reason}");
    }
    // Often, and always under load: what can go wrong is a matter of microseconds.
    const KILLS: u32 = 16;
    const REQUESTS_BETWEEN_KILLS: u64 = 1500;
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = dir.path().join("backing");
    let arguments = [
        "--size",
        "134217728",
        "--queues",
        "2",
        "--backing",
        file.to_str().unwrap(),
    ];
    let mut keeper = Keeper::new();
    let mut served = keeper.serve(form, &arguments);
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
            "--verify_state_save=0",
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
    eventually("removal of the device", || size_bytes(&path) == 0);
}

/// A mounted file system.
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
