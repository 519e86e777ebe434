//! Making, growing and removing volumes while hosts are connected.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use nvmf_rpc::{RpcError, types};
use uuid::Uuid;

use super::super::error::PoolError;
use super::super::record::{NewVolume, Source, VolumeRecord};
use super::super::store::Pool;
use super::locks::Key;
use super::subsystem::{
    common_hosts, free_nsid, namespace_of, nqn_of, parse_host, parse_subsystem, subsystem_of,
};
use super::{Failure, Pools, blocking};
use crate::control::live::{self, Owner};
use crate::control::target::Target;

impl Pools {
    /// `pool_create_volume`.
    pub(super) async fn create_volume(
        &self,
        target: &Rc<Target>,
        params: types::CreateVolume,
    ) -> Result<types::Volume, Failure> {
        let pool = Arc::clone(self.pool(&params.pool)?);
        let mut keys = vec![Key::Volume(params.pool.clone(), params.name.clone())];
        keys.extend(params.source.as_ref().map(|source| match source {
            Source::Volume(name) => Key::Volume(params.pool.clone(), name.clone()),
            Source::Snapshot(name) => Key::Snapshot(params.pool.clone(), name.clone()),
        }));
        keys.extend(params.subsystem.clone().map(Key::Subsystem));
        let _held = self.locks.take(keys).await;
        if let Ok(existing) = pool.volume(&params.name) {
            let error = PoolError::VolumeExists(Box::new(existing.clone()));
            let existing = self.describe(target, &pool, existing).await?;
            let data = serde_json::to_value(existing).unwrap_or_default();
            return Err(RpcError::exists(error.to_string(), data).into());
        }
        let new = self.wanted(target, &pool, params)?;
        let record = match &new.source {
            Some(_) => self.make_clone(target, &pool, new).await?,
            None => {
                let pool = Arc::clone(&pool);
                blocking(move || pool.create_volume(&new)).await?
            }
        };
        if let Err(failure) = self.serve(target, &pool, &record).await {
            // What cannot be served was not made.
            let (pool, name) = (Arc::clone(&pool), record.name.clone());
            blocking(move || pool.delete_volume(&name).map(|removed| removed.reclaim())).await?;
            return Err(failure);
        }
        tracing::info!(
            pool = pool.config().name,
            volume = record.name,
            size_bytes = record.size_bytes,
            "volume made"
        );
        self.describe(target, &pool, record).await
    }

    /// What is asked for, in the pool's words.
    fn wanted(
        &self,
        target: &Rc<Target>,
        pool: &Pool,
        params: types::CreateVolume,
    ) -> Result<NewVolume, Failure> {
        let mut hosts = BTreeSet::new();
        for host in params.hosts {
            parse_host(&host)?;
            hosts.insert(host);
        }
        let mut subsystem = None;
        match params.subsystem {
            Some(nqn) => {
                let nsid = self.join(target, &nqn, &mut hosts)?;
                subsystem = Some((nqn, nsid));
            }
            None => {
                let nqn = pool.config().nqn_of(&params.name);
                if let Some(there) = target.find(&parse_subsystem(&nqn)?) {
                    let message =
                        format!("there is a subsystem {nqn} already; it is {}", there.owner);
                    return Err(RpcError::new(nvmf_rpc::error::code::EXISTS, message).into());
                }
            }
        }
        Ok(NewVolume {
            name: params.name,
            size_bytes: params.size_bytes,
            block_bytes: params.block_size,
            provisioning: params.provisioning,
            source: params.source,
            read_only: params.read_only,
            hosts,
            labels: params.labels,
            subsystem,
        })
    }

    /// The NSID of a new volume in a subsystem that others may be in. They have their hosts in common.
    fn join(
        &self,
        target: &Rc<Target>,
        nqn: &str,
        hosts: &mut BTreeSet<String>,
    ) -> Result<u32, Failure> {
        let members = self.members(nqn);
        let there = target.find(&parse_subsystem(nqn)?);
        if members.is_empty() {
            return match there {
                Some(there) => {
                    let message = format!(
                        "the subsystem {nqn} cannot be shared: it is {}",
                        there.owner
                    );
                    Err(RpcError::not_permitted(message).into())
                }
                None => free_nsid(&members),
            };
        }
        let common = common_hosts(&members);
        if hosts.is_empty() {
            *hosts = common;
        } else if *hosts != common {
            let message = format!(
                "the volumes of {nqn} have their hosts in common, and these are other ones; leave hosts out to take theirs"
            );
            return Err(RpcError::invalid(message).into());
        }
        free_nsid(&members)
    }

    /// Begins to serve a volume that is on disk.
    async fn serve(
        &self,
        target: &Rc<Target>,
        pool: &Pool,
        volume: &VolumeRecord,
    ) -> Result<(), Failure> {
        let namespace = namespace_of(pool, volume);
        let nqn = nqn_of(volume)?;
        if volume.shared && target.find(&nqn).is_some() {
            live::add_namespace(target, Owner::Pool, &nqn, &namespace).await?;
        } else {
            let config = subsystem_of(volume, &volume.hosts, vec![namespace])?;
            live::add_subsystem(target, Owner::Pool, &config).await?;
        }
        Ok(())
    }

