//! A command while it is executed: how far it has come, and what a shard lends it.

use nvme_proto::digest::Crc;
use nvme_proto::wire::Status;
use nvmf_io::{Buf, BufPool, Token};

use super::command::BackendOp;
use crate::model::Geometry;

/// Blocks are compared, verified and zeroed by writing in pieces of so many bytes at most: enough that the cost of an operation does not
/// matter, little enough that one command does not hold up the others.
pub const PIECE_BYTES: u32 = 256 << 10;

/// A command and how far it has come. Starts at nothing done.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub(super) op: BackendOp,
    pub(super) stage: Stage,
    /// Bytes that are done; for Deallocate, ranges.
    pub(super) done: u64,
    /// Where the file ended when the command was started, as far as it matters: see [`FileBackend`](super::file::FileBackend).
    pub(super) end_bytes: u64,
    pub(super) digest: Digest,
}

/// The digest of the data that a read leaves in its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digest {
    /// Nobody asked.
    Unwanted,
    /// Whoever copies the data may compute it meanwhile.
    Wanted,
    /// Of the whole buffer.
    Known(Crc),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// An fdatasync at the start, for a read with FUA.
    SyncFirst,
    /// The operation itself.
    Main,
    /// Write Zeroes by writing them, since the backing has no better way.
    ByWriting,
    /// An fdatasync at the end, for FUA where there is no flag for it.
    Sync,
}

impl Work {
    /// A command that was not started yet.
    pub fn new(op: BackendOp) -> Self {
        let stage = match op {
            BackendOp::Read { fua: true, .. } => Stage::SyncFirst,
            _ => Stage::Main,
        };
        Self {
            op,
            stage,
            done: 0,
            end_bytes: 0,
            digest: Digest::Unwanted,
        }
    }

    /// The same for data that are sent with a digest if `wanted`: where they are copied, computing it costs less than it would later.
    #[must_use]
    pub fn with_digest(mut self, wanted: bool) -> Self {
        if wanted {
            self.digest = Digest::Wanted;
        }
        self
    }

    /// The digest of all that was read, where it was wanted and came about. Otherwise it has to be computed from the buffer.
    pub fn digest(&self) -> Option<Crc> {
        match self.digest {
            Digest::Known(crc) => Some(crc),
            Digest::Unwanted | Digest::Wanted => None,
        }
    }

    /// What it does.
    pub fn op(&self) -> BackendOp {
        self.op
    }
}

/// One step of a command: the command, its data and where.
#[derive(Debug)]
pub struct Task<'a> {
    /// The command.
    pub work: &'a mut Work,
    /// Its buffer: of the length of its transfer, filled for what comes from the host. `None` where it needs none.
    pub data: Option<&'a Buf>,
    /// The namespace that it was checked against.
    pub geometry: Geometry,
    /// What the operation's completion shall carry.
    pub token: Token,
}

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// An operation is in flight; take the next step with its result.
    InFlight,
    /// Start the next operation.
    Again,
    /// The shard's compare buffer is in use; start again when [`Lent::compare_is_free`].
    WaitForCompare,
    /// The command is done.
    Done(Status),
}

/// Memory that a shard lends to the commands it executes, so that none of them needs an allocation that could fail half-way.
#[derive(Debug)]
pub struct Lent {
    /// [`PIECE_BYTES`] for whoever reads in order to throw away: shared by all Verify commands.
    pub(super) sink: Buf,
    /// Zeroes, at least [`PIECE_BYTES`].
    pub(super) zeroes: Buf,
    /// [`PIECE_BYTES`] for one Compare at a time.
    pub(super) compare: Buf,
    /// Whether a read into `compare` is in flight.
    pub(super) comparing: bool,
    /// How often completions were asked for: what is known of a file holds until the next time.
    pub(super) turn: u64,
}

impl Lent {
    /// Takes what is lent from `pool`; `None` when it is dry, which a new pool is not.
    pub fn new(pool: &BufPool) -> Option<Self> {
        Some(Self {
            sink: pool.alloc(PIECE_BYTES)?,
            zeroes: pool.zero()?,
            compare: pool.alloc(PIECE_BYTES)?,
            comparing: false,
            turn: 0,
        })
    }

    /// The kernel was asked for completions: what was known of files before does not hold for those.
    pub fn forget(&mut self) {
        self.turn += 1;
    }

    /// Zeroes, for reads of what has no content.
    pub fn zeroes(&self) -> &Buf {
        &self.zeroes
    }

    /// Whether a command that got [`Next::WaitForCompare`] may start again.
    pub fn compare_is_free(&self) -> bool {
        !self.comparing
    }
}
