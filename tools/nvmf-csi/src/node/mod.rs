//! Devices and mounts, on the initiator's daemon.
//!
//! | module | what it is |
//! |---|---|
//! | [`staged`] | NodeStage and NodePublish, and back |
//! | [`ephemeral`] | the same for volumes that live and die with their pod |
//! | [`health`] | how full and how well a volume is, and growing it |
//!
//! The device belongs to the daemon, the mounts to the kernel: neither ends with this process. Each call holds the volume's lock,
//! looks at what is there, and does what is missing.

mod ephemeral;
mod health;
mod staged;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nvmf_initiator::options::ConnectOptions;
use nvmf_volume::{HostIdentity, Node};
use tonic::{Request, Response, Status};

use crate::access::Access;
use crate::locks::Locks;
use crate::names;
use crate::proto::node_server;
use crate::proto::node_service_capability::{Rpc, Type, rpc};
use crate::proto::*;
use crate::records::Records;
use crate::secrets;
use crate::status::of_node;

pub use ephemeral::Ephemeral;

/// How long an attach may take; kubelet gives a call up after two minutes.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);
/// The longest path of this interface that the kernel would take.
const MAX_PATH_BYTES: usize = 4095;
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
    /// For volumes that live and die with their pod; `None` refuses them.
    pub ephemeral: Option<Ephemeral>,
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
        let access = Access::on_node(request.volume_capability.as_ref())?;
        secrets::none(&request.secrets)?;
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
        let target = path("target_path", &request.target_path)?;
        let access = Access::on_node(request.volume_capability.as_ref())?;
        secrets::none(&request.secrets)?;
        if ephemeral::is(&request.volume_context) {
            return self
                .on_volume(&volume_id, move |inner| {
                    inner.publish_ephemeral(&request, &access, &target)
                })
                .await;
        }
        if request.staging_target_path.is_empty() {
            return Err(Status::failed_precondition(
                "staging_target_path is missing: the volume must be staged first, and this says where it was",
            ));
        }
        path("staging_target_path", &request.staging_target_path)?;
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
        self.on_volume(&request.volume_id, move |inner| {
            inner.unpublish(&volume_id, &target)
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
            inner.stats(&volume_id, &at)
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
        secrets::none(&request.secrets)?;
        self.on_volume(&volume_id, move |inner| inner.expand(&request, &at))
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
