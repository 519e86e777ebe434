//! One queue's connection from nothing to the Connect response, on the control thread.
//!
//! [`tcp`] and [`rdma`] make connections; what Connect says and what its answer means is the same for both. Nothing here is on
//! the I/O path: buffers are vectors, and time-outs are real ones.

pub(crate) mod rdma;
pub(crate) mod tcp;

use std::time::Duration;

use nvme_proto::violation::Violation;
use nvme_proto::wire::fabrics::{Cattr, ConnectData, ConnectResult, ConnectSqe, InvalidParameter};
use nvme_proto::wire::{Cntlid, Cqe, HostId, Nqn, Qid, Sqe, Status};
use tokio::time::timeout;

use self::rdma::RdmaLink;
use self::tcp::TcpLink;
use super::error::ConnectError;
use super::message::NewWire;
use crate::address::Transport;
use crate::host::HostIdentity;
use crate::options::Target;

/// What a queue is connected with.
pub(crate) struct QueueSpec<'a> {
    pub target: &'a Target,
    pub host: &'a HostIdentity,
    pub qid: Qid,
    /// Entries of the submission queue.
    pub entries: u16,
    /// [`Cntlid::DYNAMIC`] on an admin queue, the controller's own on the others.
    pub cntlid: Cntlid,
    /// In-capsule data that the controller accepts on this queue.
    pub in_capsule_bytes: u32,
    /// Keep-alive time-out; 0 on I/O queues.
    pub kato_ms: u32,
}

impl QueueSpec<'_> {
    fn without_flow_control(&self) -> bool {
        self.target.options.disable_sqflow && !self.qid.is_admin()
    }

    /// The bound on each step.
    fn limit(&self) -> Duration {
        self.target.options.connect_timeout()
    }

    /// Connect for a queue of so many entries, and its data.
    fn connect_command(&self, entries: u16) -> Result<(Sqe, ConnectData), ConnectError> {
        let cattr = if self.without_flow_control() {
            Cattr::DISABLE_SQ_FLOW_CONTROL
        } else {
            Cattr::empty()
        };
        let nqn = |text: &str| {
            text.parse::<Nqn>()
                .map_err(|error| ConnectError::Unusable(error.to_string()))
        };
        let data = ConnectData::new(
            HostId(*self.host.hostid.as_bytes()),
            self.cntlid,
            &nqn(&self.target.subnqn)?,
            &nqn(&self.host.hostnqn)?,
        );
        let connect = ConnectSqe::new(self.qid, entries, cattr, self.kato_ms);
        Ok((connect.into_sqe(), data))
    }

    /// What the answer to Connect means: the controller's identifier, or why there is none.
    fn connected(&self, cqe: &Cqe) -> Result<Cntlid, ConnectError> {
        let status = cqe.status();
        if !status.is_success() {
            return Err(ConnectError::Refused {
                subnqn: self.target.subnqn.clone(),
                hostnqn: self.host.hostnqn.clone(),
                status,
                parameter: Some(InvalidParameter::from_result(cqe.result()))
                    .filter(|_| status.is(Status::CONNECT_INVALID_PARAMETERS)),
            });
        }
        let result = ConnectResult::from_result(cqe.result());
        if result.authentication_required || result.secure_channel_required {
            return Err(ConnectError::AuthenticationRequired(
                self.target.subnqn.clone(),
            ));
        }
        Ok(result.cntlid)
    }
}

/// A connected queue.
pub(crate) struct Link {
    pub wire: LinkWire,
    pub cntlid: Cntlid,
}

/// What carries it.
pub(crate) enum LinkWire {
    Tcp(Box<TcpLink>),
    Rdma(Box<RdmaLink>),
}

impl Link {
    /// Makes the connection and sends Connect. Each step is bounded by `connect_timeout`.
    pub async fn connect(spec: &QueueSpec<'_>) -> Result<Link, ConnectError> {
        let (wire, cntlid) = match spec.target.address.transport {
            Transport::Tcp => {
                let (link, cntlid) = TcpLink::connect(spec).await?;
                (LinkWire::Tcp(Box::new(link)), cntlid)
            }
            Transport::Rdma => {
                let (link, cntlid) = RdmaLink::connect(spec).await?;
                (LinkWire::Rdma(Box::new(link)), cntlid)
            }
        };
        Ok(Link { wire, cntlid })
    }

    /// For a shard.
    pub fn into_wire(self) -> Result<NewWire, ConnectError> {
        match self.wire {
            LinkWire::Tcp(link) => Ok(link.into_wire()),
            LinkWire::Rdma(link) => link.into_wire(),
        }
    }
}

pub(super) async fn bounded<T>(
    spec: &QueueSpec<'_>,
    to: &'static str,
    step: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(spec.limit(), step).await.unwrap_or_else(|_| {
        Err(ConnectError::Timeout {
            address: spec.target.address.clone(),
            to,
            after_ms: spec.target.options.connect_timeout_ms,
        })
    })
}

pub(super) fn ended(spec: &QueueSpec<'_>, during: &'static str, cause: String) -> ConnectError {
    ConnectError::Ended {
        address: spec.target.address.clone(),
        during,
        cause,
    }
}

pub(super) fn violated(spec: &QueueSpec<'_>, violation: Violation) -> ConnectError {
    ConnectError::Violation {
        address: spec.target.address.clone(),
        violation,
    }
}
