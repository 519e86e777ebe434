//! Queues over RDMA: adopting a queue pair, completions, posting, the end.
//!
//! Waiting is the completion channel's: its descriptor is polled by the ring, and the queue is armed whenever it was found empty. With
//! `--busy-poll` the completion queue is looked at in every turn that does not sleep.

use nvme_proto::queue::QueueLimits;
use nvme_proto::rdma::ControllerConn;
use nvme_proto::wire::Cid;
use nvmf_io::ring::Interest;
use nvmf_io::verbs::{IdleQueuePair, LinkFailure};

use super::context::Context;
use super::lifecycle::Life;
use super::message::CloseReason;
use super::queue::Queue;
use super::slot::Phase;
use super::token::{Purpose, QueueKey};
use super::wire::{Rdma, Wire};
use crate::rdma::{Link, LinkEvent};

/// Completions of one queue that a turn handles.
const COMPLETIONS_PER_TURN: usize = 256;

impl Rdma {
    /// Takes over a queue pair with nothing posted, and answers its Connect.
    pub(super) fn adopt(
        qp: IdleQueuePair,
        limits: &QueueLimits,
        connect: (Cid, u32),
        key: QueueKey,
        cx: &mut Context,
    ) -> Result<Box<Self>, String> {
        let qp = qp.attach();
        let can_invalidate = qp.domain().limits().send_with_invalidate;
        let mut conn = ControllerConn::new(*limits, can_invalidate);
        conn.accept_connect(connect.0, connect.1);
        let link = Link::new(
            qp,
            conn,
            limits.depth,
            limits.in_capsule_bytes,
            &cx.pool,
            &mut cx.registrars,
        )
        .map_err(|error| error.to_string())?
        .ok_or("no buffers for its receives; raise limits.buffer-bytes or lower the queue depth")?;
        cx.ring.poll_multishot(
            link.qp().queue(),
            Interest::Readable,
            Purpose::Completions(key).token(),
        );
        Ok(Box::new(Self {
            link,
            abandoned: false,
        }))
    }
}

impl Queue {
    /// Whether RDMA carries it.
    pub(super) fn is_rdma(&self) -> bool {
        matches!(self.wire, Wire::Rdma(_))
    }

    /// The completion queue's descriptor is readable. `more`: the ring goes on to watch it.
    pub(super) fn woken(&mut self, cx: &mut Context, more: bool) {
        let Wire::Rdma(rdma) = &mut self.wire else {
            return;
        };
        rdma.link.qp().queue().take_events();
        if !more && !matches!(self.life, Life::Closing) {
            let token = Purpose::Completions(self.key).token();
            let queue = rdma.link.qp().queue();
            cx.ring.poll_multishot(queue, Interest::Readable, token);
        }
        self.complete(cx);
    }

    /// Handles completions, as many as a turn may, and arms the completion queue when there are no more. Returns whether there were any.
    pub(super) fn complete(&mut self, cx: &mut Context) -> bool {
        let mut events = std::mem::take(&mut cx.link_events);
        let mut any = false;
        let mut armed = false;
        while let Wire::Rdma(rdma) = &mut self.wire {
            let link = &mut rdma.link;
            let outcome = link.poll(COMPLETIONS_PER_TURN, &mut events);
            let found = !events.is_empty();
            any |= found;
            for event in events.drain(..) {
                self.happened(cx, event);
            }
            match outcome {
                Err(_) if self.life == Life::Closing => break,
                Err(failure) => self.failed(cx, failure),
                Ok(true) => {
                    self.mark_ready(cx);
                    break;
                }
                Ok(false) if found => armed = false,
                Ok(false) if armed => break,
                Ok(false) => {
                    let Wire::Rdma(rdma) = &mut self.wire else {
                        break;
                    };
                    if let Err(error) = rdma.link.qp().queue().arm() {
                        self.close(cx, CloseReason::Socket(error.to_string()));
                        break;
                    }
                    armed = true;
                }
            }
        }
        cx.link_events = events;
        if self.wire.wants_transmit() {
            self.mark_dirty(cx);
        }
        any
    }

    fn happened(&mut self, cx: &mut Context, event: LinkEvent) {
        self.progressed(cx);
        match event {
            LinkEvent::Command(slot) if self.life == Life::Live => self.command(cx, slot),
            LinkEvent::DataReady(slot) if self.life.answers() => self.start(cx, slot),
            LinkEvent::Command(_) | LinkEvent::DataReady(_) => {}
            LinkEvent::Refused { cid, violation } => self.refused(cx, cid, violation),
            LinkEvent::Sent | LinkEvent::Alive => {
                cx.buffers_freed = true;
                self.drained(cx);
            }
        }
    }

    fn failed(&mut self, cx: &mut Context, failure: LinkFailure) {
        match failure {
            LinkFailure::Violation(violation) => self.violated(cx, violation),
            LinkFailure::Flushed => self.close(cx, CloseReason::HostClosed),
            LinkFailure::Broken(reason) => self.close(cx, CloseReason::Socket(reason)),
        }
    }

    /// Posts what there is to post.
    pub(super) fn post(&mut self, cx: &mut Context) {
        let Wire::Rdma(rdma) = &mut self.wire else {
            return;
        };
        let registrar = cx.registrars.of(rdma.link.qp().domain());
        let slots = &mut self.slots;
        let mut given_up_bytes = 0;
        let posted = rdma.link.post(registrar, cx.lent.zeroes(), |slot| {
            let state = &mut slots[slot];
            if state.phase != Phase::Sending {
                return state.data.clone();
            }
            // From here on the work request keeps the buffer.
            state.phase = Phase::Free;
            let data = state.data.take();
            given_up_bytes += data.as_ref().map_or(0, |data| u64::from(data.len()));
            data
        });
        self.buffer_bytes -= given_up_bytes;
        match posted {
            Ok(()) => self.drained(cx),
            Err(error) => self.close(cx, CloseReason::Socket(error.to_string())),
        }
    }
}
