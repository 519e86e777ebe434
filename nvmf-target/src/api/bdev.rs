//! Block devices that the API made: what SPDK calls bdevs. Each is an open backing with a name, which a namespace can be put on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nvmf_rpc::RpcError;
use nvmf_rpc::error::code;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::state::{BdevKind, BdevRecord};
use super::storage_code;
use crate::backend::{Backing, BackingOptions, BackingSpec};
use crate::model::IoCounters;

/// An open block device.
#[derive(Clone, Debug)]
pub struct Bdev {
    /// How it was made, and is made again.
    pub record: BdevRecord,
    /// Its UUID in this process.
    pub uuid: Uuid,
    /// Its storage.
    pub backing: Arc<Backing>,
    /// Its I/O, over all namespaces that were put on it one after the other.
    pub counters: Arc<IoCounters>,
}

/// What is asked for.
#[derive(Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: BdevKind,
    /// Where, for a file or block device.
    pub path: Option<PathBuf>,
    /// How large, for memory and null.
    pub size_bytes: Option<u64>,
    /// Its block size; `None` for what the storage asks.
    pub block_bytes: Option<u32>,
    /// Whether to refuse writes.
    pub read_only: bool,
    /// Its UUID, where one was given.
    pub uuid: Option<Uuid>,
}

impl From<BdevRecord> for Wanted {
    fn from(record: BdevRecord) -> Self {
        Wanted {
            name: record.name,
            kind: record.kind,
            path: record.path,
            size_bytes: record.size_bytes,
            block_bytes: Some(record.block_bytes),
            read_only: record.read_only,
            uuid: record.uuid,
        }
    }
}

impl Wanted {
    /// Opens the storage, waiting up to `patience` for somebody who still has it. `shards` is the number of shards of the process.
    pub async fn open(self, patience: Duration, shards: usize) -> Result<Bdev, RpcError> {
        let spec = self.spec().await?;
        let options = BackingOptions {
            read_only: self.read_only,
            block_bytes: self.block_bytes,
        };
        let opened =
            spawn_blocking(move || Backing::open_patiently(&spec, &options, patience)).await;
        let backing = match opened {
            Ok(Ok(backing)) => backing,
            Ok(Err(error)) => {
                let message = format!("the bdev {}: {error}", self.name);
                return Err(RpcError::new(storage_code(&error), message));
            }
            Err(error) => return Err(RpcError::internal(format!("opening failed: {error}"))),
        };
        // Chosen once and kept, except where the content is not kept either.
        let uuid = self.uuid.unwrap_or_else(Uuid::new_v4);
        let kept = self.uuid.is_some() || self.kind != BdevKind::Malloc;
        Ok(Bdev {
            record: BdevRecord {
                name: self.name,
                kind: self.kind,
                path: self.path,
                size_bytes: self.size_bytes,
                block_bytes: backing.block_bytes(),
                read_only: self.read_only,
                uuid: kept.then_some(uuid),
            },
            uuid,
            backing: Arc::new(backing),
            counters: IoCounters::new(shards),
        })
    }

    async fn spec(&self) -> Result<BackingSpec, RpcError> {
        let size_bytes = || {
            let missing = || RpcError::params(format!("the bdev {}: no size", self.name));
            self.size_bytes.ok_or_else(missing)
        };
        Ok(match self.kind {
            BdevKind::Malloc => BackingSpec::Memory {
                size_bytes: size_bytes()?,
            },
            BdevKind::Null => BackingSpec::Null {
                size_bytes: size_bytes()?,
            },
            BdevKind::Aio | BdevKind::Uring => {
                let missing = || RpcError::params(format!("the bdev {}: no filename", self.name));
                let path = self.path.clone().ok_or_else(missing)?;
                if is_block_device(&path).await {
                    BackingSpec::Block { path }
                } else {
                    let size_bytes = None;
                    BackingSpec::File { path, size_bytes }
                }
            }
        })
    }
}

/// What cannot be looked at is said when it is opened.
async fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let path = path.to_owned();
    let looked = spawn_blocking(move || fs::metadata(path)).await;
    matches!(looked, Ok(Ok(found)) if found.file_type().is_block_device())
}

impl Bdev {
    /// Looks how large the storage is now, after growing what is null to `size_bytes`.
    pub async fn resize(&self, size_bytes: Option<u64>) -> Result<u64, RpcError> {
        let backing = Arc::clone(&self.backing);
        match spawn_blocking(move || backing.resize(size_bytes)).await {
            Ok(Ok(size_bytes)) => Ok(size_bytes),
            Ok(Err(error)) => Err(RpcError::new(storage_code(&error), error.to_string())),
            Err(error) => Err(RpcError::internal(format!("resizing failed: {error}"))),
        }
    }
}

/// A bdev that is not there: the code is SPDK's.
pub fn no_bdev(name: &str) -> RpcError {
    RpcError::new(
        code::NO_DEVICE,
        format!("there is no bdev {name:?}; bdev_get_bdevs lists all"),
    )
}
