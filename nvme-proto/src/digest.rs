//! Header and data digests: CRC32C (the Castagnoli polynomial), stored little endian.
//!
//! The header digest covers the PDU header (HLEN bytes), the data digest the data alone, never the padding in front of it.

use crc_fast::{CrcAlgorithm, Digest};

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
        Self(crc_fast::crc32_iscsi(bytes))
    }

    /// The digest of what this one covers followed by `bytes`.
    #[inline]
    #[must_use]
    pub fn and(self, bytes: &[u8]) -> Self {
        if self == Self::EMPTY {
            // The state that this stands for is the initial one, also when it is the digest of something.
            return Self::of(bytes);
        }
        let state = u64::from(!self.0);
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, state);
        digest.update(bytes);
        Self(digest.finalize() as u32)
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

    /// Against another implementation, over lengths and alignments that take different paths.
    #[test]
    fn agrees_with_the_crc_instruction_alone() {
        let bytes: Vec<u8> = (0..70_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for length in (0..300).chain([511, 512, 1023, 4096, 4097, 16_384, 65_536]) {
            for start in [0, 1, 7, 8, 33] {
                let piece = &bytes[start..start + length];
                let expected = crc32c::crc32c(piece);
                assert_eq!(Crc::of(piece), Crc(expected), "{length} bytes from {start}");
                assert_eq!(
                    Crc(0x1234_5678).and(piece),
                    Crc(crc32c::crc32c_append(0x1234_5678, piece))
                );
            }
        }
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
