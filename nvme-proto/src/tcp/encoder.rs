//! Headers of the PDUs that we send, written straight into the caller's buffer: header, header digest, and padding up to PDO.

use super::params::TcpParams;
use super::pdu::{
    CapsuleCmd, CapsuleResp, CommonHeader, Fes, PduFlags, PduType, TermReqHeader, TransferHeader,
};
use super::{TX_HEADER_BYTES, TxHeader};
use crate::digest::{Crc, DIGEST_BYTES};
use crate::wire::{Cid, Cqe, Sqe};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// What all headers of a connection have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder {
    header_digest: bool,
    pub(super) data_digest: bool,
    /// PDO of a command capsule with data.
    command_pdo: u8,
    /// PDO of H2CData and C2HData.
    data_pdo: u8,
}

impl Encoder {
    pub(super) fn new(params: &TcpParams) -> Self {
        let pdo = |pdu_type: PduType| {
            let header = pdu_type.header_bytes()
                + if params.header_digest {
                    DIGEST_BYTES as u8
                } else {
                    0
                };
            // At most 128: the header is shorter than that and the alignment divides or equals it.
            header.next_multiple_of(params.pda.bytes())
        };
        Self {
            header_digest: params.header_digest,
            data_digest: params.data_digest,
            command_pdo: pdo(PduType::CAPSULE_CMD),
            data_pdo: pdo(PduType::H2C_DATA),
        }
    }

    /// A command capsule; `data_bytes` of payload follow it.
    #[inline]
    pub(super) fn command(&self, out: &mut TxHeader, sqe: &Sqe, data_bytes: u32) -> u8 {
        let common = if data_bytes == 0 {
            self.bare(PduType::CAPSULE_CMD)
        } else {
            self.with_data(
                PduType::CAPSULE_CMD,
                PduFlags::empty(),
                self.command_pdo,
                data_bytes,
            )
        };
        self.write(out, &CapsuleCmd { common, sqe: *sqe }, common)
    }

    /// A response capsule.
    #[inline]
    pub(super) fn response(&self, out: &mut TxHeader, cqe: Cqe) -> u8 {
        let common = self.bare(PduType::CAPSULE_RESP);
        self.write(out, &CapsuleResp { common, cqe }, common)
    }

    /// H2CData or C2HData.
    #[inline]
    pub(super) fn data(
        &self,
        out: &mut TxHeader,
        pdu_type: PduType,
        flags: PduFlags,
        transfer: Transfer,
    ) -> u8 {
        let common = self.with_data(pdu_type, flags, self.data_pdo, transfer.bytes);
        self.write(out, &transfer.header(common), common)
    }

    /// R2T.
    #[inline]
    pub(super) fn r2t(&self, out: &mut TxHeader, transfer: Transfer) -> u8 {
        let common = self.bare(PduType::R2T);
        self.write(out, &transfer.header(common), common)
    }

    #[inline]
    fn bare(&self, pdu_type: PduType) -> CommonHeader {
        let mut common = CommonHeader::bare(pdu_type, u32::from(pdu_type.header_bytes()));
        if self.header_digest {
            common.flags = PduFlags::HEADER_DIGEST.bits();
            common.plen += DIGEST_BYTES as u32;
        }
        common
    }

    #[inline]
    fn with_data(
        &self,
        pdu_type: PduType,
        flags: PduFlags,
        pdo: u8,
        data_bytes: u32,
    ) -> CommonHeader {
        let mut common = CommonHeader::bare(pdu_type, u32::from(pdo) + data_bytes);
        common.flags = flags.bits();
        common.pdo = pdo;
        if self.header_digest {
            common.flags |= PduFlags::HEADER_DIGEST.bits();
        }
        if self.data_digest {
            common.flags |= PduFlags::DATA_DIGEST.bits();
            common.plen += DIGEST_BYTES as u32;
        }
        common
    }

    /// Writes header, digest and padding; returns their length.
    #[inline]
    fn write<T: IntoBytes + Immutable>(
        &self,
        out: &mut TxHeader,
        header: &T,
        common: CommonHeader,
    ) -> u8 {
        let hlen = size_of::<T>();
        let bytes = header.as_bytes();
        out[..hlen].copy_from_slice(bytes);
        let mut end = hlen;
        if self.header_digest {
            out[hlen..hlen + DIGEST_BYTES].copy_from_slice(&Crc::of(bytes).to_wire());
            end += DIGEST_BYTES;
        }
        let pdo = usize::from(common.pdo);
        if pdo > end {
            out[end..pdo].fill(0);
            end = pdo;
        }
        end as u8
    }
}

/// What H2CData, C2HData and R2T say about data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub(super) cccid: Cid,
    pub(super) ttag: u16,
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

impl Transfer {
    #[inline]
    fn header(self, common: CommonHeader) -> TransferHeader {
        TransferHeader {
            common,
            cccid: U16::new(self.cccid.0),
            ttag: U16::new(self.ttag),
            offset: U32::new(self.offset),
            length: U32::new(self.bytes),
            reserved: [0; 4],
        }
    }
}

/// Writes a termination request that copies the start of the offending PDU's header; returns its length.
pub(super) fn term_req(
    out: &mut TxHeader,
    pdu_type: PduType,
    fes: Fes,
    fei: u32,
    offender: &[u8],
) -> u8 {
    let copied = &offender[..offender.len().min(TermReqHeader::MAX_COPIED_BYTES)];
    let header_bytes = size_of::<TermReqHeader>();
    let end = header_bytes + copied.len();
    let mut header = TermReqHeader::new_zeroed();
    header.common = CommonHeader::bare(pdu_type, end as u32);
    header.fes = U16::new(fes.0);
    header.fei = U32::new(fei);
    out[..header_bytes].copy_from_slice(header.as_bytes());
    out[header_bytes..end].copy_from_slice(copied);
    end as u8
}

const _: () = assert!(
    TX_HEADER_BYTES == TermReqHeader::MAX_PLEN_BYTES && TX_HEADER_BYTES <= u8::MAX as usize
);
