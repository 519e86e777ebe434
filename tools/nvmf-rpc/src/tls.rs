//! Mutual TLS over TCP: certificates and keys in PEM form, and what both sides make of them.
//!
//! TLS 1.3 alone: both ends are ours, and nothing older is needed. The cryptography is ring's on both sides, given by hand, so
//! that no default of the process decides.

use std::fmt;
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
        /// The file, or what else it is called.
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
    certificates_in(path, &read(path)?)
}

/// The private key in a file.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    private_key_in(path, &read(path)?)
}

/// The authorities in a file, to check the other side's certificate against.
pub fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    authorities_in(path, &read(path)?)
}

fn certificates_in(name: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |why: &str| TlsError::Content {
        path: name.to_owned(),
        why: why.to_owned(),
        wanted: "one or more certificates",
    };
    let found = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if found.is_empty() => Err(content("it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(content(why_no_pem(&error))),
    }
}

fn private_key_in(name: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| TlsError::Content {
        path: name.to_owned(),
        why: match error {
            pem::Error::NoItemsFound => "it holds no private key",
            error => why_no_pem(&error),
        }
        .to_owned(),
        wanted: "a private key without a passphrase",
    })
}

fn authorities_in(name: &Path, text: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates_in(name, text)? {
        roots
            .add(certificate)
            .map_err(|source| unusable(&[name], source))?;
    }
    Ok(roots)
}

/// What is wrong with a text, without any of it: the error itself quotes lines, and they may be those of a key.
fn why_no_pem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section does not begin as it should",
        pem::Error::Base64Decode(_) => "what is in it is no base64",
        _ => "it cannot be read as PEM",
    }
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
        client_config(own, chain, key, authorities(&self.ca)?)
    }
}

/// The same as texts in PEM form, as a secret of an orchestrator has them. `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientTexts {
    /// The authorities that the target's certificate may be signed by.
    pub ca: String,
    /// The client's certificate, with the intermediate ones after it.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// What the three are called in errors, in this order.
    pub names: [&'static str; 3],
}

impl fmt::Debug for ClientTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTexts").finish_non_exhaustive()
    }
}

impl ClientTexts {
    /// Reads the texts.
    pub fn config(&self) -> Result<ClientConfig, TlsError> {
        let [ca, certificate, key] = self.names.map(Path::new);
        let chain = certificates_in(certificate, self.certificate.as_bytes())?;
        let private = private_key_in(key, self.key.as_bytes())?;
        let roots = authorities_in(ca, self.ca.as_bytes())?;
        client_config([certificate, key], chain, private, roots)
    }
}

fn client_config(
    own: [&Path; 2],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
) -> Result<ClientConfig, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|source| unusable(&own, source))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|source| unusable(&own, source))
}

/// Who a client is, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Files.
    Files(ClientFiles),
    /// Texts.
    Texts(Box<ClientTexts>),
}

impl Credentials {
    /// What a connection is made with.
    pub fn config(&self) -> Result<ClientConfig, TlsError> {
        match self {
            Credentials::Files(files) => files.config(),
            Credentials::Texts(texts) => texts.config(),
        }
    }
}
