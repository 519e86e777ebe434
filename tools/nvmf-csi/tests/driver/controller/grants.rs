//! ControllerPublishVolume and ControllerUnpublishVolume.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use super::{UNKNOWN, publish, writer};
use crate::rig::{NODE, OTHER_NODE, Rig, block, mount_as, volume};

#[tokio::test(flavor = "multi_thread")]
async fn grants() {
    let Some(rig) = Rig::new("grants") else {
        return;
    };
    let mut client = rig.controller().await;
    client
        .create_volume(volume("v", writer(), 16))
        .await
        .unwrap();
    client
        .create_volume(volume("shared", block(Mode::MultiNodeMultiWriter), 16))
        .await
        .unwrap();
    for _ in 0..10 {
        let context = client
            .controller_publish_volume(publish("fast/v", NODE, writer()))
            .await;
        let context = context.unwrap().into_inner().publish_context;
        assert_eq!(context["nqn"], "nqn.2024-01.org.example:fast:v");
        assert_eq!(
            (
                context["targetTrType"].as_str(),
                context["targetTrAddr"].as_str()
            ),
            ("tcp", "127.0.0.1")
        );
        assert!(
            context["targetTrPort"].parse::<u16>().unwrap() > 0
                && context["deviceUUID"].len() == 36
        );
    }
    let all = client
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        all.entries[1].status.as_ref().unwrap().published_node_ids,
        [NODE]
    );
    for (request, code) in [
        (publish("", NODE, writer()), Code::InvalidArgument),
        (publish("fast/v", "", writer()), Code::InvalidArgument),
        (publish("fast/v", "some-node", writer()), Code::NotFound),
        (publish(UNKNOWN, NODE, writer()), Code::NotFound),
        (
            publish("fast/v", OTHER_NODE, writer()),
            Code::FailedPrecondition,
        ),
        // What it holds is not what is asked for: published so already, and not.
        (
            publish("fast/v", NODE, mount_as("xfs", Mode::SingleNodeWriter)),
            Code::AlreadyExists,
        ),
        (
            publish(
                "fast/v",
                OTHER_NODE,
                mount_as("xfs", Mode::SingleNodeWriter),
            ),
            Code::InvalidArgument,
        ),
        (
            publish("fast/v", NODE, mount_as("", Mode::MultiNodeMultiWriter)),
            Code::InvalidArgument,
        ),
        (
            ControllerPublishVolumeRequest {
                volume_capability: None,
                ..publish("fast/v", NODE, writer())
            },
            Code::InvalidArgument,
        ),
        (
            ControllerPublishVolumeRequest {
                readonly: true,
                ..publish("fast/shared", NODE, block(Mode::SingleNodeWriter))
            },
            Code::InvalidArgument,
        ),
    ] {
        let what = format!("{request:?}");
        assert_eq!(
            client
                .controller_publish_volume(request)
                .await
                .unwrap_err()
                .code(),
            code,
            "{what}"
        );
    }
    let both = || block(Mode::MultiNodeMultiWriter);
    client
        .controller_publish_volume(publish("fast/shared", NODE, both()))
        .await
        .unwrap();
    client
        .controller_publish_volume(publish("fast/shared", OTHER_NODE, both()))
        .await
        .unwrap();
    let unpublish = |volume_id: &str, node_id: &str| ControllerUnpublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    for _ in 0..10 {
        client
            .controller_unpublish_volume(unpublish("fast/v", NODE))
            .await
            .unwrap();
    }
    client
        .controller_unpublish_volume(unpublish("fast/shared", ""))
        .await
        .unwrap();
    client
        .controller_unpublish_volume(unpublish(UNKNOWN, NODE))
        .await
        .unwrap();
    assert_eq!(
        client
            .controller_unpublish_volume(unpublish("", NODE))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    client
        .controller_publish_volume(publish("fast/v", OTHER_NODE, writer()))
        .await
        .unwrap();
    let all = client
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(
        all.entries[0]
            .status
            .as_ref()
            .unwrap()
            .published_node_ids
            .is_empty()
    );
}
