//! Snapshots of a volume that is being written, their clones beside it, and growing it meanwhile.

use std::io::Write as _;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type};
use nvmf_csi::proto::*;

use crate::controller::{delete, from, range};
use crate::pod::Pod;
use crate::rig::{MIB, Rig, mount_as, volume};
use crate::writer::{Writer, entries};

/// So many snapshots are taken while the volume is written.
const SNAPSHOTS: usize = 3;

async fn snapshots_under_load(rig: &Rig, fs: &str) {
    let writable = || mount_as(fs, Mode::SingleNodeMultiWriter);
    let pod = Pod::new(rig, volume(fs, writable(), 320)).await;
    pod.up("target").await;
    let writer = Writer::start(&pod.path("target"));
    let mut client = rig.controller().await;
    let mut before = 0;
    for number in 0..SNAPSHOTS {
        writer.goes_on(20);
        let acknowledged = writer.acknowledged();
        let snapshot = CreateSnapshotRequest {
            name: format!("{fs}-s{number}"),
            source_volume_id: pod.id.clone(),
            ..CreateSnapshotRequest::default()
        };
        client.create_snapshot(snapshot).await.unwrap();
        let begun = writer.begun();
        let request = CreateVolumeRequest {
            volume_content_source: from(Type::Snapshot(SnapshotSource {
                snapshot_id: format!("fast/{fs}-s{number}"),
            })),
            ..volume(&format!("{fs}-clone{number}"), writable(), 320)
        };
        // Beside its source, on the same node, while that is written.
        let clone = Pod::new(rig, request).await;
        clone.up("target").await;
        let there = entries(&clone.path("target"));
        assert!(
            acknowledged <= there && there <= begun,
            "{fs}: {acknowledged} were acknowledged before the snapshot, {begun} begun after it, and {there} are in it"
        );
        assert!(there > before, "{fs}: {there} after {before}");
        before = there;
        // It is a volume of its own.
        std::fs::write(format!("{}/own", clone.path("target")), "x").unwrap();
        writer.goes_on(1);
        clone.down(&["target"]).await;
        client.delete_volume(delete(&clone.id)).await.unwrap();
    }
    assert!(!std::path::Path::new(&format!("{}/own", pod.path("target"))).exists());
    if fs == "xfs" {
        grow_under_load(rig, &pod, &writer).await;
    }
    let acknowledged = writer.acknowledged();
    writer.end().unwrap();
    assert!(entries(&pod.path("target")) >= acknowledged);
    pod.down(&["target"]).await;
    assert_eq!(rig.left(), Vec::<String>::new());
}

/// To more than twice its size, which is then filled beyond the former one. (A mounted ext4 takes CAP_SYS_RESOURCE to grow, which
/// the machine of a test may not have.)
async fn grow_under_load(rig: &Rig, pod: &Pod<'_>, writer: &Writer) {
    let grow = ControllerExpandVolumeRequest {
        volume_id: pod.id.clone(),
        capacity_range: range(700 * MIB, 0),
        ..ControllerExpandVolumeRequest::default()
    };
    let mut client = rig.controller().await;
    client.controller_expand_volume(grow.clone()).await.unwrap();
    let on_node = NodeExpandVolumeRequest {
        volume_id: pod.id.clone(),
        volume_path: pod.path("target"),
        staging_target_path: pod.path("staging"),
        capacity_range: grow.capacity_range,
        volume_capability: Some(pod.capability.clone()),
        ..NodeExpandVolumeRequest::default()
    };
    let mut node = rig.node().await;
    let grown = node.node_expand_volume(on_node).await.unwrap();
    assert_eq!(grown.into_inner().capacity_bytes, 700 * MIB);
    let mut file = std::fs::File::create(format!("{}/large", pod.path("target"))).unwrap();
    let block = vec![7; 1 << 20];
    for _ in 0..400 {
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
    let usage = &pod.stats("target").await.usage[0];
    assert!(
        usage.used > 400 * MIB && usage.total > 600 * MIB,
        "{usage:?}"
    );
    writer.goes_on(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_an_ext4_that_is_written() {
    let Some(rig) = Rig::new("snapshots_of_an_ext4_that_is_written") else {
        return;
    };
    snapshots_under_load(&rig, "ext4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_an_xfs_that_is_written_and_grown() {
    let Some(rig) = Rig::new("snapshots_of_an_xfs_that_is_written_and_grown") else {
        return;
    };
    snapshots_under_load(&rig, "xfs").await;
}
