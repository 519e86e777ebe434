//! The admin queue on the control thread: commands as futures.
//!
//! Two tasks serve the socket, one reading and one writing; both end with it. When the target breaks a rule the writer tells it so,
//! with one termination request, before the socket is shut. A command's future may be dropped: its answer
//! is then thrown away when it comes.

use std::cell::{Cell, RefCell};
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::queue::Transfer;
use nvme_proto::tcp::host::{HostConn, HostReceived, SubmitError};
use nvme_proto::tcp::{TX_HEADER_BYTES, TxHeader};
use nvme_proto::wire::{Cqe, Sqe};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::AdminError;
use super::link::{Link, push_pdu, terminate, termination_request};
use super::queue::TERMINATION_WAIT_MS;

/// Bytes taken from the socket at a time: more than any Identify structure with its headers.
const READ_BYTES: usize = 16 << 10;

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

struct Shared {
    conn: RefCell<HostConn>,
    slots: RefCell<Vec<Option<Waiting>>>,
    /// Why the queue ended.
    ended: RefCell<Option<String>>,
    over: Notify,
    /// There is something to send.
    send: Notify,
    /// A slot became free.
    room: Notify,
    /// The writer has sent its last.
    farewell: Notify,
    /// Whether the controller said anything since this was last cleared.
    heard: Cell<bool>,
    stream: tokio_uring::net::TcpStream,
    socket: std::net::TcpStream,
}

/// See the module's text.
pub(crate) struct AdminQueue {
    shared: Rc<Shared>,
    reader: Option<JoinHandle<()>>,
    writer: Option<JoinHandle<()>>,
    timeout: Duration,
}

impl AdminQueue {
    /// Takes over a connected admin queue.
    pub fn new(link: Link, timeout: Duration) -> AdminQueue {
        let capacity = link.conn.capacity();
        let shared = Rc::new(Shared {
            conn: RefCell::new(link.conn),
            slots: RefCell::new(std::iter::repeat_with(|| None).take(capacity).collect()),
            ended: RefCell::new(None),
            over: Notify::new(),
            send: Notify::new(),
            room: Notify::new(),
            farewell: Notify::new(),
            heard: Cell::new(false),
            stream: link.stream,
            socket: link.socket,
        });
        let (reading, writing, rest) = (shared.clone(), shared.clone(), link.rest);
        let reader = tokio_uring::spawn(async move {
            let cause = reading.read(&rest).await;
            reading.end(cause);
            reading.wait_farewell().await;
        });
        let writer = tokio_uring::spawn(async move { writing.write().await });
        AdminQueue {
            shared,
            reader: Some(reader),
            writer: Some(writer),
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
        let (transfer, expected_in) = match data {
            AdminData::None => (Transfer::None, 0),
            AdminData::In(len) => (Transfer::ToHost(len), len),
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
            let submitted = self.shared.conn.borrow_mut().submit(&sqe, transfer);
            match submitted {
                Ok(slot) => {
                    self.shared.slots.borrow_mut()[slot.index()] = waiting.take();
                    self.shared.send.notify_one();
                    break;
                }
                Err(SubmitError::QueueFull(_)) => room.await,
                Err(error) => return Err(AdminError::Ended(error.to_string())),
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

    /// Shuts the connection down and waits until its socket is closed.
    pub async fn close(mut self) {
        self.shared.end("closed by this host".to_owned());
        for task in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
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
    /// Ends the queue once; everybody who waits for it learns why.
    fn end(&self, cause: String) {
        if self.ended.borrow().is_some() {
            return;
        }
        *self.ended.borrow_mut() = Some(cause);
        if !self.conn.borrow().is_terminating() {
            self.shut();
        }
        self.slots
            .borrow_mut()
            .iter_mut()
            .for_each(|slot| *slot = None);
        self.over.notify_waiters();
        self.room.notify_waiters();
        self.send.notify_one();
    }

    fn shut(&self) {
        // An error means that the connection is down already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Where the target broke a rule, the writer tells it so once what it was sending is sent. Bounded, since the target may
    /// not be reading.
    async fn wait_farewell(&self) {
        let limit = Duration::from_millis(2 * u64::from(TERMINATION_WAIT_MS));
        let _ = timeout(limit, self.farewell.notified()).await;
        self.shut();
    }

    async fn read(&self, rest: &[u8]) -> String {
        if let Err(cause) = self.consume(rest) {
            return cause;
        }
        let mut buf = vec![0; READ_BYTES];
        loop {
            let (read, back) = self.stream.read(buf).await;
            buf = back;
            match read {
                Ok(0) => return "closed by the target".to_owned(),
                Ok(read) => {
                    if let Err(cause) = self.consume(&buf[..read]) {
                        return cause;
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    fn consume(&self, mut input: &[u8]) -> Result<(), String> {
        self.heard.set(true);
        let mut conn = self.conn.borrow_mut();
        let mut slots = self.slots.borrow_mut();
        // With no bytes left there may still be something to be told: NeedMore is the end.
        loop {
            let (used, received) = conn
                .receive(input)
                .map_err(|violation| format!("the target broke the protocol: {violation}"))?;
            match received {
                HostReceived::NeedMore => break,
                HostReceived::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    if let Some(waiting) = &mut slots[slot.index()] {
                        let from = &input[range];
                        waiting.data[offset as usize..offset as usize + from.len()]
                            .copy_from_slice(from);
                    }
                }
                HostReceived::Complete {
                    slot,
                    cqe,
                    data_bytes,
                    digest_error,
                } => {
                    if let Some(waiting) = slots[slot.index()].take() {
                        let got = if digest_error {
                            0
                        } else {
                            data_bytes.min(waiting.expected_in)
                        };
                        // Whoever asked may have stopped waiting.
                        let _ = waiting.reply.send((cqe, got, waiting.data));
                    }
                    self.room.notify_waiters();
                }
                HostReceived::TermReq { fes, fei } => {
                    return Err(format!(
                        "the target sent a termination request: {fes}, information {fei:08x}h"
                    ));
                }
            }
            input = &input[used..];
        }
        // What was received may have asked for data.
        self.send.notify_one();
        Ok(())
    }

    async fn write(&self) {
        loop {
            self.send.notified().await;
            loop {
                if self.ended.borrow().is_some() {
                    let request = termination_request(&mut self.conn.borrow_mut());
                    if let Some(request) = request {
                        terminate(&self.stream, request).await;
                    }
                    return self.farewell.notify_one();
                }
                let bytes = self.collect();
                if bytes.is_empty() {
                    break;
                }
                let (sent, _) = self.stream.write_all(bytes).await;
                if let Err(error) = sent {
                    self.end(error.to_string());
                    return self.farewell.notify_one();
                }
            }
        }
    }

    fn collect(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut conn = self.conn.borrow_mut();
        let mut header: TxHeader = [0; TX_HEADER_BYTES];
        while let Some(pdu) = conn.poll_transmit(&mut header) {
            // No admin command of this host has data of its own.
            push_pdu(&mut bytes, &header, &pdu, &[]);
        }
        bytes
    }
}
