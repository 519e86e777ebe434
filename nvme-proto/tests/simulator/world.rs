//! Host, target and the connections between them, moved one random step at a time.

use crate::app::App;
use crate::host::{Alive, Host};
use crate::rng::Rng;
use crate::target::Target;
use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::{ControllerOffer, HostRequest, Pda};

/// What happened, summed over episodes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub steps: u64,
    pub commands: u64,
    pub reads_checked: u64,
    pub cuts: u64,
    pub reissued_writes: u64,
    pub damaged: u64,
    pub aborted: u64,
    pub pool_dry: u64,
    pub stale_commands: u64,
    pub terminated: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.commands += other.commands;
        self.reads_checked += other.reads_checked;
        self.cuts += other.cuts;
        self.reissued_writes += other.reissued_writes;
        self.damaged += other.damaged;
        self.aborted += other.aborted;
        self.pool_dry += other.pool_dry;
        self.stale_commands += other.stale_commands;
        self.terminated += other.terminated;
    }
}

pub struct World {
    rng: Rng,
    app: App,
    host: Host,
    target: Target,
    request: HostRequest,
    limits: QueueLimits,
    /// The host is connected to the newest association.
    connected: bool,
    /// Damage was done to the connection, so the next violation is not held against anybody.
    damaged: bool,
    /// Percentage of disturbing steps that are carried out.
    weather: usize,
    stats: Stats,
}

impl World {
    pub fn new(seed: u64, fencing: bool) -> Self {
        let mut rng = Rng::new(seed);
        let buffers = rng.pick(&[2, 3, 8, 64]);
        let weather = rng.pick(&[0, 10, 50, 100]);
        let (request, limits) = parameters(&mut rng);
        Self {
            app: App::new(),
            host: Host::new(),
            target: Target::new(buffers, fencing),
            request,
            limits,
            connected: false,
            damaged: false,
            weather,
            stats: Stats::default(),
            rng,
        }
    }

    pub fn run(&mut self, steps: u64) -> Result<Stats, String> {
        for _ in 0..steps {
            self.step()?;
            self.stats.steps += 1;
        }
        self.come_to_rest()?;
        self.stats.commands = self.app.completed;
        self.stats.reads_checked = self.app.reads_checked;
        self.stats.reissued_writes = self.app.reissued_writes;
        self.stats.damaged = self.target.damaged;
        self.stats.aborted = self.target.aborted;
        self.stats.pool_dry = self.target.pool_dry;
        self.stats.stale_commands = self.target.stale_commands;
        Ok(self.stats)
    }

    fn step(&mut self) -> Result<(), String> {
        match self.rng.below(100) {
            0..20 => {
                for _ in 0..1 + self.rng.below(4) {
                    self.host.submit(&mut self.app, &mut self.rng, true);
                }
            }
            20..35 => {
                let pdus = 1 + self.rng.below(4);
                self.host_transmits(pdus);
            }
            35..55 => {
                let bytes = self.rng.length();
                self.target_receives(bytes)?;
            }
            55..70 => {
                self.target.advance();
                for _ in 0..1 + self.rng.below(4) {
                    self.target.backend_step(&mut self.rng);
                }
            }
            70..80 => {
                let pdus = 1 + self.rng.below(4);
                self.target_transmits(pdus);
            }
            80..96 => {
                let bytes = self.rng.length();
                self.host_receives(bytes)?;
            }
            96 => {
                if self.rng.chance(self.weather)
                    && let Some(cid) = self.host.random_cid(&mut self.rng)
                {
                    self.target.abort(cid);
                }
            }
            97 => self.damage(),
            98 => {
                if self.connected && self.rng.chance(self.weather) && self.rng.chance(30) {
                    self.cut()?;
                }
            }
            _ => self.reconnect(),
        }
        Ok(())
    }

    fn reconnect(&mut self) {
        if self.connected || !self.host.is_down() {
            return;
        }
        if self.rng.chance(30) {
            (self.request, self.limits) = parameters(&mut self.rng);
        }
        let offer = ControllerOffer {
            header_digest: true,
            data_digest: true,
            cpda: self.rng.pick(&[Pda::DWORD, Pda::DWORD, Pda::MAX]),
            max_h2c_data_bytes: self.rng.pick(&[4096, 4100, 131_072]),
        };
        self.target.open(offer, self.limits);
        let first = self.host.open(self.request, self.limits);
        self.newest().inbound.extend(first);
        self.connected = true;
        self.damaged = false;
    }

    fn newest(&mut self) -> &mut crate::target::Association {
        self.target
            .associations
            .last_mut()
            .expect("a connected host has an association")
    }

    /// The connection is gone for the host. What is in the target's socket buffer stays there, whole or in part.
    fn cut(&mut self) -> Result<(), String> {
        self.stats.cuts += 1;
        self.connected = false;
        let keep = self.rng.chance(70);
        let cut_at = self.rng.length();
        let newest = self.newest();
        if !keep {
            newest.inbound.truncate(cut_at);
        }
        newest.inbound_ended = true;
        newest.outbound.clear();
        self.host.down(&mut self.app)
    }

