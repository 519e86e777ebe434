//! Authorities, and certificates that they sign, as files.

use std::path::{Path, PathBuf};

use nvmf_rpc::tls::ClientFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};

/// An authority, with its certificate in a file.
pub struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: PathBuf,
}

/// A certificate and its key in files.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = write(dir.path(), "ca.pem", &issuer.pem());
        Authority { dir, issuer, file }
    }

    /// A certificate of `name`, changed as `change` says.
    pub fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let dir = self.dir.path();
        Pair {
            certificate: write(dir, &format!("{name}.pem"), &certificate.pem()),
            key: write(dir, &format!("{name}.key"), &key.serialize_pem()),
        }
    }

    /// One for a server on this machine.
    pub fn server(&self) -> Pair {
        self.sign("localhost", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    /// One for a client.
    pub fn client(&self, name: &str) -> Pair {
        self.sign(name, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// One for a client that was valid until long ago.
    pub fn expired(&self, name: &str) -> Pair {
        self.sign(name, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    /// What a client with this certificate needs to talk to a server of this authority.
    pub fn trusted_by(&self, client: &Pair) -> ClientFiles {
        ClientFiles {
            ca: self.file.clone(),
            certificate: client.certificate.clone(),
            key: client.key.clone(),
        }
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
