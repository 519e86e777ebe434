//! What the control thread says: heads come, change and go; queues come, and end with their association.
//!
//! A queue that ends gives its commands back to their heads, which hold or fail them, and only when its connection is closed: see
//! [`crate::core::queue`].

use tokio::sync::oneshot;

use super::{HeadIndex, QUEUE_TOKENS, Shard};
use crate::core::error::QueueError;
use crate::core::head::NamespaceHead;
use crate::core::message::{ControllerKey, FromShard, HeadKey, HeadState, NewQueue, ToShard};
use crate::core::queue::IoQueue;
use crate::core::request::IoError;
use crate::tokens::TokenSpace;

impl Shard {
    /// Takes what the control thread says.
    pub fn handle(&mut self, message: ToShard) {
        match message {
            ToShard::OpenHead {
                head,
                controller,
                info,
                state,
            } => {
                let capacity = self.requests.capacity();
                let head = NamespaceHead::new(head, controller, info, state, capacity);
                self.controllers.entry(controller).or_default();
                match self.heads.iter().position(Option::is_none) {
                    Some(free) => self.heads[free] = Some(head),
                    None => self.heads.push(Some(head)),
                }
            }
            ToShard::Reshape { head, info } => {
                if let Some(head) = self.head_mut(head) {
                    head.info = info;
                }
            }
            ToShard::SetState { head, state } => {
                if let Some(HeadIndex { at, .. }) = self.head(head) {
                    self.set_state(at, state);
                }
            }
            ToShard::CloseHead { head } => {
                if let Some(HeadIndex { at, .. }) = self.head(head) {
                    self.fail_waiting(at, IoError::Closed);
                    let head = self.heads[at].as_mut().expect("found above");
                    head.closing = true;
                    self.forget_if_closed(at);
                }
            }
            ToShard::Nudge => {}
            ToShard::AddQueue(new) => self.add_queue(*new),
            ToShard::CloseQueues { controller, closed } => self.close_queues(controller, closed),
        }
    }

    fn head_mut(&mut self, key: HeadKey) -> Option<&mut NamespaceHead> {
        self.heads.iter_mut().flatten().find(|head| head.key == key)
    }

    fn set_state(&mut self, index: usize, state: HeadState) {
        let head = self.heads[index].as_mut().expect("an open head");
        head.state = state;
        match state {
            HeadState::Failing(error) => self.fail_waiting(index, error),
            HeadState::Held => {}
            HeadState::Live => {
                let controller = head.controller;
                self.stand_in_line_if_due(index);
                self.pump(controller);
            }
        }
    }

    /// Fails everything of the head that is not at a queue.
    fn fail_waiting(&mut self, index: usize, error: IoError) {
        loop {
            let Some(head) = &mut self.heads[index] else {
                return;
            };
            if let Some(retry) = head.retry.pop_front() {
                self.delayed -= 1;
                self.finish(retry.part.request, Some(error));
            } else if let Some(opened) = head.ready.pop_front() {
                self.finish(opened, Some(error));
            } else {
                return;
            }
        }
    }

    fn add_queue(&mut self, new: NewQueue) {
        let (controller, association, qid, events) =
            (new.controller, new.association, new.qid, new.events.clone());
        let index = self
            .queues
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.queues.push(None);
                self.queues.len() - 1
            });
        let tokens = TokenSpace::new(QUEUE_TOKENS + index as u32);
        let queue = IoQueue::new(
            new,
            tokens,
            &mut self.ring,
            &self.pool,
            &mut self.registrars,
            &mut self.finished,
        );
        match queue {
            Ok(queue) => {
                if queue.is_rdma() {
                    self.rdma.push(index);
                }
                self.queues[index] = Some(queue);
                self.controllers
                    .entry(controller)
                    .or_default()
                    .queues
                    .push(index);
                self.mark_dirty(index);
            }
            Err(error) => {
                let _ = events.send(FromShard::QueueFailed {
                    association,
                    qid,
                    error,
                });
            }
        }
    }

    /// A queue is of no use any more: it closes, and the controller's commands are held until the control thread says
    /// how it goes on.
    pub(super) fn fail_queue(&mut self, index: usize, error: QueueError) {
        let Some(queue) = &mut self.queues[index] else {
            return;
        };
        if !queue.is_live() {
            return;
        }
        queue.fail(&mut self.ring, self.now_ms);
        queue.report(error);
        let controller = queue.controller;
        self.hold(controller);
        self.reap_closed(index);
    }

    fn hold(&mut self, controller: ControllerKey) {
        for head in self.heads.iter_mut().flatten() {
            if head.controller == controller && head.state == HeadState::Live {
                head.state = HeadState::Held;
            }
        }
    }

    fn close_queues(&mut self, key: ControllerKey, closed: oneshot::Sender<()>) {
        self.hold(key);
        let controller = self.controllers.entry(key).or_default();
        controller.closed.push(closed);
        let queues = controller.queues.clone();
        for index in queues {
            if let Some(queue) = &mut self.queues[index] {
                queue.fail(&mut self.ring, self.now_ms);
            }
            self.reap_closed(index);
        }
        self.answer_closed(key);
    }

    /// Takes the commands of a queue back once it is closed, and forgets it.
    pub(super) fn reap_closed(&mut self, index: usize) {
        if !self.queues[index].as_ref().is_some_and(IoQueue::is_closed) {
            return;
        }
        let mut queue = self.queues[index].take().expect("seen above");
        self.rdma.retain(|&other| other != index);
        self.past_counts += queue.counts();
        let key = queue.controller;
        for part in queue.take_open() {
            self.try_again(part, self.now_ms);
        }
        if let Some(controller) = self.controllers.get_mut(&key) {
            controller.queues.retain(|&other| other != index);
        }
        self.answer_closed(key);
    }

    fn answer_closed(&mut self, key: ControllerKey) {
        let Some(controller) = self.controllers.get_mut(&key) else {
            return;
        };
        if controller.queues.is_empty() {
            for closed in controller.closed.drain(..) {
                let _ = closed.send(());
            }
        }
    }
}
