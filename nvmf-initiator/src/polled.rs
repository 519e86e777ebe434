//! [`Session`]: one namespace for one thread, polled.
//!
//! Everything happens on the caller's thread and ring, inside [`Session::poll`]; only admin commands, keep-alive and
//! reconnecting are on a control thread. An operation takes no lock, no allocation and no system call of its own: commands
//! submitted between two polls leave in one vectored send for each queue.
//!
//! When the connection is lost, operations are held and go on after the reconnect; they fail as `fast_io_fail_tmo` and
//! `ctrl_loss_tmo` say. Keep polling meanwhile: a loss is noticed, and a new association taken up, in [`Session::poll`].
//!
//! ```no_run
//! use nvmf_initiator::polled::{Op, Request, Session, SessionConfig, Wait};
//! use nvmf_initiator::wire::Lba;
//!
//! let mut session = Session::connect("nvme+tcp://192.0.2.1:4420/nqn.2026-01.io.example:disk?nsid=1", &SessionConfig::default())?;
//! let buf = session.alloc(4096).expect("a new pool is not dry");
//! let blocks = 4096 / u64::from(session.namespace().block_bytes);
//! session.submit(Request { op: Op::Read, slba: Lba(0), blocks, buf: Some(buf.clone()), buf_offset_bytes: 0, tag: 7 })?;
//! let mut done = Vec::new();
//! while done.is_empty() {
//!     session.poll(Wait::Block, &mut done)?;
//! }
//! assert_eq!((done[0].tag, done[0].result), (7, Ok(())));
//! session.disconnect();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvme_proto::wire::Nsid;
use nvmf_io::ring::Interest;
use nvmf_io::{Buf, BufPool, PoolConfig, Ring, RingConfig, RingError, Token, mailbox};
use tokio::sync::mpsc;

pub use crate::core::request::{Done, IoError, Op, Request};
pub use crate::core::shard::{Full, RdmaCounts};
pub use nvmf_io::Wait;

use crate::control::Initiator;
use crate::core::controller::{
    Connected, ControllerEvent, ControllerHandle, ControllerInfo, ControllerSpec,
};
use crate::core::error::ConnectError;
use crate::core::message::{ShardPort, ToShard};
use crate::core::namespace::NamespaceInfo;
use crate::core::scan::Which;
use crate::core::shard::{HeadIndex, Shard};
use crate::host::{HostError, HostFiles, HostIdentity};
use crate::options::{NamespaceUrl, OptionError};

/// The mailbox's descriptor became readable.
const WAKE: Token = Token(0);

/// How a session is made, apart from the connection's own options.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// As whom; `None` takes what the URL or `/etc/nvme` says.
    pub host: Option<HostIdentity>,
    /// A control thread to share; `None` starts one.
    pub initiator: Option<Initiator>,
    /// Operations open at once.
    pub max_requests: u32,
    /// Spin this long for completions before sleeping when [`Session::poll`] may wait.
    pub busy_poll: Duration,
    /// The session's ring.
    pub ring: RingConfig,
    /// The session's buffers.
    pub pool: PoolConfig,
}

