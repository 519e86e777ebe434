//! What each request does. All calls block, and hold the volume's lock while they change it.
//!
//! | step of Mount | undone by | a crash after it leaves |
//! |---|---|---|
//! | the claim is written down | release | a claim, which [`Driver::tidy`] ends |
//! | this host is granted access | release | a grant, the same |
//! | attached, formatted, mounted | release | a mount without a reference, the same |
//! | the reference is written down | Unmount | what was asked for, but for the answer |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nvmf_initiator::host::HostIdentity;
use nvmf_initiator::options::ConnectOptions;
use nvmf_rpc::reach::LABEL_TRANSPORT;
use nvmf_rpc::types::{Labels, Volume};
use nvmf_volume::mountinfo::{self, mount_at};
use nvmf_volume::stage::{grow_if_larger, remove_lost_and_found};
use nvmf_volume::{
    AttachSpec, Attached, Claim, FsKind, FsSpec, NamespaceSelector, Node, VolumeLock, stage,
    unstage,
};
use uuid::Uuid;

use crate::error::Error;
use crate::options::{self, Options};
use crate::pool::{self, Created, Target};
use crate::protocol;
use crate::state::{Phase, Record, Store};

/// How long an attach may take; a Mount as a whole must be done before dockerd gives it up after 120 seconds.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);

/// How the plugin works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For the state and the mounts.
    pub state_dir: PathBuf,
    /// For locks; emptied by a reboot.
    pub run_dir: PathBuf,
    /// The pool of volumes that name none; otherwise the target's only one.
    pub pool: Option<String>,
    /// The size of volumes that name none.
    pub size_bytes: u64,
    /// The file system of volumes that name none.
    pub fs: FsKind,
    /// The target's address as this node reaches it, where its own listeners do not tell.
    pub traddr: Option<String>,
    /// As whom this node connects.
    pub host: HostIdentity,
    /// How it connects.
    pub connect: ConnectOptions,
    /// The form of devices.
    pub block: String,
}

/// The plugin.
pub struct Driver {
    settings: Settings,
    node: Node,
    target: Target,
    store: Store,
}

impl Driver {
    /// Reads the state.
    pub fn new(settings: Settings, node: Node, target: Target) -> Result<Driver, Error> {
        let store = Store::open(settings.state_dir.join("state.json"))?;
        Ok(Driver {
            settings,
            node,
            target,
            store,
        })
    }

    /// A dockerd has started: what earlier ones referred to is doubtful from now on.
    pub fn activate(&self) -> Result<(), Error> {
        self.store.change(|state| state.epoch += 1)
    }

