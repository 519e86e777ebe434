//! Commands of the NVM command set: their fields, read from and written to an SQE.

use super::bits::register;
use super::command::Sqe;
use super::ids::{Lba, Nsid};
use super::opcode::{IoOpcode, Opcode};
use super::sgl::SglDescriptor;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

register! {
    /// Dword 12 of Read, Write, Compare, Verify and Write Zeroes.
    RwDword12: u32 {
        /// Number of Logical Blocks (NLB), 0's based.
        nlb with_nlb [15:0];
        /// Directive Type (DTYPE) of Write.
        dtype with_dtype [23:20];
        /// Storage Tag Check (STC).
        stc with_stc [24];
        /// Deallocate (DEAC) of Write Zeroes.
        deac with_deac [25];
        /// Protection Information Field (PRINFO).
        prinfo with_prinfo [29:26];
        /// Force Unit Access (FUA).
        fua with_fua [30];
        /// Limited Retry (LR).
        lr with_lr [31];
    }
}

/// What Read, Write, Compare, Verify and Write Zeroes have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockRange {
    /// Starting LBA (SLBA).
    pub slba: Lba,
    /// Number of logical blocks, 1's based: 1 to 65536.
    pub blocks: u32,
}

impl BlockRange {
    /// The most blocks that one command can name.
    pub const MAX_BLOCKS: u32 = 1 << 16;

    /// Reads SLBA and NLB.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        Self {
            slba: Lba(sqe.cdw10_11()),
            blocks: RwDword12(sqe.cdw12.get()).nlb() + 1,
        }
    }

    /// The block after the last, or `None` where that is more than 64 bits.
    pub fn end(self) -> Option<Lba> {
        self.slba.0.checked_add(u64::from(self.blocks)).map(Lba)
    }

    /// An SQE of `opcode` for this range (1 to 65536 blocks; `None` otherwise) with `data_bytes` of
    /// data that the transport moves.
    pub fn to_sqe(self, opcode: Opcode, nsid: Nsid, data_bytes: u32) -> Option<Sqe> {
        let nlb = self
            .blocks
            .checked_sub(1)
            .filter(|&n| n < Self::MAX_BLOCKS)?;
        let mut sqe = Sqe::new(opcode);
        sqe.nsid = U32::new(nsid.0);
        sqe.dptr = SglDescriptor::transport(data_bytes);
        sqe.set_cdw10_11(self.slba.0);
        sqe.cdw12 = U32::new(nlb);
        Some(sqe)
    }
}

/// Flush of one namespace, or of all with [`Nsid::ALL`].
pub fn flush_sqe(nsid: Nsid) -> Sqe {
    let mut sqe = Sqe::new(IoOpcode::FLUSH);
    sqe.nsid = U32::new(nsid.0);
    sqe.dptr = SglDescriptor::transport(0);
    sqe
}

register! {
    /// Dword 11 of Dataset Management.
    DsmDword11: u32 {
        /// Attribute: Integral Dataset for Read (IDR).
        idr with_idr [0];
        /// Attribute: Integral Dataset for Write (IDW).
        idw with_idw [1];
        /// Attribute: Deallocate (AD).
        ad with_ad [2];
    }
}

/// The fields of Dataset Management.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatasetManagement {
    /// Number of Ranges (NR), 1's based: 1 to 256.
    pub ranges: u16,
    /// The attributes.
    pub attributes: DsmDword11,
}

impl DatasetManagement {
    /// The most ranges that one command can name.
    pub const MAX_RANGES: u16 = 256;

    /// Deallocate `ranges` (1 to 256) ranges.
    pub fn deallocate(ranges: u16) -> Self {
        Self {
            ranges,
            attributes: DsmDword11::default().with_ad(true),
        }
    }

    /// How many bytes of data the ranges take.
    pub fn data_bytes(&self) -> u32 {
        u32::from(self.ranges) * DsmRange::SIZE as u32
    }

