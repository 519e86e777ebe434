//! An open pool and what can be done with single volumes and snapshots. Copying is in [`super::copy`].

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::capacity::{Usage, Verdict};
use super::config::PoolConfig;
use super::error::PoolError;
use super::filesystem::{self, FileSystem, Kind as FsKind};
use super::folder::{Draft, Folder, Found, failed};
use super::holding::{Claim, Holding, Kind};
use super::name::check_name;
use super::record::{
    NewVolume, Provisioning, RECORD_VERSION, SnapshotRecord, VolumeRecord, serial_of,
};
use super::step::step;
use super::time;

pub use super::folder::Removed;

/// The block size where none is asked for: what file systems and modern disks use anyway.
pub const DEFAULT_BLOCK_BYTES: u32 = 4096;

const MARKER: &str = "nvmf-pool.json";
const LOCK: &str = "nvmf-pool.lock";
const FOLDERS: [&str; 2] = ["volumes", "snapshots"];

/// What says that a folder is a pool.
#[derive(Serialize, Deserialize)]
struct Marker {
    version: u32,
    id: Uuid,
    created: String,
}

/// An open pool. No other process has it open.
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    fs: FileSystem,
    root: File,
    pub(super) volumes: Folder,
    pub(super) snapshots: Folder,
    holding: Mutex<Holding>,
    /// Locked for as long as the pool is open.
    _lock: File,
}

impl Pool {
    /// Opens the pool, makes it where the folder is not one yet, and repairs what a crash left; waits up to `patience` for another
    /// process to let go of it. Also returns what was repaired, in words.
    pub fn open(
        config: PoolConfig,
        patience: Duration,
    ) -> Result<(Arc<Self>, Vec<String>), PoolError> {
        let path = config.path.clone();
        let unusable = |why: String| PoolError::Unusable {
            path: path.clone(),
            why,
        };
        let root = File::open(&path).map_err(failed(&path, "opening it"))?;
        let metadata = root.metadata().map_err(failed(&path, "stat"))?;
        if !metadata.is_dir() {
            return Err(unusable("is no folder; a pool is a folder".into()));
        }
        let mounted =
            filesystem::is_mount_root(&path).map_err(failed(&path, "looking for its mount"))?;
        if config.require_mount && !mounted {
            return Err(unusable(
                "no file system is mounted there; mount it (mkfs.xfs -m reflink=1), or set require-mount = false to use a folder of a larger one".into(),
            ));
        }
        let lock = take_lock(&path, patience)?;
        mark(&path, &root)?;
        let [volumes, snapshots] = FOLDERS.map(|name| Folder::open(path.join(name)));
        let (volumes, snapshots) = (volumes?, snapshots?);
        root.sync_all()
            .map_err(failed(&path, "making it durable"))?;
        let fs = FileSystem::probe(&path)?;
        let (found, taken) = (volumes.recover()?, snapshots.recover()?);
        let mut holding = Holding::default();
        let mut repairs = Vec::new();
        holding.volumes = gather(found, Kind::Volume, &mut holding.damaged, &mut repairs);
        holding.snapshots = gather(taken, Kind::Snapshot, &mut holding.damaged, &mut repairs);
        for name in holding.snapshots.keys() {
            let bytes = allocated(&snapshots.blocks(name));
            holding.kept_bytes.insert(name.clone(), bytes);
        }
        let pool = Pool {
            config,
            fs,
            root,
            volumes,
            snapshots,
            holding: Mutex::new(holding),
            _lock: lock,
        };
        pool.tell(&repairs);
        Ok((Arc::new(pool), repairs))
    }

    /// Says what was found.
    fn tell(&self, repairs: &[String]) {
        let (pool, holding) = (&self.config.name, self.holding());
        for repair in repairs {
            tracing::warn!(pool, "after a crash: {repair}");
        }
        for ((_, name), why) in &holding.damaged {
            tracing::error!(pool, name, "damaged, not served: {why}");
        }
        let reflink = self.fs.reflink;
        tracing::info!(pool, path = %self.config.path.display(), fs = self.fs.type_name, reflink,
            volumes = holding.volumes.len(), snapshots = holding.snapshots.len(), "pool opened");
        if !reflink {
            tracing::warn!(pool, "{}", self.no_reflink());
        }
        if self.fs.kind == FsKind::Btrfs && !self.config.nocow {
            tracing::warn!(
                pool,
                "on btrfs with checksums Linux 6.14 and later send direct writes through the page cache; nocow = true makes them direct, without checksums"
            );
        }
    }

