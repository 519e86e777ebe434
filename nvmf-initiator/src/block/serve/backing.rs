//! Backings without a network.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nvmf_io::mem::SharedMemory;
use nvmf_io::{Allocate, Completion, Errno, FileId, Ring, WriteFlags};

use super::BACKING;
use crate::block::{BlockDone, BlockOp, BlockRequest, TokenSpace};

/// Where the data is.
#[derive(Clone)]
pub enum Backing {
    /// Nowhere: reads give zeroes, writes are forgotten.
    Null,
    /// In memory that is at least as large as the device will ever be.
    Memory(Arc<SharedMemory>),
    /// In a file.
    File(Arc<OwnedFd>),
}

/// A backing as one shard uses it.
pub(super) enum OpenBacking {
    Null,
    Memory(Arc<SharedMemory>),
    File(OpenFile),
}

impl OpenBacking {
    pub fn new(backing: &Backing, ring: &mut Ring) -> Self {
        match backing {
            Backing::Null => OpenBacking::Null,
            Backing::Memory(memory) => OpenBacking::Memory(memory.clone()),
            Backing::File(fd) => OpenBacking::File(OpenFile {
                file: ring.add_file(fd.clone()),
                open: Vec::new(),
                free: Vec::new(),
            }),
        }
    }

    /// Carries out a request, or starts it: then the answer comes with a completion.
    pub fn submit(&mut self, request: BlockRequest, ring: &mut Ring) -> Option<BlockDone> {
        let tag = request.tag;
        let result = match self {
            OpenBacking::Null => {
                if let (BlockOp::Read, Some(buf)) = (request.op, &request.buf) {
                    buf.fill(payload(&request), 0);
                }
                Ok(())
            }
            OpenBacking::Memory(memory) => in_memory(memory, &request),
            OpenBacking::File(file) => {
                file.start(&request, ring);
                return None;
            }
        };
        Some(BlockDone { tag, result })
    }

    pub fn on_completion(&mut self, completion: &Completion) -> Option<BlockDone> {
        match self {
            OpenBacking::File(file) => file.finish(completion),
            OpenBacking::Null | OpenBacking::Memory(_) => None,
        }
    }
}

fn payload(request: &BlockRequest) -> Range<u32> {
    request.buf_offset_bytes..request.buf_offset_bytes + request.len_bytes
}

fn in_memory(memory: &SharedMemory, request: &BlockRequest) -> Result<(), Errno> {
    let offset = request.offset_bytes;
    match (request.op, &request.buf) {
        (BlockOp::Read, Some(buf)) => memory.read(offset, buf, payload(request)),
        (BlockOp::Write { .. }, Some(buf)) => memory.write(offset, buf, payload(request)),
        (BlockOp::Read | BlockOp::Write { .. }, None) => return Err(Errno::INVAL),
        (BlockOp::Flush, _) => {}
        (BlockOp::Discard | BlockOp::WriteZeroes { .. }, _) => {
            let range = offset..offset + u64::from(request.len_bytes);
            memory.clear(range).map_err(|_| Errno::IO)?;
        }
    }
    Ok(())
}

/// A file, and the requests that the ring has for it.
pub(super) struct OpenFile {
    file: FileId,
    /// Tag and expected count of each request, by the lower half of its token.
    open: Vec<Option<(u64, u32)>>,
    free: Vec<u32>,
}

impl OpenFile {
    fn start(&mut self, request: &BlockRequest, ring: &mut Ring) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() as u32 - 1
        });
        let (file, token, offset) = (self.file, BACKING.token(slot), request.offset_bytes);
        let mut expected = 0;
        match (request.op, &request.buf) {
            (BlockOp::Read, Some(buf)) => {
                expected = request.len_bytes;
                ring.read(file, offset, buf, payload(request), token);
            }
            (BlockOp::Write { fua }, Some(buf)) => {
                expected = request.len_bytes;
                let flags = WriteFlags { dsync: fua };
                ring.write(file, offset, buf, payload(request), flags, token);
            }
            // No payload to move: completes with 0, which is not what is expected.
            (BlockOp::Read | BlockOp::Write { .. }, None) => {
                expected = request.len_bytes;
                ring.nop(token);
            }
            (BlockOp::Flush, _) => ring.fsync(file, true, token),
            (BlockOp::Discard | BlockOp::WriteZeroes { .. }, _) => {
                let hole = Allocate::PUNCH_HOLE | Allocate::KEEP_SIZE;
                ring.fallocate(file, hole, offset, request.len_bytes.into(), token);
            }
        }
        self.open[slot as usize] = Some((request.tag, expected));
    }

    fn finish(&mut self, completion: &Completion) -> Option<BlockDone> {
        let slot = TokenSpace::local_of(completion.token);
        let (tag, expected) = self.open.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        let result = match completion.result {
            Ok(bytes) if bytes == expected => Ok(()),
            Ok(_) => Err(Errno::IO),
            Err(errno) => Err(errno),
        };
        Some(BlockDone { tag, result })
    }
}
