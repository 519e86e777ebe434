//! Admin queues: each is one task that drives the protocol's `Controller` with what the host sends and what happens here.
//!
//! The task lives as long as the association. When it ends, for whatever reason, it first makes sure that nothing of the
//! association can reach storage any more, and only then lets successors go on.

use std::rc::Rc;
use std::time::Duration;

use nvme_proto::controller::{
    AdminAction, ConnectRequest, Controller, ControllerInit, ControllerKind, Fault, KeepAliveState,
    Transport,
};
use nvme_proto::queue::{QueueLimits, SlotId};
use nvme_proto::tcp::ControllerConn;
use nvme_proto::wire::event::AbortCommand;
use nvme_proto::wire::fabrics::ConnectResult;
use nvme_proto::wire::feature::{FeatureId, SetFeatures};
use nvme_proto::wire::{AdminOpcode, Sqe, Status};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use super::association::{AdminPeer, Association, EndReason, Notice, Stage};
use super::auth::{self, Gate, NotPassed};
use super::connecting::{Carried, Connecting, Refusal, Refused};
use super::net;
use super::pump::{AdminPump, Event, Pump};
use super::rdma::{Pulse, RdmaPump};
use super::target::{Served, Target};
use super::view::View;
use crate::config::{Address, KeepAliveBounds};
use crate::model::{ControllerKey, ControllerShared, LatencySummary};

/// The subsystem that a Connect names, if the host may use it.
///
/// `local` is our address that the host connected to: where a subsystem is not served its hosts have no access either.
pub fn find_subsystem(
    target: &Target,
    request: &ConnectRequest,
    local: Address,
) -> Result<Rc<Served>, Fault> {
    let served = target
        .find(&request.subnqn)
        .ok_or(Fault::UnknownSubsystem)?;
    let allowed = served.subsystem.borrow().hosts.allows(&request.hostnqn);
    if allowed
        && served
            .ports
            .borrow()
            .allow(local, &target.listeners.ports())
    {
        Ok(served)
    } else {
        Err(Fault::HostNotAllowed)
    }
}

/// Makes the controller that an admin Connect asks for, and its task. An error leaves the connection as it was. A host that has to authenticate does so by the
/// deadline.
pub fn start(
    target: &Rc<Target>,
    connecting: Connecting,
    deadline: Instant,
) -> Result<(), Refused> {
    let admitted = match admit(target, &connecting) {
        Ok(admitted) => admitted,
        Err(refusal) => return Err(Box::new((refusal, connecting))),
    };
    let Admitted {
        served,
        association,
        notices,
        pulse,
        gate,
    } = admitted;
    let peer = connecting.addresses().1;
    let Connecting {
        carried,
        counted,
        request,
    } = connecting;
    target
        .admin_queues_so_far
        .set(target.admin_queues_so_far.get() + 1);
    // Bounded by `MAX_QUEUE_DEPTH`, which is 16 bits.
    let depth = request.entries as u16;
    let limits = association.limits();
    let queue_limits = QueueLimits {
        depth,
        in_capsule_bytes: limits.controller.in_capsule_bytes,
        max_transfer_bytes: limits.controller.max_transfer_bytes,
        r2t_window_bytes: limits.r2t_window_bytes,
        flow_control: !request.disable_sq_flow_control,
        success_flag: limits.success_flag,
        admin: true,
    };
    let result = ConnectResult {
        cntlid: association.shared.key.cntlid,
        authentication_required: gate.is_some(),
        secure_channel_required: false,
    };
    let connect = (request.cid, result.to_result() as u32);
    let pump = match (carried, pulse) {
        (
            Carried::Tcp {
                stream,
                params,
                rest,
            },
            _,
        ) => {
            let mut conn = ControllerConn::new(params, queue_limits);
            conn.accept_connect(connect.0, connect.1);
            AdminPump::Tcp(Box::new(Pump::new(stream, conn, depth, &rest)))
        }
        (Carried::Rdma(greeted), Some(pulse)) => {
            match RdmaPump::new(*greeted, queue_limits, connect, pulse) {
                Ok(pump) => AdminPump::Rdma(Box::new(pump)),
                Err(error) => {
                    tracing::error!(%peer, host = %request.hostnqn, "an admin queue over RDMA cannot be served: {error}");
                    let cntlid = association.shared.key.cntlid;
                    served.associations.borrow_mut().remove(cntlid);
                    association.advance(Stage::Ended);
                    return Ok(());
                }
            }
        }
        (Carried::Rdma(_), None) => unreachable!("RDMA connections are made with a pulse"),
    };
    let queue = AdminQueue {
        pump,
        target: Rc::clone(target),
        served,
        association,
        gate: gate.map(|gate| (Box::new(gate), deadline)),
        kato_ms: request.kato_ms,
        out: Vec::new(),
    };
    if queue.gate.is_none() {
        queue.welcome();
    }
    net::spawn(async move {
        queue.run(notices).await;
        drop(counted);
    });
    Ok(())
}

