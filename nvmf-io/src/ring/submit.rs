//! Starting operations, and handing them to the kernel.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use bitflags::bitflags;
use io_uring::{opcode, squeue, types};
use rustix::io::Errno;

use super::files::{FileId, Id, SockId, Target};
use super::ops::{BatchInFlight, Receive, Step, Work};
use super::rx::GROUP;
use super::slab::IGNORED;
use super::{Completion, Ring, Token, Wait};
use crate::buf::{Buf, Fixed, KernelWrite};
use crate::tx::TxBatch;

/// Builds an entry for a file that is registered or not.
macro_rules! entry {
    ($target:expr, |$fd:ident| $build:expr) => {
        match $target {
            Target::Fixed($fd) => $build,
            Target::Fd($fd) => $build,
        }
    };
}

/// How a write is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// The completion comes only when the data is on stable storage (RWF_DSYNC).
    pub dsync: bool,
}

bitflags! {
    /// What `fallocate(2)` does to a range; empty allocates it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Allocate: i32 {
        /// The size of the file stays as it is.
        const KEEP_SIZE = libc::FALLOC_FL_KEEP_SIZE;
        /// The range is deallocated and reads as zeroes; needs [`Allocate::KEEP_SIZE`].
        const PUNCH_HOLE = libc::FALLOC_FL_PUNCH_HOLE;
        /// The range reads as zeroes and stays allocated.
        const ZERO_RANGE = libc::FALLOC_FL_ZERO_RANGE;
    }
}

/// What a poll waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, or a peer that hung up.
    Readable,
    /// Room to write.
    Writable,
}

/// What to do with a tag of a ublk queue. A closed set: the codes of other devices may name memory in other places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UblkOp {
    /// Fetch the first request of the tag.
    FetchReq,
    /// Complete the request of the tag and fetch the next.
    CommitAndFetchReq,
}

impl UblkOp {
    /// The ioctl-encoded code, which Linux 6.4 and newer take.
    fn code(self) -> u32 {
        match self {
            Self::FetchReq => 0xc010_7520,
            Self::CommitAndFetchReq => 0xc010_7521,
        }
    }
}

/// A command to `/dev/ublkcN` for one tag of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UblkIo {
    /// What to do.
    pub op: UblkOp,
    /// Hardware queue.
    pub q_id: u16,
    /// Tag within the queue.
    pub tag: u16,
    /// Result of the request being completed: bytes or a negative error number.
    pub result: i32,
}

impl Ring {
    /// Adds a file; `fd` may be owned or shared with other rings.
    pub fn add_file(&mut self, fd: impl Into<Arc<OwnedFd>>) -> FileId {
        FileId(self.files.add(&self.uring, fd.into()))
    }

    /// Adds a connected stream socket.
    pub fn add_socket(&mut self, fd: impl Into<Arc<OwnedFd>>) -> SockId {
        SockId(self.files.add(&self.uring, fd.into()))
    }

    /// Forgets a file. Operations in flight go on; new ones with this id complete with EBADF.
    pub fn remove_file(&mut self, file: FileId) -> Option<Arc<OwnedFd>> {
        self.remove(file.0)
    }

    /// Forgets a socket. To end what is in flight, [`Ring::shutdown`] it first.
    pub fn remove_socket(&mut self, socket: SockId) -> Option<Arc<OwnedFd>> {
        self.remove(socket.0)
    }

    fn remove(&mut self, id: Id) -> Option<Arc<OwnedFd>> {
        // Entries not yet submitted name the file by a number, which may soon mean another file.
        let reuse = self.flush();
        self.files.remove(&self.uring, id, reuse)
    }

