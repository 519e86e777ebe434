//! What the API made: kept in the state directory, brought back at start, changed one request at a time.
//!
//! A change is kept before it is made: [`Manager::commit`] saves the state as it shall be, then carries the change out. What
//! cannot be saved is not done; what cannot be done is taken back from what was saved. So an answer of success means that a restart
//! brings it back, and after a crash in the middle the client, who had no answer, finds the old or the new.

use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use nvmf_rpc::RpcError;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::spawn_blocking;

use super::bdev::{Bdev, Wanted};
use super::state::{self, NamespaceRecord, State, StateError, SubsystemRecord};
use super::state_dir::StateDir;
use crate::config::{Address, NamespaceConfig, SubsystemConfig};
use crate::control::live::{self, LiveError, Owner};
use crate::control::ports::Ports;
use crate::control::target::Target;
use crate::model::{HostAccess, Namespace, Nqn};

/// How long to wait at start for storage that a target which was killed has not let go of yet.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// What the API made, and the right to change it.
pub struct Manager {
    /// The target.
    pub target: Rc<Target>,
    directory: Option<StateDir>,
    state: RefCell<State>,
    bdevs: RefCell<BTreeMap<String, Bdev>>,
    changes: Mutex<()>,
}

/// The right to change what the API made: one request has it at a time.
pub struct Change<'a>(#[expect(dead_code, reason = "held, not used")] MutexGuard<'a, ()>);

impl Manager {
    /// Brings back what is kept in `directory`; `None` starts empty and keeps nothing. What cannot be served any more, because its storage is
    /// gone or the configuration has its name now, is logged and kept: it may come back at another start.
    pub async fn restore(
        target: &Rc<Target>,
        directory: Option<StateDir>,
    ) -> Result<Rc<Self>, StateError> {
        let state = match &directory {
            Some(directory) => state::load(&directory.path)?,
            None => State::default(),
        };
        let manager = Manager {
            target: Rc::clone(target),
            directory,
            state: RefCell::new(state.clone()),
            bdevs: RefCell::default(),
            changes: Mutex::new(()),
        };
        for (carrier, record) in state.transports() {
            target
                .transports
                .borrow_mut()
                .insert(carrier, record.clone());
        }
        for record in &state.bdevs {
            let wanted = Wanted::from(record.clone());
            match wanted.open(START_PATIENCE, target.shards.count()).await {
                Ok(bdev) => manager.put_bdev(bdev),
                Err(error) => tracing::error!("{}; it is not served", error.message),
            }
        }
        for record in &state.subsystems {
            if let Err(error) = manager.bring_back(record).await {
                tracing::error!(subsystem = %record.nqn, "not served in full: {}", error.message);
            }
        }
        Ok(Rc::new(manager))
    }

    async fn bring_back(&self, record: &SubsystemRecord) -> Result<(), RpcError> {
        let nqn = self.add_subsystem(record).await?;
        for namespace in &record.namespaces {
            if let Err(error) = self.add_namespace(&nqn, namespace).await {
                let nsid = namespace.nsid;
                tracing::error!(subsystem = %nqn, nsid, "not served: {}", error.message);
            }
        }
        Ok(())
    }

    /// Serves a subsystem as it is written down, without its namespaces.
    pub async fn add_subsystem(&self, record: &SubsystemRecord) -> Result<Nqn, RpcError> {
        let nqn = parse_subsystem(&record.nqn)?;
        let config = SubsystemConfig {
            nqn: nqn.clone(),
            serial: record.serial.clone(),
            model: record.model.clone(),
            hosts: hosts_of(record)?,
            namespaces: Vec::new(),
        };
        let ports = ports_of(record)?;
        live::add_subsystem_at(&self.target, Owner::Api, &config, ports).await?;
        Ok(nqn)
    }

    /// Serves a namespace as it is written down.
    pub async fn add_namespace(&self, nqn: &Nqn, record: &NamespaceRecord) -> Result<(), RpcError> {
        let bdev = self.bdev(&record.bdev)?;
        let namespace = self.namespace(nqn, record, &bdev)?;
        Ok(live::add_opened(&self.target, Owner::Api, nqn, namespace).await?)
    }

