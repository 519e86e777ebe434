//! RDMA on the control thread: listening, connection requests, and what the connection manager reports later.
//!
//! One event channel serves all listeners and connections for as long as the process lives. An event is routed by its identifier: to the
//! task that has the connection here, or to the shard that has it. What is made once for the thread (domains, registrations, buffers of
//! admin queues) lives here too. [`devices`] is about devices that go away and come back, [`listener`] about listening on them.

mod devices;
mod greeting;
mod listener;
mod pump;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nvme_proto::rdma::{CmAccept, CmFault, CmReject, CmRequest, CmStatus};
use nvmf_io::verbs::{
    CmEvent, CmEventKind, CmId, ConnectParams, EventChannel, IdKey, IdleQueuePair,
    ProtectionDomain, QueueSizes, VerbsError,
};
use nvmf_io::{BufPool, PoolConfig};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use zerocopy::IntoBytes;

use super::accept::{Counted, RateLimit};
use super::net;
use super::target::Target;
use crate::config::limits::IO_QUEUES;
use crate::rdma::{DeviceStats, MAX_IN_CAPSULE_BYTES, Registrars, send_entries};

pub use greeting::Greeted;
pub use listener::{RdmaListener, Waiting};
pub use pump::{Pulse, RdmaPump};

/// Most memory for receives and data of admin queues, taken as it is needed: an admin queue of 32 entries posts 128 KiB.
const POOL_BYTES: usize = 256 << 20;
/// Pause after the connection manager failed, which may last.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// RDMA, once somebody listens on it.
#[derive(Default)]
pub struct Rdma {
    service: OnceCell<Rc<Service>>,
}

/// What belongs to the thread.
pub struct Service {
    channel: Arc<EventChannel>,
    routes: RefCell<HashMap<IdKey, Route>>,
    domains: RefCell<Vec<Arc<ProtectionDomain>>>,
    /// Devices that are gone, until nobody here uses them any more.
    leaving: RefCell<Vec<Weak<ProtectionDomain>>>,
    pool: BufPool,
    registrars: RefCell<Registrars>,
    refusals: RefCell<RateLimit>,
    followed: Cell<bool>,
}

/// Whom the events of an identifier concern.
struct Route {
    to: To,
    /// The device that it is on; none for listeners on a wildcard address.
    device: Weak<ProtectionDomain>,
}

enum To {
    /// A listener.
    Listener(watch::Sender<bool>),
    /// A connection that a task here has.
    Here(watch::Sender<Option<HungUp>>),
    /// A connection that a shard has.
    Shard(usize),
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HungUp {
    /// The host closed it, or cannot be reached.
    Host,
    /// The device is gone.
    Device,
}

impl Rdma {
    fn service(&self) -> Result<Rc<Service>, VerbsError> {
        if let Some(service) = self.service.get() {
            return Ok(Rc::clone(service));
        }
        let service = Rc::new(Service {
            channel: EventChannel::new()?,
            routes: RefCell::default(),
            domains: RefCell::default(),
            leaving: RefCell::default(),
            pool: BufPool::new(&PoolConfig {
                max_bytes: POOL_BYTES,
                ..PoolConfig::default()
            }),
            registrars: RefCell::default(),
            refusals: RefCell::default(),
            followed: Cell::new(false),
        });
        Ok(Rc::clone(self.service.get_or_init(|| service)))
    }

    /// Whether somebody still uses a device that is gone.
    fn has_leaving(&self) -> bool {
        let service = self.service.get();
        service.is_some_and(|service| !service.leaving.borrow().is_empty())
    }

    /// A connection that a shard had is gone.
    pub fn forget(&self, id: IdKey) {
        if let Some(service) = self.service.get() {
            service.forget(id);
        }
    }

    /// Buffers that receives and commands of admin queues have.
    pub fn buffers_in_use(&self) -> u64 {
        let service = self.service.get();
        service.map_or(0, |service| service.pool.in_use() as u64)
    }

    /// What the control thread did on each device, for admin queues.
    pub fn stats(&self) -> Vec<DeviceStats> {
        let service = self.service.get();
        service.map_or_else(Vec::new, |service| service.registrars.borrow().stats())
    }
}

/// A descriptor of the libraries as the runtime waits for it.
fn watched(fd: impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.as_fd().try_clone_to_owned()?;
    #[allow(
        deprecated,
        reason = "its successor asks for a proof about descriptors that are not owned; this one is"
    )]
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Takes the connection manager's events as they come.
async fn follow(target: Rc<Target>, service: Rc<Service>, fd: AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut ready) = fd.readable().await else {
            return tracing::error!("the RDMA connection manager cannot be waited for");
        };
        loop {
            match service.channel.next() {
                Ok(Some(event)) => service.handle(&target, event),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!("the RDMA connection manager fails: {error}");
                    sleep(ERROR_PAUSE).await;
                    break;
                }
            }
        }
        ready.clear_ready();
    }
}

impl Service {
    fn handle(self: &Rc<Self>, target: &Rc<Target>, event: CmEvent) {
        match event.kind {
            CmEventKind::ConnectRequest(id) => {
                let listens = matches!(
                    self.routes.borrow().get(&event.id),
                    Some(Route {
                        to: To::Listener(_),
                        ..
                    })
                );
                if !listens || target.stopping.get() {
                    return refuse(&id, CmStatus::NO_RESOURCES);
                }
                self.request(target, id, &event.private_data, event.initiator_depth);
            }
            CmEventKind::DeviceRemoved => {
                let routes = self.routes.borrow();
                let domain = routes.get(&event.id).map(|route| route.device.upgrade());
                drop(routes);
                match domain.flatten() {
                    Some(domain) => self.device_gone(target, &domain),
                    None => self.hang_up(target, event.id, HungUp::Device),
                }
            }
            CmEventKind::Disconnected | CmEventKind::Failed(_) | CmEventKind::Rejected => {
                self.hang_up(target, event.id, HungUp::Host);
            }
            _ => {}
        }
    }

