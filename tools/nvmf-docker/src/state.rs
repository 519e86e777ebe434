//! What the next plugin must know, in one file that is replaced whole: after a crash it is the old or the new one, power loss
//! included, and nothing is answered before it is written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use nvmf_volume::{Claim, FsKind};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::references::References;

/// Raised when the form changes; a file of another version is refused rather than guessed at.
const VERSION: u32 = 1;
/// Changes with each boot, which ends every mount and every reference.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It may exist in the pool, and nobody was told so.
    Creating,
    /// It exists.
    Ready,
    /// It may be gone from the pool, and nobody was told so.
    Removing,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How far it is.
    pub phase: Phase,
    /// Its pool.
    pub pool: String,
    /// A label of the volume in the pool by which its creator knows it again.
    pub create_id: String,
    /// Its file system.
    pub fs: FsKind,
    /// For mkfs.
    pub mkfs_options: Vec<String>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Its size as last heard.
    pub size_bytes: u64,
    /// Its subsystem as last heard.
    pub nqn: String,
    /// When it was created, as the pool says it.
    pub created: String,
    /// The transports that it may be reached by, as its label in the pool says them; empty where that says nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub transports: String,
    /// Set before this host is granted access or anything is attached, until both have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<Claim>,
    /// Who uses it.
    #[serde(default, skip_serializing_if = "References::is_empty")]
    pub references: References,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    boot_id: String,
    /// Counts the dockerds that were seen.
    pub epoch: u64,
    /// By name.
    pub volumes: BTreeMap<String, Record>,
}

/// The state with its file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    state: Mutex<State>,
}

impl Store {
    /// Reads the file, or begins anew where there is none. References of another boot are forgotten.
    pub fn open(path: PathBuf) -> Result<Store, Error> {
        let boot_id = fs::read_to_string(BOOT_ID).map_err(|source| Error::State {
            path: BOOT_ID.into(),
            source,
        })?;
        Store::open_in_boot(path, boot_id.trim())
    }

    fn open_in_boot(path: PathBuf, boot_id: &str) -> Result<Store, Error> {
        let failed = |source: io::Error| Error::State {
            path: path.clone(),
            source,
        };
        let mut state = match fs::read(&path) {
            Ok(text) => parse(&text)
                .map_err(|what| failed(io::Error::new(io::ErrorKind::InvalidData, what)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State {
                version: VERSION,
                boot_id: boot_id.to_owned(),
                epoch: 0,
                volumes: BTreeMap::new(),
            },
            Err(error) => return Err(failed(error)),
        };
        if state.boot_id != boot_id {
            state.boot_id = boot_id.to_owned();
            for record in state.volumes.values_mut() {
                record.references.clear();
            }
        }
        let store = Store {
            path,
            state: Mutex::new(state),
        };
        // Also shows at once whether it can be written.
        store.change(|_| ())?;
        Ok(store)
    }

    /// A copy of a volume's record.
    pub fn volume(&self, name: &str) -> Option<Record> {
        self.lock().volumes.get(name).cloned()
    }

    /// A copy of everything.
    pub fn all(&self) -> State {
        self.lock().clone()
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Changes the state; when this returns without an error, the change survives anything. With an error, nothing changed.
    pub fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> Result<R, Error> {
        let mut state = self.lock();
        let mut changed = state.clone();
        let result = change(&mut changed);
        write(&self.path, &changed).map_err(|source| Error::State {
            path: self.path.clone(),
            source,
        })?;
        *state = changed;
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held left the state as it was: changes are made to a copy.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn parse(text: &[u8]) -> Result<State, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let remedy = "start the version of nvmf-docker that wrote it, or move the file away (volumes stay in the pool, and are found \
                  again by `docker volume create` with their names)";
    let version: Version =
        serde_json::from_slice(text).map_err(|error| format!("{error}; {remedy}"))?;
    if version.version != VERSION {
        return Err(format!("version {}; {remedy}", version.version));
    }
    serde_json::from_slice(text).map_err(|error| format!("{error}; {remedy}"))
}

fn write(path: &Path, state: &State) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            phase: Phase::Ready,
            pool: "p".into(),
            create_id: "c".into(),
            fs: FsKind::Ext4,
            mkfs_options: Vec::new(),
            read_only: false,
            size_bytes: 1,
            nqn: "n".into(),
            created: String::new(),
            claim: None,
            transports: String::new(),
            references: References::default(),
        }
    }

    #[test]
    fn what_was_changed_is_there_after_a_crash_and_references_end_with_a_boot() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let store = Store::open_in_boot(path.clone(), "one").unwrap();
        store
            .change(|state| {
                let mut record = record();
                record.references.add(1, "a");
                state.volumes.insert("v".into(), record);
                state.epoch = 7;
            })
            .unwrap();
        let all = store.all();
        drop(store);
        // What a crash left of a write that was not finished.
        fs::write(path.with_extension("new"), "{").unwrap();
        let store = Store::open_in_boot(path.clone(), "one").unwrap();
        assert_eq!(store.all(), all);
        assert_eq!(store.epoch(), 7);
        drop(store);
        let store = Store::open_in_boot(path, "two").unwrap();
        assert!(store.volume("v").unwrap().references.is_empty());
    }

    #[test]
    fn a_change_that_cannot_be_written_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/state.json");
        fs::create_dir(folder.path().join("sub")).unwrap();
        let store = Store::open_in_boot(path, "one").unwrap();
        fs::remove_dir_all(folder.path().join("sub")).unwrap();
        let change = store.change(|state| state.volumes.insert("v".into(), record()));
        assert!(change.unwrap_err().to_string().contains("state.json"));
        assert_eq!(store.volume("v"), None);
    }

    #[test]
    fn files_of_others_are_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for text in ["{", r#"{"version":99}"#, r#"{"version":1}"#] {
            fs::write(&path, text).unwrap();
            let error = Store::open_in_boot(path.clone(), "one")
                .unwrap_err()
                .to_string();
            assert!(error.contains("move the file away"), "{error}");
        }
    }
}
