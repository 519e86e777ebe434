//! Which hosts may connect to a subsystem.

use std::collections::BTreeSet;

use nvme_proto::wire::Nqn;

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
    /// Whether the host called `nqn` may connect.
    pub fn allows(&self, nqn: &Nqn) -> bool {
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
        let nqn = |text: &str| text.parse::<Nqn>().unwrap();
        let host = nqn("nqn.2024-01.org.example:host");
        assert!(!HostAccess::default().allows(&host));
        assert!(HostAccess::Any.allows(&host));
        let one = HostAccess::Only([host.clone()].into());
        assert!(one.allows(&host));
        assert!(!one.allows(&nqn("nqn.2024-01.org.example:HOST")));
    }
}
