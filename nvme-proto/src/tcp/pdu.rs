//! The PDUs of NVMe/TCP: types, flags and header structures.
//!
//! A PDU is a header of HLEN bytes, a header digest where agreed, padding up to PDO, data, and a data digest where agreed; PLEN
//! counts all of it. H2CData, C2HData and R2T share one header layout, [`TransferHeader`].

use crate::wire::{Cqe, Sqe};
use core::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// PDU-Type: the first byte of a PDU.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct PduType(pub u8);

impl PduType {
    /// Initialize Connection Request, host to controller.
    pub const IC_REQ: Self = Self(0x00);
    /// Initialize Connection Response, controller to host.
    pub const IC_RESP: Self = Self(0x01);
    /// Host to Controller Terminate Connection Request.
    pub const H2C_TERM_REQ: Self = Self(0x02);
    /// Controller to Host Terminate Connection Request.
    pub const C2H_TERM_REQ: Self = Self(0x03);
    /// Command capsule, host to controller.
    pub const CAPSULE_CMD: Self = Self(0x04);
    /// Response capsule, controller to host.
    pub const CAPSULE_RESP: Self = Self(0x05);
    /// Host to Controller Data Transfer.
    pub const H2C_DATA: Self = Self(0x06);
    /// Controller to Host Data Transfer.
    pub const C2H_DATA: Self = Self(0x07);
    /// Ready to Transfer, controller to host.
    pub const R2T: Self = Self(0x09);

    /// The specification's name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IC_REQ => "ICReq",
            Self::IC_RESP => "ICResp",
            Self::H2C_TERM_REQ => "H2CTermReq",
            Self::C2H_TERM_REQ => "C2HTermReq",
            Self::CAPSULE_CMD => "CapsuleCmd",
            Self::CAPSULE_RESP => "CapsuleResp",
            Self::H2C_DATA => "H2CData",
            Self::C2H_DATA => "C2HData",
            Self::R2T => "R2T",
            _ => "unknown PDU",
        }
    }

    /// The header length that the type has, or 0 for a type that is not known.
    #[inline]
    pub const fn header_bytes(self) -> u8 {
        const TABLE: [u8; 16] = [128, 128, 24, 24, 72, 24, 24, 24, 0, 24, 0, 0, 0, 0, 0, 0];
        if self.0 < 16 {
            TABLE[self.0 as usize]
        } else {
            0
        }
    }
}

impl fmt::Display for PduType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:02x}h)", self.name(), self.0)
    }
}

impl fmt::Debug for PduType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

bitflags::bitflags! {
    /// FLAGS: the second byte of a PDU.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PduFlags: u8 {
        /// HDGSTF: a header digest follows the header.
        const HEADER_DIGEST = 1 << 0;
        /// DDGSTF: a data digest follows the data.
        const DATA_DIGEST = 1 << 1;
        /// LAST_PDU in H2CData (the last one for its R2T) and C2HData (the last one for its command).
        const LAST = 1 << 2;
        /// SUCCESS in C2HData: the command succeeded, no response capsule follows.
        const SUCCESS = 1 << 3;
    }
}

bitflags::bitflags! {
    /// DGST in ICReq and ICResp: the digests asked for, or enabled.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Digests: u8 {
        /// HDGST_ENABLE.
        const HEADER = 1 << 0;
        /// DDGST_ENABLE.
        const DATA = 1 << 1;
    }
}

/// Fatal Error Status (FES) of a termination request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fes(pub u16);

impl Fes {
    /// Invalid PDU Header Field; FEI is the byte offset of the field in the PDU.
    pub const INVALID_HEADER_FIELD: Self = Self(0x01);
    /// PDU Sequence Error.
    pub const PDU_SEQUENCE_ERROR: Self = Self(0x02);
    /// Header Digest Error; FEI is the digest that was received.
    pub const HEADER_DIGEST_ERROR: Self = Self(0x03);
    /// Data Transfer Out of Range.
    pub const DATA_TRANSFER_OUT_OF_RANGE: Self = Self(0x04);
    /// Data Transfer Limit Exceeded (from a controller), R2T Limit Exceeded (from a host).
    pub const LIMIT_EXCEEDED: Self = Self(0x05);
    /// Unsupported Parameter; FEI is the byte offset of the field in the PDU.
    pub const UNSUPPORTED_PARAMETER: Self = Self(0x06);

    /// The specification's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::INVALID_HEADER_FIELD => "Invalid PDU Header Field",
            Self::PDU_SEQUENCE_ERROR => "PDU Sequence Error",
            Self::HEADER_DIGEST_ERROR => "Header Digest Error",
            Self::DATA_TRANSFER_OUT_OF_RANGE => "Data Transfer Out of Range",
            Self::LIMIT_EXCEEDED => "Data Transfer Limit Exceeded or R2T Limit Exceeded",
            Self::UNSUPPORTED_PARAMETER => "Unsupported Parameter",
            _ => "reserved",
        }
    }
}

impl fmt::Display for Fes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}h {}", self.0, self.name())
    }
}

impl fmt::Debug for Fes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first 8 bytes of every PDU.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU-Type.
    pub pdu_type: PduType,
    /// FLAGS, see [`PduFlags`].
    pub flags: u8,
    /// HLEN: length of the header, without its digest.
    pub hlen: u8,
    /// PDO: where the data start, from the start of the PDU.
    pub pdo: u8,
    /// PLEN: length of the whole PDU, digests and padding included.
    pub plen: U32,
}

