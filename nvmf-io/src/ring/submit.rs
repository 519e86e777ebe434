//! Files of the ring, handing operations to the kernel, waiting.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{opcode, squeue};
use rustix::io::Errno;

use super::files::{FileId, Id, SockId, Target};
use super::ops::{Receive, Step, Work};
use super::slab::IGNORED;
use super::{Completion, Ring, Token, Wait};

/// Builds an entry for a file that is registered or not.
macro_rules! entry {
    ($target:expr, |$fd:ident| $build:expr) => {
        match $target {
            $crate::ring::files::Target::Fixed($fd) => $build,
            $crate::ring::files::Target::Fd($fd) => $build,
        }
    };
}
pub(super) use entry;

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
        if let Work::Receive(receive) = self.ops.get_mut(index).work() {
            receive.cancelled = true;
            if receive.step == Step::Starved {
                self.starved.retain(|&starved| starved != index);
                return self.end(index, Errno::CANCELED);
            }
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
        let entered = self.enter.call(queued, want, limit);
        self.release_submitted();
        match entered {
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
                Ok(submitted) if submitted > 0 => self.release_submitted(),
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

    /// Adds an operation on a file and queues the entry that `build` makes for it.
    pub(super) fn start(
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
            Err(errno) => self.fail(token, errno, work),
        }
    }

    /// Ends an operation that the kernel does not have.
    pub(super) fn end(&mut self, index: u32, errno: Errno) {
        let token = self.ops.get_mut(index).token;
        let work = self.ops.remove(index);
        if let Work::Receive(Receive {
            step: Step::Into(id),
            ..
        }) = work
        {
            self.rx.give_back(id);
        }
        self.fail(token, errno, work);
    }

    pub(super) fn fail(&mut self, token: Token, errno: Errno, work: Work) {
        self.local
            .push_back(Completion::of(work, token, Err(errno)));
    }
}