/// A new association and what its admin queue is made of.
struct Admitted {
    served: Rc<Served>,
    association: Rc<Association>,
    notices: UnboundedReceiver<Notice>,
    pulse: Option<Rc<Pulse>>,
    gate: Option<Gate>,
}

/// Checks the request against what there is, and registers the association.
fn admit(target: &Rc<Target>, connecting: &Connecting) -> Result<Admitted, Refusal> {
    let request = &connecting.request;
    let served = find_subsystem(target, request, connecting.local())?;
    let mut gate = auth::gate(target, &served, request, connecting.local().carrier)?;
    if target.stopping.get() {
        return Err(Refusal::for_now(
            Status::CONNECT_CONTROLLER_BUSY,
            "the target is stopping",
        ));
    }
    let config = target.config.borrow();
    if request.host_id.is_none() {
        tracing::warn!(host = %request.hostnqn, "the host has no host identifier (HOSTID is zero); all that do so count as one");
    }
    let kind = kind_of(target, &served);
    let kato_ms = bounded_kato(&config.keep_alive, kind, request.kato_ms)?;
    let limits = target.announced(connecting.local().carrier);
    let (transport, peer, pulse) = match &connecting.carried {
        Carried::Tcp { stream, .. } => (Transport::Tcp, AdminPeer::Tcp(stream.clone()), None),
        Carried::Rdma(greeted) => {
            let pulse = RdmaPump::pulse(greeted);
            let peer = AdminPeer::Rdma(Rc::clone(&pulse));
            (Transport::Rdma, peer, Some(pulse))
        }
    };
    let mut admitted = None;
    let registered = served.associations.borrow_mut().insert_with(|cntlid| {
        let init = ControllerInit {
            kind,
            cntlid,
            host_nqn: request.hostnqn.clone(),
            host_id: request.host_id,
            transport,
            kato_ms,
            limits: limits.controller,
        };
        let key = ControllerKey {
            subsystem: served.id(),
            cntlid,
        };
        let shared = ControllerShared::new(
            key,
            request.hostnqn.clone(),
            request.host_id.0,
            target.shards.count(),
        );
        let controller = Controller::new(init, now_ms(target));
        let stage = match gate {
            Some(_) => Stage::Gated,
            None => Stage::Live,
        };
        let (association, notices) = Association::new(stage, shared, controller, limits, peer);
        admitted = Some(Admitted {
            served: Rc::clone(&served),
            association: Rc::clone(&association),
            notices,
            pulse: pulse.clone(),
            gate: gate.take(),
        });
        association
    });
    match (registered, admitted) {
        (Ok(_), Some(admitted)) => Ok(admitted),
        (Err(full), _) => Err(Refusal::for_now(
            Status::CONNECT_CONTROLLER_BUSY,
            full.to_string(),
        )),
        (Ok(_), None) => Err(Refusal::for_now(
            Status::INTERNAL_ERROR,
            "the registry made no controller",
        )),
    }
}

