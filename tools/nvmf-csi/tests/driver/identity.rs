//! Who the driver is, what it can do, and what it never shows.

use nvmf_csi::proto::volume_capability::access_mode::Mode;
use nvmf_csi::proto::*;
use tonic::Code;

use crate::rig::{NODE, Rig, Site, block, volume};

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

/// Whatever a secret is given to refuses it by name; its value is in no log, however much is logged, and in no answer.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_refused_and_never_shown() {
    let Some(rig) = Rig::without_driver("secrets_are_refused_and_never_shown", "", "127.0.0.1:0")
    else {
        return;
    };
    let site = Site {
        log: "trace",
        ..Site::all()
    };
    let driver = rig.start(&site);
    const HIDDEN: &str = "hidden-value";
    let secrets = || [("adminKey".to_owned(), HIDDEN.to_owned())].into();
    let mut controller = driver.controller().await;
    let mut node = driver.node().await;
    let create = CreateVolumeRequest {
        secrets: secrets(),
        ..volume("v", block(Mode::SingleNodeWriter), 16)
    };
    let delete = DeleteVolumeRequest {
        volume_id: "fast/v".into(),
        secrets: secrets(),
    };
    let stage = NodeStageVolumeRequest {
        volume_id: "fast/v".into(),
        staging_target_path: rig.path("staging"),
        volume_capability: Some(block(Mode::SingleNodeWriter)),
        secrets: secrets(),
        ..NodeStageVolumeRequest::default()
    };
    for refused in [
        controller.create_volume(create).await.unwrap_err(),
        controller.delete_volume(delete).await.unwrap_err(),
        node.node_stage_volume(stage).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::InvalidArgument);
        let said = format!("{refused:?}");
        assert!(
            said.contains("adminKey") && !said.contains(HIDDEN),
            "{said}"
        );
    }
    drop(driver);
    let log = std::fs::read_to_string(rig.path("csi.log")).unwrap();
    assert!(log.lines().count() > 20 && !log.contains(HIDDEN));
}
