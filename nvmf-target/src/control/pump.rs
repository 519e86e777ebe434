//! An admin queue's bytes: between the socket and the protocol's [`ControllerConn`].
//!
//! One read and at most one write are in flight at any time. [`Pump::next`] may be dropped and called again without losing any of
//! either, so that its owner can wait for other things beside it; what must be awaited to the end is [`Pump::close`].

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use nvme_proto::digest::Crc;
use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::tcp::controller::Received;
use nvme_proto::tcp::{ADMIN_IN_CAPSULE_BYTES, ControllerConn, TX_HEADER_BYTES, TxHeader};
use nvme_proto::wire::{Sqe, Status};
use tokio::time::timeout;

use super::association::EndReason;
use super::handshake::linger;
use super::net::Stream;
use super::rdma::RdmaPump;

/// One read; admin commands are few and small.
const READ_BYTES: usize = 4096;
/// What is gathered for one write at most, unless a single command's data is larger.
const WRITE_BYTES: usize = 64 << 10;
/// No admin command that is supported takes more data from the host; what capsules may carry anyway is enough.
const MAX_DATA_FROM_HOST_BYTES: u32 = ADMIN_IN_CAPSULE_BYTES;
/// How long a last response or termination request may take to leave.
const LAST_WRITE_LIMIT: Duration = Duration::from_secs(2);

type Io<T> = Pin<Box<dyn Future<Output = T>>>;

/// What happened on the queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A command and all its data are there.
    Command(SlotId),
    /// The connection is over.
    Ended(EndReason),
}

/// An admin queue's pump, over either transport.
pub enum AdminPump {
    /// TCP.
    Tcp(Box<Pump>),
    /// RDMA.
    Rdma(Box<RdmaPump>),
}

impl AdminPump {
    /// The command in a slot.
    pub fn command(&self, slot: SlotId) -> &Sqe {
        match self {
            Self::Tcp(pump) => pump.command(slot),
            Self::Rdma(pump) => pump.command(slot),
        }
    }

    /// The data that came with the command in a slot.
    pub fn take_data(&mut self, slot: SlotId) -> Vec<u8> {
        match self {
            Self::Tcp(pump) => pump.take_data(slot),
            Self::Rdma(pump) => pump.take_data(slot),
        }
    }

    /// Completes a command without data.
    pub fn complete(&mut self, slot: SlotId, status: Status, result: u64) {
        match self {
            Self::Tcp(pump) => pump.complete(slot, status, result),
            Self::Rdma(pump) => pump.complete(slot, status, result),
        }
    }

    /// Completes a command with data for the host; never more than its SGL takes.
    pub fn complete_with_data(&mut self, slot: SlotId, data: Vec<u8>, result: u64) {
        match self {
            Self::Tcp(pump) => pump.complete_with_data(slot, data, result),
            Self::Rdma(pump) => pump.complete_with_data(slot, &data, result),
        }
    }

    /// What happens next; see [`Pump::next`].
    pub async fn next(&mut self) -> Event {
        match self {
            Self::Tcp(pump) => pump.next().await,
            Self::Rdma(pump) => pump.next().await,
        }
    }

    /// Sends what is still to be sent, within reason, and ends the connection.
    pub async fn close(self) {
        match self {
            Self::Tcp(pump) => pump.close().await,
            Self::Rdma(pump) => pump.close().await,
        }
    }
}

/// See the module's text.
pub struct Pump {
    stream: Stream,
    conn: ControllerConn,
    /// Data of the command in each slot, in either direction.
    data: Vec<Vec<u8>>,
    /// Commands whose data are complete.
    ready: VecDeque<SlotId>,
    ended: Option<EndReason>,
    read: Option<Io<(io::Result<usize>, Vec<u8>)>>,
    write: Option<Io<(io::Result<()>, Vec<u8>)>>,
    /// The buffer of the last write.
    spare: Vec<u8>,
    header: Box<TxHeader>,
}

