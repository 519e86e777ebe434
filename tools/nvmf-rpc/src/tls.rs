//! Mutual TLS over TCP: files in PEM form, and what both sides make of them.
//!
//! TLS 1.3 alone: both ends are ours, and nothing older is needed. The cryptography is ring's on both sides, given by hand, so
//! that no default of the process decides.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// The versions that both sides speak.
pub const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// Why a certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no PEM, or has not what it should have.
    #[error("{path}: {why}; it must hold {wanted} in PEM form", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What belongs there.
        wanted: &'static str,
    },
    /// The files do not go together, or TLS cannot use them.
    #[error("{paths}: not usable for TLS: {source}")]
    Unusable {
        /// The files.
        paths: String,
        /// What rustls said.
        source: rustls::Error,
    },
}

/// The cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates in a file, in their order; at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wanted = "one or more certificates";
    let content = |why: String| TlsError::Content {
        path: path.to_owned(),
        why,
        wanted,
    };
    let found = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| content(error.to_string()))?;
    match found.is_empty() {
        false => Ok(found),
        true => Err(content("it holds no certificate".to_owned())),
    }
}

/// The private key in a file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        why: match error {
            pem::Error::NoItemsFound => "it holds no private key".to_owned(),
            error => error.to_string(),
        },
        wanted: "a private key without a passphrase",
    })
}

/// The authorities in a file, to check the other side's certificate against.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| unusable(&[path], source))?;
    }
    Ok(roots)
}

/// What TLS has against these files.
pub fn unusable(paths: &[&Path], source: rustls::Error) -> TlsError {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    TlsError::Unusable {
        paths: paths.join(", "),
        source,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

/// What a client needs to be let in. The files are read for each connection, so that renewed ones need no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities that the target's certificate may be signed by.
    pub ca: PathBuf,
    /// The client's certificate, with the intermediate ones after it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl ClientFiles {
    /// Reads the files.
    pub fn config(&self) -> Result<ClientConfig, TlsError> {
        let own = [self.certificate.as_path(), self.key.as_path()];
        let (chain, key) = (certificates(own[0])?, private_key(own[1])?);
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(|source| unusable(&own, source))?
            .with_root_certificates(authorities(&self.ca)?)
            .with_client_auth_cert(chain, key)
            .map_err(|source| unusable(&own, source))
    }
}
