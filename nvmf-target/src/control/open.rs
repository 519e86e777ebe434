//! From a configuration to what can be served: backings opened, identifiers given or derived.

use std::sync::Arc;
use std::time::Duration;

use nvme_proto::wire::Nsid;
use uuid::Uuid;

use crate::backend::{Backing, BackingError, BackingOptions, BackingSpec};
use crate::config::identity::Identity;
use crate::config::{NamespaceConfig, rules};
use crate::model::{Geometry, IoCounters, Namespace, NamespaceIds, Nqn};

/// Why a namespace cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("namespace {nsid} of {nqn}: {error}")]
pub struct OpenError {
    /// The subsystem.
    pub nqn: Nqn,
    /// The namespace.
    pub nsid: u32,
    /// What is wrong.
    pub error: BackingError,
}

/// Opens namespaces.
#[derive(Clone, Debug)]
pub struct Opener {
    /// Where derived identifiers come from.
    pub identity: Identity,
    /// The number of shards, each of which counts for itself.
    pub shards: usize,
}

impl Opener {
    /// Opens the storage of a namespace of the subsystem `nqn`, unless it is `open` already, waiting up to
    /// `patience` for storage that somebody else still has.
    pub fn open(
        &self,
        nqn: &Nqn,
        config: &NamespaceConfig,
        open: Option<Arc<Backing>>,
        patience: Duration,
    ) -> Result<Namespace, OpenError> {
        let failed = |error| OpenError {
            nqn: nqn.clone(),
            nsid: config.nsid,
            error,
        };
        let options = BackingOptions {
            read_only: config.read_only,
            block_bytes: config.block_bytes,
        };
        let backing = match open {
            Some(backing) => backing,
            None => {
                let opened = Backing::open_patiently(&config.storage, &options, patience);
                Arc::new(opened.map_err(failed)?)
            }
        };
        let geometry = Geometry::new(backing.block_bytes(), backing.size_bytes())
            .ok_or_else(|| failed(BackingError::BlockSize(backing.block_bytes())))?;
        Ok(Namespace {
            nsid: Nsid(config.nsid),
            ids: self.ids(nqn, config),
            geometry,
            read_only: config.read_only,
            backing,
            counters: IoCounters::new(self.shards),
        })
    }

    /// The same namespace at the size that its storage has now, or `None` where that did not change.
    pub fn resized(
        &self,
        nqn: &Nqn,
        namespace: &Namespace,
        config: &NamespaceConfig,
    ) -> Result<Option<Namespace>, OpenError> {
        let failed = |error| OpenError {
            nqn: nqn.clone(),
            nsid: config.nsid,
            error,
        };
        let wanted = match config.storage {
            BackingSpec::File { size_bytes, .. } => size_bytes,
            _ => None,
        };
        namespace.backing.resize(wanted).map_err(failed)?;
        let resized = self.remeasured(nqn, namespace)?;
        Ok((resized.geometry != namespace.geometry).then_some(resized))
    }

    /// The same namespace at the size that its storage had when it was looked at last.
    pub fn remeasured(&self, nqn: &Nqn, namespace: &Namespace) -> Result<Namespace, OpenError> {
        let failed = |error| OpenError {
            nqn: nqn.clone(),
            nsid: namespace.nsid.0,
            error,
        };
        let backing = &namespace.backing;
        let size_bytes = backing.size_bytes();
        let block_bytes = namespace.geometry.block_bytes();
        if size_bytes < u64::from(block_bytes) {
            return Err(failed(BackingError::TooSmall {
                what: backing.spec().to_string(),
                size_bytes,
                block_bytes,
            }));
        }
        let geometry = Geometry::new(block_bytes, size_bytes)
            .ok_or_else(|| failed(BackingError::BlockSize(block_bytes)))?;
        Ok(Namespace {
            geometry,
            ..namespace.clone()
        })
    }

    fn ids(&self, nqn: &Nqn, config: &NamespaceConfig) -> NamespaceIds {
        let nqn = nqn.as_str();
        let uuid = config
            .uuid
            .unwrap_or_else(|| match rules::path_of(&config.storage) {
                Some(path) => self.identity.namespace_uuid(nqn, path),
                None if matches!(config.storage, BackingSpec::Memory { .. }) => Uuid::new_v4(),
                None => self.identity.pathless_uuid(nqn, config.nsid),
            });
        NamespaceIds {
            uuid,
            nguid: config.nguid.unwrap_or(*uuid.as_bytes()),
            eui64: config.eui64.unwrap_or([0; 8]),
        }
    }
}

