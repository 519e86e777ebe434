//! An RDMA connection's first steps, as `handshake` has them for TCP: Connect, and then the way it goes.
//!
//! One receive is posted, since a host sends nothing before Connect is answered. Connect's data are in the capsule or fetched by READ. A
//! connection that does not get through this in time is closed.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::controller::{ConnectRequest, Fault};
use nvme_proto::queue::MAX_QUEUE_DEPTH;
use nvme_proto::rdma::controller_handshake::refusal as refusal_capsule;
use nvme_proto::rdma::{ConnectCommand, ConnectSource};
use nvme_proto::wire::fabrics::ConnectData;
use nvme_proto::wire::{Qid, Sqe, Status};
use nvmf_io::Buf;
use nvmf_io::verbs::{Done, IdleQueuePair, QueuePair, Remote, SendWork, VerbsError};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::super::accept::Counted;
use super::super::connecting::{Carried, Ended, place};
use super::super::target::Target;
use super::{HungUp, Service, watched};
use crate::rdma::DeviceUse;

/// Bytes of Connect's data.
const DATA_BYTES: u32 = ConnectData::SIZE as u32;

/// A connection that was accepted and has not connected yet, or whose Connect is being judged.
pub struct Greeted {
    pub(super) service: Rc<Service>,
    pub(super) qp: QueuePair,
    pub(super) fd: AsyncFd<OwnedFd>,
    pub(super) hung_up: watch::Receiver<Option<HungUp>>,
    qid: Qid,
    entries: u16,
    /// Keeps the thread's registrations.
    _device: DeviceUse,
}

impl From<VerbsError> for Ended {
    fn from(error: VerbsError) -> Self {
        Ended::Closed(error.to_string())
    }
}

/// Serves a connection that was accepted.
pub async fn serve(target: Rc<Target>, mut greeted: Greeted, mut counted: Counted) {
    let peer = greeted.addresses().1;
    let key = greeted.qp.id().key();
    let service = Rc::clone(&greeted.service);
    let limit_ms = target.config.borrow().limits.handshake_ms;
    let deadline = Instant::now() + Duration::from_millis(limit_ms.into());
    let ended = loop {
        let (sqe, data) = match greeted.next_connect(deadline).await {
            Ok(connect) => connect,
            Err(ended) => break ended,
        };
        let request = greeted.judge(&sqe, &data);
        let carried = Carried::Rdma(Box::new(greeted));
        let back = place(&target, carried, counted, request, deadline).await;
        let Some((Carried::Rdma(same), still, refusal)) = back else {
            return;
        };
        (greeted, counted) = (*same, still);
        if let Err(error) = greeted.answer(&sqe, refusal.status, refusal.result) {
            break error.into();
        }
    };
    ended.tell(peer, limit_ms);
    // The host may be waiting for it; what is posted goes with the queue pair.
    let _ = greeted.qp.id().disconnect();
    service.forget(key);
    drop(counted);
}

impl Greeted {
    pub(super) fn new(
        service: Rc<Service>,
        qp: QueuePair,
        hung_up: watch::Receiver<Option<HungUp>>,
        qid: Qid,
        entries: u16,
    ) -> Result<Self, VerbsError> {
        let fd = watched(qp.queue()).map_err(|error| VerbsError::Call {
            call: "dup",
            errno: nvmf_io::Errno::from_io_error(&error).unwrap_or(nvmf_io::Errno::IO),
        })?;
        let bytes = qp.memory_bytes() as u64;
        let device = service.registrars.borrow_mut().enter(qp.domain(), bytes);
        Ok(Greeted {
            _device: device,
            service,
            qp,
            fd,
            hung_up,
            qid,
            entries,
        })
    }

