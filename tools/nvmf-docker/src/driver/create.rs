//! Making, taking up, growing and removing volumes.

use std::collections::BTreeMap;

use nvmf_rpc::reach::LABEL_TRANSPORT;
use nvmf_rpc::types::{Labels, Source, Volume};
use nvmf_volume::mountinfo::mount_at;
use nvmf_volume::stage::grow_if_larger;
use uuid::Uuid;

use super::Driver;
use crate::error::Error;
use crate::options::{self, Options};
use crate::pool::{self, Created};
use crate::state::{Phase, Record};

impl Driver {
    /// Creates a volume, takes up one that is in the pool already, or finds that there is this one.
    pub fn create(&self, name: &str, given: &BTreeMap<String, String>) -> Result<(), Error> {
        options::check_name(name)?;
        let options = options::parse(given)?;
        let _lock = self.lock(name)?;
        let before = self.store.volume(name);
        if let Some(record) = &before {
            match record.phase {
                Phase::Ready => return self.same(name, record, &options),
                Phase::Removing => {
                    return Err(Error::Request(format!(
                        "volume {name} is being removed: remove it again, then create it"
                    )));
                }
                Phase::Creating => {}
            }
        }
        let pool = match (&options.pool, &self.settings.pool) {
            (Some(pool), _) | (None, Some(pool)) => pool.clone(),
            (None, None) => self.target.only_pool()?,
        };
        let fs = match (options.fs, &options.from) {
            (Some(fs), _) => fs,
            (None, Some(source)) => self
                .target
                .fs_of(&pool, source)?
                .unwrap_or(self.settings.fs),
            (None, None) => self.settings.fs,
        };
        let size_bytes = match (&options.from, options.size_bytes) {
            (Some(_), size_bytes) => size_bytes,
            (None, size_bytes) => Some(size_bytes.unwrap_or(self.settings.size_bytes)),
        };
        if size_bytes.is_some_and(|size_bytes| size_bytes < fs.min_bytes()) {
            return Err(Error::Request(format!(
                "size: {fs} needs at least {} MiB",
                fs.min_bytes() >> 20
            )));
        }
        let mkfs_options = options.mkfs_options.clone().unwrap_or_default();
        let read_only = options.read_only.unwrap_or(false);
        // A creation that was interrupted goes on as itself.
        let create_id =
            before.map_or_else(|| Uuid::new_v4().to_string(), |record| record.create_id);
        let mut record = Record {
            phase: Phase::Creating,
            pool: pool.clone(),
            create_id: create_id.clone(),
            fs,
            mkfs_options: mkfs_options.clone(),
            read_only,
            size_bytes: 0,
            nqn: String::new(),
            created: String::new(),
            transports: String::new(),
            claim: None,
            references: Default::default(),
        };
        self.put(name, &record)?;
        if let Some(Source::Volume(source)) = &options.from {
            self.flush(source)?;
        }
        let mut labels = Labels::from([
            (pool::LABEL_FS.to_owned(), fs.to_string()),
            (pool::LABEL_MKFS_OPTIONS.to_owned(), mkfs_options.join(" ")),
            (pool::LABEL_READ_ONLY.to_owned(), read_only.to_string()),
            (pool::LABEL_CREATE_ID.to_owned(), create_id.clone()),
        ]);
        if let Some(transports) = &options.transports {
            labels.insert(LABEL_TRANSPORT.to_owned(), transports.to_string());
        }
        let made = self
            .target
            .create(&pool, name, size_bytes, options.from.clone(), labels);
        let volume = match made {
            Ok(Created::New(volume)) => volume,
            Ok(Created::Exists(volume)) => match self.take_up(name, &mut record, &volume, &options)
            {
                Ok(()) => volume,
                Err(error) => {
                    self.forget(name)?;
                    return Err(error);
                }
            },
            Err(error) => {
                // Where it may have been made, the record says so until `tidy` has looked.
                if !pool::may_be_done(&error) {
                    self.forget(name)?;
                }
                return Err(error);
            }
        };
        record.phase = Phase::Ready;
        record.learn(&volume);
        self.put(name, &record)?;
        tracing::info!(name, pool, %fs, size_bytes = record.size_bytes, "created");
        Ok(())
    }

