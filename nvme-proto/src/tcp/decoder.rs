//! Bytes in, PDU headers and payload ranges out.
//!
//! The decoder knows how PDUs are framed and nothing of commands. It copies no payload: a header that lies whole in the input is
//! parsed where it is, one that straddles two inputs is gathered in a scratch of its own, and payload is named as a range of the
//! input. Invariants:
//! - [`Event::NeedMore`] means that all input was consumed;
//! - a header is handed out only after its lengths, flags and digest were checked, so the payload that follows is exactly what PLEN,
//!   PDO and DATAL agree on;
//! - payload is never longer than `data_bytes` of the header; whether *that* is acceptable is for the owner of the command to say,
//!   before it takes the first payload byte.

use super::params::TcpParams;
use super::pdu::{CommonHeader, PduFlags, PduType, TermReqHeader, TransferHeader};
use crate::digest::{Crc, DIGEST_BYTES};
use crate::violation::Violation;
use core::ops::Range;
use zerocopy::{FromBytes, IntoBytes};

/// The longest header that is decoded here, with its digest (ICReq and ICResp are the handshake's).
const SCRATCH_BYTES: usize = PduType::CAPSULE_CMD.header_bytes() as usize + DIGEST_BYTES;

/// No header that is decoded here is shorter (without its digest): all have so much, but a command capsule's, which has more.
const SHORTEST_HEADER_BYTES: usize = PduType::H2C_DATA.header_bytes() as usize;

/// What the decoder found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The input is used up.
    NeedMore,
    /// A checked header.
    Header(Header<'a>),
    /// Payload: this range of the input.
    Payload(Range<usize>),
    /// The PDU's payload is complete. Comes only after payload.
    End {
        /// Whether the data digest was right; `true` where there is none.
        digest_ok: bool,
    },
}

/// A header that passed the checks of framing.
#[derive(Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Type of the PDU.
    pub pdu_type: PduType,
    /// The header: HLEN bytes, without the digest.
    pub bytes: &'a [u8],
    /// Bytes of payload that follow.
    pub data_bytes: u32,
}

/// What the next bytes of the stream are, as far as that is certain: see [`PduDecoder::ahead`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// These many bytes of the payload in progress come first.
    pub payload_bytes: u32,
    /// And after them so many, at least, that are no payload: padding, a digest, of headers.
    pub rest_bytes: u32,
}

/// A broken rule together with as much of the offending PDU's header as is at hand.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault<'a> {
    /// The rule.
    pub violation: Violation,
    /// Start of the PDU, at most its header.
    pub header: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between PDUs, or with `have` bytes of a header in the scratch.
    Header,
    /// In the padding in front of the data: so many bytes of it are left.
    Gap(u8),
    /// In the data: `left` bytes are to come.
    Payload,
    /// In the data digest, `have` bytes of it are in the scratch.
    Digest,
    /// The end of the payload is to be told.
    End { digest_ok: bool },
}

/// What follows a header.
#[derive(Clone, Copy)]
struct Body {
    gap_bytes: u8,
    data_bytes: u32,
    digest: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct PduDecoder {
    state: State,
    /// Bytes in `scratch`.
    have: u8,
    header_digest: bool,
    data_digest: bool,
    /// Whether a data digest ends the payload in progress.
    digest_follows: bool,
    /// Alignment of PDO that we asked for.
    pda_bytes: u8,
    /// Bit n: PDU type n is one that this side receives.
    accepted: u16,
    /// The one PDU of the other side that belongs to the handshake, which is over.
    handshake: PduType,
    /// Payload bytes still to come.
    left: u32,
    /// Data digest of the payload so far.
    crc: Crc,
    scratch: [u8; SCRATCH_BYTES],
}

const fn bit(pdu_type: PduType) -> u16 {
    1 << pdu_type.0
}

impl PduDecoder {
    /// A decoder of what a host sends.
    pub fn for_controller(params: &TcpParams) -> Self {
        let accepted =
            bit(PduType::H2C_TERM_REQ) | bit(PduType::CAPSULE_CMD) | bit(PduType::H2C_DATA);
        Self::new(params, accepted, PduType::IC_REQ)
    }

