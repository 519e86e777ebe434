//! ListVolumes, ControllerGetVolume, ValidateVolumeCapabilities and GetCapacity.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use super::{UNKNOWN, delete, new_volume, publish, writer};
use crate::rig::{NODE, OTHER_NODE, Rig, block, mount_as, volume};

fn list(max_entries: i32, token: &str) -> ListVolumesRequest {
    ListVolumesRequest {
        max_entries,
        starting_token: token.into(),
    }
}

/// Volumes with the nodes that they are published to, whole and in pieces, while others come and go.
#[tokio::test(flavor = "multi_thread")]
async fn lists_with_published_nodes() {
    let Some(rig) = Rig::new("lists_with_published_nodes") else {
        return;
    };
    let mut client = rig.controller().await;
    let shared = || block(Mode::MultiNodeMultiWriter);
    for name in ["a", "b", "c", "d", "e"] {
        client
            .create_volume(volume(name, shared(), 16))
            .await
            .unwrap();
    }
    for (id, node) in [
        ("fast/b", NODE),
        ("fast/c", NODE),
        ("fast/c", OTHER_NODE),
        ("fast/e", OTHER_NODE),
    ] {
        client
            .controller_publish_volume(publish(id, node, shared()))
            .await
            .unwrap();
    }
    let all = client.list_volumes(list(0, "")).await.unwrap().into_inner();
    assert_eq!((all.entries.len(), all.next_token.as_str()), (5, ""));
    let nodes: Vec<_> = all
        .entries
        .iter()
        .map(|entry| {
            let status = entry.status.as_ref().unwrap();
            assert!(!status.volume_condition.as_ref().unwrap().abnormal);
            status.published_node_ids.clone()
        })
        .collect();
    let (one, other) = (NODE.to_owned(), OTHER_NODE.to_owned());
    assert_eq!(
        nodes,
        [
            vec![],
            vec![one.clone()],
            vec![one, other.clone()],
            vec![],
            vec![other]
        ]
    );
    let first = client.list_volumes(list(2, "")).await.unwrap().into_inner();
    assert_eq!(first.entries[..], all.entries[..2]);
    // What the token names is gone when it is used.
    let gone = ControllerUnpublishVolumeRequest {
        volume_id: "fast/b".into(),
        ..Default::default()
    };
    client.controller_unpublish_volume(gone).await.unwrap();
    client.delete_volume(delete("fast/b")).await.unwrap();
    let second = client
        .list_volumes(list(2, &first.next_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(second.entries[..], all.entries[2..4]);
    let third = client
        .list_volumes(list(2, &second.next_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(third.entries[..], all.entries[4..]);
    assert_eq!(third.next_token, "");
    for (request, code) in [
        (list(1, "bad"), Code::Aborted),
        (list(-1, ""), Code::InvalidArgument),
    ] {
        assert_eq!(client.list_volumes(request).await.unwrap_err().code(), code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_volume_and_what_it_is_good_for() {
    let Some(rig) = Rig::new("one_volume_and_what_it_is_good_for") else {
        return;
    };
    let mut client = rig.controller().await;
    let made = new_volume(&mut client, volume("v1", writer(), 64)).await;
    client
        .controller_publish_volume(publish("fast/v1", NODE, writer()))
        .await
        .unwrap();
    let get = |volume_id: &str| ControllerGetVolumeRequest {
        volume_id: volume_id.into(),
    };
    let got = client
        .controller_get_volume(get("fast/v1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(got.volume.as_ref(), Some(&made));
    let status = got.status.unwrap();
    assert_eq!(status.published_node_ids, [NODE]);
    assert!(!status.volume_condition.unwrap().abnormal);
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
    let good = ValidateVolumeCapabilitiesRequest {
        volume_context: made.volume_context.clone(),
        ..validate("fast/v1", vec![writer()])
    };
    let answer = client.validate_volume_capabilities(good.clone()).await;
    let confirmed = answer.unwrap().into_inner().confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, good.volume_capabilities);
    assert_eq!(confirmed.volume_context, good.volume_context);
    for bad in [
        validate("fast/v1", vec![mount_as("xfs", Mode::SingleNodeWriter)]),
        validate("fast/v1", vec![mount_as("", Mode::MultiNodeMultiWriter)]),
        ValidateVolumeCapabilitiesRequest {
            volume_context: [("fsType".to_owned(), "xfs".to_owned())].into(),
            ..good
        },
    ] {
        let answer = client
            .validate_volume_capabilities(bad)
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
}

#[tokio::test(flavor = "multi_thread")]
async fn capacity_by_topology_and_parameters() {
    let Some(rig) = Rig::new("capacity_by_topology_and_parameters") else {
        return;
    };
    let mut client = rig.controller().await;
    let at = |zone: &str| {
        let segments = [("example.org/zone".to_owned(), zone.to_owned())].into();
        Some(Topology { segments })
    };
    let of = |pool: &str| [("pool".to_owned(), pool.to_owned())].into();
    let here = GetCapacityRequest {
        accessible_topology: at("a"),
        parameters: of("fast"),
        volume_capabilities: vec![writer()],
    };
    let capacity = client
        .get_capacity(here.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(capacity.available_capacity > 0);
    assert_eq!(
        capacity.maximum_volume_size,
        Some(capacity.available_capacity)
    );
    for elsewhere in [
        GetCapacityRequest {
            accessible_topology: at("b"),
            ..here.clone()
        },
        GetCapacityRequest {
            parameters: of("none"),
            ..here.clone()
        },
    ] {
        let capacity = client.get_capacity(elsewhere).await.unwrap().into_inner();
        assert_eq!(capacity.available_capacity, 0);
    }
    let wrong = GetCapacityRequest {
        volume_capabilities: vec![mount_as("ntfs", Mode::SingleNodeWriter)],
        ..here
    };
    assert_eq!(
        client.get_capacity(wrong).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}
