//! The queue half: one hardware queue.
//!
//! A tag is always in one place: in the ring (fetching, or getting a write's payload), waiting for a buffer, at the
//! backing, or gone with the device.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nvmf_io::sys::ublk::{UblkDescriptor, UblkDescriptors, UblkRequestFlags, op};
use nvmf_io::{Buf, Completion, Errno, FileId, UblkCommand};

use super::MAX_TRANSFER_BYTES;
use crate::block::commands::{Commands, Finished, Operation};
use crate::block::spec::Geometry;
use crate::block::{BlockDone, BlockLimits, BlockOp, FrontEnd, FrontEndIo, TokenSpace};

/// The driver described a request.
const READY: u32 = 0;
/// The driver described a write, and waits to be told where its payload shall go.
const NEED_GET_DATA: u32 = 1;

struct Reply {
    tag: u16,
    /// What the driver is told on success.
    bytes: u32,
    is_read: bool,
}

/// See the [module](self).
pub(super) struct UblkFrontEnd {
    geometry: Arc<Geometry>,
    device: Arc<OwnedFd>,
    queue: u16,
    commands: Commands<Reply>,
    /// Where the driver copies the payload of a tag's write to.
    payloads: Vec<Option<Buf>>,
    /// Tags that wait for a buffer.
    parked: VecDeque<u16>,
    /// Tags that are gone with the device.
    gone: usize,
    running: Option<Running>,
}

struct Running {
    file: FileId,
    tokens: TokenSpace,
    descriptors: UblkDescriptors,
}

impl UblkFrontEnd {
    pub fn new(
        device: Arc<OwnedFd>,
        queue: u16,
        depth: u16,
        geometry: Arc<Geometry>,
        limits: BlockLimits,
    ) -> Self {
        UblkFrontEnd {
            geometry,
            device,
            queue,
            commands: Commands::new(limits, depth.into()),
            payloads: (0..depth).map(|_| None).collect(),
            parked: VecDeque::with_capacity(depth.into()),
            gone: 0,
            running: None,
        }
    }

    fn command(&self, tag: u16, command: UblkCommand<'_>, io: &mut FrontEndIo<'_>) {
        let Some(running) = &self.running else { return };
        io.ring.ublk(
            running.file,
            self.queue,
            tag,
            command,
            running.tokens.token(tag.into()),
        );
    }

    fn commit(&self, tag: u16, result: i32, payload: Option<&Buf>, io: &mut FrontEndIo<'_>) {
        self.command(tag, UblkCommand::Commit { result, payload }, io);
    }

    /// Takes up the request that the driver described for `tag`.
    fn begin(&mut self, tag: u16, io: &mut FrontEndIo<'_>) {
        let Some(running) = &self.running else { return };
        let request = running.descriptors.get(tag);
        let len_bytes = match self.check(&request) {
            Ok(len_bytes) => len_bytes,
            Err(errno) => {
                // A read must name memory even if it fails.
                let payload = if request.op == op::READ {
                    io.pool.zero()
                } else {
                    None
                };
                return self.commit(tag, -errno.raw_os_error(), payload.as_ref(), io);
            }
        };
        let operation = match request.op {
            op::READ | op::WRITE => {
                let Some(buf) = io.pool.alloc(len_bytes) else {
                    return self.parked.push_back(tag);
                };
                if request.op == op::WRITE {
                    self.command(tag, UblkCommand::GetData(&buf), io);
                    self.payloads[usize::from(tag)] = Some(buf);
                    return;
                }
                Self::operation(BlockOp::Read, &request, Some(buf))
            }
            op::FLUSH => Operation {
                op: BlockOp::Flush,
                offset_bytes: 0,
                len_bytes: 0,
                payload: None,
            },
            op::DISCARD => Self::operation(BlockOp::Discard, &request, None),
            op::WRITE_ZEROES => {
                let unmap = !request.flags.contains(UblkRequestFlags::NOUNMAP);
                Self::operation(BlockOp::WriteZeroes { unmap }, &request, None)
            }
            _ => return self.commit(tag, -Errno::OPNOTSUPP.raw_os_error(), None, io),
        };
        let is_read = request.op == op::READ;
        let bytes = if is_read { len_bytes } else { 0 };
        self.open(
            Reply {
                tag,
                bytes,
                is_read,
            },
            operation,
            io,
        );
    }

