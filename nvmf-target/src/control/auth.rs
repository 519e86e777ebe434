//! Which hosts have to authenticate, and how a queue's first commands go until they have.
//!
//! A host for which the configuration has a key authenticates on each of its queues, after Connect and before anything else, within the time that a handshake has.
//! The admin queue's task does that itself. An I/O queue over TCP is authenticated here, by [`pass`], before a shard gets it, so that shards know nothing
//! of authentication. The discovery service is open to all, as without keys.

use std::rc::Rc;
use std::sync::Arc;

use nvme_proto::auth::{Answer, AuthFault, ControllerAuth, DhChapKeys, Outcome};
use nvme_proto::controller::ConnectRequest;
use nvme_proto::queue::SlotId;
use nvme_proto::wire::Status;

use super::association::EndReason;
use super::connecting::Refusal;
use super::pump::{AdminPump, Event, Pump};
use super::target::{Served, Target};
use crate::config::Carrier;

/// What stands before a queue until its host has authenticated.
pub type Gate = ControllerAuth<Arc<DhChapKeys>>;

/// What the host of a queue has to pass, if anything.
pub fn gate(
    target: &Target,
    served: &Rc<Served>,
    request: &ConnectRequest,
    carrier: Carrier,
) -> Result<Option<Gate>, Refusal> {
    let config = target.config.borrow();
    let wanted = &config.authentication;
    let Some(keys) = wanted.keys.get(&request.hostnqn) else {
        return Ok(None);
    };
    if target.is_discovery(served) {
        return Ok(None);
    }
    if carrier == Carrier::Rdma {
        return Err(Refusal {
            status: Status::CONNECT_INVALID_HOST.dnr(),
            result: 0,
            reason: "the host has a key, and authentication over RDMA is not supported; let it connect over TCP, or take its [[host]] table out of the configuration".into(),
        });
    }
    Ok(Some(ControllerAuth::new(
        Arc::clone(keys),
        wanted.policy.clone(),
        request.hostnqn.clone(),
        request.subnqn.clone(),
    )))
}

/// Why a host that was at the gate did not pass it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPassed {
    /// It broke a rule, or has another secret.
    #[error("{0}; it must connect with the secret that dhchap-key-file names for it")]
    Fault(AuthFault),
    /// It went away without having begun.
    #[error(
        "it did not begin to; give it the secret that dhchap-key-file names for it (nvme connect --dhchap-secret)"
    )]
    NotBegun,
    /// It went away in the middle: for it the controller failed.
    #[error(
        "it went away in the middle; if it has a controller secret, dhchap-ctrl-key-file must name the same one"
    )]
    Gone,
    /// The time is up.
    #[error("it did not do so in time")]
    TimedOut,
}

impl NotPassed {
    /// Of a host that went away.
    pub fn gone(gate: &Gate) -> Self {
        match gate.has_begun() {
            true => Self::Gone,
            false => Self::NotBegun,
        }
    }
}

/// Answers a command at the gate. `Some` when that is over, well or not.
pub fn answer(
    gate: &mut Gate,
    pump: &mut AdminPump,
    slot: SlotId,
) -> Option<Result<(), AuthFault>> {
    let sqe = *pump.command(slot);
    let data = pump.take_data(slot);
    match gate.command(&sqe, &data, &mut random) {
        Answer::Complete(status) => pump.complete(slot, status, 0),
        Answer::Data(data) => pump.complete_with_data(slot, data, 0),
    }
    match gate.outcome() {
        Outcome::Pending => None,
        Outcome::Authenticated => Some(Ok(())),
        Outcome::Failed(fault) => Some(Err(fault)),
    }
}

/// Serves an I/O queue until its host has passed or will not.
pub async fn pass(gate: &mut Gate, pump: &mut AdminPump) -> Result<(), NotPassed> {
    loop {
        match pump.next().await {
            Event::Command(slot) => match answer(gate, pump, slot) {
                None => {}
                Some(verdict) => return verdict.map_err(NotPassed::Fault),
            },
            Event::Ended(EndReason::HostClosed) => return Err(NotPassed::gone(gate)),
            Event::Ended(reason) => {
                tracing::warn!("a queue ended while its host authenticated: {reason}");
                return Err(NotPassed::gone(gate));
            }
        }
    }
}

/// The pump of a queue over TCP, to be taken apart again.
pub fn over_tcp(pump: AdminPump) -> Option<Pump> {
    match pump {
        AdminPump::Tcp(pump) => Some(*pump),
        AdminPump::Rdma(_) => None,
    }
}

/// Fills `bytes` with what nobody can guess.
fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has random bytes once it has booted");
}
