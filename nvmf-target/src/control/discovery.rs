//! The discovery service: which ways to which subsystems a host is told of.
//!
//! A host sees the subsystems that would admit it, each at every listener that it may be able to reach, the discovery
//! service itself, and the referrals. A listener on a wildcard address is reported as the address that the host connected to, which is
//! the one address that certainly works for it; one on loopback is reported only to hosts that came over loopback.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use nvme_proto::controller::DiscoveryRecords;
use nvme_proto::wire::Nqn;
use nvme_proto::wire::log::{
    AddressFamily, DiscoveryEntry, Eflags, SubsystemType, TcpSecurity, Treq,
};
use zerocopy::little_endian::U16;

use super::association::{Association, Notice};
use super::ports::Ports;
use super::target::Target;
use crate::config::{Address, Carrier};

/// Entries of an admin queue that any host may count on.
const ADMIN_QUEUE_ENTRIES: u16 = 32;

/// A listener as discovery reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// PORTID; the same as long as the listener lives.
    pub id: u16,
    /// What carries NVMe there.
    pub carrier: Carrier,
    /// The address that it listens on.
    pub address: SocketAddr,
    /// Whether the configuration has it; the API made the others.
    pub declared: bool,
}

impl Port {
    /// Transport and address.
    pub fn at(&self) -> Address {
        Address {
            carrier: self.carrier,
            socket: self.address,
        }
    }
}

/// What the discovery log of `host` holds, over a connection to our address `local`.
pub fn records(target: &Target, host: &Nqn, local: IpAddr) -> DiscoveryRecords {
    let mut entries = Vec::new();
    let open = target.listeners.ports();
    let ports = |which: &Ports| -> Vec<Port> {
        let ports = which.among(&open).into_iter();
        ports.filter_map(|port| reachable(port, local)).collect()
    };
    let every: Vec<Port> = open
        .iter()
        .filter_map(|port| reachable(*port, local))
        .collect();
    for port in &every {
        let mut itself = entry(*port, SubsystemType::CURRENT_DISCOVERY, &Nqn::discovery());
        if let Some(entry) = &mut itself {
            entry.eflags = U16::new(Eflags::PERSISTENT_CONNECTION.bits());
        }
        entries.extend(itself);
    }
    for served in target.subsystems() {
        let subsystem = served.subsystem.borrow();
        if subsystem.hosts.allows(host) {
            let ports = ports(&served.ports.borrow());
            let all = ports.iter();
            entries.extend(all.filter_map(|port| entry(*port, SubsystemType::NVM, &subsystem.nqn)));
        }
    }
    for referral in &target.config.borrow().referrals {
        let port = Port {
            id: 0,
            carrier: referral.carrier,
            address: referral.socket,
            declared: true,
        };
        entries.extend(entry(port, SubsystemType::REFERRAL, &Nqn::discovery()));
    }
    DiscoveryRecords {
        generation: target.discovery_generation(),
        entries,
    }
}

/// The port as a host can reach it that connected to our address `local`; `None` if it certainly cannot.
fn reachable(port: Port, local: IpAddr) -> Option<Port> {
    let ip = port.address.ip();
    if ip.is_unspecified() {
        // The two families are listened on apart.
        return (ip.is_ipv4() == local.is_ipv4()).then(|| Port {
            address: SocketAddr::new(local, port.address.port()),
            ..port
        });
    }
    (!ip.is_loopback() || local.is_loopback()).then_some(port)
}

fn entry(port: Port, subtype: SubsystemType, nqn: &Nqn) -> Option<DiscoveryEntry> {
    let family = if port.address.is_ipv4() {
        AddressFamily::IPV4
    } else {
        AddressFamily::IPV6
    };
    let (traddr, trsvcid) = (
        port.address.ip().to_string(),
        port.address.port().to_string(),
    );
    let treq = Treq::new(Treq::SECURE_NOT_SPECIFIED, true);
    let mut entry = match port.carrier {
        Carrier::Tcp => {
            let security = TcpSecurity::NONE;
            DiscoveryEntry::tcp(family, &traddr, &trsvcid, subtype, nqn, treq, security)?
        }
        Carrier::Rdma => DiscoveryEntry::rdma(family, &traddr, &trsvcid, subtype, nqn, treq)?,
    };
    entry.portid = U16::new(port.id);
    entry.asqsz = U16::new(ADMIN_QUEUE_ENTRIES);
    Some(entry)
}

