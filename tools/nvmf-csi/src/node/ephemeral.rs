//! Volumes that are written into a pod's own description: made when the pod starts on this node, removed when it ends.
//!
//! ```text
//!  NodePublish: volume in the pool, granted to this node ─► attach ─► mkfs ─► mount on the target path
//!  NodeUnpublish: unmount ─► detach ─► fence ─► volume removed
//! ```
//!
//! Nothing is written down on the node. The volume's name follows from the node's and the identifier that the orchestrator gave,
//! and its labels say whose it is: so what a crash or a reboot leaves is found in the pool by the next call with that identifier.

use std::path::Path;

use nvmf_rpc::error::code;
use nvmf_rpc::types::{
    CreateVolume, DeleteVolume, Labels, Method, RemoveHost, Volume as PoolVolume,
};
use nvmf_volume::mountinfo::mount_at;
use nvmf_volume::{Claim, FsKind, FsSpec, NamespaceSelector, mount};
use tokio::runtime::Handle;
use tonic::Status;

use super::{ATTACH_LIMIT, Inner, node_error};
use crate::Result;
use crate::access::{Access, AccessKind};
use crate::attributes::{self, Context, Location};
use crate::controller::Targets;
use crate::controller::parameters::{self, Parameters};
use crate::controller::placement::Scope;
use crate::controller::target::{LABEL_FS, Target, TargetError};
use crate::names;
use crate::proto::*;
use crate::size;
use crate::status::of_target;

/// Says in a volume's context that the volume is to live and die with its pod.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Attribute: the volume's size.
const SIZE: &str = "size";
/// Label: the node that the volume belongs to.
const LABEL_NODE: &str = "nvmf-csi.ephemeral-on";
/// Label: the identifier that the orchestrator gave.
const LABEL_ID: &str = "nvmf-csi.ephemeral-id";

/// How such volumes are made.
#[derive(Debug, Clone)]
pub struct Ephemeral {
    /// On which targets.
    pub targets: Targets,
    /// The pool of volumes that name none; otherwise that with the most room.
    pub pool: Option<String>,
    /// Size of volumes that name none, in bytes.
    pub size_bytes: u64,
}

/// Whether this context is that of such a volume.
pub(super) fn is(volume_context: &Context) -> bool {
    volume_context
        .get(EPHEMERAL)
        .is_some_and(|value| value == "true")
}

/// What a pod's description may say: what a StorageClass may, and a size.
fn read(context: &Context) -> Result<(Parameters, Option<u64>)> {
    let mut context = context.clone();
    let size = context.remove(SIZE).map(|text| {
        size::quantity(&text).ok_or_else(|| {
            Status::invalid_argument(format!(
                "volume attribute {SIZE}: '{text}' is no size, such as 10Gi"
            ))
        })
    });
    Ok((parameters::read(&context)?, size.transpose()?))
}

impl Inner {
    /// Calls the target from the thread that does a call's work.
    fn ask<M: Method>(
        &self,
        target: &Target,
        params: &M,
    ) -> std::result::Result<M::Result, TargetError> {
        Handle::current().block_on(target.call(params))
    }

    /// The pool's name for the volume.
    fn name_of_ephemeral(&self, volume_id: &str) -> String {
        names::hashed(&format!(
            "ephemeral\0{}\0{volume_id}",
            self.settings.host.hostnqn
        ))
    }

    /// The volume, in whichever pool of whichever target it was made.
    fn find_ephemeral(
        &self,
        targets: &Targets,
        scope: &Scope,
        volume_id: &str,
    ) -> Result<Option<(Target, PoolVolume)>> {
        let is_ours = |volume: &PoolVolume| {
            volume.labels.get(LABEL_NODE) == Some(&self.settings.host.hostnqn)
                && volume
                    .labels
                    .get(LABEL_ID)
                    .is_some_and(|id| id == volume_id)
        };
        let name = self.name_of_ephemeral(volume_id);
        Handle::current().block_on(targets.find(scope, &name, is_ours))
    }