    /// What it was opened with.
    pub fn config(&self) -> &PoolConfig {
        &self.config
    }

    /// The file system that it is on.
    pub fn file_system(&self) -> &FileSystem {
        &self.fs
    }

    pub(super) fn holding(&self) -> MutexGuard<'_, Holding> {
        // Changes of the maps are single calls: a panic elsewhere leaves them whole.
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn no_reflink(&self) -> PoolError {
        PoolError::NoReflink {
            pool: self.config.name.clone(),
            fs_type: self.fs.type_name.clone(),
        }
    }

    /// All volumes that are whole.
    pub fn volumes(&self) -> Vec<VolumeRecord> {
        self.holding().volumes.values().cloned().collect()
    }

    /// All snapshots that are whole.
    pub fn snapshots(&self) -> Vec<SnapshotRecord> {
        self.holding().snapshots.values().cloned().collect()
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Result<VolumeRecord, PoolError> {
        self.holding().volume(&self.config.name, name).cloned()
    }

    /// The snapshot of this name.
    pub fn snapshot(&self, name: &str) -> Result<SnapshotRecord, PoolError> {
        self.holding().snapshot(&self.config.name, name).cloned()
    }

    /// The file with the blocks of a volume.
    pub fn volume_path(&self, name: &str) -> PathBuf {
        self.volumes.blocks(name)
    }

    /// What a volume's file has allocated, blocks that it shares included.
    pub fn volume_allocated(&self, name: &str) -> u64 {
        allocated(&self.volumes.blocks(name))
    }

    /// What a snapshot's file has allocated, blocks that it shares included.
    pub fn snapshot_allocated(&self, name: &str) -> u64 {
        allocated(&self.snapshots.blocks(name))
    }

    /// How full it is.
    pub fn usage(&self) -> Result<Usage, PoolError> {
        let names: Vec<String> = self.holding().volumes.keys().cloned().collect();
        let of_volumes = names.iter().map(|name| self.volume_allocated(name));
        let of_volumes: u64 = of_volumes.sum();
        let space = filesystem::space(&self.root).map_err(failed(&self.config.path, "statvfs"))?;
        let holding = self.holding();
        Ok(Usage {
            space,
            allocated_bytes: of_volumes + holding.kept_bytes.values().sum::<u64>(),
            provisioned_bytes: holding.provisioned_bytes(),
            volumes: holding.volumes.len(),
            snapshots: holding.snapshots.len(),
        })
    }

    /// Applies the policy to a wish for more.
    pub(super) fn check_room(&self, usage: Usage, wanted_bytes: u64) -> Result<(), PoolError> {
        let refusal = PoolError::Overcommitted {
            pool: self.config.name.clone(),
            limit_bytes: usage.limit_bytes(),
            promised_bytes: usage.provisioned_bytes,
            wanted_bytes,
        };
        match usage.judge(wanted_bytes, self.config.overcommit) {
            Verdict::Refuse => return Err(refusal),
            Verdict::Warn => tracing::warn!("granted: {refusal}"),
            Verdict::Fits | Verdict::Silent => {}
        }
        Ok(())
    }

    /// Errors of the file system, with a full one told apart.
    pub(super) fn failed(&self, path: &Path, action: &'static str, error: io::Error) -> PoolError {
        if filesystem::is_full(&error) {
            return PoolError::Full {
                pool: self.config.name.clone(),
                action,
            };
        }
        failed(path, action)(error)
    }

    /// Makes an empty volume.
    pub fn create_volume(self: &Arc<Self>, new: &NewVolume) -> Result<VolumeRecord, PoolError> {
        let block_bytes = new.block_bytes.unwrap_or(DEFAULT_BLOCK_BYTES);
        let record = self.new_record(new, block_bytes, new.size_bytes)?;
        let key = (Kind::Volume, new.name.clone());
        let _claim = Claim::take(self, vec![key], Vec::new(), record.size_bytes)?;
        let draft = self.volumes.draft(record.id)?;
        let path = self.volumes.blocks(&new.name);
        let prepared = self.fs.prepare(&draft.file, &self.config);
        prepared.map_err(|error| self.failed(&path, "preparing it", error))?;
        self.extend(&draft, record.provisioning, 0, record.size_bytes)?;
        self.volumes.publish(draft, &record)?;
        self.holding()
            .volumes
            .insert(new.name.clone(), record.clone());
        Ok(record)
    }

    /// The record of a volume that is to be made.
    pub(super) fn new_record(
        &self,
        new: &NewVolume,
        block_bytes: u32,
        size_bytes: Option<u64>,
    ) -> Result<VolumeRecord, PoolError> {
        check_name(&new.name).map_err(PoolError::Invalid)?;
        if !matches!(block_bytes, 512 | 4096) {
            return Err(PoolError::Invalid(format!(
                "a block size of {block_bytes} bytes is not served; use 512 or 4096"
            )));
        }
        let size_bytes = size_bytes.ok_or_else(|| {
            PoolError::Invalid("a new volume needs a size; give size_bytes".into())
        })?;
        let id = Uuid::new_v4();
        let (nqn, nsid, shared) = match &new.subsystem {
            Some((nqn, nsid)) => (nqn.clone(), *nsid, true),
            None => (self.config.nqn_of(&new.name), 1, false),
        };
        Ok(VolumeRecord {
            version: RECORD_VERSION,
            name: new.name.clone(),
            id,
            size_bytes: whole_blocks(size_bytes, block_bytes)?,
            block_bytes,
            provisioning: new.provisioning,
            nqn,
            shared,
            serial: serial_of(id),
            nsid,
            read_only: new.read_only,
            hosts: new.hosts.clone(),
            source: new.source.clone(),
            labels: new.labels.clone(),
            created: time::now(),
        })
    }

    /// Gives the blocks of a draft their size.
    pub(super) fn extend(
        &self,
        draft: &Draft,
        provisioning: Provisioning,
        from_bytes: u64,
        to_bytes: u64,
    ) -> Result<(), PoolError> {
        let path = &self.config.path;
        if provisioning == Provisioning::Thick {
            let reserved = fallocate(
                &draft.file,
                FallocateFlags::empty(),
                from_bytes,
                to_bytes - from_bytes,
            );
            reserved.map_err(|errno| self.failed(path, "reserving space", errno.into()))?;
            step("the space is reserved");
        }
        let sized = draft.file.set_len(to_bytes);
        sized.map_err(|error| self.failed(path, "giving a volume its size", error))?;
        step("the blocks have their size");
        Ok(())
    }

    /// Claims a volume, and `wanted_bytes` more of what the pool may promise. Its record is as nobody else can change it now.
    fn claim_volume(
        self: &Arc<Self>,
        name: &str,
        wanted_bytes: u64,
    ) -> Result<(Claim, VolumeRecord), PoolError> {
        let key = (Kind::Volume, name.to_owned());
        let claim = Claim::take(self, Vec::new(), vec![key], wanted_bytes)?;
        let record = self.holding().volumes.get(name).cloned();
        let record = record.ok_or_else(|| PoolError::InWork(name.to_owned()))?;
        Ok((claim, record))
    }

    /// Grows a volume; its new size is durable when this ends. The same size is no error.
    pub fn grow_volume(
        self: &Arc<Self>,
        name: &str,
        size_bytes: u64,
    ) -> Result<VolumeRecord, PoolError> {
        let before = self.volume(name)?;
        let (old, new) = (
            before.size_bytes,
            whole_blocks(size_bytes, before.block_bytes)?,
        );
        if new < old {
            return Err(PoolError::Invalid(format!(
                "the volume {name:?} has {old} bytes and cannot shrink to {new}"
            )));
        }
        if new == old {
            return Ok(before);
        }
        let (_claim, mut record) = self.claim_volume(name, new - old)?;
        if record.size_bytes != old {
            return Err(PoolError::InWork(name.to_owned()));
        }
        let path = self.volumes.blocks(name);
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(failed(&path, "opening it"))?;
        if record.provisioning == Provisioning::Thick {
            let reserved = fallocate(&file, FallocateFlags::KEEP_SIZE, old, new - old);
            if let Err(errno) = reserved {
                // What it got is no use, and others need it.
                let undo = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let _ = fallocate(&file, undo, old, new - old);
                return Err(self.failed(&path, "reserving space", errno.into()));
            }
            step("the new space is reserved");
        }
        let sized = file.set_len(new);
        sized.map_err(|error| self.failed(&path, "growing it", error))?;
        step("the file is grown");
        let durable = file.sync_all();
        durable.map_err(|error| self.failed(&path, "making its size durable", error))?;
        step("the new size is durable");
        record.size_bytes = new;
        self.volumes.replace(&record)?;
        self.holding()
            .volumes
            .insert(name.to_owned(), record.clone());
        Ok(record)
    }

    /// Changes which hosts may connect to a volume, durably.
    pub fn set_hosts(
        self: &Arc<Self>,
        name: &str,
        hosts: BTreeSet<String>,
    ) -> Result<VolumeRecord, PoolError> {
        let (_claim, mut record) = self.claim_volume(name, 0)?;
        if record.hosts == hosts {
            return Ok(record);
        }
        record.hosts = hosts;
        self.volumes.replace(&record)?;
        self.holding()
            .volumes
            .insert(name.to_owned(), record.clone());
        Ok(record)
    }

    /// Makes a volume exist no more. Its space comes back with [`Removed::reclaim`].
    pub fn delete_volume(self: &Arc<Self>, name: &str) -> Result<Removed, PoolError> {
        let (_claim, record) = self.claim_volume(name, 0)?;
        let removed = self.volumes.remove(&record)?;
        self.holding().volumes.remove(name);
        Ok(removed)
    }

    /// Makes a snapshot exist no more. Its space comes back with [`Removed::reclaim`].
    pub fn delete_snapshot(self: &Arc<Self>, name: &str) -> Result<Removed, PoolError> {
        let key = (Kind::Snapshot, name.to_owned());
        let _claim = Claim::take(self, Vec::new(), vec![key], 0)?;
        let record = self.holding().snapshots.get(name).cloned();
        let record = record.ok_or_else(|| PoolError::InWork(name.to_owned()))?;
        let removed = self.snapshots.remove(&record)?;
        let mut holding = self.holding();
        holding.snapshots.remove(name);
        holding.kept_bytes.remove(name);
        drop(holding);
        Ok(removed)
    }
}

/// Moves what was found of one kind to where all is kept.
fn gather<R>(
    found: Found<R>,
    kind: Kind,
    damaged: &mut std::collections::BTreeMap<(Kind, String), String>,
    repairs: &mut Vec<String>,
) -> std::collections::BTreeMap<String, R> {
    let bad = found.damaged.into_iter();
    damaged.extend(bad.map(|(name, why)| ((kind, name), why)));
    repairs.extend(found.repairs);
    found.records
}

/// The size in whole blocks.
fn whole_blocks(size_bytes: u64, block_bytes: u32) -> Result<u64, PoolError> {
    let rounded = size_bytes.checked_next_multiple_of(block_bytes.into());
    match rounded {
        Some(bytes) if bytes > 0 && i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(PoolError::Invalid(format!(
            "{size_bytes} bytes is no size for a volume; give 1 byte to 8 EiB"
        ))),
    }
}

fn allocated(path: &Path) -> u64 {
    // In units of 512 bytes on every file system.
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

/// Takes the lock that makes this process the owner of the pool.
fn take_lock(path: &Path, patience: Duration) -> Result<File, PoolError> {
    let name = path.join(LOCK);
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(failed(&name, "opening it"))?;
    let start = std::time::Instant::now();
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => {
                // A process that was killed lets go of it as it ends; there is nothing to wait on that would not block for ever.
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(PoolError::Unusable {
                    path: path.to_owned(),
                    why: "is the pool of another process; a pool has one owner at a time".into(),
                });
            }
            Err(errno) => return Err(failed(&name, "locking it")(errno.into())),
        }
    }
}

