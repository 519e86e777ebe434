//! Who may use the API over TCP: the target's certificate and the clients that are let in. Read at the start and again at each SIGHUP.

use std::sync::Arc;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use nvmf_rpc::tls::{
    TlsError, VERSIONS, authorities, certificates, private_key, provider, unusable,
};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::{
    NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
};
use tokio_rustls::rustls::{Error, ServerConfig};

use super::Rights;
use crate::config::{ClientName, TlsOptions};

/// What decides over connections by TCP.
pub struct Tls {
    /// For handshakes: a client without a valid certificate fails there.
    pub config: Arc<ServerConfig>,
    clients: Vec<ClientName>,
    read_only_clients: Vec<ClientName>,
}

impl Tls {
    /// Reads the files.
    pub fn load(options: &TlsOptions) -> Result<Tls, TlsError> {
        let own = [options.certificate.as_path(), options.key.as_path()];
        let (chain, key) = (certificates(own[0])?, private_key(own[1])?);
        let roots = Arc::new(authorities(&options.client_ca)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| unusable(&[&options.client_ca], Error::General(error.to_string())))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(|source| unusable(&own, source))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|source| unusable(&own, source))?;
        // Nothing is resumed: each connection shows a certificate that is valid then.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Tls {
            config: Arc::new(config),
            clients: options.clients.clone(),
            read_only_clients: options.read_only_clients.clone(),
        })
    }

    /// What a client with this certificate, which was verified, may do.
    pub fn rights(&self, client: &CertificateDer<'_>) -> Result<Rights, RpcError> {
        let is_one_of = |names: &[ClientName]| names.iter().any(|name| is_named(client, name));
        if self.clients.is_empty() && self.read_only_clients.is_empty() || is_one_of(&self.clients)
        {
            Ok(Rights::All)
        } else if is_one_of(&self.read_only_clients) {
            Ok(Rights::Read)
        } else {
            let message = format!(
                "the certificate {} is valid, but not of a client that may use this API; add it to clients or read-only-clients in [api.tls] and reload",
                fingerprint(client)
            );
            Err(RpcError::new(code::ACCESS, message))
        }
    }
}

/// A certificate as lists name it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> ClientName {
    ClientName::Sha256(Sha256::digest(certificate).into())
}

fn is_named(certificate: &CertificateDer<'_>, name: &ClientName) -> bool {
    match name {
        ClientName::Sha256(_) => fingerprint(certificate) == *name,
        ClientName::Dns(name) => ParsedCertificate::try_from(certificate)
            .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok()),
    }
}
