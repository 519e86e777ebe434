//! The fabrics commands that carry the messages: Authentication Send and Authentication Receive.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute, transmute_ref};

use crate::controller::Fault;
use crate::wire::fabrics::fabrics_sqe;
use crate::wire::opcode::FctypeCode;
use crate::wire::sgl::SglDescriptor;
use crate::wire::{FabricsType, Opcode, Sqe};

/// Security Protocol (SECP): those of NVM Express.
pub const SECP_NVME: u8 = 0xe9;
/// SP Specific: SPSP0 and SPSP1 of in-band authentication.
pub const SPSP_DH_HMAC_CHAP: [u8; 2] = [0x01, 0x01];
/// The longest message that is taken from a host. The longest that makes sense, a Reply with a public value of 8192 bits, has 1168 bytes, and a
/// Negotiate with many protocols has 64 more for each.
pub const MAX_MESSAGE_BYTES: u32 = 4096;

/// The SQE of either command.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AuthSqe {
    /// 7Fh.
    pub opcode: Opcode,
    /// PSDT and reserved bits.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Fabrics command type: 05h Send, 06h Receive.
    pub fctype: u8,
    reserved5: [u8; 19],
    /// SGL descriptor of the data.
    pub dptr: SglDescriptor,
    reserved40: u8,
    /// SP Specific (SPSP0, SPSP1).
    pub spsp: [u8; 2],
    /// Security Protocol (SECP).
    pub secp: u8,
    /// Transfer Length (TL) of Send, Allocation Length (AL) of Receive, in bytes.
    pub length: U32,
    reserved48: [u8; 16],
}

const _: () = assert!(size_of::<AuthSqe>() == Sqe::SIZE);

impl AuthSqe {
    /// Authentication Send of a message of so many bytes. The transport puts the SGL in.
    pub fn send(bytes: u32) -> Self {
        Self::new(FabricsType::AUTHENTICATION_SEND, bytes)
    }

    /// Authentication Receive with room for so many bytes.
    pub fn receive(bytes: u32) -> Self {
        Self::new(FabricsType::AUTHENTICATION_RECEIVE, bytes)
    }

    fn new(fctype: FctypeCode, bytes: u32) -> Self {
        let mut sqe = Self::from_sqe(&fabrics_sqe(fctype));
        sqe.spsp = SPSP_DH_HMAC_CHAP;
        sqe.secp = SECP_NVME;
        sqe.length = U32::new(bytes);
        sqe
    }

    /// The same 64 bytes as one of these commands.
    pub fn from_sqe(sqe: &Sqe) -> Self {
        *transmute_ref!(sqe)
    }

    /// The same 64 bytes as a plain SQE.
    pub fn into_sqe(self) -> Sqe {
        transmute!(self)
    }

    /// The length in bytes, if the command is well formed.
    pub fn checked_length(&self) -> Result<u32, Fault> {
        if self.secp != SECP_NVME || self.spsp != SPSP_DH_HMAC_CHAP {
            return Err(Fault::SecurityProtocol {
                secp: self.secp,
                spsp: self.spsp,
            });
        }
        let length = self.length.get();
        if length == 0 {
            return Err(Fault::MessageLength(length));
        }
        let described = self.dptr.length_bytes();
        if described != length {
            return Err(Fault::DataLength {
                described,
                expected: length.into(),
            });
        }
        Ok(length)
    }
}
