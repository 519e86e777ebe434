//! A target on another machine: its management API over TCP, with certificates on both sides.

use std::collections::HashMap;
use std::path::Path;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use nvmf_rpc::types::GetVolumes;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tonic::Code;

use crate::controller::delete;
use crate::node::ephemeral;
use crate::rig::{Rig, Site, block, volume};

/// Writes an authority's certificate, and one for each name that it signed, with its key.
fn certificates<const N: usize>(folder: &Path, names: [(&str, ExtendedKeyUsagePurpose); N]) {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("ca.pem", issuer.pem());
    for (name, purpose) in names {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        write(
            &format!("{name}.pem"),
            params.signed_by(&key, &issuer).unwrap().pem(),
        );
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

/// Lines of a target's configuration that serve its API over TLS.
fn served(folder: &Path, more: &str) -> String {
    let own = |name: &str| folder.join(name).display().to_string();
    format!(
        "[api.tls]\nlisten = \"127.0.0.1:0\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient-ca = \"{}\"\n{more}",
        own("localhost.pem"),
        own("localhost.key"),
        own("ca.pem")
    )
}

/// The port on which it is served.
fn port(rig: &Rig) -> String {
    let log = std::fs::read_to_string(rig.path("target.log")).unwrap();
    let address = log.split("management API on tls://").nth(1).unwrap();
    let address = address.split_whitespace().next().unwrap();
    address.rsplit(':').next().unwrap().to_owned()
}

/// A driver's arguments, to reach it with this certificate.
fn words(folder: &Path, port: &str, certificate: &str) -> Vec<String> {
    let own = |name: String| folder.join(name).display().to_string();
    vec![
        format!("--rpc=tls://localhost:{port}"),
        format!("--tls-ca={}", own("ca.pem".into())),
        format!("--tls-cert={}", own(format!("{certificate}.pem"))),
        format!("--tls-key={}", own(format!("{certificate}.key"))),
    ]
}

/// The secrets of a call that is to be made with this certificate.
fn secrets(folder: &Path, certificate: &str) -> HashMap<String, String> {
    let parts = [
        ("ca.crt", "ca.pem".to_owned()),
        ("tls.crt", format!("{certificate}.pem")),
        ("tls.key", format!("{certificate}.key")),
    ];
    let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
    parts.map(|(key, name)| (key.to_owned(), read(name))).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn drivers_reach_the_targets_api_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let names = [
        ("localhost", ExtendedKeyUsagePurpose::ServerAuth),
        ("node", ExtendedKeyUsagePurpose::ClientAuth),
    ];
    certificates(folder.path(), names);
    let lines = served(folder.path(), "");
    let test = "drivers_reach_the_targets_api_over_tls";
    let Some(rig) = Rig::with_api(test, "", "127.0.0.1:0", &lines) else {
        return;
    };
    let port = port(&rig);
    let words = |certificate: &str| words(folder.path(), &port, certificate);
    let controller = Site {
        name: "-c",
        mode: "controller",
        arguments: words("node"),
        ..Site::all()
    };
    let controller = rig.start(&controller);
    let mut client = controller.controller().await;
    let request = volume("v", block(Mode::SingleNodeWriter), 16);
    client.create_volume(request.clone()).await.unwrap();
    client.create_volume(request.clone()).await.unwrap();
    assert_eq!(rig.ask(&GetVolumes::default()).await.len(), 1);
    client.delete_volume(delete("fast/v")).await.unwrap();
    // A node that makes volumes for its own pods, on a target with a name.
    let mut named = words("node");
    named[0] = format!("--rpc=east=tls://localhost:{port}");
    let node = Site {
        mode: "node",
        arguments: named,
        ..Site::all()
    };
    let node = rig.start(&node);
    let mut pods = node.node().await;
    pods.node_publish_volume(ephemeral::publish(&rig, 1))
        .await
        .unwrap();
    std::fs::write(rig.path("pod1/file"), "x").unwrap();
    pods.node_unpublish_volume(ephemeral::unpublish(&rig, 1))
        .await
        .unwrap();
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
    // With a certificate that is no client's, the driver is not let in, says so, and nothing is made.
    let stranger = Site {
        name: "-s",
        mode: "controller",
        arguments: words("localhost"),
        ..Site::all()
    };
    let stranger = rig.start(&stranger);
    let refused = stranger.controller().await.create_volume(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
}

/// The driver may only look; who may change things says so with each call.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_made_with_the_certificate_that_it_brings() {
    let (folder, foreign) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    certificates(
        folder.path(),
        [
            ("localhost", ExtendedKeyUsagePurpose::ServerAuth),
            ("driver", client.clone()),
            ("tenant", client.clone()),
            ("unknown", client.clone()),
        ],
    );
    // Of another authority.
    certificates(foreign.path(), [("tenant", client)]);
    let rights = "clients = [\"tenant\"]\nread-only-clients = [\"driver\"]\n";
    let test = "a_call_is_made_with_the_certificate_that_it_brings";
    let Some(rig) = Rig::with_api(test, "", "127.0.0.1:0", &served(folder.path(), rights)) else {
        return;
    };
    let site = Site {
        name: "-c",
        mode: "controller",
        arguments: words(folder.path(), &port(&rig), "driver"),
        ..Site::all()
    };
    let driver = rig.start(&site);
    let mut controller = driver.controller().await;
    let create = |secrets| CreateVolumeRequest {
        secrets,
        ..volume("v", block(Mode::SingleNodeWriter), 16)
    };
    let none = HashMap::new;
    let tenant = || secrets(folder.path(), "tenant");
    let mut wrong_ca = secrets(foreign.path(), "tenant");
    wrong_ca.insert("ca.crt".into(), tenant()["ca.crt"].clone());
    let mut no_key = tenant();
    no_key.insert("tls.key".into(), "-----BEGIN PRIVATE KEY-----\nx".into());
    let mut with_password = tenant();
    with_password.insert("password".into(), "x".into());
    for (secrets, expected, said) in [
        (none(), Code::PermissionDenied, "may only read"),
        (
            secrets(folder.path(), "unknown"),
            Code::PermissionDenied,
            "not of a client",
        ),
        (
            wrong_ca,
            Code::Unavailable,
            "valid certificate of an authority",
        ),
        (
            secrets(foreign.path(), "tenant"),
            Code::Unavailable,
            "valid certificate of an authority",
        ),
        (no_key, Code::InvalidArgument, "tls.key"),
        (with_password, Code::InvalidArgument, "password"),
    ] {
        let refused = controller.create_volume(create(secrets)).await.unwrap_err();
        assert_eq!(refused.code(), expected, "{refused}");
        assert!(refused.message().contains(said), "{said}: {refused}");
    }
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);

    controller.create_volume(create(tenant())).await.unwrap();
    controller.create_volume(create(tenant())).await.unwrap();
    let publish = |secrets| ControllerPublishVolumeRequest {
        volume_id: "fast/v".into(),
        node_id: crate::rig::NODE.into(),
        volume_capability: Some(block(Mode::SingleNodeWriter)),
        secrets,
        ..Default::default()
    };
    let unpublish = |secrets| ControllerUnpublishVolumeRequest {
        volume_id: "fast/v".into(),
        node_id: crate::rig::NODE.into(),
        secrets,
    };
    let grow = |secrets| ControllerExpandVolumeRequest {
        volume_id: "fast/v".into(),
        capacity_range: crate::controller::range(32 * crate::rig::MIB, 0),
        secrets,
        ..Default::default()
    };
    let snapshot = |secrets| CreateSnapshotRequest {
        source_volume_id: "fast/v".into(),
        name: "s".into(),
        secrets,
        ..Default::default()
    };
    let drop_snapshot = |secrets| DeleteSnapshotRequest {
        snapshot_id: "fast/s".into(),
        secrets,
    };
    let drop_volume = |secrets| DeleteVolumeRequest {
        secrets,
        ..delete("fast/v")
    };
    // Each is refused to the driver itself and done for the tenant.
    macro_rules! for_the_tenant_alone {
        ($($call:ident $request:ident)*) => {$(
            let refused = controller.$call($request(none())).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
            controller.$call($request(tenant())).await.unwrap();
        )*};
    }
    for_the_tenant_alone! {
        controller_publish_volume publish
        controller_expand_volume grow
        create_snapshot snapshot
    }
    // To look the driver needs nobody.
    let listed = controller.list_volumes(ListVolumesRequest::default()).await;
    let listed = listed.unwrap().into_inner().entries;
    assert_eq!(
        listed[0].volume.as_ref().unwrap().capacity_bytes,
        32 * crate::rig::MIB
    );
    assert_eq!(
        listed[0].status.as_ref().unwrap().published_node_ids,
        [crate::rig::NODE]
    );
    for_the_tenant_alone! {
        controller_unpublish_volume unpublish
        delete_snapshot drop_snapshot
        delete_volume drop_volume
    }
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);

    // Where the target is reached by its socket a certificate has no use, and that is said.
    let local = rig.start(&Site {
        name: "-l",
        mode: "controller",
        ..Site::all()
    });
    let refused = local
        .controller()
        .await
        .create_volume(create(tenant()))
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("socket"), "{refused}");
    // Also beside one that is reached by TLS: nothing is made there as somebody else.
    let mut arguments = words(folder.path(), &port(&rig), "driver");
    arguments[0] = arguments[0].replace("--rpc=", "--rpc=east=");
    arguments.push(format!("--rpc={}", rig.path("none.sock")));
    let driver = rig.start(&Site {
        name: "-m",
        mode: "controller",
        arguments,
        ..Site::all()
    });
    let mut mixed = driver.controller().await;
    let refused = mixed.create_volume(create(tenant())).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("none.sock"), "{refused}");
}
