//! What the control thread knows: the configuration in force, the subsystems, their associations, the shards.
//!
//! Everything here belongs to the one control thread and is shared between its tasks by `Rc`. Borrows of cells never live across an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nvme_proto::controller::{ControllerLimits, SubsystemInfo};
use nvme_proto::wire::nqn::DISCOVERY_NQN;
use nvme_proto::wire::{Cntlid, Nsid};
use tokio::sync::Mutex;

use super::accept::ConnectionCount;
use super::association::{AnnouncedLimits, Association, EndReason, Notice};
use super::listeners::Listeners;
use super::live::Owner;
use super::open::{self, OpenError, Opener};
use super::ports::Ports;
use super::rdma::Rdma;
use super::shards::Shards;
use super::view::subsystem_info;
use crate::api::state::TransportRecord;
use crate::api::tls::Tls;
use crate::config::{Carrier, Config, NamespaceConfig, SubsystemConfig};
use crate::model::{
    ControllerKey, ControllerRegistry, HostAccess, Namespace, NamespaceTable, Nqn, Subsystem,
    SubsystemId,
};
use crate::rdma::MAX_IN_CAPSULE_BYTES;

/// The configuration holds as it is.
static NOTHING_ASKED: TransportRecord = TransportRecord {
    queue_depth: None,
    io_queues: None,
    in_capsule_bytes: None,
    max_transfer_bytes: None,
    success_flag: None,
};

/// The discovery subsystem's place among the subsystems.
const DISCOVERY_ID: SubsystemId = SubsystemId(0);

/// A subsystem and the associations with it.
pub struct Served {
    /// Who changes it.
    pub owner: Owner,
    /// What identifies it, as controllers report it; never changes.
    pub info: SubsystemInfo,
    /// What is served; namespaces and hosts change at a reload.
    pub subsystem: RefCell<Subsystem>,
    /// Where hosts may connect to it.
    pub ports: RefCell<Ports>,
    /// Live and closing associations.
    pub associations: RefCell<ControllerRegistry<Rc<Association>>>,
}

impl Served {
    fn new(subsystem: Subsystem, owner: Owner) -> Rc<Self> {
        Rc::new(Served {
            owner,
            info: subsystem_info(&subsystem),
            subsystem: RefCell::new(subsystem),
            ports: RefCell::default(),
            associations: RefCell::default(),
        })
    }

    /// Its name in the process.
    pub fn id(&self) -> SubsystemId {
        self.subsystem.borrow().id
    }

    /// The association with the controller `cntlid`.
    pub fn association(&self, cntlid: Cntlid) -> Option<Rc<Association>> {
        self.associations.borrow().get(cntlid).cloned()
    }

    /// All associations for which `which` holds.
    pub fn associations_where(&self, which: impl Fn(&Association) -> bool) -> Vec<Rc<Association>> {
        let associations = self.associations.borrow();
        let all = associations.iter().map(|(_, association)| association);
        all.filter(|association| which(association))
            .cloned()
            .collect()
    }

    /// Tells every association.
    pub fn notice_all(&self, notice: &Notice) {
        for association in self.associations_where(|_| true) {
            association.notice(notice.clone());
        }
    }

    /// Asks for the end of every association and waits for it.
    pub async fn end_all(&self, reason: EndReason) {
        self.end_where(|_| true, reason).await;
    }

    /// Asks for the end of some associations and waits for it.
    pub async fn end_where(&self, which: impl Fn(&Association) -> bool, reason: EndReason) {
        let ending = self.associations_where(which);
        for association in &ending {
            association.end(reason.clone());
        }
        for association in ending {
            association.ended().await;
        }
    }
}

/// The control thread's state.
pub struct Target {
    /// The configuration in force.
    pub config: RefCell<Config>,
    /// Opens namespaces.
    pub opener: Opener,
    /// The shards.
    pub shards: Shards,
    /// Connections of all kinds.
    pub connections: ConnectionCount,
    /// The discovery service, which every listener has.
    pub discovery: Rc<Served>,
    /// Where hosts connect.
    pub listeners: Listeners,
    /// RDMA, once somebody listens on it.
    pub rdma: Rdma,
    /// When the process started.
    pub started: Instant,
    subsystems: RefCell<Vec<Rc<Served>>>,
    /// Subsystems that are served no longer, until their associations have ended.
    leaving: RefCell<Vec<Rc<Served>>>,
    next_subsystem: Cell<u32>,
    /// Moves with every change that a host may see in its discovery log.
    discovery_generation: Cell<u64>,
    /// Set once the target stops: no new associations.
    pub stopping: Cell<bool>,
    /// What hosts may use over each transport, where the API says other than the configuration.
    pub transports: RefCell<BTreeMap<Carrier, TransportRecord>>,
    /// Who may use the management API over TCP, while it is served there.
    pub api_tls: RefCell<Option<Rc<Tls>>>,
    /// Admin queues that were ever connected.
    pub admin_queues_so_far: Cell<u64>,
    /// Hosts that did not authenticate, as far as the log is told.
    pub auth_failures: super::auth::Failures,
    /// Held by whoever changes what is served, from the first check to the end.
    pub changes: Mutex<()>,
}

