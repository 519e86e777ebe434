//! From what the kernel says about I/O to the status that the host gets: one table.
//!
//! DNR is set where the same command would fail again until somebody acts on the storage node; it is left out where a retry, here or
//! on another path, may succeed.

use nvme_proto::wire::Status;
use rustix::io::Errno;

/// What kind of I/O failed: the same errno means different things to reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Reading blocks.
    Read,
    /// Writing, zeroing, deallocating or flushing blocks.
    Write,
}

impl Direction {
    /// The backing has less data than the namespace has blocks (a truncated file), or failed without saying more.
    pub fn fault(self) -> Status {
        match self {
            Self::Read => Status::UNRECOVERED_READ_ERROR,
            Self::Write => Status::WRITE_FAULT,
        }
    }
}

/// The status for `errno` of I/O in `direction`.
pub fn status_of(errno: Errno, direction: Direction) -> Status {
    match (errno, direction) {
        // No space, no quota, or beyond the largest file: more writing will not help.
        (Errno::NOSPC | Errno::DQUOT | Errno::FBIG, _) => Status::CAPACITY_EXCEEDED.dnr(),
        // The file system turned read-only, as after an error, or the file was made immutable.
        (Errno::ROFS | Errno::PERM | Errno::ACCESS, Direction::Write) => {
            Status::NAMESPACE_WRITE_PROTECTED.dnr()
        }
        // Transient: nothing was wrong with the command or the medium.
        (
            Errno::AGAIN
            | Errno::INTR
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::TIMEDOUT
            | Errno::BUSY,
            _,
        ) => Status::COMMAND_INTERRUPTED,
        // The ring cancelled it, which only an Abort command asks for.
        (Errno::CANCELED, _) => Status::ABORT_REQUESTED,
        // The device is gone; another path may still have it.
        (Errno::NODEV | Errno::NXIO | Errno::NOMEDIUM | Errno::SHUTDOWN, _) => {
            Status::INTERNAL_PATH_ERROR
        }
        // A reservation of another holder on the device below.
        (Errno::BADE, _) => Status::RESERVATION_CONFLICT.dnr(),
        // Protection information of the device below did not match.
        (Errno::ILSEQ, _) => Status::GUARD_CHECK_ERROR,
        // EIO, ENODATA (a medium error of the block layer), EREMOTEIO, EUCLEAN … : the medium.
        (_, direction) => direction.fault(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        use Direction::{Read, Write};
        let table = [
            (Errno::NOSPC, Write, Status::CAPACITY_EXCEEDED.dnr()),
            (Errno::DQUOT, Write, Status::CAPACITY_EXCEEDED.dnr()),
            (Errno::FBIG, Write, Status::CAPACITY_EXCEEDED.dnr()),
            (Errno::IO, Read, Status::UNRECOVERED_READ_ERROR),
            (Errno::IO, Write, Status::WRITE_FAULT),
            (Errno::NODATA, Read, Status::UNRECOVERED_READ_ERROR),
            (Errno::REMOTEIO, Write, Status::WRITE_FAULT),
            (Errno::UCLEAN, Read, Status::UNRECOVERED_READ_ERROR),
            (Errno::ROFS, Write, Status::NAMESPACE_WRITE_PROTECTED.dnr()),
            (Errno::ACCESS, Read, Status::UNRECOVERED_READ_ERROR),
            (Errno::NOMEM, Write, Status::COMMAND_INTERRUPTED),
            (Errno::AGAIN, Read, Status::COMMAND_INTERRUPTED),
            (Errno::CANCELED, Write, Status::ABORT_REQUESTED),
            (Errno::NODEV, Read, Status::INTERNAL_PATH_ERROR),
            (Errno::BADE, Write, Status::RESERVATION_CONFLICT.dnr()),
            (Errno::ILSEQ, Read, Status::GUARD_CHECK_ERROR),
        ];
        for (errno, direction, status) in table {
            assert_eq!(
                status_of(errno, direction),
                status,
                "{errno:?} {direction:?}"
            );
        }
    }
}
