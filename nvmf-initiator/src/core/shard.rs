//! [`Shard`]: the I/O of one thread: its ring, its queues, its heads, and the requests between them.
//!
//! A runner (a polled session, the thread of a handle, a device thread) owns the shard and turns it:
//!
//! ```text
//!   handle(messages)   what the control thread says
//!   submit(requests)   what users ask
//!   flush()            commands go out, one vectored send or one post for each queue
//!   before_sleep(..)   unless the runner spins
//!   ring().wait(..)    the one system call of a turn
//!   on_completion(..)  for each completion; those of others come back
//!   take_completed()   answers
//! ```
//!
//! Invariants: every accepted request is answered exactly once; a head that is not live issues nothing; a part that comes
//! back from a queue comes back only when the queue's socket is closed (see [`super::queue`]).
//!
//! Here is what a runner calls. [`issue`] has the way of a request to a queue and back, [`control`] what the control thread says.

mod control;
mod issue;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_io::ring::Wait;
use nvmf_io::verbs::WorkCounts;
use nvmf_io::{BufPool, Completion, Ring, Token};
use tokio::sync::oneshot;

use super::error::QueueError;
use super::head::NamespaceHead;
use super::message::{ControllerKey, HeadKey, HeadState};
use super::namespace::NamespaceInfo;
use super::queue::{Finished, IoQueue};
use super::rdma::Registrars;
use super::request::{Done, IoError, Op, Request};
use super::requests::Requests;
use super::rotation::Rotation;
use crate::tokens::TokenSpace;

/// Queues that one shard can have: what the token space gives them.
const MAX_QUEUES: u32 = 1 << 16;
/// First upper half of a token that means a queue.
const QUEUE_TOKENS: u32 = 1;
/// First upper half of a token that is free for whoever runs the shard; 0 is free as well.
pub const FIRST_FREE_TOKEN_SPACE: u32 = QUEUE_TOKENS + MAX_QUEUES;
/// How often open commands are looked through for one that is late. Time-outs are seconds.
const TIMEOUT_CHECK_MS: u32 = 500;
/// More than this between two looks at the clock, while something was due, and nobody was turning the shard.
const MAX_TICK_MS: u32 = 2 * TIMEOUT_CHECK_MS;

/// Where a head stands on this shard; valid until the head is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadIndex {
    at: usize,
    key: HeadKey,
}

/// The answer to a request, and of which head.
#[derive(Debug, Clone, Copy)]
pub struct Completed {
    /// The head.
    pub head: HeadKey,
    /// The answer.
    pub done: Done,
}

/// As many requests are open as the shard takes; take answers first. The request comes back.
#[derive(Debug, thiserror::Error)]
#[error("as many requests are open as this shard takes; wait for one to complete")]
pub struct Full(pub Request);

/// What a shard has asked of RDMA devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RdmaCounts {
    /// Work requests and completions, of all queue pairs that the shard had.
    pub work: WorkCounts,
    /// Memory registrations that there are now: one for each chunk of the pools that was ever used for I/O.
    pub registrations: usize,
}

#[derive(Default)]
struct ShardController {
    /// Indexes of its queues, those that are closing included.
    queues: Vec<usize>,
    /// Whose turn it is.
    rotation: Rotation,
    /// Heads that have something to issue and wait for room.
    line: VecDeque<usize>,
    /// Who waits for the last queue to be closed.
    closed: Vec<oneshot::Sender<()>>,
}

/// See the module's text.
pub struct Shard {
    ring: Ring,
    pool: BufPool,
    queues: Vec<Option<IoQueue>>,
    controllers: HashMap<ControllerKey, ShardController>,
    heads: Vec<Option<NamespaceHead>>,
    requests: Requests,
    completed: VecDeque<Completed>,
    registrars: Registrars,
    /// Queues over RDMA, those that are closing included.
    rdma: Vec<usize>,
    /// What was done on queue pairs that are gone.
    past_counts: WorkCounts,
    /// Queues with something to send.
    dirty: Vec<usize>,
    /// The queue that took the last command.
    last_used: usize,
    finished: Vec<Finished>,
    /// Times that what was submitted was sent.
    flushes: u64,
    /// Parts that wait for their time.
    delayed: u32,
    /// The shard's clock, which stands still while nobody turns the shard: what waits unseen in a socket is not late.
    now_ms: u32,
    /// When the clock was last moved.
    ticked: Instant,
    last_check_ms: u32,
}

