//! Blocks that say where they belong: what `--verify crc32c` writes and checks.
//!
//! A stamped block holds a header (magic, CRC32C of all the rest, byte offset, generation, seed) and content derived from them,
//! so a block that is lost, stale, misplaced or torn is told apart from a right one.

use std::fmt;

use crate::pattern::next_random;

const MAGIC: u32 = 0x564e_4246;
const HEADER_BYTES: usize = 32;

/// What is wrong with a block that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// The block was never stamped (or its head was lost).
    NoStamp {
        /// The four bytes that stand in the magic's place.
        found: u32,
    },
    /// The content does not match its own checksum: torn or damaged.
    Checksum {
        /// As stored.
        stored: u32,
        /// As computed.
        computed: u32,
    },
    /// A whole block, but another one's.
    Offset {
        /// The offset that the block names.
        found: u64,
    },
    /// The right block of an earlier pass: a lost or stale write.
    Generation {
        /// The generation found.
        found: u64,
        /// The generation that was acknowledged last.
        expected: u64,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStamp { found } => write!(
                f,
                "no stamp (found {found:#010x}): the block was never written, or its head was lost"
            ),
            Self::Checksum { stored, computed } => write!(
                f,
                "checksum {computed:#010x}, stored {stored:#010x}: torn or damaged"
            ),
            Self::Offset { found } => write!(f, "holds the block of offset {found}"),
            Self::Generation { found, expected } => write!(
                f,
                "holds pass {found}, pass {expected} was acknowledged: a lost or stale write"
            ),
        }
    }
}

/// Fills `block` for `offset` and `generation`.
pub fn stamp(block: &mut [u8], offset: u64, generation: u64, seed: u64) {
    let mut state = seed ^ offset.rotate_left(17) ^ generation.rotate_left(41);
    for chunk in block[HEADER_BYTES..].chunks_exact_mut(8) {
        chunk.copy_from_slice(&next_random(&mut state).to_le_bytes());
    }
    block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    block[8..16].copy_from_slice(&offset.to_le_bytes());
    block[16..24].copy_from_slice(&generation.to_le_bytes());
    block[24..32].copy_from_slice(&seed.to_le_bytes());
    let crc = crc32c::crc32c(&block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Checks a block that was read from `offset`; `generation` is checked where it is known.
pub fn check(block: &[u8], offset: u64, generation: Option<u64>) -> Result<(), Mismatch> {
    let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"));
    let head = word(0);
    let (magic, stored) = (head as u32, (head >> 32) as u32);
    if magic != MAGIC {
        return Err(Mismatch::NoStamp { found: magic });
    }
    let computed = crc32c::crc32c(&block[8..]);
    if computed != stored {
        return Err(Mismatch::Checksum { stored, computed });
    }
    if word(8) != offset {
        return Err(Mismatch::Offset { found: word(8) });
    }
    match generation {
        Some(expected) if word(16) != expected => Err(Mismatch::Generation {
            found: word(16),
            expected,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_damage_is_told_apart() {
        let mut block = vec![0; 4096];
        stamp(&mut block, 8192, 3, 99);
        assert_eq!(check(&block, 8192, Some(3)), Ok(()));
        assert_eq!(check(&block, 8192, None), Ok(()));
        assert_eq!(
            check(&block, 4096, Some(3)),
            Err(Mismatch::Offset { found: 8192 })
        );
        assert_eq!(
            check(&block, 8192, Some(4)),
            Err(Mismatch::Generation {
                found: 3,
                expected: 4
            })
        );
        block[4095] ^= 1;
        assert!(matches!(
            check(&block, 8192, Some(3)),
            Err(Mismatch::Checksum { .. })
        ));
        assert_eq!(
            check(&[0; 512], 0, None),
            Err(Mismatch::NoStamp { found: 0 })
        );
    }

    #[test]
    fn a_torn_block_does_not_pass() {
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        stamp(&mut old, 0, 1, 5);
        stamp(&mut new, 0, 2, 5);
        new[2048..].copy_from_slice(&old[2048..]);
        assert!(matches!(
            check(&new, 0, None),
            Err(Mismatch::Checksum { .. })
        ));
    }
}