impl Pump {
    /// Drives `conn`, a queue of `depth` entries, over `stream`; `received` are bytes that came in already.
    pub fn new(stream: Stream, conn: ControllerConn, depth: u16, received: &[u8]) -> Self {
        let mut pump = Pump {
            stream,
            conn,
            data: vec![Vec::new(); depth.into()],
            ready: VecDeque::new(),
            ended: None,
            read: None,
            write: None,
            spare: Vec::new(),
            header: Box::new([0; TX_HEADER_BYTES]),
        };
        pump.take_in(received);
        pump
    }

    /// The command in a slot.
    pub fn command(&self, slot: SlotId) -> &Sqe {
        self.conn.command(slot)
    }

    /// The data that came with the command in a slot.
    pub fn take_data(&mut self, slot: SlotId) -> Vec<u8> {
        std::mem::take(&mut self.data[slot.index()])
    }

    /// Completes a command without data.
    pub fn complete(&mut self, slot: SlotId, status: Status, result: u64) {
        self.conn.complete(slot, status, result);
    }

    /// Completes a command with data for the host; never more than its SGL takes.
    pub fn complete_with_data(&mut self, slot: SlotId, data: Vec<u8>, result: u64) {
        let bytes = data.len() as u32;
        self.data[slot.index()] = data;
        if bytes == 0 {
            self.conn.complete(slot, Status::SUCCESS, result);
        } else {
            self.conn.complete_with_data(slot, bytes, result);
        }
    }

    /// What happens next. Sends what there is to send meanwhile.
    pub async fn next(&mut self) -> Event {
        loop {
            self.flush();
            if let Some(slot) = self.ready.pop_front() {
                return Event::Command(slot);
            }
            if let Some(reason) = self.ended.take() {
                return Event::Ended(reason);
            }
            if self.read.is_none() {
                let stream = self.stream.clone();
                let buffer = Vec::with_capacity(READ_BYTES);
                self.read = Some(Box::pin(async move { stream.read(buffer).await }));
            }
            self.wait().await;
        }
    }

    /// Waits for the read or the write in flight, whichever ends first, and sees to it.
    async fn wait(&mut self) {
        enum Done {
            Read((io::Result<usize>, Vec<u8>)),
            Written((io::Result<()>, Vec<u8>)),
        }
        let done = poll_fn(|cx| {
            if let Some(write) = &mut self.write
                && let Poll::Ready(result) = write.as_mut().poll(cx)
            {
                self.write = None;
                return Poll::Ready(Done::Written(result));
            }
            if let Some(read) = &mut self.read
                && let Poll::Ready(result) = read.as_mut().poll(cx)
            {
                self.read = None;
                return Poll::Ready(Done::Read(result));
            }
            Poll::Pending
        })
        .await;
        match done {
            Done::Written((result, buffer)) => {
                self.spare = buffer;
                if let Err(error) = result {
                    self.end(EndReason::Socket(error.to_string()));
                }
            }
            Done::Read((Ok(0), _)) => self.end(EndReason::HostClosed),
            Done::Read((Ok(_), buffer)) => self.take_in(&buffer),
            Done::Read((Err(error), _)) => self.end(EndReason::Socket(error.to_string())),
        }
    }

    fn end(&mut self, reason: EndReason) {
        self.ended.get_or_insert(reason);
    }

