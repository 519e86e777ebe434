//! Commands to `/dev/ublkcN`: fetching the requests of a ublk device and completing them.
//!
//! The driver copies payload when it takes an entry (a read's, out of our memory) or before it completes one (a
//! write's, into our memory). So the payload of a write belongs to the operation until its completion, as all memory
//! does; the payload of a read only until the entry is submitted: the operation itself completes when the tag's next
//! request comes, which may be never.

use io_uring::opcode;
use rustix::io::Errno;

use super::files::{FileId, Target};
use super::ops::Work;
use super::{Ring, Token};
use crate::buf::{Buf, KernelWrite};

/// What to do with a tag of a queue. A closed set: the codes of other devices may name memory in other places.
#[derive(Clone, Copy, Debug)]
pub enum UblkCommand<'a> {
    /// Fetch the tag's first request.
    Fetch,
    /// Copy the payload of the tag's write request here.
    GetData(&'a Buf),
    /// Complete the tag's request, and fetch its next.
    Commit {
        /// Bytes, or a negative error number.
        result: i32,
        /// The payload of a read; also of one that failed.
        payload: Option<&'a Buf>,
    },
}

impl UblkCommand<'_> {
    /// The ioctl-encoded code, which Linux 6.4 and newer take: `_IOWR('u', n, struct ublksrv_io_cmd)`.
    fn code(self) -> u32 {
        match self {
            Self::Fetch => 0xc010_7520,
            Self::Commit { .. } => 0xc010_7521,
            Self::GetData(_) => 0xc010_7522,
        }
    }
}

impl Ring {
    /// Gives a command to the driver. It completes when the driver has something to say about the tag: 0 for a request
    /// that is described in the queue's descriptors, 1 for a write request whose payload is to be got first, ENODEV when
    /// the device is gone.
    pub fn ublk(
        &mut self,
        device: FileId,
        queue: u16,
        tag: u16,
        command: UblkCommand<'_>,
        token: Token,
    ) {
        let (result, addr, work) = match command {
            UblkCommand::Fetch => (0, 0, Work::Plain),
            UblkCommand::GetData(buf) => {
                let Some(into) = KernelWrite::new(buf) else {
                    return self.fail(token, Errno::BUSY, Work::Plain);
                };
                (0, into.ptr(&(0..buf.len())).addr(), Work::Fill(into))
            }
            UblkCommand::Commit { result, payload } => {
                let addr = payload.map_or(0, |buf| {
                    self.until_submitted.push(buf.clone());
                    buf.kernel_ptr(&(0..buf.len())).addr()
                });
                (result, addr, Work::Plain)
            }
        };
        let mut bytes = [0; 16];
        bytes[0..2].copy_from_slice(&queue.to_ne_bytes());
        bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
        bytes[4..8].copy_from_slice(&result.to_ne_bytes());
        bytes[8..16].copy_from_slice(&(addr as u64).to_ne_bytes());
        self.start(device.0, token, work, |target| match target {
            Target::Fixed(fd) => opcode::UringCmd16::new(fd, command.code())
                .cmd(bytes)
                .build(),
            Target::Fd(fd) => opcode::UringCmd16::new(fd, command.code())
                .cmd(bytes)
                .build(),
        });
    }

    /// Lets go of what was needed until the submission, once all is submitted.
    pub(super) fn release_submitted(&mut self) {
        if !self.until_submitted.is_empty()
            && self.backlog.is_empty()
            && self.uring.submission().is_empty()
        {
            self.until_submitted.clear();
        }
    }
}
