//! Records and what is going on as the API tells them.

use std::rc::Rc;
use std::sync::Arc;

use nvmf_rpc::types;
use uuid::Uuid;

use super::super::error::PoolError;
use super::super::record::{SnapshotRecord, VolumeRecord};
use super::super::store::Pool;
use super::subsystem::{nguid_of, nqn_of};
use super::{Failure, Pools, blocking};
use crate::config::Address;
use crate::control::live::connected_hosts;
use crate::control::target::Target;

fn address(Address { carrier, socket }: Address) -> types::ListenAddress {
    let address = socket;
    types::ListenAddress {
        trtype: carrier.to_string().to_uppercase(),
        adrfam: if address.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        traddr: address.ip().to_string(),
        trsvcid: address.port().to_string(),
    }
}

fn hexadecimal(bytes: [u8; 16]) -> String {
    Uuid::from_bytes(bytes).simple().to_string()
}

/// Whether the volume is there and hosts can reach it: made, and not being removed.
pub(super) fn is_served(pool: &Pool, target: &Target, name: &str) -> bool {
    let nqn = pool.volume(name).ok().and_then(|it| nqn_of(&it).ok());
    nqn.is_some_and(|nqn| target.find(&nqn).is_some())
}

/// A pool, with how full it is. Blocks.
pub(super) fn pool(pool: &Pool) -> Result<types::Pool, PoolError> {
    let (config, usage) = (pool.config(), pool.usage()?);
    Ok(types::Pool {
        name: config.name.clone(),
        path: config.path.display().to_string(),
        fs_type: pool.file_system().type_name.clone(),
        reflink: pool.file_system().reflink,
        nqn_prefix: config.nqn_prefix.clone(),
        overcommit: config.overcommit,
        total_bytes: usage.space.total_bytes,
        free_bytes: usage.space.free_bytes,
        allocated_bytes: usage.allocated_bytes,
        provisioned_bytes: usage.provisioned_bytes,
        volumes: usage.volumes as u64,
        snapshots: usage.snapshots as u64,
    })
}

/// A snapshot. Blocks.
pub(super) fn snapshot(pool: &Pool, record: &SnapshotRecord) -> types::Snapshot {
    types::Snapshot {
        pool: pool.config().name.clone(),
        name: record.name.clone(),
        id: record.id.to_string(),
        volume: record.volume.clone(),
        size_bytes: record.size_bytes,
        allocated_bytes: pool.snapshot_allocated(&record.name),
        labels: record.labels.clone(),
        created: record.created.clone(),
        ready: true,
        group: record.group.map(|group| group.to_string()),
        pause_us: None,
        extents: None,
    }
}

impl Pools {
    /// Volumes of one pool.
    pub(super) async fn describe_all(
        &self,
        target: &Rc<Target>,
        pool: &Arc<Pool>,
        records: Vec<VolumeRecord>,
    ) -> Result<Vec<types::Volume>, Failure> {
        let asked = Arc::clone(pool);
        let sized = blocking(move || {
            let sized = records.into_iter().map(|record| {
                let allocated = asked.volume_allocated(&record.name);
                (record, allocated)
            });
            Ok(sized.collect::<Vec<_>>())
        })
        .await?;
        let addresses = target.listeners.addresses();
        let listeners: Vec<_> = addresses.into_iter().map(address).collect();
        let described = sized.into_iter().map(|(record, allocated_bytes)| {
            let served = nqn_of(&record).ok().and_then(|nqn| target.find(&nqn));
            let connected = served.map(|served| connected_hosts(&served));
            let connected = connected.unwrap_or_default();
            types::Volume {
                pool: pool.config().name.clone(),
                id: record.id.to_string(),
                size_bytes: record.size_bytes,
                allocated_bytes,
                block_size: record.block_bytes,
                nsid: record.nsid,
                uuid: record.id.to_string(),
                nguid: hexadecimal(nguid_of(record.id)),
                read_only: record.read_only,
                hosts: record.hosts.into_iter().collect(),
                connected_hosts: connected
                    .iter()
                    .map(|nqn| nqn.as_str().to_owned())
                    .collect(),
                source: record.source,
                labels: record.labels,
                created: record.created,
                listeners: listeners.clone(),
                name: record.name,
                nqn: record.nqn,
            }
        });
        Ok(described.collect())
    }

    /// One volume.
    pub(super) async fn describe(
        &self,
        target: &Rc<Target>,
        pool: &Arc<Pool>,
        record: VolumeRecord,
    ) -> Result<types::Volume, Failure> {
        let mut described = self.describe_all(target, pool, vec![record]).await?;
        Ok(described.remove(0))
    }
}
