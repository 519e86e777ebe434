//! Sizes in bytes as people write them: `4096`, `64K`, `1GiB`.
//!
//! The letters are powers of 1024. Decimal units (`MB`) are refused instead of guessed at: the two readings of
//! `1GB` differ by 7 %, and a namespace must have the size that its owner meant.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with an optional unit.
    #[error(
        "{0:?} is not a size: write bytes, or a number with K, M, G, T or P (powers of 1024), such as 512M or 10GiB"
    )]
    Malformed(String),
    /// A decimal unit, which has two readings.
    #[error(
        "{text:?} is ambiguous: write {suggestion} (powers of 1024), or the exact number of bytes"
    )]
    DecimalUnit {
        /// What was written.
        text: String,
        /// What to write instead.
        suggestion: String,
    },
    /// More than 64 bits of bytes.
    #[error("{0:?} is larger than any namespace can be")]
    TooLarge(String),
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(text.to_owned());
        let trimmed = text.trim();
        let digits_len = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, unit) = trimmed.split_at(digits_len);
        if digits.is_empty() {
            return Err(malformed());
        }
        let number: u64 = digits
            .parse()
            .map_err(|_| SizeError::TooLarge(text.to_owned()))?;
        let unit = unit.trim_start().to_ascii_uppercase();
        let shift = match unit.as_str() {
            "" | "B" => 0,
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            "P" | "PIB" => 50,
            "KB" | "MB" | "GB" | "TB" | "PB" => {
                return Err(SizeError::DecimalUnit {
                    text: text.to_owned(),
                    suggestion: format!("{number}{}iB", &unit[..1]),
                });
            }
            _ => return Err(malformed()),
        };
        number
            .checked_mul(1 << shift)
            .map(ByteSize)
            .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [
            (50, "PiB"),
            (40, "TiB"),
            (30, "GiB"),
            (20, "MiB"),
            (10, "KiB"),
        ] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: bytes, or text such as \"64M\" or \"10GiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("1 MiB", 1 << 20),
            ("2G", 2 << 30),
            ("3TiB", 3 << 40),
            ("1P", 1 << 50),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn decimal_units_are_refused_with_the_binary_one() {
        let error = "10GB".parse::<ByteSize>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"10GB\" is ambiguous: write 10GiB (powers of 1024), or the exact number of bytes"
        );
    }

    #[test]
    fn nonsense_and_overflow_are_told_apart() {
        for text in ["", "G", "-1", "1.5G", "12X", "1 2"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(SizeError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["99999999999999999999", "20000000000G"] {
            assert!(
                matches!(text.parse::<ByteSize>(), Err(SizeError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn shown_in_the_largest_exact_unit() {
        assert_eq!(ByteSize(1 << 30).to_string(), "1 GiB");
        assert_eq!(ByteSize(1536 << 10).to_string(), "1536 KiB");
        assert_eq!(ByteSize(1000).to_string(), "1000 bytes");
    }
}
