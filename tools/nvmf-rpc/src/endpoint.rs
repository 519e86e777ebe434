//! Where a target's management API is, as a user writes it: the path of its socket, or `tls://HOST:PORT`.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use tokio_rustls::rustls::pki_types::ServerName;

use super::tls::{ClientFiles, ClientTexts, Credentials, TlsError};

/// What an address over TCP begins with.
const SCHEME: &str = "tls://";

/// Why this is no place to reach a target at.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Another scheme.
    #[error(
        "{0}: the management API is reached at the path of a unix socket, or at tls://HOST:PORT"
    )]
    Scheme(String),
    /// Not `HOST:PORT`.
    #[error(
        "{0}: write tls://HOST:PORT, with a host as the target's certificate names it; an IPv6 address in brackets"
    )]
    Address(String),
    /// A file is missing.
    #[error(
        "{0}: over TLS a client shows who it is: give --tls-ca, --tls-cert and --tls-key (or {ENV_CA}, {ENV_CERT} and {ENV_KEY})"
    )]
    Files(String),
    /// A socket, to which nobody shows a certificate.
    #[error(
        "{0}: whoever comes by the socket is known by its permissions, and a certificate is of no use there; reach the target at tls://HOST:PORT"
    )]
    NoTls(String),
    /// A file or text that cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

const ENV_CA: &str = "NVMF_RPC_TLS_CA";
const ENV_CERT: &str = "NVMF_RPC_TLS_CERT";
const ENV_KEY: &str = "NVMF_RPC_TLS_KEY";
// Given to each argument: a heading for all that follow would take in those of the program too.
const HEADING: &str = "Management API over TLS (tls://HOST:PORT)";

/// The arguments of a program that can talk to a target over TLS.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// Authorities (PEM) that the target's certificate may be signed by
    #[arg(long, global = true, value_name = "FILE", env = ENV_CA, help_heading = HEADING)]
    pub tls_ca: Option<PathBuf>,
    /// This client's certificate (PEM), with the intermediate ones after it
    #[arg(long, global = true, value_name = "FILE", env = ENV_CERT, help_heading = HEADING)]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, global = true, value_name = "FILE", env = ENV_KEY, help_heading = HEADING)]
    pub tls_key: Option<PathBuf>,
}

/// Where a target's management API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP, with mutual TLS.
    Tls {
        /// Name or address, and port.
        address: String,
        /// Who must answer there.
        name: ServerName<'static>,
        /// Who we are.
        credentials: Credentials,
    },
}

impl Endpoint {
    /// What `text` says, with the files that TLS needs. Those are read once to see whether they can be used.
    pub fn written(text: &str, tls: &TlsArgs) -> Result<Self, EndpointError> {
        let Some(address) = text.strip_prefix(SCHEME) else {
            return match text.contains("://") {
                true => Err(EndpointError::Scheme(text.to_owned())),
                false => Ok(Endpoint::Unix(text.into())),
            };
        };
        let wrong = || EndpointError::Address(text.to_owned());
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        if !port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Err(wrong());
        }
        let host = match host.strip_prefix('[') {
            Some(host) => host.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        let (Some(ca), Some(certificate), Some(key)) = (&tls.tls_ca, &tls.tls_cert, &tls.tls_key)
        else {
            return Err(EndpointError::Files(text.to_owned()));
        };
        let files = ClientFiles {
            ca: ca.clone(),
            certificate: certificate.clone(),
            key: key.clone(),
        };
        files.config()?;
        Ok(Endpoint::Tls {
            address: address.to_owned(),
            name,
            credentials: Credentials::Files(files),
        })
    }

    /// The same place, reached as somebody else. The texts are looked at at once.
    pub fn with_credentials(&self, texts: ClientTexts) -> Result<Self, EndpointError> {
        let Endpoint::Tls { address, name, .. } = self else {
            return Err(EndpointError::NoTls(self.to_string()));
        };
        texts.config()?;
        Ok(Endpoint::Tls {
            address: address.clone(),
            name: name.clone(),
            credentials: Credentials::Texts(Box::new(texts)),
        })
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Endpoint::Unix(path)
    }
}

impl From<&Path> for Endpoint {
    fn from(path: &Path) -> Self {
        Endpoint::Unix(path.to_owned())
    }
}

