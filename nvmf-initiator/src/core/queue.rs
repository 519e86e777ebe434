//! One I/O queue: a [`HostConn`] over a socket of the shard's ring.
//!
//! Invariants:
//! - at most one receive and one send are in flight on the socket;
//! - a command sits in the slot that [`HostConn`] gave it until its completion or until the queue is closed; its buffer
//!   is held there, and by the ring while the kernel may touch it;
//! - after `IoQueue::fail` no completion is reported any more. Once nothing is in flight the socket is closed, and
//!   only then do the open commands come out again ([`IoQueue::take_open`]), so that no byte of the old connection is
//!   sent or stored after one of them was issued elsewhere;
//! - where the target broke a rule, one termination request is the last thing that it is sent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme_proto::digest::{Crc, DIGEST_BYTES};
use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::tcp::host::{HostConn, HostReceived};
use nvme_proto::tcp::pdu::Fes;
use nvme_proto::tcp::{TX_HEADER_BYTES, TxHeader};
use nvme_proto::violation::Violation;
use nvme_proto::wire::nvm::DsmRange;
use nvme_proto::wire::{Cqe, Lba, Qid, Sqe, Status};
use nvmf_io::{Buf, BufPool, Completion, Errno, Ring, SockId, TxBatch};
use zerocopy::IntoBytes;

use super::message::{ControllerKey, EventSink, FromShard, NewQueue};
use crate::tokens::TokenSpace;

/// Why a queue ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The target closed the connection.
    #[error("the target closed the connection")]
    ClosedByPeer,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Socket(Errno),
    /// The target broke a rule of the protocol.
    #[error("the target broke the protocol: {0}")]
    Violation(Violation),
    /// The target ended the connection with a termination request.
    #[error(
        "the target ended the connection with a termination request: {fes}, information {fei:08x}h"
    )]
    TermReq {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
    /// A command had no answer in time, nor after its abort was asked for.
    #[error(
        "a command had no answer within {0} ms, and none for as long again after its abort was asked for"
    )]
    CommandTimeout(u32),
    /// No buffer for the queue's own use.
    #[error("the buffer pool has no room for another queue; raise its bound")]
    NoBuffer,
}

/// A part of a request: what one command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the request on this shard.
    pub request: u32,
    /// First block, relative to the request.
    pub first: u64,
    /// Blocks.
    pub blocks: u32,
    /// How often it was tried and refused before.
    pub retries: u8,
}

/// Data of a command.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// None.
    None,
    /// To the controller, from this place on.
    Out(Buf, u32, u32),
    /// From the controller, to this place.
    In(Buf, u32, u32),
    /// To the controller: a range of blocks, from the queue's own memory.
    Range(Lba, u32),
}

#[derive(Debug)]
struct Slot {
    part: Part,
    buf: Option<Buf>,
    buf_offset: u32,
    /// Bytes that a successful command must bring.
    expected_in: u32,
    /// When it was issued, or when its abort was asked for.
    since_ms: u32,
    /// It was late once: its abort was asked for.
    abort_asked: bool,
}

/// How a command ended on this queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finished {
    pub part: Part,
    pub status: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Live,
    /// The target broke a rule: the termination request goes out, and the target has until this time to close the connection.
    Terminating(u32),
    /// Shut; waits for the kernel to give the operations back.
    Closing,
    Closed,
}

/// How long a target that was sent a termination request gets to close the connection. Commands are held meanwhile, so it is
/// not the half minute that a controller gives; one that reads its socket at all needs a round trip.
pub(crate) const TERMINATION_WAIT_MS: u32 = 1000;

const DSM_RANGE_BYTES: u32 = DsmRange::SIZE as u32;

const RECEIVE: u32 = 1;
const SEND: u32 = 2;

