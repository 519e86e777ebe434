//! Header and data digests: CRC32C (the Castagnoli polynomial), stored little endian.
//!
//! The header digest covers the PDU header (HLEN bytes), the data digest the data alone, never the padding in front of it.

/// Bytes that a digest takes on the wire.
pub const DIGEST_BYTES: usize = 4;

/// A CRC32C, finished at every step: `Crc::of(ab)` equals `Crc::of(a).and(b)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crc(pub u32);

impl Crc {
    /// The digest of no bytes, from which a running digest starts.
    pub const EMPTY: Self = Self(0);

    /// The digest of `bytes`.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        Self(crc32c::crc32c(bytes))
    }

    /// The digest of what this one covers followed by `bytes`.
    #[inline]
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }

    /// As it stands on the wire.
    #[inline]
    pub const fn to_wire(self) -> [u8; DIGEST_BYTES] {
        self.0.to_le_bytes()
    }

    /// From the wire.
    #[inline]
    pub const fn from_wire(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // The check value of CRC-32C, and 32 bytes of zeroes and of ones (RFC 3720, appendix B.4).
        assert_eq!(Crc::of(b"123456789"), Crc(0xe306_9283));
        assert_eq!(Crc::of(&[0; 32]).to_wire(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(Crc::of(&[0xff; 32]).to_wire(), [0x43, 0xab, 0xa8, 0x62]);
        assert_eq!(Crc::of(&[]), Crc::EMPTY);
    }

    proptest! {
        #[test]
        fn pieces_give_the_digest_of_the_whole(bytes: Vec<u8>, cut: prop::sample::Index) {
            let cut = cut.index(bytes.len() + 1);
            prop_assert_eq!(Crc::of(&bytes[..cut]).and(&bytes[cut..]), Crc::of(&bytes));
            prop_assert_eq!(Crc::from_wire(Crc::of(&bytes).to_wire()), Crc::of(&bytes));
        }
    }
}