    /// Serves a volume no more. Its commands have finished when this ends.
    async fn unserve(&self, target: &Rc<Target>, volume: &VolumeRecord) -> Result<(), Failure> {
        let nqn = nqn_of(volume)?;
        if target.find(&nqn).is_none() {
            return Ok(());
        }
        if volume.shared && self.members(&volume.nqn).len() > 1 {
            live::remove_namespace(target, Owner::Pool, &nqn, volume.nsid).await?;
        } else {
            live::remove_subsystem(target, Owner::Pool, &nqn).await?;
        }
        Ok(())
    }

    /// Locks a volume, and the subsystem that it shares.
    pub(super) async fn lock_volume(
        &self,
        pool: &Pool,
        name: &str,
    ) -> Result<(super::locks::Held, VolumeRecord), Failure> {
        loop {
            let before = pool.volume(name);
            let mut keys = vec![Key::Volume(pool.config().name.clone(), name.to_owned())];
            if let Ok(volume) = &before {
                keys.extend(volume.shared.then(|| Key::Subsystem(volume.nqn.clone())));
            }
            let held = self.locks.take(keys).await;
            let now = pool.volume(name)?;
            // Another one of that name may have come meanwhile, in another subsystem.
            if before.is_ok_and(|before| before.nqn == now.nqn) {
                return Ok((held, now));
            }
        }
    }

    /// Locks a volume and all that share its subsystem, of whatever pool; at least one.
    pub(super) async fn lock_sharers(
        &self,
        pool: &Pool,
        name: &str,
    ) -> Result<(super::locks::Held, Vec<(String, VolumeRecord)>), Failure> {
        loop {
            let (held, volume) = self.lock_volume(pool, name).await?;
            if !volume.shared {
                return Ok((held, vec![(pool.config().name.clone(), volume)]));
            }
            drop(held);
            let ids = |members: &[(String, VolumeRecord)]| -> Vec<Uuid> {
                members.iter().map(|(_, member)| member.id).collect()
            };
            let before = self.members(&volume.nqn);
            let volumes = before
                .iter()
                .map(|(pool, member)| Key::Volume(pool.clone(), member.name.clone()));
            let subsystem = Key::Subsystem(volume.nqn.clone());
            let held = self.locks.take(volumes.chain([subsystem]).collect()).await;
            let members = self.members(&volume.nqn);
            // Others may have come or gone meanwhile, this one too.
            let ids = (ids(&before), ids(&members));
            if ids.0 == ids.1 && ids.1.contains(&volume.id) {
                return Ok((held, members));
            }
        }
    }

    /// `pool_delete_volume`.
    pub(super) async fn delete_volume(
        &self,
        target: &Rc<Target>,
        params: types::DeleteVolume,
    ) -> Result<bool, Failure> {
        let pool = Arc::clone(self.pool(&params.pool)?);
        let (_held, volume) = self.lock_volume(&pool, &params.name).await?;
        let served = target.find(&nqn_of(&volume)?);
        let connected = served.map(|served| live::connected_hosts(&served));
        let connected = connected.unwrap_or_default();
        if !connected.is_empty() && !params.force {
            let names: Vec<&str> = connected.iter().map(|nqn| nqn.as_str()).collect();
            return Err(PoolError::InUse {
                name: volume.name,
                hosts: names.join(", "),
            }
            .into());
        }
        self.unserve(target, &volume).await?;
        let (working, name) = (Arc::clone(&pool), volume.name.clone());
        let removed = blocking(move || working.delete_volume(&name)).await;
        match removed {
            Ok(removed) => {
                tracing::info!(
                    pool = pool.config().name,
                    volume = volume.name,
                    "volume removed"
                );
                blocking(move || {
                    removed.reclaim();
                    Ok(true)
                })
                .await
            }
            Err(failure) => {
                if let Err(error) = self.serve(target, &pool, &volume).await {
                    tracing::error!(volume = volume.name, "is not served any more: {error}");
                }
                Err(failure)
            }
        }
    }

    /// `pool_resize_volume`.
    pub(super) async fn resize_volume(
        &self,
        target: &Rc<Target>,
        params: types::ResizeVolume,
    ) -> Result<types::Volume, Failure> {
        let pool = Arc::clone(self.pool(&params.pool)?);
        let (_held, volume) = self.lock_volume(&pool, &params.name).await?;
        let growing = Arc::clone(&pool);
        let grown = blocking(move || growing.grow_volume(&params.name, params.size_bytes)).await?;
        let (nqn, size_bytes) = (nqn_of(&volume)?, grown.size_bytes);
        live::resize_namespace(target, Owner::Pool, &nqn, grown.nsid, Some(size_bytes)).await?;
        self.describe(target, &pool, grown).await
    }
}
