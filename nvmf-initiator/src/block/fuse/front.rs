//! The queue half: a state machine between one channel of `/dev/fuse` and block requests.
//!
//! Reading requests: a read takes one request, waits for it in the kernel, and needs a buffer with room for the largest.
//! A single stream of requests needs one reader. Under load more of them take more requests in one turn; but each that
//! waits is woken in vain by requests that another one takes, and holds a buffer. So their number follows how many were
//! of use in the last turns, and is bounded by how many devices the shard has.
//!
//! While nothing is asked of the device no reader waits and no buffer is held: a poll does, which costs the next request a
//! system call. A node with hundreds of volumes that rest would otherwise lock a megabyte and more for each of their queues.
//!
//! Invariants: a request that wants a reply gets exactly one, on the channel it was read from; at most
//! [`MAX_READERS`] requests are taken per turn, and none while earlier ones wait for a buffer.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvmf_io::{Buf, Completion, Errno};
use zerocopy::IntoBytes;

use super::MAX_TRANSFER_BYTES;
use super::channel::{Channel, REPLY};
use super::demand::Demand;
use super::message::{MESSAGE_AT, Message, PAYLOAD_AT, READER_BYTES, negotiate};
use super::wire::{self, FallocateMode, InHeader, OpenFlags, SetattrValid, opcode};
use crate::block::commands::{Commands, Finished, Operation};
use crate::block::spec::Geometry;
use crate::block::{BlockDone, BlockLimits, BlockOp, FrontEnd, FrontEndIo, TokenSpace};

/// Requests taken in one turn, at most.
const MAX_READERS: usize = super::MAX_READERS as usize;

/// Readers of all devices of a shard together, but for one of each device: each reader's buffer has more than 1 MiB.
const SHARD_READERS: usize = 64;

/// Payloads up to this size are copied to a buffer of their own, so that many small writes do not hold as many
/// buffers of the largest size.
const COPY_BYTES: u32 = 16 << 10;

/// How long the kernel may remember that the file exists and what its attributes are: they change only with a resize,
/// which asks for them.
const VALID_SECONDS: u64 = 1 << 31;

/// The only file.
const FILE_NODE: u64 = 2;

/// Token of the poll while the device rests; readers have their index.
const AWAKENED: u32 = u32::MAX - 1;

/// What a finished command is answered with.
enum Reply {
    Data { unique: u64, len_bytes: u32 },
    Written { unique: u64, len_bytes: u32 },
    Empty { unique: u64 },
}

/// A read that waits for a buffer.
struct Parked {
    unique: u64,
    offset_bytes: u64,
    len_bytes: u32,
}

#[derive(Default)]
struct Reader {
    buf: Option<Buf>,
    in_flight: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// The readers that wait are on their way back.
    FallingAsleep,
    /// A poll waits.
    Asleep,
    /// Stopped by us or ended by the kernel.
    Ended,
}

/// See the [module](self).
pub(super) struct FuseFrontEnd {
    geometry: Arc<Geometry>,
    commands: Commands<Reply>,
    channel: Channel,
    readers: [Reader; MAX_READERS],
    /// How many of them there may be, however many would be of use.
    most_readers: usize,
    demand: Demand,
    parked: VecDeque<Parked>,
    phase: Phase,
    /// The poll of a device that rests is in flight.
    polls: bool,
}

impl FuseFrontEnd {
    pub fn new(
        channel: Arc<OwnedFd>,
        geometry: Arc<Geometry>,
        limits: BlockLimits,
        depth: u16,
        most_readers: u16,
    ) -> Self {
        FuseFrontEnd {
            geometry,
            commands: Commands::new(limits, depth.into()),
            channel: Channel::new(channel),
            readers: Default::default(),
            most_readers: usize::from(most_readers).clamp(1, MAX_READERS),
            demand: Demand::default(),
            parked: VecDeque::with_capacity(MAX_READERS),
            phase: Phase::Serving,
            polls: false,
        }
    }

