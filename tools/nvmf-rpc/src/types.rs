//! The pool methods: each method's parameters are a type that names the method and its result.
//!
//! Unknown parameters are refused, so that a typing mistake never turns into a default; unknown fields of results are
//! ignored, so that an older client understands a newer target. Sizes are in bytes.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The parameters of a method.
pub trait Method: Serialize + DeserializeOwned {
    /// The method's name.
    const NAME: &'static str;
    /// What it returns.
    type Result: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($($params:ident: $name:literal -> $result:ty;)*) => {
        $(impl Method for $params {
            const NAME: &'static str = $name;
            type Result = $result;
        })*
    };
}

methods! {
    GetPools: "pool_get_pools" -> Vec<Pool>;
    CreateVolume: "pool_create_volume" -> Volume;
    GetVolumes: "pool_get_volumes" -> Vec<Volume>;
    DeleteVolume: "pool_delete_volume" -> bool;
    ResizeVolume: "pool_resize_volume" -> Volume;
    CreateSnapshot: "pool_create_snapshot" -> Snapshot;
    CreateSnapshots: "pool_create_snapshots" -> Vec<Snapshot>;
    GetSnapshots: "pool_get_snapshots" -> Vec<Snapshot>;
    DeleteSnapshot: "pool_delete_snapshot" -> bool;
    AddHost: "pool_add_host" -> Volume;
    RemoveHost: "pool_remove_host" -> Volume;
}

/// What a pool does with a volume, snapshot or growth that might not fit in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overcommit {
    /// Refuses to make or grow it.
    #[default]
    Refuse,
    /// Makes it and logs a warning.
    Warn,
    /// Makes it.
    Allow,
}

/// How a volume gets its room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provisioning {
    /// When it is written.
    #[default]
    Thin,
    /// When it is made.
    Thick,
}

/// What a clone's content comes from, in the same pool: `{"volume": NAME}` or `{"snapshot": NAME}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A volume as it is at the moment of the call.
    Volume(String),
    /// A snapshot.
    Snapshot(String),
}

/// Labels that the caller gives and finds again.
pub type Labels = BTreeMap<String, String>;

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub path: String,
    /// The file system that it lies on, such as `xfs`.
    pub fs_type: String,
    /// Whether that can share blocks between files, which snapshots and clones need.
    pub reflink: bool,
    /// What the NQNs of its volumes begin with.
    pub nqn_prefix: String,
    /// What happens when more is promised than there is.
    pub overcommit: Overcommit,
    /// Size of the file system.
    pub total_bytes: u64,
    /// What is free in it.
    pub free_bytes: u64,
    /// What volumes and snapshots take; blocks that they share count each time.
    pub allocated_bytes: u64,
    /// What volumes may take when they are full.
    pub provisioned_bytes: u64,
    /// How many volumes there are.
    pub volumes: u64,
    /// How many snapshots there are.
    pub snapshots: u64,
}

/// An address that hosts connect to, in SPDK's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenAddress {
    /// `TCP` or `RDMA`.
    pub trtype: String,
    /// `IPv4` or `IPv6`.
    pub adrfam: String,
    /// The IP address.
    pub traddr: String,
    /// The port.
    pub trsvcid: String,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Its pool.
    pub pool: String,
    /// Its name in the pool.
    pub name: String,
    /// A UUID that no other volume has or had.
    pub id: String,
    /// Its size as hosts see it.
    pub size_bytes: u64,
    /// What it takes of the file system.
    pub allocated_bytes: u64,
    /// Its block size.
    pub block_size: u32,
    /// The subsystem that serves it.
    pub nqn: String,
    /// Its namespace in that subsystem.
    pub nsid: u32,
    /// The namespace's UUID.
    pub uuid: String,
    /// The namespace's NGUID: 32 hexadecimal digits.
    pub nguid: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The hosts that may connect.
    pub hosts: Vec<String>,
    /// The hosts that are connected.
    pub connected_hosts: Vec<String>,
    /// What its content came from.
    pub source: Option<Source>,
    /// What the caller gave.
    #[serde(default)]
    pub labels: Labels,
    /// When it was made, RFC 3339.
    pub created: String,
    /// Where hosts connect.
    pub listeners: Vec<ListenAddress>,
}

