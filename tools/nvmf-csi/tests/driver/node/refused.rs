//! What a node refuses, and with which code.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use crate::controller::range;
use crate::pod::{Context, Pod};
use crate::rig::{MIB, Rig, block, mount_as, volume};

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
        (
            NodeStageVolumeRequest {
                volume_capability: Some(mount_as("ntfs", Mode::SingleNodeWriter)),
                ..pod.stage()
            },
            Code::FailedPrecondition,
        ),
        (
            NodeStageVolumeRequest {
                volume_capability: Some(mount_as("", Mode::MultiNodeMultiWriter)),
                ..pod.stage()
            },
            Code::FailedPrecondition,
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
    let mode = |mode| Some(mount_as("", mode));
    let otherwise = NodePublishVolumeRequest {
        readonly: true,
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
        (otherwise, Code::AlreadyExists),
        (
            NodePublishVolumeRequest {
                volume_capability: mode(Mode::SingleNodeMultiWriter),
                ..pod.publish("target")
            },
            Code::AlreadyExists,
        ),
        (
            NodePublishVolumeRequest {
                volume_capability: mode(Mode::SingleNodeWriter),
                ..pod.publish("second")
            },
            Code::FailedPrecondition,
        ),
        (
            NodePublishVolumeRequest {
                volume_capability: mode(Mode::MultiNodeMultiWriter),
                ..pod.publish("second")
            },
            Code::FailedPrecondition,
        ),
        (
            NodePublishVolumeRequest {
                staging_target_path: String::new(),
                ..pod.publish("second")
            },
            Code::FailedPrecondition,
        ),
        (
            NodePublishVolumeRequest {
                staging_target_path: pod.path("elsewhere"),
                ..pod.publish("target")
            },
            Code::FailedPrecondition,
        ),
        (
            NodePublishVolumeRequest {
                target_path: "a/b".into(),
                ..pod.publish("target")
            },
            Code::InvalidArgument,
        ),
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
    let others = Pod::new(&rig, volume("w", mount_as("", Mode::SingleNodeWriter), 64)).await;
    others.up("target").await;
    for request in [
        stats(&pod.id, &others.path("target")),
        stats(&others.id, &pod.path("target")),
    ] {
        let refused = node.node_get_volume_stats(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
    }
    others.down(&["target"]).await;
    let larger = |required_bytes, limit_bytes| NodeExpandVolumeRequest {
        capacity_range: range(required_bytes, limit_bytes),
        ..expand(&pod.id, &pod.path("target"))
    };
    for (request, code) in [
        (larger(-1, 0), Code::InvalidArgument),
        (larger(0, MIB), Code::OutOfRange),
        (
            NodeExpandVolumeRequest {
                volume_capability: Some(block(Mode::SingleNodeWriter)),
                ..expand(&pod.id, &pod.path("target"))
            },
            Code::InvalidArgument,
        ),
    ] {
        let refused = node.node_expand_volume(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    // A read-only use of it; the mount says so.
    node.node_unpublish_volume(pod.unpublish("target"))
        .await
        .unwrap();
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
    // Not staged there: nothing to do.
    let elsewhere = NodeUnstageVolumeRequest {
        staging_target_path: pod.path("elsewhere"),
        ..pod.unstage()
    };
    node.node_unstage_volume(elsewhere).await.unwrap();
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
