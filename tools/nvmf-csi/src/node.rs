//! Devices and mounts, on the initiator's daemon.
//!
//! ```text
//!  NodeStage: record ─► attach ─► (mkfs once, fsck) ─► mount on the staging path
//!  NodePublish: bind mount of the staging path, or of the device, on the target path
//! ```
//!
//! The device belongs to the daemon, the mounts to the kernel: neither ends with this process. Each call holds the volume's lock,
//! looks at what is there, and does what is missing.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nvmf_initiator::options::ConnectOptions;
use nvmf_volume::mount::{self, device_number};
use nvmf_volume::mountinfo::{self, Mount, mount_at};
use nvmf_volume::stage::grow_if_larger;
use nvmf_volume::{
    AttachSpec, Attached, Claim, FsKind, FsSpec, HostIdentity, Node, VolumeLock, stats,
};
use tonic::{Request, Response, Status};

use crate::access::{Access, AccessKind};
use crate::attributes::{FS_TYPE, Location, MKFS_OPTIONS};
use crate::locks::Locks;
use crate::names;
use crate::proto::node_server;
use crate::proto::node_service_capability::{Rpc, Type, rpc};
use crate::proto::volume_capability::access_mode::Mode;
use crate::proto::volume_usage::Unit;
use crate::proto::*;
use crate::records::{Record, Records};
use crate::size::signed;
use crate::status::of_node;

/// How long an attach may take; kubelet gives a call up after two minutes.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
/// The longest path of this interface that the kernel would take.
const MAX_PATH_BYTES: usize = 4095;
/// Says in a volume's context that the volume is to live and die with its pod.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// How this node works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// As whom it connects; HOSTNQN is its identifier.
    pub host: HostIdentity,
    /// How.
    pub connect: ConnectOptions,
    /// The form of devices.
    pub block: String,
    /// For records; emptied by a reboot.
    pub run_dir: PathBuf,
    /// Where it is.
    pub topology: BTreeMap<String, String>,
    /// The most volumes that it takes; 0 leaves it to the orchestrator.
    pub max_volumes: i64,
}

/// The service.
#[derive(Debug, Clone)]
pub struct NodeService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    node: Node,
    records: Records,
    locks: Locks,
}

const CAPABILITIES: [rpc::Type; 5] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
];

type Answer<T> = Result<Response<T>, Status>;

impl NodeService {
    /// On this node.
    pub fn new(settings: Settings, node: Node) -> NodeService {
        NodeService(Arc::new(Inner {
            records: Records::new(settings.run_dir.join("csi")),
            settings,
            node,
            locks: Locks::default(),
        }))
    }

    /// Does what blocks on a thread of its own, one thing at a time for each volume.
    async fn on_volume<T: Send + 'static>(
        &self,
        volume_id: &str,
        work: impl FnOnce(&Inner) -> crate::Result<T> + Send + 'static,
    ) -> Answer<T> {
        let held = self.0.locks.hold(volume_id).await;
        let inner = self.0.clone();
        // Also when the caller gives up: the lock stays until the work is done.
        let done = tokio::task::spawn_blocking(move || {
            let _held = held;
            work(&inner)
        });
        match done.await {
            Ok(result) => result.map(Response::new),
            Err(error) => Err(Status::internal(format!("a bug in nvmf-csi: {error}"))),
        }
    }
}

fn path(field: &str, text: &str) -> crate::Result<PathBuf> {
    let path = PathBuf::from(names::bounded(field, text, MAX_PATH_BYTES)?);
    match path.is_absolute() {
        true => Ok(path),
        false => Err(Status::invalid_argument(format!(
            "{field} {text} is not absolute"
        ))),
    }
}

fn node_error(error: nvmf_volume::Error) -> Status {
    of_node(&error)
}

fn record_error(error: io::Error) -> Status {
    Status::internal(format!("record of a staged volume: {error}"))
}

impl Inner {
    fn record(&self, volume_id: &str) -> crate::Result<Option<Record>> {
        self.records.get(volume_id).map_err(record_error)
    }

    fn staged(&self, volume_id: &str) -> crate::Result<Record> {
        self.record(volume_id)?.ok_or_else(|| {
            Status::failed_precondition(format!("volume {volume_id} is not staged on this node"))
        })
    }

