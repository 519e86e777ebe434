//! What a volume is to be used for: as a file system or a raw device, by whom, and whether it is written.

use nvmf_volume::FsKind;
use tonic::Status;

use crate::Result;
use crate::proto::VolumeCapability;
use crate::proto::volume_capability::AccessType;
use crate::proto::volume_capability::access_mode::Mode;

/// The most that the mount options of a volume may take together.
const MAX_MOUNT_FLAGS_BYTES: usize = 4096;

/// A capability that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// A file system, or a raw device.
    pub kind: AccessKind,
    /// By whom.
    pub mode: Mode,
}

/// A file system, or a raw device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessKind {
    /// A raw device.
    Block,
    /// A file system.
    Mount {
        /// Which; `None` for the volume's own or the default.
        fs: Option<FsKind>,
        /// Options of the mount.
        flags: Vec<String>,
    },
}

impl Access {
    /// Checks one.
    pub fn new(capability: Option<&VolumeCapability>) -> Result<Access> {
        Access::read(capability, Status::invalid_argument)
    }

    /// Checks that of a node's call, for which the interface has a code of its own where the volume cannot do what is asked.
    pub fn on_node(capability: Option<&VolumeCapability>) -> Result<Access> {
        Access::read(capability, Status::failed_precondition)
    }

    fn read(capability: Option<&VolumeCapability>, cannot: fn(String) -> Status) -> Result<Access> {
        let said = |why: &str| format!("volume_capability: {why}");
        let invalid = |why: &str| Status::invalid_argument(said(why));
        let capability = capability.ok_or_else(|| invalid("it is missing"))?;
        let mode = capability
            .access_mode
            .as_ref()
            .map(|mode| mode.mode())
            .filter(|mode| *mode != Mode::Unknown)
            .ok_or_else(|| invalid("access_mode is missing"))?;
        let kind = match capability.access_type.as_ref() {
            None => return Err(invalid("it has neither block nor mount")),
            Some(AccessType::Block(_)) => AccessKind::Block,
            Some(AccessType::Mount(mount)) => {
                let fs = match mount.fs_type.as_str() {
                    "" => None,
                    name => Some(
                        name.parse()
                            .map_err(|error| cannot(said(&format!("{error}"))))?,
                    ),
                };
                if mount.mount_flags.iter().map(String::len).sum::<usize>() > MAX_MOUNT_FLAGS_BYTES
                {
                    return Err(invalid("mount_flags are longer than 4 KiB"));
                }
                if !mount.volume_mount_group.is_empty() {
                    return Err(cannot(said("volume_mount_group is not supported")));
                }
                AccessKind::Mount {
                    fs,
                    flags: mount.mount_flags.clone(),
                }
            }
        };
        let access = Access { kind, mode };
        match access.unsupported() {
            Some(why) => Err(cannot(said(why))),
            None => Ok(access),
        }
    }

    /// Checks all of a volume; there must be one.
    pub fn all(capabilities: &[VolumeCapability]) -> Result<Vec<Access>> {
        if capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities are missing"));
        }
        capabilities
            .iter()
            .map(|capability| Access::new(Some(capability)))
            .collect()
    }

    /// Why it cannot be.
    fn unsupported(&self) -> Option<&'static str> {
        match (self.mode, &self.kind) {
            (Mode::MultiNodeSingleWriter, _) => Some("MULTI_NODE_SINGLE_WRITER is not supported"),
            (Mode::MultiNodeMultiWriter, AccessKind::Mount { .. }) => Some(
                "MULTI_NODE_MULTI_WRITER is for raw devices: ext4 and xfs are damaged by a second writer",
            ),
            _ => None,
        }
    }

    /// Whether several nodes may have it at a time.
    pub fn is_shared(&self) -> bool {
        matches!(
            self.mode,
            Mode::MultiNodeReaderOnly | Mode::MultiNodeMultiWriter
        )
    }

    /// Whether nobody writes.
    pub fn is_read_only(&self) -> bool {
        matches!(
            self.mode,
            Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly
        )
    }

    /// The file system asked for.
    pub fn fs(&self) -> Option<FsKind> {
        match &self.kind {
            AccessKind::Mount { fs, .. } => *fs,
            AccessKind::Block => None,
        }
    }

    /// Whether it is a raw device.
    pub fn is_block(&self) -> bool {
        self.kind == AccessKind::Block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::volume_capability::{AccessMode, BlockVolume, MountVolume};
    use tonic::Code;

    fn capability(access_type: Option<AccessType>, mode: Mode) -> VolumeCapability {
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type,
        }
    }

    fn mount(fs_type: &str) -> Option<AccessType> {
        Some(AccessType::Mount(MountVolume {
            fs_type: fs_type.into(),
            ..MountVolume::default()
        }))
    }

    #[test]
    fn what_ext4_and_xfs_bear_is_taken() {
        let block = Some(AccessType::Block(BlockVolume {}));
        for mode in [
            Mode::SingleNodeWriter,
            Mode::SingleNodeSingleWriter,
            Mode::SingleNodeMultiWriter,
            Mode::SingleNodeReaderOnly,
            Mode::MultiNodeReaderOnly,
        ] {
            for access_type in [mount(""), mount("xfs"), block.clone()] {
                assert!(
                    Access::new(Some(&capability(access_type, mode))).is_ok(),
                    "{mode:?}"
                );
            }
        }
        assert!(Access::new(Some(&capability(block, Mode::MultiNodeMultiWriter))).is_ok());
    }

    #[test]
    fn the_rest_is_refused() {
        for wrong in [
            capability(None, Mode::SingleNodeWriter),
            capability(mount(""), Mode::Unknown),
            capability(mount(""), Mode::MultiNodeMultiWriter),
            capability(mount(""), Mode::MultiNodeSingleWriter),
            capability(mount("ntfs"), Mode::SingleNodeWriter),
            VolumeCapability {
                access_type: mount(""),
                access_mode: None,
            },
        ] {
            assert!(Access::new(Some(&wrong)).is_err(), "{wrong:?}");
        }
        let code = |wrong: &VolumeCapability| Access::on_node(Some(wrong)).unwrap_err().code();
        assert_eq!(
            code(&capability(mount("ntfs"), Mode::SingleNodeWriter)),
            Code::FailedPrecondition
        );
        assert_eq!(
            code(&capability(None, Mode::SingleNodeWriter)),
            Code::InvalidArgument
        );
        assert!(Access::new(None).is_err());
        assert!(Access::all(&[]).is_err());
    }
}
