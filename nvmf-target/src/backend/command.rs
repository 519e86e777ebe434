//! From a submission queue entry to what shall be done: every check on an I/O command that needs no I/O.
//!
//! A [`Plan`] that comes out is within the namespace and within the limits, so that what executes it checks nothing again. It is only valid for
//! the namespace it was made for.

use nvme_proto::wire::{Fuse, IoOpcode, Lba, Psdt, Sqe, Status};
use nvmf_io::Buf;

use crate::model::{Geometry, IoClass, Namespace};

/// Bit 30 of command dword 12: Force Unit Access.
const FUA: u32 = 1 << 30;
/// Bit 25 of command dword 12 of Write Zeroes: the blocks may be deallocated.
const DEAC: u32 = 1 << 25;
/// Bit 2 of command dword 11 of Dataset Management: deallocate the ranges.
const DSM_AD: u32 = 1 << 2;
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

/// The blocks that SLBA and NLB of a command name, as bytes.
struct Extent {
    offset_bytes: u64,
    len_bytes: u64,
}

impl Extent {
    /// Of Read, Write, Compare, Write Zeroes and Verify, which lay them out alike. The blocks must lie in the namespace.
    fn of(sqe: &Sqe, geometry: &Geometry) -> Result<Self, Status> {
        let start = Lba(sqe.cdw10_11());
        // NLB is 0's based.
        let blocks = u64::from(sqe.cdw12.get() & 0xffff) + 1;
        match geometry.offset_bytes(start, blocks) {
            Some(offset_bytes) => Ok(Self {
                offset_bytes,
                len_bytes: blocks << geometry.block_shift(),
            }),
            None => Err(Status::LBA_OUT_OF_RANGE.dnr()),
        }
    }

    /// The length of a command that moves its blocks: bounded by the maximum data transfer size.
    fn transfer_bytes(&self, max_transfer_bytes: u32) -> Result<u32, Status> {
        match u32::try_from(self.len_bytes) {
            Ok(len) if len <= max_transfer_bytes => Ok(len),
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }
}

/// Checks `sqe`, an I/O command to `namespace`, and says what to do. Fabrics commands are not for here.
pub fn plan(sqe: &Sqe, namespace: &Namespace, max_transfer_bytes: u32) -> Result<Plan, Status> {
    check_common(sqe)?;
    let geometry = &namespace.geometry;
    let writable = || match namespace.read_only {
        true => Err(Status::NAMESPACE_WRITE_PROTECTED.dnr()),
        false => Ok(()),
    };
    let fua = sqe.cdw12.get() & FUA != 0;
    let (op, data, class, counted_bytes) = match sqe.opcode {
        IoOpcode::READ => {
            let extent = Extent::of(sqe, geometry)?;
            let len_bytes = extent.transfer_bytes(max_transfer_bytes)?;
            let op = BackendOp::Read {
                offset_bytes: extent.offset_bytes,
                len_bytes,
            };
            (
                op,
                DataNeeds::ToHost(len_bytes),
                IoClass::Read,
                extent.len_bytes,
            )
        }
        IoOpcode::WRITE => {
            writable()?;
            let extent = Extent::of(sqe, geometry)?;
            let len_bytes = extent.transfer_bytes(max_transfer_bytes)?;
            let op = BackendOp::Write {
                offset_bytes: extent.offset_bytes,
                len_bytes,
                fua,
            };
            (
                op,
                DataNeeds::FromHost(len_bytes),
                IoClass::Write,
                extent.len_bytes,
            )
        }
        IoOpcode::COMPARE => {
            let extent = Extent::of(sqe, geometry)?;
            let len_bytes = extent.transfer_bytes(max_transfer_bytes)?;
            let op = BackendOp::Compare {
                offset_bytes: extent.offset_bytes,
                len_bytes,
            };
            (
                op,
                DataNeeds::FromHost(len_bytes),
                IoClass::Read,
                extent.len_bytes,
            )
        }
        IoOpcode::FLUSH => (BackendOp::Flush, DataNeeds::None, IoClass::Flush, 0),
        IoOpcode::WRITE_ZEROES => {
            writable()?;
            let Extent {
                offset_bytes,
                len_bytes,
            } = Extent::of(sqe, geometry)?;
            let deallocate = sqe.cdw12.get() & DEAC != 0;
            let op = BackendOp::WriteZeroes {
                offset_bytes,
                len_bytes,
                deallocate,
                fua,
            };
            (op, DataNeeds::None, IoClass::Write, len_bytes)
        }
        IoOpcode::VERIFY => {
            let Extent {
                offset_bytes,
                len_bytes,
            } = Extent::of(sqe, geometry)?;
            let op = BackendOp::Verify {
                offset_bytes,
                len_bytes,
            };
            (op, DataNeeds::None, IoClass::Read, len_bytes)
        }
        IoOpcode::DATASET_MANAGEMENT => {
            // NR is 0's based.
            let ranges = (sqe.cdw10.get() & 0xff) as u16 + 1;
            let op = if sqe.cdw11.get() & DSM_AD != 0 {
                writable()?;
                BackendOp::Deallocate { ranges }
            } else {
                BackendOp::Nothing
            };
            let data = DataNeeds::FromHostAtLeast(u32::from(ranges) * DSM_RANGE_BYTES);
            (op, data, IoClass::Other, 0)
        }
        _ => return Err(Status::INVALID_OPCODE.dnr()),
    };
    Ok(Plan {
        op,
        data,
        class,
        counted_bytes,
    })
}

/// What holds for every I/O command.
fn check_common(sqe: &Sqe) -> Result<(), Status> {
    // Fused operations are not offered (FUSES is 0).
    if sqe.fuse() != Fuse::Normal {
        return Err(Status::INVALID_FIELD.dnr());
    }
    // Fabrics describe data by SGLs only.
    if sqe.psdt() != Psdt::Sgl {
        return Err(Status::INVALID_FIELD.dnr());
    }
    Ok(())
}

impl DataNeeds {
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