/// The generation of the discovery log at the start: what the clock says, in microseconds. A host that kept the log of an earlier run must not
/// take it for this one's because both count from 1; no run changes its log so often that it overtakes the clock.
fn first_generation() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock that stands before 1970 serves as well as one that was reset.
    since_epoch.map_or(1, |time| time.as_micros() as u64)
}

impl Target {
    /// A target without subsystems; add them one by one.
    pub fn new(config: Config, opener: Opener, shards: Shards) -> Rc<Self> {
        let discovery = Subsystem {
            id: DISCOVERY_ID,
            nqn: Nqn::discovery(),
            serial: opener.identity.serial(DISCOVERY_NQN),
            model: crate::config::file::DEFAULT_MODEL.to_owned(),
            hosts: HostAccess::Any,
            namespaces: Arc::default(),
        };
        Rc::new(Target {
            config: RefCell::new(config),
            opener,
            shards,
            connections: ConnectionCount::default(),
            discovery: Served::new(discovery, Owner::File),
            listeners: Listeners::default(),
            rdma: Rdma::default(),
            started: Instant::now(),
            subsystems: RefCell::default(),
            leaving: RefCell::default(),
            next_subsystem: Cell::new(DISCOVERY_ID.0 + 1),
            discovery_generation: Cell::new(first_generation()),
            stopping: Cell::new(false),
            transports: RefCell::default(),
            api_tls: RefCell::default(),
            admin_queues_so_far: Cell::new(0),
            auth_failures: super::auth::Failures::default(),
            changes: Mutex::new(()),
        })
    }

    /// What a host that connects now is told that it may use.
    pub fn announced(&self, carrier: Carrier) -> AnnouncedLimits {
        let config = self.config.borrow();
        let (limits, asked) = (&config.limits, self.transports.borrow());
        let asked = asked.get(&carrier).unwrap_or(&NOTHING_ASKED);
        let in_capsule_bytes = asked.in_capsule_bytes.unwrap_or(limits.in_capsule_bytes);
        AnnouncedLimits {
            controller: ControllerLimits {
                max_queue_entries: asked.queue_depth.unwrap_or(limits.queue_depth),
                max_io_queues: asked.io_queues.unwrap_or(limits.io_queues),
                max_transfer_bytes: asked
                    .max_transfer_bytes
                    .unwrap_or(limits.max_transfer_bytes),
                in_capsule_bytes: match carrier {
                    Carrier::Tcp => in_capsule_bytes,
                    Carrier::Rdma => in_capsule_bytes.min(MAX_IN_CAPSULE_BYTES),
                },
                ..ControllerLimits::default()
            },
            r2t_window_bytes: limits.r2t_window_bytes,
            success_flag: asked.success_flag.unwrap_or(config.tcp.success_flag),
        }
    }

    /// Opens what a subsystem serves, waiting up to `patience` for storage that somebody else still has. Nothing changes yet.
    pub fn prepare(
        &self,
        config: &SubsystemConfig,
        patience: Duration,
    ) -> Result<Subsystem, OpenError> {
        let namespaces: Result<Vec<Arc<Namespace>>, OpenError> = config
            .namespaces
            .iter()
            .map(|namespace| self.open(&config.nqn, namespace, patience).map(Arc::new))
            .collect();
        Ok(self.assemble(config, NamespaceTable::new(namespaces?)))
    }

