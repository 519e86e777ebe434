//! The target's management API, as far as it is needed here.

use std::sync::Arc;
use std::time::Duration;

use nvmf_rpc::error::code;
use nvmf_rpc::tls::ClientTexts;
use nvmf_rpc::types::{GetPools, GetSnapshots, GetVolumes, Method, Pool, Snapshot, Volume};
use nvmf_rpc::{Client, ClientError, Endpoint};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::Result;
use crate::names::Id;
use crate::status::of_target;

/// How long one call may take. To fence a host takes as long as its last write.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// Calls at one time; others wait for their turn. Each has a connection of its own, and the target takes a bounded number of them
/// (and of TLS handshakes, which is less) from all of its clients together.
const MAX_CALLS: usize = 24;

/// Label of what this driver made: the name that the orchestrator gave.
pub const LABEL_NAME: &str = "nvmf-csi.name";
/// Label of a volume: its file system; absent for raw devices.
pub const LABEL_FS: &str = "nvmf-csi.fs";
/// Label of a volume: words for mkfs.
pub const LABEL_MKFS_OPTIONS: &str = "nvmf-csi.mkfs-options";
/// Label of a snapshot: the group that it was taken with.
pub const LABEL_GROUP: &str = "nvmf-csi.group";

/// The target.
#[derive(Debug, Clone)]
pub struct Target {
    client: Client,
    turns: Arc<Semaphore>,
}

impl Target {
    /// The target whose management API is there.
    pub fn new(endpoint: Endpoint) -> Target {
        Target {
            client: Client::new(endpoint).with_timeout(CALL_LIMIT),
            turns: Arc::new(Semaphore::new(MAX_CALLS)),
        }
    }

    /// The same target, asked as whoever has this certificate.
    pub fn as_holder(&self, certificate: ClientTexts) -> Result<Target> {
        let endpoint = self.client.endpoint().with_credentials(certificate);
        let endpoint =
            endpoint.map_err(|error| Status::invalid_argument(format!("secrets: {error}")))?;
        Ok(Target {
            client: Client::new(endpoint).with_timeout(CALL_LIMIT),
            turns: Arc::clone(&self.turns),
        })
    }

    /// Calls a method; the error is as the target said it.
    pub async fn call<M: Method>(&self, params: &M) -> std::result::Result<M::Result, ClientError> {
        // Never closed, so there is no error.
        let _turn = self.turns.acquire().await.ok();
        self.client.request(params).await
    }

    /// All pools.
    pub async fn pools(&self) -> std::result::Result<Vec<Pool>, ClientError> {
        self.call(&GetPools::default()).await
    }

    /// The pool to use where nobody names one: the only one.
    pub async fn only_pool(&self) -> Result<String> {
        let pools = self.pools().await.map_err(|error| of_target(&error))?;
        match pools.as_slice() {
            [pool] => Ok(pool.name.clone()),
            [] => Err(Status::failed_precondition(
                "the target has no pool: add [pool.NAME] to its configuration",
            )),
            _ => Err(Status::invalid_argument(
                "the target has several pools: name one in the StorageClass (pool), or start the controller with --pool",
            )),
        }
    }

    /// A volume; `None` where there is none.
    pub async fn volume(&self, id: &Id) -> Result<Option<Volume>> {
        let params = GetVolumes {
            pool: Some(id.pool.clone()),
            name: Some(id.name.clone()),
        };
        match self.call(&params).await {
            Ok(volumes) => Ok(volumes.into_iter().next()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(None),
            Err(error) => Err(of_target(&error)),
        }
    }

    /// A volume that must exist.
    pub async fn existing_volume(&self, text: &str) -> Result<(Id, Volume)> {
        let id = Id::existing("volume", text)?;
        match self.volume(&id).await? {
            Some(volume) => Ok((id, volume)),
            None => Err(Status::not_found(format!("there is no volume {id}"))),
        }
    }

    /// A snapshot; `None` where there is none.
    pub async fn snapshot(&self, id: &Id) -> Result<Option<Snapshot>> {
        let params = GetSnapshots {
            pool: Some(id.pool.clone()),
            volume: None,
            name: Some(id.name.clone()),
        };
        match self.call(&params).await {
            Ok(snapshots) => Ok(snapshots.into_iter().next()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(None),
            Err(error) => Err(of_target(&error)),
        }
    }

    /// All snapshots of this driver.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let snapshots = self.call(&GetSnapshots::default()).await;
        let mut snapshots = snapshots.map_err(|error| of_target(&error))?;
        snapshots.retain(|snapshot| snapshot.labels.contains_key(LABEL_NAME));
        Ok(snapshots)
    }
}
