//! A controller over all its associations: connect, serve, lose, reconnect, end.
//!
//! One task on the control thread owns all of it. It makes associations, gives their I/O queues to the shards, follows the
//! controller's events, and when an association is lost it closes every queue, decides with [`LossPolicy`] when to try
//! again and when to fail I/O, and checks after a reconnect that each namespace is still the one that it was.
//!
//! Invariants: a new association is begun only after every shard has said that no connection of the old one is open; a head is
//! made live only on an association on which its namespace was identified again.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvme_proto::wire::event::{AsyncEvent, async_event_request_sqe};
use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::log::LogId;
use nvme_proto::wire::{Cntlid, Nsid, Qid};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant as TokioInstant, sleep_until};

use super::aborts::Aborts;
use super::admin::AdminData;
use super::association::Association;
use super::error::{AdminError, ConnectError};
use super::message::{
    ControllerKey, FromShard, HeadKey, HeadState, NewQueue, NewWire, ShardPort, ToShard,
};
use super::namespace::NamespaceInfo;
use super::policy::{GiveUp, Loss, LossAction, LossPolicy};
use super::request::IoError;
use super::scan::{Which, scan};
use crate::host::HostIdentity;
use crate::options::Target;

/// What a controller is made from.
#[derive(Debug, Clone)]
pub struct ControllerSpec {
    /// Where and how.
    pub target: Target,
    /// As whom.
    pub host: HostIdentity,
    /// The shards that get I/O queues, in this order, round and round.
    pub shards: Vec<ShardPort>,
    /// Which namespaces get heads.
    pub which: Which,
}

impl ControllerSpec {
    fn wanted_queues(&self) -> u16 {
        self.target
            .options
            .nr_io_queues
            .unwrap_or(self.shards.len().clamp(1, u16::MAX.into()) as u16)
    }
}

/// What is known of a controller once it is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerInfo {
    /// The identifier of this association's controller.
    pub cntlid: Cntlid,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// I/O queues.
    pub queues: u16,
    /// How many of the shards, from the first, have at least one queue.
    pub shards: usize,
}

/// What happens to a controller after it was connected.
#[derive(Debug)]
pub enum ControllerEvent {
    /// A namespace appeared; its head is open on the first [`ControllerInfo::shards`] shards.
    Added {
        /// Its key.
        head: HeadKey,
        /// What it is.
        info: Arc<NamespaceInfo>,
    },
    /// A namespace changed its size or its limits.
    Changed {
        /// Its key.
        head: HeadKey,
        /// What it is now.
        info: Arc<NamespaceInfo>,
    },
    /// A namespace is gone, or another one is in its place; its I/O fails with this error. Close its head
    /// ([`ToShard::CloseHead`]) when nobody uses it any more.
    Gone {
        /// Its key.
        head: HeadKey,
        /// What its I/O fails with.
        error: IoError,
    },
    /// The association is lost; I/O is held.
    Lost {
        /// Why.
        cause: String,
    },
    /// `fast_io_fail_tmo` has passed: I/O fails until the controller is back.
    FailingIo,
    /// A new association stands; I/O goes on.
    Reconnected(ControllerInfo),
    /// The controller is given up; all its I/O fails. It waits to be disconnected.
    GivenUp {
        /// Why.
        cause: String,
    },
}

/// What a controller can be told.
#[derive(Debug)]
pub(crate) enum ControllerCommand {
    /// End the association in order, close all heads, and end the task.
    Disconnect(OnEnd),
    /// Look for changed namespaces.
    Rescan(oneshot::Sender<Result<(), String>>),
    /// One of the structures of Identify.
    Identify(Cns, Nsid, oneshot::Sender<Result<Vec<u8>, AdminError>>),
}

/// Called once when the controller has ended, or dropped when it had ended before.
pub(crate) struct OnEnd(Box<dyn FnOnce() + Send>);

impl fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnEnd")
    }
}

/// The owner's end of a controller.
#[derive(Debug, Clone)]
pub struct ControllerHandle {
    commands: mpsc::UnboundedSender<ControllerCommand>,
}

impl ControllerHandle {
    /// Ends the association in order and closes all heads; returns when that is done.
    pub async fn disconnect(&self) {
        let (done, answered) = oneshot::channel();
        self.begin_disconnect(move || _ = done.send(()));
        // An error means that it had ended before.
        let _ = answered.await;
    }

