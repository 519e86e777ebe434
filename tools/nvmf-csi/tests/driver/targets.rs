//! Several targets behind one driver: each call goes to the right one, and one that is down holds up none of the others.

use std::collections::HashMap;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use nvmf_csi::proto::*;
use nvmf_rpc::types::{GetSnapshots, GetVolumes};
use tonic::Code;

use crate::controller::{delete, from, new_snapshot, new_volume, publish, range, writer};
use crate::node::ephemeral;
use crate::rig::{MIB, NODE, Rig, block, volume};

/// A rig with the targets `default` and `east`, which has a larger pool.
fn two(test: &str) -> Option<Rig> {
    let mut rig = Rig::without_driver(test, "", "127.0.0.1:0")?;
    rig.add_target("east");
    rig.start_driver();
    Some(rig)
}

/// A request for a volume on this target.
fn on(target: &str, name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        parameters: parameters(target),
        ..volume(name, block(Mode::SingleNodeWriter), 16)
    }
}

/// One for a volume on any.
fn anywhere(name: &str) -> CreateVolumeRequest {
    volume(name, block(Mode::SingleNodeWriter), 16)
}

fn parameters(target: &str) -> HashMap<String, String> {
    [("target".to_owned(), target.to_owned())].into()
}

fn snapshot_of(volume_id: &str, name: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        source_volume_id: volume_id.into(),
        name: name.into(),
        ..CreateSnapshotRequest::default()
    }
}

fn unpublish(volume_id: &str) -> ControllerUnpublishVolumeRequest {
    ControllerUnpublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: NODE.into(),
        ..Default::default()
    }
}

fn grow(volume_id: &str) -> ControllerExpandVolumeRequest {
    ControllerExpandVolumeRequest {
        volume_id: volume_id.into(),
        capacity_range: range(32 * MIB, 0),
        ..Default::default()
    }
}

/// Names of the volumes of each of the two targets.
async fn held(rig: &Rig) -> [Vec<String>; 2] {
    let names = async |target| {
        let volumes = rig.ask_target(target, &GetVolumes::default()).await;
        volumes.into_iter().map(|volume| volume.name).collect()
    };
    [names("").await, names("east").await]
}

