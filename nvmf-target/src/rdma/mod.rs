//! The RDMA transport of the target, as far as both threads of it share it: [`Link`], a queue pair with its protocol state, and
//! [`Registrars`], one for each device on a thread.
//!
//! The control thread listens, accepts and runs admin queues over links of its own (`control::rdma`); an I/O queue's queue pair goes to a
//! shard with nothing posted on it, where it becomes a link of the shard (`shard::rdma`).

mod link;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use nvmf_io::verbs::{ProtectionDomain, Registrar, RemoteAccess, WorkCounts};

pub use link::{Link, LinkEvent};

/// Most data in a capsule over RDMA: every receive that is posted pins so much.
pub const MAX_IN_CAPSULE_BYTES: u32 = 4096;

/// Work requests beside receives that a queue with so many entries may have outstanding: READ, or WRITE and SEND, for each, and as many
/// again for those that have ended without the device having said so; a probe.
pub const fn send_entries(depth: u16) -> u32 {
    2 * depth as u32 + 4
}

/// The registrars of one thread, and what its connections did on each device.
#[derive(Debug, Default)]
pub struct Registrars(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    registrar: Registrar,
    activity: Rc<Activity>,
}

/// What the connections of a thread did on a device.
#[derive(Debug, Default)]
struct Activity {
    counts: Cell<WorkCounts>,
    queue_pairs: Cell<u64>,
    queue_pair_bytes: Cell<u64>,
}

/// A connection's use of a device: as long as there is one, the thread's registrations stay.
#[derive(Debug)]
pub struct DeviceUse {
    activity: Rc<Activity>,
    bytes: u64,
}

impl DeviceUse {
    /// Notes what was done.
    #[inline]
    pub fn add(&self, counts: WorkCounts) {
        let mut sum = self.activity.counts.get();
        sum += counts;
        self.activity.counts.set(sum);
    }

    fn change(&self, queue_pairs: i64, bytes: i64) {
        let Activity {
            queue_pairs: pairs,
            queue_pair_bytes,
            ..
        } = &*self.activity;
        pairs.set(pairs.get().saturating_add_signed(queue_pairs));
        queue_pair_bytes.set(queue_pair_bytes.get().saturating_add_signed(bytes));
    }
}

impl Drop for DeviceUse {
    fn drop(&mut self) {
        self.change(-1, -(self.bytes as i64));
    }
}

/// What a thread did on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStats {
    /// The device's name.
    pub device: String,
    /// Work requests and completions of all connections so far.
    pub counts: WorkCounts,
    /// Regions of memory registered now.
    pub registrations: u64,
    /// Connections now.
    pub queue_pairs: u64,
    /// Memory of their queue pairs and of the buffers that their receives have, in bytes.
    pub queue_pair_bytes: u64,
}

impl Registrars {
    fn entry(&mut self, domain: &Arc<ProtectionDomain>) -> &mut Entry {
        let known = |entry: &Entry| Arc::ptr_eq(entry.registrar.domain(), domain);
        let at = self.0.iter().position(known).unwrap_or_else(|| {
            self.0.push(Entry {
                registrar: Registrar::new(Arc::clone(domain), RemoteAccess::None),
                activity: Rc::default(),
            });
            self.0.len() - 1
        });
        &mut self.0[at]
    }

    /// The one for a device.
    pub fn of(&mut self, domain: &Arc<ProtectionDomain>) -> &mut Registrar {
        &mut self.entry(domain).registrar
    }

    /// Notes a connection on a device, whose queue pair and receives take so many bytes.
    pub fn enter(&mut self, domain: &Arc<ProtectionDomain>, bytes: u64) -> DeviceUse {
        let used = DeviceUse {
            activity: Rc::clone(&self.entry(domain).activity),
            bytes,
        };
        used.change(1, bytes as i64);
        used
    }

    /// Whether no connection of this shard goes over RDMA, or ever did.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets devices that are gone, and that no connection uses any more.
    pub fn prune(&mut self) {
        self.0.retain(|entry| {
            !entry.registrar.domain().is_retired() || Rc::strong_count(&entry.activity) > 1
        });
    }

    /// What was done on each device.
    pub fn stats(&self) -> Vec<DeviceStats> {
        let stats = |entry: &Entry| DeviceStats {
            device: entry.registrar.domain().device_name().to_owned(),
            counts: entry.activity.counts.get(),
            registrations: entry.registrar.registrations() as u64,
            queue_pairs: entry.activity.queue_pairs.get(),
            queue_pair_bytes: entry.activity.queue_pair_bytes.get(),
        };
        self.0.iter().map(stats).collect()
    }
}