    /// Reads the fields of an SQE.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        Self {
            ranges: u16::from(sqe.cdw10.get() as u8) + 1,
            attributes: DsmDword11(sqe.cdw11.get()),
        }
    }

    /// An SQE with these fields and exactly the data that the ranges take; `None` where there are
    /// no ranges or more than 256.
    pub fn to_sqe(self, nsid: Nsid) -> Option<Sqe> {
        let nr = self
            .ranges
            .checked_sub(1)
            .filter(|&n| n < Self::MAX_RANGES)?;
        let mut sqe = Sqe::new(IoOpcode::DATASET_MANAGEMENT);
        sqe.nsid = U32::new(nsid.0);
        sqe.dptr = SglDescriptor::transport(self.data_bytes());
        sqe.cdw10 = U32::new(nr.into());
        sqe.cdw11 = U32::new(self.attributes.0);
        Some(sqe)
    }
}

/// One range of Dataset Management.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// Context Attributes.
    pub cattr: U32,
    /// Length in logical blocks, not 0's based.
    pub length_blocks: U32,
    /// Starting LBA.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == DsmRange::SIZE);

impl DsmRange {
    /// Size in bytes.
    pub const SIZE: usize = 16;

    /// A range without context attributes.
    pub fn new(slba: Lba, length_blocks: u32) -> Self {
        Self {
            cattr: U32::ZERO,
            length_blocks: U32::new(length_blocks),
            slba: U64::new(slba.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_read() {
        let range = BlockRange {
            slba: Lba(0x0102_0304_0506),
            blocks: 8,
        };
        let mut sqe = range.to_sqe(IoOpcode::READ, Nsid(2), 4096).unwrap();
        sqe.cdw12 = U32::new(RwDword12(sqe.cdw12.get()).with_fua(true).0);
        let b = sqe.as_bytes();
        assert_eq!(b[..8], [0x02, 0x40, 0, 0, 2, 0, 0, 0]);
        assert_eq!(
            b[24..40],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x5a]
        );
        assert_eq!(b[40..52], [6, 5, 4, 3, 2, 1, 0, 0, 7, 0, 0, 0x40]);
        assert!(
            BlockRange {
                slba: Lba(0),
                blocks: 0
            }
            .to_sqe(IoOpcode::READ, Nsid(1), 0)
            .is_none()
        );
        assert!(
            BlockRange {
                slba: Lba(0),
                blocks: 65537
            }
            .to_sqe(IoOpcode::READ, Nsid(1), 0)
            .is_none()
        );
    }

    #[test]
    fn golden_dsm() {
        let sqe = DatasetManagement::deallocate(256).to_sqe(Nsid(1)).unwrap();
        assert_eq!(sqe.as_bytes()[40..48], [0xff, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(sqe.dptr.length_bytes(), 4096);
        assert!(DatasetManagement::deallocate(257).to_sqe(Nsid(1)).is_none());
        let range = DsmRange::new(Lba(0x10), 0x20);
        assert_eq!(
            range.as_bytes(),
            [0, 0, 0, 0, 0x20, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            flush_sqe(Nsid::ALL).as_bytes()[..8],
            [0, 0x40, 0, 0, 0xff, 0xff, 0xff, 0xff]
        );
    }

    #[test]
    fn end_of_range_does_not_wrap() {
        assert_eq!(
            BlockRange {
                slba: Lba(u64::MAX),
                blocks: 1
            }
            .end(),
            None
        );
        assert_eq!(
            BlockRange {
                slba: Lba(u64::MAX - 1),
                blocks: 1
            }
            .end(),
            Some(Lba(u64::MAX))
        );
    }

    proptest! {
        #[test]
        fn range_round_trip(slba: u64, blocks in 1u32..=65536) {
            let range = BlockRange { slba: Lba(slba), blocks };
            let sqe = range.to_sqe(IoOpcode::WRITE, Nsid(1), 0).unwrap();
            prop_assert_eq!(BlockRange::from_sqe(&sqe), range);
        }

        #[test]
        fn dsm_round_trip(ranges in 1u16..=256, attributes in 0u32..8) {
            let dsm = DatasetManagement { ranges, attributes: DsmDword11(attributes) };
            prop_assert_eq!(DatasetManagement::from_sqe(&dsm.to_sqe(Nsid(1)).unwrap()), dsm);
        }
    }
}
