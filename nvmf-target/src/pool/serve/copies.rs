//! Snapshots and clones of volumes that hosts write to.
//!
//! Writes are held while blocks are shared: every command that was acknowledged is in the copy, and none that was not yet begun. A group
//! is held as a whole, so that its members show one instant.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_rpc::types;

use super::super::copy::{Copied, Copies, CopyReport};
use super::super::error::PoolError;
use super::super::record::{NewSnapshot, NewVolume, Source, VolumeRecord};
use super::super::store::Pool;
use super::locks::Key;
use super::subsystem::nqn_of;
use super::{Failure, Pools, blocking, describe};
use crate::control::live;
use crate::control::target::Target;
use nvmf_rpc::RpcError;

impl Pools {
    /// `pool_create_snapshot` and `pool_create_snapshots`: all or none.
    pub(super) async fn create_snapshots(
        &self,
        target: &Rc<Target>,
        pool: &str,
        wanted: Vec<NewSnapshot>,
    ) -> Result<Vec<types::Snapshot>, Failure> {
        let pool = Arc::clone(self.pool(pool)?);
        let name = &pool.config().name;
        let keys = wanted.iter().flat_map(|one| {
            [
                Key::Volume(name.clone(), one.volume.clone()),
                Key::Snapshot(name.clone(), one.name.clone()),
            ]
        });
        let _held = self.locks.take(keys.collect()).await;
        let volumes: Result<Vec<VolumeRecord>, PoolError> =
            wanted.iter().map(|one| pool.volume(&one.volume)).collect();
        let volumes = volumes?;
        let preparing = Arc::clone(&pool);
        let prepared = blocking(move || preparing.prepare_snapshots(&wanted)).await;
        let copies = match prepared {
            Err(Failure::Pool(PoolError::SnapshotExists(existing))) => {
                let error = PoolError::SnapshotExists(existing.clone());
                let asked = Arc::clone(&pool);
                let existing = blocking(move || Ok(describe::snapshot(&asked, &existing))).await?;
                let data = serde_json::to_value(existing).unwrap_or_default();
                return Err(RpcError::exists(error.to_string(), data).into());
            }
            prepared => prepared?,
        };
        let (copied, report, pause) = self.copy(target, &volumes, copies).await?;
        let Copied::Snapshots(records) = copied else {
            return Err(RpcError::internal("a snapshot became a volume").into());
        };
        let told = Arc::clone(&pool);
        blocking(move || {
            let all = records.iter().map(|record| types::Snapshot {
                pause_us: Some(pause.as_micros() as u64),
                extents: Some(report.extents),
                ..describe::snapshot(&told, record)
            });
            Ok(all.collect())
        })
        .await
    }

    /// Makes a volume that begins as a copy. The caller has locked both ends.
    pub(super) async fn make_clone(
        &self,
        target: &Rc<Target>,
        pool: &Arc<Pool>,
        new: NewVolume,
    ) -> Result<VolumeRecord, Failure> {
        let written = match &new.source {
            Some(Source::Volume(name)) => vec![pool.volume(name)?],
            // Nobody writes to snapshots.
            _ => Vec::new(),
        };
        let preparing = Arc::clone(pool);
        let copies = blocking(move || preparing.prepare_clone(&new)).await?;
        match self.copy(target, &written, copies).await?.0 {
            Copied::Volume(record) => Ok(*record),
            Copied::Snapshots(_) => Err(RpcError::internal("a clone became a snapshot").into()),
        }
    }

    /// Shares the blocks while nobody writes to `volumes`; also tells how long their hosts waited.
    async fn copy(
        &self,
        target: &Rc<Target>,
        volumes: &[VolumeRecord],
        mut copies: Copies,
    ) -> Result<(Copied, CopyReport, Duration), Failure> {
        let mut written = Vec::new();
        for volume in volumes {
            let nqn = nqn_of(volume)?;
            // One that could not be served at start has no writers.
            if target.find(&nqn).is_some() {
                written.push((nqn, volume.nsid));
            }
        }
        let start = Instant::now();
        let hold = live::hold(target, &written).await?;
        let taken = blocking(move || copies.take().map(|()| copies)).await;
        hold.release().await;
        let pause = start.elapsed();
        let copies = taken?;
        let (copied, report) = blocking(move || copies.commit()).await?;
        let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        tracing::info!(
            volumes = ?names, extents = report.extents,
            pause_us = pause.as_micros() as u64, share_us = report.share.as_micros() as u64,
            "blocks shared"
        );
        Ok((copied, report, pause))
    }

    /// `pool_delete_snapshot`.
    pub(super) async fn delete_snapshot(
        &self,
        params: types::DeleteSnapshot,
    ) -> Result<bool, Failure> {
        let pool = Arc::clone(self.pool(&params.pool)?);
        let key = Key::Snapshot(params.pool, params.name.clone());
        let _held = self.locks.take(vec![key]).await;
        blocking(move || {
            pool.delete_snapshot(&params.name)?.reclaim();
            tracing::info!(
                pool = pool.config().name,
                snapshot = params.name,
                "snapshot removed"
            );
            Ok(true)
        })
        .await
    }
}
