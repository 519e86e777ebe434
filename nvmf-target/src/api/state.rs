//! What the API made, as it is kept: one file in the state directory.
//!
//! It is written under another name, made durable, renamed to its own, and the directory made durable: a crash or a loss of power at any
//! instant leaves the old or the new, whole. What is there but cannot be read is never overwritten: the target does not start.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nvmf_rpc::types::ListenAddress;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Carrier;

const FILE: &str = "api.json";
const TEMPORARY: &str = "api.json.new";
/// The form that is written and read.
const VERSION: u32 = 1;

/// Everything that the API made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// What nvmf_create_transport asked for TCP, once it was called.
    pub transport: Option<TransportRecord>,
    /// The same for RDMA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdma_transport: Option<TransportRecord>,
    /// Block devices.
    pub bdevs: Vec<BdevRecord>,
    /// Subsystems.
    pub subsystems: Vec<SubsystemRecord>,
}

impl Default for State {
    fn default() -> Self {
        State {
            version: VERSION,
            transport: None,
            rdma_transport: None,
            bdevs: Vec::new(),
            subsystems: Vec::new(),
        }
    }
}

impl State {
    /// What was asked of a transport.
    pub fn transport_mut(&mut self, carrier: Carrier) -> &mut Option<TransportRecord> {
        match carrier {
            Carrier::Tcp => &mut self.transport,
            Carrier::Rdma => &mut self.rdma_transport,
        }
    }

    /// What was asked of each transport.
    pub fn transports(&self) -> impl Iterator<Item = (Carrier, &TransportRecord)> {
        let tcp = self.transport.iter().map(|record| (Carrier::Tcp, record));
        let rdma = self.rdma_transport.iter();
        tcp.chain(rdma.map(|record| (Carrier::Rdma, record)))
    }
}

/// What hosts may use, where that differs from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransportRecord {
    /// Most entries of an I/O queue.
    pub queue_depth: Option<u16>,
    /// Most I/O queues of a controller.
    pub io_queues: Option<u16>,
    /// Most data in a command capsule.
    pub in_capsule_bytes: Option<u32>,
    /// Most data of one command.
    pub max_transfer_bytes: Option<u32>,
    /// Whether the SUCCESS flag may stand for a response.
    pub success_flag: Option<bool>,
}

/// What kind of block device, by the SPDK module that makes such a one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BdevKind {
    /// Memory.
    Malloc,
    /// Reads zeroes.
    Null,
    /// A file or block device, made with `bdev_aio_create`.
    Aio,
    /// A file or block device, made with `bdev_uring_create`; served in the same way.
    Uring,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BdevRecord {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: BdevKind,
    /// Where it is, where it has a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its size, where it has none by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Its block size as first opened, which never changes.
    pub block_bytes: u32,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// Its UUID. A memory device has none unless it was given: it gets a new one at each start, as its content does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// A subsystem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsystemRecord {
    /// Its NQN.
    pub nqn: String,
    /// Its serial number where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Its model number.
    pub model: String,
    /// Most namespaces.
    pub max_namespaces: u32,
    /// Whether any host may connect, whatever the list says.
    pub allow_any_host: bool,
    /// The hosts that may connect.
    pub hosts: BTreeSet<String>,
    /// Where.
    pub listeners: BTreeSet<ListenAddress>,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceRecord>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceRecord {
    /// Its identifier in the subsystem.
    pub nsid: u32,
    /// The block device's name.
    pub bdev: String,
    /// Its UUID, where that is not the block device's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its NGUID, where that is not the UUID's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nguid: Option<[u8; 16]>,
    /// Its EUI-64, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eui64: Option<[u8; 8]>,
}

/// Why the state cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is damaged, or somebody wrote it by hand.
    #[error("{path}: not understood: {why}; restore it from a copy, or move it away to start without what the API made", path = path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A later release wrote it.
    #[error("{path}: has version {version}, this release knows {VERSION}; start the later release again", path = path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it has.
        version: u64,
    },
}

/// Reads the state in `directory`; nothing is an empty one.
pub fn load(directory: &Path) -> Result<State, StateError> {
    let path = directory.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::default()),
        Err(source) => return Err(StateError::Read { path, source }),
    };
    let form = |why: serde_json::Error| StateError::Form {
        path: path.clone(),
        why: why.to_string(),
    };
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(form)?;
    match value["version"].as_u64() {
        Some(version) if version != u64::from(VERSION) => {
            Err(StateError::Version { path, version })
        }
        _ => serde_json::from_value(value).map_err(form),
    }
}

/// Writes the state in `directory`. Blocks while the storage does it.
pub fn save(directory: &Path, state: &State) -> io::Result<()> {
    let temporary = directory.join(TEMPORARY);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(FILE))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> State {
        State {
            bdevs: vec![BdevRecord {
                name: "Malloc0".into(),
                kind: BdevKind::Malloc,
                path: None,
                size_bytes: Some(1 << 20),
                block_bytes: 512,
                read_only: false,
                uuid: None,
            }],
            subsystems: vec![SubsystemRecord {
                nqn: "nqn.2025-01.org.example:a".into(),
                serial: None,
                model: "m".into(),
                max_namespaces: 32,
                allow_any_host: false,
                hosts: ["nqn.h".to_owned()].into(),
                listeners: BTreeSet::new(),
                namespaces: vec![NamespaceRecord {
                    nsid: 1,
                    bdev: "Malloc0".into(),
                    uuid: Some(Uuid::from_u128(7)),
                    nguid: Some([3; 16]),
                    eui64: None,
                }],
            }],
            ..State::default()
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), State::default());
        save(dir.path(), &some()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), some());
        // What a crash in the middle of the next save leaves is of no account.
        fs::write(dir.path().join(TEMPORARY), "{\"vers").unwrap();
        assert_eq!(load(dir.path()).unwrap(), some());
        save(dir.path(), &State::default()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), State::default());
    }

    #[test]
    fn a_state_that_is_not_understood_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        for (text, expected) in [
            ("", "not understood"),
            ("{\"version\": 1", "not understood"),
            (
                "{\"version\": 1, \"bdevs\": [], \"subsystems\": [], \"more\": 1}",
                "not understood",
            ),
            ("{\"version\": 2}", "later release"),
            ("[]", "not understood"),
        ] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
