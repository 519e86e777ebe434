//! An admin queue over TCP.
//!
//! Two tasks serve the socket, one reading and one writing; both end with it. When the target breaks a rule the writer tells it so,
//! with one termination request, before the socket is shut.

use std::cell::RefCell;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::tcp::host::{HostConn, HostReceived, SubmitError};
use nvme_proto::tcp::{TX_HEADER_BYTES, TxHeader};
use nvme_proto::wire::Sqe;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::link::tcp::{TcpLink, push_pdu, terminate, termination_request};
use super::super::queue::TERMINATION_WAIT_MS;
use super::{NotTaken, Shared, Wire};

/// Bytes taken from the socket at a time: more than any Identify structure with its headers.
const READ_BYTES: usize = 16 << 10;

/// See the module's text.
pub(super) struct TcpAdmin {
    conn: RefCell<HostConn>,
    /// The writer has sent its last.
    farewell: Notify,
    stream: tokio_uring::net::TcpStream,
    socket: std::net::TcpStream,
}

/// Starts the tasks; `rest` was received already.
pub(super) fn start(shared: &Rc<Shared>, rest: Vec<u8>) -> Vec<JoinHandle<()>> {
    let (reading, writing) = (shared.clone(), shared.clone());
    let reader = tokio_uring::spawn(async move {
        if let Wire::Tcp(tcp) = &reading.wire {
            let cause = tcp.read(&reading, &rest).await;
            reading.end(cause);
            tcp.wait_farewell().await;
        }
    });
    let writer = tokio_uring::spawn(async move {
        if let Wire::Tcp(tcp) = &writing.wire {
            tcp.write(&writing).await;
        }
    });
    vec![reader, writer]
}

impl TcpAdmin {
    /// Also how many commands can be open, and what was received already.
    pub(super) fn new(link: TcpLink) -> (Self, usize, Vec<u8>) {
        let capacity = link.conn.capacity();
        let tcp = TcpAdmin {
            conn: RefCell::new(link.conn),
            farewell: Notify::new(),
            stream: link.stream,
            socket: link.socket.keep(),
        };
        (tcp, capacity, link.rest)
    }

    pub(super) fn submit(&self, sqe: &Sqe, expected_in: u32) -> Result<SlotId, NotTaken> {
        let transfer = match expected_in {
            0 => Transfer::None,
            len => Transfer::ToHost(len),
        };
        let submitted = self.conn.borrow_mut().submit(sqe, transfer);
        submitted.map_err(|error| match error {
            SubmitError::QueueFull(_) => NotTaken::Full,
            error => NotTaken::Failed(error.to_string()),
        })
    }

    /// The queue ended. Where there is a termination request, it is sent before the socket is shut.
    pub(super) fn end(&self) {
        if !self.conn.borrow().is_terminating() {
            self.shut();
        }
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

    async fn read(&self, shared: &Shared, rest: &[u8]) -> String {
        if let Err(cause) = self.consume(shared, rest) {
            return cause;
        }
        let mut buf = vec![0; READ_BYTES];
        loop {
            let (read, back) = self.stream.read(buf).await;
            buf = back;
            match read {
                Ok(0) => return "closed by the target".to_owned(),
                Ok(read) => {
                    if let Err(cause) = self.consume(shared, &buf[..read]) {
                        return cause;
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
    }

    fn consume(&self, shared: &Shared, mut input: &[u8]) -> Result<(), String> {
        shared.heard.set(true);
        let mut conn = self.conn.borrow_mut();
        let mut slots = shared.slots.borrow_mut();
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
                        let got = if digest_error { 0 } else { data_bytes };
                        shared.answer(waiting, cqe, got);
                    }
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
        shared.send.notify_one();
        Ok(())
    }

    async fn write(&self, shared: &Shared) {
        loop {
            shared.send.notified().await;
            loop {
                if shared.has_ended() {
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
                    shared.end(error.to_string());
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