    /// As [`ControllerHandle::disconnect`], without waiting: `ended` is called by the control thread when that is done,
    /// and dropped when there is nothing to end any more.
    pub fn begin_disconnect(&self, ended: impl FnOnce() + Send + 'static) {
        let _ = self
            .commands
            .send(ControllerCommand::Disconnect(OnEnd(Box::new(ended))));
    }

    /// Looks for changed namespaces now; what is found comes as events.
    pub async fn rescan(&self) -> Result<(), String> {
        let (done, answered) = oneshot::channel();
        let _ = self.commands.send(ControllerCommand::Rescan(done));
        answered
            .await
            .unwrap_or_else(|_| Err("the controller is disconnected".to_owned()))
    }

    /// One of the 4096-byte structures of Identify.
    pub async fn identify(&self, cns: Cns, nsid: Nsid) -> Result<Vec<u8>, AdminError> {
        let (done, answered) = oneshot::channel();
        let _ = self
            .commands
            .send(ControllerCommand::Identify(cns, nsid, done));
        answered
            .await
            .unwrap_or_else(|_| Err(AdminError::Ended("disconnected".to_owned())))
    }
}

/// A controller that was just connected.
#[derive(Debug)]
pub struct Connected {
    /// To command it with.
    pub handle: ControllerHandle,
    /// What it says of itself.
    pub info: ControllerInfo,
    /// Its namespaces, with their heads.
    pub namespaces: Vec<(HeadKey, Arc<NamespaceInfo>)>,
    /// What happens to it.
    pub events: mpsc::UnboundedReceiver<ControllerEvent>,
}

/// Connects a controller; it is served by a task of its own on this tokio-uring runtime, which ends after a disconnect or
/// with the last handle.
pub async fn connect(spec: ControllerSpec) -> Result<(Connected, JoinHandle<()>), ConnectError> {
    let fresh = Fresh::establish(&spec, 1).await?;
    let (mut task, handle, mut events) = Task::new(spec);
    let info = task.adopt(fresh)?;
    // Those that are there from the start are told in the answer.
    while events.try_recv().is_ok() {}
    let namespaces = task.heads();
    let served = tokio_uring::spawn(task.run(None));
    Ok((
        Connected {
            handle,
            info,
            namespaces,
            events,
        },
        served,
    ))
}

/// A controller that was taken up again and is not connected yet.
#[derive(Debug)]
pub struct Resumed {
    /// To command it with.
    pub handle: ControllerHandle,
    /// Its namespaces as they were, with their heads.
    pub namespaces: Vec<(HeadKey, Arc<NamespaceInfo>)>,
    /// What happens to it; a first [`ControllerEvent::Reconnected`] says that it is connected.
    pub events: mpsc::UnboundedReceiver<ControllerEvent>,
}

/// Takes a controller up again that an earlier process had connected with queues on so many shards, and with the namespaces
/// as they were: their I/O is held until the first association stands.
pub fn resume(spec: ControllerSpec, shards: usize, known: Vec<NamespaceInfo>) -> Resumed {
    let (mut task, handle, events) = Task::new(spec);
    task.shards_in_use = shards.clamp(1, task.spec.shards.len());
    for info in known {
        task.open(info, HeadState::Held);
    }
    let namespaces = task.heads();
    let loss = LossPolicy::new(&task.spec.target.options).resumed(task.now_ms());
    tokio_uring::spawn(task.run(Some(loss)));
    Resumed {
        handle,
        namespaces,
        events,
    }
}

/// An association with its queues, not yet given to the shards.
struct Fresh {
    association: Association,
    queues: Vec<NewWire>,
    namespaces: Vec<NamespaceInfo>,
}

impl Fresh {
    /// Connects, brings up, connects the I/O queues and identifies the namespaces.
    async fn establish(spec: &ControllerSpec, needed_queues: u16) -> Result<Fresh, ConnectError> {
        let (target, host) = (&spec.target, &spec.host);
        let association = Association::establish(target, host, target.options.kato_ms()).await?;
        if association.is_discovery() {
            let what = "it is a discovery controller; see `discover` and `connect-all`".to_owned();
            return Err(ConnectError::Unusable(what));
        }
        let granted = association
            .set_number_of_queues(spec.wanted_queues())
            .await?;
        if granted < needed_queues {
            return Err(ConnectError::TooFewQueues {
                granted,
                needed: needed_queues,
            });
        }
        let connecting = async {
            let mut queues = Vec::with_capacity(granted.into());
            for qid in 1..=granted {
                let link = association.connect_io_queue(target, host, Qid(qid));
                queues.push(link.await?.into_wire()?);
            }
            Ok::<_, ConnectError>(queues)
        };
        let queues = association.kept_alive(connecting).await?;
        let namespaces = scan(&association, spec.which).await?;
        Ok(Fresh {
            association,
            queues,
            namespaces,
        })
    }
}

