//! The wire of a queue over TCP: a socket of the shard's ring.
//!
//! At most one receive and one send are in flight on it. The ring holds buffers that the kernel may touch.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme_proto::digest::{Crc, DIGEST_BYTES};
use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::tcp::host::{HostConn, HostReceived};
use nvme_proto::tcp::{TX_HEADER_BYTES, TxHeader};
use nvme_proto::wire::{Cqe, Sqe, Status};
use nvmf_io::{Completion, Ring, SockId, TxBatch};

use super::{Data, Finished, Phase, QueueError, Slot, Slots};
use crate::tokens::TokenSpace;

pub(super) const RECEIVE: u32 = 1;
pub(super) const SEND: u32 = 2;

/// See the module's text.
pub(super) struct TcpWire {
    pub(super) conn: HostConn,
    socket: Option<SockId>,
    tokens: TokenSpace,
    /// The one batch; the ring has it while a send is in flight.
    batch: Option<Box<TxBatch>>,
    receiving: bool,
    sending: bool,
}

/// What came of a completion.
pub(super) enum Progress {
    /// Nothing for others to do.
    Done,
    /// The target closed a connection that is ending, or nobody hears what is said on it.
    Gone,
}

impl TcpWire {
    pub(super) fn new(
        socket: TcpStream,
        conn: HostConn,
        tokens: TokenSpace,
        ring: &mut Ring,
    ) -> Self {
        TcpWire {
            conn,
            socket: Some(ring.add_socket(OwnedFd::from(socket))),
            tokens,
            batch: Some(TxBatch::new(
                TxBatch::DEFAULT_HEADER_BYTES,
                TxBatch::DEFAULT_SEGMENTS,
            )),
            receiving: false,
            sending: false,
        }
    }

    /// Takes a command.
    pub(super) fn submit(&mut self, sqe: &Sqe, data: &Data) -> Option<SlotId> {
        let transfer = match data {
            Data::None => Transfer::None,
            Data::Out(_, _, len) => self.conn.write_transfer(sqe, *len),
            Data::In(_, _, len) => Transfer::ToHost(*len),
        };
        self.conn.submit(sqe, transfer).ok()
    }

    /// A ring operation completed.
    pub(super) fn on_completion(
        &mut self,
        completion: Completion,
        phase: Phase,
        ring: &mut Ring,
        slots: &mut Slots,
        traffic: &AtomicBool,
        out: &mut Vec<Finished>,
    ) -> Result<Progress, QueueError> {
        match TokenSpace::local_of(completion.token) {
            RECEIVE => self.on_received(completion, phase, ring, slots, traffic, out),
            SEND => self.on_sent(completion).map(|()| Progress::Done),
            _ => Ok(Progress::Done),
        }
    }

    fn on_received(
        &mut self,
        completion: Completion,
        phase: Phase,
        ring: &mut Ring,
        slots: &mut Slots,
        traffic: &AtomicBool,
        out: &mut Vec<Finished>,
    ) -> Result<Progress, QueueError> {
        if !completion.more {
            self.receiving = false;
        }
        match phase {
            Phase::Live => {}
            Phase::Terminating(_) => {
                return Ok(match completion.result {
                    // What the target still says does not count any more.
                    Ok(1..) => {
                        self.arm(ring);
                        Progress::Done
                    }
                    // It closed the connection, as it should.
                    Ok(0) | Err(_) => Progress::Gone,
                });
            }
            Phase::Closing(_) | Phase::Closed => return Ok(Progress::Done),
        }
        match completion.result {
            Ok(0) => return Err(QueueError::ClosedByPeer),
            Ok(_) => {
                if !traffic.load(Ordering::Relaxed) {
                    traffic.store(true, Ordering::Relaxed);
                }
                if let Some(chunk) = &completion.rx {
                    self.consume(chunk, slots, out)?;
                }
            }
            Err(errno) => return Err(QueueError::Socket(errno)),
        }
        self.arm(ring);
        Ok(Progress::Done)
    }

    fn on_sent(&mut self, completion: Completion) -> Result<(), QueueError> {
        self.sending = false;
        if let Some(mut batch) = completion.batch {
            batch.clear();
            self.batch = Some(batch);
        }
        completion.result.map(drop).map_err(QueueError::Socket)
    }

    /// Asks for what the target sends.
    pub(super) fn arm(&mut self, ring: &mut Ring) {
        if let (false, Some(socket)) = (self.receiving, self.socket) {
            ring.recv_multishot(socket, self.tokens.token(RECEIVE));
            self.receiving = true;
        }
    }

    /// Walks over received bytes.
    pub(super) fn consume(
        &mut self,
        mut bytes: &[u8],
        slots: &mut Slots,
        out: &mut Vec<Finished>,
    ) -> Result<(), QueueError> {
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
                    }) = slots.get(slot)
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
                    if let Some(done) = slots.take(slot) {
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
    pub(super) fn flush(&mut self, ring: &mut Ring, slots: &Slots) {
        let Some(socket) = self.socket else {
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
            let Some(Slot {
                buf: Some(buf),
                buf_offset,
                ..
            }) = slots.get(payload.slot)
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

    /// Ends the connection; what is in flight comes back.
    pub(super) fn shut(&mut self, ring: &mut Ring) {
        if let Some(socket) = self.socket {
            // An error means that the connection is down already.
            let _: io::Result<()> = ring.shutdown(socket);
        }
    }

    /// Closes the socket if nothing is in flight on it. Whether it is closed.
    pub(super) fn close(&mut self, ring: &mut Ring) -> bool {
        if self.receiving || self.sending {
            return false;
        }
        if let Some(socket) = self.socket.take() {
            // The socket lingers for 0 s: closing it resets the connection and drops what was not sent yet.
            drop(ring.remove_socket(socket));
        }
        true
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
