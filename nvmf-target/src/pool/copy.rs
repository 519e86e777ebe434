//! Snapshots and clones: reflinks, in three phases.
//!
//! [`Pool::prepare_snapshots`] and [`Pool::prepare_clone`] do all that can be done before; [`Copies::take`] shares the blocks, and only
//! while it runs do writes have to be held; [`Copies::commit`] makes the copies exist, all or none.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::ioctl_ficlone;
use uuid::Uuid;

use super::error::PoolError;
use super::folder::{Draft, failed};
use super::holding::{Claim, Kind};
use super::name::check_name;
use super::record::{
    NewSnapshot, NewVolume, Provisioning, RECORD_VERSION, SnapshotRecord, Source, VolumeRecord,
};
use super::step::step;
use super::store::Pool;
use super::time;

/// Copies on their way. Dropped before they are committed, they leave nothing.
#[derive(Debug)]
pub struct Copies {
    pool: Arc<Pool>,
    drafts: Vec<Draft>,
    sources: Vec<File>,
    goal: Goal,
    report: CopyReport,
    _claim: Claim,
}

#[derive(Debug)]
enum Goal {
    Snapshots {
        records: Vec<SnapshotRecord>,
        group: Option<Uuid>,
    },
    /// The record, and the size of what it is copied from.
    Clone(Box<VolumeRecord>, u64),
}

/// What copying took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Sharing the blocks of all members: how long writes were held at least.
    pub share: Duration,
    /// Extents of all copies, which is what the time grows with.
    pub extents: u64,
}

/// What a [`Copies`] became.
#[derive(Debug)]
pub enum Copied {
    /// Snapshots.
    Snapshots(Vec<SnapshotRecord>),
    /// A volume.
    Volume(Box<VolumeRecord>),
}

impl Pool {
    /// Prepares snapshots of volumes of one pool that are taken at one moment; more than one form a group.
    pub fn prepare_snapshots(
        self: &Arc<Self>,
        wanted: &[NewSnapshot],
    ) -> Result<Copies, PoolError> {
        if !self.file_system().reflink {
            return Err(self.no_reflink());
        }
        let invalid = |why: &str| Err(PoolError::Invalid(why.to_owned()));
        if wanted.is_empty() {
            return invalid("no snapshots are asked for; name at least one");
        }
        for (index, one) in wanted.iter().enumerate() {
            check_name(&one.name).map_err(PoolError::Invalid)?;
            let before = &wanted[..index];
            if before.iter().any(|other| other.name == one.name) {
                return invalid("two snapshots of a group cannot have one name");
            }
            if before.iter().any(|other| other.volume == one.volume) {
                return invalid("a group has one snapshot of each volume");
            }
        }
        let group = (wanted.len() > 1).then(Uuid::new_v4);
        let volumes: Result<Vec<VolumeRecord>, PoolError> =
            wanted.iter().map(|one| self.volume(&one.volume)).collect();
        let volumes = volumes?;
        let created = time::now();
        let records = wanted
            .iter()
            .zip(&volumes)
            .map(|(one, volume)| SnapshotRecord {
                version: RECORD_VERSION,
                name: one.name.clone(),
                id: Uuid::new_v4(),
                volume: one.volume.clone(),
                size_bytes: volume.size_bytes,
                block_bytes: volume.block_bytes,
                labels: one.labels.clone(),
                created: created.clone(),
                group,
            });
        let records: Vec<SnapshotRecord> = records.collect();
        let new = wanted.iter().map(|one| (Kind::Snapshot, one.name.clone()));
        let held = wanted.iter().map(|one| (Kind::Volume, one.volume.clone()));
        let now: u64 = wanted
            .iter()
            .map(|one| self.volume_allocated(&one.volume))
            .sum();
        let claim = Claim::take(self, new.collect(), held.collect(), now)?;
        let (mut drafts, mut sources) = (Vec::new(), Vec::new());
        for record in &records {
            let draft = self.snapshots.draft(record.id)?;
            sources.push(self.open_source(&draft, &Source::Volume(record.volume.clone()))?);
            drafts.push(draft);
        }
        Ok(Copies {
            pool: Arc::clone(self),
            drafts,
            sources,
            goal: Goal::Snapshots { records, group },
            report: CopyReport::default(),
            _claim: claim,
        })
    }

