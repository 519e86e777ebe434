//! What the control thread and the shards both know about a controller.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nvme_proto::wire::Cntlid;

use super::counters::IoCounters;
use super::subsystem::SubsystemId;
use nvme_proto::wire::Nqn;

/// Names a controller in the whole process: controller identifiers are unique only within a subsystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControllerKey {
    /// The subsystem.
    pub subsystem: SubsystemId,
    /// The controller's identifier in it.
    pub cntlid: Cntlid,
}

/// A controller (one association with one host), as shared by the control thread, which runs its admin queue, and the shards, which run
/// its I/O queues. Immutable but for counters.
#[derive(Debug)]
pub struct ControllerShared {
    /// Its name.
    pub key: ControllerKey,
    /// The host's NQN from Connect.
    pub host_nqn: Nqn,
    /// The host's identifier from Connect.
    pub host_id: [u8; 16],
    /// Its I/O, for metrics.
    pub counters: Arc<IoCounters>,
    /// The last coarse tick in which one of its I/O queues received a command, see [`ControllerShared::touch`].
    last_traffic: AtomicU32,
}

impl ControllerShared {
    /// A controller without traffic yet. `shards` is the number of shards of the process.
    pub fn new(key: ControllerKey, host_nqn: Nqn, host_id: [u8; 16], shards: usize) -> Arc<Self> {
        Arc::new(Self {
            key,
            host_nqn,
            host_id,
            counters: IoCounters::new(shards),
            last_traffic: AtomicU32::new(0),
        })
    }

    /// Notes that a command arrived during `tick` (any non-zero value that changes over time). Writes the shared line only when
    /// the tick is a new one, so that shards do not fight over it.
    #[inline]
    pub fn touch(&self, tick: u32) {
        if self.last_traffic.load(Relaxed) != tick {
            self.last_traffic.store(tick, Relaxed);
        }
    }

    /// Whether a command arrived on an I/O queue since the last call: what a traffic based keep-alive timer (TBKAS) asks when it expires.
    pub fn take_traffic(&self) -> bool {
        self.last_traffic.swap(0, Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_seen_once() {
        let key = ControllerKey {
            subsystem: SubsystemId(1),
            cntlid: Cntlid(3),
        };
        let controller = ControllerShared::new(
            key,
            "nqn.2024-01.org.example:h".parse().unwrap(),
            [1; 16],
            1,
        );
        assert!(!controller.take_traffic());
        controller.touch(7);
        controller.touch(7);
        assert!(controller.take_traffic());
        assert!(!controller.take_traffic());
        controller.touch(7);
        assert!(
            controller.take_traffic(),
            "traffic in the same tick, but after the flag was taken, counts"
        );
    }
}
