//! One connection on the ring: what was received and not decoded yet, the write whose payload is on its way, the replies.
//!
//! Invariants: at most one receive and one send are in flight; nothing is received while what was received before still
//! waits for room; a connection has at most its depth of requests whose replies have not left, and their buffers at most
//! its share of memory, so a client that does not read its replies, or does not send its payload, holds up only itself.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvmf_io::{Buf, Completion, Ring, SockId};
use zerocopy::IntoBytes;

use super::negotiation::{self, MAX_ANSWER_BYTES, Negotiation, Next};
use super::open::{OpenRequests, Slot, memory_of};
use super::replies::{Limits, Replies};
use super::request::{self, Action, Request, error_of};
use super::wire::{NbdError, RequestHeader};
use super::{Export, PART_BYTES};
use crate::block::commands::{Commands, Finished, Operation};
use crate::block::{BlockOp, FrontEndIo, TokenSpace};

/// What is still to come of a payload is received straight into its buffer if it is longer than this; less is taken out of a
/// receive that may bring the next requests too.
const COPY_BYTES: u32 = 16 << 10;

/// The parts of a connection's tokens; the rest is its index.
const TOKEN_BITS: u32 = 2;
const CHUNK: u32 = 0;
const PAYLOAD: u32 = 1;
const SEND: u32 = 2;

/// Index of the connection that a token belongs to.
pub(super) fn index_of(local: u32) -> usize {
    (local >> TOKEN_BITS) as usize
}

/// Whose part of a request the backing has.
pub(super) struct Reply {
    /// Index of the connection.
    pub connection: u32,
    slot: Slot,
    memory_bytes: u32,
}

/// What a connection works with during one call.
pub(super) struct Context<'a, 'io> {
    pub export: &'a Export,
    pub commands: &'a mut Commands<Reply>,
    /// No request may be started now.
    pub fenced: bool,
    pub io: &'a mut FrontEndIo<'io>,
}

/// How far a connection is.
enum Stage {
    Negotiating {
        negotiation: Negotiation,
        answer: Vec<u8>,
    },
    Serving,
    /// The client says no more; what it asked for is still answered.
    Draining,
    /// Shut down; what is at the backing comes to an end unanswered.
    Broken,
}

/// A write whose payload is on its way. Each part goes to the backing when it is there.
struct Incoming {
    slot: Slot,
    fua: bool,
    /// Of the part that is on its way, or of the next.
    offset_bytes: u64,
    /// What is still to come after this part.
    rest_bytes: u32,
    /// The part that is on its way, and how much of it is there; none while there is no buffer.
    part: Option<(Buf, u32)>,
}

/// A refused write whose payload is on its way.
struct PassingOver {
    cookie: u64,
    error: NbdError,
    rest_bytes: u32,
}

/// How a step of decoding ended.
enum Step {
    Took(usize),
    NeedMore,
    /// Until replies have left, buffers are free or the fence is gone.
    NoRoom,
}

/// See the [module](self).
pub(super) struct Connection {
    index: u32,
    socket: SockId,
    tokens: TokenSpace,
    stage: Stage,
    depth: u32,
    max_memory_bytes: u32,
    /// Received and not decoded.
    stash: Vec<u8>,
    /// What is in the stash waits for room, not for more bytes.
    stalled: bool,
    receiving: bool,
    incoming: Option<Incoming>,
    passing_over: Option<PassingOver>,
    open: OpenRequests,
    at_backing: u32,
    memory_bytes: u32,
    replies: Replies,
}

impl Connection {
    /// A connection that begins with the negotiation, or, `negotiated`, with requests.
    pub fn new(
        index: usize,
        fd: Arc<OwnedFd>,
        negotiated: bool,
        limits: &Limits,
        tokens: TokenSpace,
        ring: &mut Ring,
    ) -> Self {
        let mut replies = Replies::new(limits);
        let stage = if negotiated {
            Stage::Serving
        } else {
            replies.push_answer(Negotiation::greeting().as_bytes());
            Stage::Negotiating {
                negotiation: Negotiation::new(),
                answer: Vec::with_capacity(MAX_ANSWER_BYTES),
            }
        };
        Connection {
            index: index as u32,
            socket: ring.add_socket(fd),
            tokens,
            stage,
            depth: limits.depth.into(),
            max_memory_bytes: limits.max_memory_bytes,
            stash: Vec::new(),
            stalled: false,
            receiving: false,
            incoming: None,
            passing_over: None,
            open: OpenRequests::new(limits.depth),
            at_backing: 0,
            memory_bytes: 0,
            replies,
        }
    }