    /// One request, `len` bytes of it, is in the buffer of a reader.
    fn handle(&mut self, index: usize, len: u32, io: &mut FrontEndIo<'_>) {
        let Some(buf) = self.readers[index].buf.take() else {
            return;
        };
        let mut header = InHeader::default();
        if len as usize >= size_of::<InHeader>() {
            buf.copy_out(MESSAGE_AT, header.as_mut_bytes());
        }
        if header.len != len {
            tracing::error!(
                len,
                said = header.len,
                "the kernel sent a FUSE request of another length than it says"
            );
            return;
        }
        let message = Message { header, buf };
        let keep = match header.opcode {
            opcode::WRITE => self.write(message, io),
            _ => {
                if let Err(errno) = self.dispatch(&message, io) {
                    self.channel.reply_error(header.unique, errno, io);
                }
                Some(message.buf)
            }
        };
        self.readers[index].buf = keep;
    }

    /// Everything but writes. An error is the reply.
    fn dispatch(&mut self, message: &Message, io: &mut FrontEndIo<'_>) -> Result<(), Errno> {
        let unique = message.header.unique;
        match message.header.opcode {
            opcode::READ => {
                let request: wire::TransferIn = message.body()?;
                let size_bytes = self.geometry.size_bytes();
                let rest_bytes = size_bytes.saturating_sub(request.offset);
                let len_bytes = rest_bytes.min(request.size.into()) as u32;
                if len_bytes == 0 {
                    self.channel.reply(unique, &[], io);
                    return Ok(());
                }
                if len_bytes > MAX_TRANSFER_BYTES
                    || !self.geometry.contains(request.offset, len_bytes.into())
                {
                    return Err(Errno::INVAL);
                }
                self.parked.push_back(Parked {
                    unique,
                    offset_bytes: request.offset,
                    len_bytes,
                });
                self.unpark(io);
            }
            opcode::FSYNC => self.open(Reply::Empty { unique }, BlockOp::Flush, 0, 0, None, io),
            opcode::FALLOCATE => {
                let request: wire::FallocateIn = message.body()?;
                let mode = FallocateMode::from_bits_retain(request.mode)
                    .difference(FallocateMode::KEEP_SIZE);
                let unmap = match mode {
                    FallocateMode::PUNCH_HOLE => true,
                    FallocateMode::ZERO_RANGE => false,
                    _ => return Err(Errno::OPNOTSUPP),
                };
                self.check_change(request.offset, request.length)?;
                let op = BlockOp::WriteZeroes { unmap };
                self.open(
                    Reply::Empty { unique },
                    op,
                    request.offset,
                    request.length,
                    None,
                    io,
                );
            }
            opcode::INIT => {
                let offer: wire::InitIn = message.body()?;
                self.channel
                    .reply(unique, negotiate(&offer)?.as_bytes(), io);
            }
            opcode::LOOKUP => {
                if message.header.nodeid != wire::ROOT_NODE || !message.names(&self.geometry.name) {
                    return Err(Errno::NOENT);
                }
                let entry = wire::EntryOut {
                    nodeid: FILE_NODE,
                    entry_valid: VALID_SECONDS,
                    attr_valid: VALID_SECONDS,
                    attr: self.attributes(FILE_NODE),
                    ..Default::default()
                };
                self.channel.reply(unique, entry.as_bytes(), io);
            }
            opcode::GETATTR => self.reply_attributes(&message.header, io),
            // Of a resize: it tells the kernel what is true already.
            opcode::SETATTR => {
                let request: wire::SetattrIn = message.body()?;
                let valid = SetattrValid::from_bits_retain(request.valid);
                if !valid.contains(SetattrValid::SIZE) {
                    return Err(Errno::NOSYS);
                }
                if message.header.nodeid != FILE_NODE || request.size != self.geometry.size_bytes()
                {
                    return Err(Errno::INVAL);
                }
                self.reply_attributes(&message.header, io);
            }
            opcode::OPEN => {
                let flags =
                    OpenFlags::DIRECT_IO | OpenFlags::NOFLUSH | OpenFlags::PARALLEL_DIRECT_WRITES;
                let open = wire::OpenOut {
                    open_flags: flags.bits(),
                    ..Default::default()
                };
                self.channel.reply(unique, open.as_bytes(), io);
            }
            opcode::STATFS => {
                // Loop takes its discard granularity from here.
                let block = self.geometry.block_size_bytes;
                let statfs = wire::StatfsOut {
                    blocks: self.geometry.size_bytes() / u64::from(block),
                    bsize: block,
                    frsize: block,
                    namelen: 255,
                    files: 1,
                    ..Default::default()
                };
                self.channel.reply(unique, statfs.as_bytes(), io);
            }
            opcode::RELEASE | opcode::DESTROY => self.channel.reply(unique, &[], io),
            // These want no reply. What was interrupted completes in its own time: so does a block device.
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => {}
            // FLUSH too, see `FuseDevice::attach`.
            _ => return Err(Errno::NOSYS),
        }
        Ok(())
    }

