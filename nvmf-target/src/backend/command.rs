//! From a checked I/O command to what shall be done with the bytes of its namespace.
//!
//! The checks are the protocol crate's ([`validate_io`]). A [`Plan`] is within the namespace and within the limits, so that what executes it
//! checks nothing again. It is only valid for the namespace as it was then.

use nvme_proto::controller::{IoCommand, NamespaceLimits, dsm_ranges, validate_io};
use nvme_proto::wire::nvm::BlockRange;
use nvme_proto::wire::{Sqe, Status};
use nvmf_io::Buf;

use crate::model::{Geometry, IoClass, Namespace};

/// What an I/O command does to the bytes of its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendOp {
    /// Bytes to the host.
    Read {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u32,
        /// From stable storage: what was written before is made stable first.
        fua: bool,
    },
    /// Bytes from the host.
    Write {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u32,
        /// On stable storage before it completes.
        fua: bool,
    },
    /// Everything that was completed before on stable storage.
    Flush,
    /// Zeroes without data from the host.
    WriteZeroes {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u64,
        /// The blocks may give back their space.
        deallocate: bool,
        /// On stable storage before it completes.
        fua: bool,
    },
    /// The ranges that the host sends give back their space; reads of them return zeroes where the backing can do that.
    Deallocate {
        /// Number of ranges in the data.
        ranges: u16,
    },
    /// Bytes from the host equal those that are there.
    Compare {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u32,
    },
    /// The bytes can be read.
    Verify {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u64,
    },
    /// Nothing to do: hints that no backing uses.
    Nothing,
}

/// A checked command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub op: BackendOp,
    /// For all namespaces of the subsystem, one after another: Flush with the broadcast NSID.
    pub for_all: bool,
    /// What it counts as.
    pub class: IoClass,
    /// Bytes of the namespace it counts as.
    pub counted_bytes: u64,
}

impl Namespace {
    fn limits(&self, max_transfer_bytes: u32) -> NamespaceLimits {
        NamespaceLimits {
            block_shift: self.geometry.block_shift(),
            blocks: self.geometry.blocks(),
            read_only: self.read_only,
            max_transfer_bytes,
        }
    }
}

/// Checks `sqe`, a command to `namespace` (`None` where its NSID names none), and says what to do.
#[inline]
pub fn plan(
    sqe: &Sqe,
    namespace: Option<&Namespace>,
    max_transfer_bytes: u32,
) -> Result<Plan, Status> {
    let limits = namespace.map(|namespace| namespace.limits(max_transfer_bytes));
    let command = validate_io(sqe, limits.as_ref()).map_err(|fault| fault.status())?;
    let shift = limits.map_or(0, |limits| limits.block_shift);
    let offset = |range: BlockRange| range.slba.0 << shift;
    let len = |range: BlockRange| u64::from(range.blocks) << shift;
    let plan = |op, class, counted_bytes| Plan {
        op,
        for_all: false,
        class,
        counted_bytes,
    };
    // Lengths of commands that move data fit 32 bits: the longest transfer does.
    Ok(match command {
        IoCommand::Read { range, fua } => {
            let (offset_bytes, bytes) = (offset(range), len(range));
            plan(
                BackendOp::Read {
                    offset_bytes,
                    len_bytes: bytes as u32,
                    fua,
                },
                IoClass::Read,
                bytes,
            )
        }
        IoCommand::Write { range, fua } => {
            let (offset_bytes, bytes) = (offset(range), len(range));
            plan(
                BackendOp::Write {
                    offset_bytes,
                    len_bytes: bytes as u32,
                    fua,
                },
                IoClass::Write,
                bytes,
            )
        }
        // FUA of Compare and Verify asks for blocks as they are on the medium; that they are equal or readable here is all that can be told.
        IoCommand::Compare { range, .. } => {
            let (offset_bytes, bytes) = (offset(range), len(range));
            plan(
                BackendOp::Compare {
                    offset_bytes,
                    len_bytes: bytes as u32,
                },
                IoClass::Read,
                bytes,
            )
        }
        IoCommand::Verify { range, .. } => {
            let (offset_bytes, len_bytes) = (offset(range), len(range));
            plan(
                BackendOp::Verify {
                    offset_bytes,
                    len_bytes,
                },
                IoClass::Read,
                len_bytes,
            )
        }
        IoCommand::WriteZeroes {
            range,
            deallocate,
            fua,
        } => {
            let (offset_bytes, len_bytes) = (offset(range), len(range));
            let op = BackendOp::WriteZeroes {
                offset_bytes,
                len_bytes,
                deallocate,
                fua,
            };
            plan(op, IoClass::Write, len_bytes)
        }
        IoCommand::Deallocate { ranges } => {
            plan(BackendOp::Deallocate { ranges }, IoClass::Other, 0)
        }
        IoCommand::DatasetHint { .. } => plan(BackendOp::Nothing, IoClass::Other, 0),
        IoCommand::Flush => plan(BackendOp::Flush, IoClass::Flush, 0),
        IoCommand::FlushAll => Plan {
            for_all: true,
            ..plan(BackendOp::Flush, IoClass::Flush, 0)
        },
        // About the queue, not about a namespace: handled before it comes here.
        IoCommand::Disconnect => return Err(Status::INTERNAL_ERROR),
    })
}

/// The ranges that a Dataset Management command deallocates: what the host sent, and the namespace that it has to fit.
#[derive(Clone, Copy)]
pub struct Ranges<'a> {
    data: &'a Buf,
    count: u16,
    limits: NamespaceLimits,
}

impl<'a> Ranges<'a> {
    /// The first `count` ranges of `data`.
    pub fn new(data: &'a Buf, count: u16, geometry: &Geometry) -> Self {
        let limits = NamespaceLimits {
            block_shift: geometry.block_shift(),
            blocks: geometry.blocks(),
            read_only: false,
            max_transfer_bytes: u32::MAX,
        };
        Self {
            data,
            count,
            limits,
        }
    }

    /// Whether all of them lie in the namespace: to be asked before the first is touched.
    pub fn check(&self) -> Result<(), Status> {
        let Some(data) = self.data.bytes() else {
            return Err(Status::INTERNAL_ERROR);
        };
        let bad = dsm_ranges(&data, self.count, &self.limits).find_map(Result::err);
        bad.map_or(Ok(()), |fault| Err(fault.status()))
    }

    /// Offset and length in bytes of the range `index` of those that are not empty.
    pub fn get(&self, index: usize) -> Option<(u64, u64)> {
        let data = self.data.bytes()?;
        let (slba, blocks) = dsm_ranges(&data, self.count, &self.limits)
            .nth(index)?
            .ok()?;
        let shift = self.limits.block_shift;
        Some((slba.0 << shift, u64::from(blocks) << shift))
    }
}

#[cfg(test)]
mod tests;
