//! What the command line asks the daemon, and what it answers: one line of JSON each way on a connection.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::address::Address;
use crate::core::error::ConnectError;
use crate::core::namespace::NamespaceIdentity;
use crate::host::HostIdentity;
use crate::options::Target;

/// Raised when a request or an answer changes its meaning: after an upgrade an old daemon says so instead of guessing.
pub const VERSION: u32 = 1;

/// A request with the version that it is meant in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the asking side.
    pub version: u32,
    /// The request.
    pub request: Request,
}

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Connect a controller and make devices of its namespaces.
    Connect(ConnectRequest),
    /// Have a namespace attached, however far earlier requests came: connects only what is not connected, and answers
    /// when the device can be used.
    Attach(AttachRequest),
    /// Disconnect controllers.
    Disconnect {
        /// Which.
        what: Selection,
        /// Even while devices are in use.
        force: bool,
    },
    /// What is attached.
    List,
    /// A structure of Identify, as hexadecimal digits.
    Identify {
        /// A device, a stable name or a controller's name.
        of: String,
        /// Identify Namespace instead of Identify Controller.
        namespace: bool,
        /// The namespace; that of the device where none is given.
        nsid: Option<u32>,
    },
    /// End the daemon; refused while it has controllers.
    Stop,
}

/// See [`Request::Connect`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// Where and how.
    pub target: Target,
    /// As whom.
    pub host: HostIdentity,
    /// The word of `--block`.
    pub block: String,
}

/// See [`Request::Attach`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Where, how and as whom; what is connected already by the same address, NQN and host NQN is taken as it is.
    pub connect: ConnectRequest,
    /// The namespace that is wanted.
    pub namespace: NamespaceSelector,
    /// Bytes that its device must have at least: after a volume grew, the answer waits until its device did too.
    pub min_size_bytes: u64,
    /// Milliseconds that all of this may take.
    pub timeout_ms: u32,
}

/// Which namespace of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamespaceSelector {
    /// By its number.
    Nsid(u32),
    /// By its UUID.
    Uuid(Uuid),
    /// By its NGUID.
    Nguid(Uuid),
    /// By its EUI64.
    Eui64(u64),
    /// The only one; more than one is refused.
    Only,
}

impl fmt::Display for NamespaceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamespaceSelector::Nsid(nsid) => write!(f, "namespace {nsid}"),
            NamespaceSelector::Uuid(uuid) => write!(f, "namespace with UUID {uuid}"),
            NamespaceSelector::Nguid(nguid) => write!(f, "namespace with NGUID {}", nguid.simple()),
            NamespaceSelector::Eui64(eui64) => write!(f, "namespace with EUI64 {eui64:016x}"),
            NamespaceSelector::Only => f.write_str("namespace"),
        }
    }
}

impl NamespaceSelector {
    /// The one of these namespaces that is meant, if it is there; more than one cannot be meant.
    pub fn find<'a>(
        &self,
        namespaces: &'a [NamespaceStatus],
    ) -> Result<Option<&'a NamespaceStatus>, Failure> {
        let is_it = |ns: &&NamespaceStatus| match *self {
            NamespaceSelector::Nsid(nsid) => ns.nsid == nsid,
            NamespaceSelector::Uuid(uuid) => ns.identity.uuid == Some(uuid),
            NamespaceSelector::Nguid(nguid) => ns.identity.nguid == Some(nguid),
            NamespaceSelector::Eui64(eui64) => ns.identity.eui64 == Some(eui64),
            NamespaceSelector::Only => true,
        };
        let mut found = namespaces.iter().filter(is_it);
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(FailureKind::Usage.because(format!(
                "the subsystem has several namespaces that fit ({} and {}, for two): say which by number or UUID",
                first.nsid, second.nsid
            ))),
            (first, _) => Ok(first),
        }
    }
}

/// Which controllers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Those of a subsystem.
    Nqn(String),
    /// The one behind a device, a stable name, or of this name.
    Device(String),
    /// The one that was connected with exactly this; one that is being connected is waited for.
    Association {
        /// The port.
        address: Address,
        /// The subsystem.
        subnqn: String,
        /// The host.
        hostnqn: String,
    },
    /// All.
    All,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// A controller was connected.
    Connected(ControllerStatus),
    /// Names of the controllers that were disconnected.
    Disconnected(Vec<String>),
    /// What is attached.
    List(Vec<ControllerStatus>),
    /// 4096 bytes as hexadecimal digits.
    Identify(String),
    /// Done.
    Done,
    /// Not done.
    Failed(Failure),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The kind, which is the exit code.
    pub kind: FailureKind,
    /// Cause and remedy.
    pub message: String,
}

