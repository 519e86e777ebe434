//! PDUs put together byte by byte, on purpose without the crate's own encoder, so that wrong ones can be made and right ones checked.

use nvme_proto::digest::Crc;
use nvme_proto::tcp::TcpParams;
use nvme_proto::wire::{Cqe, Sqe};
use zerocopy::IntoBytes;

pub const HEADER_DIGEST: u8 = 1;
pub const DATA_DIGEST: u8 = 2;
pub const LAST: u8 = 4;
pub const SUCCESS: u8 = 8;

/// A PDU before its digests are computed: every field can be set wrong before [`Raw::bytes`] puts it together.
#[derive(Clone, Debug)]
pub struct Raw {
    pub header: Vec<u8>,
    pub data: Vec<u8>,
    pub header_digest: bool,
    pub data_digest: bool,
    /// Added to the digests, to make them wrong.
    pub header_digest_error: u32,
    pub data_digest_error: u32,
}

impl Raw {
    /// A PDU with the given header (the common part is filled in) and data, under the digests of `params`.
    pub fn new(params: &TcpParams, pdu_type: u8, flags: u8, psh: &[u8], data: &[u8]) -> Self {
        let hlen = 8 + psh.len();
        let header_digest = params.header_digest && !matches!(pdu_type, 0..=3);
        let data_digest = params.data_digest && !data.is_empty();
        let before = hlen + if header_digest { 4 } else { 0 };
        // As the receiver sees it: PDO aligned as it asked.
        let pdo = if data.is_empty() {
            0
        } else {
            before.next_multiple_of(params.receive_pda.bytes().into())
        };
        let plen = before.max(pdo) + data.len() + if data_digest { 4 } else { 0 };
        let mut flags = flags;
        flags |= if header_digest { HEADER_DIGEST } else { 0 };
        flags |= if data_digest { DATA_DIGEST } else { 0 };
        let mut header = vec![pdu_type, flags, hlen as u8, pdo as u8];
        header.extend((plen as u32).to_le_bytes());
        header.extend(psh);
        Self {
            header,
            data: data.to_vec(),
            header_digest,
            data_digest,
            header_digest_error: 0,
            data_digest_error: 0,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut pdu = self.header.clone();
        if self.header_digest {
            pdu.extend((Crc::of(&self.header).0 ^ self.header_digest_error).to_le_bytes());
        }
        if !self.data.is_empty() {
            let pdo = usize::from(self.header[3]).max(pdu.len());
            pdu.resize(pdo, 0xa5);
            pdu.extend(&self.data);
            if self.data_digest {
                pdu.extend((Crc::of(&self.data).0 ^ self.data_digest_error).to_le_bytes());
            }
        }
        pdu
    }

    /// The same with other bytes at `at` of the header.
    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

pub fn capsule(params: &TcpParams, sqe: &Sqe, data: &[u8]) -> Raw {
    Raw::new(params, 4, 0, sqe.as_bytes(), data)
}

pub fn response(params: &TcpParams, cqe: &Cqe) -> Raw {
    Raw::new(params, 5, 0, cqe.as_bytes(), &[])
}

fn transfer(cccid: u16, ttag: u16, offset: u32, length: u32) -> Vec<u8> {
    let mut psh = Vec::new();
    psh.extend(cccid.to_le_bytes());
    psh.extend(ttag.to_le_bytes());
    psh.extend(offset.to_le_bytes());
    psh.extend(length.to_le_bytes());
    psh.extend([0; 4]);
    psh
}

pub fn h2c_data(
    params: &TcpParams,
    flags: u8,
    cccid: u16,
    ttag: u16,
    offset: u32,
    data: &[u8],
) -> Raw {
    Raw::new(
        params,
        6,
        flags,
        &transfer(cccid, ttag, offset, data.len() as u32),
        data,
    )
}

pub fn c2h_data(params: &TcpParams, flags: u8, cccid: u16, offset: u32, data: &[u8]) -> Raw {
    Raw::new(
        params,
        7,
        flags,
        &transfer(cccid, 0, offset, data.len() as u32),
        data,
    )
}

pub fn r2t(params: &TcpParams, cccid: u16, ttag: u16, offset: u32, length: u32) -> Raw {
    Raw::new(params, 9, 0, &transfer(cccid, ttag, offset, length), &[])
}

/// A termination request that copies `offender`.
pub fn term_req(pdu_type: u8, fes: u16, fei: u32, offender: &[u8]) -> Vec<u8> {
    let mut pdu = vec![pdu_type, 0, 24, 0];
    pdu.extend((24 + offender.len() as u32).to_le_bytes());
    pdu.extend(fes.to_le_bytes());
    pdu.extend(fei.to_le_bytes());
    pdu.extend([0; 10]);
    pdu.extend(offender);
    pdu
}
