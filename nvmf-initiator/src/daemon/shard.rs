//! A device shard: one thread with one ring that serves front ends and the queues behind them.
//!
//! Invariant: a request that a front end made is answered to it exactly once, and a front end is dropped, and said to be
//! finished, only when nothing of it is open.

use std::collections::VecDeque;
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvme_proto::wire::Lba;
use nvmf_io::ring::Interest;
use nvmf_io::{BufPool, Completion, PoolConfig, Ring, RingConfig, Spare, Token, Wait, mailbox};
use tokio::sync::oneshot;

use crate::block::{BlockDone, BlockOp, BlockRequest, FrontEnd, FrontEndIo, QueueSetup};
use crate::core::message::{HeadKey, ShardPort, ToShard};
use crate::core::request::{Op, Request};
use crate::core::shard::{Completed, FIRST_FREE_TOKEN_SPACE, Full, HeadIndex, Shard};
use crate::tokens::TokenSpace;

/// The mailbox's descriptor became readable.
const WAKE: Token = Token(0);
/// Requests that one shard takes at once; what is more waits here.
const MAX_REQUESTS: u32 = 4096;
/// Most memory for data that one queue of a device takes. Each has a pool of its own: what a device holds while its
/// controller is lost is then nobody else's.
const FRONT_POOL_BYTES: usize = 64 << 20;
/// What all devices of a shard may take together beyond a first chunk of each size of buffer: without it hundreds of devices
/// that are busy at once could take [`FRONT_POOL_BYTES`] each, all of it locked.
const SPARE_BYTES: usize = 256 << 20;
/// A device of which nothing was asked for so long gives its memory back.
const REST_AFTER: Duration = Duration::from_secs(2);
/// Memory of the queues themselves.
const SHARD_POOL_BYTES: usize = 16 << 20;

/// A front end on its way to a shard.
pub(crate) struct NewFrontEnd {
    /// The namespace that it serves; its head is open on the shard.
    pub head: HeadKey,
    pub setup: QueueSetup,
    /// Whether it could be started.
    pub started: oneshot::Sender<io::Result<()>>,
    /// It took its end.
    pub finished: oneshot::Sender<()>,
}

pub(crate) enum ToDeviceShard {
    Core(ToShard),
    Serve(Box<NewFrontEnd>),
    /// The front ends of this head take no further requests and end.
    StopServing(HeadKey),
    /// End the thread, whatever is open.
    Stop,
}

/// The control thread's end of a device shard. Dropping it ends the thread.
pub(crate) struct DeviceShard {
    sender: mailbox::Sender<ToDeviceShard>,
    thread: Option<JoinHandle<()>>,
}

/// How a shard's thread runs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ShardOptions {
    pub core: Option<usize>,
    pub busy_poll: Duration,
}

