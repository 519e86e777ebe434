//! A queue's connection over RDMA, and what the control thread has of devices.
//!
//! Each connection has an event channel of its own: whoever has the connection hears what becomes of it. A device that is removed is looked for
//! once a second besides, since not every driver tells (see [`nvmf_io::verbs::close_removed`]): connections that the control thread has on it
//! end, with each admin queue its association, and the last of these closes the device.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use nvme_proto::rdma::host::HostLimits;
use nvme_proto::rdma::{CmAccept, CmReject, CmRequest, HostConn};
use nvme_proto::wire::fabrics::ConnectData;
use nvme_proto::wire::{Cntlid, Cqe};
use nvmf_io::verbs::{
    CmEvent, CmEventKind, CmId, ConnectParams, EventChannel, IdleQueuePair, LinkFailure,
    ProtectionDomain, Registrar, VerbsError, close_removed,
};
use nvmf_io::{Buf, BufPool, Errno, PoolConfig};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use zerocopy::IntoBytes;

use super::super::error::ConnectError;
use super::super::message::NewWire;
use super::super::rdma::{
    Answer, HostLink, Memory, NotTaken, SharedRegistrar, access, most_entries, queue_sizes,
};
use super::{QueueSpec, bounded, ended, violated};

/// Most memory for data of admin commands, taken as it is needed: a command takes 4 KiB.
const POOL_BYTES: usize = 16 << 20;
/// How often a device sends again what is not acknowledged, as the Linux host has it.
const RETRIES: u8 = 7;
/// How often devices are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A device as the control thread uses it, once for connections with memory windows and once for those without: in a protection domain of their
/// own no key opens more than a window, whoever guesses it. Gone with the last connection: a host that is not connected leaves nothing on the device.
pub(crate) struct Device {
    windows: bool,
    domain: Arc<ProtectionDomain>,
    registrar: SharedRegistrar,
    /// For data of admin commands.
    pool: BufPool,
    /// The domain was retired.
    gone: Notify,
}

/// The devices of a thread.
#[derive(Default)]
struct Devices {
    used: Vec<Weak<Device>>,
    /// Looks after them; ends with the runtime that it was started on.
    watcher: Option<JoinHandle<()>>,
}

thread_local! {
    static DEVICES: RefCell<Devices> = RefCell::default();
}

impl Devices {
    fn alive(&self) -> impl Iterator<Item = Rc<Device>> {
        self.used.iter().filter_map(Weak::upgrade)
    }
}

/// Ends what is on devices that are gone, for as long as the thread's runtime lives.
async fn look_after() {
    loop {
        sleep(LOOK_INTERVAL).await;
        DEVICES.with_borrow(|devices| devices.alive().for_each(|device| device.look()));
        close_removed();
    }
}

impl Device {
    /// The device that the identifier is on.
    fn of(id: &CmId, windows: bool) -> Result<Rc<Self>, VerbsError> {
        DEVICES.with_borrow_mut(|devices| {
            let watcher = devices.watcher.as_ref();
            if watcher.is_none_or(JoinHandle::is_finished) {
                devices.watcher = Some(tokio_uring::spawn(look_after()));
            }
            devices.used.retain(|device| device.strong_count() > 0);
            let known = |device: &Rc<Device>| device.windows == windows && device.domain.serves(id);
            if let Some(device) = devices.alive().find(known) {
                return match device.domain.is_retired() {
                    true => Err(device.domain.removed()),
                    false => Ok(device),
                };
            }
            let domain = ProtectionDomain::new(id)?;
            tracing::debug!(device = domain.device_name(), limits = ?domain.limits(), "RDMA device in use");
            let registrar = Registrar::new(Arc::clone(&domain), access(windows));
            let device = Rc::new(Device {
                windows,
                domain,
                registrar: Rc::new(RefCell::new(registrar)),
                pool: BufPool::new(&PoolConfig {
                    max_bytes: POOL_BYTES,
                    ..PoolConfig::default()
                }),
                gone: Notify::new(),
            });
            devices.used.push(Rc::downgrade(&device));
            Ok(device)
        })
    }

