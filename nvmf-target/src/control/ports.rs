//! Where a subsystem is served: at every listener, or only at some addresses.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::discovery::Port;
use crate::config::Carrier;

/// The addresses at which hosts may connect to a subsystem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// At every listener of the configuration, and at no other: what the configuration declares, and volumes.
    #[default]
    Declared,
    /// At these, each with a port. A wildcard stands for all addresses of its family.
    Only(BTreeSet<SocketAddr>),
}

impl Ports {
    /// Whether a host may use the subsystem over a connection to our address `local`; `open` are the ports that the target has.
    pub fn allow(&self, local: SocketAddr, open: &[Port]) -> bool {
        match self {
            Ports::Declared => {
                let mut declared = open.iter().filter(|port| port.declared);
                declared.any(|port| covers(port.address, local))
            }
            Ports::Only(addresses) => addresses.iter().any(|address| covers(*address, local)),
        }
    }

    /// The ports that discovery reports, of those that the target has.
    pub fn among(&self, open: &[Port]) -> Vec<Port> {
        match self {
            Ports::Declared => open.iter().filter(|port| port.declared).copied().collect(),
            Ports::Only(addresses) => {
                let of = |address: &SocketAddr| {
                    let port = open.iter().find(|port| {
                        port.carrier == Carrier::Tcp && covers(port.address, *address)
                    })?;
                    Some(Port {
                        address: *address,
                        ..*port
                    })
                };
                addresses.iter().filter_map(of).collect()
            }
        }
    }

    /// The addresses that it is served at whether or not others are too.
    pub fn named(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let named = match self {
            Ports::Declared => None,
            Ports::Only(addresses) => Some(addresses),
        };
        named.into_iter().flatten().copied()
    }
}

/// Whether a socket that listens on `listening` gets what is sent to `address`, which may be a wildcard itself.
pub fn covers(listening: SocketAddr, address: SocketAddr) -> bool {
    listening == address
        || (listening.port() == address.port()
            && listening.is_ipv4() == address.is_ipv4()
            && listening.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_wildcard_stands_for_its_family() {
        let any = addr("0.0.0.0:4420");
        assert!(covers(any, addr("10.0.0.1:4420")) && covers(any, any));
        assert!(!covers(any, addr("10.0.0.1:4421")) && !covers(any, addr("[::1]:4420")));
        assert!(!covers(addr("10.0.0.1:4420"), any));
        let ports = Ports::Only([any].into());
        let allow = |local| ports.allow(addr(local), &[]);
        assert!(allow("10.9.9.9:4420") && !allow("10.9.9.9:8009"));
        assert!(!Ports::Only(BTreeSet::new()).allow(any, &[]));
    }

    fn port(id: u16, text: &str, declared: bool) -> Port {
        Port {
            id,
            carrier: Carrier::Tcp,
            address: addr(text),
            declared,
        }
    }

    #[test]
    fn what_is_declared_is_not_served_where_only_the_api_listens() {
        let open = [
            port(1, "127.0.0.1:4420", true),
            port(2, "0.0.0.0:8009", false),
        ];
        let allow = |local| Ports::Declared.allow(addr(local), &open);
        assert!(allow("127.0.0.1:4420") && !allow("127.0.0.1:8009") && !allow("10.0.0.1:8009"));
        assert_eq!(Ports::Declared.among(&open), open[..1]);
    }

    #[test]
    fn discovery_tells_of_the_addresses_that_are_listened_on() {
        let open = [port(1, "0.0.0.0:4420", true)];
        let only = Ports::Only([addr("10.0.0.1:4420"), addr("10.0.0.1:9")].into());
        assert_eq!(only.among(&open), [port(1, "10.0.0.1:4420", true)]);
    }
}
