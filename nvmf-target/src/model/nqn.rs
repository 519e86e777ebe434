//! NVMe Qualified Names.

use std::fmt;
use std::sync::Arc;

/// The longest NQN in bytes: 224 bytes in a field, one of them the terminating NUL.
pub const MAX_NQN_BYTES: usize = 223;

/// An NVMe Qualified Name: printable, 1 to [`MAX_NQN_BYTES`] bytes, compared byte by byte. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Arc<str>);

/// Why a string is not an NQN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// No bytes at all.
    #[error("an NQN may not be empty")]
    Empty,
    /// Does not fit its field.
    #[error("an NQN has at most {MAX_NQN_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// A control character, which would break logs and the NUL termination.
    #[error("an NQN may not contain the control character {0:?}")]
    Control(char),
    /// Does not start as an NQN does.
    #[error("an NQN starts with \"nqn.\", for example nqn.2014-08.org.nvmexpress:uuid:…")]
    Prefix,
}

impl Nqn {
    /// Checks `name`: the prefix, the length, and that it has no control characters.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        if name.is_empty() {
            return Err(NqnError::Empty);
        }
        if name.len() > MAX_NQN_BYTES {
            return Err(NqnError::TooLong(name.len()));
        }
        if let Some(c) = name.chars().find(|c| c.is_control()) {
            return Err(NqnError::Control(c));
        }
        if !name.starts_with("nqn.") {
            return Err(NqnError::Prefix);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Nqn {
    type Err = NqnError;
    fn from_str(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

impl std::borrow::Borrow<str> for Nqn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(
            Nqn::new("nqn.2024-01.org.example:a").unwrap().as_str(),
            "nqn.2024-01.org.example:a"
        );
        assert_eq!(Nqn::new(""), Err(NqnError::Empty));
        assert_eq!(Nqn::new("iqn.1994-05.com.redhat:1"), Err(NqnError::Prefix));
        assert_eq!(Nqn::new("nqn.a\0b"), Err(NqnError::Control('\0')));
        let longest = format!("nqn.{}", "x".repeat(MAX_NQN_BYTES - 4));
        assert!(Nqn::new(&longest).is_ok());
        assert_eq!(Nqn::new(&(longest + "x")), Err(NqnError::TooLong(224)));
    }
}