/// See the module's text.
pub(crate) struct IoQueue {
    pub controller: ControllerKey,
    pub association: u32,
    pub qid: Qid,
    conn: HostConn,
    socket: Option<SockId>,
    tokens: TokenSpace,
    slots: Box<[Option<Slot>]>,
    open: u32,
    /// 16 bytes for each slot, for the ranges of Dataset Management.
    ranges: Buf,
    /// The one batch; the ring has it while a send is in flight.
    batch: Option<Box<TxBatch>>,
    receiving: bool,
    sending: bool,
    phase: Phase,
    io_timeout_ms: u32,
    events: EventSink,
    /// Set when anything was received: traffic stands in for keep-alive.
    traffic: Arc<AtomicBool>,
    /// In the shard's list of queues with something to send.
    pub dirty: bool,
}

impl IoQueue {
    /// Takes a connected queue over and begins to receive.
    pub fn new(
        new: NewQueue,
        tokens: TokenSpace,
        ring: &mut Ring,
        pool: &BufPool,
        out: &mut Vec<Finished>,
    ) -> Result<Self, QueueError> {
        let capacity = new.conn.capacity();
        let ranges = pool
            .alloc(capacity as u32 * DSM_RANGE_BYTES)
            .ok_or(QueueError::NoBuffer)?;
        let socket = ring.add_socket(OwnedFd::from(new.socket));
        let mut queue = IoQueue {
            controller: new.controller,
            association: new.association,
            qid: new.qid,
            conn: new.conn,
            socket: Some(socket),
            tokens,
            slots: std::iter::repeat_with(|| None).take(capacity).collect(),
            open: 0,
            ranges,
            batch: Some(TxBatch::new(
                TxBatch::DEFAULT_HEADER_BYTES,
                TxBatch::DEFAULT_SEGMENTS,
            )),
            receiving: false,
            sending: false,
            phase: Phase::Live,
            io_timeout_ms: new.io_timeout_ms,
            events: new.events,
            traffic: new.traffic,
            dirty: false,
        };
        queue.consume(&new.bytes, out)?;
        queue.arm(ring);
        Ok(queue)
    }

    /// Whether commands can be submitted.
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Whether the socket is gone and nothing is in flight.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether something here may be late: a command, or the target's end of a connection that was terminated.
    pub fn needs_time(&self) -> bool {
        self.open > 0 || self.is_terminating()
    }

    /// Whether another command fits.
    pub fn has_room(&self) -> bool {
        self.phase == Phase::Live && (self.open as usize) < self.slots.len()
    }

    /// Submits a command; it goes out with the next [`IoQueue::flush`]. False when the queue is full.
    pub fn submit(&mut self, sqe: &Sqe, data: Data, part: Part, now_ms: u32) -> bool {
        let transfer = match &data {
            Data::None => Transfer::None,
            Data::Out(_, _, len) => self.conn.write_transfer(sqe, *len),
            Data::In(_, _, len) => Transfer::ToHost(*len),
            Data::Range(..) => self.conn.write_transfer(sqe, DSM_RANGE_BYTES),
        };
        let Ok(slot) = self.conn.submit(sqe, transfer) else {
            return false;
        };
        let index = slot.index();
        let (buf, buf_offset, expected_in) = match data {
            Data::None => (None, 0, 0),
            Data::Out(buf, offset, _) => (Some(buf), offset, 0),
            Data::In(buf, offset, len) => (Some(buf), offset, len),
            Data::Range(slba, blocks) => {
                let at = u32::from(slot.0) * DSM_RANGE_BYTES;
                self.ranges
                    .copy_in(at, DsmRange::new(slba, blocks).as_bytes());
                (Some(self.ranges.clone()), at, 0)
            }
        };
        self.slots[index] = Some(Slot {
            part,
            buf,
            buf_offset,
            expected_in,
            since_ms: now_ms,
            abort_asked: false,
        });
        self.open += 1;
        true
    }

    /// A ring operation of this queue completed; `local` is the lower half of its token.
    pub fn on_completion(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        out: &mut Vec<Finished>,
    ) -> Result<(), QueueError> {
        let result = match TokenSpace::local_of(completion.token) {
            RECEIVE => self.on_received(completion, ring, out),
            SEND => self.on_sent(completion),
            _ => Ok(()),
        };
        if self.phase == Phase::Live {
            return result;
        }
        if result.is_err() {
            // There is nobody to hear the termination request.
            self.shut(ring);
        }
        self.try_close(ring);
        Ok(())
    }

