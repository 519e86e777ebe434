//! Operations on sockets, and waiting for descriptors.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::{opcode, squeue, types};
use rustix::io::Errno;

use super::files::{Id, SockId};
use super::ops::{InFlight, Receive, Step, Work};
use super::rx::GROUP;
use super::scatter::RxScatter;
use super::submit::entry;
use super::{Ring, Token};
use crate::buf::{Buf, KernelWrite};
use crate::tx::TxBatch;

/// What a poll waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, or a peer that hung up.
    Readable,
    /// Room to write.
    Writable,
}

impl Ring {
    /// Shuts both directions of a socket down (at once, not queued): receives in flight end with 0 bytes, sends with
    /// EPIPE.
    pub fn shutdown(&mut self, socket: SockId) -> io::Result<()> {
        Ok(rustix::net::shutdown(
            self.files.fd(socket.0)?,
            rustix::net::Shutdown::Both,
        )?)
    }

    /// Receives again and again into receive buffers, a completion with an [`RxChunk`](super::RxChunk) for each,
    /// until the stream ends (0 bytes, `more` false), fails, or is cancelled. When receive buffers run out it goes
    /// on as soon as one is given back.
    pub fn recv_multishot(&mut self, socket: SockId, token: Token) {
        self.receive(socket.0, true, 0, token);
    }

    /// Receives once into a receive buffer.
    pub fn recv_once(&mut self, socket: SockId, token: Token) {
        self.receive(socket.0, false, 0, token);
    }

    /// Receives once into a receive buffer, at most `limit_bytes`, which must not be 0.
    pub fn recv_at_most(&mut self, socket: SockId, limit_bytes: u32, token: Token) {
        debug_assert!(limit_bytes > 0);
        self.receive(socket.0, false, limit_bytes, token);
    }

    fn receive(&mut self, file: Id, multishot: bool, limit: u32, token: Token) {
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
                limit,
                cancelled: false,
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
        let Receive {
            file,
            multishot,
            limit,
            step,
            ..
        } = *receive;
        let Ok(target) = self.files.target(file) else {
            return self.end(index, Errno::BADF);
        };
        let entry = match step {
            Step::Provided if multishot => {
                entry!(target, |fd| opcode::RecvMulti::new(fd, GROUP).build())
            }
            Step::Provided => entry!(target, |fd| opcode::Recv::new(
                fd,
                std::ptr::null_mut(),
                limit
            )
            .buf_group(GROUP)
            .build())
            .flags(squeue::Flags::BUFFER_SELECT),
            Step::Into(id) => {
                let (ptr, len) = self.rx.target(id);
                let len = if limit > 0 { len.min(limit) } else { len };
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
            return self.fail(token, Errno::BUSY, Work::Plain);
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

    /// Receives once, as much as there is: first into a range of a buffer (`None`: there is none), then at most `room_bytes` (and
    /// [`RxScatter::ROOM_BYTES`]) into the scatter's room. The scatter comes back in the completion and tells what came where.
    pub fn recv_scatter(
        &mut self,
        socket: SockId,
        mut scatter: Box<RxScatter>,
        into: Option<(&Buf, Range<u32>)>,
        room_bytes: u32,
        token: Token,
    ) {
        if !scatter.aim(into, room_bytes) {
            let work = Work::Scatter {
                scatter: InFlight::new(scatter),
            };
            return self.fail(token, Errno::BUSY, work);
        }
        let mut scatter = InFlight::new(scatter);
        let message = scatter.as_mut().message();
        self.start(socket.0, token, Work::Scatter { scatter }, |target| {
            entry!(target, |fd| opcode::RecvMsg::new(fd, message).build())
        });
    }

    /// Sends all of a batch; it comes back in the completion. One send at a time for each socket.
    pub fn send(&mut self, socket: SockId, batch: Box<TxBatch>, token: Token) {
        let work = Work::Send {
            file: socket.0,
            batch: InFlight::new(batch),
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
        let (file, batch) = (*file, batch.as_mut());
        // A message and its vector are copied and checked by the kernel; one segment, as a command without data is, goes without.
        let only = batch.only_segment();
        let message = batch.message();
        let Ok(target) = self.files.target(file) else {
            return self.end(index, Errno::BADF);
        };
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = match only {
            Some((ptr, len)) => entry!(target, |fd| opcode::Send::new(fd, ptr, len as u32)
                .flags(flags)
                .build()),
            None => entry!(target, |fd| opcode::SendMsg::new(fd, message)
                .flags(flags as u32)
                .build()),
        };
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
            Err(errno) => self.fail(token, errno, Work::Plain),
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
}
