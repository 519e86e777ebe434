//! The methods `pool_…` of the management API.

use std::future::Future;
use std::rc::Rc;

use nvmf_rpc::types::{
    AddHost, CreateSnapshot, CreateSnapshots, CreateVolume, DeleteSnapshot, DeleteVolume, GetPools,
    GetSnapshots, GetVolumes, Pool, RemoveHost, ResizeVolume, Snapshot, Volume,
};
use nvmf_rpc::{Method, RpcError};

use super::super::error::PoolError;
use super::super::record::NewSnapshot;
use super::locks::Key;
use super::{Failure, Pools, blocking, describe};
use crate::api::Methods;
use crate::control::target::Target;

/// Adds one method.
fn add<M, F>(
    methods: &mut Methods,
    pools: &Rc<Pools>,
    method: impl Fn(Rc<Pools>, Rc<Target>, M) -> F + Copy + 'static,
) where
    M: Method + 'static,
    F: Future<Output = Result<M::Result, Failure>> + 'static,
{
    let pools = Rc::clone(pools);
    methods.add(move |target, params: M| {
        let pools = Rc::clone(&pools);
        async move { method(pools, target, params).await.map_err(RpcError::from) }
    });
}

/// Adds all methods.
pub fn register(methods: &mut Methods, pools: &Rc<Pools>) {
    add(methods, pools, get_pools);
    add(methods, pools, get_volumes);
    add(methods, pools, get_snapshots);
    add(
        methods,
        pools,
        |pools, target, params: CreateVolume| async move { pools.create_volume(&target, params).await },
    );
    add(
        methods,
        pools,
        |pools, target, params: DeleteVolume| async move { pools.delete_volume(&target, params).await },
    );
    add(
        methods,
        pools,
        |pools, target, params: ResizeVolume| async move { pools.resize_volume(&target, params).await },
    );
    add(methods, pools, create_snapshot);
    add(methods, pools, create_snapshots);
    add(
        methods,
        pools,
        |pools, _, params: DeleteSnapshot| async move { pools.delete_snapshot(params).await },
    );
    add(
        methods,
        pools,
        |pools, target, params: AddHost| async move { pools.add_host(&target, params).await },
    );
    add(
        methods,
        pools,
        |pools, target, params: RemoveHost| async move { pools.remove_host(&target, params).await },
    );
}

async fn get_pools(
    pools: Rc<Pools>,
    _: Rc<Target>,
    params: GetPools,
) -> Result<Vec<Pool>, Failure> {
    let asked = pools.pools(params.name.as_deref())?;
    blocking(move || asked.iter().map(|pool| describe::pool(pool)).collect()).await
}

/// Volumes by pool and name, or one that is being made under that name once it is. A pool that does not exist is an error, and so is a volume of a named pool that is damaged.
async fn get_volumes(
    pools: Rc<Pools>,
    target: Rc<Target>,
    params: GetVolumes,
) -> Result<Vec<Volume>, Failure> {
    let mut found = Vec::new();
    for pool in pools.pools(params.pool.as_deref())? {
        if let Some(name) = &params.name
            && !describe::is_served(&pool, &target, name)
        {
            // One that is in the making is waited for: whoever asked for it and got no answer must not be told that there is none, and
            // have it made somewhere else.
            let key = Key::Volume(pool.config().name.clone(), name.clone());
            drop(pools.locks.take(vec![key]).await);
        }
        let mut records = pool.volumes();
        if let Some(name) = &params.name {
            records.retain(|record| record.name == *name);
        }
        found.extend(pools.describe_all(&target, &pool, records).await?);
    }
    if let (Some(pool), Some(name)) = (params.pool, params.name)
        && let Err(error @ PoolError::Damaged { .. }) = pools.pool(&pool)?.volume(&name)
    {
        return Err(error.into());
    }
    Ok(found)
}

async fn get_snapshots(
    pools: Rc<Pools>,
    _: Rc<Target>,
    params: GetSnapshots,
) -> Result<Vec<Snapshot>, Failure> {
    let asked = pools.pools(params.pool.as_deref())?;
    blocking(move || {
        let all = asked.iter().flat_map(|pool| {
            let records = pool.snapshots().into_iter();
            let wanted = records.filter(|record| {
                params.name.as_ref().is_none_or(|name| record.name == *name)
                    && params
                        .volume
                        .as_ref()
                        .is_none_or(|name| record.volume == *name)
            });
            wanted.map(|record| describe::snapshot(pool, &record))
        });
        Ok(all.collect())
    })
    .await
}

async fn create_snapshot(
    pools: Rc<Pools>,
    target: Rc<Target>,
    params: CreateSnapshot,
) -> Result<Snapshot, Failure> {
    let wanted = NewSnapshot {
        volume: params.volume,
        name: params.name,
        labels: params.labels,
    };
    let mut made = pools
        .create_snapshots(&target, &params.pool, vec![wanted])
        .await?;
    Ok(made.remove(0))
}

async fn create_snapshots(
    pools: Rc<Pools>,
    target: Rc<Target>,
    params: CreateSnapshots,
) -> Result<Vec<Snapshot>, Failure> {
    let wanted = params.snapshots.into_iter().map(|one| NewSnapshot {
        volume: one.volume,
        name: one.name,
        labels: one.labels,
    });
    pools
        .create_snapshots(&target, &params.pool, wanted.collect())
        .await
}
