//! The node's calls: devices of the daemon, mounts of the kernel, file systems.

use std::path::Path;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Status;

use super::{Call, at_every_point, delete_volume, done, id, name, revoke, volumes, writer};
use crate::controller::range;
use crate::node::ephemeral;
use crate::pod::Pod;
use crate::rig::{MIB, Rig, Site, block, volume};
use crate::tracer::Kill;

fn raw() -> VolumeCapability {
    block(Mode::SingleNodeWriter)
}

/// A stage of a volume that is new in each round, so that it makes a file system.
struct Stage(VolumeCapability, i64);

impl Stage {
    async fn pod<'a>(&self, rig: &'a Rig, round: usize) -> Pod<'a> {
        Pod::known(rig, &id(round), self.0.clone()).await
    }

    async fn is_there(&self, rig: &Rig, round: usize) {
        let staging = self.pod(rig, round).await.path("staging");
        let node = rig.volumes_of(&Site::all());
        assert_eq!(node.attached().unwrap().len(), 1);
        assert_eq!(node.claims().unwrap().len(), 1);
        if self.0 != raw() {
            assert_eq!(rig.mounts_below(&staging).len(), 1);
            std::fs::write(format!("{staging}/file"), "x").unwrap();
        }
    }

    async fn unstage(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let request = self.pod(rig, round).await.unstage();
        done(rig.node().await.node_unstage_volume(request).await)
    }

    async fn remove(&self, rig: &Rig, round: usize) {
        revoke(rig, round).await.unwrap();
        delete_volume(rig, &id(round)).await;
    }
}

impl Call for Stage {
    async fn before(&self, rig: &Rig, round: usize) {
        Pod::new(rig, volume(&name(round), self.0.clone(), self.1)).await;
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let request = self.pod(rig, round).await.stage();
        done(rig.node().await.node_stage_volume(request).await)
    }

    async fn after(&self, rig: &Rig, round: usize) {
        self.is_there(rig, round).await;
        self.unstage(rig, round).await.unwrap();
        self.remove(rig, round).await;
    }
}

/// A stage that is given up: whatever it did is undone by an unstage.
struct GivenUp(Stage);

impl Call for GivenUp {
    async fn before(&self, rig: &Rig, round: usize) {
        self.0.before(rig, round).await;
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        match rig.has_driver() {
            // The one that is traced and dies.
            false => self.0.call(rig, round).await,
            true => self.0.unstage(rig, round).await,
        }
    }

    async fn after(&self, rig: &Rig, round: usize) {
        self.0.remove(rig, round).await;
    }
}

/// A stage on a node where no daemon runs: the driver starts it.
struct First(Stage);

impl Call for First {
    async fn before(&self, rig: &Rig, round: usize) {
        self.0.before(rig, round).await;
        rig.stop_daemon();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        self.0.call(rig, round).await
    }

    async fn after(&self, rig: &Rig, round: usize) {
        self.0.after(rig, round).await;
    }
}

/// Grows the file system of a volume that the controller made larger. XFS: nobody needs a capability for that.
struct Expand(Stage);

impl Call for Expand {
    async fn before(&self, rig: &Rig, round: usize) {
        self.0.before(rig, round).await;
        self.0.call(rig, round).await.unwrap();
        let grow = ControllerExpandVolumeRequest {
            volume_id: id(round),
            capacity_range: range(400 * MIB, 0),
            ..Default::default()
        };
        let mut client = rig.controller().await;
        client.controller_expand_volume(grow).await.unwrap();
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let request = NodeExpandVolumeRequest {
            volume_id: id(round),
            volume_path: self.0.pod(rig, round).await.path("staging"),
            capacity_range: range(400 * MIB, 0),
            ..Default::default()
        };
        done(rig.node().await.node_expand_volume(request).await)
    }

    async fn after(&self, rig: &Rig, round: usize) {
        let staging = self.0.pod(rig, round).await.path("staging");
        let stats = nvmf_volume::stats::stats(Path::new(&staging)).unwrap();
        assert!(stats.total_bytes > 320 << 20, "{stats:?}");
        self.0.after(rig, round).await;
    }
}

/// What is done with a volume that stays.
#[derive(PartialEq)]
enum What {
    Publish,
    Unpublish,
    Unstage,
}

struct Staged(What, VolumeCapability);

impl Staged {
    async fn pod<'a>(&self, rig: &'a Rig) -> Pod<'a> {
        Pod::known(rig, "fast/v0", self.1.clone()).await
    }
}

impl Call for Staged {
    async fn before(&self, rig: &Rig, _round: usize) {
        let pod = Pod::new(rig, volume("v0", self.1.clone(), 16)).await;
        let mut node = rig.node().await;
        node.node_stage_volume(pod.stage()).await.unwrap();
        if self.0 == What::Unpublish {
            node.node_publish_volume(pod.publish("target"))
                .await
                .unwrap();
        }
    }

    async fn call(&self, rig: &Rig, _round: usize) -> Result<(), Status> {
        let pod = self.pod(rig).await;
        let mut node = rig.node().await;
        match self.0 {
            What::Publish => done(node.node_publish_volume(pod.publish("target")).await),
            What::Unpublish => done(node.node_unpublish_volume(pod.unpublish("target")).await),
            What::Unstage => done(node.node_unstage_volume(pod.unstage()).await),
        }
    }

