//! A controller over all its associations: connect, serve, lose, reconnect, end.
//!
//! One task on the control thread owns all of it. It makes associations, gives their I/O queues to the shards, follows the
//! controller's events, and when an association is lost it closes every queue, decides with [`LossPolicy`] when to try
//! again and when to fail I/O, and checks after a reconnect that each namespace is still the one that it was.
//!
//! Invariants: a new association is begun only after every shard has said that no connection of the old one is open; a head is
//! made live only on an association on which its namespace was identified again.
//!
//! Here is how an association begins and the controller ends; [`serving`] is what happens between, [`lost`] what is done when it breaks,
//! [`owner`] what others see.

mod lost;
mod owner;
mod serving;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nvme_proto::wire::Qid;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant as TokioInstant;

pub use self::owner::{Connected, ControllerEvent, ControllerHandle, ControllerInfo, Resumed};
use self::owner::{ControllerCommand, OnEnd};
use super::association::Association;
use super::error::ConnectError;
use super::message::{
    ControllerKey, FromShard, HeadKey, HeadState, NewQueue, NewWire, ShardPort, ToShard,
};
use super::namespace::NamespaceInfo;
use super::policy::{Loss, LossPolicy};
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