/// What the controllers of a subsystem are for.
fn kind_of(target: &Target, served: &Rc<Served>) -> ControllerKind {
    if target.is_discovery(served) {
        ControllerKind::Discovery
    } else {
        ControllerKind::Io
    }
}

/// The keep-alive timeout that a host gets that asks for `asked_ms`, 0 standing for none. Hosts that only read the discovery log ask for
/// none; those may always do so, since a discovery controller without a timeout ends by itself when it is idle.
fn bounded_kato(
    bounds: &KeepAliveBounds,
    kind: ControllerKind,
    asked_ms: u32,
) -> Result<u32, Refusal> {
    match bounds.max_ms {
        _ if asked_ms == 0 && kind == ControllerKind::Discovery => Ok(0),
        Some(max_ms) if asked_ms == 0 || asked_ms > max_ms => Err(Refusal::for_now(
            Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr(),
            format!("a keep-alive timeout of {asked_ms} ms; keep-alive.max-ms is {max_ms}"),
        )),
        _ if asked_ms == 0 => Ok(0),
        _ => Ok(asked_ms.max(bounds.min_ms)),
    }
}

/// Milliseconds on the clock that controllers go by.
fn now_ms(target: &Target) -> u64 {
    target.started.elapsed().as_millis() as u64
}

/// Before a host is taken for silent, what it sent is looked for once more: when this process had no processor for longer than the
/// keep-alive timeout, all that hosts said meanwhile is still in their sockets, and all timers have run out.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// One admin queue.
struct AdminQueue {
    pump: AdminPump,
    target: Rc<Target>,
    served: Rc<Served>,
    association: Rc<Association>,
    /// What the host has to pass before anything else, and until when.
    gate: Option<(Box<Gate>, Instant)>,
    /// The keep-alive timeout that the host asked for.
    kato_ms: u32,
    /// Where the controller puts data for the host.
    out: Vec<u8>,
}

impl AdminQueue {
    async fn run(mut self, mut notices: UnboundedReceiver<Notice>) {
        let mut last_look = None;
        let reason = loop {
            self.complete_events();
            let deadline = last_look.or_else(|| self.keep_alive_deadline());
            tokio::select! {
                // What a host said counts before the time that it took.
                biased;
                notice = notices.recv() => match notice {
                    Some(Notice::End(reason)) => break reason,
                    Some(notice) => self.take_notice(notice),
                    // The association holds a sender.
                    None => break EndReason::Stopping,
                },
                event = self.pump.next() => match event {
                    Event::Command(slot) => {
                        last_look = None;
                        if let Err(not_passed) = self.execute(slot) {
                            break EndReason::Unauthenticated(not_passed);
                        }
                    }
                    Event::Ended(reason) => break self.left(reason),
                },
                () = until(self.gate.as_ref().map(|(_, deadline)| *deadline)) => {
                    break EndReason::Unauthenticated(NotPassed::TimedOut);
                }
                () = until(deadline) => {
                    let io_traffic = self.association.shared.take_traffic();
                    let now = now_ms(&self.target);
                    let state = self.association.controller.borrow_mut().keep_alive(now, io_traffic);
                    last_look = match (state, last_look) {
                        (KeepAliveState::Expired, None) => Some(Instant::now() + LAST_LOOK),
                        (KeepAliveState::Expired, Some(_)) => break EndReason::KeepAlive,
                        _ => None,
                    };
                }
            }
        };
        self.end(reason).await;
    }

