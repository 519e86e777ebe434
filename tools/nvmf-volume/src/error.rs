//! What goes wrong with volumes on a node, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use nvmf_initiator::daemon::api::{Failure, FailureKind};

use crate::filesystem::FsKind;

/// What went wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The initiator's daemon refused or failed.
    #[error("nvmf-initiator: {0}")]
    Initiator(#[from] Failure),
    /// A system call failed.
    #[error("{}: cannot {what}: {source}", path.display())]
    System {
        /// The verb.
        what: String,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program is not installed.
    #[error("{program} is missing: install it (Debian: package {package})")]
    MissingTool {
        /// The program.
        program: &'static str,
        /// Debian's package with it.
        package: &'static str,
    },
    /// A program failed.
    #[error("{program} on {}: {status}: {said}", device.display())]
    Tool {
        /// The program.
        program: &'static str,
        /// Its device.
        device: PathBuf,
        /// How it ended.
        status: String,
        /// What it said.
        said: String,
    },
    /// The device holds something that is not ours to replace.
    #[error(
        "{} holds {what}: it is not formatted, and not mounted as {wanted}. If this is the right device and nothing on it is \
         needed, clear it with `wipefs -a` and `blkdiscard -z`; otherwise correct the volume's settings",
        device.display()
    )]
    Foreign {
        /// The device.
        device: PathBuf,
        /// What was found.
        what: String,
        /// What was asked for.
        wanted: FsKind,
    },
    /// A file system was asked for on a device that has none and cannot be written.
    #[error("{} is read-only and holds no file system: nothing can be mounted from it", .0.display())]
    BlankReadOnly(PathBuf),
    /// The file system is damaged beyond what is mended without a human.
    #[error("the {kind} on {} needs repair: {said}. Run `{remedy}` on a copy or a clone first", device.display())]
    NeedsRepair {
        /// The file system.
        kind: FsKind,
        /// The device.
        device: PathBuf,
        /// What was said.
        said: String,
        /// The command.
        remedy: String,
    },
    /// A mounted ext4 may not be grown by this process.
    #[error(
        "{}: the kernel lets only processes with CAP_SYS_RESOURCE grow a mounted ext4: give this one the capability, or unmount \
         the volume everywhere on this node; it grows when it is mounted again", .0.display()
    )]
    GrowDenied(PathBuf),
    /// Something else is mounted where the volume belongs.
    #[error("{} has something else mounted on it ({found}); unmount that first", at.display())]
    Occupied {
        /// The mount point.
        at: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file system is too small for its kind.
    #[error("{} has {size_bytes} bytes; {kind} needs at least {min_bytes}", device.display())]
    TooSmall {
        /// The device.
        device: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The file system.
        kind: FsKind,
        /// The least it can be made with.
        min_bytes: u64,
    },
    /// In use, so that it cannot be taken away.
    #[error("{} is in use{}", path.display(), users(.by))]
    Busy {
        /// The mount point or device.
        path: PathBuf,
        /// By whom, as far as it can be told.
        by: Vec<String>,
    },
    /// A file of ours that is none.
    #[error("{}: {why}; remove it when the volume is not in use", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A setting that makes no sense.
    #[error("{0}")]
    Setting(String),
}

/// Kinds of error, for callers that answer in codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// What was named does not exist.
    NotFound,
    /// The volume, as it is, does not allow it: foreign data, damage, read-only.
    Precondition,
    /// In use.
    Busy,
    /// The target refused this host.
    Denied,
    /// Not now: the target or the daemon cannot be reached.
    Unavailable,
    /// This node lacks something, or anything else.
    Internal,
}

impl Error {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Initiator(failure) => match failure.kind {
                FailureKind::Usage => Kind::Invalid,
                FailureKind::NotFound => Kind::NotFound,
                FailureKind::Busy => Kind::Busy,
                FailureKind::Refused => Kind::Denied,
                FailureKind::Unreachable => Kind::Unavailable,
                FailureKind::Other | FailureKind::System => Kind::Internal,
            },
            Error::Setting(_) => Kind::Invalid,
            Error::Foreign { .. }
            | Error::GrowDenied(_)
            | Error::BlankReadOnly(_)
            | Error::NeedsRepair { .. }
            | Error::Occupied { .. }
            | Error::TooSmall { .. } => Kind::Precondition,
            Error::Busy { .. } => Kind::Busy,
            Error::System { .. }
            | Error::MissingTool { .. }
            | Error::Tool { .. }
            | Error::Unreadable { .. } => Kind::Internal,
        }
    }

    /// For `map_err` after a system call.
    pub(crate) fn system<E: Into<io::Error>>(what: &str, path: &Path) -> impl FnOnce(E) -> Error {
        move |source| Error::System {
            what: what.to_owned(),
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

fn users(by: &[String]) -> String {
    match by.is_empty() {
        true => ", perhaps in another mount namespace".to_owned(),
        false => format!(" by {}", by.join(", ")),
    }
}