impl DeviceShard {
    /// Starts the thread; returns when its ring stands.
    pub fn start(index: usize, options: ShardOptions) -> io::Result<DeviceShard> {
        let (sender, inbox) = mailbox::channel()?;
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
            match Loop::new(inbox, options) {
                Ok(mut turns) => {
                    let _ = ready.send(Ok(()));
                    if let Err(error) = turns.run() {
                        tracing::error!(%error, shard = index, "the ring failed; its devices are dead");
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("a shard's thread died at its start")))?;
        Ok(DeviceShard {
            sender,
            thread: Some(thread),
        })
    }

    /// The way of controllers to this shard.
    pub fn port(&self) -> ShardPort {
        let sender = self.sender.clone();
        ShardPort::new(move |message| sender.send(ToDeviceShard::Core(message)).is_ok())
    }

    /// Posts; a shard that is gone drops it, which whoever waits for an answer notices.
    pub fn post(&self, message: ToDeviceShard) {
        let _ = self.sender.send(message);
    }
}

impl Drop for DeviceShard {
    fn drop(&mut self) {
        self.post(ToDeviceShard::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a shard panicked");
        }
    }
}

struct Front {
    front: Box<dyn FrontEnd>,
    head: HeadIndex,
    block_bytes: u32,
    pool: BufPool,
    finished: oneshot::Sender<()>,
    /// When a request or an answer last came.
    last_use: Instant,
    /// Nothing came since it was told to rest.
    rests: bool,
    /// It is among those whose turn must end.
    is_touched: bool,
}

struct Loop {
    inbox: mailbox::Receiver<ToDeviceShard>,
    shard: Shard,
    fronts: Vec<Option<Front>>,
    /// Those whose turn must end: of hundreds of devices few are used in one turn.
    touched: Vec<usize>,
    spare: Spare,
    /// When to look for devices that rest; `None` while all do.
    next_rest: Option<Instant>,
    /// Requests that the shard had no room for.
    waiting: VecDeque<Request>,
    requests: Vec<BlockRequest>,
    busy_poll: Duration,
    last_work: Instant,
    stopped: bool,
}

impl Loop {
    fn new(inbox: mailbox::Receiver<ToDeviceShard>, options: ShardOptions) -> io::Result<Self> {
        if let Some(core) = options.core {
            nvmf_io::cpu::pin(core)?;
        }
        let mut ring = Ring::new(&RingConfig::default()).map_err(io::Error::other)?;
        let pool = BufPool::new(&PoolConfig {
            max_bytes: SHARD_POOL_BYTES,
            resident: true,
        });
        ring.poll_multishot(inbox.fd(), Interest::Readable, WAKE);
        Ok(Loop {
            inbox,
            shard: Shard::new(ring, pool, MAX_REQUESTS),
            fronts: Vec::new(),
            touched: Vec::new(),
            spare: Spare::new(SPARE_BYTES),
            next_rest: None,
            waiting: VecDeque::with_capacity(MAX_REQUESTS as usize),
            requests: Vec::new(),
            busy_poll: options.busy_poll,
            last_work: Instant::now(),
            stopped: false,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            while let Ok(message) = self.inbox.try_recv() {
                self.handle(message);
            }
            if self.stopped {
                return Ok(());
            }
            self.settle();
            self.rest();
            self.end_turn();
            self.shard.flush();
            self.wait()?;
            let now = Instant::now();
            while let Some(completion) = self.shard.ring().next() {
                self.last_work = now;
                if let Some(completion) = self.shard.on_completion(completion) {
                    self.on_completion(completion);
                }
            }
            self.shard.tick(now);
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let spin = !self.busy_poll.is_zero() && self.last_work.elapsed() < self.busy_poll;
        let wait = match self.next_rest {
            _ if spin => Wait::Poll,
            Some(at) => Wait::Until(at),
            None => Wait::Block,
        };
        let wait = self.shard.before_sleep(wait);
        let ring = self.shard.ring();
        self.inbox
            .park(|may_block| ring.wait(if may_block { wait } else { Wait::Poll }))
    }

    fn handle(&mut self, message: ToDeviceShard) {
        match message {
            ToDeviceShard::Core(message) => self.shard.handle(message),
            ToDeviceShard::Serve(new) => self.serve(*new),
            ToDeviceShard::Stop => self.stopped = true,
            ToDeviceShard::StopServing(key) => {
                let Some(head) = self.shard.head(key) else {
                    return;
                };
                for index in 0..self.fronts.len() {
                    if self.fronts[index]
                        .as_ref()
                        .is_some_and(|front| front.head == head)
                    {
                        self.used(index, Instant::now());
                        self.with_front(index, |front, io| front.front.stop(io));
                    }
                }
            }
        }
    }

    fn serve(&mut self, new: NewFrontEnd) {
        let Some(head) = self.shard.head(new.head) else {
            let _ = new
                .started
                .send(Err(io::Error::other("the namespace is gone")));
            return;
        };
        let block_bytes = self.shard.namespace(head).expect("found above").block_bytes;
        let index = self
            .fronts
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.fronts.push(None);
                self.fronts.len() - 1
            });
        let config = PoolConfig {
            max_bytes: FRONT_POOL_BYTES,
            resident: true,
        };
        let pool = BufPool::sharing(&config, &self.spare);
        self.shard.ring().register_pool(&pool);
        let front = Front {
            front: new.setup.build(),
            head,
            block_bytes,
            pool,
            finished: new.finished,
            last_use: Instant::now(),
            rests: true,
            is_touched: false,
        };
        self.fronts[index] = Some(front);
        self.used(index, Instant::now());
        let tokens = TokenSpace::new(FIRST_FREE_TOKEN_SPACE + index as u32);
        let mut result = Ok(());
        self.with_front(index, |front, io| result = front.front.start(tokens, io));
        if result.is_err() {
            self.fronts[index] = None;
        }
        let _ = new.started.send(result);
    }

