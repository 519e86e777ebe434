//! Stable names: a folder of links from what identifies a namespace everywhere to the device that it has here.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::core::namespace::NamespaceInfo;

/// What a device of this namespace is called: `nvme-uuid.…` or `nvme-eui.…` as udev has it, or by subsystem and number
/// where the namespace has no identifier. Only letters, digits, `.`, `-` and `_`.
pub(crate) fn device_name(subnqn: &str, info: &NamespaceInfo) -> String {
    if info.identity.is_empty() {
        let clean = |c: char| {
            if c.is_ascii_alphanumeric() || ".-_".contains(c) {
                c
            } else {
                '_'
            }
        };
        return format!(
            "nvme-{}-ns{}",
            subnqn.chars().map(clean).collect::<String>(),
            info.nsid.0
        );
    }
    format!("nvme-{}", info.identity)
}

/// Points `folder/name` at `device`, in place of what was there.
pub(crate) fn link(folder: &Path, name: &str, device: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let (path, fresh) = (folder.join(name), folder.join(format!(".{name}.new")));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(device, &fresh)?;
    fs::rename(&fresh, &path)?;
    Ok(path)
}

/// Removes a stable name, if it still points at this device.
pub(crate) fn unlink(path: &Path, device: &Path) {
    if fs::read_link(path).is_ok_and(|target| target == device)
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "stable name left behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::namespace::{Limits, NamespaceIdentity};
    use nvme_proto::wire::Nsid;

    #[test]
    fn names_without_an_identity_are_clean() {
        let mut info = NamespaceInfo {
            nsid: Nsid(3),
            identity: NamespaceIdentity::default(),
            block_bytes: 512,
            blocks: 8,
            physical_block_bytes: 512,
            read_only: false,
            volatile_cache: true,
            limits: Limits {
                max_transfer_blocks: 8,
                max_write_zeroes_blocks: 0,
                max_discard_blocks: 0,
                compare: false,
            },
        };
        assert_eq!(
            device_name("nqn.x:a/../b c", &info),
            "nvme-nqn.x_a_.._b_c-ns3"
        );
        info.identity.eui64 = Some(7);
        assert_eq!(device_name("n", &info), "nvme-eui.0000000000000007");
    }

    #[test]
    fn links_are_replaced_and_only_our_own_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = link(folder.path(), "a", Path::new("/dev/x")).unwrap();
        link(folder.path(), "a", Path::new("/dev/y")).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("/dev/y"));
        unlink(&path, Path::new("/dev/x"));
        assert!(fs::symlink_metadata(&path).is_ok());
        unlink(&path, Path::new("/dev/y"));
        assert!(fs::symlink_metadata(&path).is_err());
    }
}
