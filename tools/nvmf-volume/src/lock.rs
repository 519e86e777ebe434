//! One operation on a volume at a time.
//!
//! A lock is a locked file, so that it holds between processes and threads alike, and ends with the last process that has it
//! open: also with a mkfs that outlived whoever started it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::Result;
use crate::error::Error;

/// Longest file name that is made of a key; the kernel's limit is 255.
const MAX_NAME_BYTES: usize = 200;

/// The extension of a lock's file.
const LOCK: &str = "lock";

/// Held while something is done to a volume.
#[derive(Debug)]
pub struct VolumeLock {
    file: File,
    path: PathBuf,
}

impl VolumeLock {
    /// Waits for the lock of `key` in `folder`.
    pub fn take(folder: &Path, key: &str) -> Result<VolumeLock> {
        let lock = VolumeLock::acquire(folder, key, FlockOperation::LockExclusive)?;
        Ok(lock.expect("it was waited for"))
    }

    /// Takes the lock if nobody has it.
    pub fn try_take(folder: &Path, key: &str) -> Result<Option<VolumeLock>> {
        VolumeLock::acquire(folder, key, FlockOperation::NonBlockingLockExclusive)
    }

    fn acquire(folder: &Path, key: &str, operation: FlockOperation) -> Result<Option<VolumeLock>> {
        fs::create_dir_all(folder).map_err(Error::system("make the folder", folder))?;
        VolumeLock::acquire_file(folder.join(format!("{}.{LOCK}", file_name(key))), operation)
    }

    fn acquire_file(path: PathBuf, operation: FlockOperation) -> Result<Option<VolumeLock>> {
        loop {
            let file = File::options()
                .create(true)
                .write(true)
                .truncate(false)
                .open(&path)
                .map_err(Error::system("open", &path))?;
            match rustix::fs::flock(&file, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(Error::system("lock", &path)(errno)),
            }
            // Its holder before us removed the file: what we locked is nobody's lock any more.
            let own = file.metadata().map_err(Error::system("look at", &path))?;
            match fs::metadata(&path) {
                Ok(there) if there.ino() == own.ino() => {
                    return Ok(Some(VolumeLock { file, path }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::system("look at", &path)(error)),
            }
        }
    }

    /// Removes the files of locks whose holders died, and that nobody took since.
    pub(crate) fn sweep(folder: &Path) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::system("read", folder)(error)),
        };
        for entry in entries {
            let path = entry.map_err(Error::system("read", folder))?.path();
            if path.extension().is_some_and(|extension| extension == LOCK) {
                // Taken and given back, which removes it.
                VolumeLock::acquire_file(path, FlockOperation::NonBlockingLockExclusive)?;
            }
        }
        Ok(())
    }

    /// The lock for a program that works on the volume; it is held until that program ends, too.
    pub(crate) fn for_child(&self) -> Result<File> {
        let copy = self.file.try_clone();
        copy.map_err(Error::system("duplicate", &self.path))
    }
}

impl Drop for VolumeLock {
    fn drop(&mut self) {
        // While it is locked: whoever waits for it then sees that it is gone and makes another.
        let _ = fs::remove_file(&self.path);
    }
}

/// A file name for any key: distinct keys have distinct names.
pub(crate) fn file_name(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            b'.' if !name.is_empty() => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() > MAX_NAME_BYTES {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes());
        // Two signs that no escape is made of, so that no short key has this name.
        name.truncate(MAX_NAME_BYTES - 40);
        name = format!("{name}%%{}", hash.simple());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc;

    #[test]
    fn a_second_taker_waits_until_the_first_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let first = VolumeLock::take(folder.path(), "a/b").unwrap();
        assert!(
            VolumeLock::try_take(folder.path(), "a/b")
                .unwrap()
                .is_none()
        );
        assert!(
            VolumeLock::try_take(folder.path(), "a.b")
                .unwrap()
                .is_some()
        );
        let (told, tell) = mpsc::channel();
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || {
            let lock = VolumeLock::take(&path, "a/b").unwrap();
            told.send(()).unwrap();
            lock
        });
        assert_eq!(tell.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(first);
        tell.recv().unwrap();
        assert!(
            VolumeLock::try_take(folder.path(), "a/b")
                .unwrap()
                .is_none()
        );
        drop(second.join().unwrap());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "no file is left behind"
        );
    }

    #[test]
    fn a_program_that_outlives_its_starter_keeps_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let lock = VolumeLock::take(folder.path(), "v").unwrap();
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(lock.for_child().unwrap())
            .spawn()
            .unwrap();
        // As a kill does it: the descriptor is closed, and the file stays.
        let path = lock.path.clone();
        fs::hard_link(&path, folder.path().join("kept")).unwrap();
        drop(lock);
        fs::rename(folder.path().join("kept"), &path).unwrap();
        assert!(VolumeLock::try_take(folder.path(), "v").unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_the_dead_left_is_swept_and_what_is_held_stays() {
        let folder = tempfile::tempdir().unwrap();
        VolumeLock::sweep(&folder.path().join("missing")).unwrap();
        let held = VolumeLock::take(folder.path(), "held").unwrap();
        fs::write(folder.path().join("left.lock"), "").unwrap();
        fs::write(folder.path().join("other"), "").unwrap();
        VolumeLock::sweep(folder.path()).unwrap();
        assert!(!folder.path().join("left.lock").exists());
        assert!(folder.path().join("other").exists() && held.path.exists());
    }

    #[test]
    fn many_takers_never_hold_it_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = VolumeLock::take(folder.path(), "v").unwrap();
                        let before = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(before, 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
    }

    #[test]
    fn file_names_are_distinct_and_stay_in_their_folder() {
        assert_eq!(file_name("nqn.2024-01:a"), "nqn.2024-01%3aa");
        assert_eq!(file_name("../x"), "%2e.%2fx");
        assert_eq!(file_name("."), "%2e");
        assert_ne!(file_name("%3a"), file_name(":"));
        let (long, longer) = ("n".repeat(223), "n".repeat(224));
        assert!(file_name(&long).len() <= MAX_NAME_BYTES);
        assert_ne!(file_name(&long), file_name(&longer));
    }
}
