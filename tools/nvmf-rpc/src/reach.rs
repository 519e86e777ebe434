//! From a volume's listeners to the address that a host connects to.
//!
//! The transports that a volume may be reached by are a label of it, so that all who attach it go by the same. The first of them for which the target
//! has a listener is taken; which nodes have an RDMA device is not known here, and no other transport is tried where connecting fails.

use std::fmt;
use std::str::FromStr;

use crate::types::Volume;

/// Label of a volume: [`Transports`] that it is reached by.
pub const LABEL_TRANSPORT: &str = "nvmf.transport";

/// What carries NVMe between a host and a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
}

impl Transport {
    /// The name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Rdma => "rdma",
        }
    }
}

/// Transports, best first: `tcp`, `rdma`, `rdma,tcp`, or `tcp,rdma`, which holds where nothing is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transports(Vec<Transport>);

impl Default for Transports {
    fn default() -> Self {
        Transports(vec![Transport::Tcp, Transport::Rdma])
    }
}

/// What was given is no list of transports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' names no transports: say tcp, rdma, or both with a comma, the better one first (rdma,tcp)"
)]
pub struct NoTransports(String);

impl FromStr for Transports {
    type Err = NoTransports;

    fn from_str(text: &str) -> Result<Self, NoTransports> {
        let wrong = || NoTransports(text.to_owned());
        let mut all = Vec::new();
        for name in text.split(',') {
            let transport = match name.trim().to_ascii_lowercase().as_str() {
                "tcp" => Transport::Tcp,
                "rdma" => Transport::Rdma,
                _ => return Err(wrong()),
            };
            if all.contains(&transport) {
                return Err(wrong());
            }
            all.push(transport);
        }
        Ok(Transports(all))
    }
}

impl fmt::Display for Transports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|transport| transport.name()).collect();
        f.write_str(&names.join(","))
    }
}

/// Where a host connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached<'a> {
    /// How.
    pub transport: Transport,
    /// A name or address.
    pub traddr: &'a str,
    /// The port.
    pub port: u16,
}

/// Why a volume has no address for hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// No listener of the target speaks what the volume may be reached by.
    #[error(
        "volume {volume}: the target listens nowhere over {transports} (it has: {listeners}): add a listener to its configuration, or \
         have the volume reached by another transport"
    )]
    NoListener {
        /// The volume.
        volume: String,
        /// What it may be reached by.
        transports: Transports,
        /// What there is.
        listeners: String,
    },
    /// The label says something else than transports.
    #[error("volume {volume}, label {LABEL_TRANSPORT}: {cause}")]
    Label {
        /// The volume.
        volume: String,
        /// What is wrong.
        cause: NoTransports,
    },
    /// The listener takes every address of its machine, and none of them is known here.
    #[error(
        "volume {volume}: the target listens on all of its addresses ({traddr}) and does not say one that leads to it: \
         give one with --traddr ADDRESS"
    )]
    AnyAddress {
        /// The volume.
        volume: String,
        /// What it listens on.
        traddr: String,
    },
    /// The listener's port is none.
    #[error("volume {volume}: the target's port '{trsvcid}' is no number of a port")]
    Port {
        /// The volume.
        volume: String,
        /// What the target said.
        trsvcid: String,
    },
}

