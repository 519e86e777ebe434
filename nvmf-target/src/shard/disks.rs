//! What each connection may have on a disk.
//!
//! A disk serves what it has in an order of its own, so a command of a connection with little to do waits there behind all that a deep queue
//! has handed over. Hence the bound: as long as a *modest* connection uses a disk, none has more than [`Disk::limit`] commands there; its others
//! wait here. A connection is modest as long as it has fewer commands than that, those that wait included. Where all are deep, or one is alone,
//! nothing is bounded.
//!
//! The limit is found by Little's law: commands that take `latency` when `in_flight` are on the disk together, and `base` when there is next to none, would take
//! [`STRETCH`] times `base` with `in_flight * STRETCH * base / latency` of them. So a disk that serves one command after another gets few, and one that
//! serves many at once, whose latency does not grow with them, as many as it takes. One command at a time is measured for that.
//!
//! Invariant: a connection of which commands wait has some on that disk, whose end lets the next one go.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nvme_proto::queue::SlotId;

/// How much longer than on an idle disk a command may take beside a deep queue. Hosts shall see less than 4 times, in the 99th percentile.
const STRETCH: u64 = 3;

/// The least that the limit can be, whatever was measured: a cache between disk and file can make a disk look idle that is not.
const MIN_LIMIT: u32 = 8;

/// The limit as long as nothing was measured.
const FIRST_LIMIT: u32 = 32;

/// The most: no queue is deeper.
const MAX_LIMIT: u32 = 1 << 16;

/// A measured command found the disk next to idle when no more than so many others were there.
const IDLE: u32 = 2;

/// One measurement moves an estimate by a part of this.
const SMOOTHING: i64 = 8;

/// A connection is remembered for one to two of these after its last command.
const WINDOW: Duration = Duration::from_millis(5);

/// A disk that has been used by this shard, by its device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskId(u32);

/// All disks of a shard. One that was used keeps its place: there are as many as the system has.
#[derive(Debug, Default)]
pub(super) struct Disks(Vec<(u64, Disk)>);

impl Disks {
    /// The disk with this device number.
    pub(super) fn find(&mut self, device: u64) -> DiskId {
        let known = self.0.iter().position(|(other, _)| *other == device);
        let at = known.unwrap_or_else(|| {
            self.0.push((device, Disk::default()));
            self.0.len() - 1
        });
        DiskId(at as u32)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: DiskId) -> &mut Disk {
        &mut self.0[id.0 as usize].1
    }

    /// Commands that wait.
    pub(super) fn waiting(&self) -> usize {
        let lanes = self.0.iter().flat_map(|(_, disk)| &disk.lanes);
        lanes.map(|lane| lane.waiting.len()).sum()
    }

    /// Forgets the commands of a connection that wait.
    pub(super) fn discard(&mut self, connection: u16) {
        for (_, disk) in &mut self.0 {
            if let Some(lane) = disk.lanes.get_mut(usize::from(connection)) {
                lane.waiting.clear();
            }
        }
    }
}

/// One connection on one disk.
#[derive(Debug, Default)]
struct Lane {
    /// Commands that the disk has.
    in_flight: u32,
    /// Commands that wait, in order.
    waiting: VecDeque<SlotId>,
    /// The most commands at once, in this window and the one before.
    peak: u32,
    peak_before: u32,
    /// Counted as modest.
    is_modest: bool,
}

impl Lane {
    fn commands(&self) -> u32 {
        self.in_flight + self.waiting.len() as u32
    }
}

/// The command that is measured.
#[derive(Debug)]
struct Probe {
    connection: u16,
    slot: SlotId,
    began: Instant,
    in_flight: u32,
    /// [`Disk::started`] when it began.
    started: u64,
}

/// A disk, with what the connections of one shard have on it.
#[derive(Debug)]
pub(super) struct Disk {
    /// By the index of the connection.
    lanes: Vec<Lane>,
    /// Connections that count as modest.
    modest: u32,
    window_ends: Option<Instant>,
    in_flight: u32,
    /// Commands that were ever started.
    started: u64,
    probe: Option<Probe>,
    /// What a command takes when there is next to none beside it; 0 when that is not known.
    base_ns: u64,
    limit: u32,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            lanes: Vec::new(),
            modest: 0,
            window_ends: None,
            in_flight: 0,
            started: 0,
            probe: None,
            base_ns: 0,
            limit: FIRST_LIMIT,
        }
    }
}

