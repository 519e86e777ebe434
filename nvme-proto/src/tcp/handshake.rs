//! ICReq and ICResp: how a connection begins, and what it agrees on.
//!
//! The host sends ICReq, the controller answers with ICResp, then the host sends Connect, whose capsule already uses the digests
//! agreed on. [`HostHandshake`] covers the first two, [`ControllerHandshake`](super::ControllerHandshake) all three. Digests never
//! apply to ICReq and ICResp.

use super::params::{Pda, TcpParams};
use super::pdu::{CommonHeader, Digests, IcReq, IcResp, PduType};
use super::{TX_HEADER_BYTES, encoder};
use crate::violation::{Outcome, Violation};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// Length of ICReq and of ICResp.
pub const IC_BYTES: usize = 128;

/// The smallest MAXH2CDATA that a controller may announce.
pub const MIN_MAX_H2C_DATA_BYTES: u32 = 4096;

/// Most R2Ts that a host here lets a controller have open for one command; bounds what is allocated for each slot.
pub const MAX_OPEN_R2TS: u16 = 16;

/// What a controller offers in ICResp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerOffer {
    /// Enable header digests when the host asks for them. Declining locks out hosts that insist.
    pub header_digest: bool,
    /// Enable data digests when the host asks for them.
    pub data_digest: bool,
    /// CPDA. Linux's host refuses any but the default.
    pub cpda: Pda,
    /// MAXH2CDATA; at least [`MIN_MAX_H2C_DATA_BYTES`], a multiple of 4.
    pub max_h2c_data_bytes: u32,
}

/// What a host asks for in ICReq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRequest {
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// HPDA. Linux's target refuses any but the default.
    pub hpda: Pda,
    /// R2Ts that the controller may have open for one command (MAXR2T + 1): 1 to [`MAX_OPEN_R2TS`], clamped to that.
    pub max_r2t: u16,
}

fn digests(header: bool, data: bool) -> Digests {
    let mut digests = Digests::empty();
    digests.set(Digests::HEADER, header);
    digests.set(Digests::DATA, data);
    digests
}

/// ICReq or ICResp: type, HLEN and PLEN of a PDU that has to be the first one.
fn check_common(common: &CommonHeader, expected: PduType) -> Result<(), Violation> {
    let pdu_type = common.pdu_type;
    if pdu_type != expected {
        return Err(if pdu_type.header_bytes() == 0 {
            Violation::UnexpectedPdu(pdu_type)
        } else {
            Violation::PduOutOfSequence(pdu_type)
        });
    }
    if usize::from(common.hlen) != IC_BYTES {
        return Err(Violation::HeaderLength {
            pdu_type,
            hlen: common.hlen,
        });
    }
    let plen = common.plen.get();
    if plen as usize != IC_BYTES {
        return Err(Violation::PduLength { pdu_type, plen });
    }
    Ok(())
}

/// Answers an ICReq: the ICResp to send and what holds from there on.
pub fn answer(request: &IcReq, offer: &ControllerOffer) -> Result<(IcResp, TcpParams), Violation> {
    check_common(&request.common, PduType::IC_REQ)?;
    if request.pfv.get() != 0 {
        return Err(Violation::PduFormatVersion(request.pfv.get()));
    }
    let hpda = Pda::from_wire(request.hpda).ok_or(Violation::DataAlignment(request.hpda))?;
    // Both sides have to want a digest. Bits that are not known ask for something that is not enabled.
    let enabled =
        Digests::from_bits_truncate(request.dgst) & digests(offer.header_digest, offer.data_digest);
    let response = IcResp {
        common: CommonHeader::bare(PduType::IC_RESP, IC_BYTES as u32),
        pfv: U16::ZERO,
        cpda: offer.cpda.to_wire(),
        dgst: enabled.bits(),
        maxh2cdata: U32::new(offer.max_h2c_data_bytes),
        reserved: [0; 112],
    };
    let params = TcpParams {
        header_digest: enabled.contains(Digests::HEADER),
        data_digest: enabled.contains(Digests::DATA),
        pda: hpda,
        receive_pda: offer.cpda,
        max_h2c_data_bytes: offer.max_h2c_data_bytes,
        max_r2t: request.maxr2t.get().saturating_add(1),
    };
    Ok((response, params))
}