    /// Tells who waits for it if it is gone.
    fn look(&self) {
        if !self.domain.is_retired() && !self.domain.is_there() {
            let device = self.domain.device_name();
            tracing::warn!(
                device,
                "an RDMA device is being removed: the associations on it end"
            );
            self.domain.retire();
            self.gone.notify_waiters();
        }
    }

    /// Waits until it is gone.
    async fn gone(&self) -> VerbsError {
        loop {
            let gone = self.gone.notified();
            if self.domain.is_retired() {
                return self.domain.removed();
            }
            gone.await;
        }
    }

    /// A buffer for data of an admin command.
    pub fn alloc(&self, bytes: u32) -> Result<Buf, VerbsError> {
        self.pool.alloc(bytes).ok_or(VerbsError::Call {
            call: "mmap",
            errno: Errno::NOMEM,
        })
    }
}

/// The descriptors of a connection as the control thread's runtime waits for them.
pub(crate) struct Signals {
    channel: Arc<EventChannel>,
    events: AsyncFd<OwnedFd>,
    /// What the connection is on, once that is known.
    device: Option<Rc<Device>>,
    completions: Option<AsyncFd<OwnedFd>>,
}

fn not_waited(error: &io::Error) -> VerbsError {
    VerbsError::Call {
        call: "epoll_wait",
        errno: Errno::from_io_error(error).unwrap_or(Errno::IO),
    }
}

fn watched(fd: impl AsFd) -> Result<AsyncFd<OwnedFd>, VerbsError> {
    let duplicate = fd.as_fd().try_clone_to_owned();
    let fd = duplicate.map_err(|error| not_waited(&error))?;
    #[allow(
        deprecated,
        reason = "its successor asks for a proof about descriptors that are not owned; this one is"
    )]
    AsyncFd::with_interest(fd, Interest::READABLE).map_err(|error| not_waited(&error))
}

impl Signals {
    fn new(channel: Arc<EventChannel>) -> Result<Self, VerbsError> {
        Ok(Signals {
            events: watched(channel.as_fd())?,
            channel,
            device: None,
            completions: None,
        })
    }

    /// The next thing that the connection manager reports. An error where the device is gone.
    pub async fn event(&self) -> Result<CmEvent, VerbsError> {
        let gone = async {
            match &self.device {
                Some(device) => device.gone().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.next_event() => event,
            removed = gone => Err(removed),
        }
    }

    async fn next_event(&self) -> Result<CmEvent, VerbsError> {
        loop {
            let ready = self.events.readable().await;
            if let Some(event) = self.channel.next()? {
                return Ok(event);
            }
            match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => return Err(not_waited(&error)),
            }
        }
    }

    /// Waits until the link has completions. Arms its queue, and may return with nothing to take.
    pub async fn completion(&self, link: &RefCell<HostLink>) -> Result<(), VerbsError> {
        let Some(completions) = &self.completions else {
            return std::future::pending().await;
        };
        let ready = completions.readable().await;
        link.borrow().qp().queue().take_events();
        ready
            .map(|mut ready| ready.clear_ready())
            .map_err(|error| not_waited(&error))
    }
}

/// See the module's text.
pub(crate) struct RdmaLink {
    pub link: RefCell<HostLink>,
    pub signals: Signals,
    pub device: Rc<Device>,
}

impl RdmaLink {
    /// Connects a queue pair, and sends Connect.
    pub(super) async fn connect(spec: &QueueSpec<'_>) -> Result<(Self, Cntlid), ConnectError> {
        nvmf_io::verbs::available().map_err(|error| rdma(spec, error))?;
        let link = bounded(spec, "the RDMA connection request", connect_any(spec)).await?;
        let answer = bounded(spec, "Connect", link.fabrics_connect(spec)).await;
        let connected = answer.and_then(|answer| spec.connected(&answer));
        match connected {
            Ok(cntlid) => Ok((link, cntlid)),
            Err(error) => {
                link.link.borrow_mut().close();
                Err(error)
            }
        }
    }

