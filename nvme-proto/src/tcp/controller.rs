//! A queue's connection, the controller's side.
//!
//! Decoder, [`ControllerQueue`] and encoder put together: command capsules and H2CData become events for the driver, what the queue
//! wants done becomes R2T, C2HData and response capsules. Serves admin and I/O queues alike. Built after Connect was received, see
//! [`ControllerHandshake`](super::ControllerHandshake).
//!
//! The driver's part: keep calling [`ControllerConn::receive`] with the rest of the input until [`Received::NeedMore`]; give a
//! buffer to commands that move data; complete every command; send what [`ControllerConn::poll_transmit`] gives, in that order. After
//! an error, or when the socket ends, call [`ControllerConn::close`]; the connection is quiet once [`ControllerConn::is_idle`].

use super::data_pointer;
use super::decoder::{Ahead, Event, Header, PduDecoder};
use super::encoder::{Encoder, Transfer as TransferFields};
use super::params::TcpParams;
use super::pdu::{CapsuleCmd, Fes, PduFlags, PduType, TermReqHeader, TransferHeader};
use super::termination::Life;
use super::{Pending, TxHeader, TxPayload, TxPdu};
use crate::digest::Crc;
use crate::queue::controller::{
    AbortOutcome, Action, ControllerQueue, ControllerQueueConfig, Landed, Stage,
};
use crate::queue::{QueueLimits, SlotId, Transfer};
use crate::violation::Violation;
use crate::wire::{Cid, Cqe, Sqe, Status};
use core::ops::Range;
use zerocopy::FromBytes;

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// All input is used up.
    NeedMore,
    /// A command, see [`ControllerConn::command`] and [`ControllerConn::transfer`]. With [`Transfer::InCapsule`] its payload comes
    /// next; with [`Transfer::FromHost`] it waits for [`ControllerConn::request_data`]; otherwise it can be executed.
    Command {
        /// Its slot, until it is completed.
        slot: SlotId,
    },
    /// A command that breaks a rule of the transport. It is answered already; nothing is left to do but to count it.
    Refused {
        /// The command's identifier.
        cid: Cid,
        /// The rule.
        violation: Violation,
    },
    /// Data of a command.
    Payload {
        /// Whose buffer.
        slot: SlotId,
        /// Where in it, in bytes.
        offset: u32,
        /// The range of the input that holds them.
        range: Range<usize>,
    },
    /// All data of the command are there: it can be executed.
    DataReady {
        /// The command's slot.
        slot: SlotId,
    },
    /// Data of the command were damaged on the way: complete it with [`Status::TRANSIENT_TRANSPORT_ERROR`].
    DataDigestError {
        /// The command's slot.
        slot: SlotId,
    },
    /// The host terminates the connection: close it.
    TermReq {
        /// Fatal Error Status.
        fes: Fes,
        /// Fatal Error Information.
        fei: u32,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct ControllerConn {
    decoder: PduDecoder,
    core: Core,
}

/// All but the decoder, which stays borrowed while a header of its is looked at.
#[derive(Debug)]
struct Core {
    queue: ControllerQueue,
    encoder: Encoder,
    limits: QueueLimits,
    max_h2c_data_bytes: u32,
    /// Whom the payload in progress belongs to; `None` outside of payload and for that of a termination request.
    current: Option<SlotId>,
    /// The response to Connect.
    connect_response: Option<Cqe>,
    life: Life,
}

impl ControllerConn {
    /// A connection on which Connect was received. Allocates all it will ever need.
    pub fn new(params: TcpParams, limits: QueueLimits) -> Self {
        let queue = ControllerQueue::new(ControllerQueueConfig {
            depth: limits.depth,
            flow_control: limits.flow_control,
            fetch_window_bytes: limits.r2t_window_bytes,
            max_fetches: params.max_r2t,
            elide_success: limits.success_flag && !limits.flow_control,
        });
        Self {
            decoder: PduDecoder::for_controller(&params),
            core: Core {
                queue,
                encoder: Encoder::new(&params),
                limits,
                max_h2c_data_bytes: params.max_h2c_data_bytes,
                current: None,
                connect_response: None,
                life: Life::Live,
            },
        }
    }

    /// Answers the Connect that led to this connection; `result` is DW0 (the CNTLID). Its response goes out before all others.
    pub fn accept_connect(&mut self, cid: Cid, result: u32) {
        self.core.connect_response = Some(self.core.queue.connect_response(cid, result));
    }

    /// The next event in `input`, and how many bytes of it are done with. To be called again with the rest until
    /// [`Received::NeedMore`], which always means that everything was used.
    ///
    /// On an error the connection is over: `poll_transmit` gives the termination request, if one is due, and nothing else; what
    /// comes in is thrown away. Call [`ControllerConn::close`].
    #[inline]
    pub fn receive(&mut self, input: &[u8]) -> Result<(usize, Received), Violation> {
        if !self.core.life.is_live() {
            return Ok((input.len(), Received::NeedMore));
        }
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let (taken, received) = match self.decoder.next(rest) {
                Ok((taken, event)) => {
                    let received = match event {
                        Event::NeedMore => Some(Received::NeedMore),
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

    /// Where the next bytes of the stream belong, when they are payload that the driver wants: it may then receive up to `len` of
    /// them straight into the slot's buffer and report that with [`ControllerConn::payload_received`].
    #[inline]
    pub fn pending_payload(&self) -> Option<Pending> {
        let (len, crc) = self.decoder.pending()?;
        let slot = self.core.current?;
        let offset = self.core.queue.payload_offset(slot)?;
        Some(Pending {
            slot,
            offset,
            len,
            crc,
        })
    }

    /// What the next bytes of the stream are, as far as that is certain. A driver that receives no more at a time puts all payload of
    /// [`ControllerConn::pending_payload`] straight into its place.
    #[inline]
    pub fn ahead(&self) -> Ahead {
        self.decoder.ahead()
    }

    /// The driver received `bytes` (at most [`Pending::len`]) past [`ControllerConn::receive`]. `crc` is [`Pending::crc`] extended by
    /// them. Valid also when the command was completed in between: the bytes are then thrown away.
    pub fn payload_received(&mut self, bytes: u32, crc: Option<Crc>) {
        if let Some(slot) = self.core.current
            && self.core.life.is_live()
        {
            self.decoder.payload_received(bytes, crc);
            self.core.queue.payload_arrived(slot, bytes);
        }
    }

    /// The queue: to look at commands and to complete them.
    #[inline]
    pub fn queue(&self) -> &ControllerQueue {
        &self.core.queue
    }

    /// The queue, to change.
    #[inline]
    pub fn queue_mut(&mut self) -> &mut ControllerQueue {
        &mut self.core.queue
    }

    /// The command in a slot.
    #[inline]
    pub fn command(&self, slot: SlotId) -> &Sqe {
        self.core.queue.command(slot)
    }

    /// The data that the command in a slot moves.
    #[inline]
    pub fn transfer(&self, slot: SlotId) -> Transfer {
        self.core.queue.transfer(slot)
    }

    /// The driver has a buffer for the data of a command with [`Transfer::FromHost`]: R2Ts go out, window by window.
    #[inline]
    pub fn request_data(&mut self, slot: SlotId) {
        self.core.queue.request_data(slot);
    }

    /// Completes a command without data for the host; `result` is DW0 and DW1. If its payload is still arriving, that is thrown away
    /// and the response waits for its end.
    #[inline]
    pub fn complete(&mut self, slot: SlotId, status: Status, result: u64) {
        self.core.queue.complete(slot, status, result);
    }

    /// Completes a command successfully; the first `bytes` of its buffer go to the host.
    #[inline]
    pub fn complete_with_data(&mut self, slot: SlotId, bytes: u32, result: u64) {
        self.core.queue.complete_with_data(slot, bytes, result);
    }

    /// The next PDU to send; its header is written to `out`. `None` when there is nothing to send.
    #[inline]
    pub fn poll_transmit(&mut self, out: &mut TxHeader) -> Option<TxPdu> {
        let core = &mut self.core;
        if core.connect_response.is_some() || !core.life.is_live() {
            return core.rare_transmit(out);
        }
        let encoder = &core.encoder;
        Some(match core.queue.poll()? {
            Action::Fetch {
                slot,
                cid,
                offset,
                bytes,
            } => {
                let fields = TransferFields {
                    cccid: cid,
                    ttag: slot.0,
                    offset,
                    bytes,
                };
                TxPdu {
                    header_bytes: encoder.r2t(out, fields),
                    payload: None,
                    finishes: None,
                }
            }
            Action::Send {
                slot,
                cid,
                bytes,
                elided,
            } => {
                let fields = TransferFields {
                    cccid: cid,
                    ttag: 0,
                    offset: 0,
                    bytes,
                };
                let flags = if elided {
                    PduFlags::LAST.union(PduFlags::SUCCESS)
                } else {
                    PduFlags::LAST
                };
                TxPdu {
                    header_bytes: encoder.data(out, PduType::C2H_DATA, flags, fields),
                    payload: Some(TxPayload {
                        slot,
                        offset: 0,
                        len: bytes,
                        digest: encoder.data_digest,
                    }),
                    finishes: elided.then_some(slot),
                }
            }
            Action::Respond { slot, cqe } => TxPdu {
                header_bytes: encoder.response(out, cqe),
                payload: None,
                finishes: Some(slot),
            },
        })
    }

    /// Whether the data of reads go out with a digest.
    #[inline]
    pub fn sends_data_digests(&self) -> bool {
        self.core.encoder.data_digest
    }

    /// Whether [`ControllerConn::poll_transmit`] may have something to send.
    #[inline]
    pub fn wants_transmit(&self) -> bool {
        self.core.queue.has_actions()
            || self.core.connect_response.is_some()
            || self.core.life.has_pdu()
    }

    /// What Abort of `cid` can do. A command that waits for data is removed by completing it with [`Status::ABORT_REQUESTED`].
    pub fn abort(&self, cid: Cid) -> AbortOutcome {
        self.core.queue.abort(cid)
    }

    /// No command is taken or answered any more. `released` is told each slot that ends now, so that its buffer can go; those being
    /// executed stay until the driver completes them. A termination request that is due can still be sent.
    pub fn close(&mut self, released: impl FnMut(SlotId)) {
        self.core.life.close();
        self.core.connect_response = None;
        self.core.current = None;
        self.core.queue.close(released);
    }

    /// Whether a termination request was or will be sent; the peer is expected to close within
    /// [`TERMINATION_TIMEOUT_MS`](super::TERMINATION_TIMEOUT_MS).
    pub fn is_terminating(&self) -> bool {
        self.core.life.is_terminating()
    }

    /// The open commands and who has them.
    pub fn live_slots(&self) -> impl Iterator<Item = (SlotId, Stage)> + '_ {
        self.core.queue.live_slots()
    }

    /// How many commands are open.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.core.queue.in_flight()
    }

    /// No command is open.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0
    }
}

impl Core {
    #[inline]
    fn header(&mut self, header: &Header<'_>) -> Result<Option<Received>, Violation> {
        let result = match header.pdu_type {
            PduType::CAPSULE_CMD => self.command(header),
            PduType::H2C_DATA => self.h2c_data(header),
            _ => Ok(self.term_req(header)),
        };
        result.map_err(|violation| self.fail(violation, header.bytes))
    }

    #[inline]
    fn command(&mut self, header: &Header<'_>) -> Result<Option<Received>, Violation> {
        let Ok(CapsuleCmd { sqe, .. }) = CapsuleCmd::ref_from_bytes(header.bytes) else {
            return Ok(None);
        };
        // The host was told how much it may put into a capsule. Beyond that there is no telling what else it got wrong.
        let limit =
            data_pointer::in_capsule_limit(sqe, self.limits.in_capsule_bytes, self.limits.admin);
        if header.data_bytes > limit {
            return Err(Violation::InCapsuleLimit {
                bytes: header.data_bytes,
                limit,
            });
        }
        let (slot, cid_is_new) = self.queue.admit(sqe)?;
        let transfer = if cid_is_new {
            data_pointer::transfer(sqe, header.data_bytes, &self.limits)
        } else {
            Err(Violation::CidInUse(sqe.cid()))
        };
        self.current = (header.data_bytes > 0).then_some(slot);
        match transfer {
            Ok(transfer) => {
                self.queue.begin(slot, transfer);
                if header.data_bytes > 0 {
                    self.queue.payload_begins(slot);
                }
                Ok(Some(Received::Command { slot }))
            }
            Err(violation) => {
                let status = violation.status().unwrap_or(Status::INTERNAL_ERROR);
                self.queue.refuse(slot, status, header.data_bytes);
                Ok(Some(Received::Refused {
                    cid: sqe.cid(),
                    violation,
                }))
            }
        }
    }

    #[inline]
    fn h2c_data(&mut self, header: &Header<'_>) -> Result<Option<Received>, Violation> {
        let Ok(data) = TransferHeader::ref_from_bytes(header.bytes) else {
            return Ok(None);
        };
        let (ttag, cccid) = (data.ttag.get(), Cid(data.cccid.get()));
        let (offset, length) = (data.offset.get(), data.length.get());
        // The tag is ours: a slot with an open R2T. Whatever else it may be (0, out of range, of a command that has ended), it is wrong.
        let open = self
            .queue
            .open_fetch(ttag)
            .ok_or(Violation::TransferTag(ttag))?;
        // The CID is the host's: it has to be the one that the R2T named.
        if cccid != open.cid {
            return Err(Violation::TransferCid {
                ttag,
                cccid,
                expected: open.cid,
            });
        }
        if length > self.max_h2c_data_bytes {
            return Err(Violation::TransferLimit {
                length,
                limit: self.max_h2c_data_bytes,
            });
        }
        // In order, without gaps, inside the R2T.
        if offset != open.next {
            return Err(Violation::TransferOffset {
                offset,
                expected: open.next,
            });
        }
        let left = open.end - open.next;
        if length > left {
            return Err(Violation::TransferRange {
                offset,
                length,
                end: open.end,
            });
        }
        let last = data.common.flags().contains(PduFlags::LAST);
        if last != (length == left) {
            return Err(Violation::LastFlag);
        }
        let slot = SlotId(ttag);
        self.queue.payload_begins(slot);
        self.current = Some(slot);
        Ok(None)
    }

    #[cold]
    fn term_req(&mut self, header: &Header<'_>) -> Option<Received> {
        let term = TermReqHeader::ref_from_bytes(header.bytes).ok()?;
        self.life.close();
        self.queue.stop();
        self.current = None;
        Some(Received::TermReq {
            fes: Fes(term.fes.get()),
            fei: term.fei.get(),
        })
    }

    #[inline]
    fn payload(&mut self, range: Range<usize>) -> Option<Received> {
        let slot = self.current?;
        let offset = self.queue.payload_offset(slot);
        self.queue.payload_arrived(slot, range.len() as u32);
        offset.map(|offset| Received::Payload {
            slot,
            offset,
            range,
        })
    }

    #[inline]
    fn end(&mut self, digest_ok: bool) -> Option<Received> {
        let slot = self.current.take()?;
        match self.queue.payload_ends(slot, digest_ok) {
            Landed::Nothing => None,
            Landed::Ready => Some(Received::DataReady { slot }),
            Landed::Damaged => Some(Received::DataDigestError { slot }),
        }
    }

    #[cold]
    fn fail(&mut self, violation: Violation, header: &[u8]) -> Violation {
        self.life.end(PduType::C2H_TERM_REQ, violation, header);
        self.queue.stop();
        self.current = None;
        violation
    }

    #[cold]
    fn rare_transmit(&mut self, out: &mut TxHeader) -> Option<TxPdu> {
        let header_bytes = match self.connect_response.take() {
            Some(cqe) if self.life.is_live() => self.encoder.response(out, cqe),
            _ => self.life.poll_transmit(out)?,
        };
        Some(TxPdu {
            header_bytes,
            payload: None,
            finishes: None,
        })
    }
}