    fn on_received(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        out: &mut Vec<Finished>,
    ) -> Result<(), QueueError> {
        if !completion.more {
            self.receiving = false;
        }
        match self.phase {
            Phase::Live => {}
            Phase::Terminating(_) => {
                match completion.result {
                    // What the target still says does not count any more.
                    Ok(1..) => self.arm(ring),
                    // It closed the connection, as it should.
                    Ok(0) | Err(_) => self.shut(ring),
                }
                return Ok(());
            }
            Phase::Closing | Phase::Closed => return Ok(()),
        }
        match completion.result {
            Ok(0) => return Err(QueueError::ClosedByPeer),
            Ok(_) => {
                if !self.traffic.load(Ordering::Relaxed) {
                    self.traffic.store(true, Ordering::Relaxed);
                }
                if let Some(chunk) = &completion.rx {
                    self.consume(chunk, out)?;
                }
            }
            Err(errno) => return Err(QueueError::Socket(errno)),
        }
        self.arm(ring);
        Ok(())
    }

    fn on_sent(&mut self, completion: Completion) -> Result<(), QueueError> {
        self.sending = false;
        if let Some(mut batch) = completion.batch {
            batch.clear();
            self.batch = Some(batch);
        }
        completion.result.map(drop).map_err(QueueError::Socket)
    }

    fn arm(&mut self, ring: &mut Ring) {
        if let (false, Some(socket)) = (self.receiving, self.socket) {
            ring.recv_multishot(socket, self.tokens.token(RECEIVE));
            self.receiving = true;
        }
    }

