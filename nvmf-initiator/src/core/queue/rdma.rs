//! The wire of a queue over RDMA: a [`HostLink`], and the two descriptors of it that the shard's ring watches: that of the completion
//! queue, and that of the connection manager's events.
//!
//! The completion queue is looked at in every turn of the shard, and armed only before the shard sleeps: a turn that finds completions
//! costs no system call. How long a shard spins before it sleeps is its runner's business, and bounded.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme_proto::queue::SlotId;
use nvme_proto::rdma::HostConn;
use nvme_proto::wire::Sqe;
use nvmf_io::ring::Interest;
use nvmf_io::verbs::{CmEventKind, IdleQueuePair, LinkFailure, VerbsError, WorkCounts};
use nvmf_io::{Completion, Ring};

use super::super::rdma::{Answer, HostLink, Memory, NotTaken, Registrars};
use super::{Data, Finished, Part, QueueError, Slots};
use crate::tokens::TokenSpace;

const COMPLETIONS: u32 = 1;
const EVENTS: u32 = 2;

/// See the module's text.
pub(super) struct RdmaWire {
    /// `None` once the queue pair is destroyed.
    link: Option<HostLink>,
    tokens: TokenSpace,
    /// The ring watches the completion queue's descriptor.
    watching_completions: bool,
    /// The ring watches the connection manager's events.
    watching_events: bool,
    armed: bool,
    /// What had been done on the queue pair when it was destroyed.
    past_counts: WorkCounts,
    /// Answers that came before the device was done with the data in their capsules, oldest first.
    early: VecDeque<Early>,
}

struct Early {
    after: u64,
    finished: Finished,
}

impl From<LinkFailure> for QueueError {
    fn from(failure: LinkFailure) -> Self {
        match failure {
            LinkFailure::Violation(violation) => QueueError::Violation(violation),
            LinkFailure::Broken(cause) => QueueError::Rdma(cause),
            LinkFailure::Flushed => QueueError::ClosedByPeer,
        }
    }
}

impl From<VerbsError> for QueueError {
    fn from(error: VerbsError) -> Self {
        QueueError::Rdma(error.to_string())
    }
}

impl RdmaWire {
    pub(super) fn new(
        qp: IdleQueuePair,
        conn: HostConn,
        tokens: TokenSpace,
        ring: &mut Ring,
        registrars: &mut Registrars,
    ) -> Result<Self, QueueError> {
        let qp = qp.attach();
        let registrar = registrars.of(qp.domain(), qp.windows() > 0);
        let answers = conn.capacity();
        let mut link = HostLink::new(qp, conn, registrar);
        link.serve()?;
        let mut wire = RdmaWire {
            link: Some(link),
            tokens,
            watching_completions: false,
            watching_events: false,
            armed: false,
            past_counts: WorkCounts::default(),
            early: VecDeque::with_capacity(answers),
        };
        wire.watch(ring);
        Ok(wire)
    }

    fn watch(&mut self, ring: &mut Ring) {
        let Some(link) = &self.link else { return };
        if !std::mem::replace(&mut self.watching_completions, true) {
            let token = self.tokens.token(COMPLETIONS);
            ring.poll_multishot(link.qp().queue(), Interest::Readable, token);
        }
        if !std::mem::replace(&mut self.watching_events, true) {
            let token = self.tokens.token(EVENTS);
            ring.poll_multishot(&**link.qp().id().channel(), Interest::Readable, token);
        }
    }

    pub(super) fn conn(&self) -> Option<&HostConn> {
        self.link.as_ref().map(HostLink::conn)
    }

    /// What was done on the queue pair.
    pub(super) fn counts(&self) -> WorkCounts {
        self.link
            .as_ref()
            .map_or(self.past_counts, HostLink::counts)
    }

    /// Takes a command. `Ok(None)`: there is no room.
    pub(super) fn submit(&mut self, sqe: &Sqe, data: &Data) -> Result<Option<SlotId>, QueueError> {
        let Some(link) = &mut self.link else {
            return Ok(None);
        };
        let memory = match data {
            Data::None => Memory::None,
            Data::Out(buf, offset, len) => Memory::Out(buf, *offset..offset + len),
            Data::In(buf, offset, len) => Memory::In(buf, *offset..offset + len),
        };
        match link.submit(sqe, memory) {
            Ok(slot) => Ok(Some(slot)),
            Err(NotTaken::Full) => Ok(None),
            Err(NotTaken::Failed(failure)) => Err(failure.into()),
        }
    }

