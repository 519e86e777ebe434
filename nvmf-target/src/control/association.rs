//! Associations: one host, one controller, its admin connection and I/O queues, from Connect to the end.
//!
//! # Why an association may have to wait for another
//!
//! A host that loses its connection keeps the writes that were not acknowledged, connects anew and issues them again. The
//! first copies may still be on this side: in a backing, in a socket buffer, in the network. If one of them lands after a newer write
//! to the same blocks was acknowledged, data is silently lost. So the I/O of an association that *replaces* another waits until no
//! command of the old one can reach storage any more: until every shard has said that its commands are finished and its
//! sockets are shut ([`ShardMessage::DropController`](crate::shard::ShardMessage)). After that nothing that still arrives
//! from the old connections is read.
//!
//! Which associations does a new one replace? The standard does not let a host say so, and two live associations of one host with one
//! subsystem are legal: that is multipath. What tells them apart is whether the host still has the older one. A host that
//! replaces an association gives up its connections before it connects again, so
//! - an older association that is being torn down already is waited for;
//! - one whose admin connection is closed or reset is torn down and waited for, even if nobody has read the end of the stream yet;
//! - one whose admin connection looks alive is *probed*: TCP is asked for a sign of life. A host that has given the connection up
//!   answers with a reset, or with the end of stream that was on its way. A host that still has it acknowledges, which no
//!   application has to be awake for. One that stays silent is unreachable over that path and is torn down: whatever it sent over it
//!   must not land later. Over RDMA the host's device is asked, by a WRITE of nothing: it acknowledges as long as it has the connection.
//!
//! What this cannot see is a host that re-issues over a path that was alive all the time (multipath failover); the standard
//! makes the host wait for the keep-alive timeout there. Only the admin connection is probed: hosts give up all
//! connections of an association together.
//!
//! The wait sits in front of an I/O queue's adoption by a shard, so that it costs the I/O path nothing, and the host sees nothing but a
//! Connect that takes a little longer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_proto::controller::{ConnectRequest, Controller, ControllerLimits, Fault};
use nvme_proto::queue::SlotId;
use nvme_proto::wire::{Nsid, Qid};
use nvmf_io::net::{self, SocketOptions};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::accept::Counted;
use super::auth::NotPassed;
use super::net::Stream;
use super::rdma::Pulse;
use crate::config::{Address, Carrier};
use crate::model::ControllerShared;

/// How long a host has to answer a probe. TCP probes once a second here, so four answers would have to be lost.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Acknowledgements younger than this when the probe began may have been on their way since before the host reconnected.
const PROBE_SETTLE: Duration = Duration::from_millis(50);
/// How often the answer is looked for.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

/// Where an association stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The host has not authenticated yet: it has no I/O queues, and no other association waits for this one.
    Gated,
    /// Commands are taken.
    Live,
    /// No more commands are taken; those that run are finishing.
    Closing,
    /// Nothing of it can reach storage any more.
    Ended,
}

/// Why an association ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// The host closed its admin connection.
    #[error("the host closed its connection")]
    HostClosed,
    /// The host disconnected the admin queue in form.
    #[error("the host disconnected")]
    Disconnected,
    /// The host broke the protocol on the admin queue.
    #[error("protocol error: {0}")]
    Violation(String),
    /// The host sent a termination request.
    #[error("the host ended the connection: {0}")]
    Terminated(String),
    /// The admin connection failed.
    #[error("the connection failed: {0}")]
    Socket(String),
    /// No sign of life within the keep-alive timeout.
    #[error("no sign of life within the keep-alive timeout")]
    KeepAlive,
    /// The host reconnected, and this connection does not answer.
    #[error("the host reconnected and does not answer on this connection any more")]
    Replaced,
    /// The RDMA device that its admin connection was on is gone.
    #[error("its RDMA device was removed")]
    DeviceRemoved,
    /// The host did not prove who it is.
    #[error("the host did not authenticate: {0}")]
    Unauthenticated(NotPassed),
    /// The host's keys are others now.
    #[error("the host's keys were changed or removed")]
    KeysChanged,
    /// The host lost its permission.
    #[error("the host is not allowed any more")]
    NotAllowed,
    /// The subsystem is served no longer.
    #[error("the subsystem was removed")]
    SubsystemRemoved,
    /// The target stops.
    #[error("the target is stopping")]
    Stopping,
}

/// What the rest of the control thread tells an association's admin queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A namespace was added, removed or changed.
    NamespaceChanged(Nsid),
    /// The discovery log that this host sees has changed.
    DiscoveryChanged,
    /// Every I/O queue was ended after the controller was disabled.
    Drained,
    /// What the controller wrote is durable, after it was shut down.
    ShutDown,
    /// An Abort command was carried out.
    Aborted {
        /// The Abort command's slot on the admin queue.
        slot: SlotId,
        /// Whether the command was aborted.
        done: bool,
    },
    /// End the association.
    End(EndReason),
}

