//! An admin queue over RDMA: between the link and the admin queue's task, as `pump` is over TCP.
//!
//! [`RdmaPump::next`] may be dropped and called again at any time: all state is in the pump.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::rdma::ControllerConn;
use nvme_proto::wire::{Cid, Sqe, Status};
use nvmf_io::verbs::{IdKey, LinkFailure, VerbsError};
use nvmf_io::{Buf, Errno};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::super::association::EndReason;
use super::super::pump::Event;
use super::{Greeted, HungUp, Service, no_memory};
use crate::rdma::{Link, LinkEvent};

/// Completions that are handled before others on the thread get their turn.
const COMPLETIONS_PER_TURN: usize = 64;
/// No admin command that is supported takes more data from the host.
const MAX_DATA_FROM_HOST_BYTES: u32 = 8192;
/// How long a last response, and then the device, may take.
const LAST_LIMIT: Duration = Duration::from_secs(2);

/// How the rest of the control thread asks whether the host is still there.
pub struct Pulse {
    /// Our address that the host connected to.
    pub local: SocketAddr,
    /// The host's address.
    pub peer: SocketAddr,
    ask: Notify,
    beats: watch::Sender<u64>,
    hung_up: watch::Receiver<Option<HungUp>>,
}

impl Pulse {
    /// Whether the host's device answers within `limit`. The host's software need not be awake for that.
    pub async fn beats(&self, limit: Duration) -> bool {
        if self.hung_up.borrow().is_some() {
            return false;
        }
        let mut beats = self.beats.subscribe();
        self.ask.notify_one();
        let mut hung_up = self.hung_up.clone();
        tokio::select! {
            beat = timeout(limit, beats.changed()) => matches!(beat, Ok(Ok(()))),
            _ = hung_up.wait_for(Option::is_some) => false,
        }
    }
}

/// See the module's text.
pub struct RdmaPump {
    service: Rc<Service>,
    link: Link,
    id: IdKey,
    fd: AsyncFd<OwnedFd>,
    hung_up: watch::Receiver<Option<HungUp>>,
    pulse: Rc<Pulse>,
    /// Data of the command in each slot, in either direction.
    data: Vec<Option<Buf>>,
    ready: VecDeque<SlotId>,
    events: Vec<LinkEvent>,
    armed: bool,
    ended: Option<EndReason>,
}

impl RdmaPump {
    /// How to ask for a sign of life, before there is a pump.
    pub fn pulse(greeted: &Greeted) -> Rc<Pulse> {
        Rc::new(Pulse {
            local: greeted.addresses().0,
            peer: greeted.addresses().1,
            ask: Notify::new(),
            beats: watch::Sender::new(0),
            hung_up: greeted.hung_up.clone(),
        })
    }

    /// Serves a queue from its Connect on, which is answered with `result`.
    pub fn new(
        greeted: Greeted,
        limits: QueueLimits,
        connect: (Cid, u32),
        pulse: Rc<Pulse>,
    ) -> Result<Self, VerbsError> {
        let Greeted {
            service,
            qp,
            fd,
            hung_up,
            ..
        } = greeted;
        let id = qp.id().key();
        let mut conn = ControllerConn::new(limits, qp.domain().limits().send_with_invalidate);
        conn.accept_connect(connect.0, connect.1);
        let link = {
            let mut registrars = service.registrars.borrow_mut();
            let depth = limits.depth;
            Link::new(
                qp,
                conn,
                depth,
                limits.in_capsule_bytes,
                &service.pool,
                &mut registrars,
            )
        };
        let link = link.and_then(|link| link.ok_or_else(|| no_memory("ibv_post_recv")));
        Ok(RdmaPump {
            link: link.inspect_err(|_| service.forget(id))?,
            service,
            id,
            fd,
            hung_up,
            pulse,
            data: vec![None; limits.depth.into()],
            ready: VecDeque::new(),
            events: Vec::new(),
            armed: false,
            ended: None,
        })
    }

    /// The command in a slot.
    pub fn command(&self, slot: SlotId) -> &Sqe {
        self.link.conn().queue().command(slot)
    }

    /// The data that came with the command in a slot.
    pub fn take_data(&mut self, slot: SlotId) -> Vec<u8> {
        let Some(buf) = self.data[slot.index()].take() else {
            return Vec::new();
        };
        let mut bytes = vec![0; buf.len() as usize];
        buf.copy_out(0, &mut bytes);
        bytes
    }

    /// Completes a command without data.
    pub fn complete(&mut self, slot: SlotId, status: Status, result: u64) {
        self.data[slot.index()] = None;
        self.link
            .conn_mut()
            .queue_mut()
            .complete(slot, status, result);
    }

    /// Completes a command with data for the host; never more than its SGL takes.
    pub fn complete_with_data(&mut self, slot: SlotId, data: &[u8], result: u64) {
        let bytes = data.len() as u32;
        if bytes == 0 {
            return self.complete(slot, Status::SUCCESS, result);
        }
        let Some(buf) = self.service.pool.alloc(bytes) else {
            tracing::warn!(
                bytes,
                "no buffer for the data of an admin command over RDMA"
            );
            return self.complete(slot, Status::INTERNAL_ERROR, 0);
        };
        buf.copy_in(0, data);
        self.data[slot.index()] = Some(buf);
        let queue = self.link.conn_mut().queue_mut();
        queue.complete_with_data(slot, bytes, result);
    }

