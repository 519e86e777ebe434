//! Volumes that are staged once on a node and published to each pod.
//!
//! ```text
//!  NodeStage: record ─► attach ─► (mkfs once, fsck) ─► mount on the staging path
//!  NodePublish: record ─► bind mount of the staging path, or of the device, on the target path
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use nvmf_volume::mount;
use nvmf_volume::mountinfo::mount_at;
use nvmf_volume::{AttachSpec, Attached, Claim, FsKind, FsSpec, VolumeLock};
use tonic::Status;

use super::{ATTACH_LIMIT, Inner, node_error, owner};
use crate::Result;
use crate::access::{Access, AccessKind};
use crate::attributes::{FS_TYPE, Location, MKFS_OPTIONS};
use crate::proto::volume_capability::access_mode::Mode;
use crate::proto::*;
use crate::records::{Published, Record};

impl Inner {
    pub(super) fn record(&self, volume_id: &str) -> Result<Option<Record>> {
        self.records.get(volume_id).map_err(node_error)
    }

    pub(super) fn put(&self, record: &Record) -> Result<()> {
        self.records.put(record).map_err(node_error)
    }

    /// What this driver claims of the initiator's daemon for a volume.
    pub(super) fn claim_of(&self, volume_id: &str) -> Result<Option<Claim>> {
        let mine = owner(volume_id);
        let claims = self.node.claims().map_err(node_error)?;
        Ok(claims.into_iter().find(|claim| claim.owner == mine))
    }

    /// Waits for the lock of what `location` names.
    pub(super) fn lock(&self, location: &Location) -> Result<VolumeLock> {
        self.node.lock(&location.subnqn).map_err(node_error)
    }

    pub(super) fn attach(
        &self,
        lock: &VolumeLock,
        volume_id: &str,
        location: &Location,
        min_size_bytes: u64,
        limit: Duration,
    ) -> Result<Attached> {
        let spec = AttachSpec {
            address: location.address.clone(),
            subnqn: location.subnqn.clone(),
            host: location.host(&self.settings.host),
            namespace: location.selector(),
            options: self.settings.connect.clone(),
            block: self.settings.block.clone(),
            owner: owner(volume_id),
            min_size_bytes,
            limit,
        };
        self.node.attach(lock, &spec).map_err(node_error)
    }

