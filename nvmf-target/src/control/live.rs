//! Changes while hosts are connected, other than by SIGHUP: what the management API and the pools do to subsystems.
//!
//! Changes are made one at a time, and never beside a reload: each holds [`Target::changes`] from its first check to its end. What can
//! fail comes first, so that a change is made in full or not at all. Everything here returns only when every shard
//! goes by the change.
//!
//! A subsystem has one [`Owner`], and nobody else changes it: what the file declares follows the file.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_proto::wire::Nsid;
use tokio::task::spawn_blocking;

use super::association::{EndReason, Stage};
use super::discovery::Snapshot;
use super::net;
use super::open::OpenError;
use super::ports::Ports;
use super::target::{Served, Target};
use crate::backend::{Backing, BackingError, BackingOptions};
use crate::config::{NamespaceConfig, SubsystemConfig, limits};
use crate::model::{HostAccess, Namespace, NamespaceTable, Nqn};
use crate::shard::Scope;

/// Storage in use is refused at once: whoever asks is waiting.
const NO_PATIENCE: Duration = Duration::ZERO;

/// Who changes a subsystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The command line or the configuration file, through SIGHUP.
    File,
    /// The subsystem methods of the management API.
    Api,
    /// A pool, through its volumes.
    Pool,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Owner::File => "declared by the configuration: change it there (file and SIGHUP)",
            Owner::Api => "made by nvmf_create_subsystem: change it with the nvmf_ methods",
            Owner::Pool => "a pool's: change it with the pool_ methods",
        })
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// There is no such subsystem.
    #[error("there is no subsystem {0}; nvmf_get_subsystems lists all")]
    NoSubsystem(Nqn),
    /// There is one of that name.
    #[error("there is a subsystem {nqn} already; it is {owner}")]
    SubsystemExists {
        /// Its name.
        nqn: Nqn,
        /// Whose it is.
        owner: Owner,
    },
    /// It is somebody else's.
    #[error("the subsystem {nqn} is {owner}")]
    NotOwner {
        /// Its name.
        nqn: Nqn,
        /// Whose it is.
        owner: Owner,
    },
    /// The discovery subsystem is what it is.
    #[error("the discovery subsystem cannot be changed")]
    Discovery,
    /// There is no such namespace.
    #[error("the subsystem {nqn} has no namespace {nsid}")]
    NoNamespace {
        /// The subsystem.
        nqn: Nqn,
        /// The namespace.
        nsid: u32,
    },
    /// The NSID is taken.
    #[error("the subsystem {nqn} has a namespace {nsid} already")]
    NamespaceExists {
        /// The subsystem.
        nqn: Nqn,
        /// The namespace.
        nsid: u32,
    },
    /// The NSID cannot be.
    #[error("{0} is no NSID here; choose 1 to {max}", max = limits::NSID.end())]
    Nsid(u32),
    /// The storage cannot be served.
    #[error(transparent)]
    Storage(#[from] OpenError),
    /// Less than there is was asked for.
    #[error(
        "namespace {nsid} of {nqn} has {now_bytes} bytes; {wanted_bytes} would cut off data, and it can only grow"
    )]
    Shrink {
        /// The subsystem.
        nqn: Nqn,
        /// The namespace.
        nsid: u32,
        /// Its size.
        now_bytes: u64,
        /// What was asked for.
        wanted_bytes: u64,
    },
    /// Not while the target stops.
    #[error("the target is stopping")]
    Stopping,
}

/// Serves a new subsystem with the namespaces of its configuration at every listener of the configuration.
pub async fn add_subsystem(
    target: &Rc<Target>,
    owner: Owner,
    config: &SubsystemConfig,
) -> Result<Rc<Served>, LiveError> {
    add_subsystem_at(target, owner, config, Ports::Declared).await
}

