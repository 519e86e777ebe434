//! What a node must know of what it staged: one small file for each volume, in a folder that a reboot empties, as it does away
//! with devices and mounts.
//!
//! A record is written before anything is done and removed after all was undone, so that whatever a crash leaves behind is
//! named by one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use nvmf_volume::{Result, file};
use serde::{Deserialize, Serialize};

use crate::attributes::Location;
use crate::names::hashed;

/// A staged volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The volume's identifier.
    pub volume_id: String,
    /// Where it is.
    pub location: Location,
    /// As whom this node connected.
    pub hostnqn: String,
    /// The file system's name; `None` for a raw device.
    pub fs: Option<String>,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where it is published, or was about to be when this process died.
    #[serde(default)]
    pub published: BTreeMap<PathBuf, Published>,
}

/// How a volume is published on a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Whether writes are refused there.
    pub read_only: bool,
    /// As a raw device.
    pub block: bool,
    /// The access mode, as the interface calls it.
    pub mode: String,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.block { "block" } else { "mount" };
        let access = if self.read_only {
            "read-only"
        } else {
            "writable"
        };
        write!(f, "{kind}, {access}, {}", self.mode)
    }
}

/// The folder of records.
#[derive(Debug, Clone)]
pub struct Records {
    folder: PathBuf,
}

impl Records {
    /// In this folder, which need not exist.
    pub fn new(folder: PathBuf) -> Records {
        Records { folder }
    }

    fn path(&self, volume_id: &str) -> PathBuf {
        self.folder.join(format!("{}.json", hashed(volume_id)))
    }

    /// Of a volume; `None` where there is none.
    pub fn get(&self, volume_id: &str) -> Result<Option<Record>> {
        file::read(&self.path(volume_id))
    }

    /// Writes one, whole or not at all.
    pub fn put(&self, record: &Record) -> Result<()> {
        file::replace(&self.path(&record.volume_id), record)
    }

    /// Removes one, and what is left of one that was being written.
    pub fn remove(&self, volume_id: &str) -> Result<()> {
        file::remove(&self.path(volume_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmf_volume::Address;

    #[test]
    fn records_stay_until_they_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::new(folder.path().join("csi"));
        assert_eq!(records.get("a/b").unwrap(), None);
        let published = Published {
            read_only: true,
            block: false,
            mode: "SINGLE_NODE_WRITER".into(),
        };
        let record = Record {
            volume_id: "a/b".into(),
            location: Location {
                address: Address::tcp("192.0.2.1", 4420),
                subnqn: "nqn.2024-01.org.example:v".into(),
                uuid: None,
                nguid: None,
                eui64: None,
                nsid: Some(1),
                hostnqn: None,
                hostid: None,
            },
            hostnqn: "nqn.2024-01.org.example:h".into(),
            fs: Some("xfs".into()),
            staging: "/staging".into(),
            published: [("/pod".into(), published)].into(),
        };
        records.put(&record).unwrap();
        records.put(&record).unwrap();
        assert_eq!(records.get("a/b").unwrap(), Some(record));
        records.remove("a/b").unwrap();
        records.remove("a/b").unwrap();
        assert_eq!(records.get("a/b").unwrap(), None);
    }
}
