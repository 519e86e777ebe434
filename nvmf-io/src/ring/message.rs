//! Reading messages from a character device, one per read: `/dev/fuse`.
//!
//! The device must be open without blocking, or a reader that finds another one was faster blocks the whole ring.
//! Such a read waits in the kernel for a message (since Linux 6.0); older kernels answer EAGAIN, and then a poll waits
//! and the read is tried again.

use std::ops::Range;

use io_uring::{opcode, squeue};
use rustix::io::Errno;

use super::files::{FileId, Id, Target};
use super::ops::Work;
use super::submit::entry;
use super::{Ring, Token};
use crate::buf::{Buf, KernelWrite};

/// A read of a message.
pub(super) struct Message {
    file: Id,
    into: KernelWrite,
    range: Range<u32>,
    /// The entry in flight is a poll, not the read.
    polling: bool,
}

impl Ring {
    /// Reads one message into `range` of `buf`, as soon as there is one. The range must have room for any message of
    /// the device. Several reads may wait at once; each gets a message of its own. Never uses registered memory: such
    /// devices refuse it.
    pub fn read_message(&mut self, device: FileId, buf: &Buf, range: Range<u32>, token: Token) {
        let Some(into) = KernelWrite::new(buf) else {
            return self.fail(token, Errno::BUSY, Work::Plain);
        };
        let _ = into.ptr(&range);
        let message = Message {
            file: device.0,
            into,
            range,
            polling: self.always_poll_messages,
        };
        let index = self.ops.insert(token, Work::Message(message));
        self.arm_message(index);
    }

    /// Completes when there may be a message: for a reader that waits for long, and so has no buffer meanwhile.
    pub fn await_message(&mut self, device: FileId, token: Token) {
        let readable = libc::POLLIN as u32;
        self.start(device.0, token, Work::Plain, |target| {
            entry!(target, |fd| opcode::PollAdd::new(fd, readable).build())
        });
    }

    /// Submits the entry for the step at which a message stands.
    fn arm_message(&mut self, index: u32) {
        let Work::Message(message) = self.ops.get_mut(index).work() else {
            return;
        };
        let Ok(target) = self.files.target(message.file) else {
            return self.end(index, Errno::BADF);
        };
        let entry = message.entry(target);
        self.push(entry.user_data(self.ops.key(index)));
    }

    /// Goes on with a message when its entry completed; false when that was the end of it.
    pub(super) fn continue_message(&mut self, index: u32, result: Result<u32, Errno>) -> bool {
        let Work::Message(message) = self.ops.get_mut(index).work() else {
            return false;
        };
        match (message.polling, result) {
            (true, Ok(_)) => message.polling = false,
            (false, Err(Errno::AGAIN)) => message.polling = true,
            _ => return false,
        }
        self.arm_message(index);
        true
    }
}

impl Message {
    fn entry(&self, target: Target) -> squeue::Entry {
        let (ptr, len) = (
            self.into.ptr(&self.range),
            self.range.end - self.range.start,
        );
        let readable = libc::POLLIN as u32;
        match (target, self.polling) {
            (Target::Fixed(fd), true) => opcode::PollAdd::new(fd, readable).build(),
            (Target::Fd(fd), true) => opcode::PollAdd::new(fd, readable).build(),
            (Target::Fixed(fd), false) => opcode::Read::new(fd, ptr, len).build(),
            (Target::Fd(fd), false) => opcode::Read::new(fd, ptr, len).build(),
        }
    }
}
