//! Opening the pools of a configuration, and serving what is in them.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::super::config::PoolConfig;
use super::super::error::PoolError;
use super::super::record::VolumeRecord;
use super::super::store::Pool;
use super::subsystem::{common_hosts, namespace_of, subsystem_of};
use super::{Failure, Pools, blocking};
use crate::config::SubsystemConfig;
use crate::control::live::Owner;
use crate::control::ports::Ports;
use crate::control::target::Target;

impl Pools {
    /// Opens all pools, waiting up to `patience` for each that a process that was killed still has.
    pub async fn open(configs: Vec<PoolConfig>, patience: Duration) -> Result<Self, PoolError> {
        let mut pools = Pools::default();
        for config in configs {
            let name = config.name.clone();
            let opened = blocking(move || Pool::open(config, patience)).await;
            let (pool, _) = opened.map_err(|failure| match failure {
                Failure::Pool(error) => error,
                other => PoolError::Invalid(other.to_string()),
            })?;
            pools.pools.insert(name, pool);
        }
        Ok(pools)
    }

    /// Serves every volume. One that cannot be served is named in the log and does not keep the others back.
    pub async fn serve_all(&self, target: &Rc<Target>, patience: Duration) {
        for config in self.subsystems() {
            if target.find(&config.nqn).is_some() {
                tracing::error!(subsystem = %config.nqn,
                    "volumes of a pool are not served: the configuration has another subsystem of this name; rename that");
                continue;
            }
            match target.prepare(&config, patience) {
                Ok(subsystem) => drop(target.add(subsystem, Owner::Pool, Ports::Declared).await),
                Err(error) => tracing::error!("a volume is not served: {error}"),
            }
        }
    }

    /// The subsystems of all volumes.
    fn subsystems(&self) -> Vec<SubsystemConfig> {
        let mut by_nqn: BTreeMap<String, Vec<(String, VolumeRecord)>> = BTreeMap::new();
        for (name, pool) in &self.pools {
            for volume in pool.volumes() {
                let members = by_nqn.entry(volume.nqn.clone()).or_default();
                members.push((name.clone(), volume));
            }
        }
        let configs = by_nqn.into_values().filter_map(|members| {
            let first = &members[0].1;
            let namespaces = members
                .iter()
                .map(|(pool, volume)| namespace_of(&self.pools[pool], volume));
            let config = subsystem_of(first, &common_hosts(&members), namespaces.collect());
            config
                .inspect_err(|error| {
                    tracing::error!(volume = first.name, "not served: {error}");
                })
                .ok()
        });
        configs.collect()
    }
}
