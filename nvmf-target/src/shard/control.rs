//! What the control thread asks for: adopting queues, namespaces that change, pauses, drains and drops.

use std::sync::Arc;

use nvme_proto::wire::{Nsid, Qid};
use nvmf_io::buf::copied_bytes;
use nvmf_io::verbs::IdKey;

use super::message::{
    Adopt, CloseReason, Connection, QueueStats, Reply, Scope, ShardEvent, ShardMessage, ShardStats,
};
use super::queue::Queue;
use super::run::Shard;
use super::spaces::SpaceId;
use crate::model::{ControllerKey, NamespaceTable, SubsystemId};

impl Scope {
    /// Whether all commands of this queue are meant.
    fn has_queue(&self, queue: &Queue) -> bool {
        match self {
            Self::Controller(key) => queue.controller.key == *key,
            Self::Host(nqn) => queue.controller.host_nqn == *nqn,
            Self::Namespace(..) | Self::Subsystem(_) => false,
        }
    }

    /// Whether all commands to this namespace are meant.
    fn has_namespace(&self, subsystem: SubsystemId, nsid: Nsid) -> bool {
        match self {
            Self::Namespace(id, only) => (*id, *only) == (subsystem, nsid),
            Self::Subsystem(id) => *id == subsystem,
            Self::Controller(_) | Self::Host(_) => false,
        }
    }
}

impl Shard {
    pub(super) fn handle(&mut self, message: ShardMessage) {
        match message {
            ShardMessage::Adopt(adopt) => self.adopt(*adopt),
            ShardMessage::Namespaces {
                subsystem,
                table,
                ack,
            } => {
                self.replace_namespaces(subsystem, &table);
                acknowledge(ack);
            }
            ShardMessage::Pause { scope, ack } => {
                self.change_pause(&scope, true);
                self.pauses.push(scope);
                acknowledge(ack);
            }
            ShardMessage::Resume { scope, ack } => {
                if let Some(at) = self.pauses.iter().position(|pause| *pause == scope) {
                    self.pauses.swap_remove(at);
                    self.change_pause(&scope, false);
                    self.release_held();
                }
                acknowledge(ack);
            }
            ShardMessage::Drain { scope, ack } => self.drains.push((scope, ack)),
            ShardMessage::DropController { controller, ack } => {
                self.drops.push((controller, ack));
                let scope = Scope::Controller(controller);
                self.drain_queues(|queue| scope.has_queue(queue));
                self.answer_drops();
            }
            ShardMessage::Abort {
                controller,
                qid,
                cid,
                reply,
            } => {
                let found = self
                    .queues()
                    .find(|queue| queue.controller.key == controller && queue.qid == qid);
                match found.map(|queue| queue.key) {
                    Some(key) => self.with(key, |queue, cx| queue.abort(cx, cid, reply)),
                    None => {
                        let _ = reply.send(false);
                    }
                }
            }
            ShardMessage::HungUp(id) => {
                let found = self.queues().find(|queue| queue.is_link(id));
                if let Some(key) = found.map(|queue| queue.key) {
                    self.with(key, |queue, cx| queue.close(cx, CloseReason::HostClosed));
                }
            }
            ShardMessage::ForgetDevices => self.cx.registrars.prune(),
            ShardMessage::Stats { reply } => {
                let _ = reply.send(self.stats());
            }
            ShardMessage::Stop { ack } => {
                self.stopping = Some(ack);
                self.drain_queues(|_| true);
            }
        }
    }

    fn adopt(&mut self, adopt: Adopt) {
        let (controller, qid) = (adopt.controller.key, adopt.qid);
        let link = match &adopt.connection {
            Connection::Tcp { .. } => None,
            Connection::Rdma(qp) => Some(qp.id().key()),
        };
        let key = if self.stopping.is_none() {
            self.free_key()
        } else {
            None
        };
        let Some(key) = key else {
            return self.not_adopted(controller, qid, link, CloseReason::Dropped);
        };
        let mut queue = match Queue::new(key, adopt, 0, &mut self.cx) {
            Ok(queue) => queue,
            Err(reason) => {
                return self.not_adopted(controller, qid, link, CloseReason::Socket(reason));
            }
        };
        queue.paused = self
            .pauses
            .iter()
            .filter(|pause| pause.has_queue(&queue))
            .count() as u32;
        self.insert(queue);
    }

