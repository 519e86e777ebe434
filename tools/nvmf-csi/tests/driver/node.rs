//! Staging and publishing, for real: devices by FUSE and loop, file systems, mounts.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type};
use nvmf_csi::proto::*;
use tonic::Code;

use crate::rig::{MIB, NODE, Rig, block, mount_as, run, volume};

type Context = HashMap<String, String>;

/// A volume on its way through a node.
struct Pod<'a> {
    rig: &'a Rig,
    id: String,
    capability: VolumeCapability,
    volume_context: Context,
    publish_context: Context,
}

impl<'a> Pod<'a> {
    /// A volume that is made and published to the node.
    async fn new(rig: &'a Rig, request: CreateVolumeRequest) -> Pod<'a> {
        let mut client = rig.controller().await;
        let capability = request.volume_capabilities[0].clone();
        let volume = client
            .create_volume(request)
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap();
        let publish = ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: NODE.into(),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let published = client
            .controller_publish_volume(publish)
            .await
            .unwrap()
            .into_inner();
        Pod {
            rig,
            id: volume.volume_id,
            capability,
            volume_context: volume.volume_context,
            publish_context: published.publish_context,
        }
    }

    fn path(&self, what: &str) -> String {
        self.rig
            .path(&format!("{}-{what}", self.id.replace('/', "-")))
    }

    fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            publish_context: self.publish_context.clone(),
            ..NodeStageVolumeRequest::default()
        }
    }

    fn publish(&self, target: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
            target_path: self.path(target),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            publish_context: self.publish_context.clone(),
            ..NodePublishVolumeRequest::default()
        }
    }

    async fn up(&self, target: &str) {
        let mut node = self.rig.node().await;
        node.node_stage_volume(self.stage()).await.unwrap();
        node.node_publish_volume(self.publish(target))
            .await
            .unwrap();
    }

    fn unpublish(&self, target: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.path(target),
        }
    }

    fn unstage(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
        }
    }

    async fn down(&self, targets: &[&str]) {
        let mut node = self.rig.node().await;
        for target in targets {
            node.node_unpublish_volume(self.unpublish(target))
                .await
                .unwrap();
            assert!(!Path::new(&self.path(target)).exists());
        }
        node.node_unstage_volume(self.unstage()).await.unwrap();
        let unpublish = ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: NODE.into(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        self.rig
            .controller()
            .await
            .controller_unpublish_volume(unpublish)
            .await
            .unwrap();
    }

    async fn stats(&self, target: &str) -> NodeGetVolumeStatsResponse {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: self.path(target),
            staging_target_path: String::new(),
        };
        self.rig
            .node()
            .await
            .node_get_volume_stats(request)
            .await
            .unwrap()
            .into_inner()
    }
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device() {
    let Some(rig) = Rig::new("a_raw_device") else {
        return;
    };
    let pod = Pod::new(&rig, volume("raw", block(Mode::SingleNodeSingleWriter), 32)).await;
    pod.up("device").await;
    pod.up("device").await;
    let device = pod.path("device");
    let copy = |from: &str, to: &str| {
        run(
            "dd",
            &[
                &format!("if={from}"),
                &format!("of={to}"),
                "bs=1M",
                "count=1",
                "oflag=dsync",
            ],
        )
    };
    let bytes = rig.path("bytes");
    copy("/dev/urandom", &bytes);
    copy(&bytes, &device);
    assert_eq!(pod.stats("device").await.usage[0].total, 32 * MIB);
    let mut node = rig.node().await;
    let second = node
        .node_publish_volume(pod.publish("second"))
        .await
        .unwrap_err();
    assert_eq!(second.code(), Code::FailedPrecondition, "{second}");
    let read_only = NodePublishVolumeRequest {
        readonly: true,
        ..pod.publish("device")
    };
    assert_eq!(
        node.node_publish_volume(read_only)
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    pod.down(&["device"]).await;
    let pod = Pod::new(&rig, volume("raw", block(Mode::SingleNodeSingleWriter), 32)).await;
    pod.up("device").await;
    run("cmp", &["-n", "1048576", &bytes, &pod.path("device")]);
    pod.down(&["device"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused() {
    let Some(rig) = Rig::new("what_is_wrong_is_refused") else {
        return;
    };
    let pod = Pod::new(
        &rig,
        volume("v", mount_as("", Mode::SingleNodeSingleWriter), 64),
    )
    .await;
    let mut node = rig.node().await;
    let early = node
        .node_publish_volume(pod.publish("target"))
        .await
        .unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    for (request, code) in [
        (
            NodeStageVolumeRequest {
                volume_id: String::new(),
                ..pod.stage()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                staging_target_path: String::new(),
                ..pod.stage()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                staging_target_path: "a/b".into(),
                ..pod.stage()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                volume_capability: None,
                ..pod.stage()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                publish_context: Context::new(),
                ..pod.stage()
            },
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(
            node.node_stage_volume(request).await.unwrap_err().code(),
            code
        );
    }
    pod.up("target").await;
    let elsewhere = NodeStageVolumeRequest {
        staging_target_path: pod.path("elsewhere"),
        ..pod.stage()
    };
    let as_block = Some(block(Mode::SingleNodeWriter));
    let otherwise = NodeStageVolumeRequest {
        volume_capability: as_block.clone(),
        ..pod.stage()
    };
    for request in [elsewhere, otherwise] {
        assert_eq!(
            node.node_stage_volume(request).await.unwrap_err().code(),
            Code::AlreadyExists
        );
    }
    let as_device = NodePublishVolumeRequest {
        volume_capability: as_block,
        ..pod.publish("target")
    };
    let ephemeral = NodePublishVolumeRequest {
        volume_context: [("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned())].into(),
        ..pod.publish("target")
    };
    for (request, code) in [
        (
            NodePublishVolumeRequest {
                volume_id: String::new(),
                ..pod.publish("target")
            },
            Code::InvalidArgument,
        ),
        (
            NodePublishVolumeRequest {
                target_path: String::new(),
                ..pod.publish("target")
            },
            Code::InvalidArgument,
        ),
        (
            NodePublishVolumeRequest {
                volume_capability: None,
                ..pod.publish("target")
            },
            Code::InvalidArgument,
        ),
        (pod.publish("second"), Code::FailedPrecondition),
        (as_device, Code::AlreadyExists),
        (ephemeral, Code::InvalidArgument),
    ] {
        assert_eq!(
            node.node_publish_volume(request).await.unwrap_err().code(),
            code
        );
    }
    let stats = |volume_id: &str, at: &str| NodeGetVolumeStatsRequest {
        volume_id: volume_id.into(),
        volume_path: at.into(),
        staging_target_path: String::new(),
    };
    for (request, code) in [
        (stats("", "/x"), Code::InvalidArgument),
        (stats(&pod.id, ""), Code::InvalidArgument),
        (stats("fast/none", &pod.path("target")), Code::NotFound),
        (stats(&pod.id, &pod.path("nothing")), Code::NotFound),
    ] {
        assert_eq!(
            node.node_get_volume_stats(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    let expand = |volume_id: &str, at: &str| NodeExpandVolumeRequest {
        volume_id: volume_id.into(),
        volume_path: at.into(),
        ..NodeExpandVolumeRequest::default()
    };
    for (request, code) in [
        (expand("", "/x"), Code::InvalidArgument),
        (expand(&pod.id, ""), Code::InvalidArgument),
        (expand("fast/none", &pod.path("target")), Code::NotFound),
        (expand(&pod.id, &pod.path("nothing")), Code::NotFound),
    ] {
        assert_eq!(
            node.node_expand_volume(request).await.unwrap_err().code(),
            code
        );
    }
    // A read-only use of it; the mount says so.
    let read_only = NodePublishVolumeRequest {
        readonly: true,
        ..pod.publish("target")
    };
    node.node_publish_volume(read_only).await.unwrap();
    assert!(std::fs::write(format!("{}/x", pod.path("target")), "x").is_err());
    for _ in 0..10 {
        node.node_unpublish_volume(pod.unpublish("target"))
            .await
            .unwrap();
    }
    for _ in 0..10 {
        node.node_unstage_volume(pod.unstage()).await.unwrap();
    }
    let unstage = NodeUnstageVolumeRequest {
        volume_id: String::new(),
        ..pod.unstage()
    };
    assert_eq!(
        node.node_unstage_volume(unstage).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: String::new(),
        ..pod.unpublish("target")
    };
    assert_eq!(
        node.node_unpublish_volume(unpublish)
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_data_stay() {
    let Some(rig) = Rig::new("foreign_data_stay") else {
        return;
    };
    let raw = Pod::new(&rig, volume("v", block(Mode::SingleNodeWriter), 64)).await;
    raw.up("device").await;
    run("mkswap", &[&raw.path("device")]);
    raw.down(&["device"]).await;
    let pod = Pod {
        capability: mount_as("ext4", Mode::SingleNodeWriter),
        ..Pod::new(&rig, volume("v", block(Mode::SingleNodeWriter), 64)).await
    };
    let refused = rig
        .node()
        .await
        .node_stage_volume(pod.stage())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("swap"), "{refused}");
    pod.down(&[]).await;
}

/// The driver is killed at any moment of a stage and of an unstage; the call is made again, and all is as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_moment() {
    let Some(mut rig) = Rig::new("kill_9_at_any_moment") else {
        return;
    };
    for round in 0..8 {
        let request = volume(
            &format!("v{round}"),
            mount_as("", Mode::SingleNodeWriter),
            64,
        );
        let (stage, id, staging, unstage) = {
            let pod = Pod::new(&rig, request).await;
            (
                pod.stage(),
                pod.id.clone(),
                pod.path("staging"),
                pod.unstage(),
            )
        };
        // Later each round: before the attach, within mkfs, after the mount.
        let after = Duration::from_millis(40 * round);
        let mut node = rig.node().await;
        let call = tokio::spawn({
            let stage = stage.clone();
            async move { node.node_stage_volume(stage).await }
        });
        tokio::time::sleep(after).await;
        rig.kill_driver();
        let _ = call.await.unwrap();
        rig.start_driver();
        rig.node().await.node_stage_volume(stage).await.unwrap();
        std::fs::write(format!("{staging}/file"), "x").unwrap();
        let mut node = rig.node().await;
        let call = tokio::spawn({
            let unstage = unstage.clone();
            async move { node.node_unstage_volume(unstage).await }
        });
        tokio::time::sleep(after / 4).await;
        rig.kill_driver();
        let _ = call.await.unwrap();
        rig.start_driver();
        rig.node().await.node_unstage_volume(unstage).await.unwrap();
        assert!(
            !Path::new(&format!("{staging}/file")).exists(),
            "{id} is still mounted"
        );
    }
    let devices = run(
        "losetup",
        &["--list", "--noheadings", "--output", "BACK-FILE"],
    );
    let ours = rig.path("initiator");
    assert!(!devices.contains(&ours), "a device was left: {devices}");
}