    /// Opens a write; returns the reader's buffer if it is free again.
    fn write(&mut self, message: Message, io: &mut FrontEndIo<'_>) -> Option<Buf> {
        let unique = message.header.unique;
        let request = match self.check_write(&message) {
            Ok(request) => request,
            Err(errno) => {
                self.channel.reply_error(unique, errno, io);
                return Some(message.buf);
            }
        };
        let len_bytes = request.size;
        let copy = if len_bytes <= COPY_BYTES {
            io.pool.alloc(len_bytes)
        } else {
            None
        };
        let (payload, keep) = match copy {
            Some(copy) => {
                copy.copy_from(0, &message.buf, PAYLOAD_AT..PAYLOAD_AT + len_bytes);
                ((copy, 0), Some(message.buf))
            }
            None => ((message.buf, PAYLOAD_AT), None),
        };
        let reply = Reply::Written { unique, len_bytes };
        self.open(
            reply,
            BlockOp::Write { fua: false },
            request.offset,
            len_bytes.into(),
            Some(payload),
            io,
        );
        keep
    }

    fn check_write(&self, message: &Message) -> Result<wire::TransferIn, Errno> {
        let request: wire::TransferIn = message.body()?;
        let expected_bytes = wire::WRITE_HEADER_BYTES as u64 + u64::from(request.size);
        if u64::from(message.header.len) != expected_bytes || request.size == 0 {
            return Err(Errno::INVAL);
        }
        self.check_change(request.offset, request.size.into())?;
        Ok(request)
    }