struct Attached {
    head: HeadKey,
    info: Arc<NamespaceInfo>,
}

struct Task {
    spec: ControllerSpec,
    key: ControllerKey,
    association: Option<Association>,
    /// Counts associations.
    number: u32,
    namespaces: Vec<Attached>,
    /// How many shards, from the first, have queues and heads; fixed by the first association.
    shards_in_use: usize,
    /// Set by the shards when anything is received.
    traffic: Arc<AtomicBool>,
    queue_events: mpsc::UnboundedReceiver<FromShard>,
    queue_sink: mpsc::UnboundedSender<FromShard>,
    commands: mpsc::UnboundedReceiver<ControllerCommand>,
    events: mpsc::UnboundedSender<ControllerEvent>,
    started: Instant,
}

/// The owner wants the controller to end, and perhaps to be told when it has.
struct Disconnect(Option<OnEnd>);

/// Why an association is not served any longer.
enum Over {
    Lost(String),
    Disconnect(Disconnect),
}

impl Task {
    fn new(
        spec: ControllerSpec,
    ) -> (
        Self,
        ControllerHandle,
        mpsc::UnboundedReceiver<ControllerEvent>,
    ) {
        let (queue_sink, queue_events) = mpsc::unbounded_channel();
        let (command_sink, commands) = mpsc::unbounded_channel();
        let (events, event_source) = mpsc::unbounded_channel();
        let task = Task {
            spec,
            key: ControllerKey::unique(),
            association: None,
            number: 0,
            namespaces: Vec::new(),
            shards_in_use: 0,
            traffic: Arc::new(AtomicBool::new(false)),
            queue_events,
            queue_sink,
            commands,
            events,
            started: Instant::now(),
        };
        (
            task,
            ControllerHandle {
                commands: command_sink,
            },
            event_source,
        )
    }

    /// Serves the controller to its end; begins with a loss where there is no association yet.
    async fn run(mut self, mut loss: Option<Loss>) {
        let Disconnect(on_end) = loop {
            if let Some(loss) = loss.take()
                && let Err(disconnect) = self.recover(loss).await
            {
                break disconnect;
            }
            match self.serve().await {
                Over::Disconnect(disconnect) => break disconnect,
                Over::Lost(cause) => {
                    tracing::warn!(subnqn = self.spec.target.subnqn, address = %self.spec.target.address, cause, "connection lost");
                    self.tell(ControllerEvent::Lost { cause });
                    self.drop_association().await;
                    loss = Some(LossPolicy::new(&self.spec.target.options).lost(self.now_ms()));
                }
            }
        };
        self.finish().await;
        if let Some(OnEnd(ended)) = on_end {
            ended();
        }
    }

    // --- a live association ----------------------------------------------------------------------------------------

    /// Gives a new association's queues to the shards and makes the heads of namespaces that are still the same live.
    fn adopt(&mut self, fresh: Fresh) -> Result<ControllerInfo, ConnectError> {
        self.number += 1;
        if self.shards_in_use == 0 {
            self.shards_in_use = fresh.queues.len().min(self.spec.shards.len());
        }
        let queues = fresh.queues.len() as u16;
        for (index, wire) in fresh.queues.into_iter().enumerate() {
            let queue = NewQueue {
                controller: self.key,
                association: self.number,
                qid: Qid(index as u16 + 1),
                wire,
                io_timeout_ms: self.spec.target.options.io_timeout_ms,
                events: self.queue_sink.clone(),
                traffic: self.traffic.clone(),
            };
            let shard = &self.spec.shards[index % self.spec.shards.len()];
            if !shard.post(ToShard::AddQueue(Box::new(queue))) {
                return Err(ConnectError::ShardGone);
            }
        }
        let id = &fresh.association.identify;
        let info = ControllerInfo {
            cntlid: fresh.association.cntlid,
            serial: id.sn.to_string(),
            model: id.mn.to_string(),
            firmware: id.fr.to_string(),
            queues,
            shards: self.shards_in_use,
        };
        self.association = Some(fresh.association);
        self.reconcile(fresh.namespaces);
        for attached in &self.namespaces {
            self.post(|| ToShard::SetState {
                head: attached.head,
                state: HeadState::Live,
            });
        }
        Ok(info)
    }