    /// Calls a front end, and submits what it asks for.
    fn with_front(&mut self, index: usize, call: impl FnOnce(&mut Front, &mut FrontEndIo<'_>)) {
        let front_ends = self.fronts.len();
        let Some(front) = self.fronts.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        let pool = front.pool.clone();
        call(
            front,
            &mut FrontEndIo {
                ring: self.shard.ring(),
                pool: &pool,
                requests: &mut self.requests,
                front_ends,
            },
        );
        let (head, block_bytes) = (front.head, u64::from(front.block_bytes));
        for request in self.requests.drain(..) {
            let request = Request {
                op: op(request.op),
                slba: Lba(request.offset_bytes / block_bytes),
                blocks: u64::from(request.len_bytes) / block_bytes,
                buf: request.buf,
                buf_offset_bytes: request.buf_offset_bytes,
                // The front end's tags have 32 bits.
                tag: (index as u64) << 32 | request.tag & u64::from(u32::MAX),
            };
            // What waits goes first.
            if !self.waiting.is_empty() {
                self.waiting.push_back(request);
            } else if let Err(Full(request)) = self.shard.submit(head, request) {
                self.waiting.push_back(request);
            }
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        let upper = TokenSpace::upper_of(completion.token);
        if let Some(index) = upper.checked_sub(FIRST_FREE_TOKEN_SPACE) {
            self.used(index as usize, self.last_work);
            self.with_front(index as usize, |front, io| {
                front.front.on_completion(completion, io)
            });
        }
    }

    /// Something came for a device.
    fn used(&mut self, index: usize, now: Instant) {
        let Some(front) = self.fronts.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        front.last_use = now;
        if !std::mem::replace(&mut front.is_touched, true) {
            self.touched.push(index);
        }
        if std::mem::take(&mut front.rests) && self.next_rest.is_none() {
            self.next_rest = Some(now + REST_AFTER);
        }
    }

    /// Has devices rest that were not used for long. When all do, the shard sleeps until something comes.
    fn rest(&mut self) {
        let now = Instant::now();
        if self.next_rest.is_none_or(|at| now < at) {
            return;
        }
        self.next_rest = None;
        for index in 0..self.fronts.len() {
            let Some(front) = &mut self.fronts[index] else {
                continue;
            };
            let at = front.last_use + REST_AFTER;
            if !front.rests && at <= now {
                front.rests = true;
                self.with_front(index, |front, io| {
                    front.front.rest(io);
                    front.pool.trim();
                });
            } else if !front.rests {
                self.next_rest = Some(self.next_rest.map_or(at, |next| next.min(at)));
            }
        }
    }

    /// Answers until nothing is left to answer; answers can make new requests.
    fn settle(&mut self) {
        while let Some(Completed { done, .. }) = self.shard.take_completed() {
            let (index, tag) = ((done.tag >> 32) as usize, done.tag & u64::from(u32::MAX));
            let result = done.result.map_err(|error| error.errno());
            self.used(index, self.last_work);
            self.with_front(index, |front, io| {
                front.front.on_done(BlockDone { tag, result }, io)
            });
            self.submit_waiting();
        }
    }

    fn submit_waiting(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            let index = (request.tag >> 32) as usize;
            // A front end stays until its last request is answered.
            let Some(front) = &self.fronts[index] else {
                continue;
            };
            if let Err(Full(request)) = self.shard.submit(front.head, request) {
                self.waiting.push_front(request);
                return;
            }
        }
    }

    fn end_turn(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.retain(|&index| {
            self.with_front(index, |front, io| front.front.end_turn(io));
            let Some(front) = &mut self.fronts[index] else {
                return false;
            };
            if !front.front.is_finished() {
                front.is_touched = front.front.wants_every_turn();
                return front.is_touched;
            }
            if let Some(front) = self.fronts[index].take() {
                // Whoever waited for it may have stopped to.
                let _ = front.finished.send(());
            }
            false
        });
        self.touched = touched;
    }
}

fn op(op: BlockOp) -> Op {
    match op {
        BlockOp::Read => Op::Read,
        BlockOp::Write { fua } => Op::Write { fua },
        BlockOp::Flush => Op::Flush,
        BlockOp::Discard => Op::Discard,
        BlockOp::WriteZeroes { unmap } => Op::WriteZeroes { deallocate: unmap },
    }
}
