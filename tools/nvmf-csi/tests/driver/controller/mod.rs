//! The controller's calls, each with what the specification says it may answer.

mod create;
mod expand;
mod grants;
mod groups;
mod list;
mod snapshots;

use nvmf_csi::proto::controller_client::ControllerClient;
use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::Type;
use nvmf_csi::proto::*;
use tonic::transport::Channel;

use crate::rig::mount_as;

pub const UNKNOWN: &str = "fast/no-such";

pub fn writer() -> VolumeCapability {
    mount_as("", Mode::SingleNodeWriter)
}

pub fn from(source: Type) -> Option<VolumeContentSource> {
    Some(VolumeContentSource {
        r#type: Some(source),
    })
}

pub fn publish(
    volume_id: &str,
    node_id: &str,
    capability: VolumeCapability,
) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        volume_capability: Some(capability),
        ..ControllerPublishVolumeRequest::default()
    }
}

pub fn range(required_bytes: i64, limit_bytes: i64) -> Option<CapacityRange> {
    Some(CapacityRange {
        required_bytes,
        limit_bytes,
    })
}

pub fn delete(volume_id: &str) -> DeleteVolumeRequest {
    DeleteVolumeRequest {
        volume_id: volume_id.into(),
        ..DeleteVolumeRequest::default()
    }
}

/// What a request for a volume that must be made gets.
pub async fn new_volume(
    client: &mut ControllerClient<Channel>,
    request: CreateVolumeRequest,
) -> Volume {
    let made = client.create_volume(request).await.unwrap();
    made.into_inner().volume.unwrap()
}

/// What a request for a snapshot that must be taken gets.
pub async fn new_snapshot(
    client: &mut ControllerClient<Channel>,
    request: CreateSnapshotRequest,
) -> Snapshot {
    let taken = client.create_snapshot(request).await.unwrap();
    taken.into_inner().snapshot.unwrap()
}