    async fn serve(&mut self) -> Over {
        let Some(association) = self.association.take() else {
            return Over::Lost("there is no association".to_owned());
        };
        let over = self.serve_association(&association).await;
        self.association = Some(association);
        over
    }

    async fn serve_association(&mut self, association: &Association) -> Over {
        let keep_alive_every = association.keep_alive_period();
        let mut keep_alive_at = TokioInstant::now() + keep_alive_every;
        // What was heard until now was heard before the first period.
        association.admin.take_heard();
        let mut just_said = false;
        let request_event = || {
            Box::pin(
                association
                    .admin
                    .command_untimed(async_event_request_sqe(), AdminData::None),
            )
        };
        let mut event = request_event();
        let mut events_work = true;
        let mut aborts = Aborts::new(&association.admin, association.identify.acl);
        loop {
            tokio::select! {
                cause = association.admin.wait_ended() => return Over::Lost(format!("admin queue: {cause}")),
                Some(event) = self.queue_events.recv() => match event {
                    FromShard::QueueFailed { association: number, qid, error } if number == self.number => {
                        return Over::Lost(format!("I/O queue {qid}: {error}"));
                    }
                    FromShard::CommandLate { association: number, qid, cid } if number == self.number => {
                        aborts.ask(qid, cid);
                    }
                    // Of an association that is over.
                    FromShard::QueueFailed { .. } | FromShard::CommandLate { .. } => {}
                },
                error = aborts.failed() => return Over::Lost(format!("Abort: {error}")),
                result = &mut event, if events_work => match result {
                    Ok(reply) => {
                        if let Err(error) = self.on_event(association, AsyncEvent(reply.cqe.dw0.get())).await {
                            return Over::Lost(error.to_string());
                        }
                        event = request_event();
                    }
                    Err(AdminError::Status(status)) => {
                        tracing::warn!(%status, "Asynchronous Event Request refused; changes will not be noticed");
                        events_work = false;
                    }
                    Err(error) => return Over::Lost(format!("admin queue: {error}")),
                },
                () = sleep_until(keep_alive_at), if !keep_alive_every.is_zero() => {
                    keep_alive_at = TokioInstant::now() + keep_alive_every;
                    just_said = match self.keep_alive(association, just_said).await {
                        Ok(said) => said,
                        Err(error) => return Over::Lost(format!("keep-alive: {error}")),
                    };
                }
                command = self.commands.recv() => match command {
                    None => return Over::Disconnect(Disconnect(None)),
                    Some(ControllerCommand::Disconnect(end)) => return Over::Disconnect(Disconnect(Some(end))),
                    Some(ControllerCommand::Rescan(reply)) => {
                        let result = self.rescan(association).await.map_err(|error| error.to_string());
                        let _ = reply.send(result);
                    }
                    Some(ControllerCommand::Identify(cns, nsid, reply)) => {
                        let _ = reply.send(association.identify_raw(cns, nsid).await);
                    }
                },
            }
        }
    }

    /// Keep Alive, unless traffic has said the same since the last look, or Keep Alive at the last look; whether it was sent.
    async fn keep_alive(
        &self,
        association: &Association,
        just_said: bool,
    ) -> Result<bool, AdminError> {
        let heard = association.admin.take_heard() | self.traffic.swap(false, Ordering::Relaxed);
        if association.has_traffic_based_keep_alive() && (heard || just_said) {
            return Ok(false);
        }
        association.keep_alive().await?;
        // Its own answer is no traffic that could stand in for the next one.
        association.admin.take_heard();
        Ok(true)
    }

    async fn on_event(
        &mut self,
        association: &Association,
        event: AsyncEvent,
    ) -> Result<(), ConnectError> {
        tracing::debug!(?event, "asynchronous event");
        match event.log() {
            LogId::CHANGED_NAMESPACES => {
                // Reading the page lets the next event through; what changed is found by looking at everything, since
                // the page may have overflowed.
                const LIST_BYTES: u32 = 4096;
                association
                    .log_page(LogId::CHANGED_NAMESPACES, LIST_BYTES, 0)
                    .await
                    .map_err(|source| ConnectError::Admin {
                        command: "Get Log Page (changed namespaces)",
                        source,
                    })?;
                self.rescan(association).await
            }
            log => {
                tracing::info!(
                    ?event,
                    log = log.0,
                    "event without consequence for this host"
                );
                Ok(())
            }
        }
    }

