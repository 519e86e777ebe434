//! Snapshots of several volumes at one instant. A group is what its snapshots' labels say; it is made whole or not at all.

use std::collections::BTreeSet;

use nvmf_rpc::error::code;
use nvmf_rpc::types::{CreateSnapshots, Labels, Snapshot as PoolSnapshot, SnapshotSpec};
use tonic::{Request, Response, Status};

use super::snapshots::describe;
use super::target::{LABEL_FS, LABEL_GROUP, LABEL_NAME};
use super::{Answer, ControllerService, Inner};
use crate::Result;
use crate::names::{self, Id};
use crate::proto::group_controller_server::GroupController;
use crate::proto::group_controller_service_capability::{Rpc, Type, rpc};
use crate::proto::*;
use crate::status::of_target;

#[tonic::async_trait]
impl GroupController for ControllerService {
    async fn group_controller_get_capabilities(
        &self,
        _request: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Answer<GroupControllerGetCapabilitiesResponse> {
        let kind = rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into();
        let capability = GroupControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind })),
        };
        Ok(Response::new(GroupControllerGetCapabilitiesResponse {
            capabilities: vec![capability],
        }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Answer<CreateVolumeGroupSnapshotResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        let group = inner.create_group(request.into_inner()).await?;
        Ok(Response::new(CreateVolumeGroupSnapshotResponse {
            group_snapshot: Some(group),
        }))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Answer<DeleteVolumeGroupSnapshotResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        inner.delete_group(request.into_inner()).await?;
        Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Answer<GetVolumeGroupSnapshotResponse> {
        let inner = self.asked_with(&request.get_ref().secrets)?;
        let group = inner.get_group(request.into_inner()).await?;
        Ok(Response::new(GetVolumeGroupSnapshotResponse {
            group_snapshot: Some(group),
        }))
    }
}

/// A group in the interface's words.
fn describe_group(id: &Id, members: &[PoolSnapshot]) -> Result<VolumeGroupSnapshot> {
    let snapshots = members.iter().map(describe).collect::<Result<Vec<_>>>()?;
    Ok(VolumeGroupSnapshot {
        group_snapshot_id: id.to_string(),
        creation_time: snapshots
            .first()
            .and_then(|snapshot| snapshot.creation_time),
        ready_to_use: snapshots.iter().all(|snapshot| snapshot.ready_to_use),
        snapshots,
    })
}

impl Inner {
    /// The snapshots of a group.
    async fn members(&self, id: &Id) -> Result<Vec<PoolSnapshot>> {
        let mut snapshots = self.target.snapshots().await?;
        snapshots.retain(|snapshot| {
            snapshot.pool == id.pool
                && snapshot
                    .labels
                    .get(LABEL_GROUP)
                    .is_some_and(|group| *group == id.name)
        });
        Ok(snapshots)
    }

    async fn create_group(
        &self,
        request: CreateVolumeGroupSnapshotRequest,
    ) -> Result<VolumeGroupSnapshot> {
        let name = names::given(&request.name)?;
        if request.source_volume_ids.is_empty() {
            return Err(Status::invalid_argument("source_volume_ids are missing"));
        }
        let mut volumes = Vec::new();
        for text in &request.source_volume_ids {
            volumes.push(
                self.target
                    .existing_volume(names::required("source_volume_ids", text)?)
                    .await?,
            );
        }
        let pool = volumes[0].0.pool.clone();
        if let Some((other, _)) = volumes.iter().find(|(id, _)| id.pool != pool) {
            return Err(Status::failed_precondition(format!(
                "volumes of pools {pool} and {} cannot be taken at one instant",
                other.pool
            )));
        }
        let id = Id::new(&pool, &names::in_pool(name));
        let _held = self.locks.hold(&format!("group {id}")).await;
        let wanted: BTreeSet<_> = volumes.iter().map(|(id, _)| id.name.clone()).collect();
        let mut members = self.members(&id).await?;
        if members.is_empty() {
            let specs = volumes.iter().map(|(volume_id, volume)| {
                let mut labels = Labels::from([
                    (LABEL_NAME.to_owned(), name.to_owned()),
                    (LABEL_GROUP.to_owned(), id.name.clone()),
                ]);
                if let Some(fs) = volume.labels.get(LABEL_FS) {
                    labels.insert(LABEL_FS.to_owned(), fs.clone());
                }
                SnapshotSpec {
                    volume: volume_id.name.clone(),
                    name: names::hashed(&format!("{}\0{}", id.name, volume_id.name)),
                    labels,
                }
            });
            let params = CreateSnapshots {
                pool: pool.clone(),
                snapshots: specs.collect(),
            };
            members = match self.target.call(&params).await {
                Ok(members) => members,
                Err(error) if error.code() == Some(code::EXISTS) => self.members(&id).await?,
                Err(error) => return Err(of_target(&error)),
            };
        }
        let taken: BTreeSet<_> = members
            .iter()
            .map(|snapshot| snapshot.volume.clone())
            .collect();
        match taken == wanted {
            true => describe_group(&id, &members),
            false => Err(Status::already_exists(format!(
                "there is a group {id} of other volumes: delete it, or use another name"
            ))),
        }
    }

    /// Of a group that the caller says is made of these snapshots.
    async fn checked(&self, group: &str, snapshots: &[String]) -> Result<(Id, Vec<PoolSnapshot>)> {
        let id = Id::existing("group", group)?;
        let members = self.members(&id).await?;
        let ours = |text: &String| {
            let is =
                |member: &PoolSnapshot| Id::new(&member.pool, &member.name).to_string() == *text;
            members.iter().any(is)
        };
        match members.is_empty() || snapshots.iter().all(ours) {
            true => Ok((id, members)),
            false => Err(Status::invalid_argument(format!(
                "snapshot_ids are not those of group {id}"
            ))),
        }
    }

    async fn get_group(
        &self,
        request: GetVolumeGroupSnapshotRequest,
    ) -> Result<VolumeGroupSnapshot> {
        let text = names::required("group_snapshot_id", &request.group_snapshot_id)?;
        let (id, members) = self.checked(text, &request.snapshot_ids).await?;
        match members.is_empty() {
            true => Err(Status::not_found(format!("there is no group {id}"))),
            false => describe_group(&id, &members),
        }
    }

    async fn delete_group(&self, request: DeleteVolumeGroupSnapshotRequest) -> Result<()> {
        let text = names::required("group_snapshot_id", &request.group_snapshot_id)?;
        if text.parse::<Id>().is_err() {
            return Ok(());
        }
        let _held = self.locks.hold(&format!("group {text}")).await;
        let (_, members) = self.checked(text, &request.snapshot_ids).await?;
        for member in members {
            self.remove(&Id::new(&member.pool, &member.name)).await?;
        }
        Ok(())
    }
}
