//! ublk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use nvmf_initiator::block::{BlockForm, Device, DeviceState};

use crate::device::{MIB, device_tests};
use crate::served::{Served, available, eventually, size_bytes};

device_tests!(BlockForm::Ublk);

#[test]
fn it_is_resized_or_says_why_not() {
    if !available(BlockForm::Ublk) {
        return;
    }
    let mut served = Served::start(BlockForm::Ublk, &["--size", "67108864"]);
    let answer = served.command(&format!("resize {}", 128 * MIB));
    if answer == "ok" {
        assert_eq!(size_bytes(&served.path), 128 * MIB);
        let open = OpenOptions::new().write(true).open(&served.path).unwrap();
        open.write_all_at(&[7; 4096], 128 * MIB - 4096).unwrap();
        open.sync_all().unwrap();
    } else {
        assert!(answer.contains("Linux 6.16 can"), "{answer}");
        assert_eq!(size_bytes(&served.path), 64 * MIB);
    }
    served.detach();
}

#[test]
fn what_a_dead_server_left_is_removed_on_demand() {
    if !available(BlockForm::Ublk) {
        return;
    }
    let served = Served::start(BlockForm::Ublk, &["--size", "16777216"]);
    let id: u32 = served.path.to_str().unwrap()["/dev/ublkb".len()..]
        .parse()
        .unwrap();
    let state = DeviceState::Ublk { id };
    let refusal = Device::remove_leftover("", &state).unwrap_err().to_string();
    assert!(refusal.contains("is being served by process"), "{refusal}");
    let open = File::open(&served.path).unwrap();
    let path = served.kill();
    assert!(size_bytes(&path) > 0, "it waits for another server");
    eventually("removal", || Device::remove_leftover("", &state).is_ok());
    assert!(open.read_exact_at(&mut [0; 4096], 0).is_err());
    drop(open);
    assert_eq!(size_bytes(&path), 0);
}