/// Kinds of failure; each has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Anything without a kind of its own.
    Other,
    /// The arguments make no sense.
    Usage,
    /// No such device, controller or subsystem here.
    NotFound,
    /// In use, or connected already.
    Busy,
    /// The target refused.
    Refused,
    /// The target cannot be reached, or broke off.
    Unreachable,
    /// This system lacks something.
    System,
}

impl FailureKind {
    /// The exit code of the command.
    pub fn exit_code(self) -> u8 {
        match self {
            FailureKind::Other => 1,
            FailureKind::Usage => 2,
            FailureKind::NotFound => 3,
            FailureKind::Busy => 4,
            FailureKind::Refused => 5,
            FailureKind::Unreachable => 6,
            FailureKind::System => 7,
        }
    }

    /// A failure of this kind.
    pub fn because(self, message: impl ToString) -> Failure {
        Failure {
            kind: self,
            message: message.to_string(),
        }
    }
}

/// With the kind that a failed connection attempt has.
impl From<&ConnectError> for Failure {
    fn from(error: &ConnectError) -> Self {
        let kind = match error {
            ConnectError::Unreachable { .. }
            | ConnectError::Ended { .. }
            | ConnectError::Timeout { .. } => FailureKind::Unreachable,
            ConnectError::Refused { .. }
            | ConnectError::Rejected { .. }
            | ConnectError::AuthenticationRequired(_) => FailureKind::Refused,
            ConnectError::Admin { .. } if error.status().is_some() => FailureKind::Refused,
            ConnectError::Admin { .. } => FailureKind::Unreachable,
            ConnectError::ShardGone | ConnectError::Rdma { .. } => FailureKind::System,
            ConnectError::Violation { .. }
            | ConnectError::NotReady { .. }
            | ConnectError::Fatal(_)
            | ConnectError::Unusable(_)
            | ConnectError::TooFewQueues { .. } => FailureKind::Other,
        };
        kind.because(error)
    }
}

/// A controller as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerStatus {
    /// The daemon's name for it.
    pub name: String,
    /// Subsystem.
    pub subnqn: String,
    /// Transport and address.
    pub address: String,
    /// Host NQN.
    pub hostnqn: String,
    /// [`LIVE`], `connecting`, `lost: …` or [`DEAD`]` …`.
    pub state: String,
    /// Identifier of the association's controller.
    pub cntlid: u16,
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// I/O queues.
    pub queues: u16,
    /// Its namespaces.
    pub namespaces: Vec<NamespaceStatus>,
}

/// The state of a controller that works.
pub const LIVE: &str = "live";
/// How the state of a controller begins that was given up; why is behind it.
pub const DEAD: &str = "dead: ";

impl ControllerStatus {
    /// Whether it works.
    pub fn is_live(&self) -> bool {
        self.state == LIVE
    }

    /// Whether it was given up: it stays until it is disconnected.
    pub fn is_given_up(&self) -> bool {
        self.state.starts_with(DEAD)
    }
}

/// A namespace as `list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStatus {
    /// Identifier on its controller.
    pub nsid: u32,
    /// What identifies it everywhere.
    #[serde(flatten)]
    pub identity: NamespaceIdentity,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Block size in bytes.
    pub block_bytes: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The form of the device: ublk, nbd, fuse, nbd-socket or none.
    pub block: String,
    /// The device, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
    /// What NBD clients are told to connect to, where the device is a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The stable name, if there is a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_id: Option<PathBuf>,
    /// What is wrong with it, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_socket() {
        let request = Request::Disconnect {
            what: Selection::Nqn("n".into()),
            force: true,
        };
        let text = serde_json::to_string(&Envelope {
            version: VERSION,
            request,
        })
        .unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"request":{"disconnect":{"what":{"nqn":"n"},"force":true}}}"#
        );
        let back: Envelope = serde_json::from_str(&text).unwrap();
        assert!(
            matches!(back.request, Request::Disconnect { what: Selection::Nqn(nqn), force: true } if nqn == "n")
        );
    }

    #[test]
    fn exit_codes_are_distinct() {
        use FailureKind::*;
        let mut codes = [Other, Usage, NotFound, Busy, Refused, Unreachable, System]
            .map(FailureKind::exit_code);
        codes.sort_unstable();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7]);
    }
}
