//! The life of the process: start, signals, stop.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::association::EndReason;
use super::flush::flush;
use super::listeners;
use super::live::Owner;
use super::net;
use super::open::Opener;
use super::ports::Ports;
use super::ready;
use super::reload;
use super::shards::Shards;
use super::target::Target;
use super::watch;
use crate::api::manager::Manager;
use crate::api::open::Places;
use crate::api::server::Server;
use crate::api::{Methods, base, spdk};
use crate::config::Config;
use crate::config::cli::Cli;
use crate::config::identity::Identity;
use crate::pool::serve::{self, Pools};
use crate::shard::{CloseReason, ShardEvent};

/// Everything finished and flushed.
pub const EXIT_STOPPED: u8 = 0;
/// Could not start, or failed while running.
pub const EXIT_FAILED: u8 = 1;
/// The command line or the file is wrong.
pub const EXIT_USAGE: u8 = 2;
/// A second signal ended it before commands had finished.
pub const EXIT_CUT_SHORT: u8 = 3;

/// How long to wait for storage that a target which was killed has not let go of yet.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// Serves until a signal ends it.
pub fn serve(cli: &Cli, config: Config, identity: Identity) -> anyhow::Result<u8> {
    // Each connection takes a descriptor, an admin connection two.
    if let Err(error) = nvmf_io::probe::raise_nofile_limit() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    let runtime = net::runtime().map_err(explain_ring)?;
    let result = runtime.block_on(run(cli, config, identity));
    // Operations on sockets of hosts that were cut off may still be with the kernel; the runtime would wait for them.
    std::mem::forget(runtime);
    result
}

fn explain_ring(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(nvmf_io::RingError::from_setup(error))
        .context("the control thread cannot start")
}

async fn run(cli: &Cli, config: Config, identity: Identity) -> anyhow::Result<u8> {
    // Registered first: a signal that comes early must not kill the process without a word.
    let mut signals = Signals::register()?;
    let (events, shard_events) = mpsc::unbounded_channel();
    let nqns: Vec<_> = config.subsystems.iter().map(|s| s.nqn.clone()).collect();
    let mut places = crate::api::open::places(&config.api)?;
    let pools = Pools::open(config.pools.clone(), START_PATIENCE).await?;
    let pools = Rc::new(pools);
    let (target, manager) = start(config, identity, &pools, events, &mut places).await?;
    net::spawn(follow_shards(Rc::clone(&target), shard_events));
    net::spawn(watch::watch(Rc::downgrade(&target)));
    let api = match (places, manager) {
        (Some(places), Some(manager)) => Some(open_api(&manager, &pools, places)?),
        _ => None,
    };
    let addresses = target.listeners.addresses();
    if let Some(path) = &cli.ready_file {
        ready::write_ready_file(path, &addresses)
            .with_context(|| format!("the ready file {} cannot be written", path.display()))?;
    }
    ready::announce(&addresses, &nqns, cli.json);
    while let Caught::Reload = signals.next().await {
        tokio::select! {
            () = reload::reload(cli, &target) => {}
            // Half a reload is no harm to a target that stops.
            () = signals.stop() => break,
        }
    }
    if let Some(api) = api {
        api.stop().await;
    }
    tracing::info!(
        "stopping: no new connections, commands are finished and flushed; another signal ends at once"
    );
    tokio::select! {
        () = stop(&target) => {
            if let Some(path) = &cli.ready_file {
                // Nobody listens there any more.
                let _ = std::fs::remove_file(path);
            }
            tracing::info!("stopped");
            Ok(EXIT_STOPPED)
        }
        () = signals.stop() => {
            tracing::warn!("ended by a second signal; commands may not have finished");
            Ok(EXIT_CUT_SHORT)
        }
    }
}

/// Brings up shards, subsystems and listeners, in this order: a host that can connect finds everything.
async fn start(
    config: Config,
    identity: Identity,
    pools: &Pools,
    events: mpsc::UnboundedSender<ShardEvent>,
    places: &mut Option<Places>,
) -> anyhow::Result<(Rc<Target>, Option<Rc<Manager>>)> {
    if identity.from_host_name {
        tracing::warn!(
            "this machine has no /etc/machine-id, so identifiers are derived from its host name: they change when that does"
        );
    }
    let handles = super::shards::start(&config, events)?;
    let opener = Opener {
        identity,
        shards: handles.len(),
    };
    let subsystems = config.subsystems.clone();
    let addresses = config.listeners.clone();
    let target = Target::new(config, opener, Shards::new(handles));
    for subsystem in &subsystems {
        let prepared = target.prepare(subsystem, START_PATIENCE)?;
        target.add(prepared, Owner::File, Ports::Declared).await;
    }
    pools.serve_all(&target, START_PATIENCE).await;
    let manager = match places {
        Some(places) => Some(Manager::restore(&target, places.state_dir.take()).await?),
        None => None,
    };
    for (configured, listener) in listeners::bind(&target.rdma, &addresses)? {
        target.listeners.start(&target, configured, listener, true);
    }
    target.listeners.settle(&target).await;
    Ok((target, manager))
}

/// Opens the management API with all of its methods.
fn open_api(manager: &Rc<Manager>, pools: &Rc<Pools>, places: Places) -> anyhow::Result<Server> {
    let mut methods = Methods::default();
    spdk::register_all(&mut methods, manager);
    serve::register(&mut methods, pools);
    base::register(&mut methods);
    let server = Server::start(&manager.target, methods, places);
    server.context("the management API cannot be served")
}

/// Ends everything in order: no new hosts, commands finished, storage flushed.
async fn stop(target: &Rc<Target>) {
    ready::stopping();
    target.stopping.set(true);
    // What is being changed is changed first.
    let _change = target.changes.lock().await;
    target.listeners.stop_all().await;
    for served in target.subsystems() {
        served.end_all(EndReason::Stopping).await;
    }
    target.discovery.end_all(EndReason::Stopping).await;
    target.shards.stop().await;
    for served in target.subsystems() {
        flush(&served).await;
    }
}

/// Keeps the books on queues that end.
async fn follow_shards(target: Rc<Target>, mut events: mpsc::UnboundedReceiver<ShardEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            ShardEvent::QueueClosed {
                shard,
                controller,
                qid,
                reason,
            } => {
                target.shards.unplace(shard);
                let association = target.association(controller);
                if let Some(association) = association {
                    association.release_queue(qid);
                    let host = &association.shared.host_nqn;
                    match reason {
                        CloseReason::HostClosed
                        | CloseReason::Disconnected
                        | CloseReason::Dropped => {
                            tracing::debug!(%host, controller = %controller.cntlid, queue = %qid, "I/O queue closed: {reason:?}");
                        }
                        reason => {
                            tracing::warn!(%host, controller = %controller.cntlid, queue = %qid, "I/O queue closed: {reason:?}");
                        }
                    }
                }
            }
            ShardEvent::RdmaClosed(id) => target.rdma.forget(id),
            ShardEvent::Failed { shard, reason } => {
                // Its queues are gone, and its namespaces are out of reach for every host placed there.
                tracing::error!(shard, "a shard has failed: {reason}");
                std::process::exit(i32::from(EXIT_FAILED));
            }
        }
    }
}

enum Caught {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn register() -> io::Result<Self> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.hangup.recv() => Caught::Reload,
            _ = self.terminate.recv() => Caught::Stop,
            _ = self.interrupt.recv() => Caught::Stop,
        }
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
