//! Checks of I/O commands: everything that can be said of one before any data moves.

use super::fault::Fault;
use super::{expect_bytes, ops};
use crate::wire::fabrics::RECFMT_0;
use crate::wire::nvm::{BlockRange, DatasetManagement, DsmRange, RwDword12};
use crate::wire::{FabricsType, Fuse, IoOpcode, Lba, Nsid, Psdt, Sqe};
use zerocopy::FromBytes;

/// The most that one Write Zeroes covers (WZSL): all that NLB can name with blocks of 512 bytes. Larger
/// blocks could name gigabytes, which a backing may have to write.
pub const MAX_WRITE_ZEROES_BYTES: u32 = 32 << 20;

/// What the checks need to know of a namespace and of the controller that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceLimits {
    /// log2 of the block size in bytes, 9 to 31.
    pub block_shift: u8,
    /// Size of the namespace in blocks.
    pub blocks: u64,
    /// Whether the namespace is write protected.
    pub read_only: bool,
    /// The longest transfer in bytes (MDTS).
    pub max_transfer_bytes: u32,
}

impl NamespaceLimits {
    /// Whether `blocks` blocks from `slba` lie within the namespace.
    fn contains(&self, slba: Lba, blocks: u32) -> bool {
        slba.0
            .checked_add(blocks.into())
            .is_some_and(|end| end <= self.blocks)
    }
}

/// An I/O command that passed the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// Read.
    Read {
        /// The blocks.
        range: BlockRange,
        /// Force Unit Access.
        fua: bool,
    },
    /// Write.
    Write {
        /// The blocks.
        range: BlockRange,
        /// On stable storage before it completes.
        fua: bool,
    },
    /// Compare the host's data with the blocks.
    Compare {
        /// The blocks.
        range: BlockRange,
        /// Force Unit Access.
        fua: bool,
    },
    /// Check that the blocks can be read.
    Verify {
        /// The blocks.
        range: BlockRange,
        /// Force Unit Access.
        fua: bool,
    },
    /// Write Zeroes.
    WriteZeroes {
        /// The blocks.
        range: BlockRange,
        /// The blocks may be deallocated instead (DEAC).
        deallocate: bool,
        /// On stable storage before it completes.
        fua: bool,
    },
    /// Dataset Management with the Deallocate attribute; the ranges are in the data, see [`dsm_ranges`].
    Deallocate {
        /// How many ranges, 1 to 256.
        ranges: u16,
    },
    /// Dataset Management without the Deallocate attribute: hints that may be ignored.
    DatasetHint {
        /// How many ranges, 1 to 256.
        ranges: u16,
    },
    /// Flush of the namespace.
    Flush,
    /// Flush of all namespaces (NSID FFFFFFFFh).
    FlushAll,
    /// Disconnect: end this queue.
    Disconnect,
}

/// Checks an I/O command for the namespace that its NSID names; `None` where there is no such one.
pub fn validate_io(sqe: &Sqe, namespace: Option<&NamespaceLimits>) -> Result<IoCommand, Fault> {
    if sqe.is_fabrics() {
        return validate_fabrics(sqe);
    }
    if sqe.fuse() != Fuse::Normal {
        return Err(Fault::Fused);
    }
    if sqe.psdt() != Psdt::Sgl {
        return Err(Fault::NotSgl);
    }
    let op = ops::io_op(sqe.opcode).ok_or(Fault::UnsupportedOpcode(sqe.opcode))?;
    if sqe.opcode == IoOpcode::FLUSH && sqe.nsid() == Nsid::ALL {
        expect_bytes(sqe, 0)?;
        return Ok(IoCommand::FlushAll);
    }
    let namespace = namespace
        .filter(|_| sqe.nsid().is_single())
        .ok_or(Fault::InvalidNsid(sqe.nsid()))?;
    if op.writes && namespace.read_only {
        return Err(Fault::WriteProtected);
    }
    match sqe.opcode {
        IoOpcode::FLUSH => expect_bytes(sqe, 0).map(|()| IoCommand::Flush),
        IoOpcode::DATASET_MANAGEMENT => validate_dsm(sqe, namespace),
        _ => validate_range(sqe, namespace),
    }
}