impl CommonHeader {
    /// Size in bytes.
    pub const SIZE: usize = 8;

    /// The header of a PDU without data and without digests.
    pub const fn bare(pdu_type: PduType, plen: u32) -> Self {
        Self {
            pdu_type,
            flags: 0,
            hlen: pdu_type.header_bytes(),
            pdo: 0,
            plen: U32::new(plen),
        }
    }

    /// FLAGS. Bits that are not known stay.
    #[inline]
    pub const fn flags(&self) -> PduFlags {
        PduFlags::from_bits_retain(self.flags)
    }
}

/// Initialize Connection Request.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IcReq {
    /// Common header, PLEN 128.
    pub common: CommonHeader,
    /// PFV: version of the PDU format, 0.
    pub pfv: U16,
    /// HPDA: alignment of the data that the controller sends, 0's based, in dwords.
    pub hpda: u8,
    /// DGST: digests that the host asks for, see [`Digests`].
    pub dgst: u8,
    /// MAXR2T: R2Ts that may be open for one command, 0's based.
    pub maxr2t: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}

/// Initialize Connection Response.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct IcResp {
    /// Common header, PLEN 128.
    pub common: CommonHeader,
    /// PFV: version of the PDU format, 0.
    pub pfv: U16,
    /// CPDA: alignment of the data that the host sends, 0's based, in dwords.
    pub cpda: u8,
    /// DGST: digests in use from here on, see [`Digests`].
    pub dgst: u8,
    /// MAXH2CDATA: most data bytes in one H2CData PDU.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved: [u8; 112],
}

/// Termination request, either direction. Up to [`TermReqHeader::MAX_COPIED_BYTES`] of the offending PDU's header follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TermReqHeader {
    /// Common header; PLEN is 24 to 152 and there are no digests.
    pub common: CommonHeader,
    /// FES, see [`Fes`].
    pub fes: U16,
    /// FEI: more about the error, depending on FES.
    pub fei: U32,
    /// Reserved.
    pub reserved: [u8; 10],
}

impl TermReqHeader {
    /// Most bytes of the offending header that a termination request carries.
    pub const MAX_COPIED_BYTES: usize = 128;
    /// The longest termination request.
    pub const MAX_PLEN_BYTES: usize = size_of::<Self>() + Self::MAX_COPIED_BYTES;
}

/// Command capsule; in-capsule data may follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CapsuleCmd {
    /// Common header.
    pub common: CommonHeader,
    /// The command.
    pub sqe: Sqe,
}

/// Response capsule.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct CapsuleResp {
    /// Common header.
    pub common: CommonHeader,
    /// The completion.
    pub cqe: Cqe,
}

/// H2CData, C2HData and R2T.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct TransferHeader {
    /// Common header.
    pub common: CommonHeader,
    /// CCCID: identifier of the command that the data belong to.
    pub cccid: U16,
    /// TTAG: the controller's tag of the transfer. Reserved in C2HData.
    pub ttag: U16,
    /// DATAO or R2TO: offset in the command's data, in bytes.
    pub offset: U32,
    /// DATAL or R2TL: length in bytes.
    pub length: U32,
    /// Reserved.
    pub reserved: [u8; 4],
}

const _: () = {
    assert!(size_of::<CommonHeader>() == CommonHeader::SIZE);
    assert!(size_of::<IcReq>() == PduType::IC_REQ.header_bytes() as usize);
    assert!(size_of::<IcResp>() == PduType::IC_RESP.header_bytes() as usize);
    assert!(size_of::<TermReqHeader>() == PduType::C2H_TERM_REQ.header_bytes() as usize);
    assert!(size_of::<CapsuleCmd>() == PduType::CAPSULE_CMD.header_bytes() as usize);
    assert!(size_of::<CapsuleResp>() == PduType::CAPSULE_RESP.header_bytes() as usize);
    assert!(size_of::<TransferHeader>() == PduType::H2C_DATA.header_bytes() as usize);
};

/// Byte offsets of header fields, for the FEI of a termination request.
pub mod field {
    /// PDU-Type.
    pub const PDU_TYPE: u32 = 0;
    /// FLAGS.
    pub const FLAGS: u32 = 1;
    /// HLEN.
    pub const HLEN: u32 = 2;
    /// PDO.
    pub const PDO: u32 = 3;
    /// PLEN.
    pub const PLEN: u32 = 4;
    /// PFV in ICReq and ICResp.
    pub const PFV: u32 = 8;
    /// HPDA in ICReq, CPDA in ICResp.
    pub const PDA: u32 = 10;
    /// DGST in ICReq and ICResp.
    pub const DGST: u32 = 11;
    /// MAXH2CDATA in ICResp.
    pub const MAXH2CDATA: u32 = 12;
    /// CCCID in H2CData, C2HData and R2T.
    pub const CCCID: u32 = 8;
    /// TTAG in H2CData and R2T.
    pub const TTAG: u32 = 10;
    /// DATAL in H2CData and C2HData, R2TL in R2T.
    pub const LENGTH: u32 = 16;
    /// The command identifier in the CQE of a response capsule.
    pub const CQE_CID: u32 = 20;
}
