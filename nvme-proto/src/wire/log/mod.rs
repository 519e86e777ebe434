//! Log pages: the Get Log Page command and what it returns.

mod discovery;
mod effects;
mod error;
mod smart;

pub use discovery::{
    AddressFamily, DiscoveryEntry, DiscoveryHeader, Eflags, RdmaSpecific, SubsystemType,
    TcpSecurity, TransportType, Treq,
};
pub use effects::{
    CommandEffects, EffectsLog, FeatureEffects, FeatureEffectsLog, SupportedLog, SupportedLogs,
};
pub use error::{ErrorEntry, ParameterLocation};
pub use smart::{CriticalWarning, SmartLog};

/// The Changed Namespace List (04h) has the layout of the other namespace lists.
pub use super::identify::NamespaceList as ChangedNamespaceList;

use super::command::Sqe;
use super::identify::Csi;
use super::ids::Nsid;
use super::opcode::AdminOpcode;
use super::sgl::SglDescriptor;
use super::text::Ascii;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Log Page Identifier (LID).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LogId(pub u8);

impl LogId {
    /// Supported Log Pages.
    pub const SUPPORTED: Self = Self(0x00);
    /// Error Information.
    pub const ERROR: Self = Self(0x01);
    /// SMART / Health Information.
    pub const SMART: Self = Self(0x02);
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: Self = Self(0x03);
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: Self = Self(0x04);
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: Self = Self(0x05);
    /// Asymmetric Namespace Access.
    pub const ANA: Self = Self(0x0c);
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: Self = Self(0x12);
    /// NVMe-MI Commands Supported and Effects.
    pub const MI_EFFECTS: Self = Self(0x13);
    /// Discovery.
    pub const DISCOVERY: Self = Self(0x70);
}

/// The fields of Get Log Page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetLogPage {
    /// Namespace, for pages that have one; 0 or FFFFFFFFh for the controller.
    pub nsid: Nsid,
    /// Which page.
    pub lid: LogId,
    /// Log Specific Parameter (LSP), 7 bits.
    pub lsp: u8,
    /// Retain Asynchronous Event (RAE): reading does not clear the event.
    pub rae: bool,
    /// Number of Dwords (NUMD), 0's based.
    pub numd: u32,
    /// Log Specific Identifier (LSI).
    pub lsi: u16,
    /// Log Page Offset (LPO), in bytes unless `offset_is_index`.
    pub lpo: u64,
    /// Offset Type (OT): LPO is an index.
    pub offset_is_index: bool,
    /// Command Set Identifier.
    pub csi: Csi,
}

impl GetLogPage {
    /// `length_bytes` (rounded up to whole dwords, at least one) of page `lid` from `offset_bytes`.
    pub fn new(lid: LogId, length_bytes: u32, offset_bytes: u64) -> Self {
        Self {
            nsid: Nsid::ALL,
            lid,
            lsp: 0,
            rae: false,
            numd: length_bytes.div_ceil(4).max(1) - 1,
            lsi: 0,
            lpo: offset_bytes,
            offset_is_index: false,
            csi: Csi::NVM,
        }
    }

    /// How many bytes are asked for.
    pub fn length_bytes(&self) -> u64 {
        (u64::from(self.numd) + 1) * 4
    }

    /// Reads the fields of an SQE.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        let (cdw10, cdw11, cdw14) = (sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw14.get());
        Self {
            nsid: sqe.nsid(),
            lid: LogId(cdw10 as u8),
            lsp: (cdw10 >> 8) as u8 & 0x7f,
            rae: cdw10 >> 15 & 1 == 1,
            numd: cdw10 >> 16 | cdw11 << 16,
            lsi: (cdw11 >> 16) as u16,
            lpo: sqe.cdw12_13(),
            offset_is_index: cdw14 >> 23 & 1 == 1,
            csi: Csi((cdw14 >> 24) as u8),
        }
    }

    /// An SQE with these fields. Fewer than 4 GiB can be asked for in one command.
    pub fn to_sqe(self) -> Sqe {
        let mut sqe = Sqe::new(AdminOpcode::GET_LOG_PAGE);
        sqe.nsid = U32::new(self.nsid.0);
        sqe.dptr = SglDescriptor::transport(self.length_bytes().min(u32::MAX.into()) as u32);
        sqe.cdw10 = U32::new(
            u32::from(self.lid.0)
                | u32::from(self.lsp & 0x7f) << 8
                | u32::from(self.rae) << 15
                | self.numd << 16,
        );
        sqe.cdw11 = U32::new(self.numd >> 16 | u32::from(self.lsi) << 16);
        sqe.set_cdw12_13(self.lpo);
        sqe.cdw14 = U32::new(u32::from(self.offset_is_index) << 23 | u32::from(self.csi.0) << 24);
        sqe
    }
}

/// Firmware Slot Information (03h).
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active Firmware Info (AFI): the active slot in bits 2:0, the next one in bits 6:4.
    pub afi: u8,
    reserved1: [u8; 7],
    /// Firmware revisions of slots 1 to 7; zero where a slot is empty.
    pub frs: [Ascii<8>; 7],
    reserved64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

impl FirmwareSlotLog {
    /// One slot, active, holding `revision`.
    pub fn one_slot(revision: Ascii<8>) -> Self {
        let mut frs = [Ascii([0; 8]); 7];
        frs[0] = revision;
        Self {
            afi: 1,
            reserved1: [0; 7],
            frs,
            reserved64: [0; 448],
        }
    }
}

/// A status field as error log entries hold it: the status in bits 15:1.
type StatusField = U16;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;
    use proptest::prelude::*;

    #[test]
    fn golden_get_log_page() {
        let get = GetLogPage {
            nsid: Nsid(1),
            lsp: 0x05,
            rae: true,
            lsi: 0x1234,
            offset_is_index: false,
            csi: Csi(2),
            ..GetLogPage::new(LogId::DISCOVERY, 0x0005_0004, 0x0102_0304_0506_0708)
        };
        assert_eq!(get.numd, 0x0001_4000);
        let sqe = get.to_sqe();
        let b = sqe.as_bytes();
        assert_eq!(b[0], 0x02);
        assert_eq!(b[32..40], [0x04, 0x00, 0x05, 0x00, 0, 0, 0, 0x5a]);
        assert_eq!(b[40..48], [0x70, 0x85, 0x00, 0x40, 0x01, 0x00, 0x34, 0x12]);
        assert_eq!(b[48..60], [8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 2]);
        assert_eq!(GetLogPage::new(LogId::ERROR, 0, 0).length_bytes(), 4);
    }

    #[test]
    fn golden_firmware_slot() {
        let log = FirmwareSlotLog::one_slot(Ascii::new("1.0").unwrap());
        assert_eq!(log.as_bytes()[..17], *b"\x01\0\0\0\0\0\0\x001.0     \0");
        assert_eq!(offset_of!(FirmwareSlotLog, frs), 8);
    }

    proptest! {
        #[test]
        fn round_trip(nsid: u32, lid: u8, lsp in 0u8..128, rae: bool, numd: u32, lsi: u16, lpo: u64, ot: bool, csi: u8) {
            let get = GetLogPage {
                nsid: Nsid(nsid), lid: LogId(lid), lsp, rae, numd, lsi, lpo, offset_is_index: ot, csi: Csi(csi),
            };
            prop_assert_eq!(GetLogPage::from_sqe(&get.to_sqe()), get);
            prop_assert_eq!(get.length_bytes(), (u64::from(numd) + 1) * 4);
        }
    }
}
