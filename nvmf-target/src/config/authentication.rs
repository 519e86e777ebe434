//! Who has to authenticate in band, with which secrets, and what may be agreed on.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nvme_proto::auth::{DhChapKeys, DhChapPolicy, Secret};
use zeroize::Zeroizing;

use crate::model::Nqn;

/// The longest file that is read for a secret; the longest secret has 103 characters.
const MAX_FILE_BYTES: u64 = 1024;

/// Who has to authenticate, and how. Secrets are hidden in what `Debug` shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Authentication {
    /// The secrets of hosts that have to, by their NQN.
    pub keys: BTreeMap<Nqn, Arc<DhChapKeys>>,
    /// Hash functions and groups that may be used.
    pub policy: DhChapPolicy,
}

/// Reads the secret in a file. The error says what to do, and nothing of what is in the file.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("{shown} cannot be read: {error}");
    // Something else than a file must not hold the target up.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("{shown} is not a file; write the secret into one"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "{shown} can be read by others (mode {:04o}); run chmod 600 {shown}",
            metadata.mode() & 0o7777
        ));
    }
    let own = rustix::process::geteuid().as_raw();
    if !is_trusted(metadata.uid(), own) {
        return Err(format!(
            "{shown} belongs to user {}, who can change it; it must belong to root or to the target's user, {own}: run chown {own} {shown}",
            metadata.uid()
        ));
    }
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES as usize));
    let read = file.take(MAX_FILE_BYTES).read_to_string(&mut text);
    read.map_err(unreadable)?;
    let secret = text.trim().parse::<Secret>();
    secret.map_err(|error| {
        format!("{shown} has no secret: {error}; make one with nvme gen-dhchap-key")
    })
}

/// Whether secrets may be in a file of the user `owner`, where the target is `own`.
fn is_trusted(owner: u32, own: u32) -> bool {
    owner == 0 || owner == own
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    const SECRET: &str = "DHHC-1:00:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";

    #[test]
    fn a_secret_is_read_from_a_file_of_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, format!("{SECRET}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let refused = read_secret(&path).unwrap_err();
        assert!(
            refused.contains("0640") && refused.contains("chmod 600"),
            "{refused}"
        );
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert_eq!(read_secret(&path).unwrap(), SECRET.parse().unwrap());
        assert!(is_trusted(0, 1000) && is_trusted(1000, 1000));
        assert!(!is_trusted(1001, 1000) && !is_trusted(1001, 0));
        // Only root can give a file away.
        if chown(&path, Some(1001), None).is_ok() {
            let refused = read_secret(&path).unwrap_err();
            assert!(
                refused.contains("belongs to user 1001") && refused.contains("chown"),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert!(read_secret(&path).unwrap_err().contains("cannot be read"));
        assert!(
            read_secret(folder.path())
                .unwrap_err()
                .contains("not a file")
        );
        let long = "x".repeat(5000);
        for text in [SECRET.replace("AQID", "AQIE"), String::new(), long] {
            fs::write(&path, &text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let refused = read_secret(&path).unwrap_err();
            assert!(refused.contains("gen-dhchap-key"), "{refused}");
            assert!(
                !refused.contains("QIE") && !refused.contains("xxx"),
                "{refused}"
            );
        }
    }
}