    fn namespace(
        &self,
        nqn: &Nqn,
        record: &NamespaceRecord,
        bdev: &Bdev,
    ) -> Result<Namespace, LiveError> {
        let config = NamespaceConfig {
            nsid: record.nsid,
            storage: bdev.backing.spec().clone(),
            block_bytes: Some(bdev.record.block_bytes),
            read_only: bdev.record.read_only,
            uuid: Some(record.uuid.unwrap_or(bdev.uuid)),
            nguid: record.nguid,
            eui64: record.eui64,
        };
        let backing = Some(bdev.backing.clone());
        let opener = &self.target.opener;
        let namespace = opener.open(nqn, &config, backing, Duration::ZERO)?;
        Ok(Namespace {
            counters: bdev.counters.clone(),
            ..namespace
        })
    }

    /// What is kept.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// All open block devices, by name.
    pub fn bdevs(&self) -> Vec<Bdev> {
        self.bdevs.borrow().values().cloned().collect()
    }

    /// The block device with this name or UUID.
    pub fn bdev(&self, name: &str) -> Result<Bdev, RpcError> {
        let bdevs = self.bdevs.borrow();
        let by_uuid = || {
            bdevs
                .values()
                .find(|bdev| bdev.uuid.to_string().eq_ignore_ascii_case(name))
        };
        let found = bdevs.get(name).or_else(by_uuid);
        found.cloned().ok_or_else(|| super::bdev::no_bdev(name))
    }

    /// Notes an open block device.
    pub fn put_bdev(&self, bdev: Bdev) {
        let name = bdev.record.name.clone();
        self.bdevs.borrow_mut().insert(name, bdev);
    }

    /// Closes a block device once nobody uses it.
    pub fn drop_bdev(&self, name: &str) {
        self.bdevs.borrow_mut().remove(name);
    }

    /// Waits for the right to change something.
    pub async fn begin(&self) -> Change<'_> {
        Change(self.changes.lock().await)
    }

    /// Makes a change: keeps `after`, carries `apply` out, and takes `after` back if that fails.
    pub async fn commit<T>(
        &self,
        _change: &Change<'_>,
        after: State,
        apply: impl Future<Output = Result<T, RpcError>>,
    ) -> Result<T, RpcError> {
        let before = self.state.borrow().clone();
        self.save(after.clone()).await?;
        match apply.await {
            Ok(done) => {
                self.state.replace(after);
                Ok(done)
            }
            Err(error) => {
                if let Err(error) = self.save(before).await {
                    tracing::error!("what was not done is written down as done: {error}");
                }
                Err(error)
            }
        }
    }

    async fn save(&self, state: State) -> Result<(), RpcError> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let path = directory.path.clone();
        let place = path.display().to_string();
        match spawn_blocking(move || state::save(&path, &state)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(RpcError::system(
                &format!("nothing was changed, since it could not be kept in {place}"),
                &error,
            )),
            Err(error) => Err(RpcError::internal(format!("keeping failed: {error}"))),
        }
    }
}

/// A subsystem's name as a request gives it.
pub fn parse_subsystem(nqn: &str) -> Result<Nqn, RpcError> {
    let parsed = crate::config::nqn::subsystem_nqn(nqn);
    parsed.map_err(|error| RpcError::invalid(error.to_string()))
}

/// A host's name as a request gives it.
pub fn parse_host(nqn: &str) -> Result<Nqn, RpcError> {
    let parsed = crate::config::nqn::host_nqn(nqn);
    parsed.map_err(|error| RpcError::invalid(error.to_string()))
}

/// Who may connect to a subsystem that is written down.
pub fn hosts_of(record: &SubsystemRecord) -> Result<HostAccess, RpcError> {
    if record.allow_any_host {
        return Ok(HostAccess::Any);
    }
    let hosts: Result<BTreeSet<Nqn>, _> =
        record.hosts.iter().map(|host| parse_host(host)).collect();
    Ok(HostAccess::Only(hosts?))
}

/// Where a subsystem that is written down is served.
pub fn ports_of(record: &SubsystemRecord) -> Result<Ports, RpcError> {
    let listeners = record.listeners.iter();
    let addresses: Result<BTreeSet<Address>, RpcError> =
        listeners.map(super::spdk::address::parse).collect();
    Ok(Ports::Only(addresses?))
}
