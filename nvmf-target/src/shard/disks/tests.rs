//! Disks in virtual time: a queue of events, connections that keep so many commands going, and disks of two kinds.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use proptest::prelude::*;

use super::*;

/// How a disk serves.
#[derive(Clone, Copy)]
enum Kind {
    /// One command after another.
    Serial { latency_us: u64, each_us: u64 },
    /// All at once.
    Parallel { latency_us: u64 },
}

/// A shard with one disk, and hosts that send a command for each that ends.
struct World {
    disk: Disk,
    kind: Kind,
    epoch: Instant,
    now_us: u64,
    /// When a serial disk has done all that it has.
    busy_until_us: u64,
    /// What the disk has: when it is done, of whom, since when the host waits for it.
    served: BinaryHeap<Reverse<(u64, u16, u16, u64)>>,
    /// Since when a host waits for a command that is not on the disk yet.
    asked_us: Vec<Vec<u64>>,
    /// What hosts waited for their commands, by connection.
    latencies_us: Vec<Vec<u64>>,
    most_in_flight: Vec<u32>,
}

impl World {
    fn new(kind: Kind, connections: usize) -> Self {
        Self {
            disk: Disk::default(),
            kind,
            epoch: Instant::now(),
            now_us: 0,
            busy_until_us: 0,
            served: BinaryHeap::new(),
            asked_us: vec![vec![0; 1 << 10]; connections],
            latencies_us: vec![Vec::new(); connections],
            most_in_flight: vec![0; connections],
        }
    }

    fn time(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now_us)
    }

    /// A host sends a command.
    fn send(&mut self, connection: u16, slot: u16) {
        self.asked_us[usize::from(connection)][usize::from(slot)] = self.now_us;
        self.start(connection, slot);
    }

    fn start(&mut self, connection: u16, slot: u16) {
        let now = self.time();
        if !self.disk.start(connection, SlotId(slot), now, || now) {
            return;
        }
        let done_us = match self.kind {
            Kind::Parallel { latency_us } => self.now_us + latency_us,
            Kind::Serial {
                latency_us,
                each_us,
            } => {
                self.busy_until_us = self.busy_until_us.max(self.now_us) + each_us;
                self.busy_until_us + latency_us - each_us
            }
        };
        let at = usize::from(connection);
        let asked_us = self.asked_us[at][usize::from(slot)];
        self.served
            .push(Reverse((done_us, connection, slot, asked_us)));
        let in_flight = self.disk.lanes[at].in_flight;
        self.most_in_flight[at] = self.most_in_flight[at].max(in_flight);
    }

    fn send_all(&mut self, connection: u16, depth: u16) {
        (0..depth).for_each(|slot| self.send(connection, slot));
    }

    /// Goes on for so long; hosts of connections that `goes_on` send a command for each that ends.
    fn run(&mut self, for_us: u64, goes_on: impl Fn(u16) -> bool) {
        let end_us = self.now_us + for_us;
        self.latencies_us.iter_mut().for_each(Vec::clear);
        self.most_in_flight.fill(0);
        while let Some(&Reverse((done_us, connection, slot, asked_us))) = self.served.peek()
            && done_us <= end_us
        {
            self.served.pop();
            self.now_us = done_us;
            self.latencies_us[usize::from(connection)].push(done_us - asked_us);
            let now = self.time();
            self.disk.ended(connection, SlotId(slot), || now);
            while let Some(SlotId(slot)) = self.disk.next(connection) {
                self.start(connection, slot);
            }
            if goes_on(connection) {
                self.send(connection, slot);
            }
        }
        self.now_us = end_us;
    }

    fn worst_us(&self, connection: usize) -> u64 {
        let latencies = &self.latencies_us[connection];
        *latencies.iter().max().expect("it had commands")
    }

    fn commands(&self, connection: usize) -> usize {
        self.latencies_us[connection].len()
    }
}

const SECOND_US: u64 = 1_000_000;

const SERIAL: Kind = Kind::Serial {
    latency_us: 60,
    each_us: 5,
};

const MODEST: u16 = 0;
const DEEP: u16 = 1;

#[test]
fn beside_a_deep_connection_a_modest_one_waits_less_than_four_times_as_long() {
    let mut world = World::new(SERIAL, 2);
    world.send(MODEST, 0);
    world.run(SECOND_US / 10, |_| true);
    let alone_us = world.worst_us(0);
    world.send_all(DEEP, 128);
    // The first of them came before anybody knew.
    world.run(SECOND_US / 10, |_| true);
    world.run(SECOND_US, |_| true);
    let beside_us = world.worst_us(0);
    assert!(beside_us < 4 * alone_us, "{beside_us} after {alone_us} µs");
    assert!(
        beside_us > 2 * alone_us,
        "{beside_us} µs: more than is needed"
    );
    // The disk has always something to do.
    let together = world.commands(0) + world.commands(1);
    assert!(together > 190_000, "{together} commands a second");
}

#[test]
fn a_disk_that_serves_all_at_once_has_them_all() {
    for latency_us in [80, 1000] {
        let mut world = World::new(Kind::Parallel { latency_us }, 2);
        world.send(MODEST, 0);
        world.run(SECOND_US / 10, |_| true);
        world.send_all(DEEP, 128);
        world.run(SECOND_US / 10, |_| true);
        world.run(SECOND_US, |_| true);
        assert_eq!(world.worst_us(1), latency_us, "none of them waits");
        assert_eq!(world.most_in_flight[1], 128);
    }
}

