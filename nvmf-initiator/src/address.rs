//! Where a subsystem is: transport, address, service, NQN, and the URL that carries them.
//!
//! A URL is `nvme+tcp://HOST:PORT/NQN?nsid=1`, or `nvme+rdma://…`; HOST is a name, an IPv4 address or an IPv6 address in
//! brackets, PORT defaults to 4420 and the NQN may be percent-encoded. What the query may say is the
//! business of [`crate::options`].

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port that IANA gives to NVMe over Fabrics over RDMA and, by habit, to NVMe/TCP as a whole.
pub const DEFAULT_IO_PORT: u16 = 4420;
/// The port that IANA gives to NVMe/TCP discovery (`nvme-disc`).
pub const DEFAULT_DISCOVERY_PORT: u16 = 8009;
/// The NQN that every discovery service answers to.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// An NQN is at most this long, without its terminating NUL.
pub const MAX_NQN_BYTES: usize = 223;

/// The fabric under a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
}

impl Transport {
    /// As the standard writes it.
    pub fn standard_name(self) -> &'static str {
        match self {
            Transport::Tcp => "NVMe/TCP",
            Transport::Rdma => "NVMe/RDMA",
        }
    }

    /// Where subsystems are unless something else is said.
    pub fn io_port(self) -> u16 {
        DEFAULT_IO_PORT
    }

    /// Where discovery services are unless something else is said. Over RDMA they have no port of their own.
    pub fn discovery_port(self) -> u16 {
        match self {
            Transport::Tcp => DEFAULT_DISCOVERY_PORT,
            Transport::Rdma => DEFAULT_IO_PORT,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Tcp => f.write_str("tcp"),
            Transport::Rdma => f.write_str("rdma"),
        }
    }
}

impl FromStr for Transport {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Transport::Tcp),
            "rdma" => Ok(Transport::Rdma),
            "fc" | "loop" | "pcie" => Err(AddressError::NotFabrics(text.to_owned())),
            other => Err(AddressError::UnknownTransport(other.to_owned())),
        }
    }
}

/// What is wrong with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// A transport that a userspace initiator cannot drive.
    #[error("transport '{0}' belongs to the kernel's host; this initiator speaks tcp and rdma")]
    NotFabrics(String),
    /// A transport that nobody has.
    #[error("unknown transport '{0}'; this initiator speaks tcp and rdma")]
    UnknownTransport(String),
    /// Not one of our URLs.
    #[error(
        "'{0}' is not an address of the form nvme+tcp://HOST:PORT/NQN or nvme+rdma://HOST:PORT/NQN"
    )]
    NotAUrl(String),
    /// The service is not a port number.
    #[error("port '{0}' is not a number between 1 and 65535 (--trsvcid)")]
    Port(String),
    /// No NQN was given where one is needed.
    #[error("no subsystem NQN: give --nqn, or put it after the port as nvme+tcp://HOST:PORT/NQN")]
    NoNqn,
    /// An NQN that no controller could answer to.
    #[error("NQN '{nqn}' {why}")]
    Nqn {
        /// The text as given.
        nqn: String,
        /// What the rule is.
        why: &'static str,
    },
    /// The host part is missing.
    #[error("no address: give --traddr")]
    NoHost,
    /// A percent sign that no two hexadecimal digits follow.
    #[error("'{0}' has a '%' that is not followed by two hexadecimal digits of UTF-8 text")]
    Percent(String),
}

/// Checks what the standard asks of an NQN that a host sends: not empty, bounded, no NUL inside.
/// Nothing more: subsystems exist whose names do not follow the `nqn.` form, and peers compare bytes.
pub fn check_nqn(nqn: &str) -> Result<(), AddressError> {
    let why = if nqn.is_empty() {
        "is empty"
    } else if nqn.len() > MAX_NQN_BYTES {
        "is longer than 223 bytes"
    } else if nqn.bytes().any(|b| b == 0) {
        "contains a NUL byte"
    } else {
        return Ok(());
    };
    Err(AddressError::Nqn {
        nqn: nqn.to_owned(),
        why,
    })
}

/// One way to a controller's port: what `-t -a -s -w -f` say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Address {
    /// The fabric.
    pub transport: Transport,
    /// Name or IP address of the target's port (TRADDR).
    pub traddr: String,
    /// Port number (TRSVCID).
    pub trsvcid: u16,
    /// Source address to bind to, where the user gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_traddr: Option<IpAddr>,
    /// Network interface to send through, where the user gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_iface: Option<String>,
}

impl Address {
    /// A TCP address without source binding.
    pub fn tcp(traddr: impl Into<String>, trsvcid: u16) -> Self {
        Address {
            transport: Transport::Tcp,
            traddr: traddr.into(),
            trsvcid,
            host_traddr: None,
            host_iface: None,
        }
    }

    /// An RDMA address without source binding.
    pub fn rdma(traddr: impl Into<String>, trsvcid: u16) -> Self {
        Address {
            transport: Transport::Rdma,
            ..Address::tcp(traddr, trsvcid)
        }
    }

    /// Resolves the name. Blocks on the resolver, so it belongs on a thread that may wait. Where the
    /// source address is fixed, only destinations of its family are returned.
    pub fn resolve(&self) -> std::io::Result<Vec<SocketAddr>> {
        let all = (self.traddr.as_str(), self.trsvcid).to_socket_addrs()?;
        let usable: Vec<_> = all
            .filter(|to| {
                self.host_traddr
                    .is_none_or(|from| from.is_ipv4() == to.is_ipv4())
            })
            .collect();
        if usable.is_empty() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrNotAvailable,
                match self.host_traddr {
                    Some(from) => format!(
                        "'{}' has no address of the family of --host-traddr {from}",
                        self.traddr
                    ),
                    None => format!("'{}' has no address", self.traddr),
                },
            ));
        }
        Ok(usable)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.traddr.contains(':') {
            write!(f, "{}://[{}]:{}", self.transport, self.traddr, self.trsvcid)
        } else {
            write!(f, "{}://{}:{}", self.transport, self.traddr, self.trsvcid)
        }
    }
}