/// Sees that the folder is a pool of a version that we know, and makes it one where it is none yet.
fn mark(path: &Path, root: &File) -> Result<(), PoolError> {
    let (name, new) = (path.join(MARKER), path.join(format!(".{MARKER}")));
    let unusable = |why: String| PoolError::Unusable {
        path: path.to_owned(),
        why,
    };
    match fs::read(&name) {
        Ok(text) => {
            let marker: Marker = serde_json::from_slice(&text)
                .map_err(|error| unusable(format!("{MARKER} cannot be read: {error}")))?;
            if marker.version > RECORD_VERSION {
                return Err(unusable(format!(
                    "the pool was made by a newer version of this program (format {}); use that",
                    marker.version
                )));
            }
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&name, "reading it")(error)),
    }
    if let Some(folder) = FOLDERS.iter().find(|folder| path.join(folder).exists()) {
        return Err(unusable(format!(
            "is no pool, but has {folder:?} in it; give a pool an empty folder"
        )));
    }
    let marker = Marker {
        version: RECORD_VERSION,
        id: Uuid::new_v4(),
        created: time::now(),
    };
    let text = serde_json::to_vec_pretty(&marker).expect("strings and numbers");
    let write = || {
        fs::write(&new, text)?;
        step("the pool's marker is written");
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &name)?;
        step("the pool's marker has its name");
        root.sync_all()
    };
    write().map_err(failed(&name, "making it"))
}
