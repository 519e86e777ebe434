//! Why a backing cannot be served, with what to do about it.

use std::path::PathBuf;

use rustix::io::Errno;

/// Why a backing cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The file is not there and no size was given to make it.
    #[error(
        "{path}: no such file; make it (truncate -s SIZE {path}), or give a size where the configuration names it (--file PATH:SIZE, or size) to \
         have it made", path = .0.display()
    )]
    Missing(PathBuf),
    /// The folder in which it should be is not there.
    #[error("{}: its folder is not there; make it first, or mend the path", .0.display())]
    NoFolder(PathBuf),
    /// There is no such device.
    #[error("{}: no such device; is the name right, and the driver loaded?", .0.display())]
    NoDevice(PathBuf),
    /// Another target has it open, or this one under another name.
    #[error(
        "{} is served already, by this or another process; end that, or serve it read-only on both sides", .0.display()
    )]
    InUse(PathBuf),
    /// Opening failed.
    #[error("{}: cannot be opened for {access}: {errno}{remedy}", .path.display())]
    Open {
        /// The file or device.
        path: PathBuf,
        /// "reading" or "reading and writing".
        access: &'static str,
        /// What the kernel said.
        errno: Errno,
        /// What to do, or empty.
        remedy: &'static str,
    },
    /// Some other system call on it failed.
    #[error("{what}: {action} failed: {errno}")]
    System {
        /// The backing.
        what: String,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// It is not what the option says it is.
    #[error("{} is not a {expected}; {remedy}", .path.display())]
    WrongKind {
        /// The file or device.
        path: PathBuf,
        /// What the option serves.
        expected: &'static str,
        /// Which option serves what it is.
        remedy: &'static str,
    },
    /// The size is less than one block.
    #[error(
        "{what}: {size_bytes} bytes are less than one block of {block_bytes}; give a larger size"
    )]
    TooSmall {
        /// The backing.
        what: String,
        /// Its size.
        size_bytes: u64,
        /// The block size it would have.
        block_bytes: u32,
    },
    /// A block size that is not served.
    #[error("a block size of {0} bytes is not served; use 512 or 4096")]
    BlockSize(u32),
    /// Blocks smaller than what direct I/O on the backing can address.
    #[error(
        "{what}: blocks of {block_bytes} bytes are smaller than the {required_bytes} bytes that direct I/O on it needs; use a block size of {required_bytes}"
    )]
    Alignment {
        /// The backing.
        what: String,
        /// The block size asked for.
        block_bytes: u32,
        /// The smallest that works.
        required_bytes: u32,
    },
    /// This kind of backing cannot be had here.
    #[error("{what}: {why}")]
    Unsupported {
        /// The backing.
        what: String,
        /// Why not, and what to do.
        why: String,
    },
}

impl BackingError {
    /// Whether somebody else has the storage, so that it may be had later.
    pub fn is_in_use(&self) -> bool {
        matches!(
            self,
            Self::InUse(_)
                | Self::Open {
                    errno: Errno::BUSY,
                    ..
                }
        )
    }
}