    /// The descriptor of a socket, for its options.
    pub fn socket_fd(&self, socket: SockId) -> io::Result<BorrowedFd<'_>> {
        self.files.fd(socket.0)
    }

    /// The descriptor of a file.
    pub fn file_fd(&self, file: FileId) -> io::Result<BorrowedFd<'_>> {
        self.files.fd(file.0)
    }

    /// Shuts both directions of a socket down (at once, not queued): receives in flight end with 0 bytes, sends with
    /// EPIPE.
    pub fn shutdown(&mut self, socket: SockId) -> io::Result<()> {
        Ok(rustix::net::shutdown(
            self.files.fd(socket.0)?,
            rustix::net::Shutdown::Both,
        )?)
    }

    /// Reads into `range` of `buf`. Completes with the number of bytes, less than asked for at the end of the file.
    pub fn read(&mut self, file: FileId, offset: u64, buf: &Buf, range: Range<u32>, token: Token) {
        let Some(into) = KernelWrite::new(buf) else {
            return self.fail(token, Errno::BUSY, None);
        };
        let (ptr, len) = (into.ptr(&range), range.end - range.start);
        let fixed = self.fixed_index(buf);
        self.start(file.0, token, Work::Fill(into), |target| {
            entry!(target, |fd| match fixed {
                Some(index) => opcode::ReadFixed::new(fd, ptr, len, index)
                    .offset(offset)
                    .build(),
                None => opcode::Read::new(fd, ptr, len).offset(offset).build(),
            })
        });
    }

    /// Writes `range` of `buf`. Completes with the number of bytes, which a full file system can make less than
    /// asked for.
    pub fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buf: &Buf,
        range: Range<u32>,
        flags: WriteFlags,
        token: Token,
    ) {
        let (ptr, len) = (buf.kernel_ptr(&range), range.end - range.start);
        let rw_flags = if flags.dsync { libc::RWF_DSYNC } else { 0 };
        let fixed = self.fixed_index(buf);
        self.start(file.0, token, Work::Drain(buf.clone()), |target| {
            entry!(target, |fd| match fixed {
                Some(index) => opcode::WriteFixed::new(fd, ptr, len, index)
                    .offset(offset)
                    .rw_flags(rw_flags)
                    .build(),
                None => opcode::Write::new(fd, ptr, len)
                    .offset(offset)
                    .rw_flags(rw_flags)
                    .build(),
            })
        });
    }

    /// Writes a batch with one `writev` at `offset`: for devices that take a message in one call. The batch comes
    /// back in the completion; a short write is the caller's to judge.
    pub fn write_vectored(&mut self, file: FileId, offset: u64, batch: Box<TxBatch>, token: Token) {
        let (iov, count) = batch.segments();
        let work = Work::WriteVectored {
            batch: BatchInFlight::new(batch),
        };
        self.start(file.0, token, work, |target| {
            entry!(target, |fd| opcode::Writev::new(fd, iov, count)
                .offset(offset)
                .build())
        });
    }

    /// Makes everything written before stable; with `data_only` as fdatasync does, sufficient for reading it back.
    pub fn fsync(&mut self, file: FileId, data_only: bool, token: Token) {
        let flags = if data_only {
            types::FsyncFlags::DATASYNC
        } else {
            types::FsyncFlags::empty()
        };
        self.start(file.0, token, Work::Plain, |target| {
            entry!(target, |fd| opcode::Fsync::new(fd).flags(flags).build())
        });
    }

    /// Allocates, deallocates or zeroes a range of a file.
    pub fn fallocate(
        &mut self,
        file: FileId,
        mode: Allocate,
        offset: u64,
        len_bytes: u64,
        token: Token,
    ) {
        self.start(file.0, token, Work::Plain, |target| {
            entry!(target, |fd| opcode::Fallocate::new(fd, len_bytes)
                .offset(offset)
                .mode(mode.bits())
                .build())
        });
    }

    /// Receives again and again into receive buffers, a completion with an [`RxChunk`](super::RxChunk) for each,
    /// until the stream ends (0 bytes, `more` false), fails, or is cancelled. When receive buffers run out it goes
    /// on as soon as one is given back.
    pub fn recv_multishot(&mut self, socket: SockId, token: Token) {
        self.receive(socket.0, true, token);
    }

    /// Receives once into a receive buffer.
    pub fn recv_once(&mut self, socket: SockId, token: Token) {
        self.receive(socket.0, false, token);
    }

    fn receive(&mut self, file: Id, multishot: bool, token: Token) {
        let step = if self.rx.is_provided() {
            Step::Provided
        } else {
            Step::Readable
        };
        let index = self.ops.insert(
            token,
            Work::Receive(Receive {
                file,
                multishot,
                step,
            }),
        );
        self.arm_receive(index);
    }

    /// Submits the entry for the step at which a receive stands.
    pub(super) fn arm_receive(&mut self, index: u32) {
        let Work::Receive(receive) = self.ops.get_mut(index).work() else {
            return;
        };
        let (file, multishot, step) = (receive.file, receive.multishot, receive.step);
        let Ok(target) = self.files.target(file) else {
            return self.end(index, Errno::BADF);
        };
        let entry = match step {
            Step::Provided if multishot => {
                entry!(target, |fd| opcode::RecvMulti::new(fd, GROUP).build())
            }
            Step::Provided => entry!(target, |fd| opcode::Recv::new(fd, std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .build())
            .flags(squeue::Flags::BUFFER_SELECT),
            Step::Into(id) => {
                let (ptr, len) = self.rx.target(id);
                entry!(target, |fd| opcode::Recv::new(fd, ptr, len)
                    .flags(libc::MSG_DONTWAIT)
                    .build())
            }
            Step::Readable | Step::Starved => {
                entry!(target, |fd| opcode::PollAdd::new(fd, libc::POLLIN as u32)
                    .build())
            }
        };
        self.push(entry.user_data(self.ops.key(index)));
    }

    /// Receives exactly `range` of `buf`, which must not be empty: completes with its length, with less when the
    /// connection ended or was reset before, or with the error.
    pub fn recv_into(&mut self, socket: SockId, buf: &Buf, range: Range<u32>, token: Token) {
        let Some(into) = KernelWrite::new(buf) else {
            return self.fail(token, Errno::BUSY, None);
        };
        let _ = into.ptr(&range);
        let work = Work::ReceiveInto {
            file: socket.0,
            into,
            range,
            done: 0,
        };
        let index = self.ops.insert(token, work);
        self.arm_receive_into(index);
    }

    /// Submits the entry for what is still to come.
    pub(super) fn arm_receive_into(&mut self, index: u32) {
        let Work::ReceiveInto {
            file,
            into,
            range,
            done,
        } = self.ops.get_mut(index).work()
        else {
            return;
        };
        let rest = range.start + *done..range.end;
        let (ptr, len) = (into.ptr(&rest), rest.end - rest.start);
        let Ok(target) = self.files.target(*file) else {
            return self.end(index, Errno::BADF);
        };
        let entry = entry!(target, |fd| opcode::Recv::new(fd, ptr, len)
            .flags(libc::MSG_WAITALL)
            .build());
        self.push(entry.user_data(self.ops.key(index)));
    }

    /// Sends all of a batch; it comes back in the completion. One send at a time for each socket.
    pub fn send(&mut self, socket: SockId, batch: Box<TxBatch>, token: Token) {
        let work = Work::Send {
            file: socket.0,
            batch: BatchInFlight::new(batch),
            done: 0,
        };
        let index = self.ops.insert(token, work);
        self.arm_send(index);
    }

    /// Submits the entry for what is not sent yet.
    pub(super) fn arm_send(&mut self, index: u32) {
        let Work::Send { file, batch, .. } = self.ops.get_mut(index).work() else {
            return;
        };
        let file = *file;
        let message = batch.as_mut().message();
        let Ok(target) = self.files.target(file) else {
            return self.end(index, Errno::BADF);
        };
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let entry = entry!(target, |fd| opcode::SendMsg::new(fd, message)
            .flags(flags)
            .build());
        self.push(entry.user_data(self.ops.key(index)));
    }

    /// Completes each time `fd` becomes readable or writable, until it fails or is cancelled. The ring keeps a
    /// duplicate of the descriptor.
    pub fn poll_multishot(&mut self, fd: impl AsFd, interest: Interest, token: Token) {
        self.poll(fd.as_fd(), interest, true, token);
    }

    /// Completes when `fd` is readable or writable, once.
    pub fn poll_once(&mut self, fd: impl AsFd, interest: Interest, token: Token) {
        self.poll(fd.as_fd(), interest, false, token);
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, interest: Interest, multishot: bool, token: Token) {
        let events = match interest {
            Interest::Readable => libc::POLLIN as u32,
            Interest::Writable => libc::POLLOUT as u32,
        };
        match rustix::io::fcntl_dupfd_cloexec(fd, 0) {
            Ok(fd) => {
                let index = self.ops.insert(
                    token,
                    Work::Poll {
                        fd,
                        events,
                        multishot,
                    },
                );
                self.arm_poll(index);
            }
            Err(errno) => self.fail(token, errno, None),
        }
    }

    /// Submits the entry of a poll.
    pub(super) fn arm_poll(&mut self, index: u32) {
        let Work::Poll {
            fd,
            events,
            multishot,
        } = self.ops.get_mut(index).work()
        else {
            return;
        };
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), *events)
            .multi(*multishot)
            .build()
            .user_data(self.ops.key(index));
        self.push(entry);
    }

    /// A ublk I/O command. `buf` is the memory that the kernel copies the request's data to and from (none with
    /// UBLK_F_USER_COPY); it is held until the completion.
    pub fn ublk_io(&mut self, device: FileId, command: UblkIo, buf: Option<&Buf>, token: Token) {
        let mut cmd = [0; 16];
        cmd[0..2].copy_from_slice(&command.q_id.to_ne_bytes());
        cmd[2..4].copy_from_slice(&command.tag.to_ne_bytes());
        cmd[4..8].copy_from_slice(&command.result.to_ne_bytes());
        let work = match buf {
            None => Work::Plain,
            Some(buf) => {
                let Some(into) = KernelWrite::new(buf) else {
                    return self.fail(token, Errno::BUSY, None);
                };
                let addr = into.ptr(&(0..buf.len())).addr() as u64;
                cmd[8..16].copy_from_slice(&addr.to_ne_bytes());
                Work::Fill(into)
            }
        };
        self.start(device.0, token, work, |target| {
            entry!(target, |fd| opcode::UringCmd16::new(fd, command.op.code())
                .cmd(cmd)
                .build())
        });
    }

    /// Completes at once: for tests and for waking a loop.
    pub fn nop(&mut self, token: Token) {
        let index = self.ops.insert(token, Work::Plain);
        let entry = opcode::Nop::new().build().user_data(self.ops.key(index));
        self.push(entry);
    }

    /// Asks for the end of all operations with `token`; each still completes, with ECANCELED or with what it had
    /// come to. Looks through all operations: not for the path of every command.
    pub fn cancel(&mut self, token: Token) {
        let found: Vec<u32> = self.ops.with_token(token).collect();
        for index in found {
            self.cancel_op(index);
        }
    }

    fn cancel_op(&mut self, index: u32) {
        if let Work::Receive(Receive {
            step: Step::Starved,
            ..
        }) = self.ops.get_mut(index).work()
        {
            self.starved.retain(|&starved| starved != index);
            return self.end(index, Errno::CANCELED);
        }
        let entry = opcode::AsyncCancel::new(self.ops.key(index))
            .build()
            .user_data(IGNORED);
        self.push(entry);
    }

    /// Submits what is queued, lets the kernel finish what it can, and waits as `wait` says: one system call.
    ///
    /// Returns early, without an error, on a signal and when completions must be taken first.
    pub fn wait(&mut self, wait: Wait) -> io::Result<()> {
        self.feed_starved();
        self.drain_backlog();
        let may_block = self.local.is_empty() && self.backlog.is_empty();
        let (want, limit) = match wait {
            Wait::Poll => (0, None),
            _ if !may_block => (0, None),
            Wait::Block => (1, None),
            Wait::Until(at) => match at.checked_duration_since(Instant::now()) {
                Some(limit) if !limit.is_zero() => (1, Some(limit)),
                _ => (0, None),
            },
        };
        let queued = self.uring.submission().len() as u32;
        match self.enter.call(queued, want, limit) {
            // BUSY and AGAIN: completions overflowed or memory is short; the caller takes completions and comes back.
            Ok(_) | Err(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Submits what is queued; false when the kernel does not take all of it now.
    pub(super) fn flush(&mut self) -> bool {
        self.drain_backlog();
        loop {
            let queued = self.uring.submission().len() as u32;
            if queued == 0 {
                return self.backlog.is_empty();
            }
            // Whatever is wrong shows again in `wait`, which reports it.
            match self.enter.call(queued, 0, None) {
                Ok(submitted) if submitted > 0 => {}
                _ => return false,
            }
        }
    }

    /// Re-arms receives that ran out of buffers, if there are buffers again.
    fn feed_starved(&mut self) {
        if self.starved.is_empty() || self.rx.available() == 0 {
            return;
        }
        for _ in 0..self.starved.len() {
            let Some(index) = self.starved.pop_front() else {
                return;
            };
            let provided = self.rx.is_provided();
            if let Work::Receive(receive) = self.ops.get_mut(index).work() {
                receive.step = if provided {
                    Step::Provided
                } else {
                    Step::Readable
                };
            }
            self.arm_receive(index);
        }
    }

    fn drain_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            // SAFETY: as in `push`.
            if unsafe { self.uring.submission().push(&entry) }.is_err() {
                let queued = self.uring.submission().len() as u32;
                let submitted = self.enter.call(queued, 0, None);
                self.backlog.push_front(entry);
                if submitted.is_err() {
                    return;
                }
            }
        }
    }

    /// Queues a cancellation, which points at nothing.
    pub(super) fn push_cancel(&mut self, entry: squeue::Entry) {
        self.push(entry);
    }

    /// Queues an entry whose operation is in the slab.
    pub(super) fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() {
            // SAFETY: everything the entry points at is owned by its operation in the slab until its last
            // completion, or it points at nothing.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
        self.drain_backlog();
    }

    fn start(
        &mut self,
        file: Id,
        token: Token,
        work: Work,
        build: impl FnOnce(Target) -> squeue::Entry,
    ) {
        match self.files.target(file) {
            Ok(target) => {
                let index = self.ops.insert(token, work);
                let entry = build(target).user_data(self.ops.key(index));
                self.push(entry);
            }
            Err(errno) => {
                let batch = match work {
                    Work::WriteVectored { batch } => Some(batch.into_box()),
                    _ => None,
                };
                self.fail(token, errno, batch);
            }
        }
    }

    /// Ends an operation that the kernel does not have.
    pub(super) fn end(&mut self, index: u32, errno: Errno) {
        let token = self.ops.get_mut(index).token;
        let batch = match self.ops.remove(index) {
            Work::Send { batch, .. } | Work::WriteVectored { batch } => Some(batch.into_box()),
            Work::Receive(Receive {
                step: Step::Into(id),
                ..
            }) => {
                self.rx.give_back(id);
                None
            }
            _ => None,
        };
        self.fail(token, errno, batch);
    }

    pub(super) fn fail(&mut self, token: Token, errno: Errno, batch: Option<Box<TxBatch>>) {
        self.local.push_back(Completion {
            batch,
            ..Completion::bare(token, Err(errno))
        });
    }

    /// The index under which `buf`'s chunk is registered with this ring; registers it when it is used first.
    fn fixed_index(&mut self, buf: &Buf) -> Option<u16> {
        match buf.fixed().get() {
            Fixed::Refused => None,
            Fixed::Index(index) => (buf.registration().0 == self.id).then_some(index),
            Fixed::Untried => self.register_chunk(buf),
        }
    }

    #[cold]
    fn register_chunk(&mut self, buf: &Buf) -> Option<u16> {
        let (ring, iovec) = buf.registration();
        if ring != self.id {
            return None;
        }
        let mut state = Fixed::Refused;
        if self.fixed.next < self.fixed.capacity {
            let index = self.fixed.next;
            // SAFETY: the kernel pins the pages, so that they stay valid whatever becomes of the mapping; entries
            // that use the index come from live buffers in this chunk only.
            match unsafe {
                self.uring
                    .submitter()
                    .register_buffers_update(index.into(), &[iovec], None)
            } {
                Ok(()) => {
                    self.fixed.next += 1;
                    state = Fixed::Index(index);
                }
                Err(error) => {
                    tracing::info!(%error, "buffers are used unregistered: RLIMIT_MEMLOCK is too low");
                    self.fixed.capacity = self.fixed.next;
                }
            }
        }
        buf.fixed().set(state);
        match state {
            Fixed::Index(index) => Some(index),
            _ => None,
        }
    }
}
