//! `[api]` and `[api.tls]`: the management API.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;

use super::super::problem::{Collector, Place};
use super::super::rules::check_absolute;
use super::super::{ApiOptions, Chosen, ClientName, TlsOptions};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawApi {
    socket: Option<Spanned<PathBuf>>,
    state_dir: Option<Spanned<PathBuf>>,
    tls: Option<RawTls>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawTls {
    listen: SocketAddr,
    certificate: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    client_ca: Spanned<PathBuf>,
    #[serde(default)]
    clients: Vec<ClientName>,
    #[serde(default)]
    read_only_clients: Vec<ClientName>,
}

impl RawApi {
    pub(super) fn check(self, problems: &mut Collector) -> ApiOptions {
        ApiOptions {
            socket: place("socket", self.socket, problems),
            state_dir: place("state-dir", self.state_dir, problems),
            tls: self.tls.map(|tls| tls.check(problems)),
        }
    }
}

impl RawTls {
    fn check(self, problems: &mut Collector) -> TlsOptions {
        let mut file = |key: &str, path: Spanned<PathBuf>| {
            let place = Place::at(key, path.span());
            absolute(path.into_inner(), "", &place, problems)
        };
        TlsOptions {
            listen: self.listen,
            certificate: file("certificate", self.certificate),
            key: file("key", self.key),
            client_ca: file("client-ca", self.client_ca),
            clients: self.clients,
            read_only_clients: self.read_only_clients,
        }
    }
}

fn place(key: &str, path: Option<Spanned<PathBuf>>, problems: &mut Collector) -> Chosen {
    let Some(path) = path else {
        return Chosen::Default;
    };
    let place = Place::at(key, path.span());
    let written = Chosen::written(path.get_ref());
    match problems.ok(&place, written).unwrap_or_default() {
        Chosen::At(path) => Chosen::At(absolute(path, ", or \"none\"", &place, problems)),
        other => other,
    }
}

fn absolute(path: PathBuf, or: &str, place: &Place, problems: &mut Collector) -> PathBuf {
    let checked = check_absolute(&path).map_err(|error| format!("{error}{or}"));
    problems.ok(place, checked);
    path
}
