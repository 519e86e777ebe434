//! How a queue ends.
//!
//! ```text
//! Live ──drain──▶ Draining ──responses out, or too long──▶ Closing ──nothing in flight──▶ gone
//!   │                                                         ▲
//!   ├──broken rule──▶ Terminating ──host closed, or 30 s──────┤
//!   └──host closed, socket failed─────────────────────────────┘
//! ```
//! Whatever way it takes, commands that the backing has run to their end first: a queue that is gone can no longer reach
//! storage, which is what fences an association from its successor.

use std::time::Instant;

use nvme_proto::queue::SlotId;
use nvme_proto::queue::controller::AbortOutcome;
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, Status};
use nvmf_io::verbs::IdKey;

use super::context::{Context, PendingAbort};
use super::message::{CloseReason, Reply, ShardEvent};
use super::queue::Queue;
use super::slot::Phase;
use super::token::Purpose;
use super::wire::Wire;

/// State of a queue, see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// In service.
    Live,
    /// Takes no more commands; those that run finish and are answered.
    Draining,
    /// The host was told that it broke a rule, and is expected to close.
    Terminating,
    /// The socket is shut; waits for what is in flight.
    Closing,
}

impl Life {
    /// Whether commands are still answered.
    pub(super) fn answers(self) -> bool {
        matches!(self, Self::Live | Self::Draining)
    }
}

/// What is remembered about the end of a queue, and about its host's pace.
#[derive(Debug)]
pub(super) struct Ending {
    reason: Option<CloseReason>,
    /// When the host last sent or took something.
    progress: Instant,
}

impl Ending {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            reason: None,
            progress: now,
        }
    }
}

impl Queue {
    /// Ends the queue in good order.
    pub(super) fn drain(&mut self, cx: &mut Context, reason: CloseReason) {
        match self.life {
            Life::Live => {
                self.life = Life::Draining;
                self.ending.reason = Some(reason);
                self.wire.discard();
                if let Wire::Tcp(_) = self.wire {
                    self.arm(cx);
                }
                cx.timers.set(self.key, cx.now + cx.patience.drain);
                // Sending, be it nothing, leads on.
                self.mark_dirty(cx);
            }
            Life::Terminating => self.close(cx, reason),
            Life::Draining | Life::Closing => {}
        }
    }

    /// Goes on to close once a draining queue has nothing more to say.
    pub(super) fn drained(&mut self, cx: &mut Context) {
        let done = self.running == 0 && self.wire.is_sent() && !self.wire.wants_transmit();
        if let Life::Draining = self.life
            && done
        {
            self.close(cx, CloseReason::Dropped);
        }
    }

    /// The host broke a rule.
    pub(super) fn violated(&mut self, cx: &mut Context, violation: Violation) {
        tracing::warn!(host = %self.controller.host_nqn, queue = %self.qid, %violation, "the host broke the protocol");
        let reason = CloseReason::Violation(violation.to_string());
        // RDMA has no termination request.
        let is_told = matches!(&self.wire, Wire::Tcp(tcp) if tcp.conn.is_terminating());
        if !is_told {
            return self.close(cx, reason);
        }
        self.life = Life::Terminating;
        self.ending.reason = Some(reason);
        self.wire.discard();
        self.end_commands(cx);
        cx.timers.set(self.key, cx.now + cx.patience.termination);
        self.mark_dirty(cx);
    }

    /// Shuts the socket. The queue is gone when nothing is in flight any more; the first reason given is the one that counts.
    pub(super) fn close(&mut self, cx: &mut Context, reason: CloseReason) {
        if let Life::Closing = self.life {
            return;
        }
        self.life = Life::Closing;
        self.ending.reason.get_or_insert(reason);
        cx.timers.cancel(&self.key);
        self.wire.discard();
        self.end_commands(cx);
        match &mut self.wire {
            Wire::Tcp(tcp) => {
                // Fails when the host was faster.
                let _ = cx.ring.shutdown(tcp.socket);
            }
            Wire::Rdma(rdma) => {
                rdma.link.close();
                cx.timers.set(self.key, cx.now + cx.patience.drain);
                self.mark_ready(cx);
            }
        }
        cx.closing.push(self.key);
    }

    /// Ends every command that the backing does not have; those that it has are ended by their completion.
    fn end_commands(&mut self, cx: &mut Context) {
        self.waiting.clear();
        self.held.clear();
        cx.spaces.disks.discard(self.key.index);
        self.wire.close_protocol();
        // What is left in the protocol's queue is being executed: here, or by the backing.
        let left: Vec<SlotId> = self
            .wire
            .queue()
            .live_slots()
            .map(|(slot, _)| slot)
            .collect();
        let ours = left
            .into_iter()
            .filter(|slot| self.slots[*slot].phase != Phase::Running);
        ours.for_each(|slot| {
            self.wire
                .queue_mut()
                .complete(slot, Status::ABORTED_SQ_DELETION, 0)
        });
        let ended: Vec<(SlotId, Phase)> = self
            .slots
            .busy()
            .map(|(slot, state)| (slot, state.phase))
            .filter(|(_, phase)| *phase != Phase::Running)
            .collect();
        for (slot, phase) in ended {
            if phase == Phase::Comparing {
                self.stop_running(cx, slot);
            }
            self.slots[slot].phase = Phase::Free;
            if let Some(command) = self.slots[slot].command.take() {
                cx.spaces.unuse(command.space, &mut cx.ring);
            }
            self.release_buffer(cx, slot);
            self.answer_abort(cx, slot, Status::ABORTED_SQ_DELETION);
        }
    }