    /// For a shard: nothing is posted once Connect was answered.
    pub(super) fn into_wire(self) -> Result<NewWire, ConnectError> {
        let (qp, conn) = self.link.into_inner().into_parts();
        match qp.detach() {
            Ok(qp) => Ok(NewWire::Rdma {
                qp: Box::new(qp),
                conn,
            }),
            Err(_) => Err(ConnectError::Unusable(
                "its queue pair still had work posted on it after Connect".to_owned(),
            )),
        }
    }

    async fn fabrics_connect(&self, spec: &QueueSpec<'_>) -> Result<Cqe, ConnectError> {
        let broken = |error: VerbsError| ended(spec, "Connect", error.to_string());
        let entries = self.link.borrow().conn().capacity() as u16 + 1;
        let (sqe, data) = spec.connect_command(entries)?;
        let buf = self
            .device
            .alloc(ConnectData::SIZE as u32)
            .map_err(broken)?;
        buf.copy_in(0, data.as_bytes());
        let memory = Memory::Out(&buf, 0..ConnectData::SIZE as u32);
        let submitted = self.link.borrow_mut().submit(&sqe, memory);
        match submitted {
            Ok(_) => {}
            Err(NotTaken::Full) => unreachable!("the first command of a queue"),
            Err(NotTaken::Failed(failure)) => return Err(failed(spec, failure)),
        }
        self.link.borrow_mut().post().map_err(broken)?;
        let mut answer = None;
        loop {
            {
                let mut link = self.link.borrow_mut();
                link.qp().queue().arm().map_err(broken)?;
                let take = |Answer { cqe, .. }: Answer| answer = Some(cqe);
                link.poll(take).map_err(|failure| failed(spec, failure))?;
                // The SEND completes too: the queue pair goes on with nothing posted.
                if let Some(cqe) = answer
                    && link.is_quiet()
                {
                    return Ok(cqe);
                }
            }
            tokio::select! {
                woken = self.signals.completion(&self.link) => woken.map_err(broken)?,
                event = self.signals.event() => {
                    if let Some(cause) = end_of(&event.map_err(broken)?) {
                        return Err(ended(spec, "Connect", cause.to_owned()));
                    }
                }
            }
        }
    }
}

/// Why an event ends a connection, if it does.
pub(crate) fn end_of(event: &CmEvent) -> Option<&'static str> {
    match event.kind {
        CmEventKind::Disconnected => Some("closed by the target"),
        CmEventKind::DeviceRemoved => Some("the RDMA device is being removed"),
        CmEventKind::AddressChanged => Some("the address moved to another RDMA device"),
        _ => None,
    }
}

