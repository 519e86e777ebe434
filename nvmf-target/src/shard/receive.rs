//! Receiving: which receive is in flight, and what becomes of the bytes.
//!
//! One receive is in flight at a time for each connection, of three kinds. Capsules and small payload come through the ring's receive
//! buffers, by a multishot receive that costs nothing to renew; such payload is copied once, into the command's buffer. While large transfers are open, receives are
//! made one by one, so that the payload of a large PDU can be received straight into the command's buffer, as much as the PDU still has.
//! Changing from the first to the second cancels the multishot receive and waits for its end: what it received until then is looked at
//! first, so that no byte is overtaken.
//!
//! A turn looks at a bounded number of commands of each connection, in two passes: at the first few when they come in, at the others after every
//! connection had its first, and the answers of those that sent no more went out. The rest of the input waits for the next turn, and when too much of
//! it waits nothing more is received. So a deep queue does not hold up a shallow one, and one that cannot get on costs a few
//! receive buffers.

use std::collections::VecDeque;
use std::ops::Deref;

use nvme_proto::digest::Crc;
use nvme_proto::queue::SlotId;
use nvme_proto::tcp::controller::Received;
use nvme_proto::wire::Status;
use nvmf_io::{Buf, Completion, Errno, RxChunk};

use super::context::Context;
use super::lifecycle::Life;
use super::message::CloseReason;
use super::queue::Queue;
use super::token::Purpose;
use super::wire::{Tcp, Wire};

/// Commands of one connection that a turn handles: a whole queue of the usual depth, so that its responses go out with one send. With
/// half of that the second half waited for the first one's send.
const COMMANDS_PER_TURN: u32 = 128;

/// Commands of one connection that a turn handles before those of the others: what a connection with little to do sends at once. Each that a deep
/// queue has in the first pass is one that the shallow ones may wait for.
const COMMANDS_AT_FIRST: u32 = 2;

/// Chunks of input that may wait before receiving stops.
const MAX_BACKLOG: usize = 4;

/// Payload of at least so much is received straight into its buffer: below it, a copy costs less than another operation.
const DIRECT_BYTES: u32 = 32 << 10;

/// After so many receives without a large transfer, receives are multishot again.
const SINGLE_RECEIVES: u32 = 64;

/// Bytes that were received.
enum Input {
    /// Before the connection came to this shard.
    Early(Vec<u8>),
    /// In a receive buffer.
    Chunk(RxChunk),
}

impl Deref for Input {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Early(bytes) => bytes,
            Self::Chunk(chunk) => chunk,
        }
    }
}

/// The receive in flight.
enum Armed {
    No,
    Multishot,
    Once,
    /// Straight into a command's buffer, at this offset; the digest so far.
    Into(Buf, u32, Option<Crc>),
}

/// The receiving half of a connection.
pub(super) struct Rx {
    armed: Armed,
    /// The multishot receive was cancelled and has not ended yet.
    cancelling: bool,
    /// Input that was not looked at, and from where.
    backlog: VecDeque<(Input, usize)>,
    /// The command whose in-capsule data are next and have no buffer.
    blocked: Option<SlotId>,
    /// Receives to be made one by one from here on.
    single: u32,
    /// The turn of the last first look, and the commands that it may still handle.
    first: (u64, u32),
}

impl Rx {
    /// A connection from which `early` was received already.
    pub(super) fn new(early: Vec<u8>) -> Self {
        let mut backlog = VecDeque::with_capacity(MAX_BACKLOG + 1);
        if !early.is_empty() {
            backlog.push_back((Input::Early(early), 0));
        }
        Self {
            armed: Armed::No,
            cancelling: false,
            backlog,
            blocked: None,
            single: 0,
            first: (0, 0),
        }
    }

    /// The in-capsule data of `slot` come next and have no buffer.
    pub(super) fn block(&mut self, slot: SlotId) {
        self.blocked = Some(slot);
    }