    fn attach(
        &self,
        lock: &VolumeLock,
        record: &Record,
        min_size_bytes: u64,
    ) -> crate::Result<Attached> {
        let spec = AttachSpec {
            address: record.location.address.clone(),
            subnqn: record.location.subnqn.clone(),
            host: record.location.host(&self.settings.host),
            namespace: record.location.selector(),
            options: self.settings.connect.clone(),
            block: self.settings.block.clone(),
            owner: owner(&record.volume_id),
            min_size_bytes,
            limit: ATTACH_LIMIT,
        };
        self.node.attach(lock, &spec).map_err(node_error)
    }

    fn stage(
        &self,
        request: NodeStageVolumeRequest,
        access: Access,
        staging: PathBuf,
    ) -> crate::Result<NodeStageVolumeResponse> {
        let location = Location::read(&request.volume_context, &request.publish_context)?;
        let said = |name: &str| {
            request
                .volume_context
                .get(name)
                .map(String::as_str)
                .unwrap_or_default()
        };
        let fs = match &access.kind {
            AccessKind::Block => None,
            AccessKind::Mount { fs: Some(fs), .. } => Some(*fs),
            AccessKind::Mount { fs: None, .. } => Some(match said(FS_TYPE) {
                "" => FsKind::Ext4,
                name => name.parse().map_err(|error| {
                    Status::invalid_argument(format!("volume_context {FS_TYPE}: {error}"))
                })?,
            }),
        };
        let record = Record {
            volume_id: request.volume_id.clone(),
            hostnqn: location.host(&self.settings.host).hostnqn,
            location,
            fs: fs.map(|fs| fs.to_string()),
            staging: staging.clone(),
        };
        if let Some(before) = self.record(&request.volume_id)?
            && (&before.staging, &before.fs) != (&record.staging, &record.fs)
        {
            return Err(Status::already_exists(format!(
                "volume {} is staged on {} as {}",
                before.volume_id,
                before.staging.display(),
                before.fs.as_deref().unwrap_or("a raw device")
            )));
        }
        let lock = self
            .node
            .lock(&record.location.subnqn)
            .map_err(node_error)?;
        self.records.put(&record).map_err(record_error)?;
        let attached = self.attach(&lock, &record, 0)?;
        if let (Some(kind), AccessKind::Mount { flags, .. }) = (fs, access.kind.clone()) {
            let spec = FsSpec {
                kind,
                mkfs_options: said(MKFS_OPTIONS)
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
                mount_options: flags,
                read_only: access.is_read_only(),
            };
            nvmf_volume::stage(&lock, &attached, &spec, &staging).map_err(node_error)?;
        }
        Ok(NodeStageVolumeResponse {})
    }

    fn unstage(&self, volume_id: &str, staging: &Path) -> crate::Result<NodeUnstageVolumeResponse> {
        let Some(record) = self.record(volume_id)? else {
            return Ok(NodeUnstageVolumeResponse {});
        };
        if record.staging != staging {
            return Err(Status::invalid_argument(format!(
                "volume {volume_id} is staged on {}, not on {}",
                record.staging.display(),
                staging.display()
            )));
        }
        let lock = self
            .node
            .lock(&record.location.subnqn)
            .map_err(node_error)?;
        if record.fs.is_some() {
            // The folder is the caller's.
            mount::unmount(staging).map_err(node_error)?;
        }
        let claim = Claim {
            owner: owner(volume_id),
            address: record.location.address.clone(),
            subnqn: record.location.subnqn.clone(),
            hostnqn: record.hostnqn.clone(),
        };
        self.node.detach(&lock, &claim).map_err(node_error)?;
        self.records.remove(volume_id).map_err(record_error)?;
        Ok(NodeUnstageVolumeResponse {})
    }

