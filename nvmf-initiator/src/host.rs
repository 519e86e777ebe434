//! Who this host is: HOSTNQN and HOSTID, found in `/etc/nvme`, or made once and kept there.
//!
//! A target recognises a host by both, and one HOSTNQN with two HOSTIDs is refused by the Linux
//! target, so the pair must not change between runs. When a file is missing, the value is derived from
//! the machine id (the same each time, even where it cannot be written), and the file is written.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::address::{AddressError, check_nqn};

/// Where nvme-cli keeps its files.
pub const ETC_NVME: &str = "/etc/nvme";
const MACHINE_ID: &str = "/etc/machine-id";
const UUID_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";
/// Name space of the host ids that are derived from machine ids. Machine ids are secret by their own
/// manual page, so a hash of one goes on the wire, never the id itself.
const HOSTID_NAMESPACE: Uuid = Uuid::from_u128(0x6d1f_0d63_7a54_4c0e_9a53_3c5e_21b7_84f2);

/// The identity that a host presents at Connect.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostIdentity {
    /// HOSTNQN.
    pub hostnqn: String,
    /// HOSTID.
    pub hostid: Uuid,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file that exists and cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file without a value in it.
    #[error("{0} is empty; put this host's value in it or remove it, then it is made anew")]
    Empty(PathBuf),
    /// An NQN that cannot be sent.
    #[error("host NQN: {0}")]
    Nqn(#[from] AddressError),
    /// A host id that is no UUID.
    #[error("host id '{0}' is not a UUID; give one with --hostid or in /etc/nvme/hostid")]
    HostId(String),
    /// No file, and nothing to derive a value from.
    #[error(
        "no host identity: {0} is missing and the machine has no machine-id; \
         give --hostnqn and --hostid, or run systemd-machine-id-setup"
    )]
    Underivable(PathBuf),
}

/// Where the identity comes from; tests point it elsewhere.
#[derive(Debug, Clone)]
pub struct HostFiles {
    /// The folder of `hostnqn` and `hostid`.
    pub etc_nvme: PathBuf,
    /// The machine id.
    pub machine_id: PathBuf,
}

impl Default for HostFiles {
    fn default() -> Self {
        HostFiles {
            etc_nvme: ETC_NVME.into(),
            machine_id: MACHINE_ID.into(),
        }
    }
}

impl HostFiles {
    /// The identity to use, given what the user asked for (`-q`, `-I`).
    ///
    /// A given HOSTNQN of the UUID form brings its HOSTID with it, as it does for nvme-cli, unless a
    /// HOSTID is given as well: two host names on one machine would otherwise share the HOSTID.
    pub fn identity(
        &self,
        hostnqn: Option<&str>,
        hostid: Option<&str>,
    ) -> Result<HostIdentity, HostError> {
        let hostid = match (hostid, hostnqn.and_then(uuid_of_nqn)) {
            (Some(given), _) => parse_hostid(given)?,
            (None, Some(from_nqn)) => from_nqn,
            (None, None) => self.own_hostid()?,
        };
        let hostnqn = match hostnqn {
            Some(given) => given.to_owned(),
            None => self.own_hostnqn(hostid)?,
        };
        check_nqn(&hostnqn)?;
        Ok(HostIdentity { hostnqn, hostid })
    }

    fn own_hostid(&self) -> Result<Uuid, HostError> {
        let path = self.etc_nvme.join("hostid");
        if let Some(text) = read_value(&path)? {
            return parse_hostid(&text);
        }
        // A hostnqn that was written before us already holds the id that belongs to it.
        let derived = match read_value(&self.etc_nvme.join("hostnqn"))?
            .as_deref()
            .and_then(uuid_of_nqn)
        {
            Some(uuid) => uuid,
            None => self
                .derive()
                .ok_or_else(|| HostError::Underivable(path.clone()))?,
        };
        keep(&path, &derived.to_string());
        Ok(derived)
    }

    fn own_hostnqn(&self, hostid: Uuid) -> Result<String, HostError> {
        let path = self.etc_nvme.join("hostnqn");
        if let Some(text) = read_value(&path)? {
            return Ok(text);
        }
        let nqn = format!("{UUID_NQN_PREFIX}{hostid}");
        keep(&path, &nqn);
        Ok(nqn)
    }