/// One association.
pub struct Association {
    /// What shards know of it too.
    pub shared: Arc<ControllerShared>,
    stage: watch::Sender<Stage>,
    /// Set once nothing of a predecessor can reach storage any more.
    fence: watch::Sender<bool>,
    admin: AdminPeer,
    notices: mpsc::UnboundedSender<Notice>,
    /// The admin side of the controller.
    pub controller: RefCell<Controller>,
    limits: AnnouncedLimits,
    queues: RefCell<BTreeMap<Qid, IoQueue>>,
    queue_closed: Notify,
}

/// The admin connection, as far as it is asked for signs of life.
pub enum AdminPeer {
    /// TCP.
    Tcp(Stream),
    /// RDMA.
    Rdma(Rc<Pulse>),
}

/// What the host was told that it may use, which holds for as long as the association lives.
#[derive(Clone, Debug)]
pub struct AnnouncedLimits {
    /// In Identify Controller and the properties.
    pub controller: ControllerLimits,
    /// In R2Ts.
    pub r2t_window_bytes: u32,
    /// Whether the SUCCESS flag may stand for a response.
    pub success_flag: bool,
}

/// An I/O queue that a shard has.
struct IoQueue {
    shard: usize,
    /// Counts its connection against the bound.
    _counted: Option<Counted>,
    /// Our address and the host's, once the shard has the connection.
    addresses: Option<(SocketAddr, SocketAddr)>,
}

impl Association {
    /// An association over the connection `admin`, live or gated, and the notices for its admin queue.
    pub fn new(
        stage: Stage,
        shared: Arc<ControllerShared>,
        controller: Controller,
        limits: AnnouncedLimits,
        admin: AdminPeer,
    ) -> (Rc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (notices, receiver) = mpsc::unbounded_channel();
        let association = Association {
            shared,
            stage: watch::Sender::new(stage),
            fence: watch::Sender::new(false),
            admin,
            notices,
            controller: RefCell::new(controller),
            limits,
            queues: RefCell::default(),
            queue_closed: Notify::new(),
        };
        (Rc::new(association), receiver)
    }

