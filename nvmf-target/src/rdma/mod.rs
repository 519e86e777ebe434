//! The RDMA transport of the target, as far as both threads of it share it: [`Link`], a queue pair with its protocol state, and
//! [`Registrars`], one for each device on a thread.
//!
//! The control thread listens, accepts and runs admin queues over links of its own (`control::rdma`); an I/O queue's queue pair goes to a
//! shard with nothing posted on it, where it becomes a link of the shard (`shard::rdma`).

mod link;

use std::sync::Arc;

use nvmf_io::verbs::{ProtectionDomain, Registrar, RemoteAccess};

pub use link::{Link, LinkEvent, LinkFailure};

/// Most data in a capsule over RDMA: every receive that is posted pins so much.
pub const MAX_IN_CAPSULE_BYTES: u32 = 4096;

/// Work requests beside receives that a queue with so many entries may have outstanding: READ, or WRITE and SEND, for each, and as many
/// again for those that have ended without the device having said so; a probe.
pub const fn send_entries(depth: u16) -> u32 {
    2 * depth as u32 + 4
}

/// The registrars of one thread.
#[derive(Debug, Default)]
pub struct Registrars(Vec<Registrar>);

impl Registrars {
    /// The one for a device.
    pub fn of(&mut self, domain: &Arc<ProtectionDomain>) -> &mut Registrar {
        let known = |registrar: &Registrar| Arc::ptr_eq(registrar.domain(), domain);
        let at = self.0.iter().position(known).unwrap_or_else(|| {
            self.0
                .push(Registrar::new(Arc::clone(domain), RemoteAccess::None));
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// Whether no connection of this shard goes over RDMA, or did of late.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets devices that nobody else uses any more.
    pub fn prune(&mut self) {
        self.0.retain(|registrar| {
            Arc::strong_count(registrar.domain()) > 1 + registrar.registrations()
        });
    }
}