/// A call that must be refused, and what is said then.
macro_rules! refused {
    ($call:expr, $code:ident, $said:expr) => {
        let status = $call.await.unwrap_err();
        assert_eq!(status.code(), Code::$code, "{status}");
        assert!(status.message().contains($said), "{}: {status}", $said);
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_goes_to_the_right_target() {
    let Some(rig) = two("each_call_goes_to_the_right_target") else {
        return;
    };
    let mut client = rig.controller().await;
    for (target, name, id) in [
        ("default", "a", "fast/a"),
        ("default", "b", "fast/b"),
        ("east", "c", "east/fast/c"),
        ("east", "d", "east/fast/d"),
    ] {
        for _ in 0..3 {
            let made = new_volume(&mut client, on(target, name)).await;
            assert_eq!(made.volume_id, id);
        }
    }
    assert_eq!(held(&rig).await, [["a", "b"], ["c", "d"]]);
    // Grants, with the port of the target that has the volume.
    let ports = ["fast/a", "east/fast/c"].map(|id| {
        let request = publish(id, NODE, block(Mode::SingleNodeWriter));
        let mut client = client.clone();
        async move {
            let published = client.controller_publish_volume(request).await.unwrap();
            published.into_inner().publish_context["targetTrPort"].clone()
        }
    });
    let [one, other] = ports;
    assert_ne!(one.await, other.await);
    let volumes = rig.ask_target("east", &GetVolumes::default()).await;
    assert_eq!(volumes[0].hosts, [NODE]);
    client
        .controller_unpublish_volume(unpublish("east/fast/c"))
        .await
        .unwrap();
    let volumes = rig.ask_target("east", &GetVolumes::default()).await;
    assert!(volumes[0].hosts.is_empty());
    assert_eq!(rig.ask(&GetVolumes::default()).await[0].hosts, [NODE]);
    client
        .controller_unpublish_volume(unpublish("fast/a"))
        .await
        .unwrap();
    // Size, and what it is good for.
    client
        .controller_expand_volume(grow("east/fast/c"))
        .await
        .unwrap();
    let get = ControllerGetVolumeRequest {
        volume_id: "east/fast/c".into(),
    };
    let got = client
        .controller_get_volume(get)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.volume.unwrap().capacity_bytes, 32 * MIB);
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: "east/fast/c".into(),
        volume_capabilities: vec![writer()],
        ..Default::default()
    };
    client.validate_volume_capabilities(validate).await.unwrap();
    // Snapshots and clones stay beside their source.
    let taken = new_snapshot(&mut client, snapshot_of("east/fast/c", "s")).await;
    assert_eq!(
        (taken.snapshot_id.as_str(), taken.source_volume_id.as_str()),
        ("east/fast/s", "east/fast/c")
    );
    assert_eq!(rig.ask(&GetSnapshots::default()).await, []);
    new_snapshot(&mut client, snapshot_of("fast/a", "s")).await;
    let sources = [
        Type::Snapshot(SnapshotSource {
            snapshot_id: "east/fast/s".into(),
        }),
        Type::Volume(VolumeSource {
            volume_id: "east/fast/c".into(),
        }),
    ];
    for (source, name) in sources.into_iter().zip(["e", "f"]) {
        let clone = |target: Option<&str>| CreateVolumeRequest {
            volume_content_source: from(source.clone()),
            parameters: target.map(parameters).unwrap_or_default(),
            ..anywhere(name)
        };
        refused!(
            client.create_volume(clone(Some("default"))),
            InvalidArgument,
            "in target east"
        );
        for target in [None, Some("east")] {
            let made = new_volume(&mut client, clone(target)).await;
            assert_eq!(made.volume_id, format!("east/fast/{name}"));
            assert_eq!(made.content_source.unwrap().r#type, Some(source.clone()));
        }
    }
    assert_eq!(held(&rig).await[1], ["c", "d", "e", "f"]);
    lists(&rig).await;
    groups(&rig).await;

    let drop_snapshot = |id: &str| DeleteSnapshotRequest {
        snapshot_id: id.into(),
        ..Default::default()
    };
    client
        .delete_snapshot(drop_snapshot("east/fast/s"))
        .await
        .unwrap();
    assert_eq!(rig.ask_target("east", &GetSnapshots::default()).await, []);
    assert_eq!(rig.ask(&GetSnapshots::default()).await.len(), 1);
    client
        .delete_snapshot(drop_snapshot("fast/s"))
        .await
        .unwrap();
    for id in [
        "fast/a",
        "fast/b",
        "fast/c",
        "east/fast/a",
        "default/fast/c",
    ] {
        client.delete_volume(delete(id)).await.unwrap();
    }
    assert_eq!(held(&rig).await, [&[][..], &["c", "d", "e", "f"]]);
    for name in ["c", "d", "e", "f"] {
        client
            .delete_volume(delete(&format!("east/fast/{name}")))
            .await
            .unwrap();
    }
    assert_eq!(held(&rig).await, [[""; 0], [""; 0]]);

    // What is on a target that the driver does not know may well be there.
    refused!(
        client.create_volume(on("west", "v")),
        InvalidArgument,
        "default, east"
    );
    refused!(
        client.delete_volume(delete("west/fast/v")),
        Unavailable,
        "west"
    );
    refused!(
        client.delete_snapshot(drop_snapshot("west/fast/s")),
        Unavailable,
        "west"
    );
    refused!(
        client.controller_unpublish_volume(unpublish("west/fast/v")),
        Unavailable,
        "west"
    );
    refused!(
        client.controller_expand_volume(grow("west/fast/v")),
        Unavailable,
        "west"
    );
}

/// Lists of all targets, whole and in pieces.
async fn lists(rig: &Rig) {
    let mut client = rig.controller().await;
    let mut volumes = Vec::new();
    let mut token = String::new();
    loop {
        let piece = ListVolumesRequest {
            max_entries: 1,
            starting_token: token,
        };
        let piece = client.list_volumes(piece).await.unwrap().into_inner();
        assert_eq!(piece.entries.len(), 1);
        volumes.push(piece.entries[0].volume.clone().unwrap().volume_id);
        token = piece.next_token;
        // What comes meanwhile changes nothing of what was seen.
        let early = on("default", "0");
        match volumes.len() {
            2 => drop(new_volume(&mut client, early).await),
            3 => drop(client.delete_volume(delete("fast/0")).await.unwrap()),
            _ => {}
        }
        if token.is_empty() {
            break;
        }
    }
    let all = [
        "fast/a",
        "fast/b",
        "east/fast/c",
        "east/fast/d",
        "east/fast/e",
        "east/fast/f",
    ];
    assert_eq!(volumes, all);
    let of = |snapshot: &str, source: &str| ListSnapshotsRequest {
        snapshot_id: snapshot.into(),
        source_volume_id: source.into(),
        ..Default::default()
    };
    for (request, ids) in [
        (of("", ""), &["fast/s", "east/fast/s"][..]),
        (of("fast/s", ""), &["fast/s"]),
        (of("east/fast/s", ""), &["east/fast/s"]),
        (of("", "east/fast/c"), &["east/fast/s"]),
        (of("", "fast/c"), &[]),
        (of("fast/s", "east/fast/c"), &[]),
        (of("x", ""), &[]),
    ] {
        let list = client.list_snapshots(request).await.unwrap().into_inner();
        let found = list
            .entries
            .into_iter()
            .map(|e| e.snapshot.unwrap().snapshot_id);
        assert_eq!(found.collect::<Vec<_>>(), ids);
    }
}

/// A group is of one target, whose writes can be held at one instant.
async fn groups(rig: &Rig) {
    let mut client = rig.groups().await;
    let group = |ids: &[&str]| CreateVolumeGroupSnapshotRequest {
        name: "g".into(),
        source_volume_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..Default::default()
    };
    refused!(
        client.create_volume_group_snapshot(group(&["east/fast/c", "fast/a"])),
        FailedPrecondition,
        "fast/a cannot be taken at one instant"
    );
    let before = rig.ask_target("east", &GetSnapshots::default()).await.len();
    let made = client
        .create_volume_group_snapshot(group(&["east/fast/c", "east/fast/d"]))
        .await;
    let made = made.unwrap().into_inner().group_snapshot.unwrap();
    assert_eq!(made.group_snapshot_id, "east/fast/g");
    let members: Vec<_> = made.snapshots.into_iter().map(|s| s.snapshot_id).collect();
    assert!(
        members.iter().all(|id| id.starts_with("east/fast/")),
        "{members:?}"
    );
    let get = GetVolumeGroupSnapshotRequest {
        group_snapshot_id: "east/fast/g".into(),
        snapshot_ids: members.clone(),
        ..Default::default()
    };
    client.get_volume_group_snapshot(get).await.unwrap();
    let remove = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: "east/fast/g".into(),
        snapshot_ids: members,
        ..Default::default()
    };
    client.delete_volume_group_snapshot(remove).await.unwrap();
    let after = rig.ask_target("east", &GetSnapshots::default()).await.len();
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_volume_goes_where_there_is_most_room() {
    let Some(rig) = two("a_new_volume_goes_where_there_is_most_room") else {
        return;
    };
    let mut client = rig.controller().await;
    let capacity = async |target: &str| {
        let parameters = match target {
            "" => HashMap::new(),
            target => parameters(target),
        };
        let request = GetCapacityRequest {
            parameters,
            ..Default::default()
        };
        let capacity = rig.controller().await.get_capacity(request).await;
        let capacity = capacity.unwrap().into_inner();
        (
            capacity.available_capacity,
            capacity.maximum_volume_size.unwrap(),
        )
    };
    let (small, large) = (capacity("default").await, capacity("east").await);
    assert!(
        small.0 > 0 && small.0 == small.1 && large.0 == large.1,
        "{small:?} {large:?}"
    );
    assert!(small.0 < large.0);
    assert_eq!(capacity("").await, (small.0 + large.0, large.0));

    let made = new_volume(&mut client, anywhere("v")).await;
    assert_eq!(made.volume_id, "east/fast/v");
    // The other one would be chosen now, but not for what is there already.
    rig.take_room("east", 3 << 10);
    assert_eq!(new_volume(&mut client, anywhere("v")).await, made);
    let other = new_volume(&mut client, anywhere("w")).await;
    assert_eq!(other.volume_id, "fast/w");
    refused!(
        client.create_volume(on("default", "v")),
        AlreadyExists,
        "east/fast/v of another target"
    );
    refused!(
        client.create_volume(on("east", "w")),
        AlreadyExists,
        "volume fast/w"
    );
    let mut larger = anywhere("v");
    larger.capacity_range = range(64 * MIB, 0);
    refused!(
        client.create_volume(larger),
        AlreadyExists,
        "capacity_range"
    );
    assert_eq!(held(&rig).await, [["w"], ["v"]]);
    // One volume, whoever asks at once, while the choice changes.
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..10 {
        let mut client = rig.controller().await;
        rig.take_room("east", if index % 2 == 0 { 0 } else { 3 << 10 });
        calls.spawn(async move { client.create_volume(anywhere("same")).await });
    }
    let answers = calls.join_all().await;
    let first = answers[0].as_ref().unwrap().get_ref();
    assert!(
        answers
            .iter()
            .all(|answer| answer.as_ref().unwrap().get_ref() == first)
    );
    let all = held(&rig).await.concat();
    assert_eq!(
        all.iter().filter(|name| *name == "same").count(),
        1,
        "{all:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_volume_goes_where_it_can_be_reached_from() {
    let Some(mut rig) = two("a_new_volume_goes_where_it_can_be_reached_from") else {
        return;
    };
    let words = ["--topology", "east:example.org/zone=b"];
    rig.site.arguments.extend(words.map(str::to_owned));
    rig.start_driver();
    let mut client = rig.controller().await;
    let zone = |name: &str| Topology {
        segments: [("example.org/zone".to_owned(), name.to_owned())].into(),
    };
    let within = |name: &str, requisite: &[&str], preferred: &[&str]| CreateVolumeRequest {
        accessibility_requirements: Some(TopologyRequirement {
            requisite: requisite.iter().map(|name| zone(name)).collect(),
            preferred: preferred.iter().map(|name| zone(name)).collect(),
        }),
        ..anywhere(name)
    };
    for (request, id, at) in [
        (within("a", &["a"], &["a"]), "fast/a", "a"),
        (within("b", &["b"], &["b"]), "east/fast/b", "b"),
        // The larger pool is not where it is wanted first.
        (within("c", &["a", "b"], &["a", "b"]), "fast/c", "a"),
        (within("d", &["a", "b"], &["b", "a"]), "east/fast/d", "b"),
        (within("e", &["a", "b"], &[]), "east/fast/e", "b"),
        (within("f", &[], &["a"]), "fast/f", "a"),
    ] {
        let made = new_volume(&mut client, request).await;
        assert_eq!(
            (made.volume_id.as_str(), &made.accessible_topology[..]),
            (id, &[zone(at)][..])
        );
    }
    refused!(
        client.create_volume(within("g", &["c"], &[])),
        ResourceExhausted,
        "zone"
    );
    let pinned = CreateVolumeRequest {
        parameters: parameters("default"),
        ..within("g", &["b"], &[])
    };
    refused!(client.create_volume(pinned), ResourceExhausted, "zone");
    refused!(
        client.create_volume(within("b", &["a"], &[])),
        AlreadyExists,
        "accessibility"
    );
    let there = |name: &str| GetCapacityRequest {
        accessible_topology: Some(zone(name)),
        ..Default::default()
    };
    let mut available = Vec::new();
    for name in ["a", "b", "c"] {
        let capacity = client.get_capacity(there(name)).await.unwrap().into_inner();
        available.push(capacity.available_capacity);
    }
    assert!(
        0 < available[0] && available[0] < available[1],
        "{available:?}"
    );
    assert_eq!(available[2], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_holds_up_none_of_the_others() {
    let Some(mut rig) = two("a_target_that_is_down_holds_up_none_of_the_others") else {
        return;
    };
    let mut client = rig.controller().await;
    for request in [on("default", "a"), on("east", "b"), anywhere("c")] {
        client.create_volume(request).await.unwrap();
    }
    assert_eq!(held(&rig).await, [&["a"][..], &["b", "c"]]);
    rig.kill_target("east");
    let probe = rig.identity().await.probe(ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(true));
    // All that the other one can do.
    client.create_volume(on("default", "d")).await.unwrap();
    let one = block(Mode::SingleNodeWriter);
    client
        .controller_publish_volume(publish("fast/d", NODE, one.clone()))
        .await
        .unwrap();
    client
        .controller_expand_volume(grow("fast/d"))
        .await
        .unwrap();
    new_snapshot(&mut client, snapshot_of("fast/d", "s")).await;
    let clone = CreateVolumeRequest {
        volume_content_source: from(Type::Snapshot(SnapshotSource {
            snapshot_id: "fast/s".into(),
        })),
        ..volume("clone", one.clone(), 32)
    };
    client.create_volume(clone).await.unwrap();
    let list = ListSnapshotsRequest {
        source_volume_id: "fast/d".into(),
        ..Default::default()
    };
    let list = client.list_snapshots(list).await.unwrap().into_inner();
    assert_eq!(list.entries.len(), 1);
    client
        .controller_unpublish_volume(unpublish("fast/d"))
        .await
        .unwrap();
    client.delete_volume(delete("fast/clone")).await.unwrap();
    client.delete_volume(delete("fast/d")).await.unwrap();
    // What takes the one that is down, or all: it is named. A volume without a place may be there already.
    let of_east = "target east: ";
    refused!(
        client.delete_volume(delete("east/fast/b")),
        Unavailable,
        of_east
    );
    refused!(
        client.controller_publish_volume(publish("east/fast/b", NODE, one)),
        Unavailable,
        of_east
    );
    refused!(client.create_volume(on("east", "e")), Unavailable, of_east);
    refused!(client.create_volume(anywhere("c")), Unavailable, of_east);
    refused!(client.create_volume(anywhere("e")), Unavailable, of_east);
    refused!(
        client.list_volumes(ListVolumesRequest::default()),
        Unavailable,
        of_east
    );
    refused!(
        client.list_snapshots(ListSnapshotsRequest::default()),
        Unavailable,
        of_east
    );
    refused!(
        client.get_capacity(GetCapacityRequest::default()),
        Unavailable,
        of_east
    );
    // What is found needs nobody else's word.
    let found = new_volume(&mut client, anywhere("a")).await;
    assert_eq!(found.volume_id, "fast/a");
    rig.kill_target("");
    let probe = rig.identity().await.probe(ProbeRequest {}).await.unwrap();
    assert_eq!(probe.into_inner().ready, Some(false));
    rig.restart_target("");
    rig.restart_target("east");
    let found = new_volume(&mut client, anywhere("c")).await;
    assert_eq!(found.volume_id, "east/fast/c");
    let list = client
        .list_volumes(ListVolumesRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().entries.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_volume_is_found_on_its_target() {
    let Some(mut rig) = two("an_ephemeral_volume_is_found_on_its_target") else {
        return;
    };
    let mut node = rig.node().await;
    let on = |pod: usize, target: &str| {
        let mut request = ephemeral::publish(&rig, pod);
        request.volume_context.extend(parameters(target));
        request
    };
    for (pod, target) in [(1, "default"), (2, "east"), (3, "default")] {
        node.node_publish_volume(on(pod, target)).await.unwrap();
    }
    let anywhere = ephemeral::publish(&rig, 4);
    node.node_publish_volume(anywhere.clone()).await.unwrap();
    let counts = held(&rig).await.map(|names| names.len());
    assert_eq!(counts, [2, 2]);
    std::fs::write(rig.path("pod2/file"), "x").unwrap();
    // Found where it is, however much room there is elsewhere now.
    rig.take_room("east", 3 << 10);
    node.node_publish_volume(anywhere).await.unwrap();
    for pod in [2, 3] {
        node.node_unpublish_volume(ephemeral::unpublish(&rig, pod))
            .await
            .unwrap();
    }
    let counts = held(&rig).await.map(|names| names.len());
    assert_eq!(counts, [1, 1]);
    let (first, last) = (ephemeral::unpublish(&rig, 1), ephemeral::unpublish(&rig, 4));
    node.node_unpublish_volume(last).await.unwrap();
    rig.kill_target("east");
    node.node_unpublish_volume(first).await.unwrap();
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
    assert_eq!(rig.left(), Vec::<String>::new());
    // Nobody knows of one that might be there.
    refused!(
        node.node_unpublish_volume(ephemeral::unpublish(&rig, 9)),
        Unavailable,
        "target east: "
    );
}