/// Connects to the first address that answers.
async fn connect_any(spec: &QueueSpec<'_>) -> Result<RdmaLink, ConnectError> {
    let address = spec.target.address.clone();
    let unreachable = |source| ConnectError::Unreachable {
        address: spec.target.address.clone(),
        source,
    };
    let resolved = tokio::task::spawn_blocking(move || address.resolve()).await;
    let addresses = match resolved {
        Ok(addresses) => addresses.map_err(unreachable)?,
        Err(error) => return Err(unreachable(io::Error::other(error))),
    };
    let mut last = unreachable(io::ErrorKind::AddrNotAvailable.into());
    for to in addresses {
        match connect_to(spec, to).await {
            Ok(link) => return Ok(link),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(spec: &QueueSpec<'_>, to: SocketAddr) -> Result<RdmaLink, ConnectError> {
    let explain = |error| rdma(spec, error);
    let options = &spec.target.options;
    let channel = EventChannel::new().map_err(explain)?;
    let mut signals = Signals::new(Arc::clone(&channel)).map_err(explain)?;
    let id = CmId::new(&channel).map_err(explain)?;
    if let Some(tos) = options.tos {
        id.set_tos(tos).map_err(explain)?;
    }
    let from = spec.target.address.host_traddr;
    let from = from.map(|ip| SocketAddr::new(ip, 0));
    id.resolve_addr(from, to, options.connect_timeout_ms)
        .map_err(explain)?;
    expect(spec, &signals, |kind| {
        matches!(kind, CmEventKind::AddrResolved)
    })
    .await?;
    // Resolving had the library open it: from here on it is looked after.
    let windows = options.memory_windows;
    let device = Device::of(&id, windows).map_err(explain)?;
    signals.device = Some(Rc::clone(&device));
    id.resolve_route(options.connect_timeout_ms)
        .map_err(explain)?;
    expect(spec, &signals, |kind| {
        matches!(kind, CmEventKind::RouteResolved)
    })
    .await?;
    let entries = spec.entries.min(most_entries(&device.domain, windows));
    let qp = IdleQueuePair::new(id, &device.domain, queue_sizes(entries, windows))
        .map_err(|(_, error)| explain(error))?;
    let mut qp = qp.attach();
    // For the answer to Connect; the target says nothing before.
    qp.receive(None).map_err(explain)?;
    let request = CmRequest::new(spec.qid, entries, spec.cntlid);
    qp.id()
        .connect(&ConnectParams {
            private_data: request.as_bytes(),
            // We do not read from the target.
            initiator_depth: 0,
            responder_resources: device.domain.limits().read_responses,
            retry_count: RETRIES,
            rnr_retry_count: RETRIES,
        })
        .map_err(explain)?;
    let event = expect(spec, &signals, |kind| {
        matches!(kind, CmEventKind::Established)
    })
    .await?;
    let taken = CmAccept::parse(&event.private_data)
        .map_err(|fault| ended(spec, "the RDMA connection request", fault.to_string()))?
        .crqsize
        .get();
    if taken < 2 {
        let what = format!("it takes {taken} commands at once on a queue (CRQSIZE)");
        return Err(ConnectError::Unusable(what));
    }
    let conn = HostConn::new(HostLimits {
        depth: entries.min(taken),
        in_capsule_bytes: spec.in_capsule_bytes,
        flow_control: !spec.without_flow_control(),
    });
    signals.completions = Some(watched(qp.queue()).map_err(explain)?);
    let link = HostLink::new(qp, conn, Rc::clone(&device.registrar));
    Ok(RdmaLink {
        link: RefCell::new(link),
        signals,
        device,
    })
}

/// Waits for an event; another one is why there is no connection.
async fn expect(
    spec: &QueueSpec<'_>,
    signals: &Signals,
    is: fn(&CmEventKind) -> bool,
) -> Result<CmEvent, ConnectError> {
    let event = signals.event().await.map_err(|error| rdma(spec, error))?;
    if is(&event.kind) {
        return Ok(event);
    }
    let unreachable = |source| ConnectError::Unreachable {
        address: spec.target.address.clone(),
        source,
    };
    Err(match (event.kind, event.status) {
        (CmEventKind::Rejected, CmEvent::REJECTED_BY_CONSUMER) => {
            match CmReject::parse(&event.private_data) {
                Ok(reject) => ConnectError::Rejected {
                    address: spec.target.address.clone(),
                    status: reject.status(),
                },
                Err(fault) => ended(spec, "the RDMA connection request", fault.to_string()),
            }
        }
        (CmEventKind::Rejected, CmEvent::REJECTED_NO_LISTENER) => {
            unreachable(io::ErrorKind::ConnectionRefused.into())
        }
        (CmEventKind::Rejected, reason) => {
            let cause = format!("rejected for reason {reason} of the connection manager");
            ended(spec, "the RDMA connection request", cause)
        }
        (CmEventKind::Failed(_), error @ ..0) => {
            unreachable(io::Error::from_raw_os_error(error.saturating_neg()))
        }
        (CmEventKind::Failed(what), _) => unreachable(io::Error::other(what)),
        (kind, status) => {
            let cause = format!("an unexpected event ({kind:?}, status {status})");
            ended(spec, "the RDMA connection request", cause)
        }
    })
}

fn rdma(spec: &QueueSpec<'_>, cause: VerbsError) -> ConnectError {
    ConnectError::Rdma {
        address: spec.target.address.clone(),
        cause,
    }
}

fn failed(spec: &QueueSpec<'_>, failure: LinkFailure) -> ConnectError {
    match failure {
        LinkFailure::Violation(violation) => violated(spec, violation),
        LinkFailure::Broken(cause) => ended(spec, "Connect", cause),
        LinkFailure::Flushed => ended(spec, "Connect", "closed by the target".to_owned()),
    }
}
