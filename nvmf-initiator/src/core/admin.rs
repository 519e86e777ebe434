//! The admin queue on the control thread: commands as futures.
//!
//! [`tcp`] and [`rdma`] carry the commands, in tasks that end with the queue. A command's future may be dropped: its answer
//! is then thrown away when it comes.

mod rdma;
mod tcp;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::queue::SlotId;
use nvme_proto::wire::{Cqe, Sqe};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::rdma::RdmaAdmin;
use self::tcp::TcpAdmin;
use super::error::AdminError;
use super::link::{Link, LinkWire};

/// Data of an admin command.
pub(crate) enum AdminData {
    None,
    /// So many bytes from the controller.
    In(u32),
}

/// The answer to a successful admin command.
#[derive(Debug)]
pub(crate) struct AdminReply {
    pub cqe: Cqe,
    /// As long as was asked for.
    pub data: Vec<u8>,
}

struct Waiting {
    /// Room for what comes.
    data: Vec<u8>,
    expected_in: u32,
    reply: oneshot::Sender<(Cqe, u32, Vec<u8>)>,
}

/// Why a command was not taken.
enum NotTaken {
    /// No more can be open; a slot that becomes free is told of.
    Full,
    /// The queue is of no more use.
    Failed(String),
}

/// What carries the queue.
#[expect(clippy::large_enum_variant, reason = "it is in an Rc already")]
enum Wire {
    Tcp(TcpAdmin),
    Rdma(RdmaAdmin),
}

struct Shared {
    wire: Wire,
    slots: RefCell<Vec<Option<Waiting>>>,
    /// Why the queue ended.
    ended: RefCell<Option<String>>,
    over: Notify,
    /// There is something to send, or the queue ended.
    send: Notify,
    /// A slot became free.
    room: Notify,
    /// Whether the controller said anything since this was last cleared.
    heard: Cell<bool>,
}

/// See the module's text.
pub(crate) struct AdminQueue {
    shared: Rc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    timeout: Duration,
}

impl AdminQueue {
    /// Takes over a connected admin queue.
    pub fn new(link: Link, timeout: Duration) -> AdminQueue {
        let (wire, capacity, rest) = match link.wire {
            LinkWire::Tcp(link) => {
                let (tcp, capacity, rest) = TcpAdmin::new(*link);
                (Wire::Tcp(tcp), capacity, rest)
            }
            LinkWire::Rdma(link) => {
                let (rdma, capacity) = RdmaAdmin::new(*link);
                (Wire::Rdma(rdma), capacity, Vec::new())
            }
        };
        let shared = Rc::new(Shared {
            wire,
            slots: RefCell::new(std::iter::repeat_with(|| None).take(capacity).collect()),
            ended: RefCell::new(None),
            over: Notify::new(),
            send: Notify::new(),
            room: Notify::new(),
            heard: Cell::new(false),
        });
        let tasks = match &shared.wire {
            Wire::Tcp(_) => tcp::start(&shared, rest),
            Wire::Rdma(_) => rdma::start(&shared),
        };
        AdminQueue {
            shared,
            tasks,
            timeout,
        }
    }

    /// Sends a command and waits for its answer, at most for the queue's time-out.
    pub async fn command(&self, sqe: Sqe, data: AdminData) -> Result<AdminReply, AdminError> {
        match timeout(self.timeout, self.command_untimed(sqe, data)).await {
            Ok(result) => result,
            Err(_) => Err(AdminError::Timeout(self.timeout.as_millis() as u32)),
        }
    }

    /// Sends a command and waits for its answer, however long: for Asynchronous Event Requests.
    pub async fn command_untimed(
        &self,
        sqe: Sqe,
        data: AdminData,
    ) -> Result<AdminReply, AdminError> {
        let expected_in = match data {
            AdminData::None => 0,
            AdminData::In(len) => len,
        };
        let (reply, answered) = oneshot::channel();
        let mut waiting = Some(Waiting {
            data: vec![0; expected_in as usize],
            expected_in,
            reply,
        });
        loop {
            let room = self.shared.room.notified();
            if let Some(cause) = self.ended() {
                return Err(AdminError::Ended(cause));
            }
            match self.shared.submit(&sqe, expected_in) {
                Ok(slot) => {
                    self.shared.slots.borrow_mut()[slot.index()] = waiting.take();
                    self.shared.send.notify_one();
                    break;
                }
                Err(NotTaken::Full) => room.await,
                Err(NotTaken::Failed(cause)) => return Err(AdminError::Ended(cause)),
            }
        }
        let Ok((cqe, got, data)) = answered.await else {
            return Err(AdminError::Ended(
                self.ended().unwrap_or_else(|| "closed".to_owned()),
            ));
        };
        let status = cqe.status();
        if !status.is_success() {
            Err(AdminError::Status(status))
        } else if got < expected_in {
            Err(AdminError::ShortData {
                got,
                expected: expected_in,
            })
        } else {
            Ok(AdminReply { cqe, data })
        }
    }

    /// Why the queue ended, if it did.
    pub fn ended(&self) -> Option<String> {
        self.shared.ended.borrow().clone()
    }

    /// Waits for the end of the queue.
    pub async fn wait_ended(&self) -> String {
        loop {
            let over = self.shared.over.notified();
            if let Some(cause) = self.ended() {
                return cause;
            }
            over.await;
        }
    }

    /// Whether anything was received since the last call.
    pub fn take_heard(&self) -> bool {
        self.shared.heard.replace(false)
    }

    /// Ends the connection and waits until it is closed.
    pub async fn close(mut self) {
        self.shared.end("closed by this host".to_owned());
        for task in std::mem::take(&mut self.tasks) {
            // Only a panic could make it fail, and that is reported where it happens.
            let _ = task.await;
        }
    }
}

impl Drop for AdminQueue {
    fn drop(&mut self) {
        self.shared.end("dropped".to_owned());
    }
}

impl Shared {
    fn submit(&self, sqe: &Sqe, expected_in: u32) -> Result<SlotId, NotTaken> {
        match &self.wire {
            Wire::Tcp(tcp) => tcp.submit(sqe, expected_in),
            Wire::Rdma(rdma) => rdma.submit(sqe, expected_in),
        }
    }

    /// Ends the queue once; everybody who waits for it learns why.
    fn end(&self, cause: String) {
        if self.ended.borrow().is_some() {
            return;
        }
        *self.ended.borrow_mut() = Some(cause);
        match &self.wire {
            Wire::Tcp(tcp) => tcp.end(),
            Wire::Rdma(rdma) => rdma.end(),
        }
        self.slots
            .borrow_mut()
            .iter_mut()
            .for_each(|slot| *slot = None);
        self.over.notify_waiters();
        self.room.notify_waiters();
        self.send.notify_one();
    }

    fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// A command was answered, and brought `got` bytes, which are in `waiting`.
    fn answer(&self, waiting: Waiting, cqe: Cqe, got: u32) {
        // Whoever asked may have stopped waiting.
        let got = got.min(waiting.expected_in);
        let _ = waiting.reply.send((cqe, got, waiting.data));
        self.room.notify_waiters();
    }
}
