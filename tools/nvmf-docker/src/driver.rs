//! What each request does. All calls block, and hold the volume's lock while they change it. Making and removing volumes is in `create`,
//! what Mount and Unmount do in `mount`.

mod create;
mod mount;

use std::path::PathBuf;

use nvmf_initiator::host::HostIdentity;
use nvmf_initiator::options::ConnectOptions;
use nvmf_rpc::reach::LABEL_TRANSPORT;
use nvmf_rpc::types::Volume;
use nvmf_volume::mountinfo::mount_at;
use nvmf_volume::{FsKind, Node, VolumeLock};

use crate::error::Error;
use crate::pool::{self, Target};
use crate::protocol;
use crate::state::{Phase, Record, Store};

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
