//! SIGHUP: reads the configuration again and applies what differs.
//!
//! Everything that can fail comes first, storage opened and sockets bound; a configuration that cannot be had in full changes
//! nothing. What does not differ is not touched: its connections go on as if nothing had happened.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nvme_proto::wire::Nsid;

use super::association::{Association, EndReason};
use super::discovery::Snapshot;
use super::listeners::{self, Bound};
use super::live::Owner;
use super::open::OpenError;
use super::plan::{Plan, SubsystemChange};
use super::ports::Ports;
use super::ready;
use super::target::{Served, Target};
use crate::api::tls::Tls;
use crate::config::cli::Cli;
use crate::config::{Address, Config};
use crate::model::{HostAccess, Namespace, NamespaceTable, Subsystem};

/// Opening blocks the control thread, and hosts wait for their keep-alives: storage in use is refused at once.
const NO_PATIENCE: Duration = Duration::ZERO;

/// Reads the configuration again and applies it, or says why not and leaves everything as it was.
pub async fn reload(cli: &Cli, target: &Rc<Target>) {
    ready::reloading();
    let outcome = apply(cli, target).await;
    let status = match &outcome {
        Ok(()) => "hosts can connect",
        Err(_) => "hosts can connect; the configuration was not reloaded, see the log",
    };
    match outcome {
        Ok(()) => {
            if let Some(path) = &cli.ready_file
                && let Err(error) = ready::write_ready_file(path, &target.listeners.addresses())
            {
                tracing::error!(path = %path.display(), "the ready file cannot be written: {error}");
            }
            tracing::info!("configuration reloaded");
        }
        Err(error) => {
            let text = crate::logging::with_causes(&error);
            tracing::error!("the configuration stays as it was: {text}");
        }
    }
    ready::ready(status);
}

/// What was opened for a plan, ready to be put in place.
struct Prepared {
    added: Vec<Subsystem>,
    changes: Vec<Change>,
    opened: Vec<(Address, Bound)>,
    /// Who may use the management API over TCP from now on, if it is served there.
    api_tls: Option<Tls>,
}

/// Changes of one subsystem.
struct Change {
    served: Rc<Served>,
    hosts: Option<HostAccess>,
    /// Without what goes; `None` where nothing does.
    without_removed: Option<NamespaceTable>,
    /// With what comes and what has another size; `None` where nothing changes.
    complete: Option<NamespaceTable>,
    /// Namespaces that hosts have to look at again.
    changed: Vec<Nsid>,
}

async fn apply(cli: &Cli, target: &Rc<Target>) -> anyhow::Result<()> {
    let _change = target.changes.lock().await;
    let config = cli.config(&target.opener.identity)?;
    let plan = Plan::between(&target.config.borrow(), &config);
    for new in &plan.added {
        if let Some(there) = target.find(&new.nqn)
            && there.owner != Owner::File
        {
            anyhow::bail!(
                "there is a subsystem {} already; it is {}",
                new.nqn,
                there.owner
            );
        }
    }
    let prepared = prepare(target, &config, &plan).await?;
    for key in &plan.needs_restart {
        tracing::warn!("{key} has changed; that takes effect at the next start");
    }
    put_in_place(target, config, plan, prepared).await;
    Ok(())
}

async fn prepare(target: &Rc<Target>, config: &Config, plan: &Plan) -> anyhow::Result<Prepared> {
    let served = target.api_tls.borrow().is_some();
    let api_tls = config.api.tls.as_ref().filter(|_| served);
    // Read even if nothing differs: certificates are renewed in their places.
    let api_tls = api_tls.map(Tls::load).transpose()?;
    let added: Result<Vec<_>, OpenError> = plan
        .added
        .iter()
        .map(|new| target.prepare(new, NO_PATIENCE))
        .collect();
    let changes: Result<Vec<_>, OpenError> = plan
        .kept
        .iter()
        .filter_map(|change| Some((change, target.find(&change.nqn)?)))
        .map(|(change, served)| prepare_change(target, change, served))
        .collect();
    let (added, changes) = (added?, changes?);
    // Last, since an old listener may have to go first to make room.
    let opened = bind(target, plan).await?;
    Ok(Prepared {
        added,
        changes,
        opened,
        api_tls,
    })
}

