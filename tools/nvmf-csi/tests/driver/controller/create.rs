//! CreateVolume and DeleteVolume.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use nvmf_csi::proto::*;
use tonic::Code;

use super::{UNKNOWN, delete, from, new_volume, range, writer};
use crate::rig::{MIB, Rig, block, mount_as, volume};

#[tokio::test(flavor = "multi_thread")]
async fn creating_and_deleting() {
    let Some(rig) = Rig::new("creating_and_deleting") else {
        return;
    };
    let mut client = rig.controller().await;
    let create = volume("v1", writer(), 64);
    let made = new_volume(&mut client, create.clone()).await;
    assert_eq!(
        (made.volume_id.as_str(), made.capacity_bytes),
        ("fast/v1", 64 * MIB)
    );
    assert_eq!(made.volume_context["fsType"], "ext4");
    assert_eq!(
        made.accessible_topology[0].segments["example.org/zone"],
        "a"
    );
    for _ in 0..10 {
        let again = new_volume(&mut client, create.clone()).await;
        assert_eq!(again, made);
    }
    let refused = async |request: CreateVolumeRequest| {
        rig.controller()
            .await
            .create_volume(request)
            .await
            .unwrap_err()
            .code()
    };
    let with = |change: &dyn Fn(&mut CreateVolumeRequest)| {
        let mut request = create.clone();
        change(&mut request);
        request
    };
    let pool = |name: &str| [("pool".to_owned(), name.to_owned())].into();
    for (request, code) in [
        (with(&|r| r.name.clear()), Code::InvalidArgument),
        (with(&|r| r.name = "x".repeat(129)), Code::InvalidArgument),
        (with(&|r| r.name = "a\u{1}".into()), Code::InvalidArgument),
        (
            with(&|r| r.volume_capabilities.clear()),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_capabilities = vec![mount_as("", Mode::MultiNodeMultiWriter)]),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.volume_capabilities = vec![mount_as("ntfs", Mode::SingleNodeWriter)]),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.parameters = [("sise".to_owned(), "1".to_owned())].into()),
            Code::InvalidArgument,
        ),
        (
            with(&|r| (r.name, r.parameters) = ("v2".into(), pool("none"))),
            Code::InvalidArgument,
        ),
        (with(&|r| r.parameters = pool("none")), Code::AlreadyExists),
        (
            with(&|r| r.mutable_parameters = [("a".to_owned(), "1".to_owned())].into()),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.capacity_range = range(-1, 0)),
            Code::InvalidArgument,
        ),
        (
            with(&|r| r.capacity_range = range(2, 1)),
            Code::InvalidArgument,
        ),
        (
            with(&|r| (r.name, r.capacity_range) = ("v2".into(), range(1, 4096))),
            Code::OutOfRange,
        ),
        (
            with(&|r| (r.name, r.capacity_range) = ("v2".into(), range(i64::MAX, 0))),
            Code::OutOfRange,
        ),
        (
            with(&|r| r.capacity_range = range(128 * MIB, 0)),
            Code::AlreadyExists,
        ),
        (
            with(&|r| r.volume_capabilities = vec![mount_as("xfs", Mode::SingleNodeWriter)]),
            Code::AlreadyExists,
        ),
        (
            with(&|r| r.volume_capabilities = vec![block(Mode::SingleNodeWriter)]),
            Code::AlreadyExists,
        ),
        (
            with(&|r| {
                r.volume_content_source = from(Type::Volume(VolumeSource {
                    volume_id: UNKNOWN.into(),
                }))
            }),
            Code::NotFound,
        ),
        (
            with(&|r| {
                r.volume_content_source = from(Type::Snapshot(SnapshotSource {
                    snapshot_id: "x".into(),
                }))
            }),
            Code::NotFound,
        ),
        (
            with(&|r| r.volume_content_source = Some(VolumeContentSource { r#type: None })),
            Code::InvalidArgument,
        ),
        (
            with(&|r| {
                let segments = [("example.org/zone".to_owned(), "b".to_owned())].into();
                r.accessibility_requirements = Some(TopologyRequirement {
                    requisite: vec![Topology { segments }],
                    preferred: Vec::new(),
                });
            }),
            Code::ResourceExhausted,
        ),
    ] {
        let what = format!("{request:?}");
        assert_eq!(refused(request).await, code, "{what}");
    }
    // A name that no pool takes.
    let odd = volume(&"ä/".repeat(40), block(Mode::MultiNodeMultiWriter), 8);
    let odd = new_volume(&mut client, odd).await;
    assert!(odd.volume_id.starts_with("fast/csi-"), "{}", odd.volume_id);
    assert!(odd.volume_context.is_empty());
    assert_eq!(
        client.delete_volume(delete("")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    for id in [
        "fast/v1",
        "fast/v1",
        &odd.volume_id,
        UNKNOWN,
        "x",
        "none/v1",
    ] {
        client.delete_volume(delete(id)).await.unwrap();
    }
    assert!(
        client
            .list_volumes(ListVolumesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .entries
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_volume_whoever_asks_at_once() {
    let Some(rig) = Rig::new("one_volume_whoever_asks_at_once") else {
        return;
    };
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let mut client = rig.controller().await;
        calls.spawn(async move { client.create_volume(volume("same", writer(), 16)).await });
    }
    let answers = calls.join_all().await;
    let first = answers[0].as_ref().unwrap().get_ref().clone();
    assert!(
        answers
            .iter()
            .all(|answer| *answer.as_ref().unwrap().get_ref() == first)
    );
    let mut client = rig.controller().await;
    let all = client
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(all.entries.len(), 1);
}
