//! Secrets in the form that administrators exchange: `DHHC-1:hh:BASE64:`.
//!
//! BASE64 stands for the key of 32, 48 or 64 bytes and its CRC-32, little endian; `hh` says how the key is transformed before it is used: 00 not at all,
//! 01 to 03 into the HMAC, by SHA-256, 384 or 512, of the NQN of whom it proves and "NVMe-over-Fabrics".

use core::fmt;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::{CrcAlgorithm, checksum};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use super::hash::HashId;
use crate::wire::Nqn;

/// What a secret starts with.
const PREFIX: &str = "DHHC-1:";
/// Bytes of the checksum behind the key.
const CRC_BYTES: usize = 4;
/// The longest text of a secret: prefix, hash, base64 of 68 bytes, colons.
const MAX_TEXT_BYTES: usize = 103;

/// A secret. It is never shown and wiped when it is dropped.
#[derive(Clone)]
pub struct Secret {
    transform: Option<HashId>,
    key: Zeroizing<Vec<u8>>,
}

/// Why text is no secret. None of these says anything of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// It has the form of one.
    #[error("it has not the form DHHC-1:hh:BASE64:")]
    Form,
    /// The transformation is 00 to 03.
    #[error("its second part, the transformation, is none of 00, 01, 02 and 03")]
    Transform,
    /// The third part is base64.
    #[error("its third part is not base64")]
    Base64,
    /// A key has 32, 48 or 64 bytes.
    #[error("its key has {0} bytes, not 32, 48 or 64")]
    Length(usize),
    /// The checksum is the key's.
    #[error("its checksum is wrong: a character is mistyped or missing")]
    Checksum,
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(SecretError::Form);
        }
        let rest = text.strip_prefix(PREFIX).ok_or(SecretError::Form)?;
        let (transform, rest) = rest.split_once(':').ok_or(SecretError::Form)?;
        let encoded = rest.strip_suffix(':').ok_or(SecretError::Form)?;
        let transform = match transform {
            "00" => None,
            "01" => Some(HashId::Sha256),
            "02" => Some(HashId::Sha384),
            "03" => Some(HashId::Sha512),
            _ => return Err(SecretError::Transform),
        };
        let decoded = STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?;
        let mut key = Zeroizing::new(decoded);
        let Some(key_bytes @ (32 | 48 | 64)) = key.len().checked_sub(CRC_BYTES) else {
            return Err(SecretError::Length(key.len().saturating_sub(CRC_BYTES)));
        };
        let crc = checksum(CrcAlgorithm::Crc32IsoHdlc, &key[..key_bytes]) as u32;
        if crc.to_le_bytes() != key[key_bytes..] {
            return Err(SecretError::Checksum);
        }
        key.truncate(key_bytes);
        Ok(Self { transform, key })
    }
}

impl Secret {
    /// The key with which the owner of `nqn` computes HMACs.
    pub(super) fn transformed(&self, nqn: &Nqn) -> Zeroizing<Vec<u8>> {
        match self.transform {
            Some(hash) => hash.hmac(&self.key, &[nqn.as_str().as_bytes(), b"NVMe-over-Fabrics"]),
            None => self.key.clone(),
        }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.transform == other.transform && bool::from(self.key.ct_eq(&other.key))
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}
