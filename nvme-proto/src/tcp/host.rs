//! A queue's connection, the host's side.
//!
//! Decoder, [`HostQueue`] and encoder put together. Built right after ICResp: Connect is the first command that is submitted. The
//! driver's part: submit commands; send what [`HostConn::poll_transmit`] gives, in that order; keep calling [`HostConn::receive`] with
//! the rest of the input until [`HostReceived::NeedMore`]. A slot's buffer is the driver's and stays untouched by others until
//! [`HostReceived::Complete`]. After an error, or when the socket ends, call [`HostConn::close`], which names the commands that are
//! still open, so that they can be submitted again elsewhere.

use super::data_pointer;
use super::decoder::{Event, Header, PduDecoder};
use super::encoder::{Encoder, Transfer as TransferFields};
use super::handshake::MAX_OPEN_R2TS;
use super::params::TcpParams;
use super::pdu::{CapsuleResp, Fes, PduFlags, PduType, TermReqHeader, TransferHeader};
use super::termination::Life;
use super::{Pending, TxHeader, TxPayload, TxPdu};
use crate::digest::Crc;
use crate::queue::host::{HostQueue, QueueFull};
use crate::queue::slot_ring::SlotRing;
use crate::queue::{SlotId, Transfer};
use crate::violation::Violation;
use crate::wire::{Cid, Cqe, SglDescriptor, Sqe, Status};
use core::ops::Range;
use thiserror::Error;
use zerocopy::FromBytes;

/// What a host's connection is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimits {
    /// Entries of the submission queue (SQSIZE + 1), 2 to [`MAX_QUEUE_DEPTH`](crate::queue::MAX_QUEUE_DEPTH); clamped to that.
    pub depth: u16,
    /// Most in-capsule data of I/O commands: IOCCSZ * 16 - 64. 0 on the admin queue before Identify, and where there is none.
    pub in_capsule_bytes: u32,
    /// Whether SQHD counts: `false` when Connect asks to disable SQ flow control.
    pub flow_control: bool,
    /// An admin queue: 8192 bytes in a capsule, whatever the limit says.
    pub admin: bool,
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// No more commands can be open; try again after a completion.
    #[error(transparent)]
    QueueFull(#[from] QueueFull),
    /// The controller takes less data in a capsule: use [`Transfer::FromHost`].
    #[error("{bytes} bytes of in-capsule data, the controller takes {limit}")]
    InCapsuleTooLong {
        /// Bytes asked for.
        bytes: u32,
        /// Bytes allowed.
        limit: u32,
    },
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
}

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostReceived {
    /// All input is used up.
    NeedMore,
    /// Data of a command.
    Payload {
        /// Whose buffer.
        slot: SlotId,
        /// Where in it, in bytes.
        offset: u32,
        /// The range of the input that holds them.
        range: Range<usize>,
    },
    /// A command ended; its slot is free.
    Complete {
        /// The slot that it had.
        slot: SlotId,
        /// Its completion. Made up, with success and no result, where the controller told success with the data.
        cqe: Cqe,
        /// Bytes of its data that moved. Fewer than it was submitted with is for the driver to judge; a read that succeeded with
        /// fewer did not fill its buffer.
        data_bytes: u32,
        /// Data for the host were damaged on the way, whatever the status says.
        digest_error: bool,
    },
    /// The controller terminates the connection: close it.
    TermReq {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
}

/// An R2T, as far as it is not served yet.
#[derive(Clone, Copy, Debug)]
struct Window {
    ttag: u16,
    next: u32,
    end: u32,
}

/// What TCP adds to a slot.
#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    /// In the ring of slots with something to send.
    queued: bool,
    /// C2HData with LAST_PDU came.
    last_seen: bool,
    /// A data digest was wrong.
    damaged: bool,
    /// First open R2T in the slot's part of `windows`, and how many are open.
    first_window: u16,
    open_windows: u16,
    /// End of what R2Ts asked for.
    requested: u32,
}

/// Payload in progress.
#[derive(Clone, Copy, Debug)]
struct Current {
    slot: SlotId,
    flags: PduFlags,
}

