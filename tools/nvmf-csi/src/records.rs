//! What a node must know of what it staged: one small file for each volume, in a folder that a reboot empties, as it does away
//! with devices and mounts.
//!
//! A record is written before anything is done and removed after all was undone, so that whatever a crash leaves behind is
//! named by one.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nvmf_volume::FsKind;

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
}

impl Record {
    /// The file system.
    pub fn fs(&self) -> Option<FsKind> {
        self.fs.as_ref().and_then(|name| name.parse().ok())
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
    pub fn get(&self, volume_id: &str) -> io::Result<Option<Record>> {
        let path = self.path(volume_id);
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).map_err(|error| {
                let remedy = "remove it when nothing of the volume is mounted";
                io::Error::other(format!("{}: {error}; {remedy}", path.display()))
            })?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(&path)(error)),
        }
    }

    /// Writes one, whole or not at all.
    pub fn put(&self, record: &Record) -> io::Result<()> {
        fs::create_dir_all(&self.folder).map_err(named(&self.folder))?;
        let path = self.path(&record.volume_id);
        let fresh = path.with_extension("new");
        let write = |path: &Path| -> io::Result<()> {
            fs::File::create(path)?.write_all(&serde_json::to_vec(record)?)
        };
        write(&fresh).map_err(named(&fresh))?;
        fs::rename(&fresh, &path).map_err(named(&path))
    }

    /// Removes one, if it is there.
    pub fn remove(&self, volume_id: &str) -> io::Result<()> {
        let path = self.path(volume_id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(named(&path)(error)),
            _ => Ok(()),
        }
    }
}

fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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
        };
        records.put(&record).unwrap();
        records.put(&record).unwrap();
        assert_eq!(record.fs(), Some(FsKind::Xfs));
        assert_eq!(records.get("a/b").unwrap(), Some(record));
        records.remove("a/b").unwrap();
        records.remove("a/b").unwrap();
        assert_eq!(records.get("a/b").unwrap(), None);
    }
}
