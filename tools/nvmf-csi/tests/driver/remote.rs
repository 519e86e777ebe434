//! A target on another machine: its management API over TCP, with certificates on both sides.

use std::path::Path;

use nvmf_csi::proto::volume_capability::access_mode::Mode;
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
fn certificates(folder: &Path, names: [(&str, ExtendedKeyUsagePurpose); 2]) {
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

#[tokio::test(flavor = "multi_thread")]
async fn drivers_reach_the_targets_api_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let own = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let names = [
        ("localhost", ExtendedKeyUsagePurpose::ServerAuth),
        ("node", ExtendedKeyUsagePurpose::ClientAuth),
    ];
    certificates(folder.path(), names);
    let lines = format!(
        "[api.tls]\nlisten = \"127.0.0.1:0\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient-ca = \"{}\"\n",
        own("localhost.pem"),
        own("localhost.key"),
        own("ca.pem")
    );
    let test = "drivers_reach_the_targets_api_over_tls";
    let Some(rig) = Rig::with_api(test, "", "127.0.0.1:0", &lines) else {
        return;
    };
    let log = std::fs::read_to_string(rig.path("target.log")).unwrap();
    let address = log.split("management API on tls://").nth(1).unwrap();
    let port = address.split_whitespace().next().unwrap();
    let port = port.rsplit(':').next().unwrap();
    let words = |certificate: &str| {
        [
            format!("--rpc=tls://localhost:{port}"),
            format!("--tls-ca={}", own("ca.pem")),
            format!("--tls-cert={}", own(&format!("{certificate}.pem"))),
            format!("--tls-key={}", own(&format!("{certificate}.key"))),
        ]
    };
    let controller = Site {
        name: "-c",
        mode: "controller",
        arguments: words("node").into(),
        ..Site::all()
    };
    let controller = rig.start(&controller);
    let mut client = controller.controller().await;
    let request = volume("v", block(Mode::SingleNodeWriter), 16);
    client.create_volume(request.clone()).await.unwrap();
    client.create_volume(request.clone()).await.unwrap();
    assert_eq!(rig.ask(&GetVolumes::default()).await.len(), 1);
    client.delete_volume(delete("fast/v")).await.unwrap();
    // A node that makes volumes for its own pods.
    let node = Site {
        mode: "node",
        arguments: words("node").into(),
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
        arguments: words("localhost").into(),
        ..Site::all()
    };
    let stranger = rig.start(&stranger);
    let refused = stranger.controller().await.create_volume(request).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(rig.ask(&GetVolumes::default()).await, []);
}