    fn derive(&self) -> Option<Uuid> {
        let id = std::fs::read_to_string(&self.machine_id).ok()?;
        let id = id.trim();
        (!id.is_empty()).then(|| Uuid::new_v5(&HOSTID_NAMESPACE, id.as_bytes()))
    }
}

fn uuid_of_nqn(nqn: &str) -> Option<Uuid> {
    nqn.strip_prefix(UUID_NQN_PREFIX)
        .and_then(|text| text.parse().ok())
}

fn parse_hostid(text: &str) -> Result<Uuid, HostError> {
    text.parse().map_err(|_| HostError::HostId(text.to_owned()))
}

/// The first line of the file, or `None` where there is no file.
fn read_value(path: &Path) -> Result<Option<String>, HostError> {
    match std::fs::read_to_string(path) {
        Ok(text) => match text.lines().next().map(str::trim) {
            Some(line) if !line.is_empty() => Ok(Some(line.to_owned())),
            _ => Err(HostError::Empty(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HostError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a derived value down. Not fatal: an unprivileged user derives the same one next time.
fn keep(path: &Path, value: &str) {
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // `create_new`: of two first starts the second must not replace what the first may have sent.
        use io::Write as _;
        std::fs::File::create_new(path)?.write_all(format!("{value}\n").as_bytes())
    };
    if let Err(error) = write() {
        tracing::debug!(path = %path.display(), %error, "derived host identity not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &tempfile::TempDir, machine_id: Option<&str>) -> HostFiles {
        let files = HostFiles {
            etc_nvme: folder.path().join("etc/nvme"),
            machine_id: folder.path().join("machine-id"),
        };
        if let Some(id) = machine_id {
            std::fs::write(&files.machine_id, format!("{id}\n")).unwrap();
        }
        files
    }

    #[test]
    fn made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder, Some("aaaabbbbccccddddeeeeffff00001111"));
        let first = files.identity(None, None).unwrap();
        assert_eq!(first.hostnqn, format!("{UUID_NQN_PREFIX}{}", first.hostid));
        // The value on the wire is not the machine id.
        assert!(!first.hostid.simple().to_string().contains("aaaabbbb"));
        // Kept: a changed machine id changes nothing.
        std::fs::write(&files.machine_id, "other\n").unwrap();
        assert_eq!(files.identity(None, None).unwrap(), first);
        std::fs::remove_dir_all(&files.etc_nvme).unwrap();
        assert_ne!(files.identity(None, None).unwrap(), first);
    }

    #[test]
    fn what_cannot_be_kept_is_derived_alike_each_time() {
        let folder = tempfile::tempdir().unwrap();
        // Nobody, root included, makes folders in procfs.
        let files = HostFiles {
            etc_nvme: "/proc/etc-nvme".into(),
            ..files(&folder, Some("0123"))
        };
        let first = files.identity(None, None).unwrap();
        assert_eq!(files.identity(None, None).unwrap(), first);
        assert!(!files.etc_nvme.exists());
    }

    #[test]
    fn files_and_arguments_win() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder, None);
        std::fs::create_dir_all(&files.etc_nvme).unwrap();
        std::fs::write(files.etc_nvme.join("hostnqn"), "nqn.2026-01.io.example:h\n").unwrap();
        assert!(matches!(
            files.identity(None, None),
            Err(HostError::Underivable(_))
        ));
        std::fs::write(
            files.etc_nvme.join("hostid"),
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8\n",
        )
        .unwrap();
        let found = files.identity(None, None).unwrap();
        assert_eq!(found.hostnqn, "nqn.2026-01.io.example:h");
        assert_eq!(
            found.hostid.to_string(),
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
        );

        let other = Uuid::from_u128(7);
        let given = files
            .identity(Some(&format!("{UUID_NQN_PREFIX}{other}")), None)
            .unwrap();
        assert_eq!(given.hostid, other);
        assert!(matches!(
            files.identity(None, Some("seven")),
            Err(HostError::HostId(_))
        ));
        assert!(matches!(
            files.identity(Some(""), None),
            Err(HostError::Nqn(_))
        ));
        std::fs::write(files.etc_nvme.join("hostid"), "\n").unwrap();
        assert!(matches!(
            files.identity(None, None),
            Err(HostError::Empty(_))
        ));
    }
}
