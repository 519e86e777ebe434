//! NVMe Qualified Names.
//!
//! A name is UTF-8, at most 223 bytes, ended by a NUL in a field of 256 bytes, and compared byte by
//! byte. Whether it follows the `nqn.` form is a question of its own ([`Nqn::has_standard_form`]):
//! targets in use carry names that do not, and a host must still be able to ask for them.

use super::uid::Uuid;
use core::fmt;
use core::str::FromStr;
use std::sync::Arc;

/// Length of the field that holds a name on the wire, in bytes.
pub const NQN_FIELD_BYTES: usize = 256;
/// The longest name, in bytes, without the NUL.
pub const NQN_MAX_BYTES: usize = 223;

/// The well-known name of the discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// What the name of a host or subsystem identified by a UUID starts with.
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// A name that is short enough, not empty, UTF-8 and without NUL. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Arc<str>);

/// Why bytes or text are no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NqnError {
    /// Nothing before the NUL.
    Empty,
    /// More than 223 bytes, or no NUL among the first 224.
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// A NUL inside the text.
    Nul,
}

impl fmt::Display for NqnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the NQN is empty",
            Self::TooLong => "the NQN is longer than 223 bytes or not ended by a NUL",
            Self::NotUtf8 => "the NQN is not UTF-8",
            Self::Nul => "the NQN has a NUL inside",
        })
    }
}

impl core::error::Error for NqnError {}

impl Nqn {
    /// The name of the discovery service.
    pub fn discovery() -> Self {
        Self(DISCOVERY_NQN.into())
    }

    /// The UUID form: `nqn.2014-08.org.nvmexpress:uuid:` and the UUID.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(format!("{UUID_PREFIX}{uuid}").into())
    }

    /// Reads a name from its field: everything before the first NUL, which must come in time.
    pub fn from_field(field: &[u8; NQN_FIELD_BYTES]) -> Result<Self, NqnError> {
        let end = field[..=NQN_MAX_BYTES]
            .iter()
            .position(|&b| b == 0)
            .ok_or(NqnError::TooLong)?;
        core::str::from_utf8(&field[..end])
            .map_err(|_| NqnError::NotUtf8)?
            .parse()
    }

    /// The name as its field, padded with NUL.
    pub fn to_field(&self) -> [u8; NQN_FIELD_BYTES] {
        let mut field = [0; NQN_FIELD_BYTES];
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }

    /// The name as text. It may hold control characters; `Display` escapes them.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the well-known name of the discovery service.
    pub fn is_discovery(&self) -> bool {
        *self.0 == *DISCOVERY_NQN
    }

    /// The UUID, where the name has the UUID form.
    pub fn uuid(&self) -> Option<Uuid> {
        let uuid = self.0.strip_prefix(UUID_PREFIX)?;
        (uuid.len() == 36).then(|| uuid.parse().ok()).flatten()
    }

    /// Whether the name has one of the two forms of the specification: the UUID form, or
    /// `nqn.yyyy-mm.` followed by a reverse domain name, with or without `:` and more.
    pub fn has_standard_form(&self) -> bool {
        if self.0.starts_with(UUID_PREFIX) {
            return self.uuid().is_some();
        }
        let Some(rest) = self.0.strip_prefix("nqn.") else {
            return false;
        };
        let bytes = rest.as_bytes();
        let date = bytes.len() > 8
            && bytes[..4].iter().all(u8::is_ascii_digit)
            && bytes[4] == b'-'
            && matches!(
                (bytes[5], bytes[6]),
                (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2')
            )
            && bytes[7] == b'.';
        if !date {
            return false;
        }
        let domain = rest[8..].split(':').next().unwrap_or_default();
        let label =
            |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        domain.split('.').all(label)
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(text: &str) -> Result<Self, NqnError> {
        if text.is_empty() {
            return Err(NqnError::Empty);
        }
        if text.len() > NQN_MAX_BYTES {
            return Err(NqnError::TooLong);
        }
        if text.contains('\0') {
            return Err(NqnError::Nul);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(char::is_control) {
            write!(f, "{}", self.0.escape_debug())
        } else {
            f.write_str(&self.0)
        }
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn field_is_nul_terminated_and_bounded() {
        let mut field = [b'a'; NQN_FIELD_BYTES];
        assert_eq!(Nqn::from_field(&field), Err(NqnError::TooLong));
        field[224] = 0;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::TooLong));
        field[223] = 0;
        assert_eq!(
            Nqn::from_field(&field).unwrap().as_str().len(),
            NQN_MAX_BYTES
        );
        field[0] = 0;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::Empty));
        field[0] = 0xff;
        assert_eq!(Nqn::from_field(&field), Err(NqnError::NotUtf8));
        assert_eq!("a\0b".parse::<Nqn>(), Err(NqnError::Nul));
        assert_eq!("a".repeat(224).parse::<Nqn>(), Err(NqnError::TooLong));
    }

    #[test]
    fn what_follows_the_nul_does_not_count() {
        let mut field = Nqn::discovery().to_field();
        field[200] = b'x';
        let nqn = Nqn::from_field(&field).unwrap();
        assert_eq!(nqn, Nqn::discovery());
        assert!(nqn.is_discovery());
    }

    #[test]
    fn comparison_is_by_bytes() {
        assert_ne!(
            "nqn.2024-01.org.Example".parse::<Nqn>(),
            "nqn.2024-01.org.example".parse()
        );
    }

    #[test]
    fn forms() {
        let nqn = |s: &str| s.parse::<Nqn>().unwrap();
        let uuid: Uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6".parse().unwrap();
        assert_eq!(
            Nqn::from_uuid(uuid).as_str(),
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
        );
        assert_eq!(Nqn::from_uuid(uuid).uuid(), Some(uuid));
        for good in [
            DISCOVERY_NQN,
            "nqn.2024-12.io.example",
            "nqn.2024-01.io.example:disk:1",
            Nqn::from_uuid(uuid).as_str(),
        ] {
            assert!(nqn(good).has_standard_form(), "{good}");
        }
        for bad in [
            "disk1",
            "nqn.2024-13.io.x",
            "nqn.2024-00.io.x",
            "nqn.2024-01.",
            "nqn.2024-01..x",
            "nqn.2014-08.org.nvmexpress:uuid:1",
        ] {
            assert!(!nqn(bad).has_standard_form(), "{bad}");
        }
    }

    #[test]
    fn control_characters_cannot_reach_a_log_line() {
        assert_eq!("a\nb".parse::<Nqn>().unwrap().to_string(), "a\\nb");
    }

    proptest! {
        #[test]
        fn field_round_trip(text in "[^\0]{1,55}") {
            let nqn: Nqn = text.parse().unwrap();
            prop_assert_eq!(Nqn::from_field(&nqn.to_field()).unwrap(), nqn);
        }

        #[test]
        fn any_field_is_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), NQN_FIELD_BYTES)) {
            let field: [u8; NQN_FIELD_BYTES] = bytes.try_into().unwrap();
            if let Ok(nqn) = Nqn::from_field(&field) {
                prop_assert!(nqn.as_str().len() <= NQN_MAX_BYTES);
            }
        }
    }
}
