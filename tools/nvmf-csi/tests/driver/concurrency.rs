//! The same call ten times at once, and calls against each other: each is carried out once, and the rest find it done.

use std::future::Future;
use std::path::Path;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use nvmf_rpc::types::GetSnapshots;
use tokio::task::JoinSet;
use tonic::{Response, Status};

use crate::controller::{delete, publish, range};
use crate::pod::Pod;
use crate::rig::{MIB, NODE, Rig, Site, mount_as, volume};

/// So many at once.
const AT_ONCE: usize = 10;

/// Makes calls at once, all of which must succeed and answer the same.
async fn at_once<T, F>(call: impl Fn() -> F) -> T
where
    T: PartialEq + std::fmt::Debug + Send + 'static,
    F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
{
    let mut calls = JoinSet::new();
    for _ in 0..AT_ONCE {
        calls.spawn(call());
    }
    let answers = calls.join_all().await;
    let mut answers = answers
        .into_iter()
        .map(|answer| answer.unwrap().into_inner());
    let first = answers.next().unwrap();
    assert!(
        answers.all(|answer| answer == first),
        "{first:?} and others"
    );
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_ten_times_at_once() {
    let Some(rig) = Rig::new("each_call_ten_times_at_once") else {
        return;
    };
    let writer = || mount_as("xfs", Mode::SingleNodeMultiWriter);
    let controller = rig.controller().await;
    let node = rig.node().await;
    let made = at_once(|| {
        let mut client = controller.clone();
        async move { client.create_volume(volume("v", writer(), 300)).await }
    })
    .await;
    let id = made.volume.unwrap().volume_id;
    at_once(|| {
        let (mut client, request) = (controller.clone(), publish(&id, NODE, writer()));
        async move { client.controller_publish_volume(request).await }
    })
    .await;
    let pod = Pod::known(&rig, &id, writer()).await;
    at_once(|| {
        let (mut client, request) = (node.clone(), pod.stage());
        async move { client.node_stage_volume(request).await }
    })
    .await;
    assert_eq!(rig.mounts_below(&pod.path("staging")).len(), 1);
    at_once(|| {
        let (mut client, request) = (node.clone(), pod.publish("target"));
        async move { client.node_publish_volume(request).await }
    })
    .await;
    assert_eq!(rig.mounts_below(&pod.path("target")).len(), 1);
    std::fs::write(format!("{}/file", pod.path("target")), "x").unwrap();
    at_once(|| {
        let mut client = controller.clone();
        let request = CreateSnapshotRequest {
            name: "s".into(),
            source_volume_id: id.clone(),
            ..Default::default()
        };
        async move { client.create_snapshot(request).await }
    })
    .await;
    assert_eq!(rig.ask(&GetSnapshots::default()).await.len(), 1);
    let grow = range(400 * MIB, 0);
    at_once(|| {
        let mut client = controller.clone();
        let request = ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range: grow,
            ..Default::default()
        };
        async move { client.controller_expand_volume(request).await }
    })
    .await;
    at_once(|| {
        let mut client = node.clone();
        let request = NodeExpandVolumeRequest {
            volume_id: id.clone(),
            volume_path: pod.path("target"),
            capacity_range: grow,
            ..Default::default()
        };
        async move { client.node_expand_volume(request).await }
    })
    .await;
    assert!(pod.stats("target").await.usage[0].total > 320 * MIB);
    at_once(|| {
        let (mut client, request) = (node.clone(), pod.unpublish("target"));
        async move { client.node_unpublish_volume(request).await }
    })
    .await;
    at_once(|| {
        let (mut client, request) = (node.clone(), pod.unstage());
        async move { client.node_unstage_volume(request).await }
    })
    .await;
    at_once(|| {
        let mut client = controller.clone();
        let request = ControllerUnpublishVolumeRequest {
            volume_id: id.clone(),
            node_id: NODE.into(),
            ..Default::default()
        };
        async move { client.controller_unpublish_volume(request).await }
    })
    .await;
    at_once(|| {
        let mut client = controller.clone();
        let request = DeleteSnapshotRequest {
            snapshot_id: "fast/s".into(),
            ..Default::default()
        };
        async move { client.delete_snapshot(request).await }
    })
    .await;
    at_once(|| {
        let (mut client, request) = (controller.clone(), delete(&id));
        async move { client.delete_volume(request).await }
    })
    .await;
    assert_eq!(rig.left(), Vec::<String>::new());
}

/// A stage against its unstage, again and again: whichever comes last, the volume is staged whole or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn calls_against_each_other() {
    let Some(rig) = Rig::new("calls_against_each_other") else {
        return;
    };
    let writer = mount_as("ext4", Mode::SingleNodeMultiWriter);
    let pod = Pod::new(&rig, volume("v", writer, 16)).await;
    let node = rig.node().await;
    for _ in 0..AT_ONCE {
        let (mut one, mut other) = (node.clone(), node.clone());
        let (staged, unstaged) = tokio::join!(
            one.node_stage_volume(pod.stage()),
            other.node_unstage_volume(pod.unstage())
        );
        staged.unwrap();
        unstaged.unwrap();
        let mounts = rig.mounts_below(&pod.path("staging")).len();
        let attached = rig.volumes_of(&Site::all()).attached().unwrap().len();
        assert_eq!(mounts, attached);
        assert!(mounts <= 1);
    }
    let mut node = node;
    node.node_unstage_volume(pod.unstage()).await.unwrap();
    assert_eq!(rig.left(), Vec::<String>::new());
    assert!(
        Path::new(&pod.path("staging")).exists(),
        "the folder is the caller's"
    );
}
