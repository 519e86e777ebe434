//! Records: what is known of a volume or snapshot beside its blocks, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The same words as in the management API.
pub use nvmf_rpc::types::{Provisioning, Source};

/// The version of the records that this program writes; it refuses newer ones.
pub const RECORD_VERSION: u32 = 1;

/// The record of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// Its name in the pool.
    pub name: String,
    /// Its identity: never reused, the UUID of its namespace.
    pub id: Uuid,
    /// Its size: a multiple of `block_bytes`.
    pub size_bytes: u64,
    /// 512 or 4096.
    pub block_bytes: u32,
    /// Whether its space was reserved.
    pub provisioning: Provisioning,
    /// The subsystem that serves it.
    pub nqn: String,
    /// Whether that subsystem may serve other volumes too.
    pub shared: bool,
    /// The serial number of a subsystem of its own.
    pub serial: String,
    /// Its namespace in the subsystem.
    pub nsid: u32,
    /// Whether hosts may not write.
    pub read_only: bool,
    /// The hosts that may connect, by NQN.
    pub hosts: BTreeSet<String>,
    /// What it was copied from.
    pub source: Option<Source>,
    /// What its owner noted.
    pub labels: BTreeMap<String, String>,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// The record of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// Its name in the pool.
    pub name: String,
    /// Its identity: never reused.
    pub id: Uuid,
    /// The volume that it is of.
    pub volume: String,
    /// The volume's size then.
    pub size_bytes: u64,
    /// The volume's block size.
    pub block_bytes: u32,
    /// What its owner noted.
    pub labels: BTreeMap<String, String>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// The group that was taken at one moment.
    pub group: Option<Uuid>,
}

/// What [`super::Pool`] is asked for with a new volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size, rounded up to whole blocks; `None` for that of the source.
    pub size_bytes: Option<u64>,
    /// 512 or 4096; `None` for that of the source, or 4096.
    pub block_bytes: Option<u32>,
    /// Whether to reserve its space.
    pub provisioning: Provisioning,
    /// What it begins as a copy of.
    pub source: Option<Source>,
    /// Whether hosts may not write.
    pub read_only: bool,
    /// The hosts that may connect.
    pub hosts: BTreeSet<String>,
    /// What its owner notes.
    pub labels: BTreeMap<String, String>,
    /// A subsystem that other volumes may share, and the namespace there; `None` for a subsystem of its own.
    pub subsystem: Option<(String, u32)>,
}

/// One snapshot to take.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewSnapshot {
    /// Of which volume.
    pub volume: String,
    /// Its name.
    pub name: String,
    /// What its owner notes.
    pub labels: BTreeMap<String, String>,
}

/// What volumes and snapshots have in common.
pub(super) trait Record: Clone + Serialize + DeserializeOwned {
    fn version(&self) -> u32;
    fn name(&self) -> &str;
    fn id(&self) -> Uuid;
    fn size_bytes(&self) -> u64;
    /// Takes the size that the file turned out to have.
    fn set_size_bytes(&mut self, size_bytes: u64);
    fn block_bytes(&self) -> u32;
}

macro_rules! record {
    ($type:ty) => {
        impl Record for $type {
            fn version(&self) -> u32 {
                self.version
            }
            fn name(&self) -> &str {
                &self.name
            }
            fn id(&self) -> Uuid {
                self.id
            }
            fn size_bytes(&self) -> u64 {
                self.size_bytes
            }
            fn set_size_bytes(&mut self, size_bytes: u64) {
                self.size_bytes = size_bytes;
            }
            fn block_bytes(&self) -> u32 {
                self.block_bytes
            }
        }
    };
}
record!(VolumeRecord);
record!(SnapshotRecord);

/// The serial number of the subsystem of a volume: 20 hexadecimal digits of its identity.
pub(super) fn serial_of(id: Uuid) -> String {
    let mut digits = id.simple().to_string().to_uppercase();
    digits.truncate(crate::config::identity::SERIAL_CHARS);
    digits
}