    fn check_change(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), Errno> {
        if self.geometry.read_only {
            return Err(Errno::ROFS);
        }
        if self.geometry.contains(offset_bytes, len_bytes) {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }

    fn open(
        &mut self,
        reply: Reply,
        op: BlockOp,
        offset_bytes: u64,
        len_bytes: u64,
        payload: Option<(Buf, u32)>,
        io: &mut FrontEndIo<'_>,
    ) {
        let operation = Operation {
            op,
            offset_bytes,
            len_bytes,
            payload,
        };
        if let Some(finished) = self.commands.open(reply, operation, io.requests) {
            self.finish(finished, io);
        }
    }

    fn finish(&mut self, finished: Finished<Reply>, io: &mut FrontEndIo<'_>) {
        let (Reply::Data { unique, .. } | Reply::Written { unique, .. } | Reply::Empty { unique }) =
            finished.reply;
        if let Err(errno) = finished.result {
            return self.channel.reply_error(unique, errno, io);
        }
        match (finished.reply, finished.payload) {
            (Reply::Data { len_bytes, .. }, Some((buf, _))) => {
                self.channel.reply_data(unique, &buf, len_bytes, io);
            }
            (Reply::Data { .. }, None) => self.channel.reply_error(unique, Errno::IO, io),
            (Reply::Written { len_bytes, .. }, _) => {
                let written = wire::WriteOut {
                    size: len_bytes,
                    padding: 0,
                };
                self.channel.reply(unique, written.as_bytes(), io);
            }
            (Reply::Empty { .. }, _) => self.channel.reply(unique, &[], io),
        }
    }

    /// Starts reads that wait for a buffer, as far as there are buffers.
    fn unpark(&mut self, io: &mut FrontEndIo<'_>) {
        while let Some(parked) = self.parked.front() {
            let Some(buf) = io.pool.alloc(parked.len_bytes) else {
                return;
            };
            let &Parked {
                unique,
                offset_bytes,
                len_bytes,
            } = parked;
            self.parked.pop_front();
            let reply = Reply::Data { unique, len_bytes };
            self.open(
                reply,
                BlockOp::Read,
                offset_bytes,
                len_bytes.into(),
                Some((buf, 0)),
                io,
            );
        }
    }

    fn reply_attributes(&mut self, request: &InHeader, io: &mut FrontEndIo<'_>) {
        let attributes = wire::AttrOut {
            attr_valid: VALID_SECONDS,
            attr: self.attributes(request.nodeid),
            ..Default::default()
        };
        self.channel
            .reply(request.unique, attributes.as_bytes(), io);
    }

    fn attributes(&self, node: u64) -> wire::Attr {
        const DIRECTORY: u32 = 0o040_000;
        const REGULAR: u32 = 0o100_000;
        if node == wire::ROOT_NODE {
            return wire::Attr {
                ino: node,
                mode: DIRECTORY | 0o500,
                nlink: 2,
                ..Default::default()
            };
        }
        let size_bytes = self.geometry.size_bytes();
        wire::Attr {
            ino: node,
            size: size_bytes,
            blocks: size_bytes / 512,
            mode: REGULAR
                | if self.geometry.read_only {
                    0o400
                } else {
                    0o600
                },
            nlink: 1,
            blksize: self.geometry.block_size_bytes,
            ..Default::default()
        }
    }

    /// Goes on with what waits for buffers, and then takes further requests.
    fn take_more(&mut self, io: &mut FrontEndIo<'_>) {
        self.unpark(io);
        if self.parked.is_empty() {
            self.read_more(io);
        }
    }

    /// Submits as many readers as are worth it.
    fn read_more(&mut self, io: &mut FrontEndIo<'_>) {
        let Some(file) = self.channel.file() else {
            return;
        };
        let waiting = self
            .readers
            .iter()
            .filter(|reader| reader.in_flight)
            .count();
        let most = (SHARD_READERS / io.front_ends.max(1)).clamp(1, self.most_readers);
        let wanted = self.demand.end_turn(waiting, most);
        let mut missing = wanted.saturating_sub(waiting);
        for (index, reader) in self.readers.iter_mut().enumerate() {
            if reader.in_flight {
                continue;
            }
            if missing == 0 {
                // Its buffer is of more use to others.
                reader.buf = None;
                continue;
            }
            missing -= 1;
            if reader.buf.is_none() {
                reader.buf = io.pool.alloc(READER_BYTES);
            }
            // Without a buffer the requests stay in the kernel until a later turn.
            let Some(buf) = &reader.buf else { return };
            let token = self.channel.token(index as u32);
            io.ring
                .read_message(file, buf, MESSAGE_AT..READER_BYTES, token);
            reader.in_flight = true;
        }
    }

    /// Whether requests are open, or answers on their way.
    fn has_work(&self) -> bool {
        self.commands.open_count() > 0 || self.channel.is_replying() || !self.parked.is_empty()
    }

    fn cancel_readers(&self, io: &mut FrontEndIo<'_>) {
        for (index, reader) in self.readers.iter().enumerate() {
            if reader.in_flight {
                io.ring.cancel(self.channel.token(index as u32));
            }
        }
    }

    /// Once all readers are back: with a request, and then it is served, or without, and then a poll waits for the next.
    fn fall_asleep(&mut self, io: &mut FrontEndIo<'_>) {
        let Some(file) = self.channel.file() else {
            return;
        };
        if self.demand.served > 0 {
            self.phase = Phase::Serving;
            return self.take_more(io);
        }
        if self.readers.iter().any(|reader| reader.in_flight) {
            return;
        }
        for reader in &mut self.readers {
            reader.buf = None;
        }
        io.pool.trim();
        self.demand = Demand::default();
        self.phase = Phase::Asleep;
        self.polls = true;
        io.ring.await_message(file, self.channel.token(AWAKENED));
    }

    fn end(&mut self) {
        self.phase = Phase::Ended;
        self.parked.clear();
        self.readers
            .iter_mut()
            .filter(|reader| !reader.in_flight)
            .for_each(|reader| reader.buf = None);
    }
}

impl FrontEnd for FuseFrontEnd {
    fn start(&mut self, tokens: TokenSpace, io: &mut FrontEndIo<'_>) -> io::Result<()> {
        self.channel.open(tokens, io);
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion, io: &mut FrontEndIo<'_>) {
        let local = TokenSpace::local_of(completion.token);
        if local == REPLY {
            return self.channel.replied(completion);
        }
        if local == AWAKENED {
            self.polls = false;
            // Whatever it came to: a reader tells what there is.
            if self.phase == Phase::Asleep {
                self.phase = Phase::Serving;
            }
            return;
        }
        let index = local as usize;
        let Some(reader) = self.readers.get_mut(index) else {
            return;
        };
        reader.in_flight = false;
        match completion.result {
            Ok(len) => {
                self.demand.served += 1;
                self.handle(index, len, io);
            }
            // The request was withdrawn while it was read, or we stop.
            Err(Errno::NOENT | Errno::INTR | Errno::CANCELED) => {}
            // The file system is gone; the connection was aborted.
            Err(Errno::NODEV | Errno::CONNABORTED) => self.end(),
            Err(errno) => {
                tracing::error!(device = %self.geometry.name, %errno, "reading from /dev/fuse failed");
                self.end();
            }
        }
    }

