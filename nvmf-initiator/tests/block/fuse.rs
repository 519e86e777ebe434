//! FUSE and loop.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

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