    /// Ends the association: no more commands, the I/O queues fenced, then the connection.
    async fn end(self, reason: EndReason) {
        let key = self.association.shared.key;
        let host = self.association.shared.host_nqn.clone();
        match reason {
            EndReason::HostClosed | EndReason::Stopping => {
                tracing::info!(%host, controller = %key.cntlid, "association ends: {reason}");
            }
            EndReason::Unauthenticated(why) => {
                let peer = self.association.peer();
                if let Some(suppressed) = self.target.auth_failures.allow(&why, Instant::now()) {
                    tracing::warn!(%peer, %host, suppressed, "association ends: the host did not authenticate: {why}");
                }
            }
            _ => tracing::warn!(%host, controller = %key.cntlid, "association ends: {reason}"),
        }
        self.association.advance(Stage::Closing);
        self.target.shards.drop_controller(key).await;
        self.tell_totals();
        self.served.associations.borrow_mut().remove(key.cntlid);
        self.association.advance(Stage::Ended);
        self.pump.close().await;
    }

    /// Says what the host did in all, if it did anything. Times are those inside the target: from the turn in which a command was received to
    /// its response going to the kernel, 99 % of them at most what is said.
    fn tell_totals(&self) {
        let shared = &self.association.shared;
        let totals = shared.counters.totals();
        if totals.reads + totals.writes + totals.flushes + totals.others + totals.errors == 0 {
            return;
        }
        let p99_ns = |latency: &LatencySummary| latency.quantile_nanos(0.99).unwrap_or(0);
        tracing::info!(
            host = %shared.host_nqn, controller = %shared.key.cntlid, reads = totals.reads, writes = totals.writes,
            flushes = totals.flushes, errors = totals.errors, read_p99_ns = p99_ns(&totals.read_latency),
            write_p99_ns = p99_ns(&totals.write_latency), "commands of the association"
        );
    }

    /// Why the association of a host ends whose connection ended.
    fn left(&self, reason: EndReason) -> EndReason {
        match &self.gate {
            Some((gate, _)) => EndReason::Unauthenticated(NotPassed::ended(gate, reason)),
            None => reason,
        }
    }

    /// The host is who it says, or nobody asks it: it may go on, and what this association replaces is looked for.
    fn welcome(&self) {
        let association = Rc::clone(&self.association);
        association.advance(Stage::Live);
        let older = self
            .served
            .associations_where(|other| other.precedes(&association));
        tracing::info!(
            peer = %association.peer(), host = %association.shared.host_nqn, subsystem = %self.served.info.nqn,
            controller = %association.shared.key.cntlid, kato_ms = self.kato_ms, older = older.len(), "host connected"
        );
        net::spawn(async move { association.fence(older).await });
    }

