//! The shards as the control thread sees them: where a queue goes, and questions that go to all of them.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use nvme_proto::wire::{Cid, Qid};
use nvmf_io::verbs::IdKey;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::model::{ControllerKey, NamespaceTable, SubsystemId};
use crate::shard::{
    Adopt, Reply, Scope, ShardConfig, ShardEvent, ShardGone, ShardHandle, ShardMessage, ShardStats,
};

/// Shards that are started when no cores are named. Each takes a thread and some memory even when idle; who needs more
/// names cores.
const MAX_DEFAULT_SHARDS: usize = 8;

/// All shards of the process.
pub struct Shards {
    handles: Vec<ShardHandle>,
    /// I/O queues of each, by which new ones are placed.
    queues: RefCell<Vec<usize>>,
    /// I/O queues that each was ever given.
    placed: RefCell<Vec<u64>>,
}

impl Shards {
    /// Takes over running shards.
    pub fn new(handles: Vec<ShardHandle>) -> Self {
        let queues = RefCell::new(vec![0; handles.len()]);
        let placed = RefCell::new(vec![0; handles.len()]);
        Shards {
            handles,
            queues,
            placed,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Chooses the shard with the fewest queues for one more, and counts it.
    pub fn place(&self) -> usize {
        let mut queues = self.queues.borrow_mut();
        let least = queues.iter().enumerate().min_by_key(|(_, count)| **count);
        let shard = least.map_or(0, |(index, _)| index);
        queues[shard] += 1;
        self.placed.borrow_mut()[shard] += 1;
        shard
    }

    /// How many I/O queues each shard was given since the start.
    pub fn placed_so_far(&self) -> Vec<u64> {
        self.placed.borrow().clone()
    }

    /// A queue that was placed on the shard is gone.
    pub fn unplace(&self, shard: usize) {
        self.queues.borrow_mut()[shard] -= 1;
    }

    /// Hands a connection to a shard.
    pub fn adopt(&self, shard: usize, adopt: Adopt) -> Result<(), ShardGone> {
        self.handles[shard].send(ShardMessage::Adopt(Box::new(adopt)))
    }

    /// Tells a shard that the host closed an RDMA connection.
    pub fn hung_up(&self, shard: usize, id: IdKey) {
        // A shard that has ended has no connections.
        let _ = self.handles[shard].send(ShardMessage::HungUp(id));
    }

    /// Tells every shard that an RDMA device is gone.
    pub fn forget_devices(&self) {
        for handle in &self.handles {
            // A shard that has ended has no registrations.
            let _ = handle.send(ShardMessage::ForgetDevices);
        }
    }

    /// Makes the table the one that every shard uses for the subsystem.
    pub async fn set_namespaces(&self, subsystem: SubsystemId, table: &Arc<NamespaceTable>) {
        self.ask_all(|ack| ShardMessage::Namespaces {
            subsystem,
            table: Arc::clone(table),
            ack,
        })
        .await;
    }

    /// Ends every I/O queue of a controller. Nothing of it can reach storage any more when this ends.
    pub async fn drop_controller(&self, controller: ControllerKey) {
        self.ask_all(|ack| ShardMessage::DropController { controller, ack })
            .await;
    }

    /// Aborts a command of an I/O queue; whether it was.
    pub async fn abort(&self, shard: usize, controller: ControllerKey, qid: Qid, cid: Cid) -> bool {
        let (reply, answer) = oneshot::channel();
        let message = ShardMessage::Abort {
            controller,
            qid,
            cid,
            reply,
        };
        // A shard that is gone has aborted everything, but nobody can say what was done before.
        self.handles[shard].send(message).is_ok() && answer.await.unwrap_or(false)
    }

    /// Holds the commands in the scope until [`Shards::resume`]; those that run go on. Pauses nest.
    pub async fn pause(&self, scope: &Scope) {
        self.ask_all(|ack| ShardMessage::Pause {
            scope: scope.clone(),
            ack,
        })
        .await;
    }

    /// Waits until no command in the scope, which is paused, runs in storage any more.
    pub async fn drain(&self, scope: &Scope) {
        self.ask_all(|ack| ShardMessage::Drain {
            scope: scope.clone(),
            ack,
        })
        .await;
    }

    /// Ends one pause of the scope.
    pub async fn resume(&self, scope: &Scope) {
        self.ask_all(|ack| ShardMessage::Resume {
            scope: scope.clone(),
            ack,
        })
        .await;
    }

    /// What each shard tells about itself, in their order; one that is gone is left out.
    pub async fn stats(&self) -> Vec<ShardStats> {
        self.ask_all(|reply| ShardMessage::Stats { reply }).await
    }

    /// Forgets a subsystem without associations.
    pub async fn forget(&self, subsystem: SubsystemId) {
        self.set_namespaces(subsystem, &Arc::default()).await;
    }

    /// Drains and ends all shards.
    pub async fn stop(&self) {
        self.ask_all(|ack| ShardMessage::Stop { ack }).await;
    }

    /// Asks every shard at once and gathers the answers of those that live.
    async fn ask_all<T>(&self, message: impl Fn(Reply<T>) -> ShardMessage) -> Vec<T> {
        let answers: Vec<_> = self
            .handles
            .iter()
            .map(|handle| {
                let (reply, answer) = oneshot::channel();
                // An undelivered message drops its reply, which ends the wait below.
                let _ = handle.send(message(reply));
                answer
            })
            .collect();
        let mut gathered = Vec::new();
        for answer in answers {
            gathered.extend(answer.await.ok());
        }
        gathered
    }
}

/// Starts the shards that the configuration asks for: one on each core of the list, or without a list as many as the process
/// may use cores, up to a bound, wherever the scheduler puts them.
pub fn start(
    config: &Config,
    events: UnboundedSender<ShardEvent>,
) -> anyhow::Result<Vec<ShardHandle>> {
    let cores: Vec<Option<usize>> = match &config.cores {
        Some(set) => set.cores().iter().copied().map(Some).collect(),
        None => {
            let allowed = nvmf_io::cpu::allowed().map_or(1, |cores| cores.len());
            vec![None; allowed.clamp(1, MAX_DEFAULT_SHARDS)]
        }
    };
    let shards = cores.into_iter().enumerate().map(|(index, core)| {
        let shard = ShardConfig {
            core,
            busy_poll: Duration::from_micros(config.busy_poll_us.into()),
            buffer_bytes: usize::try_from(config.limits.buffer_bytes).unwrap_or(usize::MAX),
            ..ShardConfig::new(index)
        };
        Ok(ShardHandle::spawn(shard, events.clone())?)
    });
    shards.collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn queues_go_where_the_fewest_are() {
        let (events, _keep) = unbounded_channel();
        let spawn = |index| ShardHandle::spawn(ShardConfig::new(index), events.clone()).unwrap();
        let shards = Shards::new((0..4).map(spawn).collect());
        let placed: Vec<_> = (0..8).map(|_| shards.place()).collect();
        assert_eq!(placed, [0, 1, 2, 3, 0, 1, 2, 3]);
        // Queues that end make room where they were, however many come and go.
        for shard in [2, 2, 1] {
            shards.unplace(shard);
        }
        let placed: Vec<_> = (0..4).map(|_| shards.place()).collect();
        assert_eq!(placed, [2, 1, 2, 0]);
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(shards.stop());
    }
}