impl Default for SessionConfig {
    fn default() -> Self {
        SessionConfig {
            host: None,
            initiator: None,
            max_requests: 1024,
            busy_poll: Duration::ZERO,
            ring: RingConfig::default(),
            pool: PoolConfig::default(),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The address or its options.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// No host identity.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// No control thread or mailbox.
    #[error(transparent)]
    System(#[from] io::Error),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The controller has no such namespace.
    #[error(
        "the subsystem has no active namespace {0}; `nvmf-initiator connect --block none` and `list` show those it has"
    )]
    NoNamespace(Nsid),
}

/// See the module's text.
pub struct Session {
    shard: Shard,
    inbox: mailbox::Receiver<ToShard>,
    waker: mailbox::Sender<ToShard>,
    head: HeadIndex,
    info: ControllerInfo,
    handle: ControllerHandle,
    events: mpsc::UnboundedReceiver<ControllerEvent>,
    busy_poll: Duration,
    /// Polls since the clock was looked at.
    polls: u32,
    /// A message was taken in: the poll that is going on does not sleep any more, so that its caller can look around.
    told: bool,
    // Last, so that the control thread ends after everything that it serves.
    initiator: Initiator,
}

/// See [`Session::waker`].
#[derive(Clone)]
pub struct Waker(mailbox::Sender<ToShard>);

impl Waker {
    /// Makes the next [`Session::poll`], or the one that waits now, return soon.
    pub fn wake(&self) {
        // A message, not a bare wake: whether the session slept or was about to, it is found. Without a receiver the session
        // is gone.
        let _ = self.0.send(ToShard::Nudge);
    }
}

/// Polls that may pass between two looks at the clock while spinning: one look costs as much as an empty poll.
const POLLS_PER_TICK: u32 = 64;
/// The flag of a disconnect is set before the wake is sent; this bounds what a wake between two looks would cost.
const DISCONNECT_CHECK: Duration = Duration::from_millis(100);

impl Session {
    /// Connects to the namespace of an `nvme+tcp://` or `nvme+rdma://` URL with one I/O queue, or as many as `nr_io_queues=` says.
    pub fn connect(url: &str, config: &SessionConfig) -> Result<Session, SessionError> {
        let mut url: NamespaceUrl = url.parse()?;
        url.target.options.nr_io_queues.get_or_insert(1);
        let host = match &config.host {
            Some(host) => host.clone(),
            None => HostFiles::default().identity(url.hostnqn.as_deref(), url.hostid.as_deref())?,
        };
        let initiator = match &config.initiator {
            Some(initiator) => initiator.clone(),
            None => Initiator::start()?,
        };
        let mut ring = Ring::new(&config.ring)?;
        let pool = BufPool::new(&config.pool);
        ring.register_pool(&pool);
        let (sender, inbox) = mailbox::channel()?;
        ring.poll_multishot(inbox.fd(), Interest::Readable, WAKE);
        let (nsid, waker) = (Nsid(url.nsid), sender.clone());
        let spec = ControllerSpec {
            target: url.target,
            host,
            shards: vec![ShardPort::new(move |message| sender.send(message).is_ok())],
            which: Which::Only(nsid),
        };
        let Connected {
            handle,
            info,
            namespaces,
            events,
        } = initiator.connect(spec)?;
        let mut shard = Shard::new(ring, pool, config.max_requests);
        while let Ok(message) = inbox.try_recv() {
            shard.handle(message);
        }
        let Some(&(key, _)) = namespaces.first() else {
            return Err(SessionError::NoNamespace(nsid));
        };
        let head = shard
            .head(key)
            .expect("the control thread opened it before it answered");
        Ok(Session {
            shard,
            inbox,
            waker,
            head,
            info,
            handle,
            events,
            busy_poll: config.busy_poll,
            polls: 0,
            told: false,
            initiator,
        })
    }

    /// What the namespace is now; its size may change while connected.
    pub fn namespace(&self) -> &NamespaceInfo {
        self.shard
            .namespace(self.head)
            .expect("the head is open as long as the session")
    }

    /// The same, to keep; a change puts another in its place.
    pub fn namespace_shared(&self) -> &Arc<NamespaceInfo> {
        self.shard
            .namespace_shared(self.head)
            .expect("the head is open as long as the session")
    }

    /// What the controller says of itself.
    pub fn controller(&self) -> &ControllerInfo {
        &self.info
    }

    /// The control thread, for another session to share.
    pub fn initiator(&self) -> &Initiator {
        &self.initiator
    }

    /// A buffer of the session's pool: `None` when the pool is dry, until buffers are dropped.
    pub fn alloc(&self, len_bytes: u32) -> Option<Buf> {
        self.shard.pool().alloc(len_bytes)
    }

    /// The session's pool.
    pub fn pool(&self) -> &BufPool {
        self.shard.pool()
    }

