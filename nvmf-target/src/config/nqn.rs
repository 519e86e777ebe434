//! What makes a text an NVMe Qualified Name.
//!
//! NQNs are compared byte by byte everywhere else; only names that an operator writes down are judged for their form,
//! because a typing mistake there would lock hosts out without a word.

use crate::model::{Nqn, NqnError};

/// The well-known name of every discovery service.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Why a text cannot name a subsystem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubsystemNqnError {
    /// No NQN at all.
    #[error(transparent)]
    NotAnNqn(#[from] NqnError),
    /// Not of the form that the standard asks for.
    #[error(
        "{0:?} does not have the form of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
    )]
    Malformed(String),
    /// The discovery service's own name, given to a subsystem.
    #[error(
        "{DISCOVERY_NQN} is the discovery service, which every listener has; give the subsystem a name of its own"
    )]
    Discovery,
}

/// Checks the name of a subsystem that this target is to serve.
pub fn subsystem_nqn(name: &str) -> Result<Nqn, SubsystemNqnError> {
    let nqn = Nqn::new(name)?;
    if name == DISCOVERY_NQN {
        return Err(SubsystemNqnError::Discovery);
    }
    let malformed = || SubsystemNqnError::Malformed(name.to_owned());
    let rest = name.strip_prefix("nqn.").ok_or_else(malformed)?;
    let (date, rest) = rest.split_at_checked(7).ok_or_else(malformed)?;
    let date = date.as_bytes();
    let month = [date[5], date[6]];
    let dated = date[..4].iter().all(u8::is_ascii_digit)
        && date[4] == b'-'
        && month.iter().all(u8::is_ascii_digit)
        && (*b"01"..=*b"12").contains(&month);
    let (domain, local) = rest
        .strip_prefix('.')
        .and_then(|rest| rest.split_once(':'))
        .ok_or_else(malformed)?;
    let blank = name.contains(char::is_whitespace);
    if dated && !domain.is_empty() && !local.is_empty() && !blank {
        Ok(nqn)
    } else {
        Err(malformed())
    }
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
            assert_eq!(subsystem_nqn(nqn).unwrap().as_str(), nqn);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for nqn in [
            "nqn.disk1",
            "nqn.2025-13.org.example:x",
            "nqn.2025-00.org.example:x",
            "nqn.25-01.org.example:x",
            "nqn.2025-01.org.example",
            "nqn.2025-01.:x",
            "nqn.2025-01.org:",
            "nqn.2025-0é.o:x",
            "nqn.2025-01.org.example:a b",
        ] {
            let error = subsystem_nqn(nqn).unwrap_err();
            assert_eq!(error, SubsystemNqnError::Malformed(nqn.to_owned()), "{nqn}");
        }
        let prefix = SubsystemNqnError::NotAnNqn(NqnError::Prefix);
        assert_eq!(subsystem_nqn("disk1"), Err(prefix));
        assert_eq!(
            subsystem_nqn(DISCOVERY_NQN),
            Err(SubsystemNqnError::Discovery)
        );
        assert_eq!(
            subsystem_nqn("nqn.x").unwrap_err().to_string(),
            "\"nqn.x\" does not have the form of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
        );
    }
}
