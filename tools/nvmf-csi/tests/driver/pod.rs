//! A volume on its way through a node, as a pod would have it.

use std::collections::HashMap;
use std::path::Path;

use nvmf_csi::attributes;
use nvmf_csi::proto::*;
use nvmf_rpc::types::GetVolumes;

use crate::rig::{NODE, Rig};

pub type Context = HashMap<String, String>;

/// A volume on its way through a node.
pub struct Pod<'a> {
    pub rig: &'a Rig,
    pub id: String,
    pub capability: VolumeCapability,
    pub volume_context: Context,
    pub publish_context: Context,
}

impl<'a> Pod<'a> {
    /// A volume that is made and published to the node.
    pub async fn new(rig: &'a Rig, request: CreateVolumeRequest) -> Pod<'a> {
        let mut client = rig.controller().await;
        let capability = request.volume_capabilities[0].clone();
        let volume = client
            .create_volume(request)
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap();
        let publish = ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: NODE.into(),
            volume_capability: Some(capability.clone()),
            volume_context: volume.volume_context.clone(),
            ..ControllerPublishVolumeRequest::default()
        };
        let published = client
            .controller_publish_volume(publish)
            .await
            .unwrap()
            .into_inner();
        Pod {
            rig,
            id: volume.volume_id,
            capability,
            volume_context: volume.volume_context,
            publish_context: published.publish_context,
        }
    }

    /// A volume that was made and published before, as the target knows it: no call of the driver.
    pub async fn known(rig: &'a Rig, id: &str, capability: VolumeCapability) -> Pod<'a> {
        let (pool, name) = id.split_once('/').unwrap();
        let params = GetVolumes {
            pool: Some(pool.into()),
            name: Some(name.into()),
        };
        let volume = rig.ask(&params).await.remove(0);
        Pod {
            rig,
            id: id.to_owned(),
            capability,
            volume_context: Context::new(),
            publish_context: attributes::publish(&volume, None).unwrap(),
        }
    }

    pub fn path(&self, what: &str) -> String {
        self.rig
            .path(&format!("{}-{what}", self.id.replace('/', "-")))
    }

    pub fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            publish_context: self.publish_context.clone(),
            ..NodeStageVolumeRequest::default()
        }
    }

    pub fn publish(&self, target: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
            target_path: self.path(target),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.volume_context.clone(),
            publish_context: self.publish_context.clone(),
            ..NodePublishVolumeRequest::default()
        }
    }

    pub async fn up(&self, target: &str) {
        let mut node = self.rig.node().await;
        node.node_stage_volume(self.stage()).await.unwrap();
        node.node_publish_volume(self.publish(target))
            .await
            .unwrap();
    }

    pub fn unpublish(&self, target: &str) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.path(target),
        }
    }

    pub fn unstage(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
        }
    }

    pub async fn down(&self, targets: &[&str]) {
        let mut node = self.rig.node().await;
        for target in targets {
            node.node_unpublish_volume(self.unpublish(target))
                .await
                .unwrap();
            assert!(!Path::new(&self.path(target)).exists());
        }
        node.node_unstage_volume(self.unstage()).await.unwrap();
        let unpublish = ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: NODE.into(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        self.rig
            .controller()
            .await
            .controller_unpublish_volume(unpublish)
            .await
            .unwrap();
    }

    pub async fn stats(&self, target: &str) -> NodeGetVolumeStatsResponse {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: self.path(target),
            staging_target_path: String::new(),
        };
        self.rig
            .node()
            .await
            .node_get_volume_stats(request)
            .await
            .unwrap()
            .into_inner()
    }
}