/// See the module's text.
#[derive(Debug)]
pub struct HostConn {
    decoder: PduDecoder,
    core: Core,
}

/// All but the decoder, which stays borrowed while a header of its is looked at.
#[derive(Debug)]
struct Core {
    queue: HostQueue,
    out: SlotRing,
    slots: Box<[SlotState]>,
    /// `max_r2t` for each slot.
    windows: Box<[Window]>,
    max_r2t: u16,
    max_h2c_data_bytes: u32,
    encoder: Encoder,
    limits: HostLimits,
    current: Option<Current>,
    life: Life,
}

impl HostConn {
    /// A connection after ICResp. Allocates all it will ever need.
    pub fn new(params: TcpParams, limits: HostLimits) -> Self {
        let queue = HostQueue::new(limits.depth, limits.flow_control);
        let slots = queue.capacity();
        let max_r2t = params.max_r2t.clamp(1, u32::from(MAX_OPEN_R2TS)) as u16;
        let no_window = Window {
            ttag: 0,
            next: 0,
            end: 0,
        };
        Self {
            decoder: PduDecoder::for_host(&params),
            core: Core {
                queue,
                out: SlotRing::new(slots as u16),
                slots: vec![SlotState::default(); slots].into(),
                windows: vec![no_window; slots * usize::from(max_r2t)].into(),
                max_r2t,
                max_h2c_data_bytes: params.max_h2c_data_bytes,
                encoder: Encoder::new(&params),
                limits,
                current: None,
                life: Life::Live,
            },
        }
    }

    /// How to send `bytes` of data with a command: in its capsule where that is allowed, else when the controller asks.
    #[inline]
    pub fn write_transfer(&self, sqe: &Sqe, bytes: u32) -> Transfer {
        match bytes {
            0 => Transfer::None,
            _ if bytes <= self.core.in_capsule_limit(sqe) => Transfer::InCapsule(bytes),
            _ => Transfer::FromHost(bytes),
        }
    }

    /// Takes a command. CID, PSDT and the data pointer are filled in here.
    #[inline]
    pub fn submit(&mut self, sqe: &Sqe, transfer: Transfer) -> Result<SlotId, SubmitError> {
        let core = &mut self.core;
        if !core.life.is_live() {
            return Err(SubmitError::Closed);
        }
        let dptr = match transfer {
            Transfer::InCapsule(bytes) => {
                let limit = core.in_capsule_limit(sqe);
                if bytes > limit {
                    return Err(SubmitError::InCapsuleTooLong { bytes, limit });
                }
                SglDescriptor::in_capsule(bytes)
            }
            Transfer::None | Transfer::FromHost(_) | Transfer::ToHost(_) => {
                SglDescriptor::transport(transfer.bytes())
            }
        };
        let slot = core.queue.submit(sqe, dptr, transfer)?;
        let state = &mut core.slots[slot.index()];
        // An entry that the slot's previous command left in the ring serves this one.
        let queued = core::mem::replace(
            state,
            SlotState {
                queued: true,
                ..SlotState::default()
            },
        )
        .queued;
        if !queued {
            core.out.push(slot);
        }
        Ok(slot)
    }

    /// The slot that the next command gets, if there is one: for data that lie in a place of the slot's.
    #[inline]
    pub fn next_slot(&self) -> Option<SlotId> {
        self.core.queue.next_slot()
    }

    /// The command in a slot as it is sent, its CID included.
    #[inline]
    pub fn command(&self, slot: SlotId) -> &Sqe {
        self.core.queue.command(slot)
    }

    /// The data that the command in a slot moves.
    #[inline]
    pub fn transfer(&self, slot: SlotId) -> Transfer {
        self.core.queue.transfer(slot)
    }