    /// Whether what is asked for is this volume.
    fn same(&self, name: &str, record: &Record, options: &Options) -> Result<(), Error> {
        let differs = [
            (
                "pool",
                options
                    .pool
                    .as_ref()
                    .is_some_and(|pool| *pool != record.pool),
            ),
            ("fs", options.fs.is_some_and(|fs| fs != record.fs)),
            (
                "size",
                options
                    .size_bytes
                    .is_some_and(|size_bytes| size_bytes != record.size_bytes),
            ),
            (
                "ro",
                options
                    .read_only
                    .is_some_and(|read_only| read_only != record.read_only),
            ),
            (
                "transport",
                options
                    .transports
                    .as_ref()
                    .is_some_and(|transports| transports.to_string() != record.transports),
            ),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            None => Ok(()),
            Some((option, _)) => Err(Error::Request(format!(
                "volume {name} exists with another {option}; choose another name or leave the option out"
            ))),
        }
    }

    /// Makes `record` that of a volume that is in the pool: ours, from before a crash, or one that another node's plugin made.
    fn take_up(
        &self,
        name: &str,
        record: &mut Record,
        volume: &Volume,
        options: &Options,
    ) -> Result<(), Error> {
        let label = |label: &str| volume.labels.get(label).map(String::as_str);
        if label(pool::LABEL_CREATE_ID) == Some(record.create_id.as_str()) {
            return Ok(());
        }
        let Some(fs) = label(pool::LABEL_FS) else {
            return Err(Error::Request(format!(
                "pool {} has a volume {name} already, which was not made for Docker; choose another name",
                volume.pool
            )));
        };
        record.fs = fs.parse()?;
        record.mkfs_options = label(pool::LABEL_MKFS_OPTIONS)
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        record.read_only = label(pool::LABEL_READ_ONLY) == Some("true");
        record.create_id = label(pool::LABEL_CREATE_ID).unwrap_or_default().to_owned();
        record.learn(volume);
        if options.from.is_some() {
            return Err(Error::Request(format!(
                "pool {} has a volume {name} already; leave out `from` to use it here as it is, or choose another name",
                volume.pool
            )));
        }
        self.same(name, record, options)
    }

    /// Removes a volume with its data.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let _lock = self.lock(name)?;
        let mut record = self.known(name)?;
        self.drop_doubtful(name, &mut record)?;
        if !record.references.is_empty() {
            let by = format!("{} mounts of it are counted", record.references.count());
            return Err(Error::InUse {
                name: name.to_owned(),
                by,
            });
        }
        self.release(name, &mut record)?;
        record.phase = Phase::Removing;
        self.put(name, &record)?;
        if let Err(error) = self.target.delete(&record.pool, name) {
            if !pool::may_be_done(&error) {
                record.phase = Phase::Ready;
                self.put(name, &record)?;
            }
            return Err(error);
        }
        self.forget(name)?;
        tracing::info!(name, pool = record.pool, "removed");
        Ok(())
    }

    /// Grows a volume, and at once its file system if it is mounted here. Its size in bytes.
    pub fn grow(&self, name: &str, size_bytes: u64) -> Result<u64, Error> {
        let _lock = self.lock(name)?;
        let mut record = self.known(name)?;
        let volume = self.target.resize(&record.pool, name, size_bytes)?;
        record.learn(&volume);
        self.put(name, &record)?;
        let at = self.mountpoint(name);
        if mount_at(&at)?.is_some() {
            let lock = self.node.lock(&volume.nqn)?;
            let attached = self.attach(&lock, name, &record, &volume)?;
            grow_if_larger(&lock, &attached, &at)?;
        }
        Ok(volume.size_bytes)
    }

    /// What was written to a volume that is mounted here reaches the target, so that a clone has it.
    fn flush(&self, name: &str) -> Result<(), Error> {
        let at = self.mountpoint(name);
        if mount_at(&at)?.is_none() {
            return Ok(());
        }
        let failed = |source: std::io::Error| Error::State {
            path: at.clone(),
            source,
        };
        let folder = std::fs::File::open(&at).map_err(failed)?;
        rustix::fs::syncfs(&folder).map_err(|errno| failed(errno.into()))
    }
}
