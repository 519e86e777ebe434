//! A file is served by one process at a time.
//!
//! The lock keeps two targets from serving one file to hosts that know nothing of each other. It also closes a gap that no
//! association can: when a target is killed, writes that the kernel already has may land after a new target was started, and after
//! a host wrote the same blocks there. The lock belongs to the open file, and the kernel closes that only once its last
//! operation has ended, whatever became of the process; so whoever waits for the lock waits for those writes too.
//! Block devices are opened exclusively, which works the same way.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::BackingError;

/// How often a lock that another process holds is asked for again.
const RETRY: Duration = Duration::from_millis(20);

/// Takes the lock on a file: shared for readers, exclusive for a writer.
pub(super) fn claim(file: impl AsFd, path: &Path, read_only: bool) -> Result<(), BackingError> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(BackingError::InUse(path.into())),
        // Some network file systems have no locks.
        Err(errno) => {
            tracing::warn!(path = %path.display(), "cannot be locked ({errno}): nothing keeps another target from serving it too");
            Ok(())
        }
    }
}

/// Repeats `open` until the storage is not in use any more, at most for `patience`. Blocks.
pub(super) fn patiently<T>(
    patience: Duration,
    mut open: impl FnMut() -> Result<T, BackingError>,
) -> Result<T, BackingError> {
    let start = Instant::now();
    let mut told = false;
    loop {
        match open() {
            Err(error) if error.is_in_use() && start.elapsed() < patience => {
                if !told {
                    let patience_s = patience.as_secs_f32();
                    tracing::info!("waiting up to {patience_s} s: {error}");
                    told = true;
                }
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backing, BackingOptions, BackingSpec};

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![0; 8192]).unwrap();
        let spec = BackingSpec::File {
            path: path.clone(),
            size_bytes: None,
        };
        let open = |read_only| {
            let options = BackingOptions {
                read_only,
                block_bytes: None,
            };
            Backing::open(&spec, &options)
        };
        let writer = open(false).unwrap();
        for read_only in [false, true] {
            let error = open(read_only).unwrap_err();
            assert!(error.is_in_use());
            assert_eq!(
                error.to_string(),
                format!(
                    "{} is served already, by this or another process; end that, or serve it read-only on both sides",
                    path.display()
                )
            );
        }
        drop(writer);
        let (_one, _two) = (open(true).unwrap(), open(true).unwrap());
        assert!(open(false).unwrap_err().is_in_use());
    }

    #[test]
    fn patience_waits_for_the_lock_and_ends() {
        let in_use = || BackingError::InUse("/a".into());
        let mut left = 3;
        let opened = patiently(Duration::from_secs(60), || {
            left -= 1;
            if left > 0 { Err(in_use()) } else { Ok(()) }
        });
        assert!(opened.is_ok() && left == 0);
        let mut tries = 0;
        let ended: Result<(), _> = patiently(RETRY * 2, || {
            tries += 1;
            Err(in_use())
        });
        assert!(ended.unwrap_err().is_in_use() && tries >= 2);
        let mut tries = 0;
        let missing: Result<(), _> = patiently(Duration::from_secs(60), || {
            tries += 1;
            Err(BackingError::Missing("/a".into()))
        });
        assert!(
            missing.is_err() && tries == 1,
            "waiting helps against use only"
        );
    }
}
