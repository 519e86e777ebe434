//! Volumes that live and die with their pod.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use nvmf_rpc::types::GetVolumes;
use tonic::Code;

use crate::pod::Context;
use crate::rig::{NODE, Rig, Site, block, mount_as, program, run, until};

/// The identifier that kubelet makes for an inline volume has this form.
fn id(pod: usize) -> String {
    format!("csi-{pod:064x}")
}

pub fn publish(rig: &Rig, pod: usize) -> NodePublishVolumeRequest {
    let context = [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "web"),
        ("size", "16Mi"),
    ];
    NodePublishVolumeRequest {
        volume_id: id(pod),
        target_path: rig.path(&format!("pod{pod}")),
        volume_capability: Some(mount_as("", Mode::SingleNodeWriter)),
        volume_context: context.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        ..NodePublishVolumeRequest::default()
    }
}

pub fn unpublish(rig: &Rig, pod: usize) -> NodeUnpublishVolumeRequest {
    NodeUnpublishVolumeRequest {
        volume_id: id(pod),
        target_path: rig.path(&format!("pod{pod}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_lives_and_dies_with_its_pod() {
    let Some(rig) = Rig::new("a_volume_that_lives_and_dies_with_its_pod") else {
        return;
    };
    let mut node = rig.node().await;
    for pod in [1, 2] {
        for _ in 0..3 {
            node.node_publish_volume(publish(&rig, pod)).await.unwrap();
        }
        let file = format!("{}/file", publish(&rig, pod).target_path);
        std::fs::write(file, format!("{pod}")).unwrap();
    }
    let volumes = rig.ask(&GetVolumes::default()).await;
    assert_eq!(volumes.len(), 2);
    for volume in &volumes {
        assert_eq!(
            (volume.size_bytes, &volume.hosts[..]),
            (16 << 20, &[NODE.to_owned()][..])
        );
    }
    let one = std::fs::read_to_string(format!("{}/file", publish(&rig, 1).target_path));
    assert_eq!(one.unwrap(), "1", "each pod has its own");
    // The orchestrator's controller has nothing to do with them.
    let mut controller = rig.controller().await;
    let listed = controller
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(listed.entries.is_empty());
    let stats = NodeGetVolumeStatsRequest {
        volume_id: id(1),
        volume_path: rig.path("pod1"),
        staging_target_path: String::new(),
    };
    let stats = node
        .node_get_volume_stats(stats)
        .await
        .unwrap()
        .into_inner();
    assert!(!stats.volume_condition.unwrap().abnormal && stats.usage[0].total > 8 << 20);
    let with = |change: &dyn Fn(&mut NodePublishVolumeRequest)| {
        let mut request = publish(&rig, 1);
        change(&mut request);
        request
    };
    let attribute = |name: &str, value: &str| {
        let mut context: Context = publish(&rig, 3).volume_context;
        context.insert(name.to_owned(), value.to_owned());
        context
    };
    for (request, code) in [
        (
            with(&|r| r.volume_context = attribute("size", "1Gi")),
            Code::AlreadyExists,
        ),
        (
            with(&|r| r.volume_context = attribute("size", "lots")),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_context = attribute("sise", "1Gi")),
            Code::InvalidArgument,
        ),
        (
            with(&|r| (r.volume_id, r.volume_context) = (id(4), attribute("pool", "none"))),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_capability = Some(block(Mode::SingleNodeWriter))),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_capability = Some(mount_as("", Mode::MultiNodeReaderOnly))),
            Code::InvalidArgument,
        ),
        // What cannot be mounted is not left in the pool either.
        (
            with(&|r| (r.volume_id, r.target_path) = (id(5), rig.path("pod1"))),
            Code::FailedPrecondition,
        ),
    ] {
        let what = format!("{request:?}");
        let refused = node.node_publish_volume(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{what}: {refused}");
    }
    assert_eq!(rig.ask(&GetVolumes::default()).await.len(), 2);
    for _ in 0..10 {
        for pod in [1, 2, 3] {
            node.node_unpublish_volume(unpublish(&rig, pod))
                .await
                .unwrap();
        }
    }
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
    assert_eq!(rig.left(), Vec::<String>::new());
    // Read-only it is of no use, but it is what was asked for.
    let read_only = with(&|r| r.readonly = true);
    node.node_publish_volume(read_only).await.unwrap();
    assert!(std::fs::write(rig.path("pod1/file"), "x").is_err());
    // A reboot takes mounts, devices and files of the run folder; the volume is found in the pool.
    let request = unpublish(&rig, 1);
    crate::rig::run("umount", &[&request.target_path]);
    let own = rig.volumes_of(&Site::all());
    for claim in own.claims().unwrap() {
        let lock = own.lock(&claim.subnqn).unwrap();
        own.detach(&lock, &claim).unwrap();
    }
    assert_eq!(rig.ask(&GetVolumes::default()).await.len(), 1);
    node.node_unpublish_volume(request).await.unwrap();
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_targets_api_refuses_ephemeral_volumes() {
    let Some(rig) = Rig::without_driver(
        "a_node_without_the_targets_api_refuses_ephemeral_volumes",
        "",
        "127.0.0.1:0",
    ) else {
        return;
    };
    let site = Site {
        mode: "node",
        ..Site::all()
    };
    let driver = rig.start(&site);
    let refused = driver
        .node()
        .await
        .node_publish_volume(publish(&rig, 1))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("--rpc"), "{refused}");
    driver
        .node()
        .await
        .node_unpublish_volume(unpublish(&rig, 1))
        .await
        .unwrap();
}

/// Its administrator says so, once the node is known to be gone; what a node still uses stays.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_a_node_that_never_comes_back_are_found_and_removed() {
    let test = "volumes_of_a_node_that_never_comes_back_are_found_and_removed";
    let Some(mut rig) = Rig::new(test) else {
        return;
    };
    let mut node = rig.node().await;
    for pod in [1, 2] {
        node.node_publish_volume(publish(&rig, pod)).await.unwrap();
    }
    let socket = rig.path("rpc.sock");
    let nvmfctl = |arguments: &[&str]| {
        let nvmfctl = program("nvmfctl");
        let all = [&["--socket", &socket, "volume"], arguments].concat();
        run(nvmfctl.to_str().unwrap(), &all)
    };
    let on = format!("nvmf-csi.ephemeral-on={NODE}");
    let found = nvmfctl(&["list", "--label", "nvmf-csi.ephemeral-on"]);
    assert_eq!(found.lines().count(), 3, "{found}");
    assert!(
        found.contains(&on) && found.contains(&format!("nvmf-csi.ephemeral-id={}", id(2))),
        "{found}"
    );
    // Its pods run.
    let refused = nvmfctl(&["prune", "--label", &on, "--yes"]);
    assert_eq!(refused.matches("in use").count(), 2, "{refused}");
    std::fs::write(rig.path("pod1/file"), "x").unwrap();
    assert_eq!(rig.ask(&GetVolumes::default()).await.len(), 2);
    // The node goes, and nobody unpublishes.
    rig.kill_driver();
    for pod in [1, 2] {
        run("umount", &[&publish(&rig, pod).target_path]);
    }
    for controller in rig.volumes_of(&Site::all()).attached().unwrap() {
        let words = ["disconnect", "--force", "-n", &controller.subnqn];
        let daemon = rig.path("initiator");
        let all = [&["--run-dir", &daemon][..], &words].concat();
        run(program("nvmf-initiator").to_str().unwrap(), &all);
    }
    let none_in_use = || !nvmfctl(&["prune", "--label", &on]).contains("in use");
    until("the target to see that", none_in_use);
    let other = "nvmf-csi.ephemeral-on=nqn.2024-01.org.example:other";
    nvmfctl(&["prune", "--label", other, "--yes"]);
    assert_eq!(rig.ask(&GetVolumes::default()).await.len(), 2);
    let removed = nvmfctl(&["prune", "--label", &on, "--yes"]);
    assert_eq!(removed.matches(" removed ").count(), 2, "{removed}");
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
}