    /// The connection is over, or as good as that.
    fn hang_up(&self, target: &Target, id: IdKey, why: HungUp) {
        let routes = self.routes.borrow();
        match routes.get(&id).map(|route| &route.to) {
            Some(To::Here(hung_up)) => {
                hung_up.send_if_modified(|known| known.is_none() && known.replace(why).is_none());
            }
            Some(To::Shard(shard)) => target.shards.hung_up(*shard, id),
            Some(To::Listener(gone)) => {
                gone.send_if_modified(|gone| {
                    why == HungUp::Device && !std::mem::replace(gone, true)
                });
            }
            None => {}
        }
    }

    /// Judges a connection request and accepts it, or rejects it with the code for what is wrong.
    fn request(self: &Rc<Self>, target: &Rc<Target>, id: CmId, private_data: &[u8], reads: u8) {
        let peer = id.peer_addr();
        let said = |reason: &dyn std::fmt::Display| {
            if let Some(suppressed) = self.refusals.borrow_mut().allow(Instant::now()) {
                tracing::warn!(?peer, suppressed, "RDMA connection rejected: {reason}");
            }
        };
        let request = match CmRequest::parse(private_data, reads, *IO_QUEUES.end() as u16) {
            Ok(request) => request,
            Err(fault) => {
                said(&fault);
                return refuse(&id, CmFault::status(&fault));
            }
        };
        let limit = target.config.borrow().limits.connections;
        let Some(counted) = target.connections.admit(limit) else {
            said(&format!(
                "there are {limit} connections already; limits.connections allows no more"
            ));
            return refuse(&id, CmStatus::NO_RESOURCES);
        };
        let key = id.key();
        if let Err((id, error)) = self.accept(target, id, &request, reads, counted) {
            self.forget(key);
            said(&error);
            if let Some(id) = id {
                refuse(&id, CmStatus::NO_RESOURCES);
            }
        }
    }

    /// Makes the queue pair, posts the receive for Connect, accepts, and starts the task that waits for Connect. An error comes with the
    /// identifier if it can still be rejected.
    fn accept(
        self: &Rc<Self>,
        target: &Rc<Target>,
        id: CmId,
        request: &CmRequest,
        reads: u8,
        counted: Counted,
    ) -> Result<(), (Option<CmId>, VerbsError)> {
        let entries = request.entries();
        let domain = match self.domain(&id) {
            Ok(domain) => domain,
            Err(error) => return Err((Some(id), error)),
        };
        let sender = watch::Sender::new(None);
        let hung_up = sender.subscribe();
        let route = Route {
            to: To::Here(sender),
            device: Arc::downgrade(&domain),
        };
        self.routes.borrow_mut().insert(id.key(), route);
        let sizes = QueueSizes {
            sends: send_entries(entries),
            receives: entries.into(),
            windows: 0,
        };
        let qp = IdleQueuePair::new(id, &domain, sizes).map_err(|(id, error)| (Some(id), error))?;
        let begun = |error| (None, error);
        let mut qp = qp.attach();
        self.receive_connect(&mut qp).map_err(begun)?;
        let accept = CmAccept::new(entries);
        qp.id()
            .accept(&ConnectParams {
                private_data: accept.as_bytes(),
                // No more READs than the host serves and the device can have outstanding.
                initiator_depth: reads.min(domain.limits().reads),
                // Hosts do not read from us.
                responder_resources: 0,
                retry_count: 7,
                // A host without receives is waited for.
                rnr_retry_count: 7,
            })
            .map_err(begun)?;
        let greeted =
            Greeted::new(Rc::clone(self), qp, hung_up, request.qid(), entries).map_err(begun)?;
        net::spawn(greeting::serve(Rc::clone(target), greeted, counted));
        Ok(())
    }

    /// Posts a receive with room for a Connect and its data.
    fn receive_connect(&self, qp: &mut nvmf_io::verbs::QueuePair) -> Result<(), VerbsError> {
        let buf = self
            .pool
            .alloc(MAX_IN_CAPSULE_BYTES)
            .ok_or_else(|| no_memory("ibv_post_recv"))?;
        let mut registrars = self.registrars.borrow_mut();
        let registrar = registrars.of(qp.domain());
        let segment = registrar.segment(&buf, 0..MAX_IN_CAPSULE_BYTES)?;
        qp.receive(Some(segment))
    }

    /// The connection is a shard's from here on.
    pub fn give_to_shard(&self, id: IdKey, shard: usize) {
        if let Some(route) = self.routes.borrow_mut().get_mut(&id) {
            route.to = To::Shard(shard);
        }
    }

    /// The connection is gone.
    fn forget(&self, id: IdKey) {
        self.routes.borrow_mut().remove(&id);
    }
}

fn no_memory(call: &'static str) -> VerbsError {
    VerbsError::Call {
        call,
        errno: nvmf_io::Errno::NOMEM,
    }
}

fn refuse(id: &CmId, status: CmStatus) {
    if let Err(error) = id.reject(CmReject::new(status).as_bytes()) {
        tracing::debug!("a rejection cannot be sent: {error}");
    }
}
