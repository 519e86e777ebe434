//! Listening over RDMA, for as long as the listener lives, whatever becomes of the device meanwhile.
//!
//! An address belongs to a device, and what listened on it ends with that. A listener on a wildcard address is on no device: the kernel
//! takes requests from all that there are, and come. What the API made and no device has at the start is looked for as one that was removed.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nvmf_io::verbs::{CmId, ProtectionDomain, VerbsError, close_removed};
use tokio::sync::watch;
use tokio::time::sleep;

use super::super::target::Target;
use super::{Rdma, Route, Service, To};

/// Connection requests that may wait to be looked at.
const BACKLOG: u16 = 128;
/// How often a device that is gone is looked for.
const RETURN_INTERVAL: Duration = Duration::from_secs(1);

/// Why a listener does not listen; `None` while it does.
pub type Waiting = Rc<RefCell<Option<String>>>;

/// A listener; requests are looked at once it is served.
pub struct RdmaListener {
    /// None while no device has the address.
    bound: Option<Bound>,
    /// Why there is none.
    pub waiting: Waiting,
    /// The address it really has.
    pub address: SocketAddr,
}

/// An identifier that listens, and the device that it is on.
struct Bound {
    service: Rc<Service>,
    id: CmId,
    device: Weak<ProtectionDomain>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.service.forget(self.id.key());
    }
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
        let bound = self.listen(address).map_err(explain)?;
        Ok(RdmaListener {
            address: bound.id.local_addr().unwrap_or(address),
            bound: Some(bound),
            waiting: Rc::default(),
        })
    }

    fn listen(&self, address: SocketAddr) -> Result<Bound, VerbsError> {
        let service = self.service()?;
        let (id, device) = service.listen(address)?;
        Ok(Bound {
            service,
            id,
            device,
        })
    }
}

impl Service {
    /// An identifier that listens, and its device.
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
    /// A listener on an address that cannot be had now.
    pub fn later(address: SocketAddr, why: String) -> Self {
        Self {
            bound: None,
            waiting: Rc::new(RefCell::new(Some(why))),
            address,
        }
    }

    /// Takes connection requests until it is dropped.
    pub async fn serve(mut self, target: &Rc<Target>) {
        let address = self.address;
        let mut again = "";
        loop {
            let bound = match self.bound.take() {
                Some(bound) => bound,
                None => {
                    let bound = self.wait_for_device(&target.rdma).await;
                    tracing::info!("listening on rdma://{address}{again}");
                    bound
                }
            };
            self.waiting.replace(None);
            if let Err(error) = bound.service.attend(target) {
                tracing::error!("RDMA connections cannot be taken: {error}");
                return std::future::pending().await;
            }
            let gone = watch::Sender::new(false);
            let mut is_gone = gone.subscribe();
            let route = Route {
                to: To::Listener(gone),
                device: bound.device.clone(),
            };
            let routes = &bound.service.routes;
            routes.borrow_mut().insert(bound.id.key(), route);
            // The sender lives as long as the route, which ends with what is bound.
            let _ = is_gone.wait_for(|gone| *gone).await;
            let why = "its RDMA device was removed; hosts can connect again once it is back";
            tracing::error!("not listening on rdma://{address}: {why}");
            self.waiting.replace(Some(why.to_owned()));
            again = " again";
        }
    }

    async fn wait_for_device(&self, rdma: &Rdma) -> Bound {
        loop {
            sleep(RETURN_INTERVAL).await;
            // A device that is on its way out would still take the address.
            if rdma.has_leaving() {
                continue;
            }
            match rdma.listen(self.address) {
                Ok(bound) => return bound,
                Err(error) => {
                    tracing::debug!("still not listening on rdma://{}: {error}", self.address);
                    close_removed();
                }
            }
        }
    }
}
