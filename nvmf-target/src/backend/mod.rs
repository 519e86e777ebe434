//! Where the blocks of a namespace are.
//!
//! [`Backing`] is one opened file, device or piece of memory, shared by all shards; [`Backend`] is how one shard uses it through
//! its ring. A checked command is data ([`Plan`] with a [`BackendOp`]); executing it ([`Work`]) is a loop of
//! two steps, [`Backend::submit`] and [`Backend::advance`], that the shard drives from completions. Nothing calls back.

mod backing;
mod claim;
mod command;
mod device;
mod error;
mod file;
mod memory;
mod passthrough;
mod status;
mod storage;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Arc;

use nvme_proto::wire::Status;
use nvmf_io::mem::SharedMemory;
use nvmf_io::{Errno, Ring, Token};

pub use backing::{Backing, BackingOptions, BackingSpec};
pub use command::{BackendOp, Plan, plan};
pub use error::BackingError;
pub use status::{Direction, status_of};
pub use work::{Lent, Next, PIECE_BYTES, Task, Work};

use backing::Kind;
use file::FileBackend;
pub use passthrough::Passthrough;

/// A [`Backing`] as one shard uses it.
#[derive(Debug)]
pub enum Backend {
    /// Reads zeroes, drops writes.
    Null,
    /// Memory of this process.
    Memory(Arc<SharedMemory>),
    /// A file or block device, registered with the shard's ring.
    File(FileBackend),
    /// A namespace of a local NVMe device.
    Passthrough(Box<Passthrough>),
    /// This shard cannot use it; the log says why.
    Unavailable,
}

impl Backend {
    /// Makes `backing` usable through `ring`, which completes `wake` whenever [`Passthrough::reap`] is due.
    pub fn attach(backing: &Arc<Backing>, ring: &mut Ring, wake: Token) -> Self {
        match &backing.kind {
            Kind::Null => Self::Null,
            Kind::Memory(memory) => Self::Memory(memory.clone()),
            Kind::Storage(storage) => {
                let file = ring.add_file(storage.fd.clone());
                let deferred = ring.features().deferred;
                Self::File(FileBackend::new(file, backing.clone(), deferred))
            }
            Kind::Device(device) => match Passthrough::new(device.clone(), ring, wake) {
                Ok(backend) => Self::Passthrough(Box::new(backend)),
                Err(error) => {
                    tracing::error!(backing = %backing.spec(), %error, "cannot be served by this shard");
                    Self::Unavailable
                }
            },
        }
    }

    /// Takes it out of `ring`. No command runs on it any more.
    pub fn detach(self, ring: &mut Ring) {
        match self {
            Self::File(backend) => {
                ring.remove_file(backend.file());
            }
            Self::Passthrough(backend) => backend.detach(ring),
            Self::Null | Self::Memory(_) | Self::Unavailable => {}
        }
    }

    /// Whether the data of `op` are zeroes that come from nowhere or go nowhere, so that it needs no buffer of its own.
    pub fn needs_no_buffer(&self, op: &BackendOp) -> bool {
        match (self, op) {
            (_, BackendOp::Nothing) => true,
            (Self::Null, op) => matches!(op, BackendOp::Read { .. } | BackendOp::Write { .. }),
            _ => false,
        }
    }

    /// Whether `op` is a read that is worth being waited with until the processor has fetched where it begins, which it was asked for now.
    #[inline]
    pub fn prefetch(&self, op: &BackendOp) -> bool {
        let (Self::Memory(memory), BackendOp::Read { offset_bytes, .. }) = (self, op) else {
            return false;
        };
        memory.prefetch(*offset_bytes);
        true
    }

    /// Executes a write whose `data` are all here but not in its buffer. `false`: nothing was done, it needs the buffer.
    #[inline]
    pub fn write_in_place(&self, op: &BackendOp, data: &[u8]) -> bool {
        match (self, *op) {
            (
                Self::Memory(memory),
                BackendOp::Write {
                    offset_bytes,
                    len_bytes,
                    ..
                },
            ) if data.len() == len_bytes as usize => {
                memory.write_bytes(offset_bytes, data);
                true
            }
            _ => false,
        }
    }

    /// Starts the next operation of a command; its completion carries the task's token.
    #[inline]
    pub fn submit(&mut self, task: &mut Task<'_>, lent: &mut Lent, ring: &mut Ring) -> Next {
        match self {
            Self::Null => Next::Done(memory::execute_null(task)),
            Self::Memory(memory) => Next::Done(memory::execute(memory, task)),
            Self::File(backend) => backend.submit(task, lent, ring),
            Self::Passthrough(backend) => backend.submit(task, lent),
            Self::Unavailable => Next::Done(Status::NAMESPACE_NOT_READY),
        }
    }

    /// Takes the result of the operation that the last [`Backend::submit`] of the command started.
    #[inline]
    pub fn advance(
        &mut self,
        task: &mut Task<'_>,
        lent: &mut Lent,
        result: Result<u32, Errno>,
    ) -> Next {
        match self {
            Self::File(backend) => backend.advance(task, lent, result),
            Self::Passthrough(backend) => backend.advance(task, lent, result),
            Self::Null | Self::Memory(_) | Self::Unavailable => Next::Done(Status::INTERNAL_ERROR),
        }
    }
}
