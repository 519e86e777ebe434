//! From a submission queue entry to what shall be done. `nvme-proto` checks the command; here its blocks become bytes.
//!
//! A [`Plan`] that comes out is within the namespace and within the limits, so that what executes it checks nothing again. It is only valid for
//! the namespace it was made for.

use nvme_proto::controller::{IoCommand, NamespaceLimits, validate_io};
use nvme_proto::wire::nvm::BlockRange;
use nvme_proto::wire::{Lba, Sqe, Status};
use nvmf_io::Buf;

use crate::model::{Geometry, IoClass, Namespace};

/// Size of one range of Dataset Management.
const DSM_RANGE_BYTES: u32 = 16;

/// What an I/O command does to the bytes of its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendOp {
    /// Bytes to the host.
    Read {
        /// Where.
        offset_bytes: u64,
        /// How many.
        len_bytes: u32,
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

/// How data goes between host and target for one command, in bytes; what the host's SGL has to describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataNeeds {
    /// No data.
    None,
    /// The host sends exactly so much.
    FromHost(u32),
    /// The host sends at least so much and the rest is ignored: Dataset Management of Linux sends a full page.
    FromHostAtLeast(u32),
    /// The host receives exactly so much.
    ToHost(u32),
}

/// A checked command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// What to do.
    pub op: BackendOp,
    /// What data it moves.
    pub data: DataNeeds,
    /// What it counts as.
    pub class: IoClass,
    /// Bytes of the namespace it counts as.
    pub counted_bytes: u64,
}

/// Checks `sqe`, an I/O command to `namespace`, and says what to do. Fabrics commands are not for here.
pub fn plan(sqe: &Sqe, namespace: &Namespace, max_transfer_bytes: u32) -> Result<Plan, Status> {
    let geometry = &namespace.geometry;
    let limits = NamespaceLimits {
        block_shift: geometry.block_shift(),
        blocks: geometry.blocks(),
        read_only: namespace.read_only,
        max_transfer_bytes,
    };
    let command = validate_io(sqe, Some(&limits)).map_err(|fault| fault.status())?;
    // Within the namespace, whose size in bytes has 64 bits.
    let offset = |range: BlockRange| range.slba.0 << geometry.block_shift();
    let length = |range: BlockRange| u64::from(range.blocks) << geometry.block_shift();
    // What moves data is within the maximum data transfer size, which has 32 bits.
    let moved = |range: BlockRange| length(range) as u32;
    let (op, data, class, counted_bytes) = match command {
        IoCommand::Read { range, .. } => {
            let op = BackendOp::Read {
                offset_bytes: offset(range),
                len_bytes: moved(range),
            };
            let data = DataNeeds::ToHost(moved(range));
            (op, data, IoClass::Read, length(range))
        }
        IoCommand::Write { range, fua } => {
            let op = BackendOp::Write {
                offset_bytes: offset(range),
                len_bytes: moved(range),
                fua,
            };
            let data = DataNeeds::FromHost(moved(range));
            (op, data, IoClass::Write, length(range))
        }
        IoCommand::Compare { range, .. } => {
            let op = BackendOp::Compare {
                offset_bytes: offset(range),
                len_bytes: moved(range),
            };
            let data = DataNeeds::FromHost(moved(range));
            (op, data, IoClass::Read, length(range))
        }
        IoCommand::WriteZeroes {
            range,
            deallocate,
            fua,
        } => {
            let op = BackendOp::WriteZeroes {
                offset_bytes: offset(range),
                len_bytes: length(range),
                deallocate,
                fua,
            };
            (op, DataNeeds::None, IoClass::Write, length(range))
        }
        IoCommand::Verify { range, .. } => {
            let op = BackendOp::Verify {
                offset_bytes: offset(range),
                len_bytes: length(range),
            };
            (op, DataNeeds::None, IoClass::Read, length(range))
        }
        IoCommand::Deallocate { ranges } => {
            let op = BackendOp::Deallocate { ranges };
            (op, DataNeeds::of_ranges(ranges), IoClass::Other, 0)
        }
        IoCommand::DatasetHint { ranges } => {
            let data = DataNeeds::of_ranges(ranges);
            (BackendOp::Nothing, data, IoClass::Other, 0)
        }
        IoCommand::Flush => (BackendOp::Flush, DataNeeds::None, IoClass::Flush, 0),
        // Identify Controller (VWC) says that a flush is of one namespace.
        IoCommand::FlushAll => return Err(Status::INVALID_NAMESPACE.dnr()),
        IoCommand::Disconnect => return Err(Status::INVALID_OPCODE.dnr()),
    };
    Ok(Plan {
        op,
        data,
        class,
        counted_bytes,
    })
}

impl DataNeeds {
    fn of_ranges(ranges: u16) -> Self {
        Self::FromHostAtLeast(u32::from(ranges) * DSM_RANGE_BYTES)
    }

    /// Whether the transfer that the SGL describes is the one that the command implies: `from_host` and `to_host` are its lengths in bytes, one of them or
    /// both 0.
    pub fn check(self, from_host: u32, to_host: u32) -> Result<(), Status> {
        let fits = match self {
            // An SGL that describes data for a command without data is ignored by everyone else too.
            Self::None => true,
            Self::FromHost(len) => from_host == len && to_host == 0,
            Self::FromHostAtLeast(len) => from_host >= len && to_host == 0,
            Self::ToHost(len) => to_host == len && from_host == 0,
        };
        if fits {
            Ok(())
        } else {
            Err(Status::DATA_SGL_LENGTH_INVALID.dnr())
        }
    }
}

/// Range `index` of Dataset Management's `data` as the bytes that it names (offset, length); `None` for an empty one.
pub fn deallocated_range(
    data: &Buf,
    index: u16,
    geometry: &Geometry,
) -> Result<Option<(u64, u64)>, Status> {
    let mut raw = [0; DSM_RANGE_BYTES as usize];
    data.copy_out(u32::from(index) * DSM_RANGE_BYTES, &mut raw);
    dsm_range(&raw, geometry)
}

/// All ranges of Dataset Management's `data` that are not empty, with the status of those that lie outside the namespace.
pub fn deallocated_ranges(
    data: &Buf,
    count: u16,
    geometry: &Geometry,
) -> impl Iterator<Item = Result<(u64, u64), Status>> {
    (0..count).filter_map(|index| deallocated_range(data, index, geometry).transpose())
}

fn dsm_range(
    raw: &[u8; DSM_RANGE_BYTES as usize],
    geometry: &Geometry,
) -> Result<Option<(u64, u64)>, Status> {
    // Context attributes (bytes 3:0) are hints. Then the length in blocks, not 0's based, and the first block.
    let (blocks, start) = (&raw[4..8], &raw[8..16]);
    let blocks = u64::from(u32::from_le_bytes(blocks.try_into().expect("4 bytes")));
    let start = u64::from_le_bytes(start.try_into().expect("8 bytes"));
    match geometry.offset_bytes(Lba(start), blocks) {
        Some(offset_bytes) if blocks > 0 => {
            Ok(Some((offset_bytes, blocks << geometry.block_shift())))
        }
        Some(_) => Ok(None),
        None => Err(Status::LBA_OUT_OF_RANGE.dnr()),
    }
}

#[cfg(test)]
mod tests;
