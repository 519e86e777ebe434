//! The socket.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::controller::ControllerService;
use crate::identity::IdentityService;
use crate::node::NodeService;
use crate::proto::controller_server::ControllerServer;
use crate::proto::group_controller_server::GroupControllerServer;
use crate::proto::identity_server::IdentityServer;
use crate::proto::node_server::NodeServer;

/// What is served.
#[derive(Debug)]
pub struct Services {
    /// Always.
    pub identity: IdentityService,
    /// In modes controller and all.
    pub controller: Option<ControllerService>,
    /// In modes node and all.
    pub node: Option<NodeService>,
}

/// The path of an endpoint: `unix:///run/csi.sock`, `unix:/run/csi.sock`, or the path itself.
pub fn endpoint(text: &str) -> anyhow::Result<PathBuf> {
    let path = match text.strip_prefix("unix:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None if text.contains("://") => {
            bail!("endpoint {text}: only unix sockets are served, such as unix:///run/csi.sock")
        }
        None => text,
    };
    match Path::new(path).is_absolute() {
        true => Ok(path.into()),
        false => bail!("endpoint {text} is not absolute: such as unix:///run/csi.sock"),
    }
}

/// Listens, in the place of a driver that died; not of one that answers.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!("{}: another driver answers there", path.display());
            }
            std::fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
        Ok(_) => bail!("{} exists and is no socket", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop`; calls that were begun are finished.
pub async fn serve(
    services: Services,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut server = Server::builder().add_service(IdentityServer::new(services.identity));
    if let Some(controller) = services.controller {
        server = server
            .add_service(ControllerServer::new(controller.clone()))
            .add_service(GroupControllerServer::new(controller));
    }
    if let Some(node) = services.node {
        server = server.add_service(NodeServer::new(node));
    }
    server
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for text in [
            "unix:///run/csi.sock",
            "unix:/run/csi.sock",
            "/run/csi.sock",
        ] {
            assert_eq!(
                endpoint(text).unwrap(),
                Path::new("/run/csi.sock"),
                "{text}"
            );
        }
        for text in ["tcp://127.0.0.1:5000", "csi.sock", "unix://csi.sock"] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }
}