    pub(super) fn unblock(&mut self) {
        self.blocked = None;
    }

    pub(super) fn blocked(&self) -> Option<SlotId> {
        self.blocked
    }

    /// A transfer of `len` bytes from the host into a buffer was asked for.
    pub(super) fn expect(&mut self, len: u32) {
        if len >= DIRECT_BYTES {
            self.single = SINGLE_RECEIVES;
        }
    }

    /// No receive is in flight.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.armed, Armed::No)
    }

    /// Forgets the input that was not looked at.
    pub(super) fn discard(&mut self) {
        self.backlog.clear();
        self.blocked = None;
    }
}

impl Queue {
    /// The connection, where TCP's completions are handled: they come only for queues that have one.
    pub(super) fn tcp(&mut self) -> &mut Tcp {
        match &mut self.wire {
            Wire::Tcp(tcp) => tcp,
            Wire::Rdma(_) => unreachable!("a queue over RDMA has no socket"),
        }
    }

    /// A receive into receive buffers completed.
    pub(super) fn received(&mut self, cx: &mut Context, completion: Completion) {
        if !completion.more {
            self.tcp().rx.armed = Armed::No;
            self.tcp().rx.cancelling = false;
        }
        match (completion.result, completion.rx) {
            (Ok(_), Some(chunk)) => {
                self.progressed(cx);
                self.tcp().rx.backlog.push_back((Input::Chunk(chunk), 0));
                if !self.is_ready {
                    self.first_look(cx);
                }
            }
            (Ok(_), None) => self.close(cx, CloseReason::HostClosed),
            (Err(Errno::CANCELED), _) => self.arm(cx),
            (Err(Errno::CONNRESET), _) => self.close(cx, CloseReason::HostClosed),
            (Err(errno), _) => self.close(
                cx,
                CloseReason::Socket(format!("receiving failed: {errno}")),
            ),
        }
    }

    /// A receive straight into a command's buffer completed.
    pub(super) fn received_into(&mut self, cx: &mut Context, result: Result<u32, Errno>) {
        let Armed::Into(buf, offset, crc) = std::mem::replace(&mut self.tcp().rx.armed, Armed::No)
        else {
            return;
        };
        match result {
            Ok(len) if len > 0 => {
                self.progressed(cx);
                let crc = crc.map(|crc| Crc(buf.crc32c(offset..offset + len, crc.0)));
                drop(buf);
                self.tcp().conn.payload_received(len, crc);
                // Less than asked for means that the stream ended; the next receive says so.
                self.consume(cx, &[], 0, &mut 0);
                self.arm(cx);
            }
            Ok(_) | Err(Errno::CONNRESET) => self.close(cx, CloseReason::HostClosed),
            Err(Errno::CANCELED) => self.arm(cx),
            Err(errno) => self.close(
                cx,
                CloseReason::Socket(format!("receiving failed: {errno}")),
            ),
        }
    }

    /// Looks at the first commands that came in this turn; at the others once all connections had their first.
    fn first_look(&mut self, cx: &mut Context) {
        if self.tcp().rx.first.0 != cx.turn {
            self.tcp().rx.first = (cx.turn, COMMANDS_AT_FIRST);
        }
        if self.tcp().rx.first.1 == 0 {
            return self.mark_ready(cx);
        }
        let mut budget = self.tcp().rx.first.1;
        self.look_at(cx, &mut budget);
        self.tcp().rx.first.1 = budget;
    }

    /// Looks at input, as much as a turn may, and sees to it that more comes.
    pub(super) fn look_at_input(&mut self, cx: &mut Context) {
        self.look_at(cx, &mut { COMMANDS_PER_TURN });
    }

    fn look_at(&mut self, cx: &mut Context, budget: &mut u32) {
        while self.tcp().rx.blocked.is_none()
            && let Some((input, at)) = self.tcp().rx.backlog.pop_front()
        {
            if let Some(at) = self.consume(cx, &input, at, budget) {
                self.tcp().rx.backlog.push_front((input, at));
                if self.tcp().rx.blocked.is_none() {
                    self.mark_ready(cx);
                }
                break;
            }
        }
        self.arm(cx);
    }