    /// A descriptor that the ring watches is readable, or is not watched any more.
    pub(super) fn on_completion(
        &mut self,
        completion: &Completion,
        closing: bool,
        ring: &mut Ring,
    ) -> Result<(), QueueError> {
        let is_events = TokenSpace::local_of(completion.token) == EVENTS;
        let watching = match is_events {
            true => &mut self.watching_events,
            false => &mut self.watching_completions,
        };
        *watching &= completion.more;
        let Some(link) = &self.link else {
            return Ok(());
        };
        let mut result = Ok(());
        if is_events {
            result = events(link);
        } else {
            link.qp().queue().take_events();
            self.armed = false;
        }
        if !closing {
            self.watch(ring);
        }
        result
    }

    /// Takes completions. Whether there was anything.
    pub(super) fn poll(
        &mut self,
        slots: &mut Slots,
        traffic: &AtomicBool,
        out: &mut Vec<Finished>,
    ) -> Result<bool, QueueError> {
        let RdmaWire { link, early, .. } = self;
        let Some(link) = link else { return Ok(false) };
        let acknowledged = link.acknowledged();
        let mut any = false;
        let result = link.poll(|Answer { slot, cqe, after }| {
            any = true;
            let Some(done) = slots.take(slot) else { return };
            let finished = Finished {
                part: done.part,
                status: cqe.status(),
            };
            match after {
                0 => out.push(finished),
                after => early.push_back(Early { after, finished }),
            }
        });
        if any && !traffic.load(Ordering::Relaxed) {
            traffic.store(true, Ordering::Relaxed);
        }
        let done = link.acknowledged();
        any |= done != acknowledged;
        // Nearly always all of them, and a handful at most.
        early.retain(|early| {
            let is_done = early.after <= done;
            if is_done {
                out.push(early.finished);
            }
            !is_done
        });
        result?;
        Ok(any)
    }

    /// Takes what comes back from a connection that was ended. An error means that nothing more will.
    pub(super) fn drain(&mut self) -> Result<(), LinkFailure> {
        match &mut self.link {
            Some(link) => link.poll(|_| {}),
            None => Ok(()),
        }
    }

    /// Sends what the connection has to say.
    pub(super) fn flush(&mut self) -> Result<(), QueueError> {
        match &mut self.link {
            Some(link) => Ok(link.post()?),
            None => Ok(()),
        }
    }

    /// Asks to be woken by the next completion. False where that was asked for already; otherwise look for completions once more.
    pub(super) fn arm(&mut self) -> Result<bool, QueueError> {
        match &self.link {
            Some(link) if !self.armed => {
                link.qp().queue().arm()?;
                self.armed = true;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Ends the connection; what is posted comes back.
    pub(super) fn shut(&mut self, ring: &mut Ring) {
        if let Some(link) = &mut self.link {
            link.close();
        }
        ring.cancel(self.tokens.token(EVENTS));
    }

    /// Destroys the queue pair once nothing is posted on it, or right away where it is given up; then the ring has to let go of its
    /// descriptors. Whether that is done.
    pub(super) fn close(&mut self, ring: &mut Ring, give_up: bool) -> bool {
        if let Some(link) = &self.link
            && (link.is_quiet() || give_up)
        {
            self.past_counts = link.counts();
            self.link = None;
            ring.cancel(self.tokens.token(COMPLETIONS));
        }
        self.link.is_none() && !self.watching_completions && !self.watching_events
    }

    /// Commands whose answers came and were not handed out.
    pub(super) fn take_early(&mut self) -> impl Iterator<Item = Part> + '_ {
        self.early.drain(..).map(|early| early.finished.part)
    }
}

/// Looks at what the connection manager reports.
fn events(link: &HostLink) -> Result<(), QueueError> {
    while let Some(event) = link.qp().id().channel().next()? {
        match event.kind {
            CmEventKind::Disconnected => return Err(QueueError::ClosedByPeer),
            CmEventKind::DeviceRemoved => {
                return Err(QueueError::Rdma("the RDMA device is being removed".into()));
            }
            CmEventKind::AddressChanged => {
                let cause = "the address moved to another RDMA device";
                return Err(QueueError::Rdma(cause.into()));
            }
            _ => {}
        }
    }
    Ok(())
}
