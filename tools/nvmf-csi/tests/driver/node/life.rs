//! Volumes with a file system, from the first write to the last.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type};
use nvmf_csi::proto::*;
use tonic::Code;

use crate::pod::Pod;
use crate::rig::{MIB, Rig, mount_as, run, volume};

fn write(pod: &Pod<'_>, target: &str, text: &str) {
    let path = format!("{}/file", pod.path(target));
    std::fs::write(&path, text).unwrap();
    run("sync", &["-f", &path]);
}

fn read(pod: &Pod<'_>, target: &str) -> String {
    std::fs::read_to_string(format!("{}/file", pod.path(target))).unwrap()
}

/// A pod's data outlive the pod, grow with the volume, and are what they were in a clone of a snapshot that is mounted beside.
async fn life(rig: &Rig, fs: &str) {
    let writer = || mount_as(fs, Mode::SingleNodeWriter);
    let pod = Pod::new(rig, volume(&format!("{fs}-v"), writer(), 320)).await;
    pod.up("target").await;
    write(&pod, "target", "before");
    for _ in 0..10 {
        pod.up("target").await;
    }
    let mut client = rig.controller().await;
    let snapshot = CreateSnapshotRequest {
        name: format!("{fs}-s"),
        source_volume_id: pod.id.clone(),
        ..CreateSnapshotRequest::default()
    };
    client.create_snapshot(snapshot).await.unwrap();
    write(&pod, "target", "after");
    let clone = CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(Type::Snapshot(SnapshotSource {
                snapshot_id: format!("fast/{fs}-s"),
            })),
        }),
        ..volume(&format!("{fs}-clone"), writer(), 400)
    };
    let clone = Pod::new(rig, clone).await;
    clone.up("target").await;
    assert_eq!(
        (
            read(&clone, "target").as_str(),
            read(&pod, "target").as_str()
        ),
        ("before", "after")
    );
    // Grown while it is used. ext4 is grown only by who has CAP_SYS_RESOURCE, and says so otherwise.
    let total = |stats: &NodeGetVolumeStatsResponse| stats.usage[0].total;
    let before = pod.stats("target").await;
    assert!(!before.volume_condition.as_ref().unwrap().abnormal);
    assert_eq!(before.usage.len(), 2);
    let grow = ControllerExpandVolumeRequest {
        volume_id: pod.id.clone(),
        capacity_range: Some(CapacityRange {
            required_bytes: 512 * MIB,
            limit_bytes: 0,
        }),
        ..ControllerExpandVolumeRequest::default()
    };
    client.controller_expand_volume(grow.clone()).await.unwrap();
    let on_node = NodeExpandVolumeRequest {
        volume_id: pod.id.clone(),
        volume_path: pod.path("target"),
        capacity_range: grow.capacity_range,
        ..NodeExpandVolumeRequest::default()
    };
    let mut node = rig.node().await;
    match node.node_expand_volume(on_node.clone()).await {
        Ok(grown) => {
            assert_eq!(grown.into_inner().capacity_bytes, 512 * MIB);
            assert!(total(&pod.stats("target").await) > total(&before) + 100 * MIB);
            node.node_expand_volume(on_node).await.unwrap();
        }
        Err(status) => assert!(
            fs == "ext4" && status.message().contains("CAP_SYS_RESOURCE"),
            "{status}"
        ),
    }
    assert_eq!(read(&pod, "target"), "after");
    // Busy volumes are not deleted.
    let delete = DeleteVolumeRequest {
        volume_id: pod.id.clone(),
        ..Default::default()
    };
    assert_eq!(
        client
            .delete_volume(delete.clone())
            .await
            .unwrap_err()
            .code(),
        Code::FailedPrecondition
    );
    pod.down(&["target"]).await;
    clone.down(&["target"]).await;
    // Another pod finds the data.
    let pod = Pod::new(rig, volume(&format!("{fs}-v"), writer(), 320)).await;
    pod.up("second").await;
    assert_eq!(read(&pod, "second"), "after");
    pod.down(&["second"]).await;
    client.delete_volume(delete).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_from_the_first_write_to_the_last() {
    let Some(rig) = Rig::new("ext4_from_the_first_write_to_the_last") else {
        return;
    };
    life(&rig, "ext4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_from_the_first_write_to_the_last() {
    let Some(rig) = Rig::new("xfs_from_the_first_write_to_the_last") else {
        return;
    };
    life(&rig, "xfs").await;
}
