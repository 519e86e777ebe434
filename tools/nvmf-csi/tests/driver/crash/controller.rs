//! The controller's calls: what they change is the target's.

use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type};
use nvmf_csi::proto::*;
use nvmf_rpc::types::GetSnapshots;
use tonic::Status;

use super::{
    Call, at_every_point, create, delete_volume, done, grant, granted, id, name, revoke, volumes,
    writer,
};
use crate::controller::{delete, from, range};
use crate::rig::{MIB, NODE, Rig, volume};
use crate::tracer::Kill;

struct CreateVolume;

impl Call for CreateVolume {
    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        create(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        let there = volumes(rig).await;
        assert_eq!(there.len(), 1, "{there:?}");
        assert_eq!(
            (there[0].name.as_str(), there[0].size_bytes),
            (name(round).as_str(), 16 << 20)
        );
        delete_volume(rig, &id(round)).await;
    }
}

struct Delete;

impl Call for Delete {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        done(
            rig.controller()
                .await
                .delete_volume(delete(&id(round)))
                .await,
        )
    }

    async fn after(&self, rig: &Rig, _round: usize) {
        assert_eq!(volumes(rig).await, []);
    }
}

struct ControllerPublish;

impl Call for ControllerPublish {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        grant(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(granted(rig).await, [NODE]);
        revoke(rig, round).await.unwrap();
        delete_volume(rig, &id(round)).await;
    }
}

struct ControllerUnpublish;

impl Call for ControllerUnpublish {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
        grant(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        revoke(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(granted(rig).await, Vec::<String>::new());
        delete_volume(rig, &id(round)).await;
    }
}

struct Expand;

impl Call for Expand {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: id(round),
            capacity_range: range(32 * MIB, 0),
            ..Default::default()
        };
        done(
            rig.controller()
                .await
                .controller_expand_volume(request)
                .await,
        )
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(volumes(rig).await[0].size_bytes, 32 << 20);
        delete_volume(rig, &id(round)).await;
    }
}

async fn snapshot(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = CreateSnapshotRequest {
        name: format!("s{round}"),
        source_volume_id: id(round),
        ..Default::default()
    };
    done(rig.controller().await.create_snapshot(request).await)
}

async fn delete_snapshot(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = DeleteSnapshotRequest {
        snapshot_id: format!("fast/s{round}"),
        ..Default::default()
    };
    done(rig.controller().await.delete_snapshot(request).await)
}

async fn snapshots(rig: &Rig) -> Vec<String> {
    let snapshots = rig.ask(&GetSnapshots::default()).await;
    snapshots
        .into_iter()
        .map(|snapshot| snapshot.name)
        .collect()
}

struct CreateSnapshot;

impl Call for CreateSnapshot {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        snapshot(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(snapshots(rig).await, [format!("s{round}")]);
        delete_snapshot(rig, round).await.unwrap();
        delete_volume(rig, &id(round)).await;
    }
}

struct DeleteSnapshot;

impl Call for DeleteSnapshot {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
        snapshot(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        delete_snapshot(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(snapshots(rig).await, Vec::<String>::new());
        delete_volume(rig, &id(round)).await;
    }
}

/// A clone of a snapshot.
struct Clone;

impl Call for Clone {
    async fn before(&self, rig: &Rig, round: usize) {
        create(rig, round).await.unwrap();
        snapshot(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let request = CreateVolumeRequest {
            volume_content_source: from(Type::Snapshot(SnapshotSource {
                snapshot_id: format!("fast/s{round}"),
            })),
            ..volume("clone", writer("ext4"), 16)
        };
        done(rig.controller().await.create_volume(request).await)
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(volumes(rig).await.len(), 2);
        let mut client = rig.controller().await;
        client.delete_volume(delete("fast/clone")).await.unwrap();
        delete_snapshot(rig, round).await.unwrap();
        delete_volume(rig, &id(round)).await;
    }
}

/// Two volumes, snapshotted at one instant.
struct Group;

async fn delete_group(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: format!("fast/g{round}"),
        ..Default::default()
    };
    done(
        rig.groups()
            .await
            .delete_volume_group_snapshot(request)
            .await,
    )
}

async fn create_group(rig: &Rig, round: usize) -> Result<(), Status> {
    let request = CreateVolumeGroupSnapshotRequest {
        name: format!("g{round}"),
        source_volume_ids: vec!["fast/v0".into(), "fast/v1".into()],
        ..Default::default()
    };
    done(
        rig.groups()
            .await
            .create_volume_group_snapshot(request)
            .await,
    )
}

impl Call for Group {
    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        create_group(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        assert_eq!(snapshots(rig).await.len(), 2);
        delete_group(rig, round).await.unwrap();
    }
}

struct DeleteGroup;

impl Call for DeleteGroup {
    async fn before(&self, rig: &Rig, round: usize) {
        create_group(rig, round).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        delete_group(rig, round).await
    }

    async fn after(&self, rig: &Rig, _round: usize) {
        assert_eq!(snapshots(rig).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_in_the_controllers_calls() {
    let Some(mut rig) = Rig::new("killed_anywhere_in_the_controllers_calls") else {
        return;
    };
    let rig = &mut rig;
    let asks = ["connect", "send a request", "sent a request"];
    let driver = Kill::Driver;
    at_every_point(rig, "CreateVolume", driver, &asks, &CreateVolume).await;
    at_every_point(rig, "DeleteVolume", driver, &asks, &Delete).await;
    at_every_point(
        rig,
        "ControllerPublishVolume",
        driver,
        &asks,
        &ControllerPublish,
    )
    .await;
    at_every_point(
        rig,
        "ControllerUnpublishVolume",
        driver,
        &asks,
        &ControllerUnpublish,
    )
    .await;
    at_every_point(rig, "ControllerExpandVolume", driver, &asks, &Expand).await;
    at_every_point(rig, "CreateSnapshot", driver, &asks, &CreateSnapshot).await;
    at_every_point(rig, "DeleteSnapshot", driver, &asks, &DeleteSnapshot).await;
    at_every_point(rig, "CreateVolume of a snapshot", driver, &asks, &Clone).await;
    create(rig, 0).await.unwrap();
    create(rig, 1).await.unwrap();
    at_every_point(rig, "CreateVolumeGroupSnapshot", driver, &asks, &Group).await;
    at_every_point(
        rig,
        "DeleteVolumeGroupSnapshot",
        driver,
        &asks,
        &DeleteGroup,
    )
    .await;
}
