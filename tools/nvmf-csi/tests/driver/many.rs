//! Many volumes at once, in use and gone again: nothing of them may stay.

use std::fs;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_rpc::types::GetVolumes;
use tokio::task::JoinSet;

use crate::controller::delete;
use crate::pod::Pod;
use crate::rig::{Rig, block, mount_as, volume};

/// What a process holds: descriptors, and memory in KiB.
fn holds(process: u32) -> (usize, u64) {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.unwrap().trim().trim_end_matches(" kB");
    (descriptors, kib.parse().unwrap())
}

/// A volume from its creation to its deletion, half of them raw. Each call is made once: load alone makes none of them fail.
async fn live_and_die(rig: &Rig, number: usize) {
    let is_raw = number.is_multiple_of(2);
    let capability = match is_raw {
        true => block(Mode::SingleNodeWriter),
        false => mount_as("ext4", Mode::SingleNodeWriter),
    };
    let pod = Pod::new(rig, volume(&format!("v{number}"), capability, 16)).await;
    pod.up("target").await;
    let at = match is_raw {
        true => pod.path("target"),
        false => format!("{}/file", pod.path("target")),
    };
    let text = format!("volume {number:>6}");
    let there = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::FileExt as _;
        let file = fs::File::options()
            .create(!is_raw)
            .truncate(false)
            .read(true)
            .write(true)
            .open(at)
            .unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        file.sync_all().unwrap();
        let mut there = vec![0; text.len()];
        file.read_exact_at(&mut there, 0).unwrap();
        assert_eq!(there, text.as_bytes());
    });
    there.await.unwrap();
    pod.down(&["target"]).await;
    let mut client = rig.controller().await;
    client.delete_volume(delete(&pod.id)).await.unwrap();
}

/// `rounds` times so many volumes at once. The first round is what the others are compared with.
async fn many(test: &str, volumes: usize, rounds: usize) {
    let Some(rig) = Rig::new(test) else {
        return;
    };
    let rig = std::sync::Arc::new(rig);
    let mut before = None;
    for _ in 0..rounds {
        let mut lives = JoinSet::new();
        for number in 0..volumes {
            let rig = rig.clone();
            lives.spawn(async move { live_and_die(&rig, number).await });
        }
        lives.join_all().await;
        assert_eq!(rig.left(), Vec::<String>::new());
        assert_eq!(rig.ask(&GetVolumes::default()).await, []);
        // Connections of callers that are gone are closed by tasks of their own.
        let process = rig.driver_process();
        let idle = before.map_or(usize::MAX, |(descriptors, _)| descriptors);
        crate::rig::until("the driver's descriptors", || holds(process).0 <= idle);
        let now = holds(process);
        let (_, kib) = *before.get_or_insert(now);
        // Threads and buffers that are kept, and no more with each round.
        assert!(
            now.1 < 2 * kib + 16 * 1024,
            "{} KiB, and {kib} before",
            now.1
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_volumes_at_once() {
    many("twenty_volumes_at_once", 20, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute or more: make soak"]
async fn two_hundred_volumes_at_once() {
    many("two_hundred_volumes_at_once", 200, 3).await;
}