    /// A connection was dropped instead of being adopted.
    fn not_adopted(
        &self,
        controller: ControllerKey,
        qid: Qid,
        link: Option<IdKey>,
        reason: CloseReason,
    ) {
        let closed = ShardEvent::QueueClosed {
            shard: self.cx.shard,
            controller,
            qid,
            reason,
        };
        let link = link.map(ShardEvent::RdmaClosed);
        for event in std::iter::once(closed).chain(link) {
            // Nobody listens when the process ends.
            let _ = self.cx.events.send(event);
        }
    }

    fn replace_namespaces(&mut self, subsystem: SubsystemId, table: &Arc<NamespaceTable>) {
        let pauses = &self.pauses;
        let paused = |nsid| {
            pauses
                .iter()
                .filter(|pause| pause.has_namespace(subsystem, nsid))
                .count() as u32
        };
        self.cx
            .spaces
            .replace(subsystem, table, &mut self.cx.ring, paused);
        // Those held for a namespace that is gone are refused now.
        self.release_held();
    }

    fn change_pause(&mut self, scope: &Scope, begins: bool) {
        let change = |paused: &mut u32| match begins {
            true => *paused += 1,
            false => *paused = paused.saturating_sub(1),
        };
        for key in self.keys() {
            self.with(key, |queue, _| {
                if scope.has_queue(queue) {
                    change(&mut queue.paused);
                }
            });
        }
        for space in self.spaces_in(scope) {
            change(&mut self.cx.spaces.get_mut(space).paused);
        }
    }

    fn spaces_in(&self, scope: &Scope) -> Vec<SpaceId> {
        let (Scope::Namespace(subsystem, _) | Scope::Subsystem(subsystem)) = scope else {
            return Vec::new();
        };
        let spaces = self.cx.spaces.of_subsystem(*subsystem);
        spaces
            .filter(|(nsid, _)| scope.has_namespace(*subsystem, *nsid))
            .map(|(_, space)| space)
            .collect()
    }

    fn release_held(&mut self) {
        for key in self.keys() {
            self.with(key, |queue, cx| queue.release_held(cx));
        }
    }

    fn drain_queues(&mut self, which: impl Fn(&Queue) -> bool) {
        for key in self.keys() {
            self.with(key, |queue, cx| {
                if which(queue) {
                    queue.drain(cx, CloseReason::Dropped);
                }
            });
        }
    }

    /// Answers the drains of scopes in which nothing runs.
    pub(super) fn answer_drains(&mut self) {
        let mut drains = std::mem::take(&mut self.drains);
        for (_, ack) in drains.extract_if(.., |(scope, _)| !self.runs(scope)) {
            acknowledge(ack);
        }
        self.drains = drains;
    }

    fn runs(&mut self, scope: &Scope) -> bool {
        let on_queues = self
            .queues()
            .any(|queue| scope.has_queue(queue) && queue.running > 0);
        let spaces = self.spaces_in(scope);
        on_queues
            || spaces
                .into_iter()
                .any(|space| self.cx.spaces.get_mut(space).running > 0)
    }

    /// Answers the drops of controllers that have no queue here any more.
    pub(super) fn answer_drops(&mut self) {
        let mut drops = std::mem::take(&mut self.drops);
        let gone = |key| self.queues().all(|queue| queue.controller.key != key);
        for (_, ack) in drops.extract_if(.., |(controller, _)| gone(*controller)) {
            acknowledge(ack);
        }
        self.drops = drops;
    }

    fn stats(&self) -> ShardStats {
        let waiting =
            |queue: &Queue| queue.waiting.len() + usize::from(queue.wire.blocked().is_some());
        ShardStats {
            queues: self
                .queues()
                .map(|queue| QueueStats {
                    controller: queue.controller.key,
                    qid: queue.qid,
                    in_flight: queue.wire.queue().in_flight() as u32,
                    commands: queue.commands,
                })
                .collect(),
            buffers_in_use: self.cx.pool.in_use() as u64,
            buffer_bytes_reserved: self.cx.pool.mapped_bytes() as u64,
            waiting_for_buffer: self.queues().map(|queue| waiting(queue) as u64).sum(),
            waiting_for_disk: self.cx.spaces.disks.waiting() as u64,
            enters: self.cx.enters,
            busy_turns: self.busy_turns,
            copied_bytes: copied_bytes(),
            rdma: self.cx.registrars.stats(),
        }
    }
}

/// Whoever asked may have gone.
fn acknowledge(ack: Reply<()>) {
    let _ = ack.send(());
}