#[test]
fn who_is_alone_has_all_of_the_disk() {
    let mut world = World::new(SERIAL, 1);
    world.send_all(0, 128);
    for _ in 0..100 {
        world.run(SECOND_US / 100, |_| true);
        assert_eq!(world.most_in_flight[0], 128);
    }
}

#[test]
fn deep_connections_do_not_bound_each_other() {
    let mut world = World::new(SERIAL, 3);
    (0..3).for_each(|connection| world.send_all(connection, 128));
    // At first each looked modest to the next.
    world.run(SECOND_US / 10, |_| true);
    world.run(SECOND_US, |_| true);
    assert_eq!(world.most_in_flight, [128; 3]);
}

#[test]
fn the_bound_ends_some_milliseconds_after_the_last_modest_command() {
    let mut world = World::new(SERIAL, 2);
    world.send(MODEST, 0);
    world.send_all(DEEP, 128);
    world.run(SECOND_US / 10, |_| true);
    world.run(SECOND_US / 10, |_| true);
    assert!(world.most_in_flight[1] < 128);
    // One that pauses for less than a window is remembered all the time.
    for _ in 0..100 {
        world.run(4000, |connection| connection == DEEP);
        assert!(world.most_in_flight[1] < 128);
        world.send(MODEST, 0);
    }
    world.run(2 * WINDOW.as_micros() as u64 + 1000, |connection| {
        connection == DEEP
    });
    world.run(1000, |connection| connection == DEEP);
    assert_eq!(world.most_in_flight[1], 128);
    assert_eq!(world.disk.lanes[1].waiting.len(), 0);
}

#[test]
fn disks_are_told_apart_by_their_device_numbers() {
    let mut disks = Disks::default();
    let one = disks.find(7);
    let two = disks.find(8);
    assert_ne!(one, two);
    assert_eq!(disks.find(7), one);
    let now = Instant::now();
    // Modest on one disk, deep on the other.
    assert!(disks.get_mut(one).start(0, SlotId(0), now, || now));
    for slot in 0..128 {
        assert!(disks.get_mut(two).start(1, SlotId(slot), now, || now));
    }
}

#[derive(Debug, Clone)]
enum Event {
    Send(u16),
    End(prop::sample::Index),
    Abort(prop::sample::Index),
    Close(u16),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0..4u16).prop_map(Event::Send),
        4 => index().prop_map(Event::End),
        1 => index().prop_map(Event::Abort),
        1 => (0..4u16).prop_map(Event::Close),
        1 => (0..20_000u64).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever happens, no command is lost, none starts twice, and none waits for nothing.
    #[test]
    fn every_command_starts_once_or_is_forgotten(events in prop::collection::vec(event(), 0..600)) {
        let mut disks = Disks::default();
        let id = disks.find(1);
        let mut now = Instant::now();
        let (mut on_disk, mut waiting) = (Vec::new(), HashSet::new());
        let mut next_slot = 0;
        for event in events {
            match event {
                Event::Send(connection) => {
                    let slot = SlotId(next_slot);
                    next_slot += 1;
                    if disks.get_mut(id).start(connection, slot, now, || now) {
                        on_disk.push((connection, slot));
                    } else {
                        waiting.insert((connection, slot));
                    }
                }
                Event::End(which) if !on_disk.is_empty() => {
                    let (connection, slot) = on_disk.swap_remove(which.index(on_disk.len()));
                    disks.get_mut(id).ended(connection, slot, || now);
                    while let Some(slot) = disks.get_mut(id).next(connection) {
                        prop_assert!(waiting.remove(&(connection, slot)));
                        // A new window can begin here, with others in it.
                        if disks.get_mut(id).start(connection, slot, now, || now) {
                            on_disk.push((connection, slot));
                        } else {
                            waiting.insert((connection, slot));
                        }
                    }
                }
                Event::Abort(which) if !waiting.is_empty() => {
                    let mut all: Vec<_> = waiting.iter().copied().collect();
                    all.sort_by_key(|(connection, slot)| (*connection, slot.0));
                    let (connection, slot) = all[which.index(all.len())];
                    disks.get_mut(id).forget(connection, slot);
                    waiting.remove(&(connection, slot));
                }
                Event::Close(connection) => {
                    disks.discard(connection);
                    waiting.retain(|(other, _)| *other != connection);
                }
                Event::Wait(us) => now += Duration::from_micros(us),
                Event::End(_) | Event::Abort(_) => {}
            }
            let disk = disks.get_mut(id);
            prop_assert_eq!(disk.in_flight as usize, on_disk.len());
            prop_assert!((MIN_LIMIT..=MAX_LIMIT).contains(&disk.limit));
            let modest = disk.lanes.iter().filter(|lane| lane.is_modest).count();
            prop_assert_eq!(disk.modest as usize, modest);
            for (connection, lane) in disk.lanes.iter().enumerate() {
                let mine = |all: &(u16, SlotId)| usize::from(all.0) == connection;
                prop_assert_eq!(lane.in_flight as usize, on_disk.iter().filter(|one| mine(one)).count());
                prop_assert_eq!(lane.waiting.len(), waiting.iter().filter(|one| mine(one)).count());
                prop_assert!(lane.waiting.is_empty() || lane.in_flight > 0);
            }
        }
    }
}
