//! An NVM subsystem: its name, what identifies it, its namespaces and who may use it.

use std::fmt;
use std::sync::Arc;

use super::access::HostAccess;
use super::namespace::NamespaceTable;
use nvme_proto::wire::Nqn;

/// Names a subsystem in this process. Never reused while the process lives, so that a message about a removed subsystem cannot
/// reach its namesake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubsystemId(pub u32);

impl fmt::Display for SubsystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subsystem {}", self.0)
    }
}

/// An NVM subsystem. Owned by the control thread; a change of the namespaces replaces [`Subsystem::namespaces`] as a whole and
/// is sent to every shard.
#[derive(Debug, Clone)]
pub struct Subsystem {
    /// Its name within the process.
    pub id: SubsystemId,
    /// Its NVMe Qualified Name.
    pub nqn: Nqn,
    /// Serial number, at most 20 ASCII characters, unique for each subsystem and stable over restarts.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Hosts that may connect.
    pub hosts: HostAccess,
    /// The namespaces now.
    pub namespaces: Arc<NamespaceTable>,
}