    /// Prepares a volume that begins as a copy of another or of a snapshot.
    pub fn prepare_clone(self: &Arc<Self>, new: &NewVolume) -> Result<Copies, PoolError> {
        if !self.file_system().reflink {
            return Err(self.no_reflink());
        }
        let Some(source) = &new.source else {
            return Err(PoolError::Invalid("a clone needs a source".into()));
        };
        let (size_bytes, block_bytes, held) = match source {
            Source::Volume(name) => {
                let volume = self.volume(name)?;
                let key = (Kind::Volume, name.clone());
                (volume.size_bytes, volume.block_bytes, key)
            }
            Source::Snapshot(name) => {
                let snapshot = self.snapshot(name)?;
                let key = (Kind::Snapshot, name.clone());
                (snapshot.size_bytes, snapshot.block_bytes, key)
            }
        };
        if new.provisioning == Provisioning::Thick {
            return Err(PoolError::Invalid(
                "a clone shares blocks with its source, so it cannot be thick; make it thin".into(),
            ));
        }
        if new.block_bytes.is_some_and(|bytes| bytes != block_bytes) {
            return Err(PoolError::Invalid(format!(
                "a clone has the block size of its source, which is {block_bytes}"
            )));
        }
        let record =
            self.new_record(new, block_bytes, Some(new.size_bytes.unwrap_or(size_bytes)))?;
        if record.size_bytes < size_bytes {
            return Err(PoolError::Invalid(format!(
                "the source has {size_bytes} bytes; a clone of {} would lose some",
                record.size_bytes
            )));
        }
        let key = (Kind::Volume, new.name.clone());
        let claim = Claim::take(self, vec![key], vec![held], record.size_bytes)?;
        let draft = self.volumes.draft(record.id)?;
        let from = self.open_source(&draft, source)?;
        Ok(Copies {
            pool: Arc::clone(self),
            drafts: vec![draft],
            sources: vec![from],
            goal: Goal::Clone(Box::new(record), size_bytes),
            report: CopyReport::default(),
            _claim: claim,
        })
    }

    /// Opens what is to be copied, and prepares the file that takes the copy.
    fn open_source(&self, draft: &Draft, source: &Source) -> Result<File, PoolError> {
        let path = match source {
            Source::Volume(name) => self.volumes.blocks(name),
            Source::Snapshot(name) => self.snapshots.blocks(name),
        };
        let from = File::open(&path).map_err(failed(&path, "opening it"))?;
        let fs = self.file_system();
        let prepared = fs.prepare_like(&draft.file, &from, self.config());
        prepared.map_err(|error| self.failed(&path, "preparing a copy", error))?;
        step("a copy is prepared");
        Ok(from)
    }
}

impl Copies {
    /// Shares the blocks: the copies have the content that the sources have now.
    pub fn take(&mut self) -> Result<(), PoolError> {
        let start = Instant::now();
        for (draft, source) in self.drafts.iter().zip(&self.sources) {
            let shared = ioctl_ficlone(&draft.file, source);
            let path = &self.pool.config().path;
            shared.map_err(|errno| self.pool.failed(path, "sharing blocks", errno.into()))?;
            step("blocks are shared");
        }
        self.report.share = start.elapsed();
        Ok(())
    }

    /// Makes the copies exist.
    pub fn commit(mut self) -> Result<(Copied, CopyReport), PoolError> {
        for draft in &self.drafts {
            // Where a file system cannot count, nothing is known.
            let extents = nvmf_io::sys::file::extent_count(&draft.file);
            self.report.extents += extents.unwrap_or(0);
        }
        let drafts = std::mem::take(&mut self.drafts);
        let pool = &self.pool;
        let copied = match &self.goal {
            Goal::Snapshots { records, group } => {
                match (group, <[Draft; 1]>::try_from(drafts)) {
                    (Some(group), Err(drafts)) => {
                        pool.snapshots.publish_group(*group, drafts, records)?;
                    }
                    (_, Ok([draft])) => pool.snapshots.publish(draft, &records[0])?,
                    (None, Err(_)) => unreachable!("a single snapshot has one draft"),
                }
                let kept = records.iter().map(|record| {
                    let bytes = pool.snapshot_allocated(&record.name);
                    (record.name.clone(), bytes)
                });
                let kept: Vec<(String, u64)> = kept.collect();
                let mut holding = pool.holding();
                holding.kept_bytes.extend(kept);
                for record in records {
                    holding
                        .snapshots
                        .insert(record.name.clone(), record.clone());
                }
                Copied::Snapshots(records.clone())
            }
            Goal::Clone(record, source_bytes) => {
                for draft in drafts {
                    pool.extend(&draft, Provisioning::Thin, *source_bytes, record.size_bytes)?;
                    pool.volumes.publish(draft, &**record)?;
                }
                let mut holding = pool.holding();
                holding
                    .volumes
                    .insert(record.name.clone(), (**record).clone());
                Copied::Volume(record.clone())
            }
        };
        Ok((copied, self.report))
    }
}