    /// Where it stands.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Moves on to `stage`; never back.
    pub fn advance(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let later = stage > *now;
            if later {
                *now = stage;
            }
            later
        });
        self.queue_closed.notify_waiters();
    }

    /// Tells the admin queue. Notices to one that has ended are dropped.
    pub fn notice(&self, notice: Notice) {
        let _ = self.notices.send(notice);
    }

    /// Asks for the end of the association and makes its admin queue notice at once.
    pub fn end(&self, reason: EndReason) {
        self.notice(Notice::End(reason));
    }

    /// Waits until nothing of it can reach storage any more.
    pub async fn ended(&self) {
        let mut stage = self.stage.subscribe();
        // The sender lives in `self`.
        let _ = stage.wait_for(|stage| *stage == Stage::Ended).await;
    }

    /// Whether this has to be gone, or alive, before the I/O of `newer` may start, an association with the same subsystem: it is
    /// another one of the same host. One at its gate is only claimed to be.
    pub fn precedes(&self, newer: &Association) -> bool {
        self.stage() != Stage::Gated
            && self.shared.key != newer.shared.key
            && self.shared.host_nqn == newer.shared.host_nqn
            && self.shared.host_id == newer.shared.host_id
    }

    /// What the host was told that it may use.
    pub fn limits(&self) -> &AnnouncedLimits {
        &self.limits
    }

    /// The transport and our address that the host connected to.
    pub fn local(&self) -> Address {
        match &self.admin {
            AdminPeer::Tcp(stream) => Address::tcp(stream.local()),
            AdminPeer::Rdma(pulse) => Address {
                carrier: Carrier::Rdma,
                socket: pulse.local,
            },
        }
    }

    /// The host's address.
    pub fn peer(&self) -> SocketAddr {
        match &self.admin {
            AdminPeer::Tcp(stream) => stream.peer(),
            AdminPeer::Rdma(pulse) => pulse.peer,
        }
    }

    /// Number of I/O queues now.
    pub fn queue_count(&self) -> usize {
        self.queues.borrow().len()
    }

    /// Waits for the associations that this one replaces. `older` are those of the same host with the same subsystem.
    pub async fn fence(&self, older: Vec<Rc<Association>>) {
        let probes: Vec<_> = older
            .into_iter()
            .map(|old| spawn_local(async move { old.gone_or_alive().await }))
            .collect();
        for probe in probes {
            // A probe that panicked must not let I/O through.
            if probe.await.is_err() {
                return;
            }
        }
        self.fence.send_replace(true);
    }

    /// Waits until the I/O of this association may start, or the association is ending.
    pub async fn fenced(&self) {
        let mut fence = self.fence.subscribe();
        let mut stage = self.stage.subscribe();
        tokio::select! {
            _ = fence.wait_for(|done| *done) => {}
            _ = stage.wait_for(|stage| *stage != Stage::Live) => {}
        }
    }

    /// Ends when the association is over, or has proved that its host still has it.
    async fn gone_or_alive(&self) {
        let probed = async {
            match &self.admin {
                AdminPeer::Tcp(stream) => probe(stream).await,
                AdminPeer::Rdma(pulse) if pulse.beats(PROBE_LIMIT).await => Probe::Alive,
                AdminPeer::Rdma(_) => Probe::Dead,
            }
        };
        if self.stage() == Stage::Live && probed.await == Probe::Alive {
            return;
        }
        self.end(EndReason::Replaced);
        self.ended().await;
    }

    /// Whether the controller would take the I/O queue now.
    pub fn check_io_connect(&self, request: &ConnectRequest) -> Result<(), Fault> {
        if self.stage() != Stage::Live {
            return Err(Fault::UnknownController(request.cntlid));
        }
        // The caller found the association by the name of its subsystem.
        self.controller
            .borrow()
            .check_io_connect(request, &request.subnqn)
    }

    /// Reserves the identifier of an I/O queue, waiting up to `patience` for a queue that has it to go: a host that reconnects races the
    /// end of its own old connection.
    pub async fn reserve_queue(
        &self,
        request: &ConnectRequest,
        shard: usize,
        patience: Duration,
    ) -> Result<(), Fault> {
        let qid = request.qid;
        let reserved = async {
            loop {
                let closed = self.queue_closed.notified();
                match self.check_io_connect(request) {
                    Ok(()) => {
                        let queue = IoQueue {
                            shard,
                            _counted: None,
                            addresses: None,
                        };
                        self.queues.borrow_mut().insert(qid, queue);
                        self.controller.borrow_mut().io_queue_connected(qid);
                        return Ok(());
                    }
                    Err(Fault::QidInUse(_)) => closed.await,
                    Err(fault) => return Err(fault),
                }
            }
        };
        let in_time = timeout(patience, reserved).await;
        in_time.unwrap_or(Err(Fault::QidInUse(qid)))
    }

    /// Lets the connection of a reserved queue be counted for as long as the queue lives, and notes our address and the host's.
    pub fn keep_connection(&self, qid: Qid, counted: Counted, addresses: (SocketAddr, SocketAddr)) {
        if let Some(queue) = self.queues.borrow_mut().get_mut(&qid) {
            queue._counted = Some(counted);
            queue.addresses = Some(addresses);
        }
    }

    /// The I/O queues that shards have: identifier, shard, our address and the host's.
    pub fn queues(&self) -> Vec<(Qid, usize, SocketAddr, SocketAddr)> {
        let queues = self.queues.borrow();
        let connected = queues.iter().filter_map(|(qid, queue)| {
            let (local, peer) = queue.addresses?;
            Some((*qid, queue.shard, local, peer))
        });
        connected.collect()
    }

    /// The I/O queue is gone.
    pub fn release_queue(&self, qid: Qid) {
        self.queues.borrow_mut().remove(&qid);
        self.controller.borrow_mut().io_queue_closed(qid);
        self.queue_closed.notify_waiters();
    }

    /// The shard that has the I/O queue.
    pub fn shard_of(&self, qid: Qid) -> Option<usize> {
        self.queues.borrow().get(&qid).map(|queue| queue.shard)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    Alive,
    Dead,
}

/// Asks the peer's TCP for a sign of life; see the module's text.
async fn probe(connection: &Stream) -> Probe {
    let start = Instant::now();
    if net::ask_for_sign_of_life(connection).is_err() {
        return Probe::Dead;
    }
    while start.elapsed() < PROBE_LIMIT {
        if net::is_closed_by_peer(connection) {
            return Probe::Dead;
        }
        match net::since_last_acknowledgement(connection) {
            Ok(age) if age + PROBE_SETTLE < start.elapsed() => {
                // Back to the usual pace; a failure would be found by the next read.
                let _ = net::configure(connection, &SocketOptions::default());
                return Probe::Alive;
            }
            Ok(_) => {}
            Err(_) => return Probe::Dead,
        }
        // There is nothing to wait on: the kernel tells nobody that an acknowledgement came in.
        sleep(PROBE_INTERVAL).await;
    }
    Probe::Dead
}