    pub fn is_negotiating(&self) -> bool {
        matches!(self.stage, Stage::Negotiating { .. })
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving)
    }

    pub fn is_broken(&self) -> bool {
        matches!(self.stage, Stage::Broken)
    }

    /// It has ended, but what it asked for has not.
    pub fn has_orphans(&self) -> bool {
        matches!(self.stage, Stage::Draining | Stage::Broken) && self.at_backing > 0
    }

    /// It has ended, and nothing of it is open.
    pub fn is_over(&self) -> bool {
        let said_all = match self.stage {
            Stage::Negotiating { .. } | Stage::Serving => return false,
            Stage::Draining => self.replies.is_idle(),
            Stage::Broken => !self.replies.is_in_flight(),
        };
        said_all && self.at_backing == 0 && !self.receiving
    }

    /// Its socket, for the ring to forget.
    pub fn socket(&self) -> SockId {
        self.socket
    }

    /// Ends it at once. What is in flight in the ring ends soon.
    pub fn break_off(&mut self, ring: &mut Ring) {
        if self.is_broken() {
            return;
        }
        self.stage = Stage::Broken;
        self.forget_input();
        // The other side may have hung up already.
        let _ = ring.shutdown(self.socket);
    }

    /// One of its operations completed.
    pub fn on_completion(&mut self, completion: Completion, context: &mut Context<'_, '_>) {
        let part = TokenSpace::local_of(completion.token) & ((1 << TOKEN_BITS) - 1);
        if part == SEND {
            if let Err(errno) = completion.result {
                tracing::debug!(%errno, "an NBD client does not take its replies");
                self.break_off(context.io.ring);
            }
            self.memory_bytes -= self.replies.sent(completion.batch);
            return;
        }
        self.receiving = false;
        if self.is_broken() {
            return;
        }
        let result = match (completion.result, completion.rx) {
            (Err(errno), _) => {
                tracing::debug!(%errno, "receiving from an NBD client failed");
                return self.break_off(context.io.ring);
            }
            (Ok(len_bytes), _) if part == PAYLOAD => self.payload_received(len_bytes, context),
            (Ok(_), Some(chunk)) => self.received(&chunk, context),
            (Ok(_), None) => {
                self.hung_up();
                Ok(())
            }
        };
        if let Err(violation) = result {
            tracing::warn!(device = %context.export.geometry.name, %violation, "an NBD client is disconnected");
            self.break_off(context.io.ring);
        }
    }

    /// The client sends no more. What it had not finished sending is forgotten.
    fn hung_up(&mut self) {
        self.forget_input();
        self.stage = Stage::Draining;
    }

    fn forget_input(&mut self) {
        self.stash = Vec::new();
        self.passing_over = None;
        if let Some(Incoming { slot, .. }) = self.incoming.take() {
            // Nobody waits for the answer.
            self.open.abandon(slot);
        }
    }

    fn payload_received(
        &mut self,
        len_bytes: u32,
        context: &mut Context<'_, '_>,
    ) -> Result<(), Violation> {
        let Some((buf, received_bytes)) = self
            .incoming
            .as_mut()
            .and_then(|incoming| incoming.part.as_mut())
        else {
            return Ok(());
        };
        *received_bytes += len_bytes;
        if *received_bytes == buf.len() {
            self.part_arrived(context);
            // Without a buffer for the next, the stream goes on in small receives.
            self.next_part(context);
        } else {
            self.hung_up();
        }
        Ok(())
    }

    fn received(&mut self, bytes: &[u8], context: &mut Context<'_, '_>) -> Result<(), Violation> {
        if self.stash.is_empty() {
            let taken = self.decode(bytes, context)?;
            self.stash.extend_from_slice(&bytes[taken..]);
            return Ok(());
        }
        self.stash.extend_from_slice(bytes);
        self.decode_stash(context)
    }

    fn decode_stash(&mut self, context: &mut Context<'_, '_>) -> Result<(), Violation> {
        let mut stash = mem::take(&mut self.stash);
        let taken = self.decode(&stash, context)?;
        stash.drain(..taken);
        self.stash = stash;
        Ok(())
    }

    /// Takes in what it can; returns how much that was.
    fn decode(&mut self, bytes: &[u8], context: &mut Context<'_, '_>) -> Result<usize, Violation> {
        let mut taken = 0;
        loop {
            match self.step(&bytes[taken..], context)? {
                Step::Took(count) => taken += count,
                Step::NeedMore => {
                    self.stalled = false;
                    return Ok(taken);
                }
                Step::NoRoom => {
                    self.stalled = true;
                    return Ok(taken);
                }
            }
        }
    }

    fn step(&mut self, bytes: &[u8], context: &mut Context<'_, '_>) -> Result<Step, Violation> {
        if bytes.is_empty() {
            return Ok(Step::NeedMore);
        }
        match &mut self.stage {
            Stage::Negotiating { .. } if !self.replies.fits_answer() => Ok(Step::NoRoom),
            Stage::Negotiating {
                negotiation,
                answer,
            } => {
                answer.clear();
                let (taken, next) = negotiation.receive(bytes, context.export, answer)?;
                self.replies.push_answer(answer);
                match next {
                    Next::NeedMore if taken == 0 => return Ok(Step::NeedMore),
                    Next::NeedMore | Next::Option => {}
                    Next::Transmission => self.stage = Stage::Serving,
                    Next::End => self.stage = Stage::Draining,
                }
                Ok(Step::Took(taken))
            }
            Stage::Serving if self.passing_over.is_some() => Ok(self.pass_over(bytes)),
            Stage::Serving if self.incoming.is_some() => Ok(self.copy_payload(bytes, context)),
            Stage::Serving => {
                if context.fenced || self.open_requests() >= self.depth {
                    return Ok(Step::NoRoom);
                }
                let Some(request) = Request::parse(bytes, context.export)? else {
                    return Ok(Step::NeedMore);
                };
                Ok(match self.begin(request, context) {
                    true => Step::Took(size_of::<RequestHeader>()),
                    false => Step::NoRoom,
                })
            }
            // Nothing counts any more.
            Stage::Draining | Stage::Broken => Ok(Step::Took(bytes.len())),
        }
    }

    fn open_requests(&self) -> u32 {
        self.open.count() + self.replies.open()
    }

    /// A buffer within this connection's share of memory.
    fn buffer(&mut self, len_bytes: u32, context: &mut Context<'_, '_>) -> Option<Buf> {
        let memory_bytes = self.memory_bytes + memory_of(len_bytes);
        if memory_bytes > self.max_memory_bytes {
            return None;
        }
        let buf = context.io.pool.alloc(len_bytes)?;
        self.memory_bytes = memory_bytes;
        Some(buf)
    }

    /// Starts a request, unless it must wait for a buffer.
    fn begin(&mut self, request: Request, context: &mut Context<'_, '_>) -> bool {
        let Request {
            cookie, len_bytes, ..
        } = request;
        match request.action {
            Err(error) if request.payload_bytes > 0 => {
                self.passing_over = Some(PassingOver {
                    cookie,
                    error,
                    rest_bytes: request.payload_bytes,
                });
            }
            Err(error) => self.replies.refuse(cookie, error),
            Ok(Action::Disconnect) => self.stage = Stage::Draining,
            Ok(Action::Read) => return self.begin_read(&request, context),
            Ok(Action::Write { .. }) if len_bytes == 0 => {
                let slot = self.open.begin(cookie);
                self.complete(slot, context);
            }
            Ok(Action::Write { fua }) => {
                let slot = self.open.begin(cookie);
                self.incoming = Some(Incoming {
                    slot,
                    fua,
                    offset_bytes: request.offset_bytes,
                    rest_bytes: len_bytes,
                    part: None,
                });
                self.next_part(context);
            }
            Ok(Action::Flush) => {
                let slot = self.open.begin(cookie);
                self.send(slot, BlockOp::Flush, 0, 0, None, context);
            }
            Ok(Action::Trim { fua }) => self.begin_range(&request, BlockOp::Discard, fua, context),
            Ok(Action::WriteZeroes { unmap, fua }) => {
                self.begin_range(&request, BlockOp::WriteZeroes { unmap }, fua, context);
            }
        }
        true
    }

    /// A read has its buffers all at once, since its reply begins with the outcome.
    fn begin_read(&mut self, request: &Request, context: &mut Context<'_, '_>) -> bool {
        let slot = self.open.begin(request.cookie);
        for (_, len_bytes) in parts(request) {
            let Some(buf) = self.buffer(len_bytes, context) else {
                self.memory_bytes -= self.open.abandon(slot);
                return false;
            };
            self.open.get(slot).push(buf);
        }
        self.open.get(slot).more = true;
        for (at, (offset_bytes, len_bytes)) in parts(request).enumerate() {
            let buf = self.open.get(slot).buf(at);
            self.send(slot, BlockOp::Read, offset_bytes, len_bytes, buf, context);
        }
        let open = self.open.get(slot);
        open.more = false;
        if open.parts == 0 {
            self.complete(slot, context);
        }
        true
    }

    fn begin_range(
        &mut self,
        request: &Request,
        op: BlockOp,
        fua: bool,
        context: &mut Context<'_, '_>,
    ) {
        let slot = self.open.begin(request.cookie);
        self.open.get(slot).then_flush = fua;
        let len_bytes = request.len_bytes;
        self.send(slot, op, request.offset_bytes, len_bytes, None, context);
    }

    /// Gets a buffer for what comes next of a write; returns whether there is one.
    fn next_part(&mut self, context: &mut Context<'_, '_>) -> bool {
        let Some(incoming) = &self.incoming else {
            return false;
        };
        if incoming.part.is_some() {
            return true;
        }
        let len_bytes = incoming.rest_bytes.min(PART_BYTES);
        let Some(buf) = self.buffer(len_bytes, context) else {
            return false;
        };
        if let Some(incoming) = &mut self.incoming {
            incoming.rest_bytes -= len_bytes;
            incoming.part = Some((buf, 0));
        }
        true
    }

    /// All of a write's part is there.
    fn part_arrived(&mut self, context: &mut Context<'_, '_>) {
        let Some(mut incoming) = self.incoming.take() else {
            return;
        };
        let Some((buf, len_bytes)) = incoming.part.take() else {
            return;
        };
        let &mut Incoming {
            slot,
            fua,
            offset_bytes,
            ..
        } = &mut incoming;
        if incoming.rest_bytes > 0 {
            incoming.offset_bytes += u64::from(len_bytes);
            self.open.get(slot).more = true;
            self.incoming = Some(incoming);
        } else {
            self.open.get(slot).more = false;
        }
        let op = BlockOp::Write { fua };
        self.send(slot, op, offset_bytes, len_bytes, Some(buf), context);
    }

    /// Gives a part of a request to the backing.
    fn send(
        &mut self,
        slot: Slot,
        op: BlockOp,
        offset_bytes: u64,
        len_bytes: u32,
        buf: Option<Buf>,
        context: &mut Context<'_, '_>,
    ) {
        let is_write = matches!(op, BlockOp::Write { .. });
        let reply = Reply {
            connection: self.index,
            slot,
            // A read's is given back when its reply has left.
            memory_bytes: if is_write { memory_of(len_bytes) } else { 0 },
        };
        let operation = Operation {
            op,
            offset_bytes,
            len_bytes: len_bytes.into(),
            payload: buf.map(|buf| (buf, 0)),
        };
        self.at_backing += 1;
        self.open.get(slot).parts += 1;
        if let Some(finished) = context.commands.open(reply, operation, context.io.requests) {
            self.finish(&finished, context);
        }
    }

    /// The backing is done with a part of a request.
    pub fn finish(&mut self, finished: &Finished<Reply>, context: &mut Context<'_, '_>) {
        let &Reply {
            slot, memory_bytes, ..
        } = &finished.reply;
        self.at_backing -= 1;
        self.memory_bytes -= memory_bytes;
        let request = self.open.get(slot);
        request.parts -= 1;
        request.result = request.result.and(finished.result.map_err(error_of));
        if request.parts == 0 && !request.more {
            self.complete(slot, context);
        }
    }

    /// All parts of a request are done.
    fn complete(&mut self, slot: Slot, context: &mut Context<'_, '_>) {
        let request = self.open.get(slot);
        if mem::take(&mut request.then_flush) && request.result.is_ok() && !self.is_broken() {
            return self.send(slot, BlockOp::Flush, 0, 0, None, context);
        }
        if self.is_broken() {
            self.memory_bytes -= self.open.abandon(slot);
            return;
        }
        self.memory_bytes -= self.replies.push(self.open.get(slot));
        self.open.end(slot);
    }

    fn copy_payload(&mut self, bytes: &[u8], context: &mut Context<'_, '_>) -> Step {
        if !self.next_part(context) {
            return Step::NoRoom;
        }
        let Some((buf, received_bytes)) = self
            .incoming
            .as_mut()
            .and_then(|incoming| incoming.part.as_mut())
        else {
            return Step::NoRoom;
        };
        let count = bytes.len().min((buf.len() - *received_bytes) as usize);
        buf.copy_in(*received_bytes, &bytes[..count]);
        *received_bytes += count as u32;
        if *received_bytes == buf.len() {
            self.part_arrived(context);
        }
        Step::Took(count)
    }

    fn pass_over(&mut self, bytes: &[u8]) -> Step {
        let Some(passing) = &mut self.passing_over else {
            return Step::Took(0);
        };
        let count = bytes.len().min(passing.rest_bytes as usize);
        passing.rest_bytes -= count as u32;
        if passing.rest_bytes == 0 {
            let (cookie, error) = (passing.cookie, passing.error);
            self.passing_over = None;
            self.replies.refuse(cookie, error);
        }
        Step::Took(count)
    }

    /// The turn is over: takes up what waited for room, receives and sends.
    pub fn end_turn(&mut self, context: &mut Context<'_, '_>) {
        if self.stalled
            && !self.is_broken()
            && let Err(violation) = self.decode_stash(context)
        {
            tracing::warn!(device = %context.export.geometry.name, %violation, "an NBD client is disconnected");
            self.break_off(context.io.ring);
        }
        if !self.is_broken() {
            let token = self.token(SEND);
            self.replies.send(self.socket, token, context.io.ring);
        }
        if !self.receiving && !self.stalled && (self.is_negotiating() || self.is_serving()) {
            self.receive(context.io.ring);
        }
    }

    fn receive(&mut self, ring: &mut Ring) {
        self.receiving = true;
        if let Some((buf, received_bytes)) = self
            .incoming
            .as_ref()
            .and_then(|incoming| incoming.part.as_ref())
            && buf.len() - received_bytes > COPY_BYTES
        {
            let range = *received_bytes..buf.len();
            return ring.recv_into(self.socket, buf, range, self.token(PAYLOAD));
        }
        ring.recv_once(self.socket, self.token(CHUNK));
    }

    fn token(&self, part: u32) -> nvmf_io::Token {
        self.tokens.token(self.index << TOKEN_BITS | part)
    }
}

/// Offset and length of each part of a read.
fn parts(request: &Request) -> impl Iterator<Item = (u64, u32)> + use<> {
    let (offset_bytes, len_bytes) = (request.offset_bytes, request.len_bytes);
    let part = move |at: u32| {
        let len_bytes = (len_bytes - at).min(PART_BYTES);
        (offset_bytes + u64::from(at), len_bytes)
    };
    (0..len_bytes).step_by(PART_BYTES as usize).map(part)
}

/// What ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Violation {
    #[error(transparent)]
    Negotiation(#[from] negotiation::Violation),
    #[error(transparent)]
    Request(#[from] request::Violation),
}