    async fn rescan(&mut self, association: &Association) -> Result<(), ConnectError> {
        let found = scan(association, self.spec.which).await?;
        self.reconcile(found);
        Ok(())
    }

    /// Compares what is there with what was there.
    fn reconcile(&mut self, found: Vec<NamespaceInfo>) {
        let mut found: Vec<_> = found.into_iter().map(Some).collect();
        for mut attached in std::mem::take(&mut self.namespaces) {
            let now = found.iter_mut().find(|now| {
                now.as_ref()
                    .is_some_and(|now| now.nsid == attached.info.nsid)
            });
            let error = match now {
                None => IoError::Removed,
                Some(now) => {
                    let is_same = |now: &mut NamespaceInfo| {
                        now.identity == attached.info.identity
                            && now.block_bytes == attached.info.block_bytes
                    };
                    match now.take_if(is_same) {
                        Some(now) => {
                            if now != *attached.info {
                                attached.info = Arc::new(now);
                                self.post(|| ToShard::Reshape {
                                    head: attached.head,
                                    info: attached.info.clone(),
                                });
                                let (head, info) = (attached.head, attached.info.clone());
                                self.tell(ControllerEvent::Changed { head, info });
                            }
                            self.namespaces.push(attached);
                            continue;
                        }
                        None => IoError::IdentityChanged,
                    }
                }
            };
            tracing::warn!(nsid = %attached.info.nsid, identity = %attached.info.identity, %error, "namespace gone");
            self.post(|| ToShard::SetState {
                head: attached.head,
                state: HeadState::Failing(error),
            });
            self.tell(ControllerEvent::Gone {
                head: attached.head,
                error,
            });
        }
        for info in found.into_iter().flatten() {
            let (head, info) = self.open(info, HeadState::Live);
            self.tell(ControllerEvent::Added { head, info });
        }
    }

    fn open(&mut self, info: NamespaceInfo, state: HeadState) -> (HeadKey, Arc<NamespaceInfo>) {
        let (head, info) = (HeadKey::unique(), Arc::new(info));
        let controller = self.key;
        self.post(|| ToShard::OpenHead {
            head,
            controller,
            info: info.clone(),
            state,
        });
        self.namespaces.push(Attached {
            head,
            info: info.clone(),
        });
        (head, info)
    }

    // --- loss ------------------------------------------------------------------------------------------------------

    /// Closes every socket of the association, and waits until that is done.
    async fn drop_association(&mut self) {
        self.close_queues().await;
        if let Some(association) = self.association.take() {
            association.admin.close().await;
        }
    }

    async fn close_queues(&self) {
        let mut pending = Vec::new();
        for shard in &self.spec.shards {
            let (closed, answered) = oneshot::channel();
            if shard.post(ToShard::CloseQueues {
                controller: self.key,
                closed,
            }) {
                pending.push(answered);
            }
        }
        for answered in pending {
            // An error means that the shard is gone, and its sockets with it.
            let _ = answered.await;
        }
    }

