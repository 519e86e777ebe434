//! Fabrics commands: Connect with its data, Property Get and Set, Disconnect.

use super::command::Sqe;
use super::ids::{Cntlid, Qid};
use super::nqn::NQN_FIELD_BYTES;
use super::opcode::{FabricsType, Opcode};
use super::property::Property;
use super::sgl::SglDescriptor;
use super::uid::HostId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

/// The only record format that is defined for Connect and Disconnect.
pub const RECFMT_0: u16 = 0;

/// The SQE of Connect.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ConnectSqe {
    /// 7Fh.
    pub opcode: Opcode,
    /// PSDT and reserved bits.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Fabrics command type: 01h.
    pub fctype: u8,
    reserved5: [u8; 19],
    /// SGL descriptor of the data.
    pub dptr: SglDescriptor,
    /// Record Format (RECFMT).
    pub recfmt: U16,
    /// Queue ID (QID).
    pub qid: U16,
    /// Submission Queue Size (SQSIZE), 0's based.
    pub sqsize: U16,
    /// Connect Attributes (CATTR), see [`Cattr`].
    pub cattr: u8,
    reserved47: u8,
    /// Keep Alive Timeout (KATO) in milliseconds.
    pub kato: U32,
    reserved52: [u8; 12],
}

const _: () = assert!(size_of::<ConnectSqe>() == Sqe::SIZE);

bitflags::bitflags! {
    /// Connect Attributes (CATTR). Bits 1:0 are the priority class.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cattr: u8 {
        /// The host asks to disable submission queue flow control.
        const DISABLE_SQ_FLOW_CONTROL = 1 << 2;
        /// The host supports deletion of individual I/O queues (Disconnect).
        const INDIVIDUAL_QUEUE_DELETION = 1 << 3;
    }
}

impl ConnectSqe {
    /// Connect for queue `qid` of `entries` entries (1's based, at least 1).
    pub fn new(qid: Qid, entries: u16, cattr: Cattr, kato_ms: u32) -> Self {
        let mut sqe = Self::from_sqe(&fabrics_sqe(FabricsType::CONNECT));
        sqe.dptr = SglDescriptor::in_capsule(ConnectData::SIZE as u32);
        sqe.recfmt = U16::new(RECFMT_0);
        sqe.qid = U16::new(qid.0);
        sqe.sqsize = U16::new(entries.saturating_sub(1));
        sqe.cattr = cattr.bits();
        sqe.kato = U32::new(kato_ms);
        sqe
    }

    /// The same 64 bytes as Connect.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        *transmute_ref!(sqe)
    }

    /// The same 64 bytes as a plain SQE.
    pub fn into_sqe(self) -> Sqe {
        transmute!(self)
    }
}

/// A fabrics SQE with nothing but its type.
pub(crate) fn fabrics_sqe(fctype: super::opcode::FctypeCode) -> Sqe {
    let mut sqe = Sqe::new(Opcode::FABRICS);
    sqe.nsid = U32::new(u32::from(fctype.0));
    sqe
}

/// The data of Connect.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host Identifier (HOSTID).
    pub hostid: HostId,
    /// Controller ID (CNTLID).
    pub cntlid: U16,
    reserved18: [u8; 238],
    /// NVM Subsystem NVMe Qualified Name (SUBNQN).
    pub subnqn: [u8; NQN_FIELD_BYTES],
    /// Host NVMe Qualified Name (HOSTNQN).
    pub hostnqn: [u8; NQN_FIELD_BYTES],
    reserved768: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == ConnectData::SIZE);

impl ConnectData {
    /// Size in bytes.
    pub const SIZE: usize = 1024;

    /// Connect data of `host` for a controller of `subnqn`.
    pub fn new(
        hostid: HostId,
        cntlid: Cntlid,
        subnqn: &super::nqn::Nqn,
        hostnqn: &super::nqn::Nqn,
    ) -> Self {
        Self {
            hostid,
            cntlid: U16::new(cntlid.0),
            reserved18: [0; 238],
            subnqn: subnqn.to_field(),
            hostnqn: hostnqn.to_field(),
            reserved768: [0; 256],
        }
    }
}

/// Dword 0 of a successful Connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectResult {
    /// The controller.
    pub cntlid: Cntlid,
    /// The host has to authenticate in band (AUTHREQ.ATR).
    pub authentication_required: bool,
    /// The host has to set up a secure channel by authenticating (AUTHREQ.ASCR).
    pub secure_channel_required: bool,
}

