//! The loop of a shard.
//!
//! A turn: reap all completions and apply each → read the mailbox → send the answers of connections that had little to say → look at input that waits → give buffers to who waits → time limits → send for every
//! queue that has something to say, once → count what completed → go to the kernel, which submits everything and, unless there is more
//! to do, waits.

use std::io;
use std::time::{Duration, Instant};

use nvmf_io::mailbox::Receiver;
use nvmf_io::{Completion, Wait};

use super::context::Context;
use super::message::{Reply, Scope, ShardMessage};
use super::queue::{Queue, STALL_CHECKS};
use super::token::{Purpose, QueueKey};
use crate::model::ControllerKey;

/// A tick of the traffic flag is 2^27 ns, about an eighth of a second: keep-alive timers count seconds.
const TICK_SHIFT: u32 = 27;

/// Times that a turn goes to the kernel for commands of connections that receive step by step.
const STEPS_PER_TURN: u32 = 32;

/// An entry of the table of queues.
#[derive(Default)]
struct Entry {
    generation: u16,
    queue: Option<Box<Queue>>,
}

/// A shard: everything of one thread.
pub(super) struct Shard {
    pub(super) cx: Context,
    queues: Vec<Entry>,
    mailbox: Receiver<ShardMessage>,
    /// Pauses in force, each as often as it was asked for.
    pub(super) pauses: Vec<Scope>,
    pub(super) drains: Vec<(Scope, Reply<()>)>,
    pub(super) drops: Vec<(ControllerKey, Reply<()>)>,
    pub(super) stopping: Option<Reply<()>>,
    busy_poll: Duration,
    start: Instant,
    last_active: Instant,
    pub(super) busy_turns: u64,
}

impl Shard {
    pub(super) fn new(cx: Context, mailbox: Receiver<ShardMessage>, busy_poll: Duration) -> Self {
        let now = Instant::now();
        Self {
            cx,
            queues: Vec::new(),
            mailbox,
            pauses: Vec::new(),
            drains: Vec::new(),
            drops: Vec::new(),
            stopping: None,
            busy_poll,
            start: now,
            last_active: now,
            busy_turns: 0,
        }
    }

