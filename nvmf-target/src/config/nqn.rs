//! What makes a text an NVMe Qualified Name.
//!
//! NQNs are compared byte by byte everywhere else; only names that an operator writes down are judged for their form,
//! because a typing mistake there would lock hosts out without a word.

/// The longest NQN in bytes, its terminating NUL not counted (NVMe Base 2.0, 4.5).
pub const MAX_NQN_BYTES: usize = 223;

/// The well-known name of every discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Why a text cannot be an NQN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Longer than 223 bytes.
    #[error("the NQN is {0} bytes long, the standard allows {MAX_NQN_BYTES}")]
    TooLong(usize),
    /// Not of the form that the standard asks for.
    #[error(
        "{0:?} is not an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
    )]
    Malformed(String),
    /// White space or a control character.
    #[error("{0:?}: an NQN holds no white space and no control character")]
    Blank(String),
    /// The discovery service's own name, given to a subsystem.
    #[error(
        "{DISCOVERY_NQN} is the discovery service, which every listener has; give the subsystem a name of its own"
    )]
    Discovery,
}

/// Checks the name of a host. Hosts made by other tools have names of many forms, so only what the standard forbids
/// outright is refused.
pub fn check_host_nqn(nqn: &str) -> Result<(), NqnError> {
    check_common(nqn)
}

/// Checks the name of a subsystem that this target is to serve.
pub fn check_subsystem_nqn(nqn: &str) -> Result<(), NqnError> {
    check_common(nqn)?;
    if nqn == DISCOVERY_NQN {
        return Err(NqnError::Discovery);
    }
    let malformed = || NqnError::Malformed(nqn.to_owned());
    let rest = nqn.strip_prefix("nqn.").ok_or_else(malformed)?;
    let (date, rest) = rest.split_at_checked(7).ok_or_else(malformed)?;
    let date = date.as_bytes();
    let month = [date[5], date[6]];
    let dated = date[..4].iter().all(u8::is_ascii_digit)
        && date[4] == b'-'
        && month.iter().all(u8::is_ascii_digit)
        && (*b"01"..=*b"12").contains(&month);
    let (domain, name) = rest
        .strip_prefix('.')
        .and_then(|rest| rest.split_once(':'))
        .ok_or_else(malformed)?;
    if dated && !domain.is_empty() && !name.is_empty() {
        Ok(())
    } else {
        Err(malformed())
    }
}

fn check_common(nqn: &str) -> Result<(), NqnError> {
    if nqn.len() > MAX_NQN_BYTES {
        return Err(NqnError::TooLong(nqn.len()));
    }
    if !nqn.starts_with("nqn.") {
        return Err(NqnError::Malformed(nqn.to_owned()));
    }
    if nqn.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(NqnError::Blank(nqn.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_standard_are_names() {
        for nqn in [
            "nqn.2025-01.org.example:disk1",
            "nqn.2014-08.org.nvmexpress:uuid:c8c3a6a6-7b6a-4f8c-9d5c-2d5a3a7c0b1e",
        ] {
            assert_eq!(check_subsystem_nqn(nqn), Ok(()));
            assert_eq!(check_host_nqn(nqn), Ok(()));
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for nqn in [
            "",
            "disk1",
            "iqn.2025-01.org.example:disk1",
            "nqn.2025-13.org.example:x",
            "nqn.2025-00.org.example:x",
            "nqn.25-01.org.example:x",
            "nqn.2025-01.org.example",
            "nqn.2025-01.:x",
            "nqn.2025-01.org:",
            "nqn.2025-0é.o:x",
        ] {
            assert_eq!(
                check_subsystem_nqn(nqn),
                Err(NqnError::Malformed(nqn.to_owned())),
                "{nqn}"
            );
        }
        assert_eq!(
            check_subsystem_nqn("nqn.2025-01.org.example:a b")
                .unwrap_err()
                .to_string(),
            "\"nqn.2025-01.org.example:a b\": an NQN holds no white space and no control character"
        );
        let long = format!("nqn.2025-01.org.example:{}", "x".repeat(200));
        assert_eq!(
            check_host_nqn(&long).unwrap_err().to_string(),
            "the NQN is 224 bytes long, the standard allows 223"
        );
        assert_eq!(
            check_subsystem_nqn(DISCOVERY_NQN).unwrap_err(),
            NqnError::Discovery
        );
        assert_eq!(check_host_nqn("nqn.anything"), Ok(()));
    }
}
