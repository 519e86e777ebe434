//! Transport addresses: `tcp://ADDR:PORT` and `rdma://ADDR:PORT`, for listeners and referrals.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};

/// The port that IANA assigned to NVMe over Fabrics.
pub const DEFAULT_PORT: u16 = 4420;

/// What carries NVMe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// TCP.
    Tcp,
    /// RDMA.
    Rdma,
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Carrier::Tcp => "tcp",
            Carrier::Rdma => "rdma",
        })
    }
}

/// Where the target listens, or where a referral points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// What carries NVMe there.
    pub carrier: Carrier,
    /// The address.
    pub socket: SocketAddr,
}

impl Address {
    /// An NVMe/TCP address.
    pub const fn tcp(socket: SocketAddr) -> Self {
        Address {
            carrier: Carrier::Tcp,
            socket,
        }
    }

    /// Whether only this machine can reach a listener on the address.
    pub fn is_loopback(&self) -> bool {
        match self.socket.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
                Some(ip) => ip.is_loopback(),
                None => ip.is_loopback(),
            },
        }
    }
}

/// Why a text is not an address that this build can serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `tcp://` in front.
    #[error(
        "{0:?} has no transport: write tcp://ADDR:PORT or rdma://ADDR:PORT, such as tcp://127.0.0.1:4420 or tcp://[::]:4420"
    )]
    NoTransport(String),
    /// Another transport.
    #[error(
        "{text:?}: transport {transport:?} is unknown; write tcp://ADDR:PORT or rdma://ADDR:PORT"
    )]
    UnknownTransport {
        /// What was written.
        text: String,
        /// The part before `://`.
        transport: String,
    },
    /// Not an IP address with a port.
    #[error(
        "{text:?}: {host:?} is not an IP address with an optional port; write {transport}://ADDR:PORT, an IPv6 address in brackets"
    )]
    Malformed {
        /// What was written.
        text: String,
        /// The part before `://`.
        transport: String,
        /// The part after `://`.
        host: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (transport, host) = text
            .split_once("://")
            .ok_or_else(|| AddressError::NoTransport(text.to_owned()))?;
        let carrier = match transport {
            "tcp" => Carrier::Tcp,
            "rdma" => Carrier::Rdma,
            _ => {
                return Err(AddressError::UnknownTransport {
                    text: text.to_owned(),
                    transport: transport.to_owned(),
                });
            }
        };
        let host = host.strip_suffix('/').unwrap_or(host);
        let bare_ip = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(host);
        host.parse::<SocketAddr>()
            .or_else(|_| {
                bare_ip
                    .parse::<IpAddr>()
                    .map(|ip| SocketAddr::new(ip, DEFAULT_PORT))
            })
            .map(|socket| Address { carrier, socket })
            .map_err(|_| AddressError::Malformed {
                text: text.to_owned(),
                transport: transport.to_owned(),
                host: host.to_owned(),
            })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.carrier, self.socket)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_port() {
        for (text, shown) in [
            ("tcp://127.0.0.1:4420", "tcp://127.0.0.1:4420"),
            ("tcp://10.0.0.7", "tcp://10.0.0.7:4420"),
            ("tcp://0.0.0.0:0", "tcp://0.0.0.0:0"),
            ("tcp://[::1]:8009", "tcp://[::1]:8009"),
            ("tcp://[fe80::1]", "tcp://[fe80::1]:4420"),
            ("tcp://::1", "tcp://[::1]:4420"),
            ("rdma://10.0.0.7:4421", "rdma://10.0.0.7:4421"),
            ("rdma://[fd00::7]/", "rdma://[fd00::7]:4420"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn loopback_in_every_spelling() {
        for text in [
            "tcp://127.0.0.1",
            "tcp://127.9.9.9",
            "tcp://[::1]",
            "tcp://[::ffff:127.0.0.1]",
        ] {
            assert!(text.parse::<Address>().unwrap().is_loopback(), "{text}");
        }
        for text in [
            "tcp://0.0.0.0",
            "tcp://[::]",
            "tcp://10.0.0.1",
            "tcp://[::ffff:10.0.0.1]",
        ] {
            assert!(!text.parse::<Address>().unwrap().is_loopback(), "{text}");
        }
    }

    #[test]
    fn each_mistake_says_what_to_write() {
        let message = |text: &str| text.parse::<Address>().unwrap_err().to_string();
        assert_eq!(
            message("127.0.0.1:4420"),
            "\"127.0.0.1:4420\" has no transport: write tcp://ADDR:PORT or rdma://ADDR:PORT, such as tcp://127.0.0.1:4420 or tcp://[::]:4420"
        );
        assert_eq!(
            message("fc://x"),
            "\"fc://x\": transport \"fc\" is unknown; write tcp://ADDR:PORT or rdma://ADDR:PORT"
        );
        assert_eq!(
            message("tcp://storage:4420"),
            "\"tcp://storage:4420\": \"storage:4420\" is not an IP address with an optional port; write tcp://ADDR:PORT, an IPv6 address in brackets"
        );
    }
}