/// The one fabrics command of I/O queues is Disconnect. (Authentication comes before a queue gets here.)
fn validate_fabrics(sqe: &Sqe) -> Result<IoCommand, Fault> {
    match sqe.fctype() {
        FabricsType::DISCONNECT => match sqe.cdw10.get() as u16 {
            RECFMT_0 => Ok(IoCommand::Disconnect),
            other => Err(Fault::RecordFormat(other)),
        },
        FabricsType::CONNECT => Err(Fault::AlreadyConnected),
        other => Err(Fault::UnsupportedFctype(other.0)),
    }
}

/// Read, Write, Compare, Verify and Write Zeroes.
fn validate_range(sqe: &Sqe, namespace: &NamespaceLimits) -> Result<IoCommand, Fault> {
    let range = BlockRange::from_sqe(sqe);
    let dword12 = RwDword12(sqe.cdw12.get());
    let fua = dword12.fua();
    if dword12.prinfo() != 0 {
        return Err(Fault::ProtectionInformation);
    }
    if !namespace.contains(range.slba, range.blocks) {
        return Err(Fault::LbaOutOfRange {
            slba: range.slba,
            blocks: range.blocks,
        });
    }
    let bytes = u64::from(range.blocks) << namespace.block_shift;
    match sqe.opcode {
        IoOpcode::VERIFY => {
            expect_bytes(sqe, 0)?;
            Ok(IoCommand::Verify { range, fua })
        }
        IoOpcode::WRITE_ZEROES => {
            expect_bytes(sqe, 0)?;
            let limit = MAX_WRITE_ZEROES_BYTES;
            if bytes > limit.into() {
                return Err(Fault::WriteZeroesTooLong { bytes, limit });
            }
            Ok(IoCommand::WriteZeroes {
                range,
                deallocate: dword12.deac(),
                fua,
            })
        }
        opcode => {
            if bytes > namespace.max_transfer_bytes.into() {
                return Err(Fault::TransferTooLong {
                    bytes,
                    limit: namespace.max_transfer_bytes,
                });
            }
            expect_bytes(sqe, bytes)?;
            match opcode {
                IoOpcode::READ => Ok(IoCommand::Read { range, fua }),
                IoOpcode::COMPARE => Ok(IoCommand::Compare { range, fua }),
                // DTYPE exists in Write only.
                _ if dword12.dtype() != 0 => Err(Fault::Directive(dword12.dtype() as u8)),
                _ => Ok(IoCommand::Write { range, fua }),
            }
        }
    }
}

/// Dataset Management. The SGL may describe more than the ranges take: Linux always sends room for 256.
fn validate_dsm(sqe: &Sqe, namespace: &NamespaceLimits) -> Result<IoCommand, Fault> {
    let dsm = DatasetManagement::from_sqe(sqe);
    let described = sqe.dptr.length_bytes();
    if described < dsm.data_bytes() {
        return Err(Fault::DataLength {
            described,
            expected: dsm.data_bytes().into(),
        });
    }
    if described > namespace.max_transfer_bytes {
        return Err(Fault::TransferTooLong {
            bytes: described.into(),
            limit: namespace.max_transfer_bytes,
        });
    }
    Ok(match dsm.attributes.ad() {
        true => IoCommand::Deallocate { ranges: dsm.ranges },
        false => IoCommand::DatasetHint { ranges: dsm.ranges },
    })
}

/// The first `ranges` ranges in Dataset Management's `data`, each checked against the namespace; empty
/// ones are left out. Fewer are yielded where `data` is too short, which [`validate_io`] excludes.
pub fn dsm_ranges(
    data: &[u8],
    ranges: u16,
    namespace: &NamespaceLimits,
) -> impl Iterator<Item = Result<(Lba, u32), Fault>> {
    data.chunks_exact(DsmRange::SIZE)
        .take(ranges.into())
        .filter_map(|chunk| DsmRange::read_from_bytes(chunk).ok())
        .map(|range| (Lba(range.slba.get()), range.length_blocks.get()))
        .filter(|&(_, blocks)| blocks != 0)
        .map(|(slba, blocks)| match namespace.contains(slba, blocks) {
            true => Ok((slba, blocks)),
            false => Err(Fault::LbaOutOfRange { slba, blocks }),
        })
}
