//! Globally unique identifiers: UUID, NGUID, EUI64 and the host identifier.
//!
//! UUIDs cross the wire in the order of RFC 4122 (big endian), which is the order of their text, so
//! all of these are plain byte arrays. A value of zero means "none" everywhere.

use core::fmt;
use core::str::FromStr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! unique_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default,
            FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
        )]
        #[repr(transparent)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// No identifier.
            pub const NONE: Self = Self([0; $len]);

            /// Whether this is zero, which means that there is no identifier.
            pub fn is_none(&self) -> bool {
                *self == Self::NONE
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

unique_id!(
    /// Universally unique identifier.
    Uuid,
    16
);
unique_id!(
    /// Host Identifier (HOSTID), the 128-bit form that fabrics use.
    HostId,
    16
);
unique_id!(
    /// Namespace Globally Unique Identifier (NGUID).
    Nguid,
    16
);
unique_id!(
    /// IEEE Extended Unique Identifier (EUI64).
    Eui64,
    8
);

/// A unique identifier that could not be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidParseError {
    expected_digits: usize,
}

impl fmt::Display for UidParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expected {} hexadecimal digits, with or without dashes",
            self.expected_digits
        )
    }
}

impl core::error::Error for UidParseError {}

/// Exactly `2 * N` hexadecimal digits; dashes are skipped.
fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], UidParseError> {
    let error = UidParseError {
        expected_digits: 2 * N,
    };
    let mut out = [0; N];
    let mut digits = 0;
    for c in text.chars().filter(|&c| c != '-') {
        let digit = c.to_digit(16).ok_or(error)? as u8;
        let byte = out.get_mut(digits / 2).ok_or(error)?;
        *byte = *byte << 4 | digit;
        digits += 1;
    }
    if digits == 2 * N { Ok(out) } else { Err(error) }
}

fn write_uuid(f: &mut fmt::Formatter<'_>, bytes: &[u8; 16]) -> fmt::Result {
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! text_form {
    ($($name:ident: $write:ident;)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $write(f, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = UidParseError;

            fn from_str(text: &str) -> Result<Self, UidParseError> {
                parse_hex(text).map(Self)
            }
        }
    )*};
}

text_form! {
    Uuid: write_uuid;
    HostId: write_uuid;
    Nguid: write_hex;
    Eui64: write_hex;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_bytes() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let uuid: Uuid = text.parse().unwrap();
        assert_eq!(uuid.0[0], 0x00);
        assert_eq!(uuid.0[15], 0xff);
        assert_eq!(uuid.to_string(), text);
        assert_eq!(
            "0011223344556677".parse::<Eui64>().unwrap().to_string(),
            "0011223344556677"
        );
        assert!(Nguid::NONE.is_none() && !Nguid([1; 16]).is_none());
    }

    #[test]
    fn wrong_length_or_digit_is_refused() {
        for bad in [
            "",
            "00",
            "00112233-4455-6677-8899-aabbccddeeff0",
            "0011223x-4455-6677-8899-aabbccddeeff",
        ] {
            assert!(bad.parse::<Uuid>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn uuid_text_round_trip(bytes: [u8; 16]) {
            prop_assert_eq!(Uuid(bytes).to_string().parse::<Uuid>().unwrap(), Uuid(bytes));
            prop_assert_eq!(Nguid(bytes).to_string().parse::<Nguid>().unwrap(), Nguid(bytes));
        }
    }
}