    /// Takes an operation. It goes out with the next [`Session::poll`]; whatever is wrong with it shows in its answer. When
    /// as many are open as the session takes, it comes back.
    pub fn submit(&mut self, request: Request) -> Result<(), Full> {
        self.shard.submit(self.head, request)
    }

    /// Wakes a [`Session::poll`] that waits, from any thread.
    pub fn waker(&self) -> Waker {
        Waker(self.waker.clone())
    }

    /// Operations that are not answered.
    pub fn open(&self) -> usize {
        self.shard.open()
    }

    /// Operations that can be open at once.
    pub fn max_requests(&self) -> usize {
        self.shard.max_requests()
    }

    /// Sends what was submitted, takes what came in, and appends the answers to `done`. Waits as `wait` says, but not
    /// when there are answers.
    pub fn poll(&mut self, wait: Wait, done: &mut Vec<Done>) -> io::Result<()> {
        let result = self.poll_until_told(wait, done);
        self.told = false;
        result
    }

    fn poll_until_told(&mut self, wait: Wait, done: &mut Vec<Done>) -> io::Result<()> {
        if wait == Wait::Poll {
            return self.turn(wait, done);
        }
        let before = done.len();
        if !self.busy_poll.is_zero() {
            let until = Instant::now() + self.busy_poll;
            while done.len() == before && !self.told && Instant::now() < until {
                self.turn(Wait::Poll, done)?;
            }
        }
        if done.len() > before || self.told {
            return Ok(());
        }
        self.turn(wait, done)
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Done>) -> io::Result<()> {
        while let Ok(message) = self.inbox.try_recv() {
            self.told = true;
            self.shard.handle(message);
        }
        self.shard.flush();
        let answered = self.take(done);
        if wait == Wait::Poll || answered || self.told {
            self.shard.ring().wait(Wait::Poll)?;
        } else {
            let wait = self.shard.before_sleep(wait);
            let ring = self.shard.ring();
            self.inbox
                .park(|may_block| ring.wait(if may_block { wait } else { Wait::Poll }))?;
            self.polls = POLLS_PER_TICK;
        }
        while let Some(completion) = self.shard.ring().next() {
            // What comes back is the wake, and the mailbox is looked at in each turn.
            drop(self.shard.on_completion(completion));
        }
        self.polls += 1;
        if self.polls >= POLLS_PER_TICK {
            self.polls = 0;
            self.shard.tick(Instant::now());
        }
        self.take(done);
        Ok(())
    }

    fn take(&mut self, done: &mut Vec<Done>) -> bool {
        let before = done.len();
        while let Some(completed) = self.shard.take_completed() {
            done.push(completed.done);
        }
        done.len() > before
    }

    /// What was asked of RDMA devices so far; nothing over TCP.
    pub fn rdma_counts(&self) -> RdmaCounts {
        self.shard.rdma_counts()
    }

    /// What happened to the controller since the last call: losses, reconnects, changes of the namespace.
    pub fn events(&mut self) -> impl Iterator<Item = ControllerEvent> + '_ {
        std::iter::from_fn(|| self.events.try_recv().ok())
    }

    /// Ends the association in order. Operations that are open end as closed, unanswered.
    pub fn disconnect(mut self) {
        // Dropped without being called when the controller has ended by itself: that counts as well.
        struct Ended(Arc<AtomicBool>, mailbox::Sender<ToShard>);
        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
                self.1.wake();
            }
        }
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Ended(ended.clone(), self.waker.clone());
        self.handle.begin_disconnect(move || drop(flag));
        let mut done = Vec::new();
        while !ended.load(Ordering::Acquire) {
            self.told = false;
            // The shard has to say that its sockets are closed. Without a ring nothing can be waited for.
            if self
                .turn(Wait::Until(Instant::now() + DISCONNECT_CHECK), &mut done)
                .is_err()
            {
                return;
            }
            done.clear();
        }
    }
}