impl ConnectResult {
    /// Reads dword 0.
    pub fn from_result(result: u64) -> Self {
        Self {
            cntlid: Cntlid(result as u16),
            authentication_required: result & 1 << 17 != 0,
            secure_channel_required: result & 1 << 18 != 0,
        }
    }

    /// Dword 0.
    pub fn to_result(self) -> u64 {
        u64::from(self.cntlid.0)
            | u64::from(self.authentication_required) << 17
            | u64::from(self.secure_channel_required) << 18
    }
}

/// Where the invalid parameter of a Connect is: dword 0 of Connect Invalid Parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidParameter {
    /// Invalid Parameter Offset (IPO): byte offset of the parameter.
    pub offset_bytes: u16,
    /// Invalid Attributes (IATTR) bit 0: the offset counts in the data, not in the SQE.
    pub in_data: bool,
}

impl InvalidParameter {
    /// QID in the SQE.
    pub const QID: Self = Self::in_sqe(42);
    /// SQSIZE in the SQE.
    pub const SQSIZE: Self = Self::in_sqe(44);
    /// CATTR in the SQE.
    pub const CATTR: Self = Self::in_sqe(46);
    /// HOSTID in the data.
    pub const HOSTID: Self = Self::in_data(0);
    /// CNTLID in the data.
    pub const CNTLID: Self = Self::in_data(16);
    /// SUBNQN in the data.
    pub const SUBNQN: Self = Self::in_data(256);
    /// HOSTNQN in the data.
    pub const HOSTNQN: Self = Self::in_data(512);

    const fn in_sqe(offset_bytes: u16) -> Self {
        Self {
            offset_bytes,
            in_data: false,
        }
    }

    const fn in_data(offset_bytes: u16) -> Self {
        Self {
            offset_bytes,
            in_data: true,
        }
    }

    /// Reads dword 0.
    pub fn from_result(result: u64) -> Self {
        Self {
            offset_bytes: result as u16,
            in_data: result >> 16 & 1 == 1,
        }
    }

    /// Dword 0.
    pub const fn to_result(self) -> u64 {
        self.offset_bytes as u64 | (self.in_data as u64) << 16
    }

    /// The name of the parameter, where it is one of Connect's.
    pub fn name(self) -> &'static str {
        match self {
            Self::QID => "QID",
            Self::SQSIZE => "SQSIZE",
            Self::CATTR => "CATTR",
            Self::HOSTID => "HOSTID",
            Self::CNTLID => "CNTLID",
            Self::SUBNQN => "SUBNQN",
            Self::HOSTNQN => "HOSTNQN",
            _ => "unknown parameter",
        }
    }
}

/// The SQE of Property Get and Property Set.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PropertySqe {
    /// 7Fh.
    pub opcode: Opcode,
    /// PSDT and reserved bits.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Fabrics command type: 00h Set, 04h Get.
    pub fctype: u8,
    reserved5: [u8; 35],
    /// Attributes (ATTRIB): the size in bits 2:0, 000b for 4 bytes, 001b for 8.
    pub attrib: u8,
    reserved41: [u8; 3],
    /// Offset of the property.
    pub offset: U32,
    /// Value to set; reserved in Get.
    pub value: U64,
    reserved56: [u8; 8],
}

const _: () = assert!(size_of::<PropertySqe>() == Sqe::SIZE);

impl PropertySqe {
    /// Property Get. A property that is not known here is read with 4 bytes.
    pub fn get(property: Property) -> Self {
        let mut sqe = Self::from_sqe(&fabrics_sqe(FabricsType::PROPERTY_GET));
        sqe.attrib = u8::from(property.size_bytes() == Some(8));
        sqe.offset = U32::new(property.0);
        sqe
    }

    /// Property Set of a 4-byte property, as all that can be written are.
    pub fn set(property: Property, value: u32) -> Self {
        let mut sqe = Self::from_sqe(&fabrics_sqe(FabricsType::PROPERTY_SET));
        sqe.offset = U32::new(property.0);
        sqe.value = U64::new(u64::from(value));
        sqe
    }

    /// The same 64 bytes as a property command.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        *transmute_ref!(sqe)
    }

    /// The same 64 bytes as a plain SQE.
    pub fn into_sqe(self) -> Sqe {
        transmute!(self)
    }

    /// The property that the command names.
    pub fn property(&self) -> Property {
        Property(self.offset.get())
    }

    /// The size that the command names, in bytes; `None` for a reserved code.
    pub fn size_bytes(&self) -> Option<u8> {
        match self.attrib & 0b111 {
            0b000 => Some(4),
            0b001 => Some(8),
            _ => None,
        }
    }
}

