//! Making, deleting, growing, granting and listing volumes.

use std::collections::HashMap;

use nvmf_rpc::error::code;
use nvmf_rpc::reach::LABEL_TRANSPORT;
use nvmf_rpc::types::{
    AddHost, CreateVolume, DeleteVolume, Labels, RemoveHost, ResizeVolume, Source,
    Volume as PoolVolume,
};
use nvmf_volume::FsKind;
use tokio::sync::OwnedMutexGuard;
use tonic::Status;

use super::parameters::{self, Parameters};
use super::placement::Scope;
use super::target::{LABEL_FS, LABEL_MKFS_OPTIONS, LABEL_NAME, Target};
use super::{Inner, page};
use crate::Result;
use crate::access::Access;
use crate::attributes::{self, Context, FS_TYPE, MKFS_OPTIONS, TRANSPORT};
use crate::names::{self, Id, MAX_NODE_ID_BYTES};
use crate::proto::volume_content_source::{self, SnapshotSource, VolumeSource};
use crate::proto::*;
use crate::size::{self, signed};
use crate::status::of_target;

impl Inner {
    pub(super) async fn create_volume(&self, request: CreateVolumeRequest) -> Result<Volume> {
        let name = names::given(&request.name)?;
        let accesses = Access::all(&request.volume_capabilities)?;
        let parameters = parameters::read(&request.parameters)?;
        if !request.mutable_parameters.is_empty() {
            return Err(Status::invalid_argument(
                "volumes of this driver have no mutable_parameters",
            ));
        }
        let source = self
            .source(request.volume_content_source.as_ref(), &parameters)
            .await?;
        let scope = self.scope(
            &parameters,
            source.as_ref(),
            request.accessibility_requirements.as_ref(),
        )?;
        let fs = file_system(&accesses, &parameters, source.as_ref())?;
        let in_pool = names::in_pool(name);
        let _held = self.lock_volume(&in_pool).await;
        let range = request.capacity_range.as_ref();
        let source_bytes = source.as_ref().map_or(0, |source| source.size_bytes);
        let least = fs.map_or(0, FsKind::min_bytes).max(source_bytes);
        let default = match source_bytes {
            0 => self.settings.size_bytes,
            source_bytes => source_bytes,
        };
        let mut labels = Labels::from([(LABEL_NAME.to_owned(), name.to_owned())]);
        if let Some(fs) = fs {
            labels.insert(LABEL_FS.to_owned(), fs.to_string());
            labels.insert(
                LABEL_MKFS_OPTIONS.to_owned(),
                parameters.mkfs_options.clone(),
            );
        }
        parameters.label(&mut labels);
        // What exists decides before what would be made: another size is then "already exists", not "out of range". An earlier call
        // may have chosen another target than this one would.
        let known = |volume: &PoolVolume| volume.labels.get(LABEL_NAME) == labels.get(LABEL_NAME);
        let (target, volume) = match self.targets.find(&scope, &in_pool, known).await? {
            Some(found) => found,
            None => {
                let size_bytes = size::choose(range, default, least)?;
                let (target, pool) = self.targets.place(&scope, size_bytes).await?;
                let id = target.id(&pool, &in_pool);
                id.check_length()?;
                let params = CreateVolume {
                    pool,
                    name: in_pool,
                    size_bytes: Some(size_bytes),
                    block_size: parameters.block_size,
                    provisioning: parameters.provisioning,
                    source: source.as_ref().map(|source| source.what.clone()),
                    labels: labels.clone(),
                    ..CreateVolume::default()
                };
                let volume = match target.call(&params).await {
                    Ok(volume) => volume,
                    Err(error) if error.code() == Some(code::EXISTS) => {
                        target.volume(&id).await?.ok_or_else(|| {
                            Status::aborted(format!("volume {id} comes and goes: try again"))
                        })?
                    }
                    Err(error) => return Err(of_target(&error)),
                };
                (target, volume)
            }
        };
        let id = target.id(&volume.pool, &volume.name);
        let made_from = volume
            .source
            .as_ref()
            .map(|what| (what, &id.target, &id.pool));
        let wanted_from = source.as_ref().map(|s| (&s.what, &s.id.target, &s.id.pool));
        let differs = [
            (
                "name",
                volume.labels.get(LABEL_NAME) != labels.get(LABEL_NAME),
            ),
            (
                "file system",
                volume.labels.get(LABEL_FS) != labels.get(LABEL_FS),
            ),
            (
                TRANSPORT,
                volume.labels.get(LABEL_TRANSPORT) != labels.get(LABEL_TRANSPORT),
            ),
            ("source", made_from != wanted_from),
            ("target, or another accessibility", !scope.has(&target)),
            (
                "pool",
                parameters
                    .pool
                    .as_ref()
                    .is_some_and(|pool| *pool != volume.pool),
            ),
            ("capacity_range", !size::fits(range, volume.size_bytes)?),
            (
                "blockSize",
                parameters
                    .block_size
                    .is_some_and(|size| size != volume.block_size),
            ),
        ];
        match differs.iter().find(|(_, differs)| *differs) {
            Some((what, _)) => Err(Status::already_exists(format!(
                "there is a volume {id} of another {what}: delete it, or use another name"
            ))),
            None => Ok(describe(&target, &volume)),
        }
    }