    /// The payload of the tag's write has arrived.
    fn begin_write(&mut self, tag: u16, buf: Buf, io: &mut FrontEndIo<'_>) {
        let Some(running) = &self.running else { return };
        // Its length may have become less: the driver copies what memory allows.
        let request = running.descriptors.get(tag);
        let bytes = request.sectors << 9;
        if request.op != op::WRITE || bytes == 0 || bytes > buf.len() {
            return self.commit(tag, -Errno::IO.raw_os_error(), None, io);
        }
        let fua = request.flags.contains(UblkRequestFlags::FUA);
        let operation = Self::operation(BlockOp::Write { fua }, &request, Some(buf));
        self.open(
            Reply {
                tag,
                bytes,
                is_read: false,
            },
            operation,
            io,
        );
    }

    fn operation(op: BlockOp, request: &UblkDescriptor, payload: Option<Buf>) -> Operation {
        Operation {
            op,
            offset_bytes: request.start_sector << 9,
            len_bytes: u64::from(request.sectors) << 9,
            payload: payload.map(|buf| (buf, 0)),
        }
    }

    /// The driver checks requests too; this guards the arithmetic, and a device that shrank under a request.
    fn check(&self, request: &UblkDescriptor) -> Result<u32, Errno> {
        if request.op == op::FLUSH {
            return Ok(0);
        }
        let len_bytes = u64::from(request.sectors) << 9;
        let offset_bytes = request.start_sector.checked_mul(512).ok_or(Errno::INVAL)?;
        let max_bytes = match request.op {
            op::READ | op::WRITE => u64::from(MAX_TRANSFER_BYTES),
            _ => u64::MAX,
        };
        if len_bytes == 0
            || len_bytes > max_bytes
            || !self.geometry.contains(offset_bytes, len_bytes)
        {
            return Err(Errno::INVAL);
        }
        Ok(len_bytes.min(max_bytes).min(u32::MAX.into()) as u32)
    }

    fn open(&mut self, reply: Reply, operation: Operation, io: &mut FrontEndIo<'_>) {
        if let Some(finished) = self.commands.open(reply, operation, io.requests) {
            self.finish(&finished, io);
        }
    }

    fn finish(&mut self, finished: &Finished<Reply>, io: &mut FrontEndIo<'_>) {
        let Reply {
            tag,
            bytes,
            is_read,
        } = finished.reply;
        let result = match finished.result {
            Ok(()) => bytes as i32,
            Err(errno) => -errno.raw_os_error(),
        };
        let payload = finished
            .payload
            .as_ref()
            .filter(|_| is_read)
            .map(|(buf, _)| buf);
        self.commit(tag, result, payload, io);
    }
}

impl FrontEnd for UblkFrontEnd {
    fn start(&mut self, tokens: TokenSpace, io: &mut FrontEndIo<'_>) -> io::Result<()> {
        let depth = self.payloads.len() as u16;
        let descriptors = UblkDescriptors::map(self.device.as_fd(), self.queue, depth)?;
        let file = io.ring.add_file(self.device.clone());
        self.running = Some(Running {
            file,
            tokens,
            descriptors,
        });
        for tag in 0..depth {
            self.command(tag, UblkCommand::Fetch, io);
        }
        Ok(())
    }

    fn on_completion(&mut self, completion: Completion, io: &mut FrontEndIo<'_>) {
        let tag = TokenSpace::local_of(completion.token) as u16;
        let Some(payload) = self.payloads.get_mut(usize::from(tag)).map(Option::take) else {
            return;
        };
        match (completion.result, payload) {
            (Ok(READY), Some(buf)) => self.begin_write(tag, buf, io),
            (Ok(READY | NEED_GET_DATA), _) => self.begin(tag, io),
            (Err(Errno::NODEV), _) => self.gone += 1,
            (result, _) => {
                let device = &self.geometry.name;
                tracing::error!(%device, queue = self.queue, tag, ?result, "ublk refused a command; the tag is lost");
                self.gone += 1;
            }
        }
    }

    fn on_done(&mut self, done: BlockDone, io: &mut FrontEndIo<'_>) {
        if let Some(finished) = self.commands.done(done, io.requests) {
            self.finish(&finished, io);
        }
    }

    fn end_turn(&mut self, io: &mut FrontEndIo<'_>) {
        // Each is tried once: those for which there is still no buffer come back to the end of the line.
        for _ in 0..self.parked.len() {
            let Some(tag) = self.parked.pop_front() else {
                return;
            };
            self.begin(tag, io);
        }
        if self.is_finished()
            && let Some(running) = self.running.take()
        {
            io.ring.remove_file(running.file);
        }
    }

    fn wants_every_turn(&self) -> bool {
        !self.parked.is_empty()
    }

    /// A queue ends with its device, or with the process: the driver has no other way.
    fn stop(&mut self, _io: &mut FrontEndIo<'_>) {}

    fn is_finished(&self) -> bool {
        self.gone == self.payloads.len()
    }
}
