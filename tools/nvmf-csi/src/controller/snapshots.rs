//! Snapshots of one volume.

use nvmf_rpc::error::code;
use nvmf_rpc::types::{CreateSnapshot, DeleteSnapshot, Labels, Snapshot as PoolSnapshot};
use tonic::Status;

use super::target::{LABEL_FS, LABEL_GROUP, LABEL_NAME, Target};
use super::{Inner, page};
use crate::Result;
use crate::names::{self, Id};
use crate::proto::*;
use crate::size::signed;
use crate::status::of_target;

/// A snapshot in the interface's words.
pub(super) fn describe(target: &Target, snapshot: &PoolSnapshot) -> Result<Snapshot> {
    let creation_time = snapshot.created.parse().map_err(|_| {
        Status::internal(format!(
            "snapshot {}: the target gave no time: {}",
            snapshot.name, snapshot.created
        ))
    })?;
    let id = |name: &str| target.id(&snapshot.pool, name).to_string();
    Ok(Snapshot {
        size_bytes: signed(snapshot.size_bytes),
        snapshot_id: id(&snapshot.name),
        source_volume_id: id(&snapshot.volume),
        creation_time: Some(creation_time),
        ready_to_use: snapshot.ready,
        group_snapshot_id: snapshot
            .labels
            .get(LABEL_GROUP)
            .map(|group| id(group))
            .unwrap_or_default(),
    })
}

impl Inner {
    pub(super) async fn create_snapshot(&self, request: CreateSnapshotRequest) -> Result<Snapshot> {
        let name = names::given(&request.name)?;
        let source = names::required("source_volume_id", &request.source_volume_id)?;
        if let Some(unknown) = request
            .parameters
            .keys()
            .find(|name| !name.starts_with("csi.storage.k8s.io/"))
        {
            return Err(Status::invalid_argument(format!(
                "parameter {unknown}: snapshots of this driver have none"
            )));
        }
        let (volume_id, target, volume) = self.targets.existing_volume(source).await?;
        let id = target.id(&volume_id.pool, &names::in_pool(name));
        id.check_length()?;
        let _held = self.locks.hold(&format!("snapshot {id}")).await;
        let snapshot = match target.snapshot(&id).await? {
            Some(snapshot) => snapshot,
            None => {
                let mut labels = Labels::from([(LABEL_NAME.to_owned(), name.to_owned())]);
                if let Some(fs) = volume.labels.get(LABEL_FS) {
                    labels.insert(LABEL_FS.to_owned(), fs.clone());
                }
                let params = CreateSnapshot {
                    pool: id.pool.clone(),
                    volume: volume_id.name.clone(),
                    name: id.name.clone(),
                    labels,
                };
                let taken = target.call(&params).await;
                taken.map_err(|error| of_target(&error))?
            }
        };
        match snapshot.volume == volume_id.name
            && snapshot
                .labels
                .get(LABEL_NAME)
                .is_some_and(|label| label == name)
        {
            true => describe(target, &snapshot),
            false => Err(Status::already_exists(format!(
                "there is a snapshot {id} of volume {}: delete it, or use another name",
                target.id(&snapshot.pool, &snapshot.volume)
            ))),
        }
    }

    pub(super) async fn delete_snapshot(&self, snapshot_id: &str) -> Result<()> {
        let text = names::required("snapshot_id", snapshot_id)?;
        let Ok(id) = text.parse::<Id>() else {
            return Ok(());
        };
        let _held = self.locks.hold(&format!("snapshot {id}")).await;
        match self.targets.of(&id)?.snapshot(&id).await? {
            None => return Ok(()),
            Some(snapshot) if snapshot.labels.contains_key(LABEL_GROUP) => {
                return Err(Status::invalid_argument(format!(
                    "snapshot {id} belongs to a group: delete the group"
                )));
            }
            Some(_) => {}
        }
        self.remove(&id).await
    }

    /// Removes a snapshot, if it is there.
    pub(super) async fn remove(&self, id: &Id) -> Result<()> {
        let params = DeleteSnapshot {
            pool: id.pool.clone(),
            name: id.name.clone(),
        };
        match self.targets.of(id)?.call(&params).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(()),
            Err(error) => Err(of_target(&error)),
        }
    }

    pub(super) async fn get_snapshot(&self, snapshot_id: &str) -> Result<Snapshot> {
        let text = names::required("snapshot_id", snapshot_id)?;
        let (_, target, snapshot) = self.targets.existing_snapshot(text).await?;
        describe(target, &snapshot)
    }

    /// What is asked for and does not exist makes an empty list.
    pub(super) async fn list_snapshots(
        &self,
        request: ListSnapshotsRequest,
    ) -> Result<ListSnapshotsResponse> {
        use list_snapshots_response::Entry;
        let mut found = Vec::new();
        for (id, target, snapshot) in self.snapshots_of(&request).await? {
            let source = target.id(&snapshot.pool, &snapshot.volume);
            let wanted = |asked: &str, is: &Id| asked.is_empty() || asked == is.to_string();
            if wanted(&request.snapshot_id, &id) && wanted(&request.source_volume_id, &source) {
                found.push((id, (target, snapshot)));
            }
        }
        let (found, next_token) = page::cut(found, request.max_entries, &request.starting_token)?;
        let entries = found.iter().map(|(_, (target, snapshot))| {
            Ok(Entry {
                snapshot: Some(describe(target, snapshot)?),
            })
        });
        Ok(ListSnapshotsResponse {
            entries: entries.collect::<Result<_>>()?,
            next_token,
        })
    }

    /// Those of the target that is asked for, so that one which is down matters to nobody else; without one, those of all.
    async fn snapshots_of(
        &self,
        request: &ListSnapshotsRequest,
    ) -> Result<Vec<(Id, Target, PoolSnapshot)>> {
        let mut asked = [&request.snapshot_id, &request.source_volume_id]
            .into_iter()
            .filter(|text| !text.is_empty());
        let Some(text) = asked.next() else {
            return self.targets.snapshots().await;
        };
        // What cannot exist is not there.
        let Ok(id) = text.parse::<Id>() else {
            return Ok(Vec::new());
        };
        self.targets.snapshots_on(self.targets.of(&id)?).await
    }
}
