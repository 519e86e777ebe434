//! Structures that are specific to an I/O command set: CNS 05h and 06h for the NVM command set, and
//! the list of command sets (CNS 1Ch).

use super::{Csi, IDENTIFY_DATA_BYTES};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// NVM Command Set Identify Namespace (CNS 05h, CSI 00h).
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NvmIdentifyNamespace {
    /// Logical Block Storage Tag Mask.
    pub lbstm: U64,
    /// Protection Information Capabilities.
    pub pic: u8,
    /// Protection Information Format Attribute (later than 2.0).
    pub pifa: u8,
    reserved10: [u8; 2],
    /// Extended LBA Formats.
    pub elbaf: [U32; 64],
    /// Namespace Preferred Deallocate Granularity Large, in logical blocks (later than 2.0).
    pub npdgl: U32,
    /// Namespace Preferred Read Granularity, in logical blocks (later than 2.0).
    pub nprg: U32,
    /// Namespace Preferred Read Alignment, in logical blocks (later than 2.0).
    pub npra: U32,
    /// Namespace Optimal Read Size, in logical blocks (later than 2.0).
    pub nors: U32,
    /// Namespace Preferred Deallocate Alignment Large, in logical blocks (later than 2.0).
    pub npdal: U32,
    reserved288: [u8; 3808],
}

const _: () = assert!(size_of::<NvmIdentifyNamespace>() == IDENTIFY_DATA_BYTES);

impl NvmIdentifyNamespace {
    /// All zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

/// NVM Command Set Identify Controller (CNS 06h, CSI 00h). Sizes are powers of two in units of the
/// minimum memory page size; 0 is no limit.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NvmIdentifyController {
    /// Verify Size Limit.
    pub vsl: u8,
    /// Write Zeroes Size Limit.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit.
    pub wusl: u8,
    /// Dataset Management Ranges Limit.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit, in logical blocks.
    pub dmrsl: U32,
    /// Dataset Management Size Limit, in logical blocks over all ranges.
    pub dmsl: U64,
    reserved16: [u8; 4080],
}

const _: () = assert!(size_of::<NvmIdentifyController>() == IDENTIFY_DATA_BYTES);

impl NvmIdentifyController {
    /// All zero: no limits.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

/// Identify I/O Command Set (CNS 1Ch): combinations of command sets that can be used together, each
/// a bit vector in which bit n stands for the CSI n.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IoCommandSets {
    /// The combinations; a vector of zero ends the list.
    pub vectors: [U64; 512],
}

const _: () = assert!(size_of::<IoCommandSets>() == IDENTIFY_DATA_BYTES);

impl IoCommandSets {
    /// One combination: the NVM command set alone.
    pub fn nvm_only() -> Self {
        let mut sets = Self::new_zeroed();
        sets.vectors[0] = U64::new(1 << Csi::NVM.0);
        sets
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn fields_are_where_the_standard_puts_them() {
        assert_eq!(offset_of!(NvmIdentifyNamespace, pic), 8);
        assert_eq!(offset_of!(NvmIdentifyNamespace, elbaf), 12);
        assert_eq!(offset_of!(NvmIdentifyNamespace, npdgl), 268);
        assert_eq!(offset_of!(NvmIdentifyNamespace, npdal), 284);
        assert_eq!(offset_of!(NvmIdentifyController, wzsl), 1);
        assert_eq!(offset_of!(NvmIdentifyController, dmrl), 3);
        assert_eq!(offset_of!(NvmIdentifyController, dmrsl), 4);
        assert_eq!(offset_of!(NvmIdentifyController, dmsl), 8);
        assert_eq!(
            IoCommandSets::nvm_only().as_bytes()[..16],
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