impl Shard {
    /// A shard on this thread's ring that takes `max_requests` at once.
    pub fn new(ring: Ring, pool: BufPool, max_requests: u32) -> Self {
        Shard {
            ring,
            pool,
            queues: Vec::new(),
            controllers: HashMap::new(),
            heads: Vec::new(),
            requests: Requests::new(max_requests),
            completed: VecDeque::with_capacity(max_requests as usize),
            registrars: Registrars::default(),
            rdma: Vec::new(),
            past_counts: WorkCounts::default(),
            dirty: Vec::new(),
            last_used: 0,
            finished: Vec::new(),
            flushes: 0,
            delayed: 0,
            now_ms: 0,
            ticked: Instant::now(),
            last_check_ms: 0,
        }
    }

    /// The ring, to wait on and to take completions from.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The buffers.
    pub fn pool(&self) -> &BufPool {
        &self.pool
    }

    /// Requests that are not answered.
    pub fn open(&self) -> usize {
        self.requests.open()
    }

    /// Requests that can be open at once.
    pub fn max_requests(&self) -> usize {
        self.requests.capacity()
    }

    /// Where the head stands.
    pub fn head(&self, key: HeadKey) -> Option<HeadIndex> {
        let mut heads = self.heads.iter();
        let at = heads.position(|head| head.as_ref().is_some_and(|head| head.key == key))?;
        Some(HeadIndex { at, key })
    }

    /// What the head's namespace is.
    pub fn namespace(&self, head: HeadIndex) -> Option<&NamespaceInfo> {
        self.open_head(head).map(|head| &*head.info)
    }

    /// The same, to keep; a change puts another in its place.
    pub fn namespace_shared(&self, head: HeadIndex) -> Option<&Arc<NamespaceInfo>> {
        self.open_head(head).map(|head| &head.info)
    }

    /// What may become of the head's I/O now.
    pub fn head_state(&self, head: HeadIndex) -> Option<HeadState> {
        self.open_head(head).map(|head| head.state)
    }

    fn open_head(&self, index: HeadIndex) -> Option<&NamespaceHead> {
        self.heads[index.at]
            .as_ref()
            .filter(|head| head.key == index.key)
    }

    /// Takes a request. What is wrong with it shows in its answer.
    pub fn submit(&mut self, index: HeadIndex, mut request: Request) -> Result<(), Full> {
        if self.requests.is_full() {
            return Err(Full(request));
        }
        let checked = self
            .open_head(index)
            .map_or(Err(IoError::Closed), |head| head.check(&request));
        if let Err(error) = checked {
            let done = Done {
                tag: request.tag,
                result: Err(error),
            };
            self.completed.push_back(Completed {
                head: index.key,
                done,
            });
            return Ok(());
        }
        if request.op == Op::Flush {
            request.blocks = 0;
        }
        let head = self.heads[index.at].as_mut().expect("checked above");
        head.open += 1;
        let waits = head.state != HeadState::Live || head.has_backlog();
        let opened = self.requests.insert(index.at, request);
        if waits || !self.issue_rest(opened) {
            let head = self.heads[index.at]
                .as_mut()
                .expect("it has an open request");
            head.ready.push_back(opened);
            self.stand_in_line(index.at);
        }
        Ok(())
    }

    /// Looks for answers that the ring does not bring, then sends what the turn made.
    pub fn flush(&mut self) {
        self.poll_rdma();
        self.flushes += 1;
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            let Some(queue) = &mut self.queues[index] else {
                continue;
            };
            queue.dirty = false;
            if let Err(error) = queue.flush(&mut self.ring) {
                self.fail_queue(index, error);
            }
        }
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    fn poll_rdma(&mut self) {
        // A queue that closes leaves the list.
        for at in (0..self.rdma.len()).rev() {
            self.poll_queue(self.rdma[at]);
        }
    }

    /// Whether there was anything.
    fn poll_queue(&mut self, index: usize) -> bool {
        let Some(queue) = &mut self.queues[index] else {
            return false;
        };
        let polled = queue.poll(&mut self.ring, &mut self.finished);
        if polled == Ok(false) && !queue.is_closed() {
            return false;
        }
        self.after_progress(index, polled.map(drop));
        true
    }

    /// What may be said to the ring's wait right before it: not to wait longer than the shard can be left alone, nor at all where
    /// something has come in. Queues over RDMA wake the shard only after this.
    pub fn before_sleep(&mut self, wait: Wait) -> Wait {
        if wait == Wait::Poll {
            return wait;
        }
        let mut found = false;
        for at in (0..self.rdma.len()).rev() {
            let index = self.rdma[at];
            let Some(queue) = &mut self.queues[index] else {
                continue;
            };
            match queue.arm() {
                Ok(false) => {}
                Ok(true) => found |= self.poll_queue(index),
                Err(error) => {
                    found = true;
                    self.fail_queue(index, error);
                }
            }
        }
        if found || self.has_completed() {
            return Wait::Poll;
        }
        match (wait, self.deadline()) {
            (Wait::Block, Some(deadline)) => Wait::Until(deadline),
            (Wait::Until(at), Some(deadline)) => Wait::Until(at.min(deadline)),
            (wait, _) => wait,
        }
    }

