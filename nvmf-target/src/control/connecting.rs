//! A Connect that came in whole, whatever carried it: the connection goes its way, or its host is told why not.

use std::net::SocketAddr;
use std::rc::Rc;

use nvme_proto::controller::{ConnectRequest, Fault};
use nvme_proto::tcp::TcpParams;
use nvme_proto::wire::Status;
use tokio::time::Instant;

use super::accept::Counted;
use super::net::Stream;
use super::rdma::Greeted;
use super::target::Target;
use super::{admin, io_connect};
use crate::config::{Address, Carrier};

/// A connection whose host has sent a whole Connect.
pub struct Connecting {
    /// The connection.
    pub carried: Carried,
    /// Counts it against the bound.
    pub counted: Counted,
    /// The command, checked.
    pub request: ConnectRequest,
}

/// What carries a connection.
pub enum Carried {
    /// TCP.
    Tcp {
        /// The socket.
        stream: Stream,
        /// What ICReq and ICResp agreed on.
        params: TcpParams,
        /// What came in behind Connect.
        rest: Vec<u8>,
    },
    /// RDMA.
    Rdma(Box<Greeted>),
}

impl Connecting {
    /// The transport and our address that the host connected to.
    pub fn local(&self) -> Address {
        Address {
            carrier: match self.carried {
                Carried::Tcp { .. } => Carrier::Tcp,
                Carried::Rdma(_) => Carrier::Rdma,
            },
            socket: self.addresses().0,
        }
    }

    /// Our address that the host connected to, and the host's.
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        self.carried.addresses()
    }
}

impl Carried {
    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        match self {
            Carried::Tcp { stream, .. } => (stream.local(), stream.peer()),
            Carried::Rdma(greeted) => greeted.addresses(),
        }
    }
}

/// Why a Connect is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the host is told.
    pub status: Status,
    /// Dword 0 of the answer: the parameter at fault, for Connect Invalid Parameters.
    pub result: u64,
    /// What the log is told.
    pub reason: String,
}

impl Refusal {
    /// Refuses for now: the host may come again, so DNR stays clear.
    pub fn for_now(status: Status, reason: impl Into<String>) -> Self {
        Refusal {
            status,
            result: 0,
            reason: reason.into(),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal {
            status: fault.status(),
            result: fault.result(),
            reason: fault.to_string(),
        }
    }
}

/// A refused Connect and the connection it came in on.
pub type Refused = Box<(Refusal, Connecting)>;

/// Why a connection ended before its Connect succeeded.
pub enum Ended {
    /// The host closed it, or what carries it failed.
    Closed(String),
    /// The time is up.
    TimedOut,
    /// The host broke a rule.
    Violation(String),
    /// The host sent a termination request.
    Terminated(String),
}

impl Ended {
    /// Tells the log; `limit_ms` is the time that there was.
    pub fn tell(&self, peer: SocketAddr, limit_ms: u32) {
        match self {
            Ended::Closed(reason) => tracing::debug!(%peer, "closed before Connect: {reason}"),
            Ended::TimedOut => tracing::warn!(%peer, "closed: no Connect within {limit_ms} ms"),
            Ended::Violation(reason) => {
                tracing::warn!(%peer, "protocol error before Connect: {reason}");
            }
            Ended::Terminated(reason) => {
                tracing::warn!(%peer, "ended by the host before Connect: {reason}");
            }
        }
    }
}

/// Makes a connection the queue that its Connect asks for: an admin queue stays on this thread, an I/O queue goes to a shard. Otherwise
/// the connection comes back with what its host is to be told.
pub async fn place(
    target: &Rc<Target>,
    carried: Carried,
    counted: Counted,
    request: Result<ConnectRequest, Fault>,
    deadline: Instant,
) -> Option<(Carried, Counted, Refusal)> {
    let (carried, counted, host, refusal) = match request {
        Ok(request) => {
            let host = request.hostnqn.clone();
            let connecting = Connecting {
                carried,
                counted,
                request,
            };
            let outcome = if connecting.request.qid.is_admin() {
                admin::start(target, connecting, deadline)
            } else {
                io_connect::start(target, connecting, deadline).await
            };
            let (refusal, back) = *outcome.err()?;
            (back.carried, back.counted, Some(host), refusal)
        }
        Err(fault) => (carried, counted, None, Refusal::from(fault)),
    };
    let (peer, host) = (carried.addresses().1, host.map(tracing::field::display));
    tracing::warn!(%peer, host, status = %refusal.status.of_connect(), "Connect refused: {}", refusal.reason);
    Some((carried, counted, refusal))
}