/// The discovery logs of every persistent connection, to find out later which of them a change concerns.
pub struct Snapshot(Vec<(Rc<Association>, Vec<DiscoveryEntry>)>);

impl Snapshot {
    /// The logs now.
    pub fn take(target: &Target) -> Self {
        let associations = target.discovery.associations_where(|_| true);
        let log = |association: &Association| {
            let local = association.local().socket.ip();
            records(target, &association.shared.host_nqn, local).entries
        };
        let all = associations.into_iter();
        Snapshot(
            all.map(|association| {
                let entries = log(&association);
                (association, entries)
            })
            .collect(),
        )
    }

    /// Moves the generation on if anything changed, and tells those hosts whose log is another one now.
    pub fn announce(self, target: &Target) {
        target.discovery_changed();
        let after = Snapshot::take(target);
        for (association, entries) in after.0 {
            let before = self
                .0
                .iter()
                .find(|(other, _)| Rc::ptr_eq(other, &association));
            let same = before.is_some_and(|(_, before)| {
                use zerocopy::IntoBytes;
                before.as_slice().as_bytes() == entries.as_slice().as_bytes()
            });
            if !same {
                association.notice(Notice::DiscoveryChanged);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme_proto::wire::log::TransportType;

    fn port(address: &str) -> Port {
        Port {
            id: 1,
            carrier: Carrier::Tcp,
            address: address.parse().unwrap(),
            declared: true,
        }
    }

    fn seen(listener: &str, local: &str) -> Option<String> {
        reachable(port(listener), local.parse().unwrap()).map(|port| port.address.to_string())
    }

    #[test]
    fn wildcards_are_reported_as_the_address_that_the_host_used() {
        assert_eq!(seen("0.0.0.0:4420", "10.0.0.7").unwrap(), "10.0.0.7:4420");
        assert_eq!(seen("[::]:4420", "fd00::7").unwrap(), "[fd00::7]:4420");
        assert_eq!(seen("[::]:4420", "10.0.0.7"), None);
    }

    #[test]
    fn loopback_is_for_this_machine() {
        assert_eq!(seen("127.0.0.1:4420", "10.0.0.7"), None);
        assert_eq!(
            seen("127.0.0.1:4420", "127.0.0.1").unwrap(),
            "127.0.0.1:4420"
        );
        assert_eq!(seen("10.0.0.7:4420", "127.0.0.1").unwrap(), "10.0.0.7:4420");
    }

    #[test]
    fn an_entry_says_where_and_what() {
        let nqn: Nqn = "nqn.2025-01.org.example:a".parse().unwrap();
        let entry = entry(port("[fd00::7]:8009"), SubsystemType::NVM, &nqn).unwrap();
        assert_eq!(entry.adrfam, AddressFamily::IPV6);
        assert_eq!(entry.traddr.to_string(), "fd00::7");
        assert_eq!(entry.trsvcid.to_string(), "8009");
        assert_eq!(
            (entry.nqn().unwrap(), entry.portid.get(), entry.asqsz.get()),
            (nqn, 1, 32)
        );
    }

    #[test]
    fn an_rdma_port_is_told_as_one() {
        let port = Port {
            carrier: Carrier::Rdma,
            ..port("10.0.0.7:4420")
        };
        let entry = entry(port, SubsystemType::NVM, &Nqn::discovery()).unwrap();
        assert_eq!(entry.trtype, TransportType::RDMA);
        assert_eq!(entry.traddr.to_string(), "10.0.0.7");
    }
}