fn prepare_change(
    target: &Target,
    change: &SubsystemChange,
    served: Rc<Served>,
) -> Result<Change, OpenError> {
    let table = Arc::clone(&served.subsystem.borrow().namespaces);
    let mut changed: Vec<Nsid> = change.removed.iter().map(|nsid| Nsid(*nsid)).collect();
    let without_removed = (!changed.is_empty()).then(|| {
        let stays = |namespace: &&Arc<Namespace>| !changed.contains(&namespace.nsid);
        NamespaceTable::new(table.iter().filter(stays).cloned())
    });
    let mut complete = without_removed.clone().unwrap_or_else(|| (*table).clone());
    let mut differs = false;
    for config in &change.kept {
        let Some(namespace) = table.get(Nsid(config.nsid)) else {
            continue;
        };
        match target.opener.resized(&change.nqn, namespace, config) {
            Ok(Some(resized)) => {
                tracing::info!(
                    subsystem = %change.nqn, namespace = %resized.nsid,
                    size_bytes = resized.geometry.size_bytes(), "namespace resized"
                );
                changed.push(resized.nsid);
                complete = complete.with(Arc::new(resized));
                differs = true;
            }
            Ok(None) => {}
            // What happened to its storage behind our back is no fault of the configuration.
            Err(error) => tracing::error!("{error}; it is served at its old size"),
        }
    }
    for config in &change.added {
        let namespace = target.open(&change.nqn, config, NO_PATIENCE)?;
        if !changed.contains(&namespace.nsid) {
            changed.push(namespace.nsid);
        }
        complete = complete.with(Arc::new(namespace));
        differs = true;
    }
    Ok(Change {
        served,
        hosts: change.hosts.clone(),
        without_removed,
        complete: differs.then_some(complete),
        changed,
    })
}

/// Binds the new listeners. A new one may need the port of an old one (127.0.0.1 becomes 0.0.0.0): then the old ones go first, and
/// come back if that did not help.
///
/// Where the API listens already nothing is bound: the listener becomes the configuration's.
async fn bind(target: &Rc<Target>, plan: &Plan) -> anyhow::Result<Vec<(Address, Bound)>> {
    let mut wanted = plan.opened.clone();
    wanted.retain(|address| !target.listeners.has_undeclared(*address));
    let first = listeners::bind(&target.rdma, &wanted);
    match first {
        Err(error) if error.kind() == ErrorKind::AddrInUse && !plan.closed.is_empty() => {
            let mut addresses = Vec::new();
            for closed in &plan.closed {
                if target.listeners.stop(*closed).await {
                    addresses.push(*closed);
                }
            }
            let second = listeners::bind(&target.rdma, &wanted);
            if second.is_err() {
                for (address, listener) in listeners::bind(&target.rdma, &addresses)? {
                    target.listeners.start(target, address, listener, true);
                }
            }
            Ok(second?)
        }
        outcome => Ok(outcome?),
    }
}

async fn put_in_place(target: &Rc<Target>, config: Config, plan: Plan, prepared: Prepared) {
    let discovery = Snapshot::take(target);
    let old_keys = target.config.replace(config).authentication.keys;
    // Whoever got in with the old keys, or without any, has to show that it has the new.
    for served in target.subsystems() {
        let changed = |association: &Association| {
            let host = &association.shared.host_nqn;
            target.config.borrow().authentication.keys.get(host) != old_keys.get(host)
        };
        served.end_where(changed, EndReason::KeysChanged).await;
    }
    if let Some(tls) = prepared.api_tls {
        target.api_tls.replace(Some(Rc::new(tls)));
    }
    for closed in &plan.closed {
        target.listeners.stop(*closed).await;
    }
    for nqn in &plan.removed {
        tracing::info!(subsystem = %nqn, "subsystem removed");
        target.remove(nqn).await;
    }
    for change in prepared.changes {
        change_subsystem(target, change).await;
    }
    for subsystem in prepared.added {
        tracing::info!(subsystem = %subsystem.nqn, "subsystem added");
        target.add(subsystem, Owner::File, Ports::Declared).await;
    }
    for configured in &plan.opened {
        target.listeners.declare(*configured);
    }
    for (configured, listener) in prepared.opened {
        target.listeners.start(target, configured, listener, true);
    }
    target.listeners.settle(target).await;
    discovery.announce(target);
}

async fn change_subsystem(target: &Target, change: Change) {
    let served = &change.served;
    let id = served.id();
    // In two steps where something goes and comes under one NSID, so that no command meant for the old meets the new.
    for table in [change.without_removed, change.complete]
        .into_iter()
        .flatten()
    {
        let table = Arc::new(table);
        target.shards.set_namespaces(id, &table).await;
        served.subsystem.borrow_mut().namespaces = table;
    }
    for nsid in change.changed {
        tracing::info!(subsystem = %served.info.nqn, namespace = %nsid, "namespace changed");
        target.namespace_changed(served, nsid);
    }
    if let Some(hosts) = change.hosts {
        served.subsystem.borrow_mut().hosts = hosts.clone();
        served
            .end_where(
                |association| !hosts.allows(&association.shared.host_nqn),
                EndReason::NotAllowed,
            )
            .await;
    }
}