/// Serves a new subsystem with the namespaces of its configuration at some ports.
pub async fn add_subsystem_at(
    target: &Rc<Target>,
    owner: Owner,
    config: &SubsystemConfig,
    ports: Ports,
) -> Result<Rc<Served>, LiveError> {
    let _change = target.changes.lock().await;
    check_running(target)?;
    if config.nqn.is_discovery() {
        return Err(LiveError::Discovery);
    }
    if let Some(there) = target.find(&config.nqn) {
        return Err(LiveError::SubsystemExists {
            nqn: config.nqn.clone(),
            owner: there.owner,
        });
    }
    let mut namespaces = Vec::new();
    for namespace in &config.namespaces {
        check_nsid(namespace.nsid)?;
        namespaces.push(Arc::new(open(target, &config.nqn, namespace).await?));
    }
    let subsystem = target.assemble(config, NamespaceTable::new(namespaces));
    let discovery = Snapshot::take(target);
    let served = target.add(subsystem, owner, ports).await;
    discovery.announce(target);
    tracing::info!(subsystem = %config.nqn, "subsystem added");
    Ok(served)
}

/// Ends the service of a subsystem. Its hosts are gone and their writes have finished when this ends.
pub async fn remove_subsystem(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
) -> Result<(), LiveError> {
    let taken = {
        let _change = target.changes.lock().await;
        owned(target, owner, nqn)?;
        let discovery = Snapshot::take(target);
        let taken = target.take_away(nqn);
        discovery.announce(target);
        taken
    };
    // Outside of the lock: hosts with writes on slow storage must not hold up changes of other subsystems.
    if let Some(served) = taken {
        target.see_off(&served).await;
    }
    tracing::info!(subsystem = %nqn, "subsystem removed");
    Ok(())
}

/// Changes who may connect. Hosts that may not any more are *fenced* when this ends: their controllers are gone and no write of
/// theirs can reach storage any more.
pub async fn set_hosts(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    hosts: HostAccess,
) -> Result<(), LiveError> {
    change_hosts(target, owner, nqn, |_| hosts).await
}

/// Lets a host connect. That it may already is no error; where any host may, nothing changes.
pub async fn add_host(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    host: &Nqn,
) -> Result<(), LiveError> {
    let with = |hosts: &HostAccess| match hosts {
        HostAccess::Any => HostAccess::Any,
        HostAccess::Only(names) => HostAccess::Only(names.iter().chain([host]).cloned().collect()),
    };
    change_hosts(target, owner, nqn, with).await
}

/// Lets a host connect no more, and fences it as [`set_hosts`] does. That it may not is no error. Where any host may, nothing changes.
pub async fn remove_host(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    host: &Nqn,
) -> Result<(), LiveError> {
    let without = |hosts: &HostAccess| match hosts {
        HostAccess::Any => HostAccess::Any,
        HostAccess::Only(names) => {
            HostAccess::Only(names.iter().filter(|name| *name != host).cloned().collect())
        }
    };
    change_hosts(target, owner, nqn, without).await
}

async fn change_hosts(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    change: impl FnOnce(&HostAccess) -> HostAccess,
) -> Result<(), LiveError> {
    let served = {
        let _change = target.changes.lock().await;
        let served = owned(target, owner, nqn)?;
        let hosts = change(&served.subsystem.borrow().hosts);
        admit_only(target, &served, hosts);
        served
    };
    // Outside of the lock: a host with writes on slow storage must not hold up changes of other subsystems. Nobody who is not allowed
    // can come in meanwhile, and whoever is allowed again meanwhile was cut off once.
    fence_strangers(&served).await;
    Ok(())
}

/// Changes who may connect, without fencing those that may not any more: [`fence_strangers`] must follow.
pub async fn admit(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    hosts: HostAccess,
) -> Result<Rc<Served>, LiveError> {
    let _change = target.changes.lock().await;
    let served = owned(target, owner, nqn)?;
    admit_only(target, &served, hosts);
    Ok(served)
}

fn admit_only(target: &Target, served: &Served, hosts: HostAccess) {
    let discovery = Snapshot::take(target);
    served.subsystem.borrow_mut().hosts = hosts;
    discovery.announce(target);
}

/// Changes where hosts may connect. Those that are connected stay.
pub async fn set_ports(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    ports: Ports,
) -> Result<(), LiveError> {
    let _change = target.changes.lock().await;
    let served = owned(target, owner, nqn)?;
    let discovery = Snapshot::take(target);
    served.ports.replace(ports);
    discovery.announce(target);
    Ok(())
}

/// Ends the associations of hosts that are not allowed, and waits until nothing of them can reach storage any more.
pub async fn fence_strangers(served: &Served) {
    let allowed = served.subsystem.borrow().hosts.clone();
    served
        .end_where(
            |association| !allowed.allows(&association.shared.host_nqn),
            EndReason::NotAllowed,
        )
        .await;
}