impl Volume {
    /// Where hosts connect to: the first listener of the best transport that there is one of, or `traddr`, which the administrator gave, with that
    /// listener's port.
    pub fn reach<'a>(&'a self, traddr: Option<&'a str>) -> Result<Reached<'a>, Unreachable> {
        let volume = || self.name.clone();
        let label = self.labels.get(LABEL_TRANSPORT);
        let transports = label.map_or_else(|| Ok(Transports::default()), |text| text.parse());
        let transports = transports.map_err(|cause| Unreachable::Label {
            volume: volume(),
            cause,
        })?;
        let found = transports.0.iter().find_map(|transport| {
            let is_one = |trtype: &str| trtype.eq_ignore_ascii_case(transport.name());
            let mut listeners = self.listeners.iter();
            let listener = listeners.find(|listener| is_one(&listener.trtype))?;
            Some((*transport, listener))
        });
        let (transport, listener) = found.ok_or_else(|| {
            let all = self.listeners.iter();
            let all: Vec<_> = all
                .map(|at| format!("{} {}:{}", at.trtype, at.traddr, at.trsvcid))
                .collect();
            Unreachable::NoListener {
                volume: volume(),
                transports: transports.clone(),
                listeners: match all.is_empty() {
                    true => "none".to_owned(),
                    false => all.join(", "),
                },
            }
        })?;
        let port = listener.trsvcid.parse().map_err(|_| Unreachable::Port {
            volume: volume(),
            trsvcid: listener.trsvcid.clone(),
        })?;
        let traddr = match (traddr, listener.traddr.as_str()) {
            (Some(traddr), _) => traddr,
            (None, "0.0.0.0" | "::") => {
                return Err(Unreachable::AnyAddress {
                    volume: volume(),
                    traddr: listener.traddr.clone(),
                });
            }
            (None, own) => own,
        };
        Ok(Reached {
            transport,
            traddr,
            port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(listeners: &[(&str, &str, &str)]) -> Volume {
        let listeners: Vec<_> = listeners
            .iter()
            .map(|(trtype, traddr, trsvcid)| {
                serde_json::json!({
                    "trtype": trtype, "adrfam": "IPv4", "traddr": traddr, "trsvcid": trsvcid,
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "pool": "p", "name": "v", "id": "i", "size_bytes": 1, "allocated_bytes": 0, "block_size": 4096, "nqn": "n", "nsid": 1,
            "uuid": "", "nguid": "", "read_only": false, "hosts": [], "connected_hosts": [], "source": null, "created": "",
            "listeners": listeners,
        }))
        .unwrap()
    }

    const TCP: (&str, &str, &str) = ("TCP", "192.0.2.1", "4420");
    const RDMA: (&str, &str, &str) = ("RDMA", "192.0.2.2", "4421");

    fn at(transport: Transport, traddr: &str, port: u16) -> Result<Reached<'_>, Unreachable> {
        Ok(Reached {
            transport,
            traddr,
            port,
        })
    }

    #[test]
    fn the_address_is_a_listener_or_what_was_given() {
        let both = volume(&[RDMA, TCP]);
        assert_eq!(both.reach(None), at(Transport::Tcp, "192.0.2.1", 4420));
        assert_eq!(both.reach(Some("store")), at(Transport::Tcp, "store", 4420));
        for any in ["0.0.0.0", "::"] {
            let any = volume(&[("TCP", any, "4420")]);
            let refused = any.reach(None).unwrap_err();
            assert!(refused.to_string().contains("--traddr"), "{refused}");
            assert_eq!(any.reach(Some("store")), at(Transport::Tcp, "store", 4420));
        }
        let odd = volume(&[("TCP", "192.0.2.1", "x")]);
        assert!(matches!(odd.reach(None), Err(Unreachable::Port { .. })));
    }

    #[test]
    fn the_label_says_which_transport_is_tried_first() {
        let by_tcp = || at(Transport::Tcp, "192.0.2.1", 4420);
        let by_rdma = || at(Transport::Rdma, "192.0.2.2", 4421);
        let reach = |listeners: &[_], label: &str| {
            let mut volume = volume(listeners);
            if !label.is_empty() {
                let label = (LABEL_TRANSPORT.to_owned(), label.to_owned());
                volume.labels.extend([label]);
            }
            // The address outlives the volume here.
            volume.reach(None).map(|reached| match reached.transport {
                Transport::Tcp => by_tcp().unwrap(),
                Transport::Rdma => by_rdma().unwrap(),
            })
        };
        assert_eq!(reach(&[RDMA], ""), by_rdma(), "the only one");
        assert_eq!(reach(&[RDMA, TCP], "rdma"), by_rdma());
        assert_eq!(reach(&[TCP, RDMA], "rdma,tcp"), by_rdma());
        assert_eq!(reach(&[TCP], "rdma,tcp"), by_tcp());
        assert_eq!(reach(&[RDMA], "tcp,rdma"), by_rdma());
        assert_eq!(reach(&[RDMA, TCP], " TCP "), by_tcp());
        let refused = |listeners: &[_], label| reach(listeners, label).unwrap_err().to_string();
        let text = refused(&[TCP], "rdma");
        assert!(
            text.contains("over rdma") && text.contains("TCP 192.0.2.1:4420"),
            "{text}"
        );
        assert!(refused(&[RDMA], "tcp").contains("over tcp"));
        assert!(refused(&[], "").contains("it has: none"));
        assert!(refused(&[TCP], "fc").contains(LABEL_TRANSPORT));
    }

    #[test]
    fn transports_are_names_with_commas() {
        for text in ["tcp", "rdma", "rdma,tcp", "tcp,rdma"] {
            assert_eq!(text.parse::<Transports>().unwrap().to_string(), text);
        }
        assert_eq!(Transports::default().to_string(), "tcp,rdma");
        for wrong in ["", ",", "tcp,", "tcp,tcp", "fc", "tcp rdma"] {
            let error = wrong.parse::<Transports>().unwrap_err();
            assert!(error.to_string().contains("rdma,tcp"), "{wrong}");
        }
    }
}
