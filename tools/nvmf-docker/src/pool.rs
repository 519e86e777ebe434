//! The target's management API, as far as volumes of containers need it.

use std::time::Duration;

use nvmf_rpc::error::code;
use nvmf_rpc::reach::Transport;
use nvmf_rpc::types::{
    AddHost, CreateVolume, DeleteVolume, GetPools, GetSnapshots, GetVolumes, Labels, RemoveHost,
    ResizeVolume, Source, Volume,
};
use nvmf_rpc::{BlockingClient, ClientError, Endpoint};
use nvmf_volume::{Address, FsKind};

use crate::error::Error;

/// How long one call may take; less than the 60 seconds that dockerd waits for most answers.
const CALL_LIMIT: Duration = Duration::from_secs(45);

/// Label of volumes: the file system that they have or are to have. Its presence says that this plugin made the volume.
pub const LABEL_FS: &str = "nvmf-docker.fs";
/// Label: words for mkfs.
pub const LABEL_MKFS_OPTIONS: &str = "nvmf-docker.mkfs-options";
/// Label: `true` if it is mounted read-only.
pub const LABEL_READ_ONLY: &str = "nvmf-docker.ro";
/// Label: which creation made it.
pub const LABEL_CREATE_ID: &str = "nvmf-docker.create-id";

/// What came of a creation.
pub enum Created {
    /// It was made.
    New(Box<Volume>),
    /// There is one of this name.
    Exists(Box<Volume>),
}

/// The target.
#[derive(Debug, Clone)]
pub struct Target {
    client: BlockingClient,
}

impl Target {
    /// The target whose management API is there.
    pub fn new(endpoint: Endpoint) -> Target {
        Target {
            client: BlockingClient::new(endpoint).with_timeout(CALL_LIMIT),
        }
    }

    /// The pool to use where a user names none: the only one.
    pub fn only_pool(&self) -> Result<String, Error> {
        let pools = self.client.request(&GetPools::default())?;
        match pools.as_slice() {
            [pool] => Ok(pool.name.clone()),
            [] => Err(Error::Request(
                "the target has no pool: add [pool.NAME] to its configuration".to_owned(),
            )),
            several => Err(Error::Request(format!(
                "the target has several pools ({}): say which with -o pool=NAME, or start nvmf-docker with --pool",
                several
                    .iter()
                    .map(|pool| pool.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        }
    }

    /// A volume; `None` where there is none.
    pub fn volume(&self, pool: &str, name: &str) -> Result<Option<Volume>, Error> {
        let params = GetVolumes {
            pool: Some(pool.to_owned()),
            name: Some(name.to_owned()),
        };
        match self.client.request(&params) {
            Ok(volumes) => Ok(volumes.into_iter().next()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The file system that a clone of `source` has, as far as labels tell.
    pub fn fs_of(&self, pool: &str, source: &Source) -> Result<Option<FsKind>, Error> {
        let labels = match source {
            Source::Volume(name) => self.volume(pool, name)?.map(|volume| volume.labels),
            Source::Snapshot(name) => {
                let params = GetSnapshots {
                    pool: Some(pool.to_owned()),
                    volume: None,
                    name: Some(name.clone()),
                };
                let snapshots = match self.client.request(&params) {
                    Ok(snapshots) => snapshots,
                    Err(error) if error.code() == Some(code::NOT_FOUND) => Vec::new(),
                    Err(error) => return Err(error.into()),
                };
                match snapshots.into_iter().next() {
                    Some(snapshot) if snapshot.labels.contains_key(LABEL_FS) => {
                        Some(snapshot.labels)
                    }
                    Some(snapshot) => self
                        .volume(pool, &snapshot.volume)?
                        .map(|volume| volume.labels),
                    None => None,
                }
            }
        };
        let kind = labels.and_then(|labels| labels.get(LABEL_FS).cloned());
        Ok(kind.map(|kind| kind.parse()).transpose()?)
    }

    /// Makes a volume.
    pub fn create(
        &self,
        pool: &str,
        name: &str,
        size_bytes: Option<u64>,
        source: Option<Source>,
        labels: Labels,
    ) -> Result<Created, Error> {
        let params = CreateVolume {
            pool: pool.to_owned(),
            name: name.to_owned(),
            size_bytes,
            source,
            labels,
            ..CreateVolume::default()
        };
        match self.client.request(&params) {
            Ok(volume) => Ok(Created::New(Box::new(volume))),
            Err(error) if error.code() == Some(code::EXISTS) => match self.volume(pool, name)? {
                Some(volume) => Ok(Created::Exists(Box::new(volume))),
                // Removed in between.
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a volume; one that is not there is fine.
    pub fn delete(&self, pool: &str, name: &str) -> Result<(), Error> {
        let params = DeleteVolume {
            pool: pool.to_owned(),
            name: name.to_owned(),
            force: false,
        };
        match self.client.request(&params) {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Grows a volume.
    pub fn resize(&self, pool: &str, name: &str, size_bytes: u64) -> Result<Volume, Error> {
        let params = ResizeVolume {
            pool: pool.to_owned(),
            name: name.to_owned(),
            size_bytes,
        };
        Ok(self.client.request(&params)?)
    }

    /// Grants a host access.
    pub fn add_host(&self, pool: &str, name: &str, host: &str) -> Result<Volume, Error> {
        let params = AddHost {
            pool: pool.to_owned(),
            name: name.to_owned(),
            host: host.to_owned(),
        };
        Ok(self.client.request(&params)?)
    }

    /// Takes a host's access away; a volume that is gone is fine.
    pub fn remove_host(&self, pool: &str, name: &str, host: &str) -> Result<(), Error> {
        let params = RemoveHost {
            pool: pool.to_owned(),
            name: name.to_owned(),
            host: host.to_owned(),
        };
        match self.client.request(&params) {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(code::NOT_FOUND) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the target may have done what it was asked although this is what came back.
pub fn may_be_done(error: &Error) -> bool {
    let Error::Target(error) = error else {
        return false;
    };
    !matches!(
        error,
        ClientError::Connect { .. } | ClientError::Refused { .. }
    )
}

/// Where to connect for a volume.
pub fn address(volume: &Volume, traddr: Option<&str>) -> Result<Address, Error> {
    let reached = volume
        .reach(traddr)
        .map_err(|error| Error::Request(error.to_string()))?;
    Ok(match reached.transport {
        Transport::Tcp => Address::tcp(reached.traddr, reached.port),
        Transport::Rdma => Address::rdma(reached.traddr, reached.port),
    })
}