impl Disk {
    /// A command is ready for the disk: whether it may start. If not it waits, and comes back from [`Disk::next`]. `now` is the time of the turn, `clock` the time.
    #[inline]
    pub(super) fn start(
        &mut self,
        connection: u16,
        slot: SlotId,
        now: Instant,
        clock: impl FnOnce() -> Instant,
    ) -> bool {
        let at = usize::from(connection);
        if at >= self.lanes.len() {
            self.lanes.resize_with(at + 1, Lane::default);
        }
        self.roll(now);
        let starts = self.may_start(at);
        let lane = &mut self.lanes[at];
        if starts {
            lane.in_flight += 1;
            if self.probe.is_none() {
                self.probe = Some(Probe {
                    connection,
                    slot,
                    began: clock(),
                    in_flight: self.in_flight,
                    started: self.started,
                });
            }
            self.in_flight += 1;
            self.started += 1;
        } else {
            lane.waiting.push_back(slot);
        }
        if lane.commands() > lane.peak {
            lane.peak = lane.commands();
            let is_modest = lane.peak.max(lane.peak_before) < self.limit;
            self.modest += u32::from(is_modest);
            self.modest -= u32::from(lane.is_modest);
            lane.is_modest = is_modest;
        }
        starts
    }

    /// A command has left the disk.
    #[inline]
    pub(super) fn ended(&mut self, connection: u16, slot: SlotId, clock: impl FnOnce() -> Instant) {
        if let Some(probe) = &self.probe
            && (probe.connection, probe.slot) == (connection, slot)
        {
            self.measured(clock());
        }
        self.in_flight -= 1;
        self.lanes[usize::from(connection)].in_flight -= 1;
    }

    /// What a command takes says nothing about the disk.
    #[cold]
    pub(super) fn do_not_measure(&mut self, connection: u16, slot: SlotId) {
        self.probe
            .take_if(|probe| (probe.connection, probe.slot) == (connection, slot));
    }

    /// A command of the connection that waited and may start now.
    #[inline]
    pub(super) fn next(&mut self, connection: u16) -> Option<SlotId> {
        let at = usize::from(connection);
        if self.lanes[at].waiting.is_empty() || !self.may_start(at) {
            return None;
        }
        self.lanes[at].waiting.pop_front()
    }

    /// A command that waits is wanted no more.
    pub(super) fn forget(&mut self, connection: u16, slot: SlotId) {
        if let Some(lane) = self.lanes.get_mut(usize::from(connection)) {
            lane.waiting.retain(|other| *other != slot);
        }
    }

    fn may_start(&self, at: usize) -> bool {
        let lane = &self.lanes[at];
        lane.in_flight < self.limit || self.modest == u32::from(lane.is_modest)
    }

    fn measured(&mut self, now: Instant) {
        let Some(probe) = self.probe.take() else {
            return;
        };
        let latency_ns = (now.saturating_duration_since(probe.began).as_nanos() as u64).max(1);
        let others = self.started - probe.started - 1 + u64::from(probe.in_flight);
        if others <= u64::from(IDLE) {
            self.base_ns = match self.base_ns {
                0 => latency_ns,
                base_ns => towards(base_ns, latency_ns),
            };
        }
        if self.base_ns > 0 {
            // What completes together was there together: the first of a burst found nobody.
            let together = u64::from(probe.in_flight.max(self.in_flight - 1) + 1);
            let limit = together * STRETCH * self.base_ns / latency_ns;
            let limit = limit.clamp(MIN_LIMIT.into(), MAX_LIMIT.into());
            self.limit = towards(self.limit.into(), limit) as u32;
        }
    }

    /// Ends a window whose time is over: who was there in it?
    #[inline]
    fn roll(&mut self, now: Instant) {
        if self.window_ends.is_none_or(|ends| ends <= now) {
            self.end_window(now);
        }
    }

    #[cold]
    fn end_window(&mut self, now: Instant) {
        let is_old = self.window_ends.is_none_or(|ends| ends + WINDOW <= now);
        self.window_ends = Some(now + WINDOW);
        self.modest = 0;
        for lane in &mut self.lanes {
            lane.peak_before = if is_old { 0 } else { lane.peak };
            lane.peak = lane.commands();
            let most = lane.peak.max(lane.peak_before);
            lane.is_modest = (1..self.limit).contains(&most);
            self.modest += u32::from(lane.is_modest);
        }
    }
}

/// An estimate after one more measurement. Rounds away from where it is, so that it gets there.
fn towards(estimate: u64, measured: u64) -> u64 {
    let difference = measured as i64 - estimate as i64;
    let step = difference / SMOOTHING;
    let step = if step == 0 { difference.signum() } else { step };
    estimate.saturating_add_signed(step)
}

#[cfg(test)]
mod tests;
