//! How full and how well a volume is, and growing it.

use std::path::Path;
use std::time::Duration;

use nvmf_volume::mount::device_number;
use nvmf_volume::mountinfo::mount_at;
use nvmf_volume::stage::grow_if_larger;
use nvmf_volume::{Claim, NamespaceSelector, stats};
use tonic::Status;

use super::{ATTACH_LIMIT, Inner, node_error};
use crate::Result;
use crate::access::Access;
use crate::proto::volume_usage::Unit;
use crate::proto::*;
use crate::size::{self, signed};

/// How long a device may take to have the size that the controller gave its volume. Hosts are told at once.
const GROW_LIMIT: Duration = Duration::from_secs(20);

/// A volume that is on this node.
struct Known {
    claim: Claim,
    namespace: NamespaceSelector,
    is_raw: bool,
}

impl Inner {
    fn known(&self, volume_id: &str) -> Result<Known> {
        if let Some(record) = self.record(volume_id)? {
            return Ok(Known {
                claim: record.claim(),
                namespace: record.location.selector(),
                is_raw: record.fs.is_none(),
            });
        }
        // One that lives and dies with its pod has nothing but a claim, and a subsystem of its own.
        match self.claim_of(volume_id)? {
            Some(claim) => Ok(Known {
                claim,
                namespace: NamespaceSelector::Only,
                is_raw: false,
            }),
            None => Err(Status::not_found(format!(
                "volume {volume_id} is not on this node"
            ))),
        }
    }

    pub(super) fn stats(&self, volume_id: &str, at: &Path) -> Result<NodeGetVolumeStatsResponse> {
        let known = self.known(volume_id)?;
        let not_found = |why: &str| Status::not_found(format!("{}: {why}", at.display()));
        let mount = mount_at(at)
            .map_err(node_error)?
            .ok_or_else(|| not_found("nothing is mounted on it"))?;
        let seen = self
            .node
            .look(&known.claim, known.namespace)
            .map_err(node_error)?;
        let device = seen.as_ref().and_then(|seen| seen.device.as_ref());
        let own = device.and_then(|device| device_number(device).ok());
        let there = match known.is_raw {
            true => device_number(at).ok(),
            false => Some(mount.device),
        };
        if own.is_some() && own != there {
            return Err(not_found(&format!(
                "that is not where volume {volume_id} is"
            )));
        }
        let mut fault = match &seen {
            None => Some("the initiator's daemon does not have the volume any more".to_owned()),
            Some(seen) => seen.fault.as_ref().map(|fault| {
                format!("the association with the target: {fault}; I/O waits until it is back or given up")
            }),
        };
        let mut usage = Vec::new();
        if known.is_raw {
            usage.extend(seen.map(|seen| VolumeUsage {
                total: signed(seen.size_bytes),
                unit: Unit::Bytes.into(),
                ..VolumeUsage::default()
            }));
        } else {
            match stats::stats(at) {
                Ok(stats) => usage = filled(&stats),
                Err(error) => fault = fault.or(Some(error.to_string())),
            }
            // The mount says what was asked for, the file system what it came to.
            if mount.fs_read_only && !mount.read_only {
                fault = fault.or(Some(
                    "the file system became read-only: the kernel's log says which error it met"
                        .to_owned(),
                ));
            }
        }
        Ok(NodeGetVolumeStatsResponse {
            usage,
            volume_condition: Some(VolumeCondition {
                abnormal: fault.is_some(),
                message: fault.unwrap_or_else(|| "in order".to_owned()),
            }),
        })
    }

    pub(super) fn expand(
        &self,
        request: &NodeExpandVolumeRequest,
        at: &Path,
    ) -> Result<NodeExpandVolumeResponse> {
        let volume_id = &request.volume_id;
        let range = request.capacity_range.as_ref();
        let (required, limit) = size::bounds(range)?;
        let record = self.record(volume_id)?.ok_or_else(|| {
            Status::not_found(format!("volume {volume_id} is not staged on this node"))
        })?;
        if at != record.staging && mount_at(at).map_err(node_error)?.is_none() {
            return Err(Status::not_found(format!(
                "nothing is mounted on {}",
                at.display()
            )));
        }
        if request.volume_capability.is_some() {
            let access = Access::new(request.volume_capability.as_ref())?;
            if access.is_block() != record.fs.is_none() {
                return Err(Status::invalid_argument(format!(
                    "volume_capability: volume {volume_id} is not staged so"
                )));
            }
        }
        let lock = self.lock(&record.location)?;
        let attach = |min_size_bytes, limit| {
            self.attach(&lock, volume_id, &record.location, min_size_bytes, limit)
        };
        let mut attached = attach(0, ATTACH_LIMIT)?;
        let required = required.unwrap_or(0);
        if attached.size_bytes < required {
            // The controller may have grown it just now.
            attached = match attach(required, GROW_LIMIT) {
                Ok(attached) => attached,
                Err(_) => attach(0, ATTACH_LIMIT)?,
            };
        }
        let size_bytes = attached.size_bytes;
        if size_bytes < required || limit.is_some_and(|limit| size_bytes > limit) {
            return Err(Status::out_of_range(format!(
                "capacity_range: volume {volume_id} has {size_bytes} bytes here: the controller grows it, and it does not shrink"
            )));
        }
        if record.fs.is_some() {
            grow_if_larger(&lock, &attached, &record.staging).map_err(node_error)?;
        }
        Ok(NodeExpandVolumeResponse {
            capacity_bytes: signed(size_bytes),
        })
    }
}

/// A file system's bytes and inodes.
fn filled(stats: &stats::Stats) -> Vec<VolumeUsage> {
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
    usage
}