/// Whether `backing`, which is open, is what `config` would open. Only storage with a path can be the same.
pub fn serves(backing: &Backing, config: &NamespaceConfig) -> bool {
    let same_path = rules::path_of(&config.storage)
        .is_some_and(|path| rules::path_of(backing.spec()) == Some(path));
    same_path
        && rules::kind_of(backing.spec()) == rules::kind_of(&config.storage)
        && backing.read_only() == config.read_only
        && config
            .block_bytes
            .is_none_or(|bytes| bytes == backing.block_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opener() -> Opener {
        Opener {
            identity: Identity::from_seed(b"test machine"),
            shards: 1,
        }
    }

    fn nqn() -> Nqn {
        "nqn.2025-01.org.example:a".parse().unwrap()
    }

    fn config(nsid: u32, storage: BackingSpec) -> NamespaceConfig {
        NamespaceConfig {
            nsid,
            storage,
            block_bytes: Some(512),
            read_only: false,
            uuid: None,
            nguid: None,
            eui64: None,
        }
    }

    #[test]
    fn identifiers_outlive_the_process_unless_the_content_does_not() {
        let (opener, nqn) = (opener(), nqn());
        let null = config(
            1,
            BackingSpec::Null {
                size_bytes: 1 << 20,
            },
        );
        assert_eq!(opener.ids(&nqn, &null), opener.ids(&nqn, &null));
        let memory = config(
            1,
            BackingSpec::Memory {
                size_bytes: 1 << 20,
            },
        );
        assert_ne!(opener.ids(&nqn, &memory), opener.ids(&nqn, &memory));
        let file = BackingSpec::File {
            path: "/srv/a".into(),
            size_bytes: None,
        };
        let (first, moved) = (config(1, file.clone()), config(9, file));
        let ids = opener.ids(&nqn, &first);
        assert_eq!(
            ids,
            opener.ids(&nqn, &moved),
            "the NSID is no part of a file's identity"
        );
        assert_eq!((ids.nguid, ids.eui64), (*ids.uuid.as_bytes(), [0; 8]));
        let given = NamespaceConfig {
            uuid: Some(Uuid::from_u128(5)),
            nguid: Some([7; 16]),
            eui64: Some([8; 8]),
            ..memory
        };
        let given = opener.ids(&nqn, &given);
        assert_eq!(
            (given.uuid, given.nguid, given.eui64),
            (Uuid::from_u128(5), [7; 16], [8; 8])
        );
    }

    #[test]
    fn a_file_that_grew_is_noticed_and_the_rest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let (opener, nqn) = (opener(), nqn());
        let mut config = config(
            1,
            BackingSpec::File {
                path: path.clone(),
                size_bytes: None,
            },
        );
        let namespace = opener.open(&nqn, &config, None, Duration::ZERO).unwrap();
        assert_eq!(namespace.geometry.size_bytes(), 8192);
        assert!(opener.resized(&nqn, &namespace, &config).unwrap().is_none());
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(16384).unwrap();
        let grown = opener.resized(&nqn, &namespace, &config).unwrap().unwrap();
        assert_eq!(grown.geometry.size_bytes(), 16384);
        assert!(Arc::ptr_eq(&grown.backing, &namespace.backing));
        assert_eq!(grown.ids, namespace.ids);
        config.storage = BackingSpec::File {
            path: path.clone(),
            size_bytes: Some(1 << 20),
        };
        let grown = opener.resized(&nqn, &grown, &config).unwrap().unwrap();
        assert_eq!(grown.geometry.size_bytes(), 1 << 20);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        file.set_len(100).unwrap();
        config.storage = BackingSpec::File {
            path,
            size_bytes: None,
        };
        let error = opener
            .resized(&nqn, &grown, &config)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("namespace 1 of nqn.2025-01.org.example:a: "),
            "{error}"
        );
    }

    #[test]
    fn a_missing_file_is_named_with_its_namespace() {
        let missing = config(
            3,
            BackingSpec::File {
                path: "/nonexistent".into(),
                size_bytes: None,
            },
        );
        assert_eq!(
            opener()
                .open(&nqn(), &missing, None, Duration::ZERO)
                .unwrap_err()
                .to_string(),
            "namespace 3 of nqn.2025-01.org.example:a: /nonexistent: no such file; make it (truncate -s SIZE /nonexistent), or give a size where the configuration names it (--file PATH:SIZE, or size) to have it made"
        );
    }
}
