//! Serves a device from memory, from a file, or from nothing: for tests, and for measuring what a form costs alone.
//!
//! Each queue has a thread with its own ring, as the shards of the daemon are.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvmf_io::{BufPool, Interest, PoolConfig, Ring, RingConfig, Wait, mailbox};

mod backing;

pub use backing::Backing;

use backing::OpenBacking;

use super::{
    BlockDone, BlockForm, BlockOp, BlockRequest, Device, DeviceError, DeviceSpec, FrontEnd,
    FrontEndIo, Kept, QueueSetup, TokenSpace,
};

/// How a device is served.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Cores for the queues in turn; empty leaves it to the scheduler.
    pub cores: Vec<usize>,
    /// Spin that long before sleeping.
    pub busy_poll: Duration,
}

/// How many requests of each kind the backing was given.
#[derive(Debug, Default)]
pub struct Counters {
    /// Reads.
    pub reads: AtomicU64,
    /// Writes, those with force unit access included.
    pub writes: AtomicU64,
    /// Writes with force unit access.
    pub fua_writes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
    /// Discards.
    pub discards: AtomicU64,
    /// Write-zeroes.
    pub write_zeroes: AtomicU64,
}

impl Counters {
    fn count(&self, op: BlockOp) {
        let counter = match op {
            BlockOp::Read => &self.reads,
            BlockOp::Write { fua } => {
                self.fua_writes.fetch_add(fua.into(), Ordering::Relaxed);
                &self.writes
            }
            BlockOp::Flush => &self.flushes,
            BlockOp::Discard => &self.discards,
            BlockOp::WriteZeroes { .. } => &self.write_zeroes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(
            f,
            "reads {} writes {} fua-writes {} flushes {} discards {} write-zeroes {}",
            value(&self.reads),
            value(&self.writes),
            value(&self.fua_writes),
            value(&self.flushes),
            value(&self.discards),
            value(&self.write_zeroes),
        )
    }
}

/// A device that is being served by threads of this process.
pub struct Server {
    counters: Arc<Counters>,
    device: Device,
    threads: Vec<JoinHandle<()>>,
    stop: Vec<mailbox::Sender<()>>,
}

/// Address space for the buffers of one queue, as far as they are used.
const POOL_BYTES: usize = 512 << 20;

const FRONT_END: TokenSpace = TokenSpace::new(1);
const BACKING: TokenSpace = TokenSpace::new(2);
const WAKE: TokenSpace = TokenSpace::new(3);

impl Server {
    /// Makes the device and attaches it.
    pub fn start(
        form: BlockForm,
        spec: &DeviceSpec,
        backing: &Backing,
        options: &ServeOptions,
    ) -> Result<Self, DeviceError> {
        let (device, queues) = Device::create(form, spec)?;
        let mut server = Self::run(device, queues, backing, options, spec)?;
        server.device.attach()?;
        Ok(server)
    }

    /// Takes over a device whose server died.
    pub fn resume(
        kept: Kept,
        spec: &DeviceSpec,
        backing: &Backing,
        options: &ServeOptions,
    ) -> Result<Self, DeviceError> {
        let (device, queues) = Device::resume(&kept.state, kept.fds, spec)?;
        let mut server = Self::run(device, queues, backing, options, spec)?;
        server.device.attach()?;
        Ok(server)
    }

