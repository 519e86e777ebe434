//! ControllerExpandVolume and ControllerModifyVolume.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use super::{UNKNOWN, range, writer};
use crate::rig::{MIB, Rig, mount_as, volume};

#[tokio::test(flavor = "multi_thread")]
async fn growing() {
    let Some(rig) = Rig::new("growing") else {
        return;
    };
    let mut client = rig.controller().await;
    client
        .create_volume(volume("v1", writer(), 64))
        .await
        .unwrap();
    let expand = |volume_id: &str, required_bytes, limit_bytes| ControllerExpandVolumeRequest {
        volume_id: volume_id.into(),
        capacity_range: range(required_bytes, limit_bytes),
        ..ControllerExpandVolumeRequest::default()
    };
    for _ in 0..10 {
        let grown = client
            .controller_expand_volume(expand("fast/v1", 96 * MIB, 0))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (grown.capacity_bytes, grown.node_expansion_required),
            (96 * MIB, true)
        );
    }
    let less = client
        .controller_expand_volume(expand("fast/v1", MIB, 0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(less.capacity_bytes, 96 * MIB, "volumes do not shrink");
    for (request, code) in [
        (expand("", MIB, 0), Code::InvalidArgument),
        (expand(UNKNOWN, MIB, 0), Code::NotFound),
        (expand("fast/v1", 0, MIB), Code::OutOfRange),
        (expand("fast/v1", i64::MAX, 0), Code::OutOfRange),
        (expand("fast/v1", -1, 0), Code::InvalidArgument),
        (
            ControllerExpandVolumeRequest {
                volume_id: "fast/v1".into(),
                ..ControllerExpandVolumeRequest::default()
            },
            Code::InvalidArgument,
        ),
        (
            ControllerExpandVolumeRequest {
                volume_capability: Some(mount_as("", Mode::MultiNodeMultiWriter)),
                ..expand("fast/v1", MIB, 0)
            },
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(
            client
                .controller_expand_volume(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    let modify = |volume_id: &str| ControllerModifyVolumeRequest {
        volume_id: volume_id.into(),
        ..Default::default()
    };
    let refused = client.controller_modify_volume(modify("fast/v1")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
}
