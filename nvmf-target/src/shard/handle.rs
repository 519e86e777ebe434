//! Starting a shard, and talking to it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use nvme_proto::tcp::TERMINATION_TIMEOUT_MS;
use nvmf_io::mailbox::{self, Sender};
use nvmf_io::{BufPool, PoolConfig, Ring, RingConfig, RingError, cpu};
use tokio::sync::mpsc::UnboundedSender;

use super::context::Context;
use super::message::{ShardEvent, ShardMessage};
use super::run::Shard;
use crate::backend::Lent;

/// How long a shard waits for hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a host to close after it was sent a termination request.
    pub termination: Duration,
    /// For a host to take the last responses of a queue that ends in good order. Hosts that go have stopped reading: no more
    /// than a moment.
    pub drain: Duration,
    /// For a host to go on with its transfers, when it holds buffers that others wait for.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            termination: Duration::from_millis(TERMINATION_TIMEOUT_MS),
            drain: Duration::from_secs(1),
            stall: Duration::from_secs(30),
        }
    }
}

/// What a shard is started with.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// Its number, from 0: which line of the counters it writes.
    pub index: usize,
    /// The core that its thread stays on; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    /// How long it goes on looking for work before it sleeps. Zero sleeps at once.
    pub busy_poll: Duration,
    /// Most memory for data buffers. Address space is taken as it is needed.
    pub buffer_bytes: usize,
    /// How long it waits for hosts.
    pub patience: Patience,
    /// The ring. Its buffers for receiving are shared by all connections of the shard.
    pub ring: RingConfig,
}

impl ShardConfig {
    /// Shard `index` with the defaults: any core, no spinning.
    pub fn new(index: usize) -> Self {
        Self {
            index,
            core: None,
            busy_poll: Duration::ZERO,
            buffer_bytes: PoolConfig::default().max_bytes,
            patience: Patience::default(),
            ring: RingConfig::default(),
        }
    }
}

/// Why a shard cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The ring cannot be had.
    #[error("shard {index}: {cause}")]
    Ring {
        /// Which shard.
        index: usize,
        /// Why, and what to do.
        cause: RingError,
    },
    /// A system call failed.
    #[error("shard {index}: cannot {action}: {cause}")]
    System {
        /// Which shard.
        index: usize,
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// There is no memory for its buffers.
    #[error(
        "shard {index}: no memory for data buffers; give it more (RLIMIT_AS, container limits)"
    )]
    Memory {
        /// Which shard.
        index: usize,
    },
}

/// The shard's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("shard {0} has ended")]
pub struct ShardGone(pub usize);

/// A running shard. Dropping the handle does not stop it; [`ShardMessage::Stop`] does.
pub struct ShardHandle {
    index: usize,
    sender: Sender<ShardMessage>,
    thread: JoinHandle<()>,
}

impl ShardHandle {
    /// Starts a shard and waits until it is ready. It tells `events` what happens to its queues.
    pub fn spawn(
        config: ShardConfig,
        events: UnboundedSender<ShardEvent>,
    ) -> Result<Self, ShardError> {
        let index = config.index;
        let system = |action| {
            move |cause| ShardError::System {
                index,
                action,
                cause,
            }
        };
        let (sender, mailbox) = mailbox::channel().map_err(system("make a mailbox"))?;
        let (ready, started) = mpsc::sync_channel(1);
        let thread = Builder::new()
            .name(format!("shard-{index}"))
            .spawn(move || {
                let busy_poll = config.busy_poll;
                let mut shard = match prepare(&config, events.clone()) {
                    Ok(cx) => Shard::new(cx, mailbox, busy_poll),
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                let _ = ready.send(Ok(()));
                let reason = match catch_unwind(AssertUnwindSafe(|| shard.run())) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => format!("its ring failed: {error}"),
                    Err(_) => "it panicked".into(),
                };
                tracing::error!(shard = index, %reason, "a shard ended");
                let _ = events.send(ShardEvent::Failed {
                    shard: index,
                    reason,
                });
            })
            .map_err(system("start its thread"))?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self {
                index,
                sender,
                thread,
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let source = std::io::Error::other("its thread ended while it started");
                Err(system("start")(source))
            }
        }
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Sends a message; the shard handles messages in order.
    pub fn send(&self, message: ShardMessage) -> Result<(), ShardGone> {
        self.sender.send(message).map_err(|_| ShardGone(self.index))
    }

    /// Waits for the end of its thread, after [`ShardMessage::Stop`]. Blocks.
    pub fn join(self) {
        // A panic was reported as an event.
        let _ = self.thread.join();
    }
}

/// Makes all that belongs to the shard's thread, on that thread.
fn prepare(
    config: &ShardConfig,
    events: UnboundedSender<ShardEvent>,
) -> Result<Context, ShardError> {
    let index = config.index;
    if let Some(core) = config.core {
        let action = "stay on its core, which has to exist and to be one that this process may use (--cores)";
        cpu::pin(core).map_err(|cause| ShardError::System {
            index,
            action,
            cause,
        })?;
    }
    let mut ring = Ring::new(&config.ring).map_err(|cause| ShardError::Ring { index, cause })?;
    let pool = BufPool::new(&PoolConfig {
        max_bytes: config.buffer_bytes,
        ..PoolConfig::default()
    });
    ring.register_pool(&pool);
    let lent = Lent::new(&pool).ok_or(ShardError::Memory { index })?;
    Ok(Context::new(config, ring, pool, lent, events))
}
