//! Receiving: which receive is in flight, and what becomes of the bytes.
//!
//! One receive is in flight at a time for each connection, of two kinds:
//! - Capsules come through the ring's receive buffers, by a multishot receive that costs nothing to renew. Data in a capsule are copied
//!   once, into the command's buffer, or not at all: memory takes those that lie in one piece from there.
//! - While the host owes data that it was asked for (R2T), receives are made *step by step*. Each asks for no more than what is sure to be no
//!   payload (the rest of a header, or a digest and the least header that can follow), and for the payload whose header has come, which
//!   lands straight in the command's buffer. So a transferred byte is never copied, and nothing has to be guessed: where the next
//!   payload begins is known only when its header is, and no receive goes beyond that.
//!
//! Changing from the first to the second cancels the multishot receive and waits for its end: what it received until then is looked at
//! first, so that no byte is overtaken. It is cancelled before the first R2T goes out, so it cannot have received what that asks for.
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
use nvmf_io::{Buf, Completion, Errno, RxChunk, RxScatter};

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

/// After so many receives without a transfer, receives are multishot again.
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
    /// Into a receive buffer.
    Once,
    /// Into a receive buffer, no more than what is left of payload that nobody wants.
    Unwanted,
    /// A step; the place of its payload, if it has any.
    Step(Option<Place>),
}

/// Where payload is received straight into.
struct Place {
    buf: Buf,
    offset: u32,
    /// The digest so far.
    crc: Option<Crc>,
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
    /// Commands that wait for data which the host was asked for, and that have a buffer for them.
    owed: u32,
    /// Receives to be made one by one, once nothing is owed.
    single: u32,
    /// For the steps, made when it is first needed; here unless it is in flight.
    scatter: Option<Box<RxScatter>>,
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
            owed: 0,
            single: 0,
            scatter: None,
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

    /// The host is about to be asked for data that have a buffer.
    pub(super) fn expect(&mut self) {
        self.owed += 1;
        self.single = SINGLE_RECEIVES;
    }

    /// They have come, or nobody wants them any more.
    pub(super) fn no_longer_expect(&mut self) {
        self.owed -= 1;
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

    /// A step completed.
    pub(super) fn stepped(&mut self, cx: &mut Context, completion: Completion) {
        let Armed::Step(place) = std::mem::replace(&mut self.tcp().rx.armed, Armed::No) else {
            return;
        };
        let Some(scatter) = completion.scatter else {
            return;
        };
        match completion.result {
            Ok(len) if len > 0 => {
                self.progressed(cx);
                let payload_bytes = scatter.buffer_bytes();
                if let Some(Place { buf, offset, crc }) = place {
                    let landed = offset..offset + payload_bytes;
                    let crc = crc.map(|crc| Crc(buf.crc32c(landed, crc.0)));
                    self.tcp().conn.payload_received(payload_bytes, crc);
                }
                let rest = scatter.room();
                if let Some(at) = self.consume(cx, rest, 0, &mut { u32::MAX })
                    && at < rest.len()
                {
                    // A step ends with the header of what has to wait, so this does not happen.
                    let rest = Input::Early(rest[at..].to_vec());
                    self.tcp().rx.backlog.push_front((rest, 0));
                }
                self.tcp().rx.scatter = Some(scatter);
                self.arm(cx);
                // Behind a header without payload there may be more commands, which shall not take a turn each.
                cx.stepping |= payload_bytes == 0 && matches!(self.tcp().rx.armed, Armed::Step(_));
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
        at: usize,
        budget: &mut u32,
    ) -> Option<usize> {
        self.looks_ahead = true;
        let stopped = self.apply(cx, bytes, at, budget);
        self.end_looking_ahead(cx);
        if self.tcp().conn.wants_transmit() {
            self.mark_dirty(cx);
        }
        stopped
    }

    fn apply(
        &mut self,
        cx: &mut Context,
        bytes: &[u8],
        mut at: usize,
        budget: &mut u32,
    ) -> Option<usize> {
        // All data of a command, in one piece, that are neither copied nor used yet.
        let mut whole: Option<(SlotId, &[u8])> = None;
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
            if let Some((slot, data)) = whole.take() {
                if matches!(received, Received::DataReady { slot: ready } if ready == slot) {
                    self.no_longer_owed(slot);
                    self.start_with(cx, slot, data);
                    continue;
                }
                self.keep_data(slot, 0, data);
            }
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
                    let data = &input[range];
                    let room = self.slots[slot].data.as_ref();
                    if room.is_some_and(|room| room.len() as usize == data.len()) {
                        whole = Some((slot, data));
                    } else {
                        self.keep_data(slot, offset, data);
                    }
                }
                Received::DataReady { slot } => {
                    self.no_longer_owed(slot);
                    self.start(cx, slot);
                }
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
            Armed::Multishot | Armed::Once => {
                if (stopped || rx.owed > 0) && !rx.cancelling {
                    rx.cancelling = true;
                    cx.ring.cancel(Purpose::Receive(key).token());
                }
            }
            Armed::Unwanted | Armed::Step(_) => {}
            Armed::No if stopped || !rx.backlog.is_empty() => {}
            Armed::No => self.receive_next(cx),
        }
    }

    fn receive_next(&mut self, cx: &mut Context) {
        let Wire::Tcp(tcp) = &mut self.wire else {
            return;
        };
        if tcp.rx.owed > 0 && self.life == Life::Live {
            return self.step(cx);
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

    /// Receives what comes next, as far as it is known what that is.
    fn step(&mut self, cx: &mut Context) {
        let Wire::Tcp(tcp) = &mut self.wire else {
            return;
        };
        let ahead = tcp.conn.ahead();
        let pending = tcp.conn.pending_payload().and_then(|pending| {
            let data = self.slots[pending.slot].data.as_ref()?;
            Some((pending, data))
        });
        if ahead.payload_bytes > 0 && pending.is_none() {
            // Nobody wants this payload, so it is thrown away; what follows it is none of it.
            let token = Purpose::Receive(self.key).token();
            cx.ring.recv_at_most(tcp.socket, ahead.payload_bytes, token);
            tcp.rx.armed = Armed::Unwanted;
            return;
        }
        let into =
            pending.map(|(pending, data)| (data, pending.offset..pending.offset + pending.len));
        let scatter = tcp.rx.scatter.take().unwrap_or_else(RxScatter::new);
        let token = Purpose::Step(self.key).token();
        cx.ring
            .recv_scatter(tcp.socket, scatter, into, ahead.rest_bytes, token);
        tcp.rx.armed = Armed::Step(pending.map(|(pending, data)| Place {
            buf: data.clone(),
            offset: pending.offset,
            crc: pending.crc,
        }));
    }
}