    /// One call on a volume at a time; those of the same name elsewhere wait, too, so that none is made twice.
    async fn lock_volume(&self, name: &str) -> OwnedMutexGuard<()> {
        self.locks.hold(&format!("volume {name}")).await
    }

    /// What a new volume is to be made from.
    async fn source(
        &self,
        source: Option<&VolumeContentSource>,
        parameters: &Parameters,
    ) -> Result<Option<Origin>> {
        let origin = match source.map(|source| source.r#type.as_ref()) {
            None => return Ok(None),
            Some(None) => {
                return Err(Status::invalid_argument(
                    "volume_content_source names neither volume nor snapshot",
                ));
            }
            Some(Some(volume_content_source::Type::Volume(volume))) => {
                let text = names::required("volume_content_source.volume_id", &volume.volume_id)?;
                let (id, _, volume) = self.targets.existing_volume(text).await?;
                Origin {
                    what: Source::Volume(id.name.clone()),
                    id,
                    size_bytes: volume.size_bytes,
                    fs: volume.labels.get(LABEL_FS).cloned(),
                }
            }
            Some(Some(volume_content_source::Type::Snapshot(snapshot))) => {
                let text =
                    names::required("volume_content_source.snapshot_id", &snapshot.snapshot_id)?;
                let (id, _, snapshot) = self.targets.existing_snapshot(text).await?;
                Origin {
                    what: Source::Snapshot(id.name.clone()),
                    id,
                    size_bytes: snapshot.size_bytes,
                    fs: snapshot.labels.get(LABEL_FS).cloned(),
                }
            }
        };
        for (what, is, asked) in [
            ("target", &origin.id.target, &parameters.target),
            ("pool", &origin.id.pool, &parameters.pool),
        ] {
            if let Some(asked) = asked.as_ref().filter(|asked| *asked != is) {
                return Err(Status::invalid_argument(format!(
                    "the source {} is in {what} {is}: a clone shares its blocks and cannot be in {what} {asked}",
                    origin.id
                )));
            }
        }
        Ok(Some(origin))
    }

    /// Where a new volume may be; a clone only beside its source.
    fn scope(
        &self,
        parameters: &Parameters,
        source: Option<&Origin>,
        wanted: Option<&TopologyRequirement>,
    ) -> Result<Scope> {
        let (target, pool) = match source {
            Some(source) => (Some(&source.id.target), Some(&source.id.pool)),
            None => (
                parameters.target.as_ref(),
                parameters.pool.as_ref().or(self.settings.pool.as_ref()),
            ),
        };
        self.targets
            .scope(target.map(String::as_str), pool.cloned(), wanted)
    }

