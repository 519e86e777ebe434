//! Error Information (01h).

use super::StatusField;
use crate::wire::ids::{Cid, Lba, Nsid, Qid};
use crate::wire::status::Status;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One entry; the newest comes first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// Error Count: 1 for the first error, 0 for an entry that is not used.
    pub error_count: U64,
    /// Submission Queue ID.
    pub sqid: U16,
    /// Command ID.
    pub cid: U16,
    /// Status Field, in bits 15:1.
    pub status_field: StatusField,
    /// Parameter Error Location: byte in bits 7:0, bit in 10:8; FFFFh where none fits.
    pub parameter_error_location: U16,
    /// LBA.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Vendor Specific Information Available.
    pub vendor_specific: u8,
    /// Transport Type (TRTYPE), as in the discovery log.
    pub trtype: u8,
    /// Command Set Indicator (2.1).
    pub csi: u8,
    /// Opcode (2.1).
    pub opcode: u8,
    /// Command Specific Information.
    pub command_specific: U64,
    /// Transport Type Specific Information.
    pub transport_specific: U16,
    reserved42: [u8; 21],
    /// Log Page Version (2.1).
    pub log_page_version: u8,
}

const _: () = assert!(size_of::<ErrorEntry>() == ErrorEntry::SIZE);

/// Which byte (and bit) of the command an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterLocation {
    /// Byte offset in the SQE.
    pub byte: u8,
    /// Bit in that byte.
    pub bit: u8,
}

impl ParameterLocation {
    /// The start of byte `byte`.
    pub const fn byte(byte: u8) -> Self {
        Self { byte, bit: 0 }
    }

    fn to_wire(location: Option<Self>) -> U16 {
        U16::new(location.map_or(0xffff, |l| u16::from(l.byte) | u16::from(l.bit & 7) << 8))
    }
}

impl ErrorEntry {
    /// Size in bytes.
    pub const SIZE: usize = 64;

    /// An entry. `count` is 1's based and counts all errors of the controller's life.
    #[allow(clippy::too_many_arguments, reason = "each is one field of the entry")]
    pub fn new(
        count: u64,
        sqid: Qid,
        cid: Cid,
        status: Status,
        location: Option<ParameterLocation>,
        nsid: Nsid,
        lba: Option<Lba>,
        trtype: u8,
    ) -> Self {
        Self {
            error_count: U64::new(count),
            sqid: U16::new(sqid.0),
            cid: U16::new(cid.0),
            status_field: status.to_wire(),
            parameter_error_location: ParameterLocation::to_wire(location),
            lba: U64::new(lba.map_or(0, |lba| lba.0)),
            nsid: U32::new(nsid.0),
            vendor_specific: 0,
            trtype,
            csi: 0,
            opcode: 0,
            command_specific: U64::ZERO,
            transport_specific: U16::ZERO,
            reserved42: [0; 21],
            log_page_version: 0,
        }
    }

    /// Status of the command.
    pub fn status(&self) -> Status {
        Status::from_wire(self.status_field)
    }

    /// Where in the command the error is.
    pub fn location(&self) -> Option<ParameterLocation> {
        let raw = self.parameter_error_location.get();
        (raw != 0xffff).then_some(ParameterLocation {
            byte: raw as u8,
            bit: (raw >> 8) as u8 & 7,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn golden() {
        let entry = ErrorEntry::new(
            0x0102,
            Qid(3),
            Cid(0x0405),
            Status::LBA_OUT_OF_RANGE.dnr(),
            Some(ParameterLocation { byte: 40, bit: 2 }),
            Nsid(7),
            Some(Lba(0x11)),
            3,
        );
        let b = entry.as_bytes();
        assert_eq!(
            b[..18],
            [
                2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 5, 4, 0x00, 0x81, 40, 2, 0x11, 0
            ]
        );
        assert_eq!((b[24], b[29]), (7, 3));
        assert_eq!(
            entry.location(),
            Some(ParameterLocation { byte: 40, bit: 2 })
        );
        assert_eq!(entry.status(), Status::LBA_OUT_OF_RANGE.dnr());
        let none = ErrorEntry::new(
            1,
            Qid(0),
            Cid(0),
            Status::INTERNAL_ERROR,
            None,
            Nsid(0),
            None,
            3,
        );
        assert_eq!(none.parameter_error_location.get(), 0xffff);
        assert_eq!(none.location(), None);
        assert_eq!(offset_of!(ErrorEntry, command_specific), 32);
        assert_eq!(offset_of!(ErrorEntry, transport_specific), 40);
        assert_eq!(offset_of!(ErrorEntry, log_page_version), 63);
    }
}