    /// The next event in `input`, and how many bytes of it are done with. To be called again with the rest until
    /// [`HostReceived::NeedMore`], which always means that everything was used.
    ///
    /// On an error the connection is over: `poll_transmit` gives the termination request, if one is due, and nothing else; what
    /// comes in is thrown away. Call [`HostConn::close`].
    #[inline]
    pub fn receive(&mut self, input: &[u8]) -> Result<(usize, HostReceived), Violation> {
        if !self.core.life.is_live() {
            return Ok((input.len(), HostReceived::NeedMore));
        }
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let (taken, received) = match self.decoder.next(rest) {
                Ok((taken, event)) => {
                    let received = match event {
                        Event::NeedMore => Some(HostReceived::NeedMore),
                        Event::Header(header) => self.core.header(&header)?,
                        Event::Payload(range) => {
                            self.core.payload(at + range.start..at + range.end)
                        }
                        Event::End { digest_ok } => self.core.end(digest_ok),
                    };
                    (taken, received)
                }
                Err(fault) => return Err(self.core.fail(fault.violation, fault.header)),
            };
            at += taken;
            if let Some(received) = received {
                return Ok((at, received));
            }
        }
    }

    /// Where the next bytes of the stream belong, when they are payload: the driver may then receive up to `len` of them straight
    /// into the slot's buffer and report that with [`HostConn::payload_received`].
    #[inline]
    pub fn pending_payload(&self) -> Option<Pending> {
        let (len, crc) = self.decoder.pending()?;
        let slot = self.core.current?.slot;
        Some(Pending {
            slot,
            offset: self.core.queue.moved(slot),
            len,
            crc,
        })
    }

    /// The driver received `bytes` (at most [`Pending::len`]) past [`HostConn::receive`]. `crc` is [`Pending::crc`] extended by them.
    pub fn payload_received(&mut self, bytes: u32, crc: Option<Crc>) {
        if let Some(current) = self.core.current
            && self.core.life.is_live()
        {
            self.decoder.payload_received(bytes, crc);
            self.core.queue.add_moved(current.slot, bytes);
        }
    }

    /// The next PDU to send; its header is written to `out`. `None` when there is nothing to send.
    #[inline]
    pub fn poll_transmit(&mut self, out: &mut TxHeader) -> Option<TxPdu> {
        if !self.core.life.is_live() {
            let header_bytes = self.core.life.poll_transmit(out)?;
            return Some(TxPdu {
                header_bytes,
                payload: None,
                finishes: None,
            });
        }
        self.core.transmit(out)
    }

    /// Whether [`HostConn::poll_transmit`] may have something to send.
    #[inline]
    pub fn wants_transmit(&self) -> bool {
        !self.core.out.is_empty() || self.core.life.has_pdu()
    }

    /// Nothing is sent or completed any more. `released` is told each command that ends unanswered, before its slot is used again.
    /// A termination request that is due can still be sent.
    pub fn close(&mut self, released: impl FnMut(SlotId)) {
        self.core.life.close();
        self.core.current = None;
        self.core.out.clear();
        self.core.queue.close(released);
    }

    /// Whether a termination request was or will be sent; the peer is expected to close within
    /// [`TERMINATION_TIMEOUT_MS`](super::TERMINATION_TIMEOUT_MS).
    pub fn is_terminating(&self) -> bool {
        self.core.life.is_terminating()
    }

    /// The open commands.
    pub fn live_slots(&self) -> impl Iterator<Item = SlotId> + '_ {
        self.core.queue.live_slots()
    }

    /// How many commands are open.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.core.queue.in_flight()
    }

    /// Most commands that can be open.
    pub fn capacity(&self) -> usize {
        self.core.queue.capacity()
    }

    /// No command is open.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0
    }
}

impl Core {
    #[inline]
    fn in_capsule_limit(&self, sqe: &Sqe) -> u32 {
        data_pointer::in_capsule_limit(sqe, self.limits.in_capsule_bytes, self.limits.admin)
    }