    fn run(
        device: Device,
        queues: Vec<QueueSetup>,
        backing: &Backing,
        options: &ServeOptions,
        spec: &DeviceSpec,
    ) -> Result<Self, DeviceError> {
        let failed = |doing: &str, source| DeviceError::Step {
            name: spec.name.clone(),
            doing: doing.to_owned(),
            source,
        };
        let mut server = Server {
            counters: Arc::default(),
            device,
            threads: Vec::new(),
            stop: Vec::new(),
        };
        for (index, queue) in queues.into_iter().enumerate() {
            let (sender, receiver) = mailbox::channel().map_err(|e| failed("make a mailbox", e))?;
            let core =
                (!options.cores.is_empty()).then(|| options.cores[index % options.cores.len()]);
            let (backing, busy_poll, name) =
                (backing.clone(), options.busy_poll, spec.name.clone());
            let counters = server.counters.clone();
            let work = move || {
                if let Some(core) = core
                    && let Err(error) = nvmf_io::cpu::pin(core)
                {
                    tracing::warn!(core, %error, "cannot pin the thread");
                }
                let shard = Shard::new(queue, &backing, counters);
                if let Err(error) = shard.and_then(|shard| shard.run(&receiver, busy_poll)) {
                    tracing::error!(device = %name, queue = index, %error, "the queue is no longer served");
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("block-{index}"))
                .spawn(work)
                .map_err(|e| failed("start a thread", e))?;
            server.threads.push(thread);
            server.stop.push(sender);
        }
        Ok(server)
    }

    /// The device half.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// What the backing was asked for so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// `/dev/…` or the path of the socket.
    pub fn path(&self) -> PathBuf {
        self.device.path().unwrap_or_default()
    }

    /// Removes the device; refused while it is in use, unless `force`d.
    pub fn detach(&mut self, force: bool) -> Result<(), DeviceError> {
        self.device.detach(force)?;
        if force {
            self.stop_queues();
        }
        Ok(())
    }

    fn stop_queues(&self) {
        for sender in &self.stop {
            // A queue that is gone needs no stop.
            let _ = sender.send(());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.detach(true) {
            tracing::warn!(%error, "a device is left behind");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a queue panicked");
            }
        }
    }
}

/// One queue's thread.
struct Shard {
    ring: Ring,
    pool: BufPool,
    front: Box<dyn FrontEnd>,
    backing: OpenBacking,
    requests: Vec<BlockRequest>,
    done: Vec<BlockDone>,
    counters: Arc<Counters>,
}

impl Shard {
    fn new(queue: QueueSetup, backing: &Backing, counters: Arc<Counters>) -> io::Result<Self> {
        let mut ring = Ring::new(&RingConfig::default()).map_err(io::Error::other)?;
        let backing = OpenBacking::new(backing, &mut ring);
        Ok(Shard {
            ring,
            pool: BufPool::new(&PoolConfig {
                max_bytes: POOL_BYTES,
                resident: true,
            }),
            front: queue.build(),
            backing,
            requests: Vec::new(),
            done: Vec::new(),
            counters,
        })
    }

    fn run(mut self, stop: &mailbox::Receiver<()>, busy_poll: Duration) -> io::Result<()> {
        self.ring
            .poll_multishot(stop.fd(), Interest::Readable, WAKE.token(0));
        self.with_front(|front, io| front.start(FRONT_END, io))?;
        let mut last_work = Instant::now();
        loop {
            self.with_front(|front, io| front.end_turn(io));
            if self.front.is_finished() {
                return Ok(());
            }
            let spin = !busy_poll.is_zero() && last_work.elapsed() < busy_poll;
            let wait = if spin { Wait::Poll } else { Wait::Block };
            stop.park(|may_block| self.ring.wait(if may_block { wait } else { Wait::Poll }))?;
            while let Some(completion) = self.ring.next() {
                last_work = Instant::now();
                let owner = TokenSpace::upper_of(completion.token);
                if owner == TokenSpace::upper_of(FRONT_END.token(0)) {
                    self.with_front(|front, io| front.on_completion(completion, io));
                } else if owner == TokenSpace::upper_of(BACKING.token(0)) {
                    self.done.extend(self.backing.on_completion(&completion));
                }
                self.carry_out();
            }
            if stop.try_recv().is_ok() {
                self.with_front(|front, io| front.stop(io));
            }
        }
    }

    fn with_front<R>(
        &mut self,
        call: impl FnOnce(&mut dyn FrontEnd, &mut FrontEndIo<'_>) -> R,
    ) -> R {
        let mut io = FrontEndIo {
            ring: &mut self.ring,
            pool: &self.pool,
            requests: &mut self.requests,
            front_ends: 1,
        };
        call(&mut *self.front, &mut io)
    }

    /// Gives requests to the backing and answers to the front end, until neither has any more.
    fn carry_out(&mut self) {
        loop {
            for request in self.requests.drain(..) {
                self.counters.count(request.op);
                self.done
                    .extend(self.backing.submit(request, &mut self.ring));
            }
            let Some(done) = self.done.pop() else { return };
            self.with_front(|front, io| front.on_done(done, io));
        }
    }
}