    pub(super) async fn delete_volume(&self, volume_id: &str) -> Result<()> {
        let text = names::required("volume_id", volume_id)?;
        // What cannot exist is gone.
        let Ok(id) = text.parse::<Id>() else {
            return Ok(());
        };
        let _held = self.lock_volume(&id.name).await;
        let params = DeleteVolume {
            pool: id.pool.clone(),
            name: id.name.clone(),
            force: false,
        };
        match self.targets.of(&id)?.call(&params).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(()),
            Err(error) => Err(of_target(&error)),
        }
    }

    pub(super) async fn publish(&self, request: ControllerPublishVolumeRequest) -> Result<Context> {
        let text = names::required("volume_id", &request.volume_id)?;
        let node = names::bounded("node_id", &request.node_id, MAX_NODE_ID_BYTES)?;
        let access = Access::new(request.volume_capability.as_ref())?;
        if !node.starts_with("nqn.") {
            return Err(Status::not_found(format!(
                "there is no node {node}: nodes of this driver are called by their HOSTNQN"
            )));
        }
        if attributes::is_static(&request.volume_context) {
            // Somebody else's target: who may connect is decided there.
            return Ok(Context::new());
        }
        let id = Id::existing("volume", text)?;
        let _held = self.lock_volume(&id.name).await;
        let (_, target, volume) = self.targets.existing_volume(text).await?;
        if request.readonly && access.is_block() && !volume.read_only {
            return Err(Status::invalid_argument(
                "a raw device cannot be published read-only: nodes could not keep to it",
            ));
        }
        if let (Some(asked), Some(has)) = (access.fs(), volume.labels.get(LABEL_FS))
            && asked.name() != has
        {
            let why = format!("volume {id} holds {has}, not {asked}");
            return Err(match volume.hosts.iter().any(|host| host == node) {
                true => Status::already_exists(why),
                false => Status::invalid_argument(why),
            });
        }
        if !access.is_shared()
            && let Some(other) = volume.hosts.iter().find(|host| *host != node)
        {
            return Err(Status::failed_precondition(format!(
                "volume {id} is published to node {other}, and {} allows one: unpublish it there first",
                access.mode.as_str_name()
            )));
        }
        let params = AddHost {
            pool: id.pool.clone(),
            name: id.name.clone(),
            host: node.to_owned(),
        };
        let volume = target.call(&params).await;
        let volume = volume.map_err(|error| of_target(&error))?;
        attributes::publish(&volume, target.about().traddr.as_deref())
    }

    /// Returns once the node's controllers are gone and its writes have finished, so that the next node reads what was written.
    pub(super) async fn unpublish(&self, request: ControllerUnpublishVolumeRequest) -> Result<()> {
        let text = names::required("volume_id", &request.volume_id)?;
        let Ok(id) = text.parse::<Id>() else {
            return Ok(());
        };
        let _held = self.lock_volume(&id.name).await;
        let target = self.targets.of(&id)?;
        let Some(volume) = target.volume(&id).await? else {
            return Ok(());
        };
        // No node means all of them.
        let nodes = match request.node_id.as_str() {
            "" => volume.hosts,
            node => vec![names::bounded("node_id", node, MAX_NODE_ID_BYTES)?.to_owned()],
        };
        for host in nodes {
            let params = RemoveHost {
                pool: id.pool.clone(),
                name: id.name.clone(),
                host,
            };
            match target.call(&params).await {
                Err(error) if error.code() == Some(code::NOT_FOUND) => {}
                result => drop(result.map_err(|error| of_target(&error))?),
            }
        }
        Ok(())
    }

    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse> {
        use validate_volume_capabilities_response::Confirmed;
        let text = names::required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities are missing"));
        }
        let (_, target, volume) = self.targets.existing_volume(text).await?;
        let refused = |message: String| ValidateVolumeCapabilitiesResponse {
            confirmed: None,
            message,
        };
        let accesses = match Access::all(&request.volume_capabilities) {
            Ok(accesses) => accesses,
            Err(status) => return Ok(refused(status.message().to_owned())),
        };
        let fs = volume.labels.get(LABEL_FS);
        for asked in accesses.iter().filter_map(Access::fs) {
            if fs.is_some_and(|fs| *fs != asked.to_string()) {
                return Ok(refused(format!(
                    "the volume's file system is {}",
                    fs.map_or("", String::as_str)
                )));
            }
        }
        let context = describe(target, &volume).volume_context;
        if request
            .volume_context
            .iter()
            .any(|(name, value)| context.get(name) != Some(value))
        {
            return Ok(refused("volume_context is not the volume's".to_owned()));
        }
        Ok(ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        })
    }

    pub(super) async fn list_volumes(
        &self,
        request: ListVolumesRequest,
    ) -> Result<ListVolumesResponse> {
        use list_volumes_response::{Entry, VolumeStatus};
        let volumes = self.targets.volumes().await?;
        let volumes = volumes
            .into_iter()
            .map(|(id, target, volume)| (id, (target, volume)));
        let (volumes, next_token) = page::cut(
            volumes.collect(),
            request.max_entries,
            &request.starting_token,
        )?;
        let entries = volumes.into_iter().map(|(_, (target, volume))| Entry {
            volume: Some(describe(&target, &volume)),
            status: Some(VolumeStatus {
                volume_condition: Some(condition(&volume)),
                published_node_ids: volume.hosts,
            }),
        });
        Ok(ListVolumesResponse {
            entries: entries.collect(),
            next_token,
        })
    }

    pub(super) async fn get_volume(&self, volume_id: &str) -> Result<ControllerGetVolumeResponse> {
        use controller_get_volume_response::VolumeStatus;
        let text = names::required("volume_id", volume_id)?;
        let (_, target, volume) = self.targets.existing_volume(text).await?;
        Ok(ControllerGetVolumeResponse {
            volume: Some(describe(target, &volume)),
            status: Some(VolumeStatus {
                volume_condition: Some(condition(&volume)),
                published_node_ids: volume.hosts,
            }),
        })
    }

    pub(super) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse> {
        let text = names::required("volume_id", &request.volume_id)?;
        let range = request.capacity_range.as_ref();
        if range.is_none() {
            return Err(Status::invalid_argument("capacity_range is missing"));
        }
        if request.volume_capability.is_some() {
            Access::new(request.volume_capability.as_ref())?;
        }
        let id = Id::existing("volume", text)?;
        let _held = self.lock_volume(&id.name).await;
        let (id, target, volume) = self.targets.existing_volume(text).await?;
        let size_bytes = size::choose(range, volume.size_bytes, volume.size_bytes)?;
        let capacity_bytes = match size_bytes > volume.size_bytes {
            false => volume.size_bytes,
            true => {
                self.check_size(&id, size_bytes).await?;
                let params = ResizeVolume {
                    pool: id.pool,
                    name: id.name,
                    size_bytes,
                };
                let grown = target.call(&params).await;
                grown.map_err(|error| of_target(&error))?.size_bytes
            }
        };
        Ok(ControllerExpandVolumeResponse {
            capacity_bytes: signed(capacity_bytes),
            // Also for a raw device: the node waits until it has the new size there.
            node_expansion_required: true,
        })
    }
}

