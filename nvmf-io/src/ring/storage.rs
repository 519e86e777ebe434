//! Operations on files and devices, with registered memory where the kernel takes it.

use std::ops::Range;

use bitflags::bitflags;
use io_uring::{opcode, types};
use rustix::io::Errno;

use super::files::FileId;
use super::ops::{InFlight, Work};
use super::submit::entry;
use super::{Ring, Token};
use crate::buf::{Buf, Fixed, KernelWrite};
use crate::tx::TxBatch;

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

impl Ring {
    /// Reads into `range` of `buf`. Completes with the number of bytes, less than asked for at the end of the file.
    pub fn read(&mut self, file: FileId, offset: u64, buf: &Buf, range: Range<u32>, token: Token) {
        let Some(into) = KernelWrite::new(buf) else {
            return self.fail(token, Errno::BUSY, Work::Plain);
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
            batch: InFlight::new(batch),
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
