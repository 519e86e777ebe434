//! Sizes in bytes as people write them, on every command line and in every file of the project: `4096`, `64k`,
//! `10GiB`.
//!
//! A size is a whole number, and behind it nothing or a unit: `K`, `M`, `G`, `T` or `P`, alone or as `Ki`, `KiB` or `KB`, in
//! letters of either case. All of them are powers of 1024, as fio and Docker read them: whoever says `10GB` never gets less
//! than was meant. The one exception is not ours: attributes of Kubernetes volumes are quantities of Kubernetes, where `G` is
//! 1000³ (`nvmf-csi`).

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// The units and the powers of two that they stand for.
const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// A number of bytes. It is shown in the largest unit that loses nothing, such as `64 MiB`, and read from text or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number with an optional unit.
    #[error(
        "{0:?} is not a size: write bytes, or a whole number with K, M, G, T or P (powers of 1024), such as 512M or 10GiB"
    )]
    Malformed(String),
    /// Nothing, where there must be something.
    #[error("{0:?} is no size here: what holds nothing is of no use; write such as 10G")]
    Zero(String),
    /// More than 64 bits of bytes.
    #[error("{0:?} is too large: a size has less than 16384P bytes")]
    TooLarge(String),
}

/// Reads a size, in bytes.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = trimmed.split_at(digits);
    if number.is_empty() {
        return Err(malformed());
    }
    let shift = shift(unit.trim_start()).ok_or_else(malformed)?;
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// Reads the size of something that cannot be empty, in bytes.
pub fn parse_nonzero(text: &str) -> Result<u64, SizeError> {
    match parse(text)? {
        0 => Err(SizeError::Zero(text.to_owned())),
        bytes => Ok(bytes),
    }
}

/// The power of two that a unit stands for.
fn shift(unit: &str) -> Option<u32> {
    let mut letters = unit.chars();
    let Some(first) = letters.next() else {
        return Some(0);
    };
    let rest = letters.as_str();
    let is = |text: &str| rest.eq_ignore_ascii_case(text);
    if first.eq_ignore_ascii_case(&'B') {
        return is("").then_some(0);
    }
    let (_, shift) = UNITS
        .into_iter()
        .find(|(name, _)| first.eq_ignore_ascii_case(name))?;
    ["", "B", "i", "iB"].into_iter().any(is).then_some(shift)
}

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        parse(text).map(ByteSize)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS.into_iter().rev() {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}iB", self.0 >> shift);
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024_however_they_are_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("512b", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("1KB", 1 << 10),
            (" 1 MiB ", 1 << 20),
            ("512Mi", 512 << 20),
            ("2gib", 2 << 30),
            ("10GB", 10 << 30),
            ("1Tb", 1 << 40),
            ("3TiB", 3 << 40),
            ("1P", 1 << 50),
            ("16383P", 16383 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_and_overflow_are_told_apart() {
        for text in [
            "",
            " ",
            "G",
            "B",
            "-1",
            "+1G",
            "1.5G",
            "1,5G",
            "12X",
            "1 2",
            "0x10",
            "10GG",
            "10BB",
            "10iB",
            "10GiBs",
            "10 bytes",
            "1E",
            "1K\u{212a}",
            "1\u{212a}",
            "٣G",
        ] {
            assert_eq!(
                parse(text),
                Err(SizeError::Malformed(text.to_owned())),
                "{text}"
            );
        }
        for text in [
            "18446744073709551616",
            "99999999999999999999K",
            "20000000000G",
            "16384P",
        ] {
            assert_eq!(
                parse(text),
                Err(SizeError::TooLarge(text.to_owned())),
                "{text}"
            );
        }
    }

    #[test]
    fn nothing_is_a_size_only_where_it_may_be() {
        assert_eq!(parse("0G"), Ok(0));
        assert_eq!(parse_nonzero("0G"), Err(SizeError::Zero("0G".to_owned())));
        assert_eq!(parse_nonzero("1"), Ok(1));
        assert_eq!(parse_nonzero("ten"), parse("ten"));
    }

    #[test]
    fn errors_say_what_is_taken() {
        let error = |text| parse(text).unwrap_err().to_string();
        assert_eq!(
            error("1.5G"),
            "\"1.5G\" is not a size: write bytes, or a whole number with K, M, G, T or P (powers of 1024), such as 512M or 10GiB"
        );
        assert_eq!(
            error("16384P"),
            "\"16384P\" is too large: a size has less than 16384P bytes"
        );
    }

    #[test]
    fn shown_in_the_largest_exact_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1000, "1000 bytes"),
            (1536 << 10, "1536 KiB"),
            (1 << 30, "1 GiB"),
            (1 << 60, "1024 PiB"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    #[test]
    fn files_give_text_or_an_integer() {
        let read = |json: &str| serde_json::from_str::<ByteSize>(json);
        assert_eq!(read("4096").unwrap(), ByteSize(4096));
        assert_eq!(read("\"10GB\"").unwrap(), ByteSize(10 << 30));
        for (json, why) in [
            ("-1", "a size: bytes, or text such as"),
            ("1.5", "a size: bytes, or text such as"),
            ("\"ten\"", "\"ten\" is not a size"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_number_with_a_unit_is_their_product(
            number: u64,
            unit in "[kKmMgGtTpP]?",
            form in "[bB]?|[iI][bB]?",
            blanks in " {0,2}",
        ) {
            // Without a letter before it only `B` is a unit.
            let form = if unit.is_empty() { form.trim_start_matches(['i', 'I']) } else { &form };
            let power = "kmgtp".find(&unit.to_ascii_lowercase()).map_or(0, |at| if unit.is_empty() { 0 } else { at + 1 });
            let product = u128::from(number) * 1024u128.pow(power as u32);
            let text = format!("{number}{blanks}{unit}{form}");
            match u64::try_from(product) {
                Ok(bytes) => prop_assert_eq!(parse(&text), Ok(bytes)),
                Err(_) => prop_assert_eq!(parse(&text), Err(SizeError::TooLarge(text))),
            }
        }

        #[test]
        fn what_is_shown_is_read_as_the_same(number in 0u64..1 << 14, shift in 0u32..51) {
            let size = ByteSize(number << shift);
            let shown = size.to_string();
            prop_assert_eq!(shown.trim_end_matches("ytes").parse(), Ok(size));
        }

        #[test]
        fn anything_else_is_refused(text in "\\PC*") {
            // Whatever is taken is digits and at most three letters.
            if parse(&text).is_ok() {
                let unit = text.trim().trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
                prop_assert!(text.trim().starts_with(|c: char| c.is_ascii_digit()));
                prop_assert!(unit.len() <= 3 && unit.bytes().all(|byte| byte.is_ascii_alphabetic()));
            }
        }
    }
}