    /// Handles `bytes` from `at` on. Returns where it stopped when that is before their end: the budget is used up, or a command needs a buffer for
    /// what comes next.
    fn consume(
        &mut self,
        cx: &mut Context,
        bytes: &[u8],
        mut at: usize,
        budget: &mut u32,
    ) -> Option<usize> {
        loop {
            let input = &bytes[at..];
            let (taken, received) = match self.tcp().conn.receive(input) {
                Ok(received) => received,
                Err(violation) => {
                    self.violated(cx, violation);
                    return None;
                }
            };
            at += taken;
            match received {
                Received::NeedMore => break,
                Received::Command { slot } => {
                    self.command(cx, slot);
                    if !matches!(self.life, Life::Live) {
                        break;
                    }
                    *budget = budget.saturating_sub(1);
                    if self.tcp().rx.blocked.is_some() || (*budget == 0 && at < bytes.len()) {
                        return Some(at);
                    }
                }
                Received::Payload {
                    slot,
                    offset,
                    range,
                } => {
                    // Without a buffer the data go nowhere, as those of writes to the null namespace do.
                    if let Some(data) = &self.slots[slot].data {
                        data.copy_in(offset, &input[range]);
                    }
                }
                Received::DataReady { slot } => self.start(cx, slot),
                Received::DataDigestError { slot } => {
                    self.finish(cx, slot, Status::TRANSIENT_TRANSPORT_ERROR);
                }
                Received::Refused { cid, violation } => self.refused(cx, cid, violation),
                Received::TermReq { fes, fei } => {
                    self.close(
                        cx,
                        CloseReason::Terminated(format!("{fes}, information {fei:#x}")),
                    );
                    break;
                }
            }
        }
        if self.tcp().conn.wants_transmit() {
            self.mark_dirty(cx);
        }
        None
    }

    /// Sees to it that the right receive is in flight, or none while there is enough input to look at.
    pub(super) fn arm(&mut self, cx: &mut Context) {
        let stopped = match self.life {
            Life::Live => {
                self.tcp().rx.blocked.is_some() || self.tcp().rx.backlog.len() >= MAX_BACKLOG
            }
            Life::Terminating => false,
            Life::Draining => true,
            Life::Closing => return,
        };
        let key = self.key;
        let rx = &mut self.tcp().rx;
        match rx.armed {
            Armed::Multishot => {
                if (stopped || rx.single > 0) && !rx.cancelling {
                    rx.cancelling = true;
                    cx.ring.cancel(Purpose::Receive(key).token());
                }
            }
            Armed::Once | Armed::Into(..) => {}
            Armed::No if stopped || !rx.backlog.is_empty() => {}
            Armed::No => self.receive_next(cx),
        }
    }

    fn receive_next(&mut self, cx: &mut Context) {
        let Wire::Tcp(tcp) = &mut self.wire else {
            return;
        };
        if let Some(pending) = tcp.conn.pending_payload()
            && pending.len >= DIRECT_BYTES
            && let Some(data) = &self.slots[pending.slot].data
        {
            let range = pending.offset..pending.offset + pending.len;
            let token = Purpose::ReceiveInto(self.key).token();
            cx.ring.recv_into(tcp.socket, data, range, token);
            tcp.rx.armed = Armed::Into(data.clone(), pending.offset, pending.crc);
            return;
        }
        let token = Purpose::Receive(self.key).token();
        if tcp.rx.single > 0 {
            tcp.rx.single -= 1;
            cx.ring.recv_once(tcp.socket, token);
            tcp.rx.armed = Armed::Once;
        } else {
            cx.ring.recv_multishot(tcp.socket, token);
            tcp.rx.armed = Armed::Multishot;
        }
    }
}
