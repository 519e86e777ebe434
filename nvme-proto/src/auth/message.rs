//! The messages of a transaction as bytes.
//!
//! Each begins with AUTH_TYPE, AUTH_ID, two reserved bytes and the transaction's identifier (T_ID). A message may be followed by bytes that nobody looks at;
//! what its own lengths claim must be there.

use super::dh::DhGroup;
use super::fault::{AuthFault, Explanation};
use super::hash::HashId;

/// AUTH_TYPE of the messages that all protocols share.
const COMMON: u8 = 0x00;
/// AUTH_TYPE of DH-HMAC-CHAP's own.
const DH_HMAC_CHAP: u8 = 0x01;
/// AuthID of DH-HMAC-CHAP in AUTH_Negotiate.
const PROTOCOL: u8 = 0x01;
/// Reason Code of both failures: the only one.
const AUTHENTICATION_FAILURE: u8 = 0x01;

/// Bytes before what has a length of its own, in every message but Negotiate and the failures.
const HEADER_BYTES: usize = 16;
/// Bytes of Negotiate before its protocols, and of a failure.
const SHORT_HEADER_BYTES: usize = 8;
/// Bytes of a protocol in Negotiate.
const DESCRIPTOR_BYTES: usize = 64;
/// Identifiers of hash functions, and of groups, that a protocol in Negotiate has room for.
const LIST_ENTRIES: usize = 30;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// AUTH_Negotiate, from the host.
    Negotiate(Negotiate<'a>),
    /// DH-HMAC-CHAP_Challenge, from the controller.
    Challenge(Challenge<'a>),
    /// DH-HMAC-CHAP_Reply, from the host.
    Reply(Reply<'a>),
    /// DH-HMAC-CHAP_Success1, from the controller.
    Success1 {
        /// T_ID.
        transaction: u16,
        /// HL.
        hash_bytes: u8,
        /// The response to the host's challenge, if it made one.
        response: Option<&'a [u8]>,
    },
    /// DH-HMAC-CHAP_Success2, from the host.
    Success2 {
        /// T_ID.
        transaction: u16,
    },
    /// AUTH_Failure1, from the controller.
    Failure1 {
        /// T_ID.
        transaction: u16,
        /// Why.
        explanation: Explanation,
    },
    /// AUTH_Failure2, from the host.
    Failure2 {
        /// T_ID.
        transaction: u16,
        /// Why.
        explanation: Explanation,
    },
}

/// What a host offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiate<'a> {
    /// T_ID, chosen by the host.
    pub transaction: u16,
    /// SC_C: what secure channel is asked for; 0 for none.
    pub secure_channel: u8,
    /// Codes of the hash functions and of the groups of its DH-HMAC-CHAP, if it offers that.
    pub offer: Option<(&'a [u8], &'a [u8])>,
}

/// What the host has to respond to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge<'a> {
    /// T_ID.
    pub transaction: u16,
    /// HashID.
    pub hash: u8,
    /// DHgID.
    pub group: u8,
    /// S1.
    pub sequence: u32,
    /// C1: HL bytes.
    pub challenge: &'a [u8],
    /// The controller's public value; empty in the null group.
    pub public: &'a [u8],
}

impl Challenge<'_> {
    /// Bytes of the message with a challenge for this hash and a public value of this group.
    pub const fn bytes(hash: HashId, group: DhGroup) -> usize {
        HEADER_BYTES + hash.bytes() + group.value_bytes()
    }
}

