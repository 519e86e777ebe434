//! Which hosts may connect to a subsystem.

use std::collections::BTreeSet;

use super::nqn::Nqn;

/// The hosts that a subsystem admits. The default admits nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAccess {
    /// Every host.
    Any,
    /// The hosts with these NQNs, compared byte by byte.
    Only(BTreeSet<Nqn>),
}

impl Default for HostAccess {
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

impl HostAccess {
    /// Whether the host called `nqn` may connect. A name that is no valid NQN is only admitted by [`HostAccess::Any`].
    pub fn allows(&self, nqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(hosts) => hosts.contains(nqn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_means_nobody() {
        assert!(!HostAccess::default().allows("nqn.2024-01.org.example:host"));
        assert!(HostAccess::Any.allows("nqn.2024-01.org.example:host"));
        let one = HostAccess::Only([Nqn::new("nqn.2024-01.org.example:host").unwrap()].into());
        assert!(one.allows("nqn.2024-01.org.example:host"));
        assert!(!one.allows("nqn.2024-01.org.example:HOST"));
    }
}