/// From where the volumes of a target can be reached; empty for everywhere.
fn topology(target: &Target) -> Vec<Topology> {
    let segments: HashMap<_, _> = target.about().topology.clone().into_iter().collect();
    match segments.is_empty() {
        true => Vec::new(),
        false => vec![Topology { segments }],
    }
}

/// A volume in the interface's words.
fn describe(target: &Target, volume: &PoolVolume) -> Volume {
    let mut volume_context = Context::new();
    for (label, name) in [(LABEL_FS, FS_TYPE), (LABEL_MKFS_OPTIONS, MKFS_OPTIONS)] {
        if let Some(value) = volume.labels.get(label).filter(|value| !value.is_empty()) {
            volume_context.insert(name.to_owned(), value.clone());
        }
    }
    let content_source = volume.source.as_ref().map(|source| {
        let id = |name: &str| target.id(&volume.pool, name).to_string();
        VolumeContentSource {
            r#type: Some(match source {
                Source::Volume(name) => volume_content_source::Type::Volume(VolumeSource {
                    volume_id: id(name),
                }),
                Source::Snapshot(name) => volume_content_source::Type::Snapshot(SnapshotSource {
                    snapshot_id: id(name),
                }),
            }),
        }
    });
    Volume {
        capacity_bytes: signed(volume.size_bytes),
        volume_id: target.id(&volume.pool, &volume.name).to_string(),
        volume_context,
        content_source,
        accessible_topology: topology(target),
    }
}

/// What a volume is made from.
struct Origin {
    id: Id,
    what: Source,
    size_bytes: u64,
    fs: Option<String>,
}

/// The file system of a new volume: what capabilities say, else its source's, else the StorageClass', else ext4; none for a
/// volume that is only ever a raw device.
fn file_system(
    accesses: &[Access],
    parameters: &Parameters,
    source: Option<&Origin>,
) -> Result<Option<FsKind>> {
    if accesses.iter().all(Access::is_block) {
        return Ok(None);
    }
    let mut asked: Vec<_> = accesses.iter().filter_map(Access::fs).collect();
    asked.dedup();
    let inherited = source
        .and_then(|source| source.fs.as_ref())
        .and_then(|fs| fs.parse().ok());
    match (asked.as_slice(), inherited) {
        ([_, _, ..], _) => Err(Status::invalid_argument(
            "volume_capabilities name more than one file system",
        )),
        ([asked], Some(inherited)) if *asked != inherited => Err(Status::invalid_argument(
            format!("the source holds {inherited}: a clone cannot be {asked}"),
        )),
        ([asked], _) => Ok(Some(*asked)),
        ([], Some(inherited)) => Ok(Some(inherited)),
        ([], None) => Ok(Some(parameters.fs.unwrap_or(FsKind::Ext4))),
    }
}

/// A volume that the target lists is served.
fn condition(volume: &PoolVolume) -> VolumeCondition {
    match volume.listeners.is_empty() {
        true => VolumeCondition {
            abnormal: true,
            message: "the target has no listener: no node can reach the volume".to_owned(),
        },
        false => VolumeCondition {
            abnormal: false,
            message: "served".to_owned(),
        },
    }
}
