//! What the control thread and the shards say to each other.
//!
//! Messages to a shard go through its mailbox, are handled between two turns of its loop and in order. Answers come back on
//! one-shot channels, events on one channel of all shards. None of this is on the I/O path.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvme_proto::queue::QueueLimits;
use nvme_proto::tcp::ControllerConn;
use nvme_proto::wire::{Cid, Nsid, Qid};
use nvmf_io::verbs::{IdKey, IdleQueuePair};
use tokio::sync::oneshot;

use crate::model::{ControllerKey, ControllerShared, NamespaceTable, Nqn, SubsystemId};
use crate::rdma::DeviceStats;

/// Where an acknowledgement or answer goes. A receiver that has gone away is no error.
pub type Reply<T> = oneshot::Sender<T>;

/// Which commands a [`ShardMessage::Pause`], [`ShardMessage::Drain`] or [`ShardMessage::Resume`] is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Commands to one namespace.
    Namespace(SubsystemId, Nsid),
    /// Commands of one controller.
    Controller(ControllerKey),
    /// Commands of every controller of the host with this NQN.
    Host(Nqn),
    /// Commands to every namespace of a subsystem.
    Subsystem(SubsystemId),
}

/// What the control thread asks of a shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// Serve an I/O queue from here on: answer its Connect, then its commands.
    Adopt(Box<Adopt>),
    /// The namespaces of a subsystem are these from now on. Commands to a namespace that is gone and that already run finish; later ones
    /// complete with Invalid Namespace.
    Namespaces {
        /// Whose.
        subsystem: SubsystemId,
        /// All of them.
        table: Arc<NamespaceTable>,
        /// Answered when the shard uses the table.
        ack: Reply<()>,
    },
    /// Commands in the scope are held from now on: not handed to a backing, not completed. Those that already run go on. Pauses nest: each
    /// needs its own [`ShardMessage::Resume`].
    Pause {
        /// Which commands.
        scope: Scope,
        /// Answered at once.
        ack: Reply<()>,
    },
    /// Tell when no command in the scope runs in a backing any more. Without a pause before it that may never be.
    Drain {
        /// Which commands.
        scope: Scope,
        /// Answered when none runs.
        ack: Reply<()>,
    },
    /// Ends one pause of the scope; held commands run, in their order.
    Resume {
        /// Which commands.
        scope: Scope,
        /// Answered at once.
        ack: Reply<()>,
    },
    /// End the I/O queues of a controller: read no more from their sockets, let commands that run in a backing finish, drop those that still wait for
    /// data, a buffer or a pause, send what responses the host takes, then close. Each queue also sends [`ShardEvent::QueueClosed`].
    DropController {
        /// Which.
        controller: ControllerKey,
        /// Answered when no command of it runs any more and its sockets are shut: nothing of the old association can
        /// reach storage after that. This is what fences an association from its successor.
        ack: Reply<()>,
    },
    /// The connection manager says that the host closed an RDMA connection, or that its device goes away.
    HungUp(IdKey),
    /// An RDMA device is gone: registrations on it go once no connection uses them.
    ForgetDevices,
    /// The Abort command: end the command `cid` of an I/O queue.
    Abort {
        /// The controller.
        controller: ControllerKey,
        /// Its I/O queue.
        qid: Qid,
        /// The command to end.
        cid: Cid,
        /// Whether the command was aborted, it then completed with Command Abort Requested; `false` when it is unknown here or ran to its end.
        reply: Reply<bool>,
    },
    /// Tell about the shard.
    Stats {
        /// The answer.
        reply: Reply<ShardStats>,
    },
    /// Drain and close every queue, then end the thread.
    Stop {
        /// Answered when everything is closed.
        ack: Reply<()>,
    },
}

/// A connection whose Connect was received and accepted, on its way to the shard that has it from then on.
#[derive(Debug)]
pub struct Adopt {
    /// What carries it.
    pub connection: Connection,
    /// What the queue is made with: its depth from Connect, the rest as the controller announced it.
    pub limits: QueueLimits,
    /// The queue's identifier, not 0.
    pub qid: Qid,
    /// The Connect command, which the shard answers where it makes the protocol's state.
    pub connect_cid: Cid,
    /// The controller that the queue belongs to. The namespaces of its subsystem were sent before ([`ShardMessage::Namespaces`]).
    pub controller: Arc<ControllerShared>,
}

/// What carries an adopted queue.
#[derive(Debug)]
pub enum Connection {
    /// TCP.
    Tcp {
        /// The socket.
        fd: OwnedFd,
        /// What was received from it beyond what `conn` has taken.
        received: Vec<u8>,
        /// The protocol's state; its Connect is accepted, and nothing is open.
        conn: Box<ControllerConn>,
    },
    /// RDMA: a queue pair with nothing posted, large enough for the queue.
    Rdma(Box<IdleQueuePair>),
}

/// What a shard tells the control thread on its own.
#[derive(Debug)]
pub enum ShardEvent {
    /// An I/O queue is gone: its commands have finished and its socket is closed.
    QueueClosed {
        /// The shard that had it.
        shard: usize,
        /// The controller.
        controller: ControllerKey,
        /// The queue.
        qid: Qid,
        /// Why.
        reason: CloseReason,
    },
    /// An RDMA connection that the shard had is gone.
    RdmaClosed(IdKey),
    /// The shard's thread ended without being asked to; its queues are gone.
    Failed {
        /// The shard.
        shard: usize,
        /// What happened.
        reason: String,
    },
}

/// Why an I/O queue ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// The host closed the connection.
    HostClosed,
    /// The host sent a Disconnect command for the queue.
    Disconnected,
    /// The host broke the protocol and was told so with a termination request.
    Violation(String),
    /// The host ended the connection with a termination request.
    Terminated(String),
    /// The socket failed.
    Socket(String),
    /// The host took no data or sent none of what it promised for too long, while others waited for the buffers it held.
    Stalled,
    /// Asked for by [`ShardMessage::DropController`] or [`ShardMessage::Stop`].
    Dropped,
}

/// State of a shard, for metrics and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// I/O queues it has.
    pub queues: Vec<QueueStats>,
    /// Data buffers in use, by commands, by sends, and as reserves of queues.
    pub buffers_in_use: u64,
    /// Bytes of memory that data buffers took from the system so far.
    pub buffer_bytes_reserved: u64,
    /// Commands that wait for a buffer.
    pub waiting_for_buffer: u64,
    /// Commands that wait because their connection has its share of a disk.
    pub waiting_for_disk: u64,
    /// Times the loop went to the kernel.
    pub enters: u64,
    /// Turns of the loop that found something to do.
    pub busy_turns: u64,
    /// Bytes of payload that were copied between wire and storage, of all connections so far: over TCP of data in capsules at most, never of transferred
    /// data; over RDMA none. What the storage itself copies, as memory does, is not in it.
    pub copied_bytes: u64,
    /// What it did on RDMA devices.
    pub rdma: Vec<DeviceStats>,
}

/// State of one I/O queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Its controller.
    pub controller: ControllerKey,
    /// Its identifier.
    pub qid: Qid,
    /// Commands received and not yet completed.
    pub in_flight: u32,
    /// Commands received since the connection was adopted.
    pub commands: u64,
}
