//! The kernel's nbd driver.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use nvmf_initiator::block::{BlockForm, Device, DeviceState};

use crate::device::{MIB, device_tests};
use crate::served::{Served, available, eventually, size_bytes};

device_tests!(BlockForm::Nbd);

#[test]
fn it_grows_and_shrinks_while_open() {
    if !available(BlockForm::Nbd) {
        return;
    }
    let mut served = Served::start(BlockForm::Nbd, &["--size", "67108864"]);
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
    drop(open);
    served.detach();
}

#[test]
fn what_a_dead_server_left_is_removed_on_demand() {
    if !available(BlockForm::Nbd) {
        return;
    }
    let name = "left-behind";
    let served = Served::start(BlockForm::Nbd, &["--size", "16777216", "--name", name]);
    let index: u32 = served.path.to_str().unwrap()["/dev/nbd".len()..]
        .parse()
        .unwrap();
    let state = DeviceState::Nbd { index };
    let open = File::open(&served.path).unwrap();
    let path = served.kill();
    assert!(size_bytes(&path) > 0, "it waits for another server");
    let refusal = Device::remove_leftover("another-name", &state)
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("belongs to 'left-behind'"), "{refusal}");
    Device::remove_leftover(name, &state).unwrap();
    assert!(open.read_exact_at(&mut [0; 4096], 8 * MIB).is_err());
    drop(open);
    eventually("detaching", || size_bytes(&path) == 0);
}