/// The host's response, and its own challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// T_ID.
    pub transaction: u16,
    /// S2.
    pub sequence: u32,
    /// R1: HL bytes.
    pub response: &'a [u8],
    /// C2: as many, if the host makes a challenge (CVALID).
    pub challenge: Option<&'a [u8]>,
    /// The host's public value; empty in the null group.
    pub public: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a message.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AuthFault> {
        let &[kind, id, ..] = piece(bytes, 0, SHORT_HEADER_BYTES)? else {
            return Err(AuthFault::Truncated {
                bytes: bytes.len(),
                needed: SHORT_HEADER_BYTES,
            });
        };
        let transaction = u16_at(bytes, 4);
        let failure = Explanation(bytes[7]);
        match (kind, id) {
            (COMMON, 0x00) => parse_negotiate(bytes).map(Self::Negotiate),
            (COMMON, 0xf1) => Ok(Self::Failure1 {
                transaction,
                explanation: failure,
            }),
            (COMMON, 0xf0) => Ok(Self::Failure2 {
                transaction,
                explanation: failure,
            }),
            (DH_HMAC_CHAP, id @ 0x01..=0x04) => {
                piece(bytes, 0, HEADER_BYTES)?;
                let hash_bytes = usize::from(bytes[6]);
                let public_bytes = usize::from(u16_at(bytes, 10));
                let sequence = u32_at(bytes, 12);
                Ok(match id {
                    0x01 => Self::Challenge(Challenge {
                        transaction,
                        hash: bytes[8],
                        group: bytes[9],
                        sequence,
                        challenge: piece(bytes, HEADER_BYTES, hash_bytes)?,
                        public: piece(bytes, HEADER_BYTES + hash_bytes, public_bytes)?,
                    }),
                    0x02 => {
                        let challenge = piece(bytes, HEADER_BYTES + hash_bytes, hash_bytes)?;
                        Self::Reply(Reply {
                            transaction,
                            sequence,
                            response: piece(bytes, HEADER_BYTES, hash_bytes)?,
                            challenge: (bytes[8] & 1 != 0).then_some(challenge),
                            public: piece(bytes, HEADER_BYTES + 2 * hash_bytes, public_bytes)?,
                        })
                    }
                    0x03 => Self::Success1 {
                        transaction,
                        hash_bytes: bytes[6],
                        response: match bytes[8] & 1 {
                            0 => None,
                            _ => Some(piece(bytes, HEADER_BYTES, hash_bytes)?),
                        },
                    },
                    _ => Self::Success2 { transaction },
                })
            }
            (kind, id) => Err(AuthFault::UnknownMessage { kind, id }),
        }
    }

    /// The message's bytes.
    ///
    /// # Panics
    /// If a hash or list is longer than its length field can say, which no caller's are.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let (kind, id) = self.code();
        (out[0], out[1]) = (kind, id);
        out[4..6].copy_from_slice(&self.transaction().to_le_bytes());
        match *self {
            Self::Negotiate(negotiate) => {
                out.truncate(SHORT_HEADER_BYTES);
                out[6] = negotiate.secure_channel;
                if let Some((hashes, groups)) = negotiate.offer {
                    out[7] = 1;
                    let mut descriptor = [0; DESCRIPTOR_BYTES];
                    descriptor[0] = PROTOCOL;
                    (descriptor[2], descriptor[3]) = (byte(hashes.len()), byte(groups.len()));
                    descriptor[4..4 + hashes.len()].copy_from_slice(hashes);
                    descriptor[34..34 + groups.len()].copy_from_slice(groups);
                    out.extend_from_slice(&descriptor);
                }
            }
            Self::Challenge(challenge) => {
                out[6] = byte(challenge.challenge.len());
                (out[8], out[9]) = (challenge.hash, challenge.group);
                put_public(&mut out, challenge.public, challenge.sequence);
                out.extend_from_slice(challenge.challenge);
                out.extend_from_slice(challenge.public);
            }
            Self::Reply(reply) => {
                out[6] = byte(reply.response.len());
                out[8] = reply.challenge.is_some().into();
                put_public(&mut out, reply.public, reply.sequence);
                out.extend_from_slice(reply.response);
                match reply.challenge {
                    Some(challenge) => out.extend_from_slice(challenge),
                    None => out.resize(out.len() + reply.response.len(), 0),
                }
                out.extend_from_slice(reply.public);
            }
            Self::Success1 {
                hash_bytes,
                response,
                ..
            } => {
                out[6] = hash_bytes;
                out[8] = response.is_some().into();
                match response {
                    Some(response) => out.extend_from_slice(response),
                    None => out.resize(HEADER_BYTES + usize::from(hash_bytes), 0),
                }
            }
            Self::Success2 { .. } => {}
            Self::Failure1 { explanation, .. } | Self::Failure2 { explanation, .. } => {
                out.truncate(SHORT_HEADER_BYTES);
                (out[6], out[7]) = (AUTHENTICATION_FAILURE, explanation.0);
            }
        }
        out
    }

    /// T_ID.
    pub const fn transaction(&self) -> u16 {
        match self {
            Self::Negotiate(negotiate) => negotiate.transaction,
            Self::Challenge(challenge) => challenge.transaction,
            Self::Reply(reply) => reply.transaction,
            Self::Success1 { transaction, .. }
            | Self::Success2 { transaction }
            | Self::Failure1 { transaction, .. }
            | Self::Failure2 { transaction, .. } => *transaction,
        }
    }

    /// The message's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Negotiate(_) => "AUTH_Negotiate",
            Self::Challenge(_) => "DH-HMAC-CHAP_Challenge",
            Self::Reply(_) => "DH-HMAC-CHAP_Reply",
            Self::Success1 { .. } => "DH-HMAC-CHAP_Success1",
            Self::Success2 { .. } => "DH-HMAC-CHAP_Success2",
            Self::Failure1 { .. } => "AUTH_Failure1",
            Self::Failure2 { .. } => "AUTH_Failure2",
        }
    }

    const fn code(&self) -> (u8, u8) {
        match self {
            Self::Negotiate(_) => (COMMON, 0x00),
            Self::Challenge(_) => (DH_HMAC_CHAP, 0x01),
            Self::Reply(_) => (DH_HMAC_CHAP, 0x02),
            Self::Success1 { .. } => (DH_HMAC_CHAP, 0x03),
            Self::Success2 { .. } => (DH_HMAC_CHAP, 0x04),
            Self::Failure1 { .. } => (COMMON, 0xf1),
            Self::Failure2 { .. } => (COMMON, 0xf0),
        }
    }
}

