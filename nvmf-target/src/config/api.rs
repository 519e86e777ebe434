//! Where the management API is, and where what it makes is kept.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use tokio_rustls::rustls::pki_types::ServerName;

/// What a path that means "off" is written as.
pub const NONE: &str = "none";

/// Said where somebody asks for it.
pub const NO_TCP: &str = "over TCP the management API is served with mutual TLS alone, by [api.tls] in the file or --rpc-tls";

/// A place that has a default and can be switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chosen {
    /// The default, or nothing where that cannot be had.
    #[default]
    Default,
    /// Switched off.
    Off,
    /// This, or the target does not start.
    At(PathBuf),
}

impl Chosen {
    /// What was written: `none`, or a path. A network address is neither.
    pub fn written(path: &Path) -> Result<Self, String> {
        if path.as_os_str() == NONE {
            Ok(Chosen::Off)
        } else if path.to_string_lossy().contains("://") {
            Err(format!(
                "{}: {NO_TCP}; write the path of a unix socket",
                path.display()
            ))
        } else {
            Ok(Chosen::At(path.to_owned()))
        }
    }
}

/// The management API's options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiOptions {
    /// The socket.
    pub socket: Chosen,
    /// The directory with what the API made.
    pub state_dir: Chosen,
    /// Beside the socket, or instead of it: TCP with mutual TLS.
    pub tls: Option<TlsOptions>,
}

/// Where the API is served over TCP, and to whom. The files are in PEM form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The target's certificate, with the intermediate ones after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that clients' certificates must be signed by.
    pub client_ca: PathBuf,
    /// Clients that may do everything; every one with a valid certificate if both lists are empty.
    pub clients: Vec<ClientName>,
    /// Clients that may only read.
    pub read_only_clients: Vec<ClientName>,
}

/// How a client is named that shows a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ClientName {
    /// By a DNS name among the certificate's subject alternative names.
    Dns(ServerName<'static>),
    /// By the SHA-256 of the certificate.
    Sha256([u8; 32]),
}

impl FromStr for ClientName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(digits) = text.strip_prefix("sha256:") {
            let digits = digits.replace(':', "");
            let mut digest = [0; 32];
            let is_hex =
                digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            if !is_hex {
                return Err(format!(
                    "{text}: a fingerprint is sha256: and 64 hexadecimal digits, as openssl x509 -noout -fingerprint -sha256 prints them"
                ));
            }
            for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks(2)) {
                let pair = std::str::from_utf8(pair).expect("hexadecimal digits are ASCII");
                *byte = u8::from_str_radix(pair, 16).expect("two hexadecimal digits");
            }
            return Ok(ClientName::Sha256(digest));
        }
        match ServerName::try_from(text.to_owned()) {
            Ok(name @ ServerName::DnsName(_)) => Ok(ClientName::Dns(name)),
            _ => Err(format!(
                "{text:?} names no client: write a DNS name that its certificate has among its subject alternative names, or sha256:FINGERPRINT"
            )),
        }
    }
}

impl TryFrom<String> for ClientName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientName::Dns(name) => f.write_str(&name.to_str()),
            ClientName::Sha256(digest) => {
                f.write_str("sha256:")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl ApiOptions {
    /// Where the socket is unless said otherwise.
    pub const DEFAULT_SOCKET: &'static str = nvmf_rpc::DEFAULT_SOCKET;
    /// Where the state is unless said otherwise.
    pub const DEFAULT_STATE_DIR: &'static str = "/var/lib/nvmf-target";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_named_by_dns_or_fingerprint() {
        let digest = "0A1B".repeat(16);
        for (written, shown) in [
            ("csi.example.org", "csi.example.org".to_owned()),
            ("controller", "controller".to_owned()),
            (
                &format!("sha256:{digest}"),
                format!("sha256:{}", digest.to_lowercase()),
            ),
            (
                &format!("sha256:{}", ["0a"; 32].join(":")),
                format!("sha256:{}", "0a".repeat(32)),
            ),
        ] {
            assert_eq!(written.parse::<ClientName>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "10.0.0.1",
            "two words",
            "CN=csi",
            "sha256:",
            "sha256:0a",
            &format!("sha256:{}g", "0".repeat(63)),
            &format!("sha256:{}", "é".repeat(32)),
            &format!("sha256:{}", "0".repeat(65)),
        ] {
            assert!(wrong.parse::<ClientName>().is_err(), "{wrong}");
        }
    }
}
