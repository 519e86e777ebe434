//! Who this is and what it can do.

use tonic::{Request, Response, Status};

use crate::controller::Targets;
use crate::proto::identity_server::Identity;
use crate::proto::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use crate::proto::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};

/// The driver's name, as in the `provisioner` of a StorageClass.
pub const DRIVER_NAME: &str = "nvmf.csi.storage";

/// The service.
#[derive(Debug)]
pub struct IdentityService {
    /// Asked by Probe, where this is a controller.
    pub targets: Option<Targets>,
    /// Whether volumes are bound to a topology.
    pub has_topology: bool,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let mut services = vec![
            service::Type::ControllerService,
            service::Type::GroupControllerService,
        ];
        if self.has_topology {
            services.push(service::Type::VolumeAccessibilityConstraints);
        }
        let services = services.into_iter().map(|service| {
            Type::Service(Service {
                r#type: service.into(),
            })
        });
        let online = Type::VolumeExpansion(VolumeExpansion {
            r#type: volume_expansion::Type::Online.into(),
        });
        let capabilities = services
            .chain([online])
            .map(|capability| PluginCapability {
                r#type: Some(capability),
            })
            .collect();
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities,
        }))
    }

    /// Not ready while no target answers: one that is down holds up none of the others. A node is ready whenever it answers itself, as
    /// its daemon is started on demand.
    async fn probe(
        &self,
        _request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        let ready = match &self.targets {
            None => true,
            Some(targets) => targets.any_answers().await?,
        };
        Ok(Response::new(ProbeResponse { ready: Some(ready) }))
    }
}