    fn publish(
        &self,
        request: &NodePublishVolumeRequest,
        access: &Access,
        target: &Path,
    ) -> crate::Result<NodePublishVolumeResponse> {
        let record = self.staged(&request.volume_id)?;
        let read_only = request.readonly || access.is_read_only();
        if access.is_block() != record.fs.is_none() {
            return Err(Status::already_exists(format!(
                "volume {} is staged as {}",
                record.volume_id,
                record.fs.as_deref().unwrap_or("a raw device")
            )));
        }
        let lock = self
            .node
            .lock(&record.location.subnqn)
            .map_err(node_error)?;
        let source = match access.is_block() {
            true => {
                let attached = self.attach(&lock, &record, 0)?;
                if read_only && !attached.read_only {
                    return Err(Status::invalid_argument(
                        "a raw device cannot be published read-only: whoever has it open can write; use a read-only volume",
                    ));
                }
                attached.device
            }
            false => record.staging.clone(),
        };
        let published = published(&source, access.is_block())?;
        if published.is_empty() && !access.is_block() {
            return Err(Status::failed_precondition(format!(
                "nothing is mounted on {}: stage the volume first",
                source.display()
            )));
        }
        if access.mode == Mode::SingleNodeSingleWriter
            && let Some(other) = published
                .iter()
                .find(|mount| mount.at != target && mount.at != source)
        {
            return Err(Status::failed_precondition(format!(
                "volume {} is published on {}, and SINGLE_NODE_SINGLE_WRITER allows one path",
                record.volume_id,
                other.at.display()
            )));
        }
        mount::bind(&source, target, read_only && !access.is_block()).map_err(node_error)?;
        Ok(NodePublishVolumeResponse {})
    }

    fn stats(&self, record: &Record, at: &Path) -> crate::Result<NodeGetVolumeStatsResponse> {
        let mount = mount_at(at)
            .map_err(node_error)?
            .ok_or_else(|| Status::not_found(format!("nothing is mounted on {}", at.display())))?;
        let condition = |message: Option<String>| {
            Some(VolumeCondition {
                abnormal: message.is_some(),
                message: message.unwrap_or_else(|| "in order".to_owned()),
            })
        };
        let Some(_) = record.fs else {
            let lock = self
                .node
                .lock(&record.location.subnqn)
                .map_err(node_error)?;
            let attached = self.attach(&lock, record, 0)?;
            let usage = VolumeUsage {
                total: signed(attached.size_bytes),
                unit: Unit::Bytes.into(),
                ..VolumeUsage::default()
            };
            return Ok(NodeGetVolumeStatsResponse {
                usage: vec![usage],
                volume_condition: condition(None),
            });
        };
        let stats = match stats::stats(at) {
            Ok(stats) => stats,
            Err(error) => {
                return Ok(NodeGetVolumeStatsResponse {
                    usage: Vec::new(),
                    volume_condition: condition(Some(error.to_string())),
                });
            }
        };
        let mut usage = vec![VolumeUsage {
            available: signed(stats.available_bytes),
            total: signed(stats.total_bytes),
            used: signed(stats.used_bytes),
            unit: Unit::Bytes.into(),
        }];
        if stats.total_inodes > 0 {
            usage.push(VolumeUsage {
                available: signed(stats.free_inodes),
                total: signed(stats.total_inodes),
                used: signed(stats.total_inodes.saturating_sub(stats.free_inodes)),
                unit: Unit::Inodes.into(),
            });
        }
        // The mount says what was asked for, the file system what it came to.
        let gone = mount.fs_read_only && !mount.read_only;
        let message = gone.then(|| {
            "the file system became read-only: the kernel's log says which error it met".to_owned()
        });
        Ok(NodeGetVolumeStatsResponse {
            usage,
            volume_condition: condition(message),
        })
    }

    fn expand(
        &self,
        record: &Record,
        at: &Path,
        required_bytes: u64,
    ) -> crate::Result<NodeExpandVolumeResponse> {
        let mount = mount_at(at).map_err(node_error)?;
        if mount.is_none() && at != record.staging {
            return Err(Status::not_found(format!(
                "nothing is mounted on {}",
                at.display()
            )));
        }
        let lock = self
            .node
            .lock(&record.location.subnqn)
            .map_err(node_error)?;
        let attached = self.attach(&lock, record, required_bytes)?;
        if record.fs().is_some() {
            grow_if_larger(&lock, &attached, &record.staging).map_err(node_error)?;
        }
        Ok(NodeExpandVolumeResponse {
            capacity_bytes: signed(attached.size_bytes),
        })
    }
}