fn parse_negotiate(bytes: &[u8]) -> Result<Negotiate<'_>, AuthFault> {
    let protocols = piece(
        bytes,
        SHORT_HEADER_BYTES,
        usize::from(bytes[7]) * DESCRIPTOR_BYTES,
    )?;
    let ours = protocols
        .chunks_exact(DESCRIPTOR_BYTES)
        .find(|descriptor| descriptor[0] == PROTOCOL);
    let offer = match ours {
        Some(descriptor) => {
            let list = |entries: u8, at: usize| match usize::from(entries) {
                count @ ..=LIST_ENTRIES => Ok(&descriptor[at..at + count]),
                _ => Err(AuthFault::ListTooLong { entries }),
            };
            Some((list(descriptor[2], 4)?, list(descriptor[3], 34)?))
        }
        None => None,
    };
    Ok(Negotiate {
        transaction: u16_at(bytes, 4),
        secure_channel: bytes[6],
        offer,
    })
}

/// `len` bytes from `start`, if there are so many.
fn piece(bytes: &[u8], start: usize, len: usize) -> Result<&[u8], AuthFault> {
    // Lengths on the wire have 16 bits at most.
    bytes.get(start..start + len).ok_or(AuthFault::Truncated {
        bytes: bytes.len(),
        needed: start + len,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_public(out: &mut [u8], public: &[u8], sequence: u32) {
    let bytes = u16::try_from(public.len()).expect("no group has longer values");
    out[10..12].copy_from_slice(&bytes.to_le_bytes());
    out[12..16].copy_from_slice(&sequence.to_le_bytes());
}

fn byte(length: usize) -> u8 {
    u8::try_from(length).expect("no hash or list is longer")
}
