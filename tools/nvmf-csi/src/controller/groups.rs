//! Snapshots of several volumes at one instant. A group is what its snapshots' labels say; it is made whole or not at all.

use std::collections::BTreeSet;

use nvmf_rpc::error::code;
use nvmf_rpc::types::{CreateSnapshots, Labels, Snapshot as PoolSnapshot, SnapshotSpec};
use tonic::{Request, Response, Status};

use super::snapshots::describe;
use super::target::{LABEL_FS, LABEL_GROUP, LABEL_NAME, Target};
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
fn describe_group(
    target: &Target,
    id: &Id,
    members: &[PoolSnapshot],
) -> Result<VolumeGroupSnapshot> {
    let snapshots = members.iter().map(|member| describe(target, member));
    let snapshots = snapshots.collect::<Result<Vec<_>>>()?;
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
        let mut snapshots = self.targets.of(id)?.snapshots().await?;
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
        let mut ids = Vec::new();
        for text in &request.source_volume_ids {
            let text = names::required("source_volume_ids", text)?;
            ids.push(Id::existing("volume", text)?);
        }
        // Before any is asked for: writes are held by one target, in one pool, and nobody holds those of two at once.
        let first = &ids[0];
        if let Some(other) = ids
            .iter()
            .find(|id| (&id.target, &id.pool) != (&first.target, &first.pool))
        {
            return Err(Status::failed_precondition(format!(
                "volumes {first} and {other} cannot be taken at one instant: all volumes of a group must be in one pool of one target"
            )));
        }
        let target = self.targets.of(first)?;
        let id = target.id(&first.pool, &names::in_pool(name));
        id.check_length()?;
        let mut volumes = Vec::new();
        for text in &request.source_volume_ids {
            let (id, _, volume) = self.targets.existing_volume(text).await?;
            volumes.push((id, volume));
        }
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
                pool: id.pool.clone(),
                snapshots: specs.collect(),
            };
            members = match target.call(&params).await {
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
            true => describe_group(target, &id, &members),
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
            let is = |member: &PoolSnapshot| id.beside(&member.name).to_string() == *text;
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
            false => describe_group(self.targets.of(&id)?, &id, &members),
        }
    }

    async fn delete_group(&self, request: DeleteVolumeGroupSnapshotRequest) -> Result<()> {
        let text = names::required("group_snapshot_id", &request.group_snapshot_id)?;
        if text.parse::<Id>().is_err() {
            return Ok(());
        }
        let _held = self.locks.hold(&format!("group {text}")).await;
        let (id, members) = self.checked(text, &request.snapshot_ids).await?;
        for member in members {
            self.remove(&id.beside(&member.name)).await?;
        }
        Ok(())
    }
}