    fn on_done(&mut self, done: BlockDone, io: &mut FrontEndIo<'_>) {
        if let Some(finished) = self.commands.done(done, io.requests) {
            self.finish(finished, io);
        }
    }

    fn end_turn(&mut self, io: &mut FrontEndIo<'_>) {
        match self.phase {
            Phase::Serving => self.take_more(io),
            Phase::FallingAsleep => self.fall_asleep(io),
            Phase::Asleep => {}
            Phase::Ended => {
                if self.is_finished() {
                    self.channel.close(io);
                }
            }
        }
    }

    fn wants_every_turn(&self) -> bool {
        // Without a reader nothing will come.
        let waits_for_buffer =
            !self.parked.is_empty() || self.readers.iter().all(|reader| !reader.in_flight);
        self.phase == Phase::Serving && waits_for_buffer
    }

    fn rest(&mut self, io: &mut FrontEndIo<'_>) {
        if self.phase != Phase::Serving || self.has_work() {
            return;
        }
        self.phase = Phase::FallingAsleep;
        self.cancel_readers(io);
    }

    fn stop(&mut self, io: &mut FrontEndIo<'_>) {
        self.end();
        self.cancel_readers(io);
        if self.polls {
            io.ring.cancel(self.channel.token(AWAKENED));
        }
    }

    fn is_finished(&self) -> bool {
        self.phase == Phase::Ended
            && !self.has_work()
            && !self.polls
            && self.readers.iter().all(|reader| !reader.in_flight)
    }
}
