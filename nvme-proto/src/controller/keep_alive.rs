//! The keep alive timer. Traffic of any kind keeps a controller alive (TBKAS): admin commands restart the
//! timer as they arrive; I/O queues, which run elsewhere, only leave a flag that is asked for when
//! the timer would expire. A controller thus lives at most twice its time-out after the last I/O.

use super::ControllerKind;
use crate::wire::feature::KAS_UNIT_MS;

/// KAS in Identify Controller: the granularity of the timer is one second.
pub(super) const KAS: u16 = 10;

/// How long a discovery controller without a keep alive time-out lives without a command. Linux and SPDK
/// give it two minutes.
const DISCOVERY_IDLE_MS: u64 = 120_000;

/// Whether a controller is still alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAliveState {
    /// There is no timer.
    Off,
    /// Alive; ask again at this time.
    Alive {
        /// When the timer expires unless there is traffic.
        deadline_ms: u64,
    },
    /// The host was silent for too long: end the controller and all its queues.
    Expired,
}

#[derive(Debug)]
pub(super) struct KeepAlive {
    kind: ControllerKind,
    timeout_ms: u32,
    last_traffic_ms: u64,
    /// From Connect to a shutdown, and again if the host enables the controller after that.
    running: bool,
}

impl KeepAlive {
    pub fn new(kind: ControllerKind, timeout_ms: u32, now_ms: u64) -> Self {
        let mut timer = Self {
            kind,
            timeout_ms: 0,
            last_traffic_ms: now_ms,
            running: true,
        };
        timer.set_timeout(timeout_ms);
        timer
    }

    /// The time-out that is in force, in milliseconds; 0 for none.
    pub fn timeout_ms(&self) -> u32 {
        self.timeout_ms
    }

    /// Sets the time-out, rounded up to the granularity.
    pub fn set_timeout(&mut self, timeout_ms: u32) {
        let granule = u32::from(KAS) * KAS_UNIT_MS;
        self.timeout_ms = timeout_ms
            .checked_next_multiple_of(granule)
            .unwrap_or(u32::MAX / granule * granule);
    }

    pub fn traffic(&mut self, now_ms: u64) {
        self.last_traffic_ms = self.last_traffic_ms.max(now_ms);
    }

    pub fn start(&mut self) {
        self.running = true;
    }

    pub fn stop(&mut self) {
        self.running = false;
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        let interval = match (self.timeout_ms, self.kind) {
            (0, ControllerKind::Io) => return None,
            (0, ControllerKind::Discovery) => DISCOVERY_IDLE_MS,
            (timeout, _) => timeout.into(),
        };
        self.running
            .then(|| self.last_traffic_ms.saturating_add(interval))
    }

    pub fn check(&mut self, now_ms: u64, io_traffic: bool) -> KeepAliveState {
        if io_traffic {
            self.traffic(now_ms);
        }
        match self.deadline_ms() {
            None => KeepAliveState::Off,
            Some(deadline_ms) if now_ms >= deadline_ms => KeepAliveState::Expired,
            Some(deadline_ms) => KeepAliveState::Alive { deadline_ms },
        }
    }
}