/// The host's side of ICReq and ICResp: send [`HostHandshake::request`], give what comes back to [`HostHandshake::receive`].
#[derive(Debug)]
pub struct HostHandshake {
    wanted: HostRequest,
    have: u8,
    scratch: [u8; IC_BYTES],
}

impl HostHandshake {
    /// Begins a connection.
    pub fn new(wanted: HostRequest) -> Self {
        Self {
            wanted,
            have: 0,
            scratch: [0; IC_BYTES],
        }
    }

    /// The ICReq to send.
    pub fn request(&self) -> [u8; IC_BYTES] {
        let request = IcReq {
            common: CommonHeader::bare(PduType::IC_REQ, IC_BYTES as u32),
            pfv: U16::ZERO,
            hpda: self.wanted.hpda.to_wire(),
            dgst: self.asked().bits(),
            maxr2t: U32::new(u32::from(self.wanted.max_r2t.clamp(1, MAX_OPEN_R2TS)) - 1),
            reserved: [0; 112],
        };
        zerocopy::transmute!(request)
    }

    /// The termination request to send because of what [`HostHandshake::receive`] returned, if one is due.
    pub fn termination(&self, violation: &Violation) -> Option<Vec<u8>> {
        termination(
            PduType::H2C_TERM_REQ,
            violation,
            &self.scratch[..usize::from(self.have)],
        )
    }

    fn asked(&self) -> Digests {
        digests(self.wanted.header_digest, self.wanted.data_digest)
    }

    /// Takes bytes from the controller: how many were used, and what was agreed on once ICResp is complete.
    pub fn receive(&mut self, input: &[u8]) -> Result<(usize, Option<TcpParams>), Violation> {
        let taken = gather(&mut self.scratch, &mut self.have, input, PduType::IC_RESP)?;
        if usize::from(self.have) < IC_BYTES {
            return Ok((taken, None));
        }
        let response: IcResp = zerocopy::transmute!(self.scratch);
        if response.pfv.get() != 0 {
            return Err(Violation::PduFormatVersion(response.pfv.get()));
        }
        let cpda = Pda::from_wire(response.cpda).ok_or(Violation::DataAlignment(response.cpda))?;
        let asked = self.asked();
        if response.dgst != asked.bits() {
            return Err(Violation::DigestMismatch {
                asked: asked.bits(),
                enabled: response.dgst,
            });
        }
        let max_h2c_data_bytes = response.maxh2cdata.get();
        if max_h2c_data_bytes < MIN_MAX_H2C_DATA_BYTES || !max_h2c_data_bytes.is_multiple_of(4) {
            return Err(Violation::MaxH2cData(max_h2c_data_bytes));
        }
        let params = TcpParams {
            header_digest: self.wanted.header_digest,
            data_digest: self.wanted.data_digest,
            pda: cpda,
            receive_pda: self.wanted.hpda,
            max_h2c_data_bytes,
            max_r2t: u32::from(self.wanted.max_r2t.clamp(1, MAX_OPEN_R2TS)),
        };
        Ok((taken, Some(params)))
    }
}

/// Gathers an ICReq or ICResp. The common header is checked as soon as it is there, so that a wrong PDU is refused without waiting
/// for 128 bytes of it.
pub(super) fn gather(
    scratch: &mut [u8; IC_BYTES],
    have: &mut u8,
    input: &[u8],
    expected: PduType,
) -> Result<usize, Violation> {
    let at = usize::from(*have);
    let taken = input.len().min(IC_BYTES - at);
    scratch[at..at + taken].copy_from_slice(&input[..taken]);
    *have += taken as u8;
    if usize::from(*have) >= CommonHeader::SIZE
        && let Ok((common, _)) = CommonHeader::ref_from_prefix(scratch.as_bytes())
    {
        check_common(common, expected)?;
    }
    Ok(taken)
}

pub(super) fn termination(
    pdu_type: PduType,
    violation: &Violation,
    offender: &[u8],
) -> Option<Vec<u8>> {
    let Outcome::TermReq { fes, fei } = violation.outcome() else {
        return None;
    };
    let mut pdu = [0; TX_HEADER_BYTES];
    let bytes = encoder::term_req(&mut pdu, pdu_type, fes, fei, offender);
    Some(pdu[..usize::from(bytes)].to_vec())
}
