//! Snapshots, and volumes made of them.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use nvmf_csi::proto::*;
use tonic::Code;

use super::{UNKNOWN, from, new_snapshot, new_volume, writer};
use crate::rig::{MIB, Rig, mount_as, volume};

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_clones() {
    let Some(rig) = Rig::new("snapshots_and_clones") else {
        return;
    };
    let mut client = rig.controller().await;
    for name in ["a", "b"] {
        client
            .create_volume(volume(name, mount_as("xfs", Mode::SingleNodeWriter), 320))
            .await
            .unwrap();
    }
    let create = |name: &str, source: &str| CreateSnapshotRequest {
        name: name.into(),
        source_volume_id: source.into(),
        ..CreateSnapshotRequest::default()
    };
    let taken = new_snapshot(&mut client, create("s", "fast/a")).await;
    assert_eq!(
        (taken.snapshot_id.as_str(), taken.source_volume_id.as_str()),
        ("fast/s", "fast/a")
    );
    assert!(
        taken.ready_to_use
            && taken.creation_time.unwrap().seconds > 0
            && taken.size_bytes == 320 * MIB
    );
    for _ in 0..10 {
        let again = new_snapshot(&mut client, create("s", "fast/a")).await;
        assert_eq!(again, taken);
    }
    for (request, code) in [
        (create("", "fast/a"), Code::InvalidArgument),
        (create("t", ""), Code::InvalidArgument),
        (create("t", UNKNOWN), Code::NotFound),
        (create("s", "fast/b"), Code::AlreadyExists),
    ] {
        assert_eq!(
            client.create_snapshot(request).await.unwrap_err().code(),
            code
        );
    }
    // A clone is as large as its source and has its file system, unless more is asked for.
    let clone = CreateVolumeRequest {
        volume_content_source: from(Type::Snapshot(SnapshotSource {
            snapshot_id: "fast/s".into(),
        })),
        capacity_range: None,
        ..volume("from-s", writer(), 0)
    };
    let cloned = new_volume(&mut client, clone.clone()).await;
    assert_eq!(
        (
            cloned.capacity_bytes,
            cloned.volume_context["fsType"].as_str()
        ),
        (320 * MIB, "xfs")
    );
    assert_eq!(cloned.content_source, clone.volume_content_source);
    let without = CreateVolumeRequest {
        volume_content_source: None,
        ..clone.clone()
    };
    assert_eq!(
        client.create_volume(without).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    let other = CreateVolumeRequest {
        volume_capabilities: vec![mount_as("ext4", Mode::SingleNodeWriter)],
        name: "from-s2".into(),
        ..clone.clone()
    };
    assert_eq!(
        client.create_volume(other).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let larger = CreateVolumeRequest {
        volume_content_source: from(Type::Volume(VolumeSource {
            volume_id: "fast/a".into(),
        })),
        ..volume("from-a", writer(), 400)
    };
    let larger = new_volume(&mut client, larger).await;
    assert_eq!(larger.capacity_bytes, 400 * MIB);
    // Lists.
    client
        .create_snapshot(create("s2", "fast/b"))
        .await
        .unwrap();
    let list = |snapshot: &str, source: &str, max_entries, token: &str| ListSnapshotsRequest {
        snapshot_id: snapshot.into(),
        source_volume_id: source.into(),
        max_entries,
        starting_token: token.into(),
        ..ListSnapshotsRequest::default()
    };
    for (request, names) in [
        (list("", "", 0, ""), vec!["fast/s", "fast/s2"]),
        (list("fast/s", "", 0, ""), vec!["fast/s"]),
        (list("", "fast/b", 0, ""), vec!["fast/s2"]),
        (list("fast/s", "fast/b", 0, ""), vec![]),
        (list("x", "", 0, ""), vec![]),
        (list("", "", 1, ""), vec!["fast/s"]),
        (list("", "", 1, "fast/s"), vec!["fast/s2"]),
    ] {
        let answer = client.list_snapshots(request).await.unwrap().into_inner();
        let ids: Vec<_> = answer
            .entries
            .iter()
            .map(|entry| entry.snapshot.clone().unwrap().snapshot_id)
            .collect();
        assert_eq!(ids, names);
    }
    assert_eq!(
        client
            .list_snapshots(list("", "", 1, "bad"))
            .await
            .unwrap_err()
            .code(),
        Code::Aborted
    );
    let get = |snapshot_id: &str| GetSnapshotRequest {
        snapshot_id: snapshot_id.into(),
        ..GetSnapshotRequest::default()
    };
    assert_eq!(
        client
            .get_snapshot(get("fast/s"))
            .await
            .unwrap()
            .into_inner()
            .snapshot,
        Some(taken)
    );
    assert_eq!(
        client.get_snapshot(get("")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(
        client.get_snapshot(get(UNKNOWN)).await.unwrap_err().code(),
        Code::NotFound
    );
    let delete = |snapshot_id: &str| DeleteSnapshotRequest {
        snapshot_id: snapshot_id.into(),
        ..DeleteSnapshotRequest::default()
    };
    assert_eq!(
        client.delete_snapshot(delete("")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    for id in ["fast/s", "fast/s", UNKNOWN, "x"] {
        client.delete_snapshot(delete(id)).await.unwrap();
    }
}
