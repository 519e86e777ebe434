//! Why a link, which is a queue pair with the protocol's state, is of no more use: the same on either side.

use nvme_proto::violation::Violation;

use super::library::VerbsError;
use super::work::WorkStatus;

/// Why a link is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkFailure {
    /// The peer broke a rule.
    Violation(Violation),
    /// A work request failed, or the device did.
    Broken(String),
    /// Everything comes back: the peer is gone.
    Flushed,
}

impl From<Violation> for LinkFailure {
    fn from(violation: Violation) -> Self {
        LinkFailure::Violation(violation)
    }
}

impl From<VerbsError> for LinkFailure {
    fn from(error: VerbsError) -> Self {
        LinkFailure::Broken(error.to_string())
    }
}

impl From<WorkStatus> for LinkFailure {
    fn from(status: WorkStatus) -> Self {
        match status.is_flushed() {
            true => LinkFailure::Flushed,
            false => LinkFailure::Broken(status.to_string()),
        }
    }
}