    /// Runs until it is told to stop, or its ring fails.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let wake = Purpose::Wake.token();
        self.cx
            .ring
            .poll_multishot(self.mailbox.fd(), nvmf_io::ring::Interest::Readable, wake);
        loop {
            let active = self.turn();
            if active {
                self.busy_turns += 1;
                self.last_active = self.cx.now;
            }
            if self.stopping.is_some() && self.queues().next().is_none() {
                if let Some(ack) = self.stopping.take() {
                    let _ = ack.send(());
                }
                return Ok(());
            }
            self.wait(active)?;
        }
    }

    /// Everything there is to do now. Returns whether there was anything.
    fn turn(&mut self) -> bool {
        let now = Instant::now();
        self.cx.now = now;
        self.cx.turn += 1;
        self.cx.lent.forget();
        self.cx.pace.begin_turn();
        let ticks = now.duration_since(self.start).as_nanos() >> TICK_SHIFT;
        self.cx.tick = (ticks as u32) | 1 << 31;
        let mut active = false;
        while let Some(completion) = self.cx.ring.next() {
            active = true;
            self.completed(completion);
        }
        while let Ok(message) = self.mailbox.try_recv() {
            active = true;
            self.handle(message);
        }
        if !self.busy_poll.is_zero() && !self.cx.registrars.is_empty() {
            active |= self.poll_links();
        }
        self.let_light_ones_go();
        for _ in 0..self.cx.ready.len() {
            active = true;
            let Some(key) = self.cx.ready.pop_front() else {
                break;
            };
            self.with(key, |queue, cx| {
                queue.is_ready = false;
                queue.look(cx);
            });
        }
        self.go_on_stepping();
        if self.cx.buffers_freed && !self.cx.starving.is_empty() {
            self.serve_starving();
        }
        while self.cx.lent.compare_is_free()
            && let Some((key, slot)) = self.cx.comparing.pop_front()
        {
            self.with(key, |queue, cx| queue.compare_again(cx, slot));
        }
        self.reap_devices();
        self.check_time();
        // Sending can make a queue dirty again only by closing it, so this ends.
        while let Some(key) = self.cx.dirty.pop() {
            self.with(key, |queue, cx| {
                queue.is_dirty = false;
                queue.transmit(cx);
            });
        }
        self.count_finished();
        if !self.cx.closing.is_empty() {
            self.remove_gone();
        }
        if !self.drains.is_empty() {
            self.answer_drains();
        }
        active
    }

    fn wait(&mut self, active: bool) -> io::Result<()> {
        self.cx.enters += 1;
        let spins = !self.busy_poll.is_zero()
            && (active || self.cx.now.duration_since(self.last_active) < self.busy_poll);
        if spins || !self.cx.ready.is_empty() {
            return self.cx.ring.wait(Wait::Poll);
        }
        let deadline = match (self.cx.timers.next_deadline(), self.cx.stall_check) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let ring = &mut self.cx.ring;
        self.mailbox.park(|may_block| {
            ring.wait(match deadline {
                _ if !may_block => Wait::Poll,
                Some(deadline) => Wait::Until(deadline),
                None => Wait::Block,
            })
        })
    }

    fn completed(&mut self, mut completion: Completion) {
        let cx = &mut self.cx;
        let purpose = Purpose::of(completion.token);
        if let Purpose::Device(space) = purpose {
            cx.spaces.device_woken(space, &mut cx.ring, completion.more);
            return;
        }
        let (Purpose::Receive(key)
        | Purpose::Step(key)
        | Purpose::Send(key)
        | Purpose::Completions(key)
        | Purpose::Storage(key, _)) = purpose
        else {
            return;
        };
        let Some(queue) = find(&mut self.queues, key) else {
            return;
        };
        match purpose {
            Purpose::Receive(_) => queue.received(cx, completion),
            Purpose::Step(_) => queue.stepped(cx, completion),
            Purpose::Send(_) => {
                if let Some(batch) = completion.batch.take() {
                    queue.sent(cx, batch, completion.result);
                }
            }
            Purpose::Completions(_) => queue.woken(cx, completion.more),
            Purpose::Storage(_, slot) => {
                queue.storage_done(cx, slot, completion.result);
                if cx.pace.completed() {
                    self.let_go(|_| true);
                }
            }
            Purpose::Wake | Purpose::Device(_) => {}
        }
    }

    /// Goes on with connections that receive step by step and are at commands, so that these share a turn, and its sends, as the commands of
    /// other connections do.
    fn go_on_stepping(&mut self) {
        for _ in 0..STEPS_PER_TURN {
            if !std::mem::take(&mut self.cx.stepping) {
                return;
            }
            self.cx.enter();
            while let Some(completion) = self.cx.ring.next() {
                self.completed(completion);
            }
        }
    }

    /// Hands the answers of connections without more input to the kernel before the turn takes up those with more, which may take a
    /// hundred times as long.
    fn let_light_ones_go(&mut self) {
        if self.cx.ready.is_empty() || self.cx.dirty.is_empty() {
            return;
        }
        self.let_go(|queue| !queue.is_ready);
    }

    /// Hands the answers of these connections to the kernel now, in the middle of a turn.
    fn let_go(&mut self, which: impl Fn(&Queue) -> bool) {
        let mut dirty = std::mem::take(&mut self.cx.dirty);
        let before = dirty.len();
        dirty.retain(|key| {
            let Some(queue) = find(&mut self.queues, *key) else {
                return false;
            };
            if !which(queue) {
                return true;
            }
            queue.is_dirty = false;
            queue.transmit(&mut self.cx);
            false
        });
        let gone = before - dirty.len();
        // Sending can make a queue dirty again.
        dirty.append(&mut self.cx.dirty);
        self.cx.dirty = dirty;
        if gone > 0 {
            self.count_finished();
            self.cx.enter();
        }
    }

    /// Looks at the completion queues of RDMA connections. Returns whether there was anything.
    fn poll_links(&mut self) -> bool {
        let mut any = false;
        for entry in &mut self.queues {
            if let Some(queue) = &mut entry.queue {
                any |= queue.is_rdma() && queue.complete(&mut self.cx);
            }
        }
        any
    }

    /// Submits commands to devices with rings of their own and applies what completes, until nothing does at once.
    fn reap_devices(&mut self) {
        loop {
            let mut done = std::mem::take(&mut self.cx.device_done);
            self.cx.spaces.reap_devices(&mut done);
            let any = !done.is_empty();
            for (token, result) in done.drain(..) {
                if let Purpose::Storage(key, slot) = Purpose::of(token) {
                    self.with(key, |queue, cx| queue.storage_done(cx, slot, result));
                }
            }
            self.cx.device_done = done;
            if !any {
                return;
            }
        }
    }

    /// Gives buffers to queues that wait for them, in turn, until none gets on.
    fn serve_starving(&mut self) {
        self.cx.buffers_freed = false;
        let mut without_luck = 0;
        while without_luck < self.cx.starving.len() {
            let Some(key) = self.cx.starving.pop_front() else {
                break;
            };
            let Some(queue) = find(&mut self.queues, key) else {
                continue;
            };
            if queue.serve_starving(&mut self.cx) {
                without_luck = 0;
            } else {
                without_luck += 1;
            }
            if queue.starves() {
                self.cx.starving.push_back(key);
            } else {
                queue.is_starving = false;
            }
        }
    }

    fn check_time(&mut self) {
        let now = self.cx.now;
        while let Some(key) = self.cx.timers.expired(now) {
            self.with(key, |queue, cx| queue.timed_out(cx));
        }
        if self.cx.stall_check.is_some_and(|at| at <= now) {
            self.cx.stall_check = (!self.cx.starving.is_empty())
                .then_some(now + self.cx.patience.stall / STALL_CHECKS);
            for key in self.keys() {
                self.with(key, |queue, cx| queue.check_stall(cx));
            }
        }
    }

    /// Counts the commands whose responses go to the kernel now: those of queues with nothing left to send.
    fn count_finished(&mut self) {
        if self.cx.finished.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut finished = std::mem::take(&mut self.cx.finished);
        let mut later = 0;
        for at in 0..finished.len() {
            let done = finished[at];
            if find(&mut self.queues, done.queue).is_some_and(|queue| queue.is_dirty) {
                finished[later] = done;
                later += 1;
                continue;
            }
            let nanos = now.saturating_duration_since(done.received).as_nanos() as u64;
            let space = self.cx.spaces.get_mut(done.space);
            let counters = space.namespace.counters.shard(self.cx.shard);
            counters.succeeded(done.class, done.bytes, nanos);
            if let Some(queue) = find(&mut self.queues, done.queue) {
                let counters = queue.controller.counters.shard(self.cx.shard);
                counters.succeeded(done.class, done.bytes, nanos);
            }
            self.cx.spaces.unuse(done.space, &mut self.cx.ring);
        }
        finished.truncate(later);
        self.cx.finished = finished;
    }

    /// Removes closed queues of which nothing is in flight, and answers who waits for that.
    fn remove_gone(&mut self) {
        let mut closing = std::mem::take(&mut self.cx.closing);
        closing.retain(|key| {
            let Some(queue) = find(&mut self.queues, *key) else {
                return false;
            };
            if !queue.is_gone() {
                return true;
            }
            queue.announce(&mut self.cx);
            let entry = &mut self.queues[usize::from(key.index)];
            entry.queue = None;
            entry.generation = entry.generation.wrapping_add(1);
            false
        });
        self.cx.closing = closing;
        // Devices that the control thread has given up.
        self.cx.registrars.prune();
        self.answer_drops();
    }

    /// A key for a new queue; `None` when there are as many as tokens can name.
    pub(super) fn free_key(&mut self) -> Option<QueueKey> {
        let free = self.queues.iter().position(|entry| entry.queue.is_none());
        let index = free.unwrap_or_else(|| {
            self.queues.push(Entry::default());
            self.queues.len() - 1
        });
        let generation = self.queues[index].generation;
        Some(QueueKey {
            index: u16::try_from(index).ok()?,
            generation,
        })
    }

    pub(super) fn insert(&mut self, queue: Queue) {
        let index = usize::from(queue.key.index);
        self.queues[index].queue = Some(Box::new(queue));
    }

    /// Calls `f` with the queue, if it is still there.
    pub(super) fn with(&mut self, key: QueueKey, f: impl FnOnce(&mut Queue, &mut Context)) {
        if let Some(queue) = find(&mut self.queues, key) {
            f(queue, &mut self.cx);
        }
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &Queue> + '_ {
        self.queues
            .iter()
            .filter_map(|entry| entry.queue.as_deref())
    }

    pub(super) fn keys(&self) -> Vec<QueueKey> {
        self.queues().map(|queue| queue.key).collect()
    }
}

#[inline]
fn find(queues: &mut [Entry], key: QueueKey) -> Option<&mut Queue> {
    let entry = queues.get_mut(usize::from(key.index))?;
    entry
        .queue
        .as_deref_mut()
        .filter(|queue| queue.key.generation == key.generation)
}
