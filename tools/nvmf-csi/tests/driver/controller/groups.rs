//! Snapshots of several volumes at one instant.

use nvmf_csi::proto::*;
use tonic::Code;

use super::{UNKNOWN, writer};
use crate::rig::{Rig, volume};

#[tokio::test(flavor = "multi_thread")]
async fn groups() {
    let Some(rig) = Rig::new("groups") else {
        return;
    };
    let (mut client, mut groups) = (rig.controller().await, rig.groups().await);
    for name in ["a", "b", "c"] {
        client
            .create_volume(volume(name, writer(), 16))
            .await
            .unwrap();
    }
    let create = |name: &str, sources: &[&str]| CreateVolumeGroupSnapshotRequest {
        name: name.into(),
        source_volume_ids: sources.iter().map(|id| (*id).to_owned()).collect(),
        ..CreateVolumeGroupSnapshotRequest::default()
    };
    let request = create("g", &["fast/a", "fast/b"]);
    let made = groups
        .create_volume_group_snapshot(request.clone())
        .await
        .unwrap()
        .into_inner()
        .group_snapshot
        .unwrap();
    assert_eq!(
        (
            made.group_snapshot_id.as_str(),
            made.snapshots.len(),
            made.ready_to_use
        ),
        ("fast/g", 2, true)
    );
    assert!(
        made.snapshots
            .iter()
            .all(|snapshot| snapshot.group_snapshot_id == "fast/g")
    );
    for _ in 0..10 {
        let again = groups
            .create_volume_group_snapshot(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(again.group_snapshot.unwrap().snapshots.len(), 2);
    }
    for (request, code) in [
        (create("", &["fast/a"]), Code::InvalidArgument),
        (create("h", &[]), Code::InvalidArgument),
        (create("h", &["fast/a", UNKNOWN]), Code::NotFound),
        (create("g", &["fast/a", "fast/c"]), Code::AlreadyExists),
    ] {
        assert_eq!(
            groups
                .create_volume_group_snapshot(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    let member = made.snapshots[0].snapshot_id.clone();
    let alone = DeleteSnapshotRequest {
        snapshot_id: member.clone(),
        ..Default::default()
    };
    assert_eq!(
        client.delete_snapshot(alone).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let get = |id: &str, members: &[&String]| GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.into(),
        snapshot_ids: members.iter().map(|id| (*id).clone()).collect(),
        ..GetVolumeGroupSnapshotRequest::default()
    };
    let got = groups
        .get_volume_group_snapshot(get("fast/g", &[&member]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.group_snapshot.unwrap().snapshots.len(), 2);
    let foreign = "fast/x".to_owned();
    for (request, code) in [
        (get("", &[]), Code::InvalidArgument),
        (get("fast/none", &[]), Code::NotFound),
        (get("fast/g", &[&foreign]), Code::InvalidArgument),
    ] {
        assert_eq!(
            groups
                .get_volume_group_snapshot(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    let delete = |id: &str| DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: id.into(),
        ..DeleteVolumeGroupSnapshotRequest::default()
    };
    assert_eq!(
        groups
            .delete_volume_group_snapshot(delete(""))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    for id in ["fast/g", "fast/g", "x"] {
        groups
            .delete_volume_group_snapshot(delete(id))
            .await
            .unwrap();
    }
    let left = client
        .list_snapshots(ListSnapshotsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(left.entries.is_empty());
}