    /// Carries out a command. An error ends the association.
    fn execute(&mut self, slot: SlotId) -> Result<(), NotPassed> {
        match &mut self.gate {
            None => self.carry_out(slot),
            Some((gate, _)) => {
                if let Some(verdict) = auth::answer(gate, &mut self.pump, slot) {
                    verdict.map_err(NotPassed::Fault)?;
                    self.gate = None;
                    tracing::info!(host = %self.association.shared.host_nqn, "host authenticated");
                    self.welcome();
                }
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, slot: SlotId) {
        let sqe = *self.pump.command(slot);
        // No supported admin command takes data from the host.
        drop(self.pump.take_data(slot));
        if let Some(status) = self.refuse_kato(&sqe) {
            return self.pump.complete(slot, status, 0);
        }
        let action = {
            let subsystem = self.served.subsystem.borrow();
            let view = View {
                target: &self.target,
                served: &self.served,
                subsystem: &subsystem,
                local: self.association.local().socket.ip(),
            };
            let mut controller = self.association.controller.borrow_mut();
            controller.admin(&sqe, slot.0, &view, &mut self.out, now_ms(&self.target))
        };
        match action {
            AdminAction::Complete { status, result } => {
                if !status.is_success() {
                    tracing::debug!(
                        host = %self.association.shared.host_nqn, opcode = %sqe.opcode, %status, "admin command failed"
                    );
                }
                self.pump.complete(slot, status, result);
            }
            AdminAction::CompleteWithData { len_bytes } => {
                let mut data = std::mem::take(&mut self.out);
                data.truncate(len_bytes as usize);
                self.pump.complete_with_data(slot, data, 0);
            }
            AdminAction::Hold => {}
            AdminAction::Abort { sqid, cid } => {
                let association = Rc::clone(&self.association);
                let target = Rc::clone(&self.target);
                net::spawn(async move {
                    let done = match association.shard_of(sqid) {
                        Some(shard) => {
                            let key = association.shared.key;
                            target.shards.abort(shard, key, sqid, cid).await
                        }
                        None => false,
                    };
                    association.notice(Notice::Aborted { slot, done });
                });
            }
            AdminAction::Disable => {
                self.pump.complete(slot, Status::SUCCESS, 0);
                let association = Rc::clone(&self.association);
                let target = Rc::clone(&self.target);
                net::spawn(async move {
                    target.shards.drop_controller(association.shared.key).await;
                    association.notice(Notice::Drained);
                });
            }
            AdminAction::Shutdown { abrupt } => {
                self.pump.complete(slot, Status::SUCCESS, 0);
                let association = Rc::clone(&self.association);
                let served = Rc::clone(&self.served);
                net::spawn(async move {
                    if !abrupt {
                        super::flush::flush(&served).await;
                    }
                    association.notice(Notice::ShutDown);
                });
            }
        }
    }

    /// Judges a Set Features that would change the keep-alive timeout, as Connect is judged.
    fn refuse_kato(&self, sqe: &Sqe) -> Option<Status> {
        if sqe.opcode != AdminOpcode::SET_FEATURES {
            return None;
        }
        let set = SetFeatures::from_sqe(sqe);
        if set.fid != FeatureId::KEEP_ALIVE_TIMER {
            return None;
        }
        let config = self.target.config.borrow();
        let kind = kind_of(&self.target, &self.served);
        let refused = bounded_kato(&config.keep_alive, kind, set.cdw11).err();
        refused.map(|refusal| refusal.status)
    }

    fn take_notice(&mut self, notice: Notice) {
        let mut controller = self.association.controller.borrow_mut();
        match notice {
            Notice::NamespaceChanged(nsid) => controller.namespace_changed(nsid),
            Notice::DiscoveryChanged => controller.discovery_changed(),
            Notice::Drained => controller.drained(),
            Notice::ShutDown => controller.shutdown_done(),
            Notice::Aborted { slot, done } => {
                controller.abort_done();
                self.pump
                    .complete(slot, Status::SUCCESS, AbortCommand::result(done));
            }
            Notice::End(_) => {}
        }
    }

    /// Completes held event requests for which there is an event.
    fn complete_events(&mut self) {
        let mut controller = self.association.controller.borrow_mut();
        while let Some(event) = controller.poll_event() {
            self.pump
                .complete(SlotId(event.tag), event.status, event.result);
        }
    }

    fn keep_alive_deadline(&self) -> Option<Instant> {
        let controller = self.association.controller.borrow();
        let deadline_ms = controller.keep_alive_deadline_ms()?;
        let deadline = self.target.started + Duration::from_millis(deadline_ms);
        Some(Instant::from_std(deadline))
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_timeouts_are_raised_or_refused() {
        use ControllerKind::{Discovery, Io};
        let open = KeepAliveBounds::default();
        assert_eq!(bounded_kato(&open, Io, 0).unwrap(), 0);
        assert_eq!(bounded_kato(&open, Io, 5000).unwrap(), 5000);
        let bounds = KeepAliveBounds {
            min_ms: 1000,
            max_ms: Some(60_000),
        };
        assert_eq!(bounded_kato(&bounds, Io, 10).unwrap(), 1000);
        assert_eq!(bounded_kato(&bounds, Io, 60_000).unwrap(), 60_000);
        assert_eq!(bounded_kato(&bounds, Discovery, 0).unwrap(), 0);
        assert!(bounded_kato(&bounds, Discovery, 60_001).is_err());
        for asked in [0, 60_001] {
            let refusal = bounded_kato(&bounds, Io, asked).unwrap_err();
            assert_eq!(refusal.status, Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr());
        }
    }
}