    /// Gives received bytes to the protocol.
    fn take_in(&mut self, mut input: &[u8]) {
        while self.ended.is_none() {
            let (taken, received) = match self.conn.receive(input) {
                Ok(received) => received,
                Err(violation) => return self.end(EndReason::Violation(violation.to_string())),
            };
            match received {
                Received::NeedMore => return,
                Received::Command { slot } => self.admit(slot),
                Received::Refused { cid, violation } => {
                    tracing::warn!(peer = %self.stream.peer(), %cid, "admin command refused: {violation}");
                }
                Received::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    let data = &mut self.data[slot.index()];
                    let start = offset as usize;
                    data[start..start + range.len()].copy_from_slice(&input[range]);
                }
                Received::DataReady { slot } => self.ready.push_back(slot),
                Received::DataDigestError { slot } => {
                    self.conn
                        .complete(slot, Status::TRANSIENT_TRANSPORT_ERROR, 0);
                }
                Received::TermReq { fes, fei } => {
                    self.end(EndReason::Terminated(format!(
                        "{fes:?}, information {fei:#x}"
                    )));
                }
            }
            input = &input[taken..];
        }
    }

    /// Gives a new command a buffer for what it takes from the host.
    fn admit(&mut self, slot: SlotId) {
        let transfer = self.conn.transfer(slot);
        let bytes = transfer.bytes_from_host();
        if bytes > MAX_DATA_FROM_HOST_BYTES {
            self.conn.complete(slot, Status::INVALID_FIELD.dnr(), 0);
            return;
        }
        let data = &mut self.data[slot.index()];
        data.clear();
        data.resize(bytes as usize, 0);
        match transfer {
            Transfer::None | Transfer::ToHost(_) => self.ready.push_back(slot),
            Transfer::InCapsule(_) => {}
            Transfer::FromHost(_) => self.conn.request_data(slot),
        }
    }

    /// Starts a write of what there is to send, unless one is in flight.
    fn flush(&mut self) {
        if self.write.is_some() || !self.conn.wants_transmit() {
            return;
        }
        let mut out = std::mem::take(&mut self.spare);
        out.clear();
        while out.len() < WRITE_BYTES
            && let Some(pdu) = self.conn.poll_transmit(&mut self.header)
        {
            out.extend_from_slice(&self.header[..pdu.header_bytes.into()]);
            if let Some(payload) = pdu.payload {
                let start = payload.offset as usize;
                let data = &self.data[payload.slot.index()][start..start + payload.len as usize];
                out.extend_from_slice(data);
                if payload.digest {
                    out.extend_from_slice(&Crc::of(data).to_wire());
                }
            }
            if let Some(slot) = pdu.finishes {
                self.data[slot.index()] = Vec::new();
            }
        }
        if out.is_empty() {
            self.spare = out;
            return;
        }
        let stream = self.stream.clone();
        self.write = Some(Box::pin(async move { stream.write_all(out).await }));
    }

    /// Sends everything that there is to send. `false`: the connection failed. May be dropped like [`Pump::next`].
    pub async fn drain(&mut self) -> bool {
        loop {
            self.flush();
            let Some(write) = &mut self.write else {
                return true;
            };
            let (result, buffer) = write.await;
            self.write = None;
            self.spare = buffer;
            if result.is_err() {
                return false;
            }
        }
    }

    /// Whether somebody else may go on with the connection: it stands, everything is sent, and the host has no command open, which on a queue at its gate it
    /// could not know to be allowed yet.
    ///
    /// Nothing is read ahead: a read is begun only when no command is ready, and whatever one brought has been given to the protocol.
    pub fn is_quiet(&self) -> bool {
        self.read.is_none()
            && self.write.is_none()
            && self.ended.is_none()
            && self.ready.is_empty()
            && self.conn.in_flight() == 0
    }

    /// Takes a quiet pump apart.
    pub fn into_parts(self) -> (Stream, ControllerConn) {
        (self.stream, self.conn)
    }

    /// Sends what is still to be sent, within reason, and ends the connection. After a termination request the host gets
    /// time to read it.
    pub async fn close(mut self) {
        let sent = timeout(LAST_WRITE_LIMIT, self.drain()).await.is_ok();
        if sent && self.conn.is_terminating() && self.read.is_none() {
            linger(&self.stream).await;
        }
        self.stream.shutdown();
        if let Some(read) = self.read {
            let _ = read.await;
        }
        if let Some(write) = self.write {
            let _ = write.await;
        }
    }
}
