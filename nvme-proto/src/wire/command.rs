//! The submission queue entry (SQE, 64 bytes) and the completion queue entry (CQE, 16 bytes).

use super::ids::{Cid, Nsid};
use super::opcode::{FctypeCode, Opcode};
use super::sgl::SglDescriptor;
use super::status::Status;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A submission queue entry. In fabrics commands (opcode 7Fh) byte 4 is FCTYPE, see [`Sqe::fctype`].
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sqe {
    /// Opcode.
    pub opcode: Opcode,
    /// FUSE in bits 1:0, PSDT in bits 7:6; see [`Sqe::fuse`] and [`Sqe::psdt`].
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Namespace identifier.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer: SGL descriptor 1.
    pub dptr: SglDescriptor,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == Sqe::SIZE);

/// Fused operation (FUSE): bits 1:0 of the second byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// 00b: not part of a fused operation.
    Normal,
    /// 01b: the first command of a fused operation.
    First,
    /// 10b: the second command of a fused operation.
    Second,
    /// 11b.
    Reserved,
}

/// PRP or SGL for data transfer (PSDT): bits 7:6 of the second byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Psdt {
    /// 00b: PRPs, which fabrics do not allow.
    Prp,
    /// 01b: SGL, MPTR (where used) is the address of one buffer. What fabrics commands carry.
    Sgl,
    /// 10b: SGL, MPTR (where used) is the address of an SGL segment.
    SglMetadataSgl,
    /// 11b.
    Reserved,
}

impl Sqe {
    /// Size in bytes.
    pub const SIZE: usize = 64;
    /// `flags` of an ordinary fabrics command: not fused, SGL.
    pub const FLAGS_SGL: u8 = 0b01 << 6;

    /// An entry with everything zero except the opcode and the PSDT bits that fabrics want.
    pub fn new(opcode: Opcode) -> Self {
        Self {
            opcode,
            flags: Self::FLAGS_SGL,
            ..Self::new_zeroed()
        }
    }

    fn new_zeroed() -> Self {
        <Self as FromBytes>::read_from_bytes(&[0; Self::SIZE]).expect("64 bytes are one SQE")
    }

    /// Command identifier.
    pub fn cid(&self) -> Cid {
        Cid(self.cid.get())
    }

    /// Namespace identifier.
    pub fn nsid(&self) -> Nsid {
        Nsid(self.nsid.get())
    }

    /// Whether this is a fabrics command.
    pub fn is_fabrics(&self) -> bool {
        self.opcode == Opcode::FABRICS
    }

    /// Fabrics command type: byte 4. Means something only when [`Sqe::is_fabrics`].
    pub fn fctype(&self) -> FctypeCode {
        FctypeCode(self.nsid.get() as u8)
    }

    /// Whether data go from host to controller, fabrics commands included.
    pub fn is_host_to_controller(&self) -> bool {
        if self.is_fabrics() {
            self.fctype().is_host_to_controller()
        } else {
            self.opcode.is_host_to_controller()
        }
    }

    /// Whether data go from controller to host, fabrics commands included.
    pub fn is_controller_to_host(&self) -> bool {
        if self.is_fabrics() {
            self.fctype().is_controller_to_host()
        } else {
            self.opcode.is_controller_to_host()
        }
    }

    /// Fused operation field.
    pub fn fuse(&self) -> Fuse {
        match self.flags & 0b11 {
            0b00 => Fuse::Normal,
            0b01 => Fuse::First,
            0b10 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// PRP or SGL field.
    pub fn psdt(&self) -> Psdt {
        match self.flags >> 6 {
            0b00 => Psdt::Prp,
            0b01 => Psdt::Sgl,
            0b10 => Psdt::SglMetadataSgl,
            _ => Psdt::Reserved,
        }
    }

    /// Command dwords 10 and 11 as one 64-bit value, as SLBA is laid out.
    pub fn cdw10_11(&self) -> u64 {
        u64::from(self.cdw10.get()) | u64::from(self.cdw11.get()) << 32
    }

    /// Sets command dwords 10 and 11 from one 64-bit value.
    pub fn set_cdw10_11(&mut self, value: u64) {
        self.cdw10 = U32::new(value as u32);
        self.cdw11 = U32::new((value >> 32) as u32);
    }

    /// Command dwords 12 and 13 as one 64-bit value.
    pub fn cdw12_13(&self) -> u64 {
        u64::from(self.cdw12.get()) | u64::from(self.cdw13.get()) << 32
    }

    /// Sets command dwords 12 and 13 from one 64-bit value.
    pub fn set_cdw12_13(&mut self, value: u64) {
        self.cdw12 = U32::new(value as u32);
        self.cdw13 = U32::new((value >> 32) as u32);
    }
}

/// A completion queue entry.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Cqe {
    /// Command specific result, low half.
    pub dw0: U32,
    /// Command specific result, high half (fabrics and a few I/O commands).
    pub dw1: U32,
    /// Submission queue head pointer: FFFFh in the Connect response when flow control is disabled, reserved after that.
    pub sqhd: U16,
    /// Submission queue identifier: reserved in fabrics.
    pub sqid: U16,
    /// Command identifier of the command that this completes.
    pub cid: U16,
    /// Status in bits 15:1. Bit 0, the phase tag elsewhere, is always 0 in fabrics.
    pub status: U16,
}

const _: () = assert!(size_of::<Cqe>() == Cqe::SIZE);

impl Cqe {
    /// Size in bytes.
    pub const SIZE: usize = 16;