/// A parsed URL: the address, the NQN if it has one, and the query as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeUrl {
    /// Where to connect.
    pub address: Address,
    /// The subsystem, where the path names one.
    pub nqn: Option<String>,
    /// `key=value` pairs in order, percent-decoded.
    pub query: Vec<(String, String)>,
}

impl FromStr for NvmeUrl {
    type Err = AddressError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let bad = || AddressError::NotAUrl(url.to_owned());
        let rest = url.strip_prefix("nvme+").ok_or_else(bad)?;
        let (transport, rest) = rest.split_once("://").ok_or_else(bad)?;
        let transport = transport.parse()?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_authority(authority).ok_or_else(bad)?;
        if host.is_empty() {
            return Err(AddressError::NoHost);
        }
        let trsvcid = port.map_or(Ok(DEFAULT_IO_PORT), parse_port)?;
        let nqn = percent_decode(path)?;
        if !nqn.is_empty() {
            check_nqn(&nqn)?;
        }
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((percent_decode(key)?, percent_decode(value)?))
            })
            .collect::<Result<_, AddressError>>()?;
        Ok(NvmeUrl {
            address: Address {
                transport,
                ..Address::tcp(host, trsvcid)
            },
            nqn: (!nqn.is_empty()).then_some(nqn),
            query,
        })
    }
}

/// Parses a service id as a port number.
pub fn parse_port(text: &str) -> Result<u16, AddressError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(AddressError::Port(text.to_owned())),
        Ok(port) => Ok(port),
    }
}

/// Splits `host:port`, `[v6]:port`, `host` or `[v6]`.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if after.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match authority.split_once(':') {
        // A second colon means an IPv6 address without brackets, whose port nobody can tell.
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
        None => Some((authority, None)),
    }
}

fn percent_decode(text: &str) -> Result<String, AddressError> {
    let bad = || AddressError::Percent(text.to_owned());
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|b| (b as char).to_digit(16))
                .ok_or_else(bad)
        };
        let (high, low) = (digit()?, digit()?);
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_with_everything() {
        let url: NvmeUrl =
            "nvme+tcp://store.example:4421/nqn.2026-01.io.example:a?nsid=3&hdr_digest"
                .parse()
                .unwrap();
        assert_eq!(url.address, Address::tcp("store.example", 4421));
        assert_eq!(url.nqn.as_deref(), Some("nqn.2026-01.io.example:a"));
        assert_eq!(
            url.query,
            [
                ("nsid".into(), "3".into()),
                ("hdr_digest".into(), String::new())
            ]
        );
    }

    #[test]
    fn url_defaults_and_ipv6() {
        let url: NvmeUrl = "nvme+tcp://[fe80::1]".parse().unwrap();
        assert_eq!(
            (url.address.traddr.as_str(), url.address.trsvcid),
            ("fe80::1", DEFAULT_IO_PORT)
        );
        assert_eq!(url.nqn, None);
        assert_eq!(url.address.to_string(), "tcp://[fe80::1]:4420");
        let url: NvmeUrl = "nvme+tcp://10.0.0.1:1/a%20b".parse().unwrap();
        assert_eq!(url.nqn.as_deref(), Some("a b"));
    }

    #[test]
    fn url_over_rdma() {
        let url: NvmeUrl = "nvme+rdma://10.0.0.1/n".parse().unwrap();
        assert_eq!(url.address, Address::rdma("10.0.0.1", DEFAULT_IO_PORT));
        assert_eq!(url.address.to_string(), "rdma://10.0.0.1:4420");
        let url: NvmeUrl = "nvme+rdma://[fd00::7]:4421/n".parse().unwrap();
        assert_eq!(url.address, Address::rdma("fd00::7", 4421));
    }

    #[test]
    fn url_refusals() {
        let parse = |text: &str| text.parse::<NvmeUrl>().unwrap_err();
        assert!(matches!(parse("http://a/"), AddressError::NotAUrl(_)));
        assert!(matches!(
            parse("nvme+tcp://fe80::1:4420/x"),
            AddressError::NotAUrl(_)
        ));
        assert!(matches!(
            parse("nvme+fc://a/x"),
            AddressError::NotFabrics(_)
        ));
        assert!(matches!(parse("nvme+tcp://a:0/x"), AddressError::Port(_)));
        assert!(matches!(
            parse("nvme+tcp://a:65536/x"),
            AddressError::Port(_)
        ));
        assert!(matches!(parse("nvme+tcp:///x"), AddressError::NoHost));
        assert!(matches!(parse("nvme+tcp://a/%2"), AddressError::Percent(_)));
        assert!(matches!(
            parse("nvme+tcp://a/%00"),
            AddressError::Nqn { .. }
        ));
        assert!(matches!(
            parse(&format!("nvme+tcp://a/{}", "n".repeat(224))),
            AddressError::Nqn { .. }
        ));
    }

    #[test]
    fn source_address_limits_the_family() {
        let mut address = Address::tcp("127.0.0.1", 4420);
        address.host_traddr = Some("::1".parse().unwrap());
        assert_eq!(
            address.resolve().unwrap_err().kind(),
            std::io::ErrorKind::AddrNotAvailable
        );
        address.host_traddr = Some("127.0.0.2".parse().unwrap());
        assert_eq!(
            address.resolve().unwrap(),
            ["127.0.0.1:4420".parse().unwrap()]
        );
    }
}