    /// Our address that the host connected to, and the host's; the unspecified one where the connection manager knows none.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let known = |address: Option<SocketAddr>| address.unwrap_or(([0, 0, 0, 0], 0).into());
        let id = self.qp.id();
        (known(id.local_addr()), known(id.peer_addr()))
    }

    /// The queue pair for a shard, and the means to route its events. `None` if something is still posted on it, or the host has hung
    /// up.
    pub fn into_idle(self) -> Option<(IdleQueuePair, Rc<Service>)> {
        let (id, gone) = (self.qp.id().key(), self.hung_up.borrow().is_some());
        match self.qp.detach() {
            Ok(qp) if !gone => Some((qp, self.service)),
            _ => {
                self.service.forget(id);
                None
            }
        }
    }

    fn judge(&self, sqe: &Sqe, data: &Buf) -> Result<ConnectRequest, Fault> {
        let mut bytes = [0; ConnectData::SIZE];
        data.copy_out(0, &mut bytes);
        // The queue pair was made for what the connection request asked.
        let most = self.entries.min(MAX_QUEUE_DEPTH);
        let request = ConnectRequest::parse(sqe, &bytes, most.into())?;
        match request.qid == self.qid {
            true => Ok(request),
            false => Err(Fault::QidOutOfRange(request.qid)),
        }
    }

    /// Waits until a Connect is there with its data; answers other commands.
    async fn next_connect(&mut self, deadline: Instant) -> Result<(Sqe, Buf), Ended> {
        loop {
            let Done::Received {
                header,
                bytes,
                data,
                ..
            } = self.next_done(deadline).await?
            else {
                continue;
            };
            let connect = match ConnectCommand::parse(&header, bytes) {
                Ok(connect) => connect,
                Err(violation) => {
                    let Some(status) = violation.status() else {
                        return Err(Ended::Violation(violation.to_string()));
                    };
                    let peer = self.addresses().1;
                    tracing::warn!(%peer, "command before Connect refused: {violation}");
                    let sqe: Sqe = zerocopy::transmute!(header);
                    self.answer(&sqe, status, 0)?;
                    continue;
                }
            };
            let data = data.ok_or_else(|| Ended::Closed("a receive without a buffer".into()))?;
            if let ConnectSource::Host(memory) = connect.source {
                let into = {
                    let mut registrars = self.service.registrars.borrow_mut();
                    registrars
                        .of(self.qp.domain())
                        .segment(&data, 0..DATA_BYTES)?
                };
                let from = Remote {
                    address: memory.address,
                    key: memory.key,
                };
                self.stage(SendWork::Read { into, from })?;
                self.qp.post()?;
                while !matches!(self.next_done(deadline).await?, Done::Sent { token: READ }) {}
            }
            // What was sent before it has been acknowledged, or the queue pair would not be idle.
            while self.qp.in_flight() > 0 {
                self.next_done(deadline).await?;
            }
            return Ok((connect.sqe, data));
        }
    }

    fn stage(&mut self, work: SendWork<'_>) -> Result<(), Ended> {
        let token = match work {
            SendWork::Read { .. } => READ,
            _ => 0,
        };
        self.qp
            .stage(work, token, true)
            .map_err(|error| Ended::Closed(error.to_string()))
    }

    /// Answers a command without a queue, and is ready for the next.
    fn answer(&mut self, sqe: &Sqe, status: Status, result: u64) -> Result<(), VerbsError> {
        self.service.receive_connect(&mut self.qp)?;
        let capsule = refusal_capsule(sqe.cid(), status, result);
        let work = SendWork::Send {
            header: &capsule,
            data: None,
            invalidate: None,
        };
        self.qp
            .stage(work, 0, true)
            .map_err(|_| super::no_memory("ibv_post_send"))?;
        self.qp.post()
    }

    /// The next completion that succeeded.
    async fn next_done(&mut self, deadline: Instant) -> Result<Done, Ended> {
        let mut armed = false;
        loop {
            match self.qp.poll_one()? {
                Some(Done::Failed { status, .. }) => return Err(Ended::Closed(status.to_string())),
                Some(done) => return Ok(done),
                None if !armed => {
                    self.qp.queue().arm()?;
                    armed = true;
                    continue;
                }
                None => {}
            }
            if let Some(why) = *self.hung_up.borrow() {
                let reason = match why {
                    HungUp::Host => "the host closed the connection",
                    HungUp::Device => "the RDMA device was removed",
                };
                return Err(Ended::Closed(reason.into()));
            }
            tokio::select! {
                ready = self.fd.readable() => {
                    let mut ready = ready.map_err(|error| Ended::Closed(error.to_string()))?;
                    self.qp.queue().take_events();
                    ready.clear_ready();
                    armed = false;
                }
                _ = self.hung_up.changed() => {}
                () = sleep_until(deadline) => return Err(Ended::TimedOut),
            }
        }
    }
}

/// Token of the READ that fetches Connect's data.
const READ: u64 = 1;
