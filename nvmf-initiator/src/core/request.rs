//! What callers ask of a namespace, what they get back, and the commands that say it on the wire.

use nvme_proto::wire::nvm::{BlockRange, DatasetManagement, RwDword12, flush_sqe};
use nvme_proto::wire::{IoOpcode, Lba, Nsid, Sqe, Status};
use nvmf_io::{Buf, Errno};
use zerocopy::little_endian::U32;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer from the namespace.
    Read,
    /// Store the buffer in the namespace.
    Write {
        /// Force unit access: on stable storage before it completes.
        fua: bool,
    },
    /// Everything that completed before reaches stable storage.
    Flush,
    /// Deallocate: the content no longer matters (Dataset Management).
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// The controller may deallocate the range, provided that it reads as zeroes.
        deallocate: bool,
    },
    /// Compare the buffer with the namespace; a difference is [`Status::COMPARE_FAILURE`].
    Compare,
}

impl Op {
    /// Whether the operation moves the caller's buffer.
    pub const fn has_data(self) -> bool {
        matches!(self, Op::Read | Op::Write { .. } | Op::Compare)
    }

    /// Whether the operation changes the namespace.
    pub const fn is_write(self) -> bool {
        matches!(
            self,
            Op::Write { .. } | Op::Discard | Op::WriteZeroes { .. }
        )
    }
}

/// One operation on one namespace, of any size: it is split as the controller's limits ask.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First block.
    pub slba: Lba,
    /// Number of blocks; 0 for a flush.
    pub blocks: u64,
    /// The data of operations that have any.
    pub buf: Option<Buf>,
    /// Where in `buf` the data starts.
    pub buf_offset_bytes: u32,
    /// The caller's name for it; comes back in [`Done`].
    pub tag: u64,
}

/// The outcome of a [`Request`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The request's tag.
    pub tag: u64,
    /// Success, or why not. After an error of a request that was split, any part of it may have been done.
    pub result: Result<(), IoError>,
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The controller said so.
    #[error("the controller completed the command with {0}")]
    Status(Status),
    /// The range ends behind the namespace.
    #[error("the range ends behind the last block of the namespace")]
    OutOfRange,
    /// The buffer is missing or too short for the blocks.
    #[error("the buffer does not hold the blocks of the request")]
    BadBuffer,
    /// The controller has no command for it.
    #[error("the controller does not support this operation")]
    Unsupported,
    /// The namespace does not take writes.
    #[error("the namespace is write protected")]
    ReadOnly,
    /// The controller is lost, and `fast_io_fail_tmo` has passed.
    #[error("the controller is lost and fast_io_fail_tmo has passed; reconnecting goes on")]
    FastIoFail,
    /// The controller was given up.
    #[error("the controller was given up (ctrl_loss_tmo passed, or it refused for good)")]
    Lost,
    /// After a reconnect another namespace answered under this NSID.
    #[error(
        "after the reconnect the namespace has another identity; disconnect and connect to use the new one"
    )]
    IdentityChanged,
    /// The namespace was removed at the target.
    #[error("the namespace was removed at the target")]
    Removed,
    /// The session or device was closed.
    #[error("closed")]
    Closed,
}

impl IoError {
    /// The error number that a block device's user sees; as the Linux host has it for status codes.
    pub fn errno(self) -> Errno {
        match self {
            IoError::Status(status) => errno_of(status),
            IoError::OutOfRange | IoError::BadBuffer => Errno::INVAL,
            IoError::Unsupported => Errno::OPNOTSUPP,
            IoError::ReadOnly => Errno::PERM,
            IoError::FastIoFail
            | IoError::Lost
            | IoError::IdentityChanged
            | IoError::Removed
            | IoError::Closed => Errno::IO,
        }
    }
}

