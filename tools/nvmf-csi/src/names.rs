//! Names of the orchestrator and of the pool.
//!
//! An orchestrator may use any Unicode of up to 128 bytes; a pool takes letters, digits, `.`, `_` and `-`, and what it makes of
//! them goes into NQNs. A name that is short and plain stays as it is, any other becomes its hash; the true one is kept in a
//! label. Identifiers are `TARGET/POOL/NAME`, so that a controller without state finds what they mean; the target `default` is
//! left out of them, and so what a driver of one target made stays what it was when others join it.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use tonic::Status;

use crate::Result;

/// The longest string that the interface allows in a field, unless the field says otherwise.
pub const MAX_FIELD_BYTES: usize = 128;
/// The longest identifier of a node that the interface allows.
pub const MAX_NODE_ID_BYTES: usize = 256;
/// The longest name that is kept as it is: with a pool's name before it, it still makes an identifier and an NQN.
const MAX_PLAIN_BYTES: usize = 56;
/// The longest name of a target: beside the longest plain name it leaves 38 bytes of an identifier to a pool's.
const MAX_TARGET_BYTES: usize = 32;
/// The target of identifiers that name none: the one that the command line gives no other name.
pub const DEFAULT_TARGET: &str = "default";
/// So many bytes of a hash are used: enough that no two names ever share them.
const HASH_BYTES: usize = 20;

/// A field that must be there and may not be too long.
pub fn required<'a>(field: &str, value: &'a str) -> Result<&'a str> {
    bounded(field, value, MAX_FIELD_BYTES)
}

/// The same with a bound of its own.
pub fn bounded<'a>(field: &str, value: &'a str, max_bytes: usize) -> Result<&'a str> {
    match value.len() {
        0 => Err(Status::invalid_argument(format!("{field} is missing"))),
        length if length > max_bytes => Err(Status::invalid_argument(format!(
            "{field} has {length} bytes; at most {max_bytes} are allowed"
        ))),
        _ => Ok(value),
    }
}

/// A name that the orchestrator gives: present, not too long, and without control characters.
pub fn given(value: &str) -> Result<&str> {
    let name = required("name", value)?;
    let banned = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    match name.chars().any(banned) {
        true => Err(Status::invalid_argument("name holds control characters")),
        false => Ok(name),
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn begins_well(name: &str) -> bool {
    let first = name.bytes().next();
    first.is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// Whether a target can be called so.
pub fn is_target(name: &str) -> bool {
    begins_well(name) && name.len() <= MAX_TARGET_BYTES && name.bytes().all(is_plain)
}

/// Whether a pool, a volume or a snapshot can be called so.
fn is_held(name: &str) -> bool {
    begins_well(name) && name.bytes().all(is_plain)
}

/// What the pool calls that which the orchestrator calls `name`.
pub fn in_pool(name: &str) -> String {
    if begins_well(name) && name.len() <= MAX_PLAIN_BYTES && name.bytes().all(is_plain) {
        return name.to_owned();
    }
    hashed(name)
}

/// A name of a pool that no other text leads to.
pub fn hashed(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let digits: String = digest[..HASH_BYTES]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("csi-{digits}")
}

/// Identifier of a volume, a snapshot or a group of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The target.
    pub target: String,
    /// The pool.
    pub pool: String,
    /// The name there.
    pub name: String,
}

impl Id {
    /// The identifier of `name` in `pool` of `target`.
    pub fn new(target: &str, pool: &str, name: &str) -> Id {
        Id {
            target: target.to_owned(),
            pool: pool.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The identifier of another name in the same pool.
    pub fn beside(&self, name: &str) -> Id {
        Id::new(&self.target, &self.pool, name)
    }

    /// Reads one that must exist: what is no identifier of ours cannot.
    pub fn existing(what: &str, text: &str) -> Result<Id> {
        text.parse().map_err(|()| {
            Status::not_found(format!(
                "{what} {text}: this driver's identifiers are POOL/NAME and TARGET/POOL/NAME"
            ))
        })
    }

    /// Refuses one that is longer than an orchestrator could give back.
    pub fn check_length(&self) -> Result<()> {
        let text = self.to_string();
        match text.len() > MAX_FIELD_BYTES {
            true => Err(Status::invalid_argument(format!(
                "the identifier {text} has {} bytes; at most {MAX_FIELD_BYTES} are allowed: give the target or the pool a shorter name",
                text.len()
            ))),
            false => Ok(()),
        }
    }
}

impl FromStr for Id {
    type Err = ();

    /// Each identifier has one form, so that it can be compared as a text.
    fn from_str(text: &str) -> std::result::Result<Id, ()> {
        let parts: Vec<_> = text.split('/').collect();
        match parts[..] {
            [pool, name] if !pool.is_empty() && !name.is_empty() => {
                Ok(Id::new(DEFAULT_TARGET, pool, name))
            }
            [target, pool, name]
                // The handle of a static volume of another target, such as ADDRESS/NQN/NSID, is none of ours.
                if is_target(target)
                    && target != DEFAULT_TARGET
                    && is_held(pool)
                    && is_held(name) =>
            {
                Ok(Id::new(target, pool, name))
            }
            _ => Err(()),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.target != DEFAULT_TARGET {
            write!(f, "{}/", self.target)?;
        }
        write!(f, "{}/{}", self.pool, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_stay_and_others_are_hashed() {
        assert_eq!(in_pool("pvc-0f3a"), "pvc-0f3a");
        for name in ["-a", ".a", "a/b", "Größe", "a b", &"a".repeat(128)] {
            let mapped = in_pool(name);
            assert!(
                mapped.starts_with("csi-") && mapped.len() == 44,
                "{name}: {mapped}"
            );
            assert_eq!(mapped, in_pool(name));
        }
        assert_ne!(in_pool("a/b"), in_pool("a/c"));
    }

    #[test]
    fn identifiers_go_there_and_back() {
        for (id, text) in [
            (Id::new(DEFAULT_TARGET, "fast", "pvc-1"), "fast/pvc-1"),
            (Id::new("east", "fast", "pvc-1"), "east/fast/pvc-1"),
        ] {
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse(), Ok(id));
        }
        for text in [
            "",
            "a",
            "/a",
            "a/",
            "/",
            "a//b",
            "/a/b",
            "a/b/",
            "a/b/c/d",
            "default/a/b",
            "-a/b/c",
            "a b/c/d",
            // Handles of static volumes of other targets.
            "10.0.0.1/nqn.2024-01.org:x/1",
            "10.0.0.1/a/nqn.2024-01.org:x",
        ] {
            assert_eq!(text.parse::<Id>(), Err(()), "{text}");
        }
        assert!(Id::existing("volume", "x").is_err());
        let of = |pool: usize| Id::new("east", &"p".repeat(pool), "n").check_length();
        assert!(of(121).is_ok() && of(122).is_err());
    }

    #[test]
    fn names_of_targets() {
        for name in ["east", "a", "node-1.rack_2", &"a".repeat(32)] {
            assert!(is_target(name), "{name}");
        }
        for name in ["", "-a", "a/b", "a:b", "a=b", "ä", &"a".repeat(33)] {
            assert!(!is_target(name), "{name}");
        }
    }

    #[test]
    fn fields_are_bounded() {
        assert!(required("f", "").is_err());
        assert!(required("f", &"a".repeat(128)).is_ok());
        assert!(required("f", &"a".repeat(129)).is_err());
        assert!(given("a\u{7}").is_err());
        assert!(given("a\u{85}").is_err());
        assert!(given("a\tb").is_ok());
    }
}