/// A snapshot of a volume. It is not served; a clone of it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its pool.
    pub pool: String,
    /// Its name in the pool.
    pub name: String,
    /// A UUID that no other snapshot has or had.
    pub id: String,
    /// The volume that it was taken of.
    pub volume: String,
    /// That volume's size at the time.
    pub size_bytes: u64,
    /// What it takes of the file system, with the blocks that it shares.
    pub allocated_bytes: u64,
    /// What the caller gave.
    #[serde(default)]
    pub labels: Labels,
    /// When it was taken, RFC 3339.
    pub created: String,
    /// Whether it can be cloned: always so once it was returned.
    pub ready: bool,
    /// Those that were taken in one call have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// For how long the volume's hosts waited; only in the answer of the call that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    /// Extents of all snapshots of the call, with which that time grows; only in the answer of the call that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extents: Option<u64>,
}

/// `pool_get_pools`: all pools, or one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetPools {
    /// Only this one; -2 when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `pool_create_volume`. A name that exists is refused with -17 and the existing volume as data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Where.
    pub pool: String,
    /// Its name.
    pub name: String,
    /// Its size; may be absent with a source, and then is the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// 512 or 4096; absent for 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Thin or thick.
    #[serde(default)]
    pub provisioning: Provisioning,
    /// What to clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Whether to refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// The hosts that may connect.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// To be found again.
    #[serde(default)]
    pub labels: Labels,
    /// The NQN of a subsystem to share with other volumes; absent for one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subsystem: Option<String>,
}

/// `pool_get_volumes`: all, those of a pool, or one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetVolumes {
    /// Only in this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only those called so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `pool_delete_volume`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteVolume {
    /// Where.
    pub pool: String,
    /// Which; -2 when there is none.
    pub name: String,
    /// Whether to cut off hosts that are connected instead of refusing with -16.
    #[serde(default)]
    pub force: bool,
}

/// `pool_resize_volume`: grows a volume under the hosts that use it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Where.
    pub pool: String,
    /// Which.
    pub name: String,
    /// Its size from then on; less than now is refused with -22.
    pub size_bytes: u64,
}

/// `pool_create_snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Where.
    pub pool: String,
    /// Of which volume.
    pub volume: String,
    /// The snapshot's name.
    pub name: String,
    /// To be found again.
    #[serde(default)]
    pub labels: Labels,
}

/// One of a group of snapshots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// Of which volume.
    pub volume: String,
    /// The snapshot's name.
    pub name: String,
    /// To be found again.
    #[serde(default)]
    pub labels: Labels,
}

/// `pool_create_snapshots`: several volumes at one instant, all or none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    /// Where.
    pub pool: String,
    /// Which; no volume twice.
    pub snapshots: Vec<SnapshotSpec>,
}

/// `pool_get_snapshots`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetSnapshots {
    /// Only in this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Only of this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Only those called so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `pool_delete_snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteSnapshot {
    /// Where.
    pub pool: String,
    /// Which; -2 when there is none.
    pub name: String,
}

/// `pool_add_host`: lets a host connect to a volume. Idempotent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddHost {
    /// Where.
    pub pool: String,
    /// Which volume.
    pub name: String,
    /// The host's NQN.
    pub host: String,
}

/// `pool_remove_host`: returns once the host's controllers are gone and its writes have finished. Idempotent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveHost {
    /// Where.
    pub pool: String,
    /// Which volume.
    pub name: String,
    /// The host's NQN.
    pub host: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_have_the_form_that_is_written_down() {
        let params: CreateVolume = serde_json::from_value(json!({
            "pool": "fast", "name": "pvc-1", "provisioning": "thick", "source": {"snapshot": "s"},
            "hosts": ["nqn.2014-08.org.nvmexpress:uuid:1"], "labels": {"a": "b"},
        }))
        .unwrap();
        assert_eq!(params.source, Some(Source::Snapshot("s".into())));
        assert_eq!(
            (params.provisioning, params.size_bytes),
            (Provisioning::Thick, None)
        );
        let back: CreateVolume =
            serde_json::from_value(serde_json::to_value(&params).unwrap()).unwrap();
        assert_eq!(back, params);
    }

    #[test]
    fn typing_mistakes_are_found() {
        for wrong in [
            json!({"pool": "p", "name": "n", "size": 5}),
            json!({"pool": "p"}),
            json!({"pool": "p", "name": "n", "size_bytes": "5"}),
            json!({"pool": "p", "name": "n", "size_bytes": -5}),
            json!({"pool": "p", "name": "n", "source": {"volume": "a", "snapshot": "b"}}),
            json!({"pool": "p", "name": "n", "provisioning": "fat"}),
        ] {
            assert!(
                serde_json::from_value::<CreateVolume>(wrong.clone()).is_err(),
                "{wrong}"
            );
        }
    }
}
