//! From records to what the control thread serves.

use std::collections::BTreeSet;

use nvmf_rpc::RpcError;
use uuid::Uuid;

use super::super::record::VolumeRecord;
use super::super::store::Pool;
use super::{Failure, Pools};
use crate::backend::BackingSpec;
use crate::config::file::DEFAULT_MODEL;
use crate::config::nqn::{host_nqn, subsystem_nqn};
use crate::config::{NamespaceConfig, SubsystemConfig, limits};
use crate::model::{HostAccess, Nqn};

/// The namespace that a volume is.
pub(super) fn namespace_of(pool: &Pool, volume: &VolumeRecord) -> NamespaceConfig {
    NamespaceConfig {
        nsid: volume.nsid,
        storage: BackingSpec::File {
            path: pool.volume_path(&volume.name),
            size_bytes: None,
        },
        block_bytes: Some(volume.block_bytes),
        read_only: volume.read_only,
        uuid: Some(volume.id),
        nguid: Some(nguid_of(volume.id)),
        eui64: None,
    }
}

/// The NGUID of a volume: the bytes of its UUID.
pub(super) fn nguid_of(id: Uuid) -> [u8; 16] {
    *id.as_bytes()
}

/// The subsystem of a volume, with the namespaces given.
pub(super) fn subsystem_of(
    volume: &VolumeRecord,
    hosts: &BTreeSet<String>,
    namespaces: Vec<NamespaceConfig>,
) -> Result<SubsystemConfig, Failure> {
    Ok(SubsystemConfig {
        nqn: nqn_of(volume)?,
        // A shared subsystem has the serial number that goes with its NQN.
        serial: (!volume.shared).then(|| volume.serial.clone()),
        model: DEFAULT_MODEL.to_owned(),
        hosts: access(hosts)?,
        namespaces,
    })
}

/// The subsystem's NQN, which was checked when the volume was made.
pub(super) fn nqn_of(volume: &VolumeRecord) -> Result<Nqn, Failure> {
    parse_subsystem(&volume.nqn)
}

pub(super) fn parse_subsystem(nqn: &str) -> Result<Nqn, Failure> {
    Ok(subsystem_nqn(nqn).map_err(|error| RpcError::invalid(error.to_string()))?)
}

pub(super) fn parse_host(nqn: &str) -> Result<Nqn, Failure> {
    Ok(host_nqn(nqn).map_err(|error| RpcError::invalid(error.to_string()))?)
}

/// Only these hosts; none means nobody.
pub(super) fn access(hosts: &BTreeSet<String>) -> Result<HostAccess, Failure> {
    let names: Result<BTreeSet<Nqn>, Failure> = hosts.iter().map(|host| parse_host(host)).collect();
    Ok(HostAccess::Only(names?))
}

impl Pools {
    /// The volumes, of whatever pool, that are namespaces of a shared subsystem.
    pub(super) fn members(&self, nqn: &str) -> Vec<(String, VolumeRecord)> {
        let all = self.pools.values().flat_map(|pool| {
            let volumes = pool.volumes().into_iter();
            volumes.map(|volume| (pool.config().name.clone(), volume))
        });
        all.filter(|(_, volume)| volume.shared && volume.nqn == nqn)
            .collect()
    }
}

/// The lowest NSID that no member has.
pub(super) fn free_nsid(members: &[(String, VolumeRecord)]) -> Result<u32, Failure> {
    let taken: BTreeSet<u32> = members.iter().map(|(_, volume)| volume.nsid).collect();
    let mut all = limits::NSID.map(|nsid| nsid as u32);
    let free = all.find(|nsid| !taken.contains(nsid));
    Ok(free.ok_or_else(|| {
        RpcError::no_space(format!(
            "the subsystem has {} namespaces, which is all that one can have; use another",
            taken.len()
        ))
    })?)
}

/// The hosts of a shared subsystem: those that every member has. They differ only after a crash between two records, and then nobody was
/// told that a grant was made.
pub(super) fn common_hosts(members: &[(String, VolumeRecord)]) -> BTreeSet<String> {
    let mut sets = members.iter().map(|(_, volume)| volume.hosts.clone());
    let first = sets.next().unwrap_or_default();
    sets.fold(first, |common, hosts| &common & &hosts)
}
