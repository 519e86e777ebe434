//! Why a controller could not be connected, an admin command not be done, or a queue ended: cause first, remedy behind it.

use std::io;

use nvme_proto::rdma::CmStatus;
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::violation::Violation;
use nvme_proto::wire::Status;
use nvme_proto::wire::fabrics::InvalidParameter;

use nvmf_io::Errno;
use nvmf_io::verbs::VerbsError;

use crate::address::Address;

/// Why a connection was not made or is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve, or nothing answers there.
    #[error("{address}: {source}{}", hint(.source))]
    Unreachable {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// RDMA cannot be used, or failed.
    #[error("{address}: {cause}")]
    Rdma {
        /// Where.
        address: Address,
        /// Why, and what to do.
        cause: VerbsError,
    },
    /// The target refused the RDMA connection.
    #[error("{address}: the target rejected the RDMA connection: {status}")]
    Rejected {
        /// Where.
        address: Address,
        /// Why.
        status: CmStatus,
    },
    /// The connection ended or failed while it was being set up.
    #[error("{address}: the connection ended during {during}: {cause}{}", ended_hint(.during))]
    Ended {
        /// Where.
        address: Address,
        /// What was going on.
        during: &'static str,
        /// Why.
        cause: String,
    },
    /// No answer in time.
    #[error("{address}: no answer to {to} within {after_ms} ms; is this an {} port?", .address.transport.standard_name())]
    Timeout {
        /// Where.
        address: Address,
        /// To what.
        to: &'static str,
        /// The bound.
        after_ms: u32,
    },
    /// The target broke a rule of the protocol.
    #[error("{address}: the target broke the protocol: {violation}")]
    Violation {
        /// Where.
        address: Address,
        /// Which rule.
        violation: Violation,
    },
    /// Connect was refused.
    #[error("{subnqn}: the target refused Connect: {}{}", .status.of_connect(), refusal(.status, .parameter, .hostnqn))]
    Refused {
        /// The subsystem.
        subnqn: String,
        /// As whom we asked.
        hostnqn: String,
        /// The answer.
        status: Status,
        /// The parameter that it names.
        parameter: Option<InvalidParameter>,
    },
    /// The controller wants in-band authentication.
    #[error(
        "{0}: the target requires authentication (DH-HMAC-CHAP), which this initiator does not have yet"
    )]
    AuthenticationRequired(String),
    /// An admin command failed.
    #[error("{command}: {source}")]
    Admin {
        /// Which.
        command: &'static str,
        /// Why.
        source: AdminError,
    },
    /// The controller does not get ready.
    #[error("the controller did not get ready within {after_ms} ms (CSTS {csts:08x}h)")]
    NotReady {
        /// CAP.TO.
        after_ms: u64,
        /// The last status read.
        csts: u32,
    },
    /// The controller reports a fatal error.
    #[error(
        "the controller reports a fatal status (CSTS {0:08x}h); the target has to be restarted"
    )]
    Fatal(u32),
    /// The controller says something that cannot be worked with.
    #[error("the controller cannot be used: {0}")]
    Unusable(String),
    /// After a reconnect there are fewer queues than shards that need one.
    #[error("the target grants {granted} I/O queues, {needed} are needed as before the loss")]
    TooFewQueues {
        /// Granted.
        granted: u16,
        /// Needed.
        needed: u16,
    },
    /// A shard is gone; the session or daemon is ending.
    #[error("a shard of this process has ended")]
    ShardGone,
}

impl ConnectError {
    /// The status with which the controller refused, if that is what happened.
    pub fn status(&self) -> Option<Status> {
        match self {
            ConnectError::Refused { status, .. } => Some(*status),
            ConnectError::Admin {
                source: AdminError::Status(status),
                ..
            } => Some(*status),
            _ => None,
        }
    }
}

/// Why an admin command was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The controller said so.
    #[error("the controller answered {0}")]
    Status(Status),
    /// The admin queue ended.
    #[error("the admin queue ended: {0}")]
    Ended(String),
    /// No answer in time.
    #[error("no answer within {0} ms")]
    Timeout(u32),
    /// The answer brought less data than its structure has.
    #[error("the controller sent {got} of {expected} bytes")]
    ShortData {
        /// Bytes that came.
        got: u32,
        /// Bytes asked for.
        expected: u32,
    },
}

fn hint(source: &io::Error) -> &'static str {
    if source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) {
        return "; no RDMA device of this machine leads there: rdma link show lists devices";
    }
    match source.kind() {
        io::ErrorKind::ConnectionRefused => {
            "; nothing listens there: is the target running, and is the port right?"
        }
        io::ErrorKind::TimedOut => "; is the address right, and does a firewall drop the packets?",
        _ => "",
    }
}

fn ended_hint(during: &str) -> &'static str {
    if during == "ICReq" {
        "; the port may not speak NVMe/TCP, or it wants TLS or other digests"
    } else {
        ""
    }
}

fn refusal(status: &Status, parameter: &Option<InvalidParameter>, hostnqn: &str) -> String {
    if status.is(Status::CONNECT_INVALID_HOST) {
        return format!(
            "; the subsystem does not allow host {hostnqn}: allow it at the target, or connect as another --hostnqn"
        );
    }
    if status.is(Status::CONNECT_CONTROLLER_BUSY) {
        return "; the controller is in use, trying again later may work".to_owned();
    }
    if status.is(Status::KEEP_ALIVE_TIMEOUT_INVALID) {
        return "; the target wants another --keep-alive-tmo".to_owned();
    }
    match parameter {
        Some(InvalidParameter::SUBNQN) => {
            "; there is no such subsystem at this port: `nvmf-initiator discover` shows those that are".to_owned()
        }
        Some(InvalidParameter::HOSTID) => {
            "; the target knows this host NQN under another host id: check --hostid and /etc/nvme/hostid".to_owned()
        }
        Some(parameter) if status.is(Status::CONNECT_INVALID_PARAMETERS) => {
            format!("; it does not accept {}", parameter.name())
        }
        _ => String::new(),
    }
}

/// Why a queue ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The target closed the connection.
    #[error("the target closed the connection")]
    ClosedByPeer,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Socket(Errno),
    /// A work request, the device or the connection manager failed.
    #[error("the RDMA connection failed: {0}")]
    Rdma(String),
    /// The target broke a rule of the protocol.
    #[error("the target broke the protocol: {0}")]
    Violation(Violation),
    /// The target ended the connection with a termination request.
    #[error(
        "the target ended the connection with a termination request: {fes}, information {fei:08x}h"
    )]
    TermReq {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
    /// A command had no answer in time, nor after its abort was asked for.
    #[error(
        "a command had no answer within {0} ms, and none for as long again after its abort was asked for"
    )]
    CommandTimeout(u32),
    /// No buffer for the queue's own use.
    #[error("the buffer pool has no room for another queue; raise its bound")]
    NoBuffer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_answer_comes_with_what_to_look_at() {
        let said = |errno: Errno| {
            let error = ConnectError::Unreachable {
                address: Address::rdma("192.0.2.1", 4420),
                source: errno.into(),
            };
            error.to_string()
        };
        assert!(said(Errno::NODEV).contains("rdma link show"));
        assert!(said(Errno::CONNREFUSED).contains("is the target running"));
        assert!(said(Errno::TIMEDOUT).contains("firewall"));
    }
}
