//! Names that an operator writes down.
//!
//! NQNs are compared byte by byte everywhere else, whatever their form; only those that come from a configuration are judged for it,
//! because a typing mistake there would lock hosts out without a word.

use nvme_proto::wire::Nqn;
use nvme_proto::wire::nqn::{DISCOVERY_NQN, NqnError};

/// Why a text in a configuration is not taken for a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No NQN at all.
    #[error("{name:?}: {error}")]
    NotAnNqn {
        /// What was written.
        name: String,
        /// What is wrong with it.
        error: NqnError,
    },
    /// Not of the form that the standard gives to names.
    #[error(
        "{0:?} does not have the form of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
    )]
    SubsystemForm(String),
    /// A host's name that does not even begin as names do.
    #[error(
        "{0:?} does not have the form of an NQN: write what the host has in /etc/nvme/hostnqn, which starts with \"nqn.\""
    )]
    HostForm(String),
    /// The discovery service's own name, given to a subsystem.
    #[error(
        "{DISCOVERY_NQN} is the discovery service, which every listener has; give the subsystem a name of its own"
    )]
    Discovery,
}

/// Checks the name of a subsystem that this target is to serve.
pub fn subsystem_nqn(name: &str) -> Result<Nqn, NameError> {
    let nqn = parse(name)?;
    if nqn.is_discovery() {
        return Err(NameError::Discovery);
    }
    if nqn.has_standard_form() && is_plain(name) {
        Ok(nqn)
    } else {
        Err(NameError::SubsystemForm(name.to_owned()))
    }
}

/// Checks the name of a host. Hosts made by other tools have names of many forms.
pub fn host_nqn(name: &str) -> Result<Nqn, NameError> {
    let nqn = parse(name)?;
    if name.starts_with("nqn.") && is_plain(name) {
        Ok(nqn)
    } else {
        Err(NameError::HostForm(name.to_owned()))
    }
}

fn parse(name: &str) -> Result<Nqn, NameError> {
    name.parse().map_err(|error| NameError::NotAnNqn {
        name: name.to_owned(),
        error,
    })
}

fn is_plain(name: &str) -> bool {
    !name.contains(|c: char| c.is_whitespace() || c.is_control())
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
            assert_eq!(host_nqn(nqn).unwrap().as_str(), nqn);
        }
        assert!(host_nqn("nqn.of-some-tool").is_ok());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [
            "disk1",
            "nqn.disk1",
            "nqn.2025-13.org.example:x",
            "nqn.25-01.org.example:x",
            "nqn.2025-01.org.example:a b",
        ] {
            let error = subsystem_nqn(name).unwrap_err();
            assert_eq!(error, NameError::SubsystemForm(name.to_owned()));
        }
        for name in ["host1", "iqn.2025-01.org.example", "nqn.a\tb"] {
            let error = host_nqn(name).unwrap_err();
            assert_eq!(error, NameError::HostForm(name.to_owned()));
        }
        assert_eq!(subsystem_nqn(DISCOVERY_NQN), Err(NameError::Discovery));
        assert_eq!(
            subsystem_nqn("").unwrap_err().to_string(),
            "\"\": the NQN is empty"
        );
        assert_eq!(
            subsystem_nqn("nqn.x").unwrap_err().to_string(),
            "\"nqn.x\" does not have the form of an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, such as nqn.2025-01.org.example:disk1"
        );
        assert_eq!(
            host_nqn("h").unwrap_err().to_string(),
            "\"h\" does not have the form of an NQN: write what the host has in /etc/nvme/hostnqn, which starts with \"nqn.\""
        );
    }
}
