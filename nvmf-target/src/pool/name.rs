//! Names of pools, volumes and snapshots. They become names of files and parts of NQNs, so they are plain.

/// The longest name of a volume or snapshot: what CSI guarantees to its users.
pub const MAX_NAME_BYTES: usize = 128;

/// Judges a name: ASCII letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!(
            "{name:?} has {} bytes; a name has 1 to {MAX_NAME_BYTES}",
            name.len()
        ));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.bytes().all(plain) || !name.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(format!(
            "{name:?} is not a name: use letters, digits, '.', '_' and '-', and begin with a letter or digit"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_be_paths() {
        let longest = "x".repeat(MAX_NAME_BYTES);
        for name in ["a", "pvc-0d1c", "A.b_c-9", "0", "a..b", &longest] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let too_long = "x".repeat(MAX_NAME_BYTES + 1);
        for name in [
            "", ".", "..", ".a", "-a", "_a", "a/b", "../a", "a b", "a\0", "ä", "a\n", &too_long,
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