    /// Walks over received bytes.
    fn consume(&mut self, mut bytes: &[u8], out: &mut Vec<Finished>) -> Result<(), QueueError> {
        // With no bytes left there may still be something to be told: NeedMore is the end.
        loop {
            let (used, received) = self.conn.receive(bytes).map_err(QueueError::Violation)?;
            match received {
                HostReceived::NeedMore => return Ok(()),
                HostReceived::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    // The connection has checked the range against the command's length.
                    if let Some(Slot {
                        buf: Some(buf),
                        buf_offset,
                        ..
                    }) = &self.slots[slot.index()]
                    {
                        buf.copy_in(buf_offset + offset, &bytes[range]);
                    }
                }
                HostReceived::Complete {
                    slot,
                    cqe,
                    data_bytes,
                    digest_error,
                } => {
                    if let Some(done) = self.slots[slot.index()].take() {
                        self.open -= 1;
                        out.push(Finished {
                            part: done.part,
                            status: outcome(&done, &cqe, data_bytes, digest_error),
                        });
                    }
                }
                HostReceived::TermReq { fes, fei } => return Err(QueueError::TermReq { fes, fei }),
            }
            bytes = &bytes[used..];
        }
    }

    /// Sends what the connection has to say, unless a send is in flight: then it goes out after that one.
    pub fn flush(&mut self, ring: &mut Ring) {
        let (Phase::Live | Phase::Terminating(_), Some(socket)) = (self.phase, self.socket) else {
            return;
        };
        let Some(mut batch) = self.batch.take() else {
            return;
        };
        // A PDU takes a header, a payload and a digest, and once taken from the connection it has to fit.
        while batch.fits(TX_HEADER_BYTES + DIGEST_BYTES, 3) {
            let mut header: TxHeader = [0; TX_HEADER_BYTES];
            let Some(pdu) = self.conn.poll_transmit(&mut header) else {
                break;
            };
            batch
                .push_header(&header[..pdu.header_bytes.into()])
                .expect("asked for room");
            let Some(payload) = pdu.payload else { continue };
            let slot = self.slots[payload.slot.index()].as_ref();
            let Some(Slot {
                buf: Some(buf),
                buf_offset,
                ..
            }) = slot
            else {
                unreachable!("a command with data holds its buffer until it completes");
            };
            let range = buf_offset + payload.offset..buf_offset + payload.offset + payload.len;
            batch
                .push_payload(buf, range.clone())
                .expect("asked for room");
            if payload.digest {
                batch
                    .push_trailer(&Crc(buf.crc32c(range, 0)).to_wire())
                    .expect("asked for room");
            }
        }
        if batch.is_empty() {
            self.batch = Some(batch);
        } else {
            self.sending = true;
            ring.send(socket, batch, self.tokens.token(SEND));
        }
    }

    /// Looks for commands that have no answer in time. The abort of one is asked for, once; one that has no answer for as long again
    /// after that ends the queue.
    pub fn check_times(&mut self, now_ms: u32) -> Result<(), QueueError> {
        if self.phase != Phase::Live || self.open == 0 {
            return Ok(());
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(slot) = slot else { continue };
            if now_ms.wrapping_sub(slot.since_ms) < self.io_timeout_ms {
                continue;
            }
            if slot.abort_asked {
                return Err(QueueError::CommandTimeout(self.io_timeout_ms));
            }
            slot.abort_asked = true;
            slot.since_ms = now_ms;
            // Without a receiver the controller is being ended, and the queue with it.
            let _ = self.events.send(FromShard::CommandLate {
                association: self.association,
                qid: self.qid,
                cid: self.conn.command(SlotId(index as u16)).cid(),
            });
        }
        Ok(())
    }

    /// Tells the control thread that the queue is of no use any more.
    pub fn report(&self, error: QueueError) {
        // Without a receiver the controller is being ended, and nobody will reconnect.
        let _ = self.events.send(FromShard::QueueFailed {
            association: self.association,
            qid: self.qid,
            error,
        });
    }

    /// Ends the queue: shuts the socket and closes it as soon as the kernel holds no operation on it. Where the target broke a rule it
    /// is told so first, and gets some time to close the connection itself.
    pub fn fail(&mut self, ring: &mut Ring, now_ms: u32) {
        if self.phase != Phase::Live {
            return;
        }
        self.conn.close(|_| {});
        if self.conn.is_terminating() {
            self.phase = Phase::Terminating(now_ms.wrapping_add(TERMINATION_WAIT_MS));
            self.arm(ring);
            self.flush(ring);
        } else {
            self.shut(ring);
        }
    }

    /// Whether the target is still to close the connection after a termination request.
    pub fn is_terminating(&self) -> bool {
        matches!(self.phase, Phase::Terminating(_))
    }

    /// The target had its time to close the connection.
    pub fn check_termination(&mut self, ring: &mut Ring, now_ms: u32) {
        if let Phase::Terminating(until_ms) = self.phase
            && now_ms.wrapping_sub(until_ms) < u32::MAX / 2
        {
            self.shut(ring);
        }
    }

    fn shut(&mut self, ring: &mut Ring) {
        self.phase = Phase::Closing;
        if let Some(socket) = self.socket {
            // An error means that the connection is down already.
            let _: io::Result<()> = ring.shutdown(socket);
        }
        self.try_close(ring);
    }

    fn try_close(&mut self, ring: &mut Ring) {
        if self.receiving || self.sending || self.phase != Phase::Closing {
            return;
        }
        if let Some(socket) = self.socket.take() {
            // The socket lingers for 0 s: closing it resets the connection and drops what was not sent yet.
            drop(ring.remove_socket(socket));
        }
        self.phase = Phase::Closed;
    }

    /// The commands that never completed; only of a closed queue.
    pub fn take_open(&mut self) -> impl Iterator<Item = Part> + '_ {
        assert!(
            self.is_closed(),
            "commands stay with their queue until its socket is closed"
        );
        self.open = 0;
        self.slots
            .iter_mut()
            .filter_map(|slot| Some(slot.take()?.part))
    }
}

/// The status that counts for a command. A response is only as good as the data that came before it.
fn outcome(slot: &Slot, cqe: &Cqe, data_bytes: u32, digest_error: bool) -> Status {
    let status = cqe.status();
    if !status.is_success() {
        status
    } else if digest_error {
        Status::TRANSIENT_TRANSPORT_ERROR
    } else if data_bytes < slot.expected_in {
        Status::DATA_TRANSFER_ERROR
    } else {
        status
    }
}