impl From<&PathBuf> for Endpoint {
    fn from(path: &PathBuf) -> Self {
        Endpoint::Unix(path.clone())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => path.display().fmt(f),
            Endpoint::Tls { address, .. } => write!(f, "{SCHEME}{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_a_path_or_an_address() {
        let none = TlsArgs::default();
        let path = Endpoint::written("/run/a.sock", &none).unwrap();
        assert_eq!(path, Endpoint::Unix("/run/a.sock".into()));
        for text in ["tcp://127.0.0.1:1", "http://x"] {
            let error = Endpoint::written(text, &none).unwrap_err();
            assert!(matches!(error, EndpointError::Scheme(_)), "{error}");
        }
        for text in [
            "tls://",
            "tls://host",
            "tls://host:",
            "tls://host:0",
            "tls://host:65536",
            "tls://host:1/x",
            "tls://::1:5",
            "tls://[::1:5",
            "tls://a b:5",
            "tls://:5",
        ] {
            let error = Endpoint::written(text, &none).unwrap_err();
            assert!(
                matches!(error, EndpointError::Address(_)),
                "{text}: {error}"
            );
        }
        for text in [
            "tls://storage.example:5",
            "tls://[::1]:5",
            "tls://10.0.0.1:5",
        ] {
            let error = Endpoint::written(text, &none).unwrap_err();
            assert!(matches!(error, EndpointError::Files(_)), "{text}: {error}");
        }
    }

    #[test]
    fn files_are_looked_at_before_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let made = |name: &str| {
            let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            let certificate = file(&format!("{name}.pem"), &pair.cert.pem());
            let key = file(&format!("{name}.key"), &pair.signing_key.serialize_pem());
            (certificate, key)
        };
        let ((certificate, key), (other, _)) = (made("a"), made("b"));
        let (empty, missing) = (file("empty", ""), dir.path().join("missing"));
        let written = |ca: &Path, certificate: &Path, key: &Path| {
            let args = TlsArgs {
                tls_ca: Some(ca.to_owned()),
                tls_cert: Some(certificate.to_owned()),
                tls_key: Some(key.to_owned()),
            };
            Endpoint::written("tls://localhost:5", &args)
        };
        let good = written(&other, &certificate, &key).unwrap();
        assert_eq!(good.to_string(), "tls://localhost:5");
        for (ca, certificate, key, expected) in [
            (&missing, &certificate, &key, "missing: cannot be read"),
            (&empty, &certificate, &key, "empty: it holds no certificate"),
            (&other, &key, &key, "a.key: it holds no certificate"),
            (
                &other,
                &certificate,
                &certificate,
                "a.pem: it holds no private key",
            ),
            (&other, &other, &key, "b.pem, "),
        ] {
            let error = written(ca, certificate, key).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn texts_take_the_place_of_files_and_are_not_shown() {
        let made = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let (own, other) = (made(), made());
        let texts = |certificate: &str, key: &str| ClientTexts {
            ca: other.cert.pem(),
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            names: ["ca.crt", "tls.crt", "tls.key"],
        };
        let key = own.signing_key.serialize_pem();
        let by_socket = Endpoint::Unix("/run/a.sock".into());
        let refused = by_socket.with_credentials(texts(&own.cert.pem(), &key));
        assert!(
            matches!(refused, Err(EndpointError::NoTls(_))),
            "{refused:?}"
        );
        let files = ClientFiles {
            ca: "a".into(),
            certificate: "b".into(),
            key: "c".into(),
        };
        let there = Endpoint::Tls {
            address: "localhost:5".to_owned(),
            name: ServerName::try_from("localhost").unwrap(),
            credentials: Credentials::Files(files),
        };
        let good = there
            .with_credentials(texts(&own.cert.pem(), &key))
            .unwrap();
        assert_eq!(good.to_string(), there.to_string());
        let line = key.lines().nth(1).unwrap();
        assert!(!format!("{good:?}").contains(line), "{good:?}");
        let one_line = key.replace('\n', "");
        for (certificate, key, expected) in [
            ("", key.as_str(), "tls.crt: it holds no certificate"),
            (&own.cert.pem(), "", "tls.key: it holds no private key"),
            (&own.cert.pem(), &one_line, "tls.key: "),
            (&own.cert.pem(), &key[..60], "tls.key: a section has no end"),
            (&other.cert.pem(), &key, "tls.crt, tls.key: not usable"),
        ] {
            let error = there
                .with_credentials(texts(certificate, key))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{expected}: {error}");
            assert!(!error.contains(&line[..20]), "{error}");
        }
    }
}
