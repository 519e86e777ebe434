//! Flags of the management API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use super::super::problem::{Collector, Place};
use super::super::{Chosen, ClientName, TlsOptions};

// Given to each flag: a heading for all that follow would take in those after them.
const HEADING: &str = "Management API over TCP, with mutual TLS (files in PEM form)";

/// The management API over TCP; replaces the file's `[api.tls]`.
#[derive(Clone, Debug, Default, Args)]
pub struct RpcTls {
    /// Serve the management API here too, to clients with a certificate
    #[arg(long, help_heading = HEADING, value_name = "ADDR:PORT", requires_all = ["rpc_cert", "rpc_key", "rpc_client_ca"])]
    pub rpc_tls: Option<SocketAddr>,
    /// The target's certificate, with the intermediate ones after it
    #[arg(long, help_heading = HEADING, value_name = "FILE", requires = "rpc_tls")]
    pub rpc_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, help_heading = HEADING, value_name = "FILE", requires = "rpc_tls")]
    pub rpc_key: Option<PathBuf>,
    /// Authorities that clients' certificates must be signed by
    #[arg(long, help_heading = HEADING, value_name = "FILE", requires = "rpc_tls")]
    pub rpc_client_ca: Option<PathBuf>,
    /// Let this client do everything (repeatable): a DNS name of its certificate, or sha256:FINGERPRINT [default: every one with a certificate]
    #[arg(long, help_heading = HEADING, value_name = "NAME", requires = "rpc_tls")]
    pub rpc_client: Vec<ClientName>,
    /// Let this client read (repeatable)
    #[arg(long, help_heading = HEADING, value_name = "NAME", requires = "rpc_tls")]
    pub rpc_read_only_client: Vec<ClientName>,
}

impl RpcTls {
    /// What they say together, paths made absolute; `None` where they are not given.
    pub(super) fn options(&self, problems: &mut Collector) -> Option<TlsOptions> {
        let mut file = |flag: &str, path: &Option<PathBuf>| {
            let path = std::path::absolute(path.as_deref()?);
            problems.ok(&Place::key(flag), path)
        };
        Some(TlsOptions {
            listen: self.rpc_tls?,
            certificate: file("--rpc-cert", &self.rpc_cert)?,
            key: file("--rpc-key", &self.rpc_key)?,
            client_ca: file("--rpc-client-ca", &self.rpc_client_ca)?,
            clients: self.rpc_client.clone(),
            read_only_clients: self.rpc_read_only_client.clone(),
        })
    }
}

/// A place of the API as a flag names it, with its path made absolute.
pub(super) fn chosen(flag: &str, path: &Path, problems: &mut Collector) -> Chosen {
    let written = Chosen::written(path).and_then(|chosen| match chosen {
        Chosen::At(path) => match std::path::absolute(&path) {
            Ok(path) => Ok(Chosen::At(path)),
            Err(error) => Err(error.to_string()),
        },
        chosen => Ok(chosen),
    });
    problems.ok(&Place::key(flag), written).unwrap_or_default()
}
