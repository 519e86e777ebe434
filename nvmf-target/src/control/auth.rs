//! Which hosts have to authenticate, and how a queue's first commands go until they have.
//!
//! A host for which the configuration has a key authenticates on each of its queues, after Connect and before anything else, within the time that a handshake has.
//! The admin queue's task does that itself. An I/O queue over TCP is authenticated here, by [`pass`], before a shard gets it, so that shards know nothing
//! of authentication. The discovery service is open to all, as without keys.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::rc::Rc;
use std::sync::Arc;

use nvme_proto::auth::{Answer, AuthFault, ControllerAuth, DhChapKeys, Outcome};
use nvme_proto::controller::ConnectRequest;
use nvme_proto::queue::SlotId;
use nvme_proto::wire::Status;
use tokio::time::Instant;

use super::accept::RateLimit;
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
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPassed {
    /// It broke a rule, or has another secret.
    #[error("{0}; {remedy}", remedy = remedy(.0))]
    Fault(AuthFault),
    /// It went away without having begun.
    #[error(
        "it did not begin to; give it the secret that dhchap-key-file names for it (nvme connect --dhchap-secret)"
    )]
    NotBegun,
    /// It went away in the middle.
    #[error(
        "it went away in the middle; if it has a controller secret, dhchap-ctrl-key-file must name the same one"
    )]
    Gone,
    /// Its connection ended otherwise.
    #[error("{0}")]
    Ended(Box<EndReason>),
    /// The time is up.
    #[error("it did not do so in time")]
    TimedOut,
}

impl NotPassed {
    /// Of a host whose connection ended.
    pub fn ended(gate: &Gate, reason: EndReason) -> Self {
        match reason {
            EndReason::HostClosed if gate.has_begun() => Self::Gone,
            EndReason::HostClosed => Self::NotBegun,
            reason => Self::Ended(Box::new(reason)),
        }
    }

    /// What is logged together: the kind of failure.
    fn kind(&self) -> Kind {
        let fault = match self {
            Self::Fault(fault) => Some(discriminant(fault)),
            _ => None,
        };
        (discriminant(self), fault)
    }
}

/// What to do about a fault.
fn remedy(fault: &AuthFault) -> &'static str {
    match fault {
        AuthFault::WrongResponse => {
            "it must connect with the secret that dhchap-key-file names for it"
        }
        AuthFault::HostFailed(_) => {
            "if it has a controller secret, dhchap-ctrl-key-file must name the same one"
        }
        AuthFault::NoControllerKey => {
            "name one with dhchap-ctrl-key-file, or let it connect without --dhchap-ctrl-secret"
        }
        AuthFault::NoProtocol => "DH-HMAC-CHAP is the only protocol that there is",
        AuthFault::NoCommonHash => "allow one that it has with hashes in [authentication]",
        AuthFault::NoCommonGroup => "allow one that it has with dh-groups in [authentication]",
        AuthFault::SecureChannel => "let it connect without TLS (nvme connect without --concat)",
        // The rules of the protocol, which no configuration breaks.
        _ => "its software breaks the protocol, or somebody else claims its name",
    }
}

type Kind = (Discriminant<NotPassed>, Option<Discriminant<AuthFault>>);

/// Keeps hosts that fail over and over from filling the log: each kind of failure is let through once in a while.
#[derive(Default)]
pub struct Failures(RefCell<HashMap<Kind, RateLimit>>);

impl Failures {
    /// The number of failures of the kind that were not logged since the last one that was, if this one may be.
    pub fn allow(&self, why: &NotPassed, now: Instant) -> Option<u64> {
        // There are no more entries than kinds.
        let mut limits = self.0.borrow_mut();
        limits.entry(why.kind()).or_default().allow(now)
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
            Event::Ended(reason) => return Err(NotPassed::ended(gate, reason)),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nvme_proto::auth::{DhChapPolicy, Explanation};

    use super::*;

    #[test]
    fn each_fault_has_its_remedy() {
        for (fault, remedy) in [
            (AuthFault::WrongResponse, "dhchap-key-file"),
            (
                AuthFault::HostFailed(Explanation::FAILED),
                "dhchap-ctrl-key-file",
            ),
            (AuthFault::NoControllerKey, "dhchap-ctrl-key-file"),
            (AuthFault::NoCommonHash, "hashes"),
            (AuthFault::NoCommonGroup, "dh-groups"),
            (AuthFault::SecureChannel, "TLS"),
            (AuthFault::WeakDhValue, "breaks the protocol"),
        ] {
            let text = NotPassed::Fault(fault).to_string();
            assert!(
                text.contains(remedy) && text.contains(&fault.to_string()),
                "{text}"
            );
            assert_eq!(
                text.contains(" dhchap-key-file"),
                fault == AuthFault::WrongResponse
            );
        }
    }

    #[test]
    fn how_a_connection_ended_is_told() {
        let secret = "DHHC-1:00:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";
        let keys = DhChapKeys {
            host: secret.parse().unwrap(),
            controller: None,
        };
        let nqn = || "nqn.2024-01.org.example:host".parse().unwrap();
        let gate = ControllerAuth::new(Arc::new(keys), DhChapPolicy::default(), nqn(), nqn());
        let closed = NotPassed::ended(&gate, EndReason::HostClosed);
        assert_eq!(closed, NotPassed::NotBegun);
        let violation = EndReason::Violation("a rule".into());
        let text = NotPassed::ended(&gate, violation).to_string();
        assert_eq!(text, "protocol error: a rule");
    }

    #[test]
    fn failures_of_a_kind_are_logged_once_in_a_while() {
        let failures = Failures::default();
        let now = Instant::now();
        let wrong = NotPassed::Fault(AuthFault::WrongResponse);
        assert_eq!(failures.allow(&wrong, now), Some(0));
        assert_eq!(failures.allow(&wrong, now), None);
        assert_eq!(failures.allow(&NotPassed::Gone, now), Some(0));
        let other = NotPassed::Fault(AuthFault::WeakDhValue);
        assert_eq!(failures.allow(&other, now), Some(0));
        let later = now + Duration::from_secs(60);
        assert_eq!(failures.allow(&wrong, later), Some(1));
    }
}
