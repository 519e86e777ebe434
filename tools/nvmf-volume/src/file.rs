//! Small files that are there whole or not at all, for what goes with a reboot: over a `kill -9` they are old or new; of a power
//! cut they need not know.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Result;
use crate::error::Error;

/// Where a file is written before it takes its place; always the same name, so that what a crash leaves is overwritten.
fn fresh(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Writes `value` in the place of what is there. The folder is made where it is missing. One writer at a time.
pub fn replace<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::system("make the folder", folder))?;
    }
    let fresh = fresh(path);
    let write = || -> io::Result<()> {
        fs::File::create(&fresh)?.write_all(&serde_json::to_vec(value)?)?;
        fs::rename(&fresh, path)
    };
    write().map_err(Error::system("write", path))
}

/// What was written; `None` where nothing is.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(Error::Unreadable {
                path: path.to_owned(),
                why: error.to_string(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::system("read", path)(error)),
    }
}

/// Removes it, and what a crash left of writing it; that nothing is there is fine.
pub fn remove(path: &Path) -> Result<()> {
    for path in [&fresh(path), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::system("remove", path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_old_or_new_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/v.claim");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        replace(&path, &1).unwrap();
        replace(&path, &2).unwrap();
        // What a crash left of a write that was not finished.
        fs::write(fresh(&path), "{").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(2));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_file_of_ours_is_named_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.claim");
        fs::write(&path, "{").unwrap();
        let error = read::<u32>(&path).unwrap_err().to_string();
        assert!(
            error.contains("v.claim") && error.contains("remove it"),
            "{error}"
        );
    }
}