    /// A byte is damaged on the wire, where digests protect all of it.
    fn damage(&mut self) {
        if !self.connected
            || !self.rng.chance(self.weather)
            || !self.host.is_protected(&self.request)
        {
            return;
        }
        let (to_host, at, xor) = (
            self.rng.chance(50),
            self.rng.next() as usize,
            1 + self.rng.below(255) as u8,
        );
        let newest = self.newest();
        let wire = if to_host {
            &mut newest.outbound
        } else {
            &mut newest.inbound
        };
        if !wire.is_empty() {
            let at = at % wire.len();
            wire[at] ^= xor;
            self.damaged = true;
        }
    }

    fn host_transmits(&mut self, pdus: usize) -> bool {
        if !self.connected {
            return false;
        }
        let mut wire = Vec::new();
        let sent = self.host.transmit(pdus, &mut wire);
        self.newest().inbound.extend(wire);
        sent
    }

    fn host_receives(&mut self, bytes: usize) -> Result<bool, String> {
        if !self.connected {
            return Ok(false);
        }
        let newest = self.newest();
        let bytes = bytes.min(newest.outbound.len());
        if bytes == 0 {
            return Ok(false);
        }
        let input: Vec<u8> = newest.outbound.drain(..bytes).collect();
        match self.host.receive(&input, &mut self.app, &mut self.rng)? {
            Alive::Yes => {}
            Alive::No { violation } => {
                if let Some(violation) = violation
                    && !self.damaged
                {
                    return Err(format!("the host found fault with the target: {violation}"));
                }
                // Its termination request goes out, then the connection ends.
                self.host_transmits(2);
                self.stats.terminated += 1;
                self.cut()?;
            }
        }
        Ok(true)
    }

    fn target_receives(&mut self, bytes: usize) -> Result<bool, String> {
        if self.target.associations.is_empty() {
            return Ok(false);
        }
        let index = self.some_association();
        let moved = self.target_receives_at(index, bytes)?;
        self.target.sweep();
        Ok(moved)
    }

    fn target_receives_at(&mut self, index: usize, bytes: usize) -> Result<bool, String> {
        let before = self.target.associations[index].inbound.len();
        if let Err(violation) = self.target.receive(index, bytes, &mut self.rng) {
            // Of the associations only the newest is damaged on purpose, but one that was damaged may have been cut since.
            if !self.damaged && !self.target.associations[index].inbound_ended {
                return Err(format!("the target found fault with the host: {violation}"));
            }
            self.target.terminate(index);
        }
        Ok(before > 0)
    }

    fn target_transmits(&mut self, pdus: usize) -> bool {
        if self.target.associations.is_empty() {
            return false;
        }
        let index = self.some_association();
        self.target_transmits_at(index, pdus)
    }

    /// Mostly the newest: those that lost their host linger, as sockets do that nobody looks at.
    fn some_association(&mut self) -> usize {
        let associations = self.target.associations.len();
        if self.rng.chance(90) {
            associations - 1
        } else {
            self.rng.below(associations)
        }
    }

    fn target_transmits_at(&mut self, index: usize, pdus: usize) -> bool {
        let sent = self.target.transmit(index, pdus);
        let association = &mut self.target.associations[index];
        if association.inbound_ended {
            association.outbound.clear();
        }
        sent
    }

    /// No more disturbances and nothing new: everything must come to an end.
    fn come_to_rest(&mut self) -> Result<(), String> {
        // Enough for everything that can be open to be sent in small pieces; a deadlock moves nothing at all.
        for _ in 0..100_000 {
            let mut moved = false;
            if !self.connected {
                self.reconnect();
                moved = true;
            }
            while self.host.submit(&mut self.app, &mut self.rng, false) {
                moved = true;
            }
            moved |= self.host_transmits(usize::MAX);
            for index in 0..self.target.associations.len() {
                moved |= self.target_receives_at(index, usize::MAX)?;
            }
            self.target.sweep();
            moved |= self.target.advance();
            while self.target.backend_step(&mut self.rng) {
                moved = true;
            }
            for index in 0..self.target.associations.len() {
                moved |= self.target_transmits_at(index, usize::MAX);
            }
            moved |= self.host_receives(usize::MAX)?;
            self.target.sweep();
            if !moved {
                if !self.app.is_at_rest() {
                    return Err(format!(
                        "deadlock, or a command was lost: {} are open",
                        self.app.open()
                    ));
                }
                return self.target.check_at_rest(&self.app);
            }
        }
        Err("it never comes to rest".into())
    }

    pub fn describe(&self) -> String {
        format!(
            "{:?}\n{:?}\nconnected {} damaged {}\n{}",
            self.request,
            self.limits,
            self.connected,
            self.damaged,
            self.target.describe()
        )
    }
}

fn parameters(rng: &mut Rng) -> (HostRequest, QueueLimits) {
    let digests = rng.pick(&[
        (false, false),
        (true, true),
        (true, true),
        (true, false),
        (false, true),
    ]);
    let request = HostRequest {
        header_digest: digests.0,
        data_digest: digests.1,
        hpda: rng.pick(&[Pda::DWORD, Pda::MAX, Pda::from_wire(4).expect("below 32")]),
        max_r2t: rng.pick(&[1, 2, 16]),
    };
    let limits = QueueLimits {
        depth: rng.pick(&[2, 3, 8, 64]),
        in_capsule_bytes: rng.pick(&[0, 4096, 20_480]),
        max_transfer_bytes: 65_536,
        r2t_window_bytes: rng.pick(&[4096, 8192, 65_536]),
        flow_control: rng.chance(50),
        success_flag: rng.chance(70),
        admin: false,
    };
    (request, limits)
}