    /// Its time limit has passed.
    pub(super) fn timed_out(&mut self, cx: &mut Context) {
        if let (Life::Closing, Wire::Rdma(rdma)) = (self.life, &mut self.wire) {
            // Destroying the queue pair ends what is posted.
            tracing::warn!(queue = %self.qid, "the RDMA device did not give back what was posted in time");
            rdma.abandoned = true;
        }
        self.close(cx, CloseReason::Dropped);
    }

    /// Whether it is the link with this identifier.
    pub(super) fn is_link(&self, id: IdKey) -> bool {
        matches!(&self.wire, Wire::Rdma(rdma) if rdma.link.qp().id().key() == id)
    }

    /// Whether nothing of it is in flight any more, neither on the socket nor on a backing.
    pub(super) fn is_gone(&self) -> bool {
        self.life == Life::Closing && self.running == 0 && self.wire.is_quiet()
    }

    /// Says that it is gone.
    pub(super) fn announce(&mut self, cx: &mut Context) {
        match &self.wire {
            Wire::Tcp(tcp) => {
                cx.ring.remove_socket(tcp.socket);
            }
            Wire::Rdma(rdma) => {
                cx.ring.cancel(Purpose::Completions(self.key).token());
                cx.timers.cancel(&self.key);
                let id = rdma.link.qp().id().key();
                let _ = cx.events.send(ShardEvent::RdmaClosed(id));
            }
        }
        let reason = self.ending.reason.take().unwrap_or(CloseReason::Dropped);
        tracing::debug!(host = %self.controller.host_nqn, queue = %self.qid, ?reason, "queue closed");
        let event = ShardEvent::QueueClosed {
            shard: cx.shard,
            controller: self.controller.key,
            qid: self.qid,
            reason,
        };
        // Nobody listens when the process ends.
        let _ = cx.events.send(event);
    }

    /// The host sent or took something.
    #[inline]
    pub(super) fn progressed(&mut self, cx: &Context) {
        self.ending.progress = cx.now;
    }

    /// Closes the queue if it has held buffers too long for a host that does nothing.
    pub(super) fn check_stall(&mut self, cx: &mut Context) {
        let waits_for_host =
            !self.wire.is_sent() || self.slots.busy().any(|(_, slot)| slot.phase == Phase::Data);
        let idle = cx.now.saturating_duration_since(self.ending.progress);
        if (self.buffer_bytes > 0 || self.wire.holds_buffers())
            && waits_for_host
            && idle >= cx.patience.stall
            && self.life == Life::Live
        {
            tracing::warn!(host = %self.controller.host_nqn, queue = %self.qid,
                "the host does not go on with its transfers, and others wait for the buffers; closed");
            self.close(cx, CloseReason::Stalled);
        }
    }

    /// The Abort command for `cid`: removes what waits, tries to cancel what runs.
    pub(super) fn abort(&mut self, cx: &mut Context, cid: Cid, reply: Reply<bool>) {
        let slot = match self.wire.queue().abort(cid) {
            AbortOutcome::NotFound => {
                let _ = reply.send(false);
                return;
            }
            AbortOutcome::Waiting(slot) | AbortOutcome::Executing(slot) => slot,
        };
        let phase = self.slots[slot].phase;
        if self.slots[slot].command.is_none() {
            // A fabrics command: answered at once.
            let _ = reply.send(false);
            return;
        }
        cx.aborts.push(PendingAbort {
            queue: self.key,
            slot,
            reply,
        });
        match phase {
            Phase::Running => cx.ring.cancel(Purpose::Storage(self.key, slot).token()),
            Phase::Comparing => {
                let disk = self.disk_of(cx, slot);
                self.stop_running(cx, slot);
                self.finish(cx, slot, Status::ABORT_REQUESTED);
                self.start_queued(cx, disk);
            }
            Phase::Queued => {
                if let Some(disk) = self.disk_of(cx, slot) {
                    cx.spaces.disks.get_mut(disk).forget(self.key.index, slot);
                }
                self.finish(cx, slot, Status::ABORT_REQUESTED);
            }
            Phase::Buffer | Phase::Data | Phase::Held | Phase::Free | Phase::Sending => {
                self.waiting.retain(|other| *other != slot);
                self.held.retain(|other| *other != slot);
                if self.wire.blocked() == Some(slot) {
                    self.wire.unblock();
                    self.mark_ready(cx);
                }
                self.finish(cx, slot, Status::ABORT_REQUESTED);
            }
        }
    }

    /// Answers an Abort of the command in `slot`, which completed with `status`.
    pub(super) fn answer_abort(&mut self, cx: &mut Context, slot: SlotId, status: Status) {
        if cx.aborts.is_empty() {
            return;
        }
        let key = self.key;
        let aborted = status.is(Status::ABORT_REQUESTED);
        for pending in cx
            .aborts
            .extract_if(.., |pending| pending.queue == key && pending.slot == slot)
        {
            // The control thread may have given up on it.
            let _ = pending.reply.send(aborted);
        }
    }
}