    async fn after(&self, rig: &Rig, _round: usize) {
        let pod = self.pod(rig).await;
        let mut node = rig.node().await;
        let target = pod.path("target");
        if self.0 == What::Publish {
            assert_eq!(rig.mounts_below(&target).len(), 1);
            node.node_unpublish_volume(pod.unpublish("target"))
                .await
                .unwrap();
        }
        assert!(!Path::new(&target).exists());
        node.node_unstage_volume(pod.unstage()).await.unwrap();
    }
}

/// A volume that lives and dies with its pod.
struct Ephemeral(What);

impl Call for Ephemeral {
    async fn before(&self, rig: &Rig, round: usize) {
        if self.0 == What::Unpublish {
            let mut node = rig.node().await;
            node.node_publish_volume(ephemeral::publish(rig, round))
                .await
                .unwrap();
        }
    }

    async fn call(&self, rig: &Rig, round: usize) -> Result<(), Status> {
        let mut node = rig.node().await;
        match self.0 {
            What::Publish => done(
                node.node_publish_volume(ephemeral::publish(rig, round))
                    .await,
            ),
            _ => done(
                node.node_unpublish_volume(ephemeral::unpublish(rig, round))
                    .await,
            ),
        }
    }

    async fn after(&self, rig: &Rig, round: usize) {
        if self.0 == What::Publish {
            assert_eq!(volumes(rig).await.len(), 1);
            let target = ephemeral::publish(rig, round).target_path;
            assert_eq!(rig.mounts_below(&target).len(), 1);
            std::fs::write(format!("{target}/file"), "x").unwrap();
            let mut node = rig.node().await;
            node.node_unpublish_volume(ephemeral::unpublish(rig, round))
                .await
                .unwrap();
        }
        assert_eq!(volumes(rig).await, []);
    }
}

/// What a stage of a file system does.
const MOUNTING: [&str; 6] = [
    "create",
    "rename",
    "connect",
    "sent a request",
    "start a program",
    "mount on",
];

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_in_a_stage() {
    let Some(mut rig) = Rig::new("killed_anywhere_in_a_stage") else {
        return;
    };
    let rig = &mut rig;
    let stage = || Stage(writer("ext4"), 16);
    at_every_point(rig, "NodeStageVolume", Kill::Driver, &MOUNTING, &stage()).await;
    let call = GivenUp(stage());
    let what = "NodeStageVolume, given up";
    at_every_point(rig, what, Kill::Driver, &MOUNTING, &call).await;
    let call = Stage(raw(), 16);
    let what = "NodeStageVolume of a raw device";
    at_every_point(rig, what, Kill::Driver, &MOUNTING[..4], &call).await;
    let call = First(Stage(raw(), 16));
    let what = "NodeStageVolume where no daemon runs";
    at_every_point(rig, what, Kill::Driver, &MOUNTING[..5], &call).await;
}

/// With the driver die mkfs and whatever else it runs, in the middle of their writes.
#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_in_a_stage_with_all_of_its_container() {
    let Some(mut rig) = Rig::new("killed_anywhere_in_a_stage_with_all_of_its_container") else {
        return;
    };
    let rig = &mut rig;
    let writes = [&MOUNTING[..], &["child: write /dev/loop"]].concat();
    for (fs, size_mib) in [("ext4", 16), ("xfs", 300)] {
        let call = Stage(writer(fs), size_mib);
        let what = format!("NodeStageVolume of {fs} in a container");
        at_every_point(rig, &what, Kill::Container, &writes, &call).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_around_a_staged_volume() {
    let Some(mut rig) = Rig::new("killed_anywhere_around_a_staged_volume") else {
        return;
    };
    let rig = &mut rig;
    let driver = Kill::Driver;
    for (kind, capability) in [("mount", writer("ext4")), ("raw", raw())] {
        for (call, what, expected) in [
            (
                "NodePublishVolume",
                What::Publish,
                &["rename", "mount on"][..],
            ),
            (
                "NodeUnpublishVolume",
                What::Unpublish,
                &["unmount", "rename"],
            ),
            (
                "NodeUnstageVolume",
                What::Unstage,
                &["connect", "sent a request", "unlink"],
            ),
        ] {
            let described = format!("{call}, {kind}");
            let call = Staged(what, capability.clone());
            at_every_point(rig, &described, driver, expected, &call).await;
        }
        revoke(rig, 0).await.unwrap();
        delete_volume(rig, "fast/v0").await;
    }
    let call = Expand(Stage(writer("xfs"), 300));
    let expected = ["sent a request", "start a program"];
    at_every_point(rig, "NodeExpandVolume", driver, &expected, &call).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_anywhere_in_the_life_of_an_ephemeral_volume() {
    let Some(mut rig) = Rig::new("killed_anywhere_in_the_life_of_an_ephemeral_volume") else {
        return;
    };
    let rig = &mut rig;
    let (publish, unpublish) = (Ephemeral(What::Publish), Ephemeral(What::Unpublish));
    at_every_point(rig, "ephemeral publish", Kill::Driver, &MOUNTING, &publish).await;
    let expected = ["unmount", "rmdir", "sent a request", "unlink"];
    at_every_point(
        rig,
        "ephemeral unpublish",
        Kill::Driver,
        &expected,
        &unpublish,
    )
    .await;
}