    /// What was done on queue pairs so far.
    pub fn rdma_counts(&self) -> RdmaCounts {
        let mut work = self.past_counts;
        for &index in &self.rdma {
            work += self.queues[index]
                .as_ref()
                .map(IoQueue::counts)
                .unwrap_or_default();
        }
        RdmaCounts {
            work,
            registrations: self.registrars.registrations(),
        }
    }

    /// Takes a completion; gives it back when it belongs to nobody here.
    pub fn on_completion(&mut self, completion: Completion) -> Option<Completion> {
        let index = match queue_of(completion.token) {
            Some(index) if index < self.queues.len() => index,
            _ => return Some(completion),
        };
        let Some(queue) = &mut self.queues[index] else {
            return None;
        };
        let result =
            queue.on_completion(completion, &mut self.ring, self.now_ms, &mut self.finished);
        self.after_progress(index, result);
        None
    }

    /// Something happened on a queue.
    fn after_progress(&mut self, index: usize, result: Result<(), QueueError>) {
        self.mark_dirty(index);
        self.settle(index);
        match result {
            Ok(()) => self.reap_closed(index),
            Err(error) => self.fail_queue(index, error),
        }
    }

    /// Whether there are answers to take.
    pub fn has_completed(&self) -> bool {
        !self.completed.is_empty()
    }

    /// Answers, oldest first.
    pub fn take_completed(&mut self) -> Option<Completed> {
        self.completed.pop_front()
    }

    /// Looks at the clock: late commands, and parts whose time has come. Call it at least at [`Shard::deadline`].
    pub fn tick(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.ticked).as_millis();
        if gap > MAX_TICK_MS.into() {
            self.now_ms = self.now_ms.wrapping_add(MAX_TICK_MS);
            self.ticked = now;
        } else {
            // What is less than a millisecond is kept for the next time.
            self.now_ms = self.now_ms.wrapping_add(gap as u32);
            self.ticked += Duration::from_millis(gap as u64);
        }
        if self.delayed > 0 {
            for index in 0..self.heads.len() {
                if self.heads[index]
                    .as_ref()
                    .is_some_and(|head| !head.retry.is_empty())
                {
                    self.stand_in_line(index);
                    let controller = self.heads[index].as_ref().expect("seen above").controller;
                    self.pump(controller);
                }
            }
        }
        if self.now_ms.wrapping_sub(self.last_check_ms) < TIMEOUT_CHECK_MS {
            return;
        }
        self.last_check_ms = self.now_ms;
        for index in 0..self.queues.len() {
            let Some(queue) = &mut self.queues[index] else {
                continue;
            };
            if queue.is_ending() {
                queue.check_ending(&mut self.ring, self.now_ms);
                self.reap_closed(index);
            } else if let Err(error) = queue.check_times(self.now_ms) {
                self.fail_queue(index, error);
            }
        }
    }

    /// When [`Shard::tick`] wants to be called at the latest; `None` while nothing waits for a time.
    pub fn deadline(&self) -> Option<Instant> {
        const RETRY_GRANULARITY_MS: u32 = 10;
        let waits = |head: &NamespaceHead| head.state == HeadState::Live && !head.retry.is_empty();
        // Of many queues few may have commands; the one used last most likely has.
        let used_first = self.queues.get(self.last_used).into_iter();
        let used_first = used_first.chain(&self.queues);
        let at_ms = if self.delayed > 0 && self.heads.iter().flatten().any(waits) {
            self.now_ms.wrapping_add(RETRY_GRANULARITY_MS)
        } else if used_first.flatten().any(IoQueue::needs_time) {
            self.last_check_ms.wrapping_add(TIMEOUT_CHECK_MS)
        } else {
            return None;
        };
        let left_ms = at_ms.wrapping_sub(self.now_ms);
        Some(self.ticked + Duration::from_millis(left_ms.into()))
    }

    fn mark_dirty(&mut self, index: usize) {
        if let Some(queue) = &mut self.queues[index]
            && !queue.dirty
        {
            queue.dirty = true;
            self.dirty.push(index);
        }
    }
}

fn queue_of(token: Token) -> Option<usize> {
    let upper = TokenSpace::upper_of(token).checked_sub(QUEUE_TOKENS)?;
    (upper < MAX_QUEUES).then_some(upper as usize)
}
