//! Volumes, snapshots and grants, on the targets' management APIs.
//!
//! | module | what it is |
//! |---|---|
//! | [`target`] | that API of one, as far as it is needed here |
//! | [`targets`] | which of them an identifier means, and all of them at once |
//! | [`placement`] | to which of them, and into which pool, a new volume goes |
//! | [`parameters`] | what a StorageClass may say |
//! | [`volumes`] | making, deleting, growing, granting and listing volumes |
//! | [`snapshots`] | the same for snapshots |
//! | [`groups`] | snapshots of several volumes at one instant |
//! | [`page`] | lists in pieces |
//!
//! Each call holds the lock of what it names, looks at what is there, and does what is missing.

pub mod groups;
pub mod page;
pub mod parameters;
pub mod placement;
pub mod snapshots;
pub mod target;
pub mod targets;
pub mod volumes;

use std::collections::HashMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::Result;
use crate::locks::Locks;
use crate::proto::controller_server::Controller;
use crate::proto::controller_service_capability::{Rpc, Type, rpc};
use crate::proto::*;
use crate::secrets;

pub use targets::Targets;

/// How the controller works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The pool of volumes whose StorageClass names none; otherwise that with the most room.
    pub pool: Option<String>,
    /// Size of volumes for which none is asked, in bytes.
    pub size_bytes: u64,
}

/// The service.
#[derive(Debug, Clone)]
pub struct ControllerService(Inner);

#[derive(Debug, Clone)]
struct Inner {
    settings: Arc<Settings>,
    targets: Targets,
    locks: Arc<Locks>,
}

impl ControllerService {
    /// On these targets.
    pub fn new(settings: Settings, targets: Targets) -> ControllerService {
        ControllerService(Inner {
            settings: Arc::new(settings),
            targets,
            locks: Arc::default(),
        })
    }

    /// What carries out a call with these secrets: as the holder of the certificate in them, or else as the driver itself.
    fn asked_with(&self, secrets: &HashMap<String, String>) -> Result<Inner> {
        let mut inner = self.0.clone();
        if let Some(certificate) = secrets::certificate(secrets)? {
            inner.targets = inner.targets.as_holder(&certificate)?;
        }
        Ok(inner)
    }
}

/// What this controller can do; nothing is claimed that is not served.
const CAPABILITIES: [rpc::Type; 13] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::PublishUnpublishVolume,
    rpc::Type::ListVolumes,
    rpc::Type::GetCapacity,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::GetSnapshot,
    rpc::Type::CloneVolume,
    rpc::Type::ExpandVolume,
    rpc::Type::ListVolumesPublishedNodes,
    rpc::Type::VolumeCondition,
    rpc::Type::GetVolume,
    rpc::Type::SingleNodeMultiWriter,
];

type Answer<T> = Result<Response<T>>;

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Answer<CreateVolumeResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        let volume = inner.create_volume(request.into_inner()).await?;
        Ok(Response::new(CreateVolumeResponse {
            volume: Some(volume),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Answer<DeleteVolumeResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        inner.delete_volume(&request.into_inner().volume_id).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Answer<ControllerPublishVolumeResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        let publish_context = inner.publish(request.into_inner()).await?;
        Ok(Response::new(ControllerPublishVolumeResponse {
            publish_context,
        }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Answer<ControllerUnpublishVolumeResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        inner.unpublish(request.into_inner()).await?;
        Ok(Response::new(ControllerUnpublishVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        Ok(Response::new(inner.validate(request.into_inner()).await?))
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Answer<ListVolumesResponse> {
        Ok(Response::new(
            self.0.list_volumes(request.into_inner()).await?,
        ))
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Answer<GetCapacityResponse> {
        Ok(Response::new(self.0.capacity(request.into_inner()).await?))
    }

    async fn controller_get_capabilities(
        &self,
        _request: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        let capability = |kind: rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        Ok(Response::new(ControllerGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Answer<CreateSnapshotResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        let snapshot = inner.create_snapshot(request.into_inner()).await?;
        Ok(Response::new(CreateSnapshotResponse {
            snapshot: Some(snapshot),
        }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Answer<DeleteSnapshotResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        inner
            .delete_snapshot(&request.into_inner().snapshot_id)
            .await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Answer<ListSnapshotsResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        Ok(Response::new(
            inner.list_snapshots(request.into_inner()).await?,
        ))
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Answer<GetSnapshotResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        let snapshot = inner
            .get_snapshot(&request.into_inner().snapshot_id)
            .await?;
        Ok(Response::new(GetSnapshotResponse {
            snapshot: Some(snapshot),
        }))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        Ok(Response::new(inner.expand(request.into_inner()).await?))
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Answer<ControllerGetVolumeResponse> {
        Ok(Response::new(
            self.0.get_volume(&request.into_inner().volume_id).await?,
        ))
    }

    /// Not claimed: volumes have nothing that could be changed so.
    async fn controller_modify_volume(
        &self,
        _request: Request<ControllerModifyVolumeRequest>,
    ) -> Answer<ControllerModifyVolumeResponse> {
        Err(Status::unimplemented(
            "volumes of this driver have no mutable parameters",
        ))
    }
}