/// The SQE of Disconnect. It is sent on the I/O queue that it ends.
pub fn disconnect_sqe() -> Sqe {
    // RECFMT 0 is in the low half of dword 10, which is zero already.
    fabrics_sqe(FabricsType::DISCONNECT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn golden_connect() {
        let hostid: HostId = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        let sqe =
            ConnectSqe::new(Qid(3), 128, Cattr::DISABLE_SQ_FLOW_CONTROL, 0x0102_0304).into_sqe();
        let mut expected = [0u8; 64];
        expected[0] = 0x7f;
        expected[1] = 0x40;
        expected[4] = 0x01;
        expected[33] = 0x04; // SGL length 1024
        expected[39] = 0x01;
        expected[42] = 3;
        expected[44] = 127;
        expected[46] = 0x04;
        expected[48..52].copy_from_slice(&[4, 3, 2, 1]);
        assert_eq!(sqe.as_bytes(), expected);
        assert_eq!(ConnectSqe::from_sqe(&sqe).qid.get(), 3);

        let host = "nqn.2024-01.io.example:host".parse().unwrap();
        let data = ConnectData::new(
            hostid,
            Cntlid::DYNAMIC,
            &super::super::nqn::Nqn::discovery(),
            &host,
        );
        let bytes = data.as_bytes();
        assert_eq!(bytes.len(), 1024);
        assert_eq!(bytes[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(bytes[16..18], [0xff, 0xff]);
        assert_eq!(&bytes[256..266], b"nqn.2014-0");
        assert_eq!(&bytes[512..540], b"nqn.2024-01.io.example:host\0");
    }

    #[test]
    fn offsets_named_in_invalid_parameters_are_the_fields_offsets() {
        let at = |p: InvalidParameter| p.offset_bytes as usize;
        assert_eq!(at(InvalidParameter::QID), offset_of!(ConnectSqe, qid));
        assert_eq!(at(InvalidParameter::SQSIZE), offset_of!(ConnectSqe, sqsize));
        assert_eq!(at(InvalidParameter::CATTR), offset_of!(ConnectSqe, cattr));
        assert_eq!(
            at(InvalidParameter::HOSTID),
            offset_of!(ConnectData, hostid)
        );
        assert_eq!(
            at(InvalidParameter::CNTLID),
            offset_of!(ConnectData, cntlid)
        );
        assert_eq!(
            at(InvalidParameter::SUBNQN),
            offset_of!(ConnectData, subnqn)
        );
        assert_eq!(
            at(InvalidParameter::HOSTNQN),
            offset_of!(ConnectData, hostnqn)
        );
        assert_eq!(InvalidParameter::SUBNQN.to_result(), 0x0001_0100);
        assert_eq!(
            InvalidParameter::from_result(0x0001_0010),
            InvalidParameter::CNTLID
        );
        assert_eq!(InvalidParameter::from_result(44).name(), "SQSIZE");
    }

    #[test]
    fn golden_property_commands() {
        let sqe = PropertySqe::set(Property::CC, 0x0046_0001).into_sqe();
        let b = sqe.as_bytes();
        assert_eq!(
            (b[0], b[1], b[4], b[40], b[44]),
            (0x7f, 0x40, 0x00, 0, 0x14)
        );
        assert_eq!(b[48..56], [0x01, 0x00, 0x46, 0, 0, 0, 0, 0]);
        let sqe = PropertySqe::get(Property::CAP).into_sqe();
        assert_eq!((sqe.as_bytes()[4], sqe.as_bytes()[40]), (0x04, 1));
        assert_eq!(PropertySqe::from_sqe(&sqe).size_bytes(), Some(8));
        let mut odd = PropertySqe::get(Property::CAP);
        odd.attrib = 2;
        assert_eq!(odd.size_bytes(), None);
        assert_eq!(disconnect_sqe().as_bytes()[4], 0x08);
    }

    #[test]
    fn connect_result_bits() {
        let r = ConnectResult {
            cntlid: Cntlid(0x0102),
            authentication_required: true,
            secure_channel_required: false,
        };
        assert_eq!(r.to_result(), 0x0002_0102);
        assert_eq!(ConnectResult::from_result(r.to_result()), r);
    }
}
