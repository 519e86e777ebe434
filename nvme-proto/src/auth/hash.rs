//! The hash functions, and what each side proves with them.

use core::fmt;

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::secret::Secret;
use crate::wire::Nqn;

/// The longest hash, in bytes.
pub const MAX_HASH_BYTES: usize = 64;

/// A hash function (HashID).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum HashId {
    /// SHA-256.
    Sha256 = 1,
    /// SHA-384.
    Sha384 = 2,
    /// SHA-512.
    Sha512 = 3,
}

impl HashId {
    /// All, by their codes.
    pub const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// The function with this code.
    pub fn from_wire(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.to_wire() == code)
    }

    /// Its code.
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// Its name, as configurations write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Bytes of a hash.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The HMAC of `parts`, one after another.
    pub(super) fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Sha256 => mac::<Hmac<Sha256>>(key, parts),
            Self::Sha384 => mac::<Hmac<Sha384>>(key, parts),
            Self::Sha512 => mac::<Hmac<Sha512>>(key, parts),
        }
    }

    fn digest(self, data: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Sha256 => Sha256::digest(data).to_vec(),
            Self::Sha384 => Sha384::digest(data).to_vec(),
            Self::Sha512 => Sha512::digest(data).to_vec(),
        })
    }
}

impl fmt::Display for HashId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn mac<M: Mac + hmac::digest::KeyInit>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut mac = <M as Mac>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().to_vec())
}

/// What the response to a challenge is computed from, besides the secret.
#[derive(Clone, Copy)]
pub struct Proof<'a> {
    /// The hash that was agreed on.
    pub hash: HashId,
    /// The challenge: as many bytes as the hash has.
    pub challenge: &'a [u8],
    /// What the exchange resulted in, where there was one.
    pub shared: Option<&'a [u8]>,
    /// Sequence number of the challenge.
    pub sequence: u32,
    /// The transaction.
    pub transaction: u16,
    /// The host.
    pub host: &'a Nqn,
    /// The subsystem.
    pub subsystem: &'a Nqn,
}

impl Proof<'_> {
    /// What a host that has `secret` responds.
    pub fn of_host(&self, secret: &Secret) -> Zeroizing<Vec<u8>> {
        self.response(secret, b"HostHost", self.host, self.subsystem)
    }

    /// What a controller that has `secret` responds.
    pub fn of_controller(&self, secret: &Secret) -> Zeroizing<Vec<u8>> {
        self.response(secret, b"Controller", self.subsystem, self.host)
    }

    fn response(
        &self,
        secret: &Secret,
        role: &[u8],
        prover: &Nqn,
        other: &Nqn,
    ) -> Zeroizing<Vec<u8>> {
        // Without an exchange the challenge is used as it is.
        let challenge = match self.shared {
            Some(shared) => self.hash.hmac(&self.hash.digest(shared), &[self.challenge]),
            None => Zeroizing::new(self.challenge.to_vec()),
        };
        let parts: [&[u8]; 8] = [
            &challenge,
            &self.sequence.to_le_bytes(),
            &self.transaction.to_le_bytes(),
            // No secure channel concatenation (SC_C).
            &[0],
            role,
            prover.as_str().as_bytes(),
            &[0],
            other.as_str().as_bytes(),
        ];
        self.hash.hmac(&secret.transformed(prover), &parts)
    }
}