fn errno_of(status: Status) -> Errno {
    const TABLE: &[(Status, Errno)] = &[
        (Status::CAPACITY_EXCEEDED, Errno::NOSPC),
        (Status::INVALID_OPCODE, Errno::OPNOTSUPP),
        (Status::INVALID_FIELD, Errno::OPNOTSUPP),
        (Status::INVALID_NAMESPACE, Errno::OPNOTSUPP),
        (Status::LBA_OUT_OF_RANGE, Errno::REMOTEIO),
        (Status::NAMESPACE_NOT_READY, Errno::REMOTEIO),
        (Status::COMMAND_INTERRUPTED, Errno::REMOTEIO),
        (Status::NAMESPACE_WRITE_PROTECTED, Errno::PERM),
        (Status::WRITE_FAULT, Errno::NODATA),
        (Status::UNRECOVERED_READ_ERROR, Errno::NODATA),
        (Status::COMPARE_FAILURE, Errno::NODATA),
        (Status::ACCESS_DENIED, Errno::NODATA),
        (Status::GUARD_CHECK_ERROR, Errno::ILSEQ),
        (Status::APPLICATION_TAG_CHECK_ERROR, Errno::ILSEQ),
        (Status::REFERENCE_TAG_CHECK_ERROR, Errno::ILSEQ),
        (Status::RESERVATION_CONFLICT, Errno::BADE),
    ];
    TABLE
        .iter()
        .find(|(known, _)| status.is(*known))
        .map_or(Errno::IO, |(_, errno)| *errno)
}

/// The command for one part of a request. `blocks` is within the bounds of [`super::namespace::Limits`]; CID and
/// data pointer are the queue's.
pub(crate) fn command(op: Op, nsid: Nsid, slba: Lba, blocks: u32) -> Sqe {
    let range = |opcode| {
        let blocks = blocks.clamp(1, BlockRange::MAX_BLOCKS);
        BlockRange { slba, blocks }
            .to_sqe(opcode, nsid, 0)
            .expect("clamped to what NLB holds")
    };
    let with = |mut sqe: Sqe, dword12: fn(RwDword12) -> RwDword12| {
        sqe.cdw12 = U32::new(dword12(RwDword12(sqe.cdw12.get())).0);
        sqe
    };
    match op {
        Op::Read => range(IoOpcode::READ),
        Op::Write { fua: false } => range(IoOpcode::WRITE),
        Op::Write { fua: true } => with(range(IoOpcode::WRITE), |dword12| dword12.with_fua(true)),
        Op::Compare => range(IoOpcode::COMPARE),
        Op::WriteZeroes { deallocate: false } => range(IoOpcode::WRITE_ZEROES),
        Op::WriteZeroes { deallocate: true } => with(range(IoOpcode::WRITE_ZEROES), |dword12| {
            dword12.with_deac(true)
        }),
        Op::Flush => flush_sqe(nsid),
        Op::Discard => DatasetManagement::deallocate(1)
            .to_sqe(nsid)
            .expect("one range is allowed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_carry_their_fields() {
        let write = command(Op::Write { fua: true }, Nsid(7), Lba(0x1_0000_0002), 65_536);
        assert_eq!((write.opcode, write.nsid()), (IoOpcode::WRITE, Nsid(7)));
        assert_eq!(write.cdw10_11(), 0x1_0000_0002);
        assert_eq!(write.cdw12.get(), 0x4000_ffff);
        assert_eq!(command(Op::Read, Nsid(1), Lba(0), 1).cdw12.get(), 0);
        let zeroes = command(Op::WriteZeroes { deallocate: true }, Nsid(1), Lba(0), 1);
        assert_eq!(
            (zeroes.opcode, zeroes.cdw12.get()),
            (IoOpcode::WRITE_ZEROES, 1 << 25)
        );
        let discard = command(Op::Discard, Nsid(1), Lba(9), 9);
        assert_eq!(
            (
                discard.cdw10.get(),
                discard.cdw11.get(),
                discard.cdw12.get()
            ),
            (0, 4, 0)
        );
        assert_eq!(command(Op::Flush, Nsid(3), Lba(9), 9).cdw10_11(), 0);
    }

    #[test]
    fn errors_are_the_ones_linux_shows() {
        assert_eq!(
            IoError::Status(Status::CAPACITY_EXCEEDED.dnr()).errno(),
            Errno::NOSPC
        );
        assert_eq!(
            IoError::Status(Status::UNRECOVERED_READ_ERROR).errno(),
            Errno::NODATA
        );
        assert_eq!(IoError::Status(Status::INTERNAL_ERROR).errno(), Errno::IO);
    }
}