    /// Waits, tries, fails I/O and gives up as the policy says, until an association stands.
    async fn recover(&mut self, mut loss: Loss) -> Result<(), Disconnect> {
        loop {
            match loss.poll(self.now_ms()) {
                LossAction::FailIo => self.fail_io(),
                LossAction::WaitUntil(at_ms) => self.wait_until(at_ms).await?,
                LossAction::GiveUp(reason) => return Err(self.given_up(reason).await),
                LossAction::Reconnect => {
                    if let Some(info) = self.attempt(&mut loss).await? {
                        tracing::info!(
                            subnqn = self.spec.target.subnqn,
                            attempts = loss.attempts(),
                            "reconnected"
                        );
                        self.tell(ControllerEvent::Reconnected(info));
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One attempt. `Ok(None)`: it failed, the policy knows.
    async fn attempt(&mut self, loss: &mut Loss) -> Result<Option<ControllerInfo>, Disconnect> {
        let spec = self.spec.clone();
        let needed = self.shards_in_use as u16;
        let mut establishing = Box::pin(Fresh::establish(&spec, needed));
        loop {
            // fast_io_fail_tmo may pass while an attempt hangs.
            let fail_io_at = loss.fail_io_deadline_ms().map(|at| self.instant(at));
            let result = tokio::select! {
                result = &mut establishing => result,
                () = async { sleep_until(fail_io_at.unwrap_or_else(TokioInstant::now)).await }, if fail_io_at.is_some() => {
                    loss.io_failed();
                    self.fail_io();
                    continue;
                }
                command = self.commands.recv() => {
                    while_lost(command)?;
                    continue;
                }
            };
            let adopted = match result {
                Ok(fresh) => self.adopt(fresh),
                Err(error) => Err(error),
            };
            return match adopted {
                Ok(info) => Ok(Some(info)),
                Err(error) => {
                    let (subnqn, attempt) = (&self.spec.target.subnqn, loss.attempts());
                    if loss.is_news(&error.to_string()) {
                        tracing::warn!(subnqn, attempt, %error, "no reconnect yet; said again when the reason changes");
                    } else {
                        tracing::debug!(subnqn, attempt, %error, "no reconnect yet");
                    }
                    self.drop_association().await;
                    loss.attempt_failed(self.now_ms(), error.status());
                    Ok(None)
                }
            };
        }
    }

    async fn wait_until(&mut self, at_ms: u64) -> Result<(), Disconnect> {
        let at = self.instant(at_ms);
        loop {
            tokio::select! {
                () = sleep_until(at) => return Ok(()),
                command = self.commands.recv() => while_lost(command)?,
            }
        }
    }

    fn fail_io(&mut self) {
        tracing::warn!(
            subnqn = self.spec.target.subnqn,
            "fast_io_fail_tmo passed, I/O fails until the reconnect"
        );
        self.set_all(HeadState::Failing(IoError::FastIoFail));
        self.tell(ControllerEvent::FailingIo);
    }

    async fn given_up(&mut self, reason: GiveUp) -> Disconnect {
        tracing::error!(subnqn = self.spec.target.subnqn, %reason, "controller given up");
        self.set_all(HeadState::Failing(IoError::Lost));
        self.tell(ControllerEvent::GivenUp {
            cause: reason.to_string(),
        });
        loop {
            if let Err(disconnect) = while_lost(self.commands.recv().await) {
                return disconnect;
            }
        }
    }

    /// Ends everything: queues first, so that held commands fail as closed and none goes out any more.
    async fn finish(mut self) {
        self.close_queues().await;
        for attached in std::mem::take(&mut self.namespaces) {
            self.post(|| ToShard::CloseHead {
                head: attached.head,
            });
        }
        if let Some(association) = self.association.take() {
            association.shut_down().await;
        }
    }

    // --- helpers ---------------------------------------------------------------------------------------------------

    fn heads(&self) -> Vec<(HeadKey, Arc<NamespaceInfo>)> {
        self.namespaces
            .iter()
            .map(|ns| (ns.head, ns.info.clone()))
            .collect()
    }

    fn set_all(&self, state: HeadState) {
        for attached in &self.namespaces {
            self.post(|| ToShard::SetState {
                head: attached.head,
                state,
            });
        }
    }

    /// Posts to every shard that has heads. A shard that is gone has no I/O to care for.
    fn post(&self, message: impl Fn() -> ToShard) {
        for shard in &self.spec.shards[..self.shards_in_use] {
            shard.post(message());
        }
    }

    fn tell(&self, event: ControllerEvent) {
        // Without a receiver the owner is not interested.
        let _ = self.events.send(event);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn instant(&self, at_ms: u64) -> TokioInstant {
        TokioInstant::from_std(self.started + Duration::from_millis(at_ms))
    }
}

/// What a command means while there is no association.
fn while_lost(command: Option<ControllerCommand>) -> Result<(), Disconnect> {
    const NOT_NOW: &str = "the controller is not connected at the moment";
    match command {
        None => return Err(Disconnect(None)),
        Some(ControllerCommand::Disconnect(end)) => return Err(Disconnect(Some(end))),
        // Whoever asked may have gone.
        Some(ControllerCommand::Rescan(reply)) => drop(reply.send(Err(NOT_NOW.to_owned()))),
        Some(ControllerCommand::Identify(_, _, reply)) => {
            drop(reply.send(Err(AdminError::Ended(NOT_NOW.to_owned()))));
        }
    }
    Ok(())
}
