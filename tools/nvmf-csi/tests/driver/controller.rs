//! Volumes, snapshots, groups and grants.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use nvmf_csi::proto::*;
use tonic::Code;

use crate::rig::{MIB, NODE, OTHER_NODE, Rig, block, mount_as, volume};

const UNKNOWN: &str = "fast/no-such";

fn writer() -> VolumeCapability {
    mount_as("", Mode::SingleNodeWriter)
}

fn from(source: Type) -> Option<VolumeContentSource> {
    Some(VolumeContentSource {
        r#type: Some(source),
    })
}

fn publish(
    volume_id: &str,
    node_id: &str,
    capability: VolumeCapability,
) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        volume_capability: Some(capability),
        ..ControllerPublishVolumeRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes() {
    let Some(rig) = Rig::new("volumes") else {
        return;
    };
    let mut client = rig.controller().await;
    let create = volume("v1", writer(), 64);
    let made = client
        .create_volume(create.clone())
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
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
        let again = client
            .create_volume(create.clone())
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap();
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
    let range = |required_bytes, limit_bytes| {
        Some(CapacityRange {
            required_bytes,
            limit_bytes,
        })
    };
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
            with(&|r| r.parameters = [("pool".to_owned(), "none".to_owned())].into()),
            Code::InvalidArgument,
        ),
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
    let odd = client
        .create_volume(odd)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
    assert!(odd.volume_id.starts_with("fast/csi-"), "{}", odd.volume_id);
    assert!(odd.volume_context.is_empty());
    // Lists, whole and in pieces.
    let list = |max_entries, token: &str| ListVolumesRequest {
        max_entries,
        starting_token: token.into(),
    };
    let all = client.list_volumes(list(0, "")).await.unwrap().into_inner();
    assert_eq!((all.entries.len(), all.next_token.as_str()), (2, ""));
    let first = client.list_volumes(list(1, "")).await.unwrap().into_inner();
    let second = client
        .list_volumes(list(1, &first.next_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        [&first.entries[0], &second.entries[0]],
        [&all.entries[0], &all.entries[1]]
    );
    assert_eq!(
        client
            .list_volumes(list(1, "bad"))
            .await
            .unwrap_err()
            .code(),
        Code::Aborted
    );
    assert_eq!(
        client.list_volumes(list(-1, "")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    // One, and what it is good for.
    let get = |volume_id: &str| ControllerGetVolumeRequest {
        volume_id: volume_id.into(),
    };
    let got = client
        .controller_get_volume(get("fast/v1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.volume, Some(made));
    assert!(!got.status.unwrap().volume_condition.unwrap().abnormal);
    for (id, code) in [
        ("", Code::InvalidArgument),
        (UNKNOWN, Code::NotFound),
        ("x", Code::NotFound),
    ] {
        assert_eq!(
            client
                .controller_get_volume(get(id))
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    let validate =
        |id: &str, capabilities: Vec<VolumeCapability>| ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: capabilities,
            ..ValidateVolumeCapabilitiesRequest::default()
        };
    let good = client
        .validate_volume_capabilities(validate("fast/v1", vec![writer()]))
        .await;
    assert!(good.unwrap().into_inner().confirmed.is_some());
    for bad in [
        mount_as("xfs", Mode::SingleNodeWriter),
        mount_as("", Mode::MultiNodeMultiWriter),
    ] {
        let answer = client
            .validate_volume_capabilities(validate("fast/v1", vec![bad]))
            .await
            .unwrap()
            .into_inner();
        assert!(answer.confirmed.is_none() && !answer.message.is_empty());
    }
    for (request, code) in [
        (validate("", vec![writer()]), Code::InvalidArgument),
        (validate("fast/v1", vec![]), Code::InvalidArgument),
        (validate(UNKNOWN, vec![writer()]), Code::NotFound),
    ] {
        assert_eq!(
            client
                .validate_volume_capabilities(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    // Growing.
    let expand = |volume_id: &str, required_bytes, limit_bytes| ControllerExpandVolumeRequest {
        volume_id: volume_id.into(),
        capacity_range: range(required_bytes, limit_bytes),
        ..ControllerExpandVolumeRequest::default()
    };
    for _ in 0..2 {
        let grown = client
            .controller_expand_volume(expand("fast/v1", 96 * MIB, 0))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (grown.capacity_bytes, grown.node_expansion_required),
            (96 * MIB, true)
        );
    }
    let less = client
        .controller_expand_volume(expand("fast/v1", MIB, 0))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(less.capacity_bytes, 96 * MIB, "volumes do not shrink");
    for (request, code) in [
        (expand("", MIB, 0), Code::InvalidArgument),
        (expand(UNKNOWN, MIB, 0), Code::NotFound),
        (expand("fast/v1", 0, MIB), Code::OutOfRange),
        (
            ControllerExpandVolumeRequest {
                volume_id: "fast/v1".into(),
                ..ControllerExpandVolumeRequest::default()
            },
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(
            client
                .controller_expand_volume(request)
                .await
                .unwrap_err()
                .code(),
            code
        );
    }
    let capacity = client
        .get_capacity(GetCapacityRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(capacity.available_capacity > 0 && capacity.maximum_volume_size.is_some());
    let modify = ControllerModifyVolumeRequest {
        volume_id: "fast/v1".into(),
        ..Default::default()
    };
    assert_eq!(
        client
            .controller_modify_volume(modify)
            .await
            .unwrap_err()
            .code(),
        Code::Unimplemented
    );
    let delete = |volume_id: &str| DeleteVolumeRequest {
        volume_id: volume_id.into(),
        ..DeleteVolumeRequest::default()
    };
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
            .list_volumes(list(0, ""))
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

#[tokio::test(flavor = "multi_thread")]
async fn grants() {
    let Some(rig) = Rig::new("grants") else {
        return;
    };
    let mut client = rig.controller().await;
    client
        .create_volume(volume("v", writer(), 16))
        .await
        .unwrap();
    client
        .create_volume(volume("shared", block(Mode::MultiNodeMultiWriter), 16))
        .await
        .unwrap();
    for _ in 0..10 {
        let context = client
            .controller_publish_volume(publish("fast/v", NODE, writer()))
            .await;
        let context = context.unwrap().into_inner().publish_context;
        assert_eq!(context["nqn"], "nqn.2024-01.org.example:fast:v");
        assert_eq!(
            (
                context["targetTrType"].as_str(),
                context["targetTrAddr"].as_str()
            ),
            ("tcp", "127.0.0.1")
        );
        assert!(
            context["targetTrPort"].parse::<u16>().unwrap() > 0
                && context["deviceUUID"].len() == 36
        );
    }
    let all = client
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        all.entries[1].status.as_ref().unwrap().published_node_ids,
        [NODE]
    );
    for (request, code) in [
        (publish("", NODE, writer()), Code::InvalidArgument),
        (publish("fast/v", "", writer()), Code::InvalidArgument),
        (publish("fast/v", "some-node", writer()), Code::NotFound),
        (publish(UNKNOWN, NODE, writer()), Code::NotFound),
        (
            publish("fast/v", OTHER_NODE, writer()),
            Code::FailedPrecondition,
        ),
        (
            ControllerPublishVolumeRequest {
                volume_capability: None,
                ..publish("fast/v", NODE, writer())
            },
            Code::InvalidArgument,
        ),
        (
            ControllerPublishVolumeRequest {
                readonly: true,
                ..publish("fast/shared", NODE, block(Mode::SingleNodeWriter))
            },
            Code::InvalidArgument,
        ),
    ] {
        let what = format!("{request:?}");
        assert_eq!(
            client
                .controller_publish_volume(request)
                .await
                .unwrap_err()
                .code(),
            code,
            "{what}"
        );
    }
    let both = || block(Mode::MultiNodeMultiWriter);
    client
        .controller_publish_volume(publish("fast/shared", NODE, both()))
        .await
        .unwrap();
    client
        .controller_publish_volume(publish("fast/shared", OTHER_NODE, both()))
        .await
        .unwrap();
    let unpublish = |volume_id: &str, node_id: &str| ControllerUnpublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        ..ControllerUnpublishVolumeRequest::default()
    };
    for _ in 0..10 {
        client
            .controller_unpublish_volume(unpublish("fast/v", NODE))
            .await
            .unwrap();
    }
    client
        .controller_unpublish_volume(unpublish("fast/shared", ""))
        .await
        .unwrap();
    client
        .controller_unpublish_volume(unpublish(UNKNOWN, NODE))
        .await
        .unwrap();
    assert_eq!(
        client
            .controller_unpublish_volume(unpublish("", NODE))
            .await
            .unwrap_err()
            .code(),
        Code::InvalidArgument
    );
    client
        .controller_publish_volume(publish("fast/v", OTHER_NODE, writer()))
        .await
        .unwrap();
    let all = client
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(
        all.entries[0]
            .status
            .as_ref()
            .unwrap()
            .published_node_ids
            .is_empty()
    );
}

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
    let taken = client
        .create_snapshot(create("s", "fast/a"))
        .await
        .unwrap()
        .into_inner()
        .snapshot
        .unwrap();
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
        let again = client
            .create_snapshot(create("s", "fast/a"))
            .await
            .unwrap()
            .into_inner()
            .snapshot
            .unwrap();
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
    let cloned = client
        .create_volume(clone.clone())
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
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
    let larger = client
        .create_volume(larger)
        .await
        .unwrap()
        .into_inner()
        .volume
        .unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn who_it_is_and_what_it_can() {
    let Some(rig) = Rig::new("who_it_is_and_what_it_can") else {
        return;
    };
    let mut identity = rig.identity().await;
    let info = identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.name.as_str(), info.vendor_version.is_empty()),
        ("nvmf.csi.storage", false)
    );
    assert_eq!(
        identity
            .probe(ProbeRequest {})
            .await
            .unwrap()
            .into_inner()
            .ready,
        Some(true)
    );
    let capabilities = identity
        .get_plugin_capabilities(GetPluginCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(capabilities.capabilities.len(), 4);
    let mut controller = rig.controller().await;
    let can = controller
        .controller_get_capabilities(ControllerGetCapabilitiesRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!can.capabilities.is_empty());
    let mut node = rig.node().await;
    let info = node
        .node_get_info(NodeGetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.node_id, NODE);
    assert_eq!(
        info.accessible_topology.unwrap().segments["example.org/zone"],
        "a"
    );
}
