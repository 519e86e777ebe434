//! What a pool holds, in memory: the records, and which names something is being done with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::capacity::Usage;
use super::error::PoolError;
use super::record::{SnapshotRecord, VolumeRecord};
use super::store::Pool;

/// Volumes and snapshots have names of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Volume,
    Snapshot,
}

/// A volume or snapshot by name.
pub(super) type Key = (Kind, String);

/// The records, as they are on disk.
#[derive(Debug, Default)]
pub(super) struct Holding {
    pub(super) volumes: BTreeMap<String, VolumeRecord>,
    pub(super) snapshots: BTreeMap<String, SnapshotRecord>,
    /// What each snapshot has allocated, which never changes: nobody writes to it.
    pub(super) kept_bytes: BTreeMap<String, u64>,
    pub(super) damaged: BTreeMap<Key, String>,
    /// Names that are being made, changed, copied or removed.
    in_work: BTreeSet<Key>,
    /// What those that are being made will be promised; a few of the largest volumes exceed 64 bits.
    pub(super) reserved_bytes: u128,
}

impl Holding {
    /// What all that is here, and all that is being made, can come to take; at most what 64 bits hold.
    pub(super) fn provisioned_bytes(&self) -> u64 {
        let sizes = self.volumes.values().map(|volume| volume.size_bytes);
        let kept = self.kept_bytes.values().copied();
        let here = sizes.chain(kept).map(u128::from).sum::<u128>();
        u64::try_from(here + self.reserved_bytes).unwrap_or(u64::MAX)
    }

    /// The error for a name that is not free.
    fn check_free(&self, key: &Key) -> Result<(), PoolError> {
        self.check_whole(key)?;
        match key {
            (Kind::Volume, name) => match self.volumes.get(name) {
                Some(record) => Err(PoolError::VolumeExists(Box::new(record.clone()))),
                None => Ok(()),
            },
            (Kind::Snapshot, name) => match self.snapshots.get(name) {
                Some(record) => Err(PoolError::SnapshotExists(Box::new(record.clone()))),
                None => Ok(()),
            },
        }
    }

    /// The error for a name that is damaged or in work.
    fn check_whole(&self, key: &Key) -> Result<(), PoolError> {
        if let Some(why) = self.damaged.get(key) {
            return Err(PoolError::Damaged {
                name: key.1.clone(),
                why: why.clone(),
            });
        }
        match self.in_work.contains(key) {
            true => Err(PoolError::InWork(key.1.clone())),
            false => Ok(()),
        }
    }

    /// The volume, if nothing else is being done with it.
    pub(super) fn volume(&self, pool: &str, name: &str) -> Result<&VolumeRecord, PoolError> {
        self.check_whole(&(Kind::Volume, name.to_owned()))?;
        self.volumes.get(name).ok_or_else(|| PoolError::NoVolume {
            pool: pool.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The snapshot, if nothing else is being done with it.
    pub(super) fn snapshot(&self, pool: &str, name: &str) -> Result<&SnapshotRecord, PoolError> {
        self.check_whole(&(Kind::Snapshot, name.to_owned()))?;
        self.snapshots
            .get(name)
            .ok_or_else(|| PoolError::NoSnapshot {
                pool: pool.to_owned(),
                name: name.to_owned(),
            })
    }
}

/// The right to do something with some names, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pool: Arc<Pool>,
    keys: Vec<Key>,
    reserved_bytes: u64,
}

impl Claim {
    /// Claims names that are to be made, and names that exist, and `wanted_bytes` of what the pool may promise.
    pub(super) fn take(
        pool: &Arc<Pool>,
        new: Vec<Key>,
        existing: Vec<Key>,
        wanted_bytes: u64,
    ) -> Result<Self, PoolError> {
        // Asks the file system, so it is done before the lock, for which the control thread may wait.
        let measured = match wanted_bytes {
            0 => None,
            _ => Some(pool.usage()?),
        };
        let mut holding = pool.holding();
        for key in &new {
            holding.check_free(key)?;
        }
        for key in &existing {
            match key.0 {
                Kind::Volume => {
                    holding.volume(&pool.config().name, &key.1)?;
                }
                Kind::Snapshot => {
                    holding.snapshot(&pool.config().name, &key.1)?;
                }
            }
        }
        if let Some(measured) = measured {
            pool.check_room(
                Usage {
                    provisioned_bytes: holding.provisioned_bytes(),
                    ..measured
                },
                wanted_bytes,
            )?;
        }
        let keys: Vec<Key> = new.into_iter().chain(existing).collect();
        holding.in_work.extend(keys.iter().cloned());
        holding.reserved_bytes += u128::from(wanted_bytes);
        drop(holding);
        Ok(Claim {
            pool: Arc::clone(pool),
            keys,
            reserved_bytes: wanted_bytes,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut holding = self.pool.holding();
        for key in &self.keys {
            holding.in_work.remove(key);
        }
        holding.reserved_bytes -= u128::from(self.reserved_bytes);
    }
}
