//! FUSE and loop.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nvmf_initiator::block::{BlockForm, Device, DeviceState};

use crate::device::{MIB, device_tests};
use crate::served::{Served, available, eventually, size_bytes};

device_tests!(BlockForm::Fuse);

#[test]
fn it_grows_and_shrinks_while_open() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let mut served = Served::start(BlockForm::Fuse, &["--size", "67108864"]);
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
fn it_is_resized_while_it_is_written() {
    use std::sync::atomic::{AtomicBool, Ordering};
    if !available(BlockForm::Fuse) {
        return;
    }
    let mut served = Served::start(BlockForm::Fuse, &["--size", "67108864"]);
    let path = served.path.clone();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (path, done) = (&path, &done);
            scope.spawn(move || {
                // Each write reaches the file at once.
                let flags = rustix::fs::OFlags::DSYNC.bits() as i32;
                let disk = OpenOptions::new()
                    .write(true)
                    .custom_flags(flags)
                    .open(path)
                    .unwrap();
                while !done.load(Ordering::Relaxed) {
                    disk.write_all_at(&[7; 4096], writer * MIB).unwrap();
                }
            });
        }
        let sizes: Vec<_> = (65..105)
            .map(|size| {
                let answer = served.command(&format!("resize {}", size * MIB));
                (answer, size_bytes(&path) / MIB)
            })
            .collect();
        // Before anything is asserted, or the writers would go on for ever.
        done.store(true, Ordering::Relaxed);
        for (size, (answer, got)) in (65..105).zip(sizes) {
            assert_eq!((answer.as_str(), got), ("ok", size));
        }
    });
    served.detach();
}

#[test]
fn any_number_of_readers_serves_many_at_once() {
    if !available(BlockForm::Fuse) {
        return;
    }
    for readers in ["1", "3"] {
        let options = ["--size", "67108864", "--fuse-readers", readers];
        let served = Served::start(BlockForm::Fuse, &options);
        let path = &served.path;
        std::thread::scope(|scope| {
            for writer in 0..16u64 {
                scope.spawn(move || {
                    let flags = rustix::fs::OFlags::DSYNC.bits() as i32;
                    let disk = OpenOptions::new()
                        .read(true)
                        .write(true)
                        .custom_flags(flags)
                        .open(path)
                        .unwrap();
                    for block in 0..16 {
                        let at = (writer * 16 + block) * 4096;
                        disk.write_all_at(&[(writer + block) as u8; 4096], at)
                            .unwrap();
                    }
                });
            }
        });
        let disk = fs::read(path).unwrap();
        for (at, block) in disk.chunks(4096).take(256).enumerate() {
            assert_eq!(block, [(at / 16 + at % 16) as u8; 4096], "block {at}");
        }
        served.detach();
    }
}

#[test]
fn a_number_of_readers_that_there_cannot_be_is_refused() {
    for readers in ["0", "17"] {
        let refusal = std::process::Command::new(env!("CARGO_BIN_EXE_block-serve"))
            .args(["--block", "fuse", "--fuse-readers", readers])
            .output()
            .unwrap();
        assert!(!refusal.status.success());
        let said = String::from_utf8_lossy(&refusal.stderr);
        let expected = if available(BlockForm::Fuse) {
            format!("1 to 16 readers, not {readers}")
        } else {
            "fuse is not available".into()
        };
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn without_a_keeper_the_device_dies_with_its_server() {
    if !available(BlockForm::Fuse) {
        return;
    }
    let name = "dies-with-its-server";
    for dirty in [false, true] {
        let served = Served::start(BlockForm::Fuse, &["--size", "16777216", "--name", name]);
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
