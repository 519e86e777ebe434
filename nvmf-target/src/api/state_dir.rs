//! The state directory: made with mode 0700, and locked, so that two targets never share one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

const LOCK_FILE: &str = "lock";

/// Why a state directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another target has it.
    #[error("{path}: another target has this state directory; give each its own (--state-dir DIR)", path = .0.display())]
    InUse(PathBuf),
    /// A system call failed.
    #[error("{path}: cannot {action}: {source}; name a place that this user may write to (--state-dir DIR)", path = path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A state directory that is ours for as long as this lives.
#[derive(Debug)]
pub struct StateDir {
    /// Where it is.
    pub path: PathBuf,
    _lock: OwnedFd,
}

impl StateDir {
    /// Takes the directory at `path`, making it where it is missing.
    pub fn take(path: &Path) -> Result<Self, StateDirError> {
        let failed = |action| {
            move |source: io::Error| StateDirError::System {
                path: path.to_owned(),
                action,
                source,
            }
        };
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(failed("make it"))?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let lock = open(path.join(LOCK_FILE), flags, Mode::RUSR | Mode::WUSR);
        let lock = lock.map_err(|errno| failed("open its lock")(errno.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateDir {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(Errno::WOULDBLOCK) => Err(StateDirError::InUse(path.to_owned())),
            Err(errno) => Err(failed("lock it")(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_state_directory_has_one_target() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lib").join("state");
        let taken = StateDir::take(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let error = StateDir::take(&path).unwrap_err();
        assert!(matches!(error, StateDirError::InUse(_)), "{error}");
        drop(taken);
        StateDir::take(&path).unwrap();
    }
}
