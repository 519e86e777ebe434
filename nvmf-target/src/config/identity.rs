//! Names and identifiers that stay the same over restarts without being written down.
//!
//! A host drops a namespace whose UUID or NGUID changed, and treats two subsystems with one serial number as one.
//! So what the operator does not give is derived from the machine-id, the subsystem's NQN and the backing's path, by
//! SHA-256 and UUID version 5, never by chance and never from the order of namespaces. The machine-id itself is not
//! disclosed: it enters hashes only. The path is taken as it was written: a link below `/dev/disk/by-id` is stable where the node
//! that it leads to is not. A memory namespace is the exception: its content is new at each start, so its
//! identity must be new too, or a host would go on silently on zeroes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Where systemd and D-Bus keep the machine's identity.
const MACHINE_ID_FILES: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// The length of an Identify Controller serial number.
pub const SERIAL_CHARS: usize = 20;

/// Salt of everything derived here, so that other programs that hash the machine-id arrive elsewhere.
const APPLICATION: &[u8] = b"nvmf-target";

/// Derives identifiers for this machine.
#[derive(Clone, Debug)]
pub struct Identity {
    seed: [u8; 32],
    /// Set where no machine-id was found and the host name stands in for it.
    pub from_host_name: bool,
}

impl Identity {
    /// The identity of the machine that we run on. Without a machine-id (minimal containers) the host name serves,
    /// and [`Identity::from_host_name`] says so.
    pub fn of_this_machine() -> Self {
        for file in MACHINE_ID_FILES {
            if let Ok(text) = fs::read_to_string(file)
                && !text.trim().is_empty()
                && text.trim() != "uninitialized"
            {
                return Self::from_seed(text.trim().as_bytes());
            }
        }
        let node = rustix::system::uname();
        Identity {
            from_host_name: true,
            ..Self::from_seed(node.nodename().to_bytes())
        }
    }

    /// An identity from any text that is unique to the machine.
    pub fn from_seed(text: &[u8]) -> Self {
        Identity {
            seed: hash(&[APPLICATION, text]),
            from_host_name: false,
        }
    }

    /// The subsystem NQN of the quick form when none is given.
    pub fn default_nqn(&self) -> String {
        format!(
            "nqn.2014-08.org.nvmexpress:uuid:{}",
            self.uuid(&[b"subsystem"])
        )
    }

    /// The serial number of the subsystem `nqn`: 20 hexadecimal digits.
    pub fn serial(&self, nqn: &str) -> String {
        let hash = hash(&[&self.seed, b"serial", nqn.as_bytes()]);
        let mut serial: String = hash.iter().map(|byte| format!("{byte:02X}")).collect();
        serial.truncate(SERIAL_CHARS);
        serial
    }

    /// The UUID of the namespace at `path` in the subsystem `nqn`. Its bytes are the NGUID as well.
    pub fn namespace_uuid(&self, nqn: &str, path: &Path) -> Uuid {
        self.uuid(&[b"namespace", nqn.as_bytes(), path.as_os_str().as_bytes()])
    }

    /// The UUID of a namespace that has no path and no content of its own: null, told apart by its NSID.
    pub fn pathless_uuid(&self, nqn: &str, nsid: u32) -> Uuid {
        let nsid = nsid.to_string();
        self.uuid(&[b"null", nqn.as_bytes(), OsStr::new(&nsid).as_bytes()])
    }

    fn uuid(&self, parts: &[&[u8]]) -> Uuid {
        let mut all: Vec<&[u8]> = vec![&self.seed];
        all.extend(parts);
        Uuid::new_v5(&Uuid::from_bytes(first_16(&self.seed)), &hash(&all))
    }
}

/// SHA-256 over parts, each preceded by its length, so that no two lists of parts collide.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    }
    sha.finalize().into()
}

fn first_16(hash: &[u8; 32]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::nqn::subsystem_nqn;

    const NQN: &str = "nqn.2025-01.org.example:disk1";

    #[test]
    fn the_same_inputs_give_the_same_identifiers() {
        let (one, two) = (Identity::from_seed(b"m1"), Identity::from_seed(b"m1"));
        assert_eq!(one.default_nqn(), two.default_nqn());
        assert_eq!(one.serial(NQN), two.serial(NQN));
        let path = Path::new("/srv/a.img");
        assert_eq!(one.namespace_uuid(NQN, path), two.namespace_uuid(NQN, path));
        assert_eq!(
            subsystem_nqn(&one.default_nqn()).unwrap().as_str(),
            one.default_nqn()
        );
        assert_eq!(one.serial(NQN).len(), SERIAL_CHARS);
    }

    #[test]
    fn these_values_are_frozen() {
        // Hosts know their namespaces by these. A change here makes every host drop its disks at the next upgrade.
        let identity = Identity::from_seed(b"0123456789abcdef0123456789abcdef");
        assert_eq!(
            identity.default_nqn(),
            "nqn.2014-08.org.nvmexpress:uuid:df6dad73-dc41-50a6-b69e-c4f33c82311d"
        );
        assert_eq!(identity.serial(NQN), "306409FDB4FC5664BCB9");
        assert_eq!(
            identity
                .namespace_uuid(NQN, Path::new("/srv/a.img"))
                .to_string(),
            "2f09df7e-f348-51b3-9f08-536d624ffed8"
        );
        assert_eq!(
            identity.pathless_uuid(NQN, 1).to_string(),
            "449ab72c-e1b1-55b7-bf6a-5460d13e4f66"
        );
    }

    #[test]
    fn every_input_matters() {
        let identity = Identity::from_seed(b"m1");
        let other = Identity::from_seed(b"m2");
        let path = Path::new("/srv/a.img");
        let uuid = identity.namespace_uuid(NQN, path);
        assert_ne!(uuid, other.namespace_uuid(NQN, path));
        assert_ne!(
            uuid,
            identity.namespace_uuid("nqn.2025-01.org.example:disk2", path)
        );
        assert_ne!(uuid, identity.namespace_uuid(NQN, Path::new("/srv/b.img")));
        assert_ne!(
            identity.pathless_uuid(NQN, 1),
            identity.pathless_uuid(NQN, 2)
        );
        assert_ne!(identity.serial(NQN), other.serial(NQN));
        assert_ne!(identity.default_nqn(), other.default_nqn());
        assert_eq!(uuid.get_version_num(), 5);
    }
}