    #[inline]
    fn transmit(&mut self, out: &mut TxHeader) -> Option<TxPdu> {
        loop {
            let slot = self.out.pop()?;
            let state = &mut self.slots[slot.index()];
            if self.queue.is_submitted(slot) {
                state.queued = false;
                self.queue.sent(slot);
                let in_capsule = match self.queue.transfer(slot) {
                    Transfer::InCapsule(bytes) => bytes,
                    _ => 0,
                };
                self.queue.add_moved(slot, in_capsule);
                let header_bytes = self
                    .encoder
                    .command(out, self.queue.command(slot), in_capsule);
                let payload = (in_capsule > 0).then_some(TxPayload {
                    slot,
                    offset: 0,
                    len: in_capsule,
                    digest: self.encoder.data_digest,
                });
                return Some(TxPdu {
                    header_bytes,
                    payload,
                    finishes: None,
                });
            }
            if state.open_windows == 0 {
                // The command ended before all that was asked for was sent.
                state.queued = false;
                continue;
            }
            let index = slot.index() * usize::from(self.max_r2t) + usize::from(state.first_window);
            let window = &mut self.windows[index];
            let (ttag, offset) = (window.ttag, window.next);
            let bytes = (window.end - offset).min(self.max_h2c_data_bytes);
            window.next += bytes;
            let mut flags = PduFlags::empty();
            if window.next == window.end {
                flags = PduFlags::LAST;
                state.open_windows -= 1;
                state.first_window = if state.first_window + 1 == self.max_r2t {
                    0
                } else {
                    state.first_window + 1
                };
            }
            // Back to the end of the line, so that a long transfer does not keep small commands waiting.
            state.queued = state.open_windows > 0;
            if state.queued {
                self.out.push(slot);
            }
            self.queue.add_moved(slot, bytes);
            let cccid = self.queue.command(slot).cid();
            let fields = TransferFields {
                cccid,
                ttag,
                offset,
                bytes,
            };
            return Some(TxPdu {
                header_bytes: self.encoder.data(out, PduType::H2C_DATA, flags, fields),
                payload: Some(TxPayload {
                    slot,
                    offset,
                    len: bytes,
                    digest: self.encoder.data_digest,
                }),
                finishes: None,
            });
        }
    }

    #[inline]
    fn header(&mut self, header: &Header<'_>) -> Result<Option<HostReceived>, Violation> {
        let result = match header.pdu_type {
            PduType::CAPSULE_RESP => self.response(header),
            PduType::C2H_DATA => self.c2h_data(header),
            PduType::R2T => self.r2t(header),
            _ => Ok(self.term_req(header)),
        };
        result.map_err(|violation| self.fail(violation, header.bytes))
    }

    #[inline]
    fn response(&mut self, header: &Header<'_>) -> Result<Option<HostReceived>, Violation> {
        let Ok(CapsuleResp { cqe, .. }) = CapsuleResp::ref_from_bytes(header.bytes) else {
            return Ok(None);
        };
        // It has to answer a command that was sent and is not answered yet.
        let slot = self
            .queue
            .find(cqe.cid())
            .ok_or(Violation::ResponseCid(cqe.cid()))?;
        Ok(Some(self.complete(slot, *cqe, Some(cqe.sqhd.get()))))
    }

    #[inline]
    fn complete(&mut self, slot: SlotId, cqe: Cqe, sqhd: Option<u16>) -> HostReceived {
        let data_bytes = self.queue.moved(slot);
        let state = &mut self.slots[slot.index()];
        let digest_error = state.damaged;
        // What R2Ts asked for and was not handed out yet is not sent any more.
        state.open_windows = 0;
        self.queue.complete(slot, sqhd);
        HostReceived::Complete {
            slot,
            cqe,
            data_bytes,
            digest_error,
        }
    }

    #[inline]
    fn c2h_data(&mut self, header: &Header<'_>) -> Result<Option<HostReceived>, Violation> {
        let Ok(data) = TransferHeader::ref_from_bytes(header.bytes) else {
            return Ok(None);
        };
        let cccid = Cid(data.cccid.get());
        let (offset, length) = (data.offset.get(), data.length.get());
        let flags = data.common.flags();
        let slot = self.find(header.pdu_type, cccid)?;
        let Transfer::ToHost(end) = self.queue.transfer(slot) else {
            return Err(Violation::DataDirection {
                pdu_type: header.pdu_type,
                cccid,
            });
        };
        if self.slots[slot.index()].last_seen {
            return Err(Violation::DataAfterLast(cccid));
        }
        // SUCCESS takes the place of the response, so it cannot come before the end. (That it should come only where flow control is
        // off is not checked: SPDK's target sends it either way.)
        if flags.contains(PduFlags::SUCCESS) && !flags.contains(PduFlags::LAST) {
            return Err(Violation::SuccessWithoutLast);
        }
        // In order, without gaps, inside the buffer.
        let expected = self.queue.moved(slot);
        if offset != expected {
            return Err(Violation::TransferOffset { offset, expected });
        }
        if length > end - offset {
            return Err(Violation::TransferRange {
                offset,
                length,
                end,
            });
        }
        self.current = Some(Current { slot, flags });
        Ok(None)
    }