    /// A decoder of what a controller sends.
    pub fn for_host(params: &TcpParams) -> Self {
        let accepted = bit(PduType::C2H_TERM_REQ)
            | bit(PduType::CAPSULE_RESP)
            | bit(PduType::C2H_DATA)
            | bit(PduType::R2T);
        Self::new(params, accepted, PduType::IC_RESP)
    }

    fn new(params: &TcpParams, accepted: u16, handshake: PduType) -> Self {
        Self {
            state: State::Header,
            have: 0,
            header_digest: params.header_digest,
            data_digest: params.data_digest,
            digest_follows: false,
            pda_bytes: params.receive_pda.bytes(),
            accepted,
            handshake,
            left: 0,
            crc: Crc::EMPTY,
            scratch: [0; SCRATCH_BYTES],
        }
    }

    /// The next thing in `input`, and how many bytes of it are done with.
    #[inline]
    pub fn next<'a>(&'a mut self, input: &'a [u8]) -> Result<(usize, Event<'a>), Fault<'a>> {
        match self.state {
            State::Header if self.have == 0 => {
                let Ok((common, _)) = CommonHeader::ref_from_prefix(input) else {
                    return Ok((self.gather(input, CommonHeader::SIZE), Event::NeedMore));
                };
                let need = match self.framing(common) {
                    Ok(need) => need,
                    Err(violation) => return Err(Fault::new(violation, common.as_bytes())),
                };
                let hlen = usize::from(common.hlen);
                let Some(header) = input.get(..need) else {
                    return Ok((self.gather(input, need), Event::NeedMore));
                };
                match self.body(common, header) {
                    Ok(body) => {
                        self.begin(body);
                        Ok((need, Event::header(common.pdu_type, &header[..hlen], body)))
                    }
                    Err(violation) => Err(Fault::new(violation, &header[..hlen])),
                }
            }
            State::Header => self.next_in_scratch(input),
            State::Payload => Ok(self.payload(input, 0)),
            _ => Ok(self.next_rest(input)),
        }
    }

    /// The payload in progress, when the very next byte of the stream belongs to it: bytes to come and the digest of those that were.
    #[inline]
    pub fn pending(&self) -> Option<(u32, Option<Crc>)> {
        (self.state == State::Payload).then(|| (self.left, self.digest_follows.then_some(self.crc)))
    }

    /// What comes next. Who receives no more than that, the payload in one place and the rest in another, never gets a byte of payload
    /// where it does not belong, whatever the peer sends: not even the peer can put payload where a header, or the start of one, has to be.
    pub fn ahead(&self) -> Ahead {
        let digest = if self.header_digest { DIGEST_BYTES } else { 0 };
        let next_header = SHORTEST_HEADER_BYTES + digest;
        let have = usize::from(self.have);
        let (payload_bytes, rest_bytes) = match self.state {
            State::Header if have < CommonHeader::SIZE => (0, next_header - have),
            State::Header => (0, self.header_rest(have, next_header)),
            State::Gap(left) => (0, left.into()),
            State::Payload if self.digest_follows => (self.left, DIGEST_BYTES + next_header),
            State::Payload => (self.left, next_header),
            State::Digest => (0, DIGEST_BYTES - have + next_header),
            State::End { .. } => (0, next_header),
        };
        Ahead {
            payload_bytes,
            rest_bytes: rest_bytes as u32,
        }
    }

    /// What is missing of a header of which the scratch has so much that its length is known, and of the next one if no data come between.
    fn header_rest(&self, have: usize, next_header: usize) -> usize {
        let Ok((common, _)) = CommonHeader::ref_from_prefix(&self.scratch) else {
            return 1;
        };
        // It was checked before more of it was gathered.
        let need = self.framing(common).unwrap_or(have + 1);
        let has_no_data = common.plen.get() as usize == need;
        need - have + if has_no_data { next_header } else { 0 }
    }

    /// The owner received `bytes` of payload past the decoder. `crc` is the digest of the payload up to here, where
    /// [`PduDecoder::pending`] gave one to go on from.
    pub fn payload_received(&mut self, bytes: u32, crc: Option<Crc>) {
        debug_assert!(self.state == State::Payload && bytes <= self.left);
        self.left = self.left.saturating_sub(bytes);
        if let Some(crc) = crc {
            self.crc = crc;
        }
        if self.left == 0 {
            self.state = self.after_payload();
        }
    }

    /// The checks that must hold before the header's length can be relied on. Returns the length of header and header digest.
    #[inline]
    fn framing(&self, common: &CommonHeader) -> Result<usize, Violation> {
        let pdu_type = common.pdu_type;
        if pdu_type.0 >= 16 || self.accepted & bit(pdu_type) == 0 {
            return Err(if pdu_type == self.handshake {
                Violation::PduOutOfSequence(pdu_type)
            } else {
                Violation::UnexpectedPdu(pdu_type)
            });
        }
        let hlen = pdu_type.header_bytes();
        if common.hlen != hlen {
            return Err(Violation::HeaderLength {
                pdu_type,
                hlen: common.hlen,
            });
        }
        if is_term_req(pdu_type) {
            return Ok(usize::from(hlen));
        }
        if common.flags().contains(PduFlags::HEADER_DIGEST) != self.header_digest {
            return Err(Violation::HeaderDigestFlag {
                pdu_type,
                flags: common.flags,
            });
        }
        Ok(usize::from(hlen) + if self.header_digest { DIGEST_BYTES } else { 0 })
    }

    /// Checks digest and lengths of a whole `header` (digest included) and says what follows it.
    #[inline]
    fn body(&self, common: &CommonHeader, header: &[u8]) -> Result<Body, Violation> {
        let pdu_type = common.pdu_type;
        let plen = common.plen.get();
        let bad_length = Violation::PduLength { pdu_type, plen };
        let header_bytes = header.len() as u32;
        if is_term_req(pdu_type) {
            // Digests never apply to it. What it copies of the offending PDU is passed over like payload.
            if plen < header_bytes || plen > TermReqHeader::MAX_PLEN_BYTES as u32 {
                return Err(Violation::TermReqLength { plen });
            }
            return Ok(Body {
                gap_bytes: 0,
                data_bytes: plen - header_bytes,
                digest: false,
            });
        }
        if self.header_digest {
            let (covered, digest) = header.split_at(header.len() - DIGEST_BYTES);
            let received = Crc::from_wire(digest.try_into().unwrap_or_default());
            let computed = Crc::of(covered);
            if received != computed {
                return Err(Violation::HeaderDigest {
                    received: received.0,
                    computed: computed.0,
                });
            }
        }
        if plen < header_bytes {
            return Err(bad_length);
        }
        let datal = match pdu_type {
            PduType::H2C_DATA | PduType::C2H_DATA => TransferHeader::ref_from_prefix(header)
                .ok()
                .map(|(transfer, _)| transfer.length.get()),
            // No data: PDO and DDGSTF mean nothing.
            _ if plen == header_bytes => {
                return Ok(Body {
                    gap_bytes: 0,
                    data_bytes: 0,
                    digest: false,
                });
            }
            PduType::CAPSULE_CMD => None,
            _ => return Err(bad_length),
        };
        if datal == Some(0) {
            return Err(Violation::EmptyTransfer(pdu_type));
        }
        if common.flags().contains(PduFlags::DATA_DIGEST) != self.data_digest {
            return Err(Violation::DataDigestFlag {
                pdu_type,
                flags: common.flags,
            });
        }
        let pdo = u32::from(common.pdo);
        if pdo < header_bytes || !common.pdo.is_multiple_of(self.pda_bytes) {
            return Err(Violation::DataOffset {
                pdu_type,
                pdo: common.pdo,
            });
        }
        let digest_bytes = if self.data_digest {
            DIGEST_BYTES as u32
        } else {
            0
        };
        // PLEN is at least what stands before and after the data, and at least one byte lies between.
        let Some(data_bytes @ 1..) = plen.checked_sub(pdo + digest_bytes) else {
            return Err(bad_length);
        };
        if let Some(datal) = datal
            && datal != data_bytes
        {
            return Err(Violation::DataLength {
                pdu_type,
                carried: data_bytes,
                datal,
            });
        }
        Ok(Body {
            gap_bytes: (pdo - header_bytes) as u8,
            data_bytes,
            digest: self.data_digest,
        })
    }

    #[inline]
    fn begin(&mut self, body: Body) {
        self.have = 0;
        if body.data_bytes > 0 {
            self.left = body.data_bytes;
            self.digest_follows = body.digest;
            self.crc = Crc::EMPTY;
            self.state = if body.gap_bytes == 0 {
                State::Payload
            } else {
                State::Gap(body.gap_bytes)
            };
        }
    }

    /// Appends to the scratch until it holds `need` bytes; returns how many were taken.
    fn gather(&mut self, input: &[u8], need: usize) -> usize {
        let have = usize::from(self.have);
        let taken = input.len().min(need - have);
        self.scratch[have..have + taken].copy_from_slice(&input[..taken]);
        self.have = (have + taken) as u8;
        taken
    }

    /// Goes on with a header of which the first bytes are in the scratch.
    #[cold]
    fn next_in_scratch<'a>(&'a mut self, input: &[u8]) -> Result<(usize, Event<'a>), Fault<'a>> {
        let mut taken = 0;
        if usize::from(self.have) < CommonHeader::SIZE {
            taken = self.gather(input, CommonHeader::SIZE);
            if usize::from(self.have) < CommonHeader::SIZE {
                return Ok((taken, Event::NeedMore));
            }
        }
        let Ok((&common, _)) = CommonHeader::ref_from_prefix(&self.scratch) else {
            return Ok((taken, Event::NeedMore));
        };
        let need = match self.framing(&common) {
            Ok(need) => need,
            Err(violation) => {
                return Err(Fault::new(violation, &self.scratch[..CommonHeader::SIZE]));
            }
        };
        taken += self.gather(&input[taken..], need);
        if usize::from(self.have) < need {
            return Ok((taken, Event::NeedMore));
        }
        let hlen = usize::from(common.hlen);
        match self.body(&common, &self.scratch[..need]) {
            Ok(body) => {
                self.begin(body);
                Ok((
                    taken,
                    Event::header(common.pdu_type, &self.scratch[..hlen], body),
                ))
            }
            Err(violation) => Err(Fault::new(violation, &self.scratch[..hlen])),
        }
    }

    /// Payload from `at` on.
    #[inline]
    fn payload(&mut self, input: &[u8], at: usize) -> (usize, Event<'static>) {
        let taken = (input.len() - at).min(self.left as usize);
        if taken == 0 {
            return (at, Event::NeedMore);
        }
        let range = at..at + taken;
        if self.digest_follows {
            self.crc = self.crc.and(&input[range.clone()]);
        }
        self.left -= taken as u32;
        if self.left == 0 {
            self.state = self.after_payload();
        }
        (range.end, Event::Payload(range))
    }

    /// Everything that is neither a header nor plain payload.
    fn next_rest(&mut self, input: &[u8]) -> (usize, Event<'static>) {
        match self.state {
            State::Gap(left) => {
                let taken = input.len().min(usize::from(left));
                let left = left - taken as u8;
                if left > 0 {
                    self.state = State::Gap(left);
                    return (taken, Event::NeedMore);
                }
                self.state = State::Payload;
                self.payload(input, taken)
            }
            State::Digest => {
                let taken = self.gather(input, DIGEST_BYTES);
                if usize::from(self.have) < DIGEST_BYTES {
                    return (taken, Event::NeedMore);
                }
                self.have = 0;
                self.state = State::Header;
                let received = self
                    .scratch
                    .first_chunk()
                    .map(|bytes| Crc::from_wire(*bytes));
                (
                    taken,
                    Event::End {
                        digest_ok: received == Some(self.crc),
                    },
                )
            }
            State::End { digest_ok } => {
                self.state = State::Header;
                (0, Event::End { digest_ok })
            }
            State::Header | State::Payload => (0, Event::NeedMore),
        }
    }

    fn after_payload(&self) -> State {
        if self.digest_follows {
            State::Digest
        } else {
            State::End { digest_ok: true }
        }
    }
}

impl<'a> Event<'a> {
    #[inline]
    fn header(pdu_type: PduType, bytes: &'a [u8], body: Body) -> Self {
        Self::Header(Header {
            pdu_type,
            bytes,
            data_bytes: body.data_bytes,
        })
    }
}

impl<'a> Fault<'a> {
    fn new(violation: Violation, header: &'a [u8]) -> Self {
        Self { violation, header }
    }
}

const fn is_term_req(pdu_type: PduType) -> bool {
    matches!(pdu_type, PduType::H2C_TERM_REQ | PduType::C2H_TERM_REQ)
}
