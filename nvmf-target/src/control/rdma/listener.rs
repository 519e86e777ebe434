//! Listening over RDMA, for as long as the listener lives, whatever becomes of the device meanwhile.
//!
//! An address belongs to a device, and what listened on it ends with that. A listener on a wildcard address is on no device: the kernel
//! takes requests from all that there are, and come.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nvmf_io::verbs::{CmId, ProtectionDomain, VerbsError};
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::target::Target;
use super::{Rdma, Route, Service, To};

/// Connection requests that may wait to be looked at.
const BACKLOG: u16 = 128;
/// How often a device that is gone is looked for.
const RETURN_INTERVAL: Duration = Duration::from_secs(1);

/// A listener that is bound; requests are looked at once it is served.
pub struct RdmaListener {
    service: Rc<Service>,
    /// The identifier and the device that it is on; none while the device is gone.
    bound: Option<(CmId, Weak<ProtectionDomain>)>,
    /// The address it really has.
    pub address: SocketAddr,
}

impl Rdma {
    /// Listens on `address`.
    pub fn bind(&self, address: SocketAddr) -> io::Result<RdmaListener> {
        let explain = |error: VerbsError| {
            let kind = match &error {
                VerbsError::Call { errno, .. } => io::Error::from(*errno).kind(),
                _ => io::ErrorKind::Unsupported,
            };
            io::Error::new(kind, format!("cannot listen on rdma://{address}: {error}"))
        };
        let service = self.service().map_err(explain)?;
        let bound = service.listen(address).map_err(explain)?;
        Ok(RdmaListener {
            address: bound.0.local_addr().unwrap_or(address),
            bound: Some(bound),
            service,
        })
    }
}

impl Service {
    fn listen(&self, address: SocketAddr) -> Result<(CmId, Weak<ProtectionDomain>), VerbsError> {
        let id = CmId::new(&self.channel)?;
        id.listen(address, BACKLOG)?;
        let device = match id.has_device() {
            true => Arc::downgrade(&self.domain(&id)?),
            false => Weak::new(),
        };
        Ok((id, device))
    }
}

impl RdmaListener {
    /// Takes connection requests until it is dropped.
    pub async fn serve(mut self, target: &Rc<Target>) {
        let address = self.address;
        if let Err(error) = self.service.attend(target) {
            tracing::error!("RDMA connections cannot be taken: {error}");
            return std::future::pending().await;
        }
        loop {
            let gone = watch::Sender::new(false);
            let mut is_gone = gone.subscribe();
            if let Some((id, device)) = &self.bound {
                let route = Route {
                    to: To::Listener(gone),
                    device: device.clone(),
                };
                self.service.routes.borrow_mut().insert(id.key(), route);
            }
            // The sender lives as long as the route, which ends below.
            let _ = is_gone.wait_for(|gone| *gone).await;
            tracing::error!(
                "not listening on rdma://{address}: its RDMA device was removed; hosts can connect again once it is back"
            );
            self.unbind();
            self.bound = Some(self.wait_for_device().await);
            tracing::info!("listening on rdma://{address} again");
        }
    }

    async fn wait_for_device(&self) -> (CmId, Weak<ProtectionDomain>) {
        loop {
            sleep(RETURN_INTERVAL).await;
            // A device that is on its way out would still take the address.
            if !self.service.leaving.borrow().is_empty() {
                continue;
            }
            match self.service.listen(self.address) {
                Ok(bound) => return bound,
                Err(error) => {
                    tracing::debug!("still not listening on rdma://{}: {error}", self.address);
                }
            }
        }
    }

    fn unbind(&mut self) {
        if let Some((id, _)) = self.bound.take() {
            self.service.forget(id.key());
        }
    }
}

impl Drop for RdmaListener {
    fn drop(&mut self) {
        self.unbind();
    }
}
