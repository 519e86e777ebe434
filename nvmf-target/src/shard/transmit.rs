//! Sending: one vectored send in flight for each connection, filled from what the protocol wants to say.
//!
//! A batch is bounded, and the next one is made only when the last is sent. Until then responses stay in the protocol's queue and data in their
//! slots, of which there are no more than the queue is deep: a host that does not read costs no more than that.

use nvme_proto::digest::{Crc, DIGEST_BYTES};
use nvme_proto::tcp::{TX_HEADER_BYTES, TxPayload};
use nvmf_io::{Errno, TxBatch};

use super::context::Context;
use super::lifecycle::Life;
use super::message::CloseReason;
use super::queue::Queue;
use super::slot::Phase;
use super::token::Purpose;

/// A batch is closed when it has so many bytes: enough to fill a socket buffer, not so much that a response waits long behind data.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Segments that one PDU needs at most: a header, two pieces of payload (data of nothing may be longer than the zero buffer), a digest.
const PDU_SEGMENTS: usize = 4;

/// The sending half of a connection.
#[derive(Debug)]
pub(super) struct Tx {
    /// Here unless it is in flight.
    batch: Option<Box<TxBatch>>,
    /// The batch in flight has data buffers.
    holds_buffers: bool,
}

impl Tx {
    pub(super) fn new() -> Self {
        let batch = TxBatch::new(TxBatch::DEFAULT_HEADER_BYTES, TxBatch::DEFAULT_SEGMENTS);
        Self {
            batch: Some(batch),
            holds_buffers: false,
        }
    }

    /// What is in flight holds data buffers, which the host has to take before others get them.
    pub(super) fn holds_buffers(&self) -> bool {
        self.holds_buffers
    }

    /// Nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.batch.is_some()
    }
}

impl Queue {
    /// Sends what there is to send, unless a send is in flight.
    pub(super) fn send(&mut self, cx: &mut Context) {
        let Some(mut batch) = self.tcp().tx.batch.take() else {
            return;
        };
        if let Life::Closing = self.life {
            self.tcp().tx.batch = Some(batch);
            return;
        }
        while batch.bytes() < MAX_BATCH_BYTES
            && batch.fits(TX_HEADER_BYTES + DIGEST_BYTES, PDU_SEGMENTS)
        {
            let Some(pdu) = self.tcp().conn.poll_transmit(&mut cx.header) else {
                break;
            };
            let mut pushed = batch.push_header(&cx.header[..pdu.header_bytes.into()]);
            if let Some(payload) = pdu.payload {
                pushed = pushed.and_then(|()| self.push_payload(cx, &mut batch, payload));
            }
            debug_assert!(pushed.is_ok(), "there was room for a PDU");
            if pushed.is_err() {
                // A part of a PDU must not go out.
                tracing::error!(queue = %self.qid, "a PDU does not fit its batch; the connection is closed");
                batch.clear();
                self.tcp().tx.batch = Some(batch);
                return self.close(
                    cx,
                    CloseReason::Socket("internal error while sending".into()),
                );
            }
        }
        if batch.is_empty() {
            self.tcp().tx.batch = Some(batch);
            self.drained(cx);
        } else {
            let token = Purpose::Send(self.key).token();
            cx.ring.send(self.tcp().socket, batch, token);
        }
    }

    fn push_payload(
        &mut self,
        cx: &mut Context,
        batch: &mut TxBatch,
        payload: TxPayload,
    ) -> Result<(), nvmf_io::tx::BatchFull> {
        let TxPayload {
            slot,
            offset,
            len,
            digest,
        } = payload;
        let state = &mut self.slots[slot];
        let mut crc = Crc::EMPTY;
        let mut holds = false;
        match &state.data {
            Some(data) => {
                let range = offset..offset + len;
                batch.push_payload(data, range.clone())?;
                holds = true;
                if digest {
                    crc = match state.digest {
                        Some(known) if range == (0..data.len()) => known,
                        _ => Crc(data.crc32c(range, crc.0)),
                    };
                }
            }
            None => {
                // Zeroes that come from nowhere.
                let zeroes = cx.lent.zeroes();
                let mut left = len;
                while left > 0 {
                    let piece = 0..left.min(zeroes.len());
                    left -= piece.end;
                    batch.push_payload(zeroes, piece.clone())?;
                    if digest {
                        crc = Crc(zeroes.crc32c(piece, crc.0));
                    }
                }
            }
        }
        if digest {
            batch.push_trailer(&crc.to_wire())?;
        }
        // All data of a command go in one PDU; from here on the batch keeps them.
        state.phase = Phase::Free;
        self.release_buffer(cx, slot);
        self.tcp().tx.holds_buffers |= holds;
        Ok(())
    }

    /// A send ended.
    pub(super) fn sent(
        &mut self,
        cx: &mut Context,
        mut batch: Box<TxBatch>,
        result: Result<u32, Errno>,
    ) {
        let all = batch.bytes();
        batch.clear();
        cx.buffers_freed = true;
        self.tcp().tx.batch = Some(batch);
        self.tcp().tx.holds_buffers = false;
        self.progressed(cx);
        match result {
            Ok(sent) if sent as usize == all => {
                if self.tcp().conn.wants_transmit() {
                    self.mark_dirty(cx);
                }
                self.drained(cx);
            }
            Ok(_) => self.close(cx, CloseReason::HostClosed),
            Err(Errno::PIPE | Errno::CONNRESET) => self.close(cx, CloseReason::HostClosed),
            Err(errno) => self.close(cx, CloseReason::Socket(format!("sending failed: {errno}"))),
        }
    }
}