    pub(super) fn stage(
        &self,
        request: NodeStageVolumeRequest,
        access: Access,
        staging: PathBuf,
    ) -> Result<NodeStageVolumeResponse> {
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
        let before = self.record(&request.volume_id)?;
        let record = Record {
            volume_id: request.volume_id.clone(),
            hostnqn: location.host(&self.settings.host).hostnqn,
            location,
            fs: fs.map(|fs| fs.to_string()),
            staging: staging.clone(),
            published: before
                .as_ref()
                .map_or_else(Default::default, |before| before.published.clone()),
        };
        if let Some(before) = before
            && (&before.staging, &before.fs) != (&record.staging, &record.fs)
        {
            return Err(Status::already_exists(format!(
                "volume {} is staged on {} as {}",
                before.volume_id,
                before.staging.display(),
                before.what()
            )));
        }
        self.put(&record)?;
        let lock = self.lock(&record.location)?;
        let attached = self.attach(&lock, &record.volume_id, &record.location, 0, ATTACH_LIMIT)?;
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

    pub(super) fn unstage(
        &self,
        volume_id: &str,
        staging: &Path,
    ) -> Result<NodeUnstageVolumeResponse> {
        let done = NodeUnstageVolumeResponse {};
        let Some(record) = self.record(volume_id)? else {
            // A stage may have died before its record took its place.
            self.records.remove(volume_id).map_err(node_error)?;
            return Ok(done);
        };
        if record.staging != staging {
            // It is not staged there, which is what was asked for.
            return Ok(done);
        }
        let lock = self.lock(&record.location)?;
        if record.fs.is_some() {
            // The folder is the caller's.
            mount::unmount(staging).map_err(node_error)?;
        }
        self.node
            .detach(&lock, &record.claim())
            .map_err(node_error)?;
        self.records.remove(volume_id).map_err(node_error)?;
        Ok(done)
    }

    pub(super) fn publish(
        &self,
        request: &NodePublishVolumeRequest,
        access: &Access,
        target: &Path,
    ) -> Result<NodePublishVolumeResponse> {
        let volume_id = &request.volume_id;
        let mut record = self.record(volume_id)?.ok_or_else(|| {
            Status::failed_precondition(format!("volume {volume_id} is not staged on this node"))
        })?;
        if record.staging != Path::new(&request.staging_target_path) {
            return Err(Status::failed_precondition(format!(
                "volume {volume_id} is staged on {}, not on {}",
                record.staging.display(),
                request.staging_target_path
            )));
        }
        let wanted = Published {
            read_only: request.readonly || access.is_read_only(),
            block: access.is_block(),
            mode: access.mode.as_str_name().to_owned(),
        };
        let before = record.published.get(target);
        if let Some(before) = before.filter(|before| **before != wanted) {
            return Err(Status::already_exists(format!(
                "volume {volume_id} is published on {} as {before}, not as {wanted}",
                target.display()
            )));
        }
        if access.is_block() != record.fs.is_none() {
            return Err(Status::failed_precondition(format!(
                "volume {volume_id} is staged as {}",
                record.what()
            )));
        }
        if !allows_several_paths(access.mode) {
            self.is_only_path(&record, target, access.mode)?;
        }
        let lock = self.lock(&record.location)?;
        let source = match access.is_block() {
            true => {
                let location = &record.location;
                let attached = self.attach(&lock, volume_id, location, 0, ATTACH_LIMIT)?;
                if wanted.read_only && !attached.read_only {
                    return Err(Status::invalid_argument(
                        "a raw device cannot be published read-only: whoever has it open can write; use a read-only volume",
                    ));
                }
                attached.device
            }
            false => record.staging.clone(),
        };
        if !access.is_block() && mount_at(&source).map_err(node_error)?.is_none() {
            return Err(Status::failed_precondition(format!(
                "nothing is mounted on {}: stage the volume first",
                source.display()
            )));
        }
        let read_only = wanted.read_only && !access.is_block();
        if before.is_none() {
            record.published.insert(target.to_owned(), wanted);
            self.put(&record)?;
        }
        mount::bind(&source, target, read_only).map_err(node_error)?;
        Ok(NodePublishVolumeResponse {})
    }

    /// Refuses a second path. The record tells paths that were asked for from others with the same device or file system on
    /// them, as the orchestrator makes some of its own; the kernel tells whether they are still there.
    fn is_only_path(&self, record: &Record, target: &Path, mode: Mode) -> Result<()> {
        for other in record.published.keys().filter(|other| *other != target) {
            if mount_at(other).map_err(node_error)?.is_some() {
                return Err(Status::failed_precondition(format!(
                    "volume {} is published on {}, and {} allows one path",
                    record.volume_id,
                    other.display(),
                    mode.as_str_name()
                )));
            }
        }
        Ok(())
    }

    pub(super) fn unpublish(
        &self,
        volume_id: &str,
        target: &Path,
    ) -> Result<NodeUnpublishVolumeResponse> {
        let done = NodeUnpublishVolumeResponse {};
        let Some(mut record) = self.record(volume_id)? else {
            self.unpublish_ephemeral(volume_id, target)?;
            return Ok(done);
        };
        mount::unmount_and_remove(target).map_err(node_error)?;
        if record.published.remove(target).is_some() {
            self.put(&record)?;
        }
        Ok(done)
    }
}

/// Whether a volume may be published on more than one path of a node.
fn allows_several_paths(mode: Mode) -> bool {
    matches!(
        mode,
        Mode::SingleNodeMultiWriter | Mode::MultiNodeReaderOnly | Mode::MultiNodeMultiWriter
    )
}

impl Record {
    /// What the volume's manager claims.
    pub(super) fn claim(&self) -> Claim {
        Claim {
            owner: owner(&self.volume_id),
            address: self.location.address.clone(),
            subnqn: self.location.subnqn.clone(),
            hostnqn: self.hostnqn.clone(),
        }
    }

    /// As what it is staged.
    fn what(&self) -> &str {
        self.fs.as_deref().unwrap_or("a raw device")
    }
}
