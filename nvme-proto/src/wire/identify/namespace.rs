//! Identify Namespace (CNS 00h) and its part that is independent of the command set (CNS 08h).

use super::super::uid::{Eui64, Nguid};
use super::IDENTIFY_DATA_BYTES;
use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Identify Namespace of the NVM command set. Bits are named in [`super::flags`].
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace Size, in logical blocks.
    pub nsze: U64,
    /// Namespace Capacity, in logical blocks; 0 means that the namespace is not active.
    pub ncap: U64,
    /// Namespace Utilization, in logical blocks.
    pub nuse: U64,
    /// Namespace Features.
    pub nsfeat: u8,
    /// Number of LBA Formats, 0's based.
    pub nlbaf: u8,
    /// Formatted LBA Size: index of the format in bits 6:5 and 3:0.
    pub flbas: u8,
    /// Metadata Capabilities.
    pub mc: u8,
    /// End-to-end Data Protection Capabilities.
    pub dpc: u8,
    /// End-to-end Data Protection Type Settings.
    pub dps: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// Deallocate Logical Block Features.
    pub dlfeat: u8,
    /// Namespace Atomic Write Unit Normal, in logical blocks, 0's based.
    pub nawun: U16,
    /// Namespace Atomic Write Unit Power Fail, in logical blocks, 0's based.
    pub nawupf: U16,
    /// Namespace Atomic Compare & Write Unit, in logical blocks, 0's based.
    pub nacwu: U16,
    /// Namespace Atomic Boundary Size Normal, in logical blocks, 0's based.
    pub nabsn: U16,
    /// Namespace Atomic Boundary Offset, in logical blocks.
    pub nabo: U16,
    /// Namespace Atomic Boundary Size Power Fail, in logical blocks, 0's based.
    pub nabspf: U16,
    /// Namespace Optimal I/O Boundary, in logical blocks.
    pub noiob: U16,
    /// NVM Capacity, in bytes.
    pub nvmcap: U128,
    /// Namespace Preferred Write Granularity, in logical blocks, 0's based.
    pub npwg: U16,
    /// Namespace Preferred Write Alignment, in logical blocks, 0's based.
    pub npwa: U16,
    /// Namespace Preferred Deallocate Granularity, in logical blocks, 0's based.
    pub npdg: U16,
    /// Namespace Preferred Deallocate Alignment, in logical blocks, 0's based.
    pub npda: U16,
    /// Namespace Optimal Write Size, in logical blocks, 0's based.
    pub nows: U16,
    /// Maximum Single Source Range Length of Copy, in logical blocks.
    pub mssrl: U16,
    /// Maximum Copy Length, in logical blocks.
    pub mcl: U32,
    /// Maximum Source Range Count of Copy, 0's based.
    pub msrc: u8,
    /// Key Per I/O Status (2.1).
    pub kpios: u8,
    /// Number of Unique Capability LBA Formats.
    pub nulbaf: u8,
    reserved83: u8,
    /// Key Per I/O Data Access Alignment and Granularity (2.1).
    pub kpiodaag: U32,
    reserved88: [u8; 4],
    /// ANA Group Identifier.
    pub anagrpid: U32,
    reserved96: [u8; 3],
    /// Namespace Attributes.
    pub nsattr: u8,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Globally Unique Identifier.
    pub nguid: Nguid,
    /// IEEE Extended Unique Identifier.
    pub eui64: Eui64,
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor Specific.
    pub vendor_specific: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_DATA_BYTES);

impl IdentifyNamespace {
    /// All zero, which is also what is returned for a namespace that is not active.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }

    /// The LBA format in use, as FLBAS names it.
    pub fn format(&self) -> LbaFormat {
        // Bits 6:5 are the upper two bits of the index, where there are more than 16 formats.
        let index = if self.nlbaf < 16 {
            self.flbas & 0xf
        } else {
            self.flbas & 0xf | (self.flbas & 0x60) >> 1
        };
        self.lbaf[usize::from(index)]
    }
}