    #[inline]
    fn r2t(&mut self, header: &Header<'_>) -> Result<Option<HostReceived>, Violation> {
        let Ok(r2t) = TransferHeader::ref_from_bytes(header.bytes) else {
            return Ok(None);
        };
        let cccid = Cid(r2t.cccid.get());
        let (offset, length) = (r2t.offset.get(), r2t.length.get());
        let slot = self.find(header.pdu_type, cccid)?;
        let Transfer::FromHost(end) = self.queue.transfer(slot) else {
            return Err(Violation::DataDirection {
                pdu_type: header.pdu_type,
                cccid,
            });
        };
        let state = &mut self.slots[slot.index()];
        if state.open_windows == self.max_r2t {
            return Err(Violation::R2tLimit {
                cccid,
                limit: u32::from(self.max_r2t),
            });
        }
        if length == 0 {
            return Err(Violation::EmptyTransfer(header.pdu_type));
        }
        // R2Ts ask for the data in order, without gaps, once, and for no more than there are.
        if offset != state.requested {
            return Err(Violation::TransferOffset {
                offset,
                expected: state.requested,
            });
        }
        if length > end - offset {
            return Err(Violation::TransferRange {
                offset,
                length,
                end,
            });
        }
        state.requested += length;
        let index = (state.first_window + state.open_windows) % self.max_r2t;
        state.open_windows += 1;
        self.windows[slot.index() * usize::from(self.max_r2t) + usize::from(index)] = Window {
            ttag: r2t.ttag.get(),
            next: offset,
            end: offset + length,
        };
        if !state.queued {
            state.queued = true;
            self.out.push(slot);
        }
        Ok(None)
    }

    #[inline]
    fn find(&self, pdu_type: PduType, cccid: Cid) -> Result<SlotId, Violation> {
        self.queue
            .find(cccid)
            .ok_or(Violation::DataCid { pdu_type, cccid })
    }

    #[cold]
    fn term_req(&mut self, header: &Header<'_>) -> Option<HostReceived> {
        let term = TermReqHeader::ref_from_bytes(header.bytes).ok()?;
        self.life.close();
        self.out.clear();
        self.current = None;
        Some(HostReceived::TermReq {
            fes: Fes(term.fes.get()),
            fei: term.fei.get(),
        })
    }

    #[inline]
    fn payload(&mut self, range: Range<usize>) -> Option<HostReceived> {
        let slot = self.current?.slot;
        let offset = self.queue.moved(slot);
        self.queue.add_moved(slot, range.len() as u32);
        Some(HostReceived::Payload {
            slot,
            offset,
            range,
        })
    }

    #[inline]
    fn end(&mut self, digest_ok: bool) -> Option<HostReceived> {
        let Current { slot, flags } = self.current.take()?;
        let state = &mut self.slots[slot.index()];
        state.damaged |= !digest_ok;
        state.last_seen |= flags.contains(PduFlags::LAST);
        if !flags.contains(PduFlags::SUCCESS) {
            return None;
        }
        let cqe = Cqe::new(self.queue.command(slot).cid(), 0, Status::SUCCESS, 0);
        Some(self.complete(slot, cqe, None))
    }

    #[cold]
    fn fail(&mut self, violation: Violation, header: &[u8]) -> Violation {
        self.life.end(PduType::H2C_TERM_REQ, violation, header);
        self.out.clear();
        self.current = None;
        violation
    }
}