    // --- creating and removing -----------------------------------------------------------------------------------------

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
        if let Some(nvmf_rpc::types::Source::Volume(source)) = &options.from {
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

    // --- mounting ------------------------------------------------------------------------------------------------------

    /// Has the volume mounted, for `id`; where.
    pub fn mount(&self, name: &str, id: &str) -> Result<PathBuf, Error> {
        let _lock = self.lock(name)?;
        let mut record = self.known(name)?;
        let at = self.mountpoint(name);
        if mount_at(&at)?.is_none() || record.claim.is_none() {
            self.mount_first(name, &mut record, &at)?;
        }
        let epoch = self.store.epoch();
        record.references.add(epoch, id);
        self.put(name, &record)?;
        tracing::info!(name, id, references = record.references.count(), "mounted");
        Ok(at)
    }

    /// Ends one use by `id`; the last one's end unmounts and detaches.
    pub fn unmount(&self, name: &str, id: &str) -> Result<(), Error> {
        let _lock = self.lock(name)?;
        let mut record = self.known(name)?;
        match record.references.remove(self.store.epoch(), id) {
            true => self.put(name, &record)?,
            // Counted already, or by a plugin whose state was lost.
            false => tracing::warn!(name, id, "unmount of what is not mounted"),
        }
        self.drop_doubtful(name, &mut record)?;
        tracing::info!(
            name,
            id,
            references = record.references.count(),
            "unmounted"
        );
        match record.references.is_empty() {
            true => self.release(name, &mut record),
            false => Ok(()),
        }
    }

    fn mount_first(&self, name: &str, record: &mut Record, at: &Path) -> Result<(), Error> {
        let volume = self.target.volume(&record.pool, name)?;
        let volume = volume.ok_or_else(|| {
            Error::Request(format!(
                "volume {name} is gone from pool {}: somebody removed it on the target; `docker volume rm` forgets it here",
                record.pool
            ))
        })?;
        record.learn(&volume);
        record.claim = Some(Claim {
            owner: owner(name),
            address: pool::address(&volume, self.settings.traddr.as_deref())?,
            subnqn: volume.nqn.clone(),
            hostnqn: self.settings.host.hostnqn.clone(),
        });
        self.put(name, record)?;
        let mounted = self.grant(name, record).and_then(|()| {
            let lock = self.node.lock(&volume.nqn)?;
            let attached = self.attach(&lock, name, record, &volume)?;
            let spec = FsSpec {
                mkfs_options: record.mkfs_options.clone(),
                read_only: record.read_only,
                ..FsSpec::new(record.fs)
            };
            let staged = stage(&lock, &attached, &spec, at)?;
            if staged.mounted && !record.read_only && record.fs == FsKind::Ext4 {
                remove_lost_and_found(at)?;
            }
            Ok(())
        });
        if let Err(error) = mounted {
            if let Err(error) = self.release(name, record) {
                tracing::warn!(name, %error, "left behind after a mount that failed; it is tried again");
            }
            return Err(error);
        }
        Ok(())
    }

    /// Has this host granted access, and no other one on which a file system could be mounted that is mounted here.
    fn grant(&self, name: &str, record: &Record) -> Result<(), Error> {
        let own = &self.settings.host.hostnqn;
        let volume = self.target.add_host(&record.pool, name, own)?;
        if volume.read_only {
            return Ok(());
        }
        // Both of two nodes that come at the same time see each other, and neither goes on.
        let hosts: Vec<_> = volume
            .hosts
            .into_iter()
            .filter(|host| host != own)
            .collect();
        match hosts.is_empty() {
            true => Ok(()),
            false => Err(Error::Elsewhere {
                name: name.to_owned(),
                hosts,
            }),
        }
    }

    fn attach(
        &self,
        lock: &VolumeLock,
        name: &str,
        record: &Record,
        volume: &Volume,
    ) -> Result<Attached, Error> {
        let address = match &record.claim {
            // What is attached stays where it is, also when the target listens elsewhere by now.
            Some(claim) => claim.address.clone(),
            None => pool::address(volume, self.settings.traddr.as_deref())?,
        };
        let spec = AttachSpec {
            address,
            subnqn: volume.nqn.clone(),
            host: self.settings.host.clone(),
            namespace: NamespaceSelector::Nsid(volume.nsid),
            options: self.settings.connect.clone(),
            block: self.settings.block.clone(),
            owner: owner(name),
            min_size_bytes: volume.size_bytes,
            limit: ATTACH_LIMIT,
        };
        Ok(self.node.attach(lock, &spec)?)
    }

    /// Unmounts, detaches and gives the grant back; each if it is so.
    fn release(&self, name: &str, record: &mut Record) -> Result<(), Error> {
        let Some(claim) = record.claim.clone() else {
            return Ok(());
        };
        let lock = self.node.lock(&claim.subnqn)?;
        unstage(&lock, &self.mountpoint(name))?;
        self.node.detach(&lock, &claim)?;
        drop(lock);
        if let Err(error) = self.target.remove_host(&record.pool, name, &claim.hostnqn) {
            // It is unmounted, which is what matters here; the grant is given back when the target is there again.
            tracing::warn!(name, %error, "the grant of this host stays for now");
            return Ok(());
        }
        record.claim = None;
        self.put(name, record)
    }

    /// Forgets what dockerds that were killed referred to, unless a container still uses the volume.
    fn drop_doubtful(&self, name: &str, record: &mut Record) -> Result<(), Error> {
        if !record.references.are_doubtful(self.store.epoch()) {
            return Ok(());
        }
        if let Some(mount) = mount_at(&self.mountpoint(name))?
            && !mountinfo::users_elsewhere(mount.device).is_empty()
        {
            return Ok(());
        }
        tracing::info!(
            name,
            references = record.references.count(),
            "of a dockerd that is gone: forgotten"
        );
        record.references.clear();
        self.put(name, record)
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

    // --- after a crash ---------------------------------------------------------------------------------------------------

    /// Takes away what a crash, of this plugin, dockerd or a target, left: mounts and attachments that nobody refers to, volumes
    /// that were half created or half removed. What cannot be done now is left for the next time.
    pub fn tidy(&self) {
        for name in self.store.all().volumes.into_keys() {
            if let Err(error) = self.tidy_volume(&name) {
                tracing::warn!(name, %error, "not tidied up; it is tried again");
            }
        }
    }

    fn tidy_volume(&self, name: &str) -> Result<(), Error> {
        let _lock = self.lock(name)?;
        // It may be gone by now.
        let Some(mut record) = self.store.volume(name) else {
            return Ok(());
        };
        self.drop_doubtful(name, &mut record)?;
        if record.references.is_empty() {
            self.release(name, &mut record)?;
        }
        match record.phase {
            Phase::Ready => Ok(()),
            Phase::Removing => {
                self.target.delete(&record.pool, name)?;
                self.forget(name)
            }
            Phase::Creating => {
                // Nobody was told that it exists, so nobody has put anything into it.
                let made = self.target.volume(&record.pool, name)?;
                if made.is_some_and(|volume| {
                    volume.labels.get(pool::LABEL_CREATE_ID) == Some(&record.create_id)
                }) {
                    self.target.delete(&record.pool, name)?;
                }
                self.forget(name)
            }
        }
    }

    // --- looking ---------------------------------------------------------------------------------------------------------

    /// A volume, from the plugin's own state alone: dockerd takes any error for its absence.
    pub fn get(&self, name: &str) -> Result<protocol::Volume, Error> {
        match self.store.volume(name) {
            Some(record) if record.phase != Phase::Creating => Ok(self.describe(name, &record)),
            _ => Err(Error::NoSuchVolume(name.to_owned())),
        }
    }

    /// All volumes, in the same way.
    pub fn list(&self) -> Vec<protocol::Volume> {
        let volumes = self.store.all().volumes;
        let told = volumes
            .iter()
            .filter(|(_, record)| record.phase != Phase::Creating);
        told.map(|(name, record)| self.describe(name, record))
            .collect()
    }

    fn describe(&self, name: &str, record: &Record) -> protocol::Volume {
        let at = self.mountpoint(name);
        let mount = mount_at(&at).ok().flatten();
        let mut status = serde_json::Map::new();
        status.insert("pool".into(), record.pool.clone().into());
        status.insert("fs".into(), record.fs.name().into());
        status.insert("size_bytes".into(), record.size_bytes.into());
        status.insert("read_only".into(), record.read_only.into());
        status.insert("nqn".into(), record.nqn.clone().into());
        status.insert("mounts".into(), record.references.count().into());
        if let Some(mount) = &mount {
            status.insert("device".into(), mount.source.to_string_lossy().into());
        }
        protocol::Volume {
            name: name.to_owned(),
            mountpoint: mount.map_or_else(String::new, |_| at.to_string_lossy().into_owned()),
            created_at: record.created.clone(),
            status,
        }
    }

    // --- the plugin's own ------------------------------------------------------------------------------------------------

    fn known(&self, name: &str) -> Result<Record, Error> {
        let record = self
            .store
            .volume(name)
            .filter(|record| record.phase != Phase::Creating);
        record.ok_or_else(|| Error::NoSuchVolume(name.to_owned()))
    }

    fn mountpoint(&self, name: &str) -> PathBuf {
        self.settings.state_dir.join("mounts").join(name)
    }

    fn lock(&self, name: &str) -> Result<VolumeLock, Error> {
        Ok(VolumeLock::take(
            &self.settings.run_dir.join("locks"),
            name,
        )?)
    }

    fn put(&self, name: &str, record: &Record) -> Result<(), Error> {
        self.store.change(|state| {
            state.volumes.insert(name.to_owned(), record.clone());
        })
    }

    fn forget(&self, name: &str) -> Result<(), Error> {
        self.store.change(|state| {
            state.volumes.remove(name);
        })
    }
}

impl Record {
    fn learn(&mut self, volume: &Volume) {
        self.size_bytes = volume.size_bytes;
        self.nqn.clone_from(&volume.nqn);
        self.created.clone_from(&volume.created);
        let transports = volume.labels.get(LABEL_TRANSPORT);
        self.transports = transports.cloned().unwrap_or_default();
    }
}

/// As whom the plugin claims a volume on this node.
fn owner(name: &str) -> String {
    format!("docker/{name}")
}