    /// A completion of `cid` with `status` and the 64-bit result in dwords 0 and 1.
    pub fn new(cid: Cid, sqhd: u16, status: Status, result: u64) -> Self {
        Self {
            dw0: U32::new(result as u32),
            dw1: U32::new((result >> 32) as u32),
            sqhd: U16::new(sqhd),
            sqid: U16::ZERO,
            cid: U16::new(cid.0),
            status: status.to_wire(),
        }
    }

    /// Command identifier.
    pub fn cid(&self) -> Cid {
        Cid(self.cid.get())
    }

    /// Status, without the phase tag.
    pub fn status(&self) -> Status {
        Status::from_wire(self.status)
    }

    /// Dwords 0 and 1 as one value.
    pub fn result(&self) -> u64 {
        u64::from(self.dw0.get()) | u64::from(self.dw1.get()) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::opcode::{FabricsType, IoOpcode};
    use proptest::prelude::*;

    #[test]
    fn golden_sqe() {
        let mut sqe = Sqe::new(IoOpcode::WRITE);
        sqe.cid = U16::new(0x0201);
        sqe.nsid = U32::new(7);
        sqe.dptr = SglDescriptor::in_capsule(512);
        sqe.set_cdw10_11(0x1122_3344_5566_7788);
        sqe.cdw12 = U32::new(0x8000_0000);
        let mut expected = [0u8; 64];
        expected[..5].copy_from_slice(&[0x01, 0x40, 0x01, 0x02, 7]);
        expected[32 + 1] = 2; // SGL length 0200h
        expected[39] = 0x01; // SGL identifier
        expected[40..48].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        expected[51] = 0x80;
        assert_eq!(sqe.as_bytes(), expected);
        assert_eq!((sqe.fuse(), sqe.psdt()), (Fuse::Normal, Psdt::Sgl));
    }

    #[test]
    fn fctype_is_byte_four_and_carries_the_direction() {
        let mut sqe = Sqe::new(Opcode::FABRICS);
        sqe.as_mut_bytes()[4] = FabricsType::CONNECT.0;
        assert_eq!(sqe.fctype(), FabricsType::CONNECT);
        assert!(sqe.is_host_to_controller() && !sqe.is_controller_to_host());
        sqe.as_mut_bytes()[4] = FabricsType::PROPERTY_GET.0;
        // The opcode itself (7Fh) ends in 11b, which would mean both directions.
        assert!(!sqe.is_host_to_controller() && !sqe.is_controller_to_host());
    }

    #[test]
    fn golden_cqe() {
        let cqe = Cqe::new(
            Cid(0x0a0b),
            0x0c0d,
            Status::INVALID_FIELD.dnr(),
            0x1122_3344_5566_7788,
        );
        assert_eq!(
            cqe.as_bytes(),
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x0d, 0x0c, 0, 0, 0x0b, 0x0a, 0x04,
                0x80
            ]
        );
    }

    proptest! {
        #[test]
        fn sqe_survives_the_wire(bytes in prop::array::uniform32(any::<u8>()), more in prop::array::uniform32(any::<u8>())) {
            let mut raw = [0u8; 64];
            raw[..32].copy_from_slice(&bytes);
            raw[32..].copy_from_slice(&more);
            let sqe = Sqe::read_from_bytes(&raw).unwrap();
            prop_assert_eq!(sqe.as_bytes(), &raw[..]);
            let mut again = sqe;
            again.set_cdw10_11(sqe.cdw10_11());
            again.set_cdw12_13(sqe.cdw12_13());
            prop_assert_eq!(again, sqe);
        }

        #[test]
        fn cqe_keeps_its_fields(cid: u16, sqhd: u16, status in 0u16..0x8000, result: u64) {
            let cqe = Cqe::new(Cid(cid), sqhd, Status(status), result);
            let read = Cqe::read_from_bytes(cqe.as_bytes()).unwrap();
            prop_assert_eq!((read.cid(), read.sqhd.get(), read.status(), read.result()), (Cid(cid), sqhd, Status(status), result));
        }
    }
}