    /// What happens next. Sends what there is to send meanwhile.
    pub async fn next(&mut self) -> Event {
        loop {
            self.take_completions();
            self.flush();
            if let Some(slot) = self.ready.pop_front() {
                return Event::Command(slot);
            }
            if let Some(reason) = self.ended.take() {
                return Event::Ended(reason);
            }
            if self.armed {
                self.wait().await;
            }
        }
    }

    async fn wait(&mut self) {
        let outcome = tokio::select! {
            ready = self.fd.readable() => {
                self.link.qp().queue().take_events();
                self.armed = false;
                ready
                    .map(|mut ready| ready.clear_ready())
                    .map_err(|error| EndReason::Socket(error.to_string()))
            }
            why = self.hung_up.wait_for(Option::is_some) => Err(match why.as_deref() {
                Ok(Some(HungUp::Device)) => EndReason::DeviceRemoved,
                _ => EndReason::HostClosed,
            }),
            () = self.pulse.ask.notified() => {
                let probed = self.link.probe();
                probed.map_err(|error| EndReason::Socket(error.to_string()))
            }
        };
        if let Err(reason) = outcome {
            self.end(reason);
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.ended.get_or_insert(reason);
    }

    /// Handles what completed; arms the completion queue when there is no more.
    fn take_completions(&mut self) {
        loop {
            let mut events = std::mem::take(&mut self.events);
            let outcome = self.link.poll(COMPLETIONS_PER_TURN, &mut events);
            let found = !events.is_empty();
            for event in events.drain(..) {
                self.happened(event);
            }
            self.events = events;
            match outcome {
                Ok(true) => return,
                Ok(false) if found => self.armed = false,
                Ok(false) if self.armed => return,
                Ok(false) => match self.link.qp().queue().arm() {
                    Ok(()) => self.armed = true,
                    Err(error) => return self.end(EndReason::Socket(error.to_string())),
                },
                Err(failure) => {
                    return self.end(match failure {
                        LinkFailure::Violation(violation) => {
                            EndReason::Violation(violation.to_string())
                        }
                        LinkFailure::Flushed => EndReason::HostClosed,
                        LinkFailure::Broken(reason) => EndReason::Socket(reason),
                    });
                }
            }
        }
    }

    fn happened(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Command(slot) => self.admit(slot),
            LinkEvent::DataReady(slot) => self.ready.push_back(slot),
            LinkEvent::Refused { cid, violation } => {
                let peer = self.link.qp().id().peer_addr();
                tracing::warn!(?peer, %cid, "admin command refused: {violation}");
            }
            LinkEvent::Alive => self.pulse.beats.send_modify(|beats| *beats += 1),
            LinkEvent::Sent => {}
        }
    }

    /// Gives a new command a buffer for what it takes from the host.
    fn admit(&mut self, slot: SlotId) {
        self.data[slot.index()] = None;
        let transfer = self.link.conn().queue().transfer(slot);
        let bytes = transfer.bytes_from_host();
        if bytes > MAX_DATA_FROM_HOST_BYTES {
            return self.complete(slot, Status::INVALID_FIELD.dnr(), 0);
        }
        match transfer {
            Transfer::None | Transfer::ToHost(_) => self.ready.push_back(slot),
            Transfer::InCapsule(_) => {
                self.data[slot.index()] = self.link.in_capsule(slot).cloned();
                self.ready.push_back(slot);
            }
            Transfer::FromHost(_) => match self.service.pool.alloc(bytes) {
                Some(buf) => {
                    self.data[slot.index()] = Some(buf);
                    self.link.conn_mut().queue_mut().request_data(slot);
                }
                None => self.complete(slot, Status::INTERNAL_ERROR, 0),
            },
        }
    }

    /// Posts what there is to post.
    fn flush(&mut self) {
        let data = &mut self.data;
        let mut registrars = self.service.registrars.borrow_mut();
        let registrar = registrars.of(self.link.qp().domain());
        let zeroes = self.service.pool.zero();
        let posted = match &zeroes {
            Some(zeroes) => self
                .link
                .post(registrar, zeroes, |slot| data[slot.index()].clone()),
            None => Err(VerbsError::Call {
                call: "mmap",
                errno: Errno::NOMEM,
            }),
        };
        drop(registrars);
        if let Err(error) = posted {
            self.end(EndReason::Socket(error.to_string()));
        }
    }

    /// Sends what is still to be sent, within reason, and ends the connection.
    pub async fn close(mut self) {
        self.flush();
        let _ = timeout(LAST_LIMIT, self.until(Link::is_sent)).await;
        self.link.conn_mut().close(|_| {});
        self.link.close();
        // What does not come back in time goes with the queue pair.
        let _ = timeout(LAST_LIMIT, self.until(Link::is_quiet)).await;
        self.service.forget(self.id);
    }

    async fn until(&mut self, is: fn(&Link) -> bool) {
        loop {
            self.take_completions();
            if is(&self.link) || self.ended.take().is_some() {
                return;
            }
            if self.armed
                && self
                    .fd
                    .readable()
                    .await
                    .map(|mut ready| ready.clear_ready())
                    .is_err()
            {
                return;
            }
            self.link.qp().queue().take_events();
            self.armed = false;
        }
    }
}