/// LBA Format.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata Size, in bytes.
    pub ms: U16,
    /// LBA Data Size, a power of two; below 9 the format is not supported.
    pub lbads: u8,
    /// Relative Performance in bits 1:0.
    pub rp: u8,
}

const _: () = assert!(size_of::<LbaFormat>() == 4);

impl LbaFormat {
    /// Size of a logical block in bytes, where LBADS is one that exists (512 bytes to 2 GiB).
    pub fn block_size_bytes(&self) -> Option<u32> {
        (9..=31).contains(&self.lbads).then(|| 1 << self.lbads)
    }
}

/// I/O Command Set Independent Identify Namespace.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct IndependentNamespace {
    /// Namespace Features, common to all command sets: bit 3 UIDREUSE, bit 4 RMEDIA, bit 5 VWCNP.
    pub nsfeat: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    /// Reservation Capabilities.
    pub rescap: u8,
    /// Format Progress Indicator.
    pub fpi: u8,
    /// ANA Group Identifier.
    pub anagrpid: U32,
    /// Namespace Attributes.
    pub nsattr: u8,
    reserved9: u8,
    /// NVM Set Identifier.
    pub nvmsetid: U16,
    /// Endurance Group Identifier.
    pub endgid: U16,
    /// Namespace Status.
    pub nstat: u8,
    reserved15: [u8; 4081],
}

const _: () = assert!(size_of::<IndependentNamespace>() == IDENTIFY_DATA_BYTES);

impl IndependentNamespace {
    /// All zero.
    pub fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn fields_are_where_the_standard_puts_them() {
        macro_rules! at { ($ty:ident: $($field:ident = $offset:literal),* $(,)?) => {
            $(assert_eq!(offset_of!($ty, $field), $offset, stringify!($field));)*
        } }
        at!(IdentifyNamespace:
            nsze = 0, ncap = 8, nuse = 16, nsfeat = 24, nlbaf = 25, flbas = 26, mc = 27, dpc = 28,
            dps = 29, nmic = 30, rescap = 31, fpi = 32, dlfeat = 33, nawun = 34, nawupf = 36,
            nacwu = 38, nabsn = 40, nabo = 42, nabspf = 44, noiob = 46, nvmcap = 48, npwg = 64,
            npwa = 66, npdg = 68, npda = 70, nows = 72, mssrl = 74, mcl = 76, msrc = 80, kpios = 81,
            nulbaf = 82, kpiodaag = 84, anagrpid = 92, nsattr = 99, nvmsetid = 100, endgid = 102,
            nguid = 104, eui64 = 120, lbaf = 128, vendor_specific = 384,
        );
        at!(IndependentNamespace:
            nsfeat = 0, nmic = 1, rescap = 2, fpi = 3, anagrpid = 4, nsattr = 8, nvmsetid = 10,
            endgid = 12, nstat = 14,
        );
    }

    #[test]
    fn format_index_uses_the_upper_bits_only_with_many_formats() {
        let mut id = IdentifyNamespace::zeroed();
        id.lbaf[1] = LbaFormat {
            ms: U16::ZERO,
            lbads: 12,
            rp: 0,
        };
        id.lbaf[17] = LbaFormat {
            ms: U16::ZERO,
            lbads: 9,
            rp: 0,
        };
        id.flbas = 0x21;
        assert_eq!(id.format().block_size_bytes(), Some(4096));
        id.nlbaf = 17;
        assert_eq!(id.format().block_size_bytes(), Some(512));
        id.flbas = 0xff;
        assert_eq!(id.format().block_size_bytes(), None);
        assert_eq!(
            LbaFormat {
                ms: U16::ZERO,
                lbads: 64,
                rp: 0
            }
            .block_size_bytes(),
            None
        );
    }
}
