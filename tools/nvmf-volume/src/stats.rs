//! How full a file system is.

use std::path::Path;

use crate::Result;
use crate::error::Error;

/// Bytes and inodes of a mounted file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// All bytes.
    pub total_bytes: u64,
    /// Bytes that an ordinary user can still write.
    pub available_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// All inodes; 0 where the file system has no fixed number.
    pub total_inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
}

/// Of the file system that `path` is on.
pub fn stats(path: &Path) -> Result<Stats> {
    let fs = rustix::fs::statvfs(path).map_err(Error::system("ask the size of", path))?;
    let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
    Ok(Stats {
        total_bytes: bytes(fs.f_blocks),
        available_bytes: bytes(fs.f_bavail),
        used_bytes: bytes(fs.f_blocks.saturating_sub(fs.f_bfree)),
        total_inodes: fs.f_files,
        free_inodes: fs.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_and_available_fits_into_the_whole() {
        let stats = stats(Path::new("/")).unwrap();
        assert!(stats.total_bytes > 0);
        assert!(stats.used_bytes + stats.available_bytes <= stats.total_bytes);
        assert!(stats.free_inodes <= stats.total_inodes);
    }
}