    /// Where a new one may be: reachable from here.
    fn scope_of_ephemeral(&self, settings: &Ephemeral, parameters: &Parameters) -> Result<Scope> {
        let segments = self.settings.topology.clone().into_iter().collect();
        let here = TopologyRequirement {
            requisite: vec![Topology { segments }],
            preferred: Vec::new(),
        };
        let pool = parameters.pool.clone().or_else(|| settings.pool.clone());
        let target = parameters.target.as_deref();
        settings.targets.scope(target, pool, Some(&here))
    }

    pub(super) fn publish_ephemeral(
        &self,
        request: &NodePublishVolumeRequest,
        access: &Access,
        at: &Path,
    ) -> Result<NodePublishVolumeResponse> {
        let settings = self.settings.ephemeral.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "inline ephemeral volumes need the target's management API on the node: start nvmf-csi there with --rpc SOCKET, or \
                 use a generic ephemeral volume (volumeClaimTemplate)",
            )
        })?;
        let AccessKind::Mount { fs, flags } = &access.kind else {
            return Err(Status::invalid_argument(
                "an inline ephemeral volume is a file system, not a raw device",
            ));
        };
        if access.is_shared() {
            return Err(Status::invalid_argument(
                "an inline ephemeral volume belongs to one pod: no other node can have it",
            ));
        }
        let volume_id = &request.volume_id;
        let (parameters, size_bytes) = read(&request.volume_context)?;
        let fs = fs.or(parameters.fs).unwrap_or(FsKind::Ext4);
        let scope = self.scope_of_ephemeral(settings, &parameters)?;
        let found = self.find_ephemeral(&settings.targets, &scope, volume_id)?;
        let is_new = found.is_none();
        let (target, volume) = match found {
            Some(found) => found,
            None => {
                let size_bytes = size_bytes.unwrap_or(settings.size_bytes);
                let range = CapacityRange {
                    required_bytes: size::signed(size_bytes),
                    limit_bytes: 0,
                };
                let size_bytes = size::choose(Some(&range), size_bytes, fs.min_bytes())?;
                let place = settings.targets.place(&scope, size_bytes);
                let (target, pool) = Handle::current().block_on(place)?;
                let volume =
                    self.make_ephemeral(&target, pool, volume_id, &parameters, fs, size_bytes)?;
                (target, volume)
            }
        };
        let has_fs = volume.labels.get(LABEL_FS).map(String::as_str);
        if has_fs != Some(fs.name()) || size_bytes.is_some_and(|size| size > volume.size_bytes) {
            return Err(Status::already_exists(format!(
                "ephemeral volume {volume_id} has {} bytes and {}: unpublish it first",
                volume.size_bytes,
                has_fs.unwrap_or("no file system")
            )));
        }
        let spec = FsSpec {
            mkfs_options: parameters
                .mkfs_options
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            mount_options: flags.clone(),
            ..FsSpec::new(fs)
        };
        let read_only = request.readonly || access.is_read_only();
        let mounted = self.mount_ephemeral(&target, volume_id, &volume, &spec, at, read_only);
        if let Err(status) = mounted {
            // An orchestrator that takes the refusal for final never unpublishes. One that was there before may be in use.
            if is_new && let Err(status) = self.give_up_ephemeral(settings, volume_id, at) {
                tracing::warn!(volume_id, %status, "an ephemeral volume that could not be published is left in its pool");
            }
            return Err(status);
        }
        Ok(NodePublishVolumeResponse {})
    }

    fn make_ephemeral(
        &self,
        target: &Target,
        pool: String,
        volume_id: &str,
        parameters: &Parameters,
        fs: FsKind,
        size_bytes: u64,
    ) -> Result<PoolVolume> {
        let hostnqn = &self.settings.host.hostnqn;
        let mut labels = Labels::from([
            (LABEL_NODE.to_owned(), hostnqn.clone()),
            (LABEL_ID.to_owned(), volume_id.to_owned()),
            (LABEL_FS.to_owned(), fs.to_string()),
        ]);
        parameters.label(&mut labels);
        let params = CreateVolume {
            pool,
            name: self.name_of_ephemeral(volume_id),
            size_bytes: Some(size_bytes),
            block_size: parameters.block_size,
            provisioning: parameters.provisioning,
            hosts: vec![hostnqn.clone()],
            labels,
            ..CreateVolume::default()
        };
        self.ask(target, &params).map_err(|error| of_target(&error))
    }

    fn mount_ephemeral(
        &self,
        target: &Target,
        volume_id: &str,
        volume: &PoolVolume,
        spec: &FsSpec,
        at: &Path,
        read_only: bool,
    ) -> Result<()> {
        let published = attributes::publish(volume, target.about().traddr.as_deref())?;
        let location = Location::read(&Context::new(), &published)?;
        let lock = self.lock(&location)?;
        let attached = self.attach(&lock, volume_id, &location, 0, ATTACH_LIMIT)?;
        nvmf_volume::stage(&lock, &attached, spec, at).map_err(node_error)?;
        mount::set_read_only(at, read_only).map_err(node_error)
    }

    /// Takes away what [`Inner::publish_ephemeral`] made, however far it came; also what is no such volume is unmounted.
    pub(super) fn unpublish_ephemeral(&self, volume_id: &str, at: &Path) -> Result<()> {
        mount::unmount_and_remove(at).map_err(node_error)?;
        match &self.settings.ephemeral {
            // Identifiers of volumes that are staged have a pool in them.
            Some(settings) if volume_id.parse::<names::Id>().is_err() => {
                let claim = self.claim_of(volume_id)?;
                self.remove_ephemeral(settings, volume_id, claim.as_ref())
            }
            _ => Ok(()),
        }
    }

    /// The same after a failure, when something else may be mounted there.
    fn give_up_ephemeral(&self, settings: &Ephemeral, volume_id: &str, at: &Path) -> Result<()> {
        let claim = self.claim_of(volume_id)?;
        if let Some(claim) = &claim {
            let seen = self
                .node
                .look(claim, NamespaceSelector::Only)
                .map_err(node_error)?;
            let device = seen.and_then(|seen| seen.device);
            let own = device.and_then(|device| mount::device_number(&device).ok());
            let there = mount_at(at).map_err(node_error)?;
            if there.is_some_and(|there| own == Some(there.device)) {
                mount::unmount_and_remove(at).map_err(node_error)?;
            }
        }
        self.remove_ephemeral(settings, volume_id, claim.as_ref())
    }

    fn remove_ephemeral(
        &self,
        settings: &Ephemeral,
        volume_id: &str,
        claim: Option<&Claim>,
    ) -> Result<()> {
        if let Some(claim) = claim {
            let lock = self.node.lock(&claim.subnqn).map_err(node_error)?;
            self.node.detach(&lock, claim).map_err(node_error)?;
        }
        let anywhere = settings.targets.everywhere();
        let found = self.find_ephemeral(&settings.targets, &anywhere, volume_id)?;
        let Some((target, volume)) = found else {
            return Ok(());
        };
        let (pool, name) = (volume.pool, volume.name);
        let fence = RemoveHost {
            pool: pool.clone(),
            name: name.clone(),
            host: self.settings.host.hostnqn.clone(),
        };
        let remove = DeleteVolume {
            pool,
            name,
            force: false,
        };
        let done = self
            .ask(&target, &fence)
            .and_then(|_| self.ask(&target, &remove));
        match done {
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(()),
            result => result.map(drop).map_err(|error| of_target(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_a_storage_class_and_a_size() {
        let context = |pairs: &[(&str, &str)]| -> Context {
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            pairs.iter().map(owned).collect()
        };
        let given = context(&[
            (EPHEMERAL, "true"),
            ("csi.storage.k8s.io/pod.name", "web"),
            ("size", "2Gi"),
            ("fsType", "xfs"),
        ]);
        assert!(is(&given));
        let (parameters, size_bytes) = read(&given).unwrap();
        assert_eq!(
            (parameters.fs, size_bytes),
            (Some(FsKind::Xfs), Some(2 << 30))
        );
        assert!(!is(&context(&[(EPHEMERAL, "false")])));
        for wrong in [("size", "2.5Gi"), ("sise", "1")] {
            assert!(read(&context(&[wrong])).is_err(), "{wrong:?}");
        }
    }
}
