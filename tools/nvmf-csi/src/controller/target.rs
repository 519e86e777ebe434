//! One target's management API, as far as it is needed here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nvmf_rpc::error::code;
use nvmf_rpc::tls::ClientTexts;
use nvmf_rpc::types::{GetSnapshots, GetVolumes, Method, Snapshot, Volume};
use nvmf_rpc::{Client, ClientError, Endpoint};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::Result;
use crate::names::Id;
use crate::proto::Topology;
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

/// A target.
#[derive(Debug, Clone)]
pub struct Target {
    about: Arc<About>,
    client: Client,
    turns: Arc<Semaphore>,
}

/// What the command line says of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// Whether errors say its name: not where there is one target, without a name.
    pub is_named: bool,
    /// Its address as nodes reach it, where its own listeners do not tell.
    pub traddr: Option<String>,
    /// From where its volumes can be reached; empty for everywhere.
    pub topology: BTreeMap<String, String>,
}

/// Why a target did not do what it was asked.
#[derive(Debug)]
pub struct TargetError {
    /// Said unless there is one target alone, without a name.
    target: Option<String>,
    error: ClientError,
}

impl TargetError {
    /// The code of the target's refusal, if it is one.
    pub fn code(&self) -> Option<i32> {
        self.error.code()
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Some(target) => write!(f, "target {target}: {}", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl Target {
    /// The target whose management API is there.
    pub fn new(about: About, endpoint: Endpoint) -> Target {
        Target {
            about: Arc::new(about),
            client: Client::new(endpoint).with_timeout(CALL_LIMIT),
            turns: Arc::new(Semaphore::new(MAX_CALLS)),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.about.name
    }

    /// What the command line says of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Where its management API is.
    pub fn endpoint(&self) -> &Endpoint {
        self.client.endpoint()
    }

    /// The identifier of what its pool calls `name`.
    pub fn id(&self, pool: &str, name: &str) -> Id {
        Id::new(self.name(), pool, name)
    }

    /// Whether its volumes can be reached from there.
    pub fn is_within(&self, topology: &Topology) -> bool {
        let ours = &self.about.topology;
        let mut segments = topology.segments.iter();
        ours.is_empty() || segments.all(|(key, value)| ours.get(key) == Some(value))
    }

    /// The same target, asked as whoever has this certificate.
    pub fn as_holder(&self, certificate: ClientTexts) -> Result<Target> {
        let endpoint = self.endpoint().with_credentials(certificate);
        let endpoint =
            endpoint.map_err(|error| Status::invalid_argument(format!("secrets: {error}")))?;
        Ok(Target {
            about: Arc::clone(&self.about),
            client: Client::new(endpoint).with_timeout(CALL_LIMIT),
            turns: Arc::clone(&self.turns),
        })
    }

    /// Calls a method; the error is as the target said it.
    pub async fn call<M: Method>(&self, params: &M) -> std::result::Result<M::Result, TargetError> {
        // Never closed, so there is no error.
        let _turn = self.turns.acquire().await.ok();
        let answer = self.client.request(params).await;
        answer.map_err(|error| self.failed(error))
    }

    /// The same within a shorter time.
    pub async fn call_within<M: Method>(
        &self,
        limit: Duration,
        params: &M,
    ) -> std::result::Result<M::Result, TargetError> {
        let answer = tokio::time::timeout(limit, self.call(params)).await;
        answer.unwrap_or_else(|_| {
            Err(self.failed(ClientError::Timeout {
                method: M::NAME.to_owned(),
                after: limit,
            }))
        })
    }

    fn failed(&self, error: ClientError) -> TargetError {
        TargetError {
            target: self.about.is_named.then(|| self.name().to_owned()),
            error,
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