/// The hosts that are connected to a subsystem.
pub fn connected_hosts(served: &Served) -> Vec<Nqn> {
    let live = served.associations_where(|association| association.stage() == Stage::Live);
    let mut hosts: Vec<Nqn> = live.iter().map(|a| a.shared.host_nqn.clone()).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Serves one more namespace.
pub async fn add_namespace(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    config: &NamespaceConfig,
) -> Result<(), LiveError> {
    let _change = target.changes.lock().await;
    let served = owned(target, owner, nqn)?;
    check_free(&served, config.nsid)?;
    let namespace = open(target, nqn, config).await?;
    put(target, &served, Arc::new(namespace)).await;
    Ok(())
}

/// Serves one more namespace on storage that is open already.
pub async fn add_opened(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    namespace: Namespace,
) -> Result<(), LiveError> {
    let _change = target.changes.lock().await;
    let served = owned(target, owner, nqn)?;
    check_free(&served, namespace.nsid.0)?;
    put(target, &served, Arc::new(namespace)).await;
    Ok(())
}

/// Serves a namespace no more. Its commands have finished when this ends; later ones complete with Invalid Namespace.
pub async fn remove_namespace(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    nsid: u32,
) -> Result<(), LiveError> {
    let _change = target.changes.lock().await;
    let served = owned(target, owner, nqn)?;
    namespace_of(&served, nsid)?;
    // A shard forgets whose commands they were once the namespace is gone, so they are waited for first.
    let scope = Scope::Namespace(served.id(), Nsid(nsid));
    target.shards.pause(&scope).await;
    target.shards.drain(&scope).await;
    let table = served.subsystem.borrow().namespaces.without(Nsid(nsid));
    set_table(target, &served, table, Nsid(nsid)).await;
    target.shards.resume(&scope).await;
    Ok(())
}

/// Looks at the size of a namespace's storage again, after growing a file to `size_bytes` where that is given, and tells hosts what it
/// is. Returns the size. Asking for less than there is is refused; a size that was reached already is no error.
pub async fn resize_namespace(
    target: &Rc<Target>,
    owner: Owner,
    nqn: &Nqn,
    nsid: u32,
    size_bytes: Option<u64>,
) -> Result<u64, LiveError> {
    let _change = target.changes.lock().await;
    let served = owned(target, owner, nqn)?;
    let namespace = namespace_of(&served, nsid)?;
    let now_bytes = namespace.geometry.size_bytes();
    if let Some(wanted_bytes) = size_bytes.filter(|wanted| *wanted < now_bytes) {
        return Err(LiveError::Shrink {
            nqn: nqn.clone(),
            nsid,
            now_bytes,
            wanted_bytes,
        });
    }
    let backing = Arc::clone(&namespace.backing);
    let grown = blocking(move || backing.resize(size_bytes)).await;
    grown.map_err(|error| storage_error(nqn, nsid, error))?;
    let resized = target.opener.remeasured(nqn, &namespace)?;
    let size_bytes = resized.geometry.size_bytes();
    if resized.geometry != namespace.geometry {
        tracing::info!(subsystem = %nqn, namespace = %nsid, size_bytes, "namespace resized");
        put(target, &served, Arc::new(resized)).await;
    }
    Ok(size_bytes)
}

/// Writes and all other commands to some namespaces are held while this lives: none runs, none completes. Reads are held too.
///
/// Hosts wait meanwhile, and give up after half a minute or so: hold for as long as a reflink takes, no longer.
pub struct Hold {
    target: Rc<Target>,
    scopes: Vec<Scope>,
}

/// Holds the commands to these namespaces, given by subsystem and NSID; when this returns none of them runs in storage any more. All are
/// held before the first is waited for, so that there is an instant at which all stand still.
pub async fn hold(target: &Rc<Target>, namespaces: &[(Nqn, u32)]) -> Result<Hold, LiveError> {
    let mut hold = Hold {
        target: Rc::clone(target),
        scopes: Vec::new(),
    };
    let mut scopes = Vec::new();
    for (nqn, nsid) in namespaces {
        let served = target
            .find(nqn)
            .ok_or_else(|| LiveError::NoSubsystem(nqn.clone()))?;
        namespace_of(&served, *nsid)?;
        scopes.push(Scope::Namespace(served.id(), Nsid(*nsid)));
    }
    for scope in scopes {
        // Noted first: if this future is dropped at the await, the pause is ended all the same.
        hold.scopes.push(scope.clone());
        target.shards.pause(&scope).await;
    }
    for scope in &hold.scopes {
        target.shards.drain(scope).await;
    }
    Ok(hold)
}

impl Hold {
    /// Lets the commands run, in their order.
    pub async fn release(mut self) {
        for scope in std::mem::take(&mut self.scopes) {
            self.target.shards.resume(&scope).await;
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for scope in std::mem::take(&mut self.scopes) {
            let target = Rc::clone(&self.target);
            net::spawn(async move { target.shards.resume(&scope).await });
        }
    }
}

fn check_running(target: &Target) -> Result<(), LiveError> {
    if target.stopping.get() {
        return Err(LiveError::Stopping);
    }
    Ok(())
}

/// The subsystem, if it is `owner`'s to change.
fn owned(target: &Target, owner: Owner, nqn: &Nqn) -> Result<Rc<Served>, LiveError> {
    check_running(target)?;
    if nqn.is_discovery() {
        return Err(LiveError::Discovery);
    }
    let served = target.find(nqn);
    let served = served.ok_or_else(|| LiveError::NoSubsystem(nqn.clone()))?;
    if served.owner != owner {
        return Err(LiveError::NotOwner {
            nqn: nqn.clone(),
            owner: served.owner,
        });
    }
    Ok(served)
}

fn check_nsid(nsid: u32) -> Result<(), LiveError> {
    if limits::NSID.contains(&u64::from(nsid)) {
        Ok(())
    } else {
        Err(LiveError::Nsid(nsid))
    }
}

fn check_free(served: &Served, nsid: u32) -> Result<(), LiveError> {
    check_nsid(nsid)?;
    match namespace_of(served, nsid) {
        Ok(_) => Err(LiveError::NamespaceExists {
            nqn: served.info.nqn.clone(),
            nsid,
        }),
        Err(_) => Ok(()),
    }
}

fn namespace_of(served: &Served, nsid: u32) -> Result<Arc<Namespace>, LiveError> {
    let found = served
        .subsystem
        .borrow()
        .namespaces
        .get(Nsid(nsid))
        .cloned();
    found.ok_or_else(|| LiveError::NoNamespace {
        nqn: served.info.nqn.clone(),
        nsid,
    })
}

/// Puts a namespace in place and tells hosts.
async fn put(target: &Target, served: &Served, namespace: Arc<Namespace>) {
    let nsid = namespace.nsid;
    let table = served.subsystem.borrow().namespaces.with(namespace);
    set_table(target, served, table, nsid).await;
}

async fn set_table(target: &Target, served: &Served, table: NamespaceTable, changed: Nsid) {
    let table = Arc::new(table);
    target.shards.set_namespaces(served.id(), &table).await;
    served.subsystem.borrow_mut().namespaces = table;
    tracing::info!(subsystem = %served.info.nqn, namespace = %changed, "namespace changed");
    target.namespace_changed(served, changed);
}

/// Opens storage on a thread of its own: that can take as long as the storage does.
pub async fn open_backing(config: &NamespaceConfig) -> Result<Backing, BackingError> {
    let storage = config.storage.clone();
    let options = BackingOptions {
        read_only: config.read_only,
        block_bytes: config.block_bytes,
    };
    blocking(move || Backing::open(&storage, &options)).await
}

async fn open(
    target: &Target,
    nqn: &Nqn,
    config: &NamespaceConfig,
) -> Result<Namespace, LiveError> {
    let opened = open_backing(config).await;
    let backing = opened.map_err(|error| storage_error(nqn, config.nsid, error))?;
    let backing = Some(Arc::new(backing));
    Ok(target.opener.open(nqn, config, backing, NO_PATIENCE)?)
}

fn storage_error(nqn: &Nqn, nsid: u32, error: BackingError) -> LiveError {
    let nqn = nqn.clone();
    LiveError::Storage(OpenError { nqn, nsid, error })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        // Nobody aborts it, and the runtime outlives this.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