    /// A subsystem with these namespaces and all else from its configuration. Nothing changes yet.
    pub fn assemble(&self, config: &SubsystemConfig, namespaces: NamespaceTable) -> Subsystem {
        let id = SubsystemId(self.next_subsystem.get());
        self.next_subsystem.set(id.0 + 1);
        Subsystem {
            id,
            nqn: config.nqn.clone(),
            serial: match &config.serial {
                Some(serial) => serial.clone(),
                None => self.opener.identity.serial(config.nqn.as_str()),
            },
            model: config.model.clone(),
            hosts: config.hosts.clone(),
            namespaces: Arc::new(namespaces),
        }
    }

    /// Opens a namespace; storage that is served already, and is about to move, is taken over instead of being opened again.
    pub fn open(
        &self,
        nqn: &Nqn,
        config: &NamespaceConfig,
        patience: Duration,
    ) -> Result<Namespace, OpenError> {
        let subsystems = self.subsystems.borrow();
        // What the API or a pool serves cannot move to the configuration: both would write it.
        let declared = subsystems
            .iter()
            .filter(|served| served.owner == Owner::File);
        let tables = declared.map(|served| Arc::clone(&served.subsystem.borrow().namespaces));
        let served = tables.into_iter().find_map(|table| {
            let mut all = table.iter();
            let found = all.find(|namespace| open::serves(&namespace.backing, config));
            found.map(|namespace| Arc::clone(&namespace.backing))
        });
        self.opener.open(nqn, config, served, patience)
    }

    /// Serves a prepared subsystem. Its namespaces are known to every shard when this ends.
    pub async fn add(&self, subsystem: Subsystem, owner: Owner, ports: Ports) -> Rc<Served> {
        self.shards
            .set_namespaces(subsystem.id, &subsystem.namespaces)
            .await;
        let served = Served::new(subsystem, owner);
        served.ports.replace(ports);
        self.subsystems.borrow_mut().push(Rc::clone(&served));
        served
    }

    /// Ends the service of a subsystem: its associations, then its namespaces.
    pub async fn remove(&self, nqn: &Nqn) {
        if let Some(served) = self.take_away(nqn) {
            self.see_off(&served).await;
        }
    }

    /// Lets no more hosts connect to a subsystem; [`Target::see_off`] must follow.
    pub fn take_away(&self, nqn: &Nqn) -> Option<Rc<Served>> {
        let served = self.find(nqn).filter(|served| !self.is_discovery(served))?;
        let same = |other: &Rc<Served>| Rc::ptr_eq(other, &served);
        self.subsystems.borrow_mut().retain(|other| !same(other));
        self.leaving.borrow_mut().push(Rc::clone(&served));
        Some(served)
    }

    /// Ends what a subsystem that was taken away still has.
    pub async fn see_off(&self, served: &Rc<Served>) {
        let same = |other: &Rc<Served>| Rc::ptr_eq(other, served);
        served.end_all(EndReason::SubsystemRemoved).await;
        self.shards.forget(served.id()).await;
        self.leaving.borrow_mut().retain(|other| !same(other));
    }

    /// The subsystem called `nqn`, discovery included.
    pub fn find(&self, nqn: &Nqn) -> Option<Rc<Served>> {
        if nqn.is_discovery() {
            return Some(Rc::clone(&self.discovery));
        }
        let subsystems = self.subsystems.borrow();
        let mut all = subsystems.iter();
        all.find(|served| served.info.nqn == *nqn).cloned()
    }

    /// The association that a controller belongs to, if it has not ended.
    pub fn association(&self, controller: ControllerKey) -> Option<Rc<Association>> {
        let (subsystems, leaving) = (self.subsystems.borrow(), self.leaving.borrow());
        let mut all = subsystems.iter().chain(&*leaving);
        let served = all.find(|served| served.id() == controller.subsystem);
        served?.association(controller.cntlid)
    }

    /// The subsystems, discovery not included.
    pub fn subsystems(&self) -> Vec<Rc<Served>> {
        self.subsystems.borrow().clone()
    }

    /// Whether this is the discovery service.
    pub fn is_discovery(&self, served: &Rc<Served>) -> bool {
        Rc::ptr_eq(served, &self.discovery)
    }

    /// The discovery log's generation.
    pub fn discovery_generation(&self) -> u64 {
        self.discovery_generation.get()
    }

    /// Notes a change of what discovery tells.
    pub fn discovery_changed(&self) {
        self.discovery_generation
            .set(self.discovery_generation.get() + 1);
    }

    /// Tells the hosts of a subsystem that a namespace changed.
    pub fn namespace_changed(&self, served: &Served, nsid: Nsid) {
        served.notice_all(&Notice::NamespaceChanged(nsid));
    }
}
