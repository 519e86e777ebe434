//! What the queues of a shard share: the ring, the buffers, the namespaces, and the lists of who has something to do.

use std::collections::VecDeque;
use std::time::Instant;

use nvme_proto::queue::SlotId;
use nvme_proto::tcp::{TX_HEADER_BYTES, TxHeader};
use nvmf_io::timer::Timers;
use nvmf_io::{BufPool, Errno, Ring, Token, Wait};
use tokio::sync::mpsc::UnboundedSender;

use super::handle::{Patience, ShardConfig};
use super::message::{Reply, ShardEvent};
use super::pace::Pace;
use super::spaces::{SpaceId, Spaces};
use super::token::QueueKey;
use crate::backend::Lent;
use crate::model::IoClass;
use crate::rdma::{LinkEvent, Registrars};

/// A command that completed in this turn; counted at the turn's end, when its response goes out, with one look at the clock for all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    pub(super) queue: QueueKey,
    pub(super) space: SpaceId,
    pub(super) class: IoClass,
    pub(super) bytes: u64,
    pub(super) received: Instant,
}

/// An Abort whose command runs in a backing: answered when that ends.
#[derive(Debug)]
pub(super) struct PendingAbort {
    pub(super) queue: QueueKey,
    pub(super) slot: SlotId,
    pub(super) reply: Reply<bool>,
}

/// Shared by all queues of a shard. Lent to a queue's methods by the loop.
pub(super) struct Context {
    pub(super) ring: Ring,
    pub(super) pool: BufPool,
    pub(super) lent: Lent,
    pub(super) spaces: Spaces,
    /// Which line of counters is this shard's.
    pub(super) shard: usize,
    pub(super) patience: Patience,
    /// When this turn began: when whatever it handles was received.
    pub(super) now: Instant,
    /// Number of this turn, from 1.
    pub(super) turn: u64,
    /// Changes from time to time, never 0: tells the controllers that there was traffic.
    pub(super) tick: u32,
    pub(super) pace: Pace,
    /// Times that the loop went to the kernel.
    pub(super) enters: u64,
    /// Most bytes of data buffers that one queue may hold while others wait.
    pub(super) queue_share_bytes: u64,
    /// Queues that may have something to send.
    pub(super) dirty: Vec<QueueKey>,
    /// Queues with input that was received and not yet looked at.
    pub(super) ready: VecDeque<QueueKey>,
    /// A queue that receives step by step may get more commands at once.
    pub(super) stepping: bool,
    /// Queues with commands that wait for a buffer, each once.
    pub(super) starving: VecDeque<QueueKey>,
    /// Whether buffers came back since the starving were last served.
    pub(super) buffers_freed: bool,
    /// Commands that wait for the compare buffer.
    pub(super) comparing: VecDeque<(QueueKey, SlotId)>,
    /// What completed on devices with rings of their own.
    pub(super) device_done: Vec<(Token, Result<u32, Errno>)>,
    /// Commands that completed in this turn.
    pub(super) finished: Vec<Finished>,
    /// Queues that a part of the protocol or a shutdown gave a time limit.
    pub(super) timers: Timers<QueueKey>,
    /// Queues that were shut and are gone as soon as nothing of them is in flight.
    pub(super) closing: Vec<QueueKey>,
    /// When to look for hosts that hold buffers without going on; only while somebody waits for a buffer.
    pub(super) stall_check: Option<Instant>,
    pub(super) aborts: Vec<PendingAbort>,
    pub(super) events: UnboundedSender<ShardEvent>,
    /// Memory registered with RDMA devices.
    pub(super) registrars: Registrars,
    /// Where events of RDMA links are gathered.
    pub(super) link_events: Vec<LinkEvent>,
    /// Where headers are made.
    pub(super) header: Box<TxHeader>,
}

/// Commands that [`Context::finished`] has room for without growing; it grows to what a turn can complete, once.
const FINISHED_CAPACITY: usize = 1024;

impl Context {
    pub(super) fn new(
        config: &ShardConfig,
        ring: Ring,
        pool: BufPool,
        lent: Lent,
        events: UnboundedSender<ShardEvent>,
    ) -> Self {
        Self {
            ring,
            pool,
            lent,
            spaces: Spaces::default(),
            shard: config.index,
            patience: config.patience,
            now: Instant::now(),
            turn: 0,
            tick: 1,
            pace: Pace::default(),
            enters: 0,
            // One host that does not read must leave something for the others.
            queue_share_bytes: config.buffer_bytes as u64 / 2,
            dirty: Vec::new(),
            ready: VecDeque::new(),
            stepping: false,
            starving: VecDeque::new(),
            buffers_freed: false,
            comparing: VecDeque::new(),
            device_done: Vec::new(),
            finished: Vec::with_capacity(FINISHED_CAPACITY),
            timers: Timers::new(),
            closing: Vec::new(),
            stall_check: None,
            aborts: Vec::new(),
            events,
            registrars: Registrars::default(),
            link_events: Vec::new(),
            header: Box::new([0; TX_HEADER_BYTES]),
        }
    }

    /// Goes to the kernel in the middle of a turn, and counts it. Completions may come by that: what was looked up of files before does not
    /// hold for what is started from here on.
    pub(super) fn enter(&mut self) {
        self.enters += 1;
        // What is wrong with the ring shows again at the end of the turn.
        let _ = self.ring.wait(Wait::Poll);
        self.lent.forget();
    }
}