/// Where a staged volume is mounted: its file system wherever that is, a raw device wherever its node is bound to.
fn published(source: &Path, is_block: bool) -> crate::Result<Vec<Mount>> {
    if is_block {
        // A bound device node is a part of /dev with its name.
        let number = device_number(source).map_err(node_error)?;
        let is_it = |mount: &Mount| {
            mount.root != Path::new("/")
                && device_number(&mount.at).is_ok_and(|other| other == number)
        };
        let mounts = mountinfo::mounts().map_err(node_error)?;
        return Ok(mounts.into_iter().filter(is_it).collect());
    }
    match mount_at(source).map_err(node_error)? {
        Some(mount) => mountinfo::mounts_of(mount.device).map_err(node_error),
        None => Ok(Vec::new()),
    }
}

/// The claim of a volume; no other program's has this form.
fn owner(volume_id: &str) -> String {
    format!("csi/{volume_id}")
}

#[tonic::async_trait]
impl node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        let request = request.into_inner();
        let volume_id = names::required("volume_id", &request.volume_id)?.to_owned();
        let staging = path("staging_target_path", &request.staging_target_path)?;
        let access = Access::new(request.volume_capability.as_ref())?;
        self.on_volume(&volume_id, move |inner| {
            inner.stage(request, access, staging)
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        let volume_id = names::required("volume_id", &request.volume_id)?.to_owned();
        let staging = path("staging_target_path", &request.staging_target_path)?;
        self.on_volume(&request.volume_id, move |inner| {
            inner.unstage(&volume_id, &staging)
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        let volume_id = names::required("volume_id", &request.volume_id)?.to_owned();
        path("staging_target_path", &request.staging_target_path)?;
        let target = path("target_path", &request.target_path)?;
        let access = Access::new(request.volume_capability.as_ref())?;
        if request
            .volume_context
            .get(EPHEMERAL)
            .is_some_and(|value| value == "true")
        {
            return Err(Status::invalid_argument(
                "inline ephemeral volumes are not supported: use a generic ephemeral volume (volumeClaimTemplate)",
            ));
        }
        self.on_volume(&volume_id, move |inner| {
            inner.publish(&request, &access, &target)
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let volume_id = names::required("volume_id", &request.volume_id)?.to_owned();
        let target = path("target_path", &request.target_path)?;
        self.on_volume(&volume_id, move |_| {
            mount::unmount_and_remove(&target).map_err(node_error)?;
            Ok(NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let volume_id = names::required("volume_id", &request.volume_id)?.to_owned();
        let at = path("volume_path", &request.volume_path)?;
        self.on_volume(&request.volume_id, move |inner| {
            let record = inner.record(&volume_id)?.ok_or_else(|| {
                Status::not_found(format!("volume {volume_id} is not on this node"))
            })?;
            inner.stats(&record, &at)
        })
        .await
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let volume_id = names::required("volume_id", &request.volume_id)?.to_owned();
        let at = path("volume_path", &request.volume_path)?;
        let required = request
            .capacity_range
            .map_or(0, |range| range.required_bytes);
        let required = u64::try_from(required)
            .map_err(|_| Status::invalid_argument("capacity_range.required_bytes is negative"))?;
        self.on_volume(&request.volume_id, move |inner| {
            let record = inner.record(&volume_id)?.ok_or_else(|| {
                Status::not_found(format!("volume {volume_id} is not on this node"))
            })?;
            inner.expand(&record, &at, required)
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let capability = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: kind.into(),
            })),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: CAPABILITIES.map(capability).to_vec(),
        }))
    }

    async fn node_get_info(
        &self,
        _request: Request<NodeGetInfoRequest>,
    ) -> Answer<NodeGetInfoResponse> {
        let settings = &self.0.settings;
        let segments = settings.topology.clone().into_iter().collect();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: settings.host.hostnqn.clone(),
            max_volumes_per_node: settings.max_volumes,
            accessible_topology: (!settings.topology.is_empty()).then_some(Topology { segments }),
        }))
    }
}
