//! Raw devices.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use crate::pod::Pod;
use crate::rig::{MIB, Rig, block, mount_as, run, volume};

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
    let refused = node.node_publish_volume(read_only.clone()).await;
    assert_eq!(refused.unwrap_err().code(), Code::AlreadyExists);
    node.node_unpublish_volume(pod.unpublish("device"))
        .await
        .unwrap();
    let refused = node.node_publish_volume(read_only).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    pod.down(&["device"]).await;
    let pod = Pod::new(&rig, volume("raw", block(Mode::SingleNodeSingleWriter), 32)).await;
    pod.up("device").await;
    run("cmp", &["-n", "1048576", &bytes, &pod.path("device")]);
    pod.down(&["device"]).await;
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
