//! Where a subsystem is served: at every listener, or only at some addresses.

use super::discovery::Port;
use crate::config::Address;
use std::collections::BTreeSet;

/// The addresses at which hosts may connect to a subsystem, each for one transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// At every listener of the configuration, and at no other: what the configuration declares, and volumes.
    #[default]
    Declared,
    /// At these, each with a port. A wildcard stands for all addresses of its family.
    Only(BTreeSet<Address>),
}

impl Ports {
    /// Whether a host may use the subsystem over a connection to our address `local`; `open` are the ports that the target has.
    pub fn allow(&self, local: Address, open: &[Port]) -> bool {
        match self {
            Ports::Declared => {
                let mut declared = open.iter().filter(|port| port.declared);
                declared.any(|port| covers(port.at(), local))
            }
            Ports::Only(addresses) => addresses.iter().any(|address| covers(*address, local)),
        }
    }

    /// The ports that discovery reports, of those that the target has.
    pub fn among(&self, open: &[Port]) -> Vec<Port> {
        match self {
            Ports::Declared => open.iter().filter(|port| port.declared).copied().collect(),
            Ports::Only(addresses) => {
                let of = |address: &Address| {
                    let port = open.iter().find(|port| covers(port.at(), *address))?;
                    Some(Port {
                        address: address.socket,
                        ..*port
                    })
                };
                addresses.iter().filter_map(of).collect()
            }
        }
    }

    /// The addresses that it is served at whether or not others are too.
    pub fn named(&self) -> impl Iterator<Item = Address> + '_ {
        let named = match self {
            Ports::Declared => None,
            Ports::Only(addresses) => Some(addresses),
        };
        named.into_iter().flatten().copied()
    }
}

/// Whether who listens on `listening` gets what is sent to `address`, which may be a wildcard itself.
pub fn covers(listening: Address, address: Address) -> bool {
    let (here, there) = (listening.socket, address.socket);
    listening == address
        || (listening.carrier == address.carrier
            && here.port() == there.port()
            && here.is_ipv4() == there.is_ipv4()
            && here.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Carrier;

    fn addr(text: &str) -> Address {
        Address::tcp(text.parse().unwrap())
    }

    fn over_rdma(text: &str) -> Address {
        Address {
            carrier: Carrier::Rdma,
            ..addr(text)
        }
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
            address: addr(text).socket,
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
    fn an_address_is_one_of_a_transport() {
        let tcp = Ports::Only([addr("10.0.0.1:4420")].into());
        let both = Ports::Only([addr("10.0.0.1:4420"), over_rdma("10.0.0.1:4420")].into());
        let rdma = over_rdma("10.0.0.1:4420");
        assert!(!tcp.allow(rdma, &[]) && both.allow(rdma, &[]));
        assert!(!covers(addr("0.0.0.0:4420"), rdma) && covers(over_rdma("0.0.0.0:4420"), rdma));

        // What is declared for TCP is not served over an RDMA listener that the API made at the same place.
        let open = [
            port(1, "10.0.0.1:4420", true),
            Port {
                carrier: Carrier::Rdma,
                ..port(2, "10.0.0.1:4420", false)
            },
        ];
        assert!(Ports::Declared.allow(addr("10.0.0.1:4420"), &open));
        assert!(!Ports::Declared.allow(rdma, &open));
        assert_eq!(tcp.among(&open), open[..1]);
        let mut told = both.among(&open);
        told.sort_by_key(|port| port.id);
        assert_eq!(told, open);
    }

    #[test]
    fn discovery_tells_of_the_addresses_that_are_listened_on() {
        let open = [port(1, "0.0.0.0:4420", true)];
        let only = Ports::Only([addr("10.0.0.1:4420"), addr("10.0.0.1:9")].into());
        assert_eq!(only.among(&open), [port(1, "10.0.0.1:4420", true)]);
    }
}
