//! What goes back to a client: one batch in flight, another being filled.

use std::mem;

use nvmf_io::{Ring, SockId, Token, TxBatch};
use zerocopy::IntoBytes;

use super::PART_BYTES;
use super::negotiation::MAX_ANSWER_BYTES;
use super::open::OpenRequest;
use super::wire::{NbdError, SIMPLE_REPLY_MAGIC, SimpleReply};

/// What a connection may have open.
pub(super) struct Limits {
    /// Requests whose replies have not left.
    pub depth: u16,
    /// Buffers that it may hold at once: at least those of the longest request.
    pub max_memory_bytes: u32,
}

/// See the [module](self).
pub(super) struct Replies {
    filling: Box<TxBatch>,
    spare: Option<Box<TxBatch>>,
    in_flight: bool,
    /// Of the batch being filled, and of the one in flight.
    filled: Tally,
    sent: Tally,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    requests: u32,
    memory_bytes: u32,
}

impl Replies {
    /// With room for the replies to all open requests and an answer to an option in each batch.
    pub fn new(limits: &Limits) -> Self {
        let depth = usize::from(limits.depth);
        let header_bytes = depth * size_of::<SimpleReply>() + MAX_ANSWER_BYTES;
        // The answer; header and payload of each reply; the other parts of long payloads.
        let segments = 1 + depth * 2 + (limits.max_memory_bytes / PART_BYTES) as usize;
        let batch = || TxBatch::new(header_bytes, segments);
        Replies {
            filling: batch(),
            spare: Some(batch()),
            in_flight: false,
            filled: Tally::default(),
            sent: Tally::default(),
        }
    }

    /// Requests whose replies have not left.
    pub fn open(&self) -> u32 {
        self.filled.requests + self.sent.requests
    }

    pub fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    pub fn is_idle(&self) -> bool {
        !self.in_flight && self.filling.is_empty()
    }

    pub fn fits_answer(&self) -> bool {
        self.filling.fits(MAX_ANSWER_BYTES, 1)
    }

    /// Part of the negotiation; it [fits](Self::fits_answer).
    pub fn push_answer(&mut self, answer: &[u8]) {
        let pushed = self.filling.push_header(answer);
        debug_assert!(pushed.is_ok(), "there is room for an answer");
    }

    /// The reply to a request that is done. Returns what its buffers took of the pool if they do not wait to be sent.
    pub fn push(&mut self, request: &OpenRequest) -> u32 {
        self.push_header(request.cookie, request.result);
        let memory_bytes = request.memory_bytes();
        if request.result.is_err() {
            return memory_bytes;
        }
        for buf in request.bufs() {
            let pushed = self.filling.push_payload(buf, 0..buf.len());
            debug_assert!(pushed.is_ok(), "there is room for all open requests");
        }
        self.filled.memory_bytes += memory_bytes;
        0
    }

    /// The reply to a request that was never begun.
    pub fn refuse(&mut self, cookie: u64, error: NbdError) {
        self.push_header(cookie, Err(error));
    }

    fn push_header(&mut self, cookie: u64, result: Result<(), NbdError>) {
        let header = SimpleReply {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: result.err().map_or(0, |NbdError(error)| error).into(),
            cookie: cookie.into(),
        };
        self.filled.requests += 1;
        let pushed = self.filling.push_header(header.as_bytes());
        debug_assert!(pushed.is_ok(), "there is room for all open requests");
    }

    /// Sends what there is, if nothing is being sent.
    pub fn send(&mut self, socket: SockId, token: Token, ring: &mut Ring) {
        if self.in_flight || self.filling.is_empty() {
            return;
        }
        let Some(spare) = self.spare.take() else {
            return;
        };
        let batch = mem::replace(&mut self.filling, spare);
        self.sent = mem::take(&mut self.filled);
        self.in_flight = true;
        ring.send(socket, batch, token);
    }

    /// A batch came back; returns how much memory it held.
    pub fn sent(&mut self, batch: Option<Box<TxBatch>>) -> u32 {
        self.in_flight = false;
        if let Some(mut batch) = batch {
            batch.clear();
            self.spare = Some(batch);
        }
        mem::take(&mut self.sent).memory_bytes
    }
}
