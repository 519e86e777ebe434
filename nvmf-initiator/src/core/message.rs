//! What the control thread and the shards say to each other. All of it is rare; none of it is on the I/O path.

use std::fmt;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nvme_proto::wire::{Cid, Qid};
use nvme_proto::{rdma, tcp::host as tcp};
use nvmf_io::verbs::IdleQueuePair;
use tokio::sync::{mpsc, oneshot};

use super::error::QueueError;
use super::namespace::NamespaceInfo;
use super::request::IoError;

/// One controller of this process, over all its associations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControllerKey(u32);

impl ControllerKey {
    /// A key that nobody else in this process has.
    pub fn unique() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ControllerKey(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One namespace of this process, over all associations of its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeadKey(u32);

impl HeadKey {
    /// A key that nobody else in this process has.
    pub fn unique() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        HeadKey(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What may become of a head's I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadState {
    /// Commands go out.
    Live,
    /// The association is lost: commands are held and sent again on the next one.
    Held,
    /// Commands fail with this error: those that are held, and new ones. May become live again.
    Failing(IoError),
}

/// An I/O queue that is connected and handed to a shard.
pub struct NewQueue {
    /// Whose.
    pub controller: ControllerKey,
    /// Counts the associations of the controller, so that news of an old one is told from the present one's.
    pub association: u32,
    /// Its identifier.
    pub qid: Qid,
    /// Its connection.
    pub wire: NewWire,
    /// A command without an answer for this long is to be aborted; without one for as long again it ends the queue.
    pub io_timeout_ms: u32,
    /// Where the queue reports its end.
    pub events: EventSink,
    /// Set whenever something is received.
    pub traffic: Arc<AtomicBool>,
}

/// A connection after the Connect response.
#[expect(clippy::large_enum_variant, reason = "messages have it in a box")]
pub enum NewWire {
    /// Over TCP.
    Tcp {
        /// The socket, blocking, with nothing read beyond what `conn` has seen and `bytes`.
        socket: TcpStream,
        /// The state machine.
        conn: tcp::HostConn,
        /// Bytes received after the Connect response.
        bytes: Vec<u8>,
    },
    /// Over RDMA.
    Rdma {
        /// The queue pair, with nothing posted. Events of its identifier come on a channel of its own.
        qp: Box<IdleQueuePair>,
        /// The state machine.
        conn: rdma::HostConn,
    },
}

impl NewWire {
    /// Most commands that can be open.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            NewWire::Tcp { conn, .. } => conn.capacity(),
            NewWire::Rdma { conn, .. } => conn.capacity(),
        }
    }
}

impl fmt::Debug for NewQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewQueue")
            .field("controller", &self.controller)
            .field("association", &self.association)
            .field("qid", &self.qid)
            .finish_non_exhaustive()
    }
}

/// To a shard.
#[derive(Debug)]
pub enum ToShard {
    /// A namespace; its I/O goes through the queues of `controller`.
    OpenHead {
        /// Its key.
        head: HeadKey,
        /// Whose namespace.
        controller: ControllerKey,
        /// What it is.
        info: Arc<NamespaceInfo>,
        /// How it begins.
        state: HeadState,
    },
    /// The namespace changed its size or limits.
    Reshape {
        /// Which.
        head: HeadKey,
        /// What it is now.
        info: Arc<NamespaceInfo>,
    },
    /// What may become of the I/O of this head.
    SetState {
        /// Which.
        head: HeadKey,
        /// How.
        state: HeadState,
    },
    /// Fails what is open with [`IoError::Closed`] and forgets the head.
    CloseHead {
        /// Which.
        head: HeadKey,
    },
    /// Nothing: makes a runner that sleeps look around.
    Nudge,
    /// A queue to use.
    AddQueue(Box<NewQueue>),
    /// Shuts and closes every queue of the controller and holds its commands. Answered when no connection is left.
    CloseQueues {
        /// Whose.
        controller: ControllerKey,
        /// Dropped without an answer only with the shard itself.
        closed: oneshot::Sender<()>,
    },
}

/// From a shard.
#[derive(Debug)]
pub enum FromShard {
    /// A command has no answer in time, and should be aborted.
    CommandLate {
        /// Of which association.
        association: u32,
        /// Its queue.
        qid: Qid,
        /// Which.
        cid: Cid,
    },
    /// A queue failed. Its commands are held, and the rest of the controller's on this shard too.
    QueueFailed {
        /// Of which association.
        association: u32,
        /// Which.
        qid: Qid,
        /// Why.
        error: QueueError,
    },
}

/// How the control thread reaches a shard, whatever else the shard's mailbox carries.
#[derive(Clone)]
pub struct ShardPort(Arc<dyn Fn(ToShard) -> bool + Send + Sync>);

impl ShardPort {
    /// A port that posts with `post`, which returns false when the shard is gone.
    pub fn new(post: impl Fn(ToShard) -> bool + Send + Sync + 'static) -> Self {
        ShardPort(Arc::new(post))
    }

    /// Posts; false when the shard is gone.
    pub fn post(&self, message: ToShard) -> bool {
        (self.0)(message)
    }
}

impl fmt::Debug for ShardPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShardPort")
    }
}

/// Where a controller hears of its queues.
pub type EventSink = mpsc::UnboundedSender<FromShard>;
