//! Where the blocks of a namespace are.
//!
//! [`Backing`] is one opened file, device or piece of memory, shared by all shards; [`Backend`] is how one shard uses it through
//! its ring. A checked command is data ([`Plan`] with a [`BackendOp`]); executing it ([`Work`]) is a loop of
//! two steps, [`Backend::submit`] and [`Backend::advance`], that the shard drives from completions. Nothing calls back.

mod backing;
mod claim;
mod command;
mod error;
mod file;
mod memory;
mod status;
#[cfg(test)]
mod tests;
mod work;

use std::sync::Arc;

use nvme_proto::wire::Status;
use nvmf_io::mem::SharedMemory;
use nvmf_io::{Errno, Ring};

pub use backing::{Backing, BackingOptions, BackingSpec};
pub use command::{BackendOp, Plan, plan};
pub use error::BackingError;
pub use status::{Direction, status_of};
pub use work::{Lent, Next, PIECE_BYTES, Task, Work};

use backing::Kind;
use file::FileBackend;

/// A [`Backing`] as one shard uses it.
#[derive(Debug)]
pub enum Backend {
    /// Reads zeroes, drops writes.
    Null,
    /// Memory of this process.
    Memory(Arc<SharedMemory>),
    /// A file or block device, registered with the shard's ring.
    File(FileBackend),
}

impl Backend {
    /// Makes `backing` usable through `ring`.
    pub fn attach(backing: &Arc<Backing>, ring: &mut Ring) -> Self {
        match &backing.kind {
            Kind::Null => Self::Null,
            Kind::Memory(memory) => Self::Memory(memory.clone()),
            Kind::Storage(storage) => {
                let file = ring.add_file(storage.fd.clone());
                Self::File(FileBackend::new(file, backing.clone()))
            }
        }
    }

    /// Takes it out of `ring`. No command runs on it any more.
    pub fn detach(self, ring: &mut Ring) {
        if let Self::File(backend) = self {
            ring.remove_file(backend.file());
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

    /// Starts the next operation of a command; its completion carries the task's token.
    #[inline]
    pub fn submit(&mut self, task: &mut Task<'_>, lent: &mut Lent, ring: &mut Ring) -> Next {
        match self {
            Self::Null => Next::Done(memory::execute_null(task)),
            Self::Memory(memory) => Next::Done(memory::execute(memory, task)),
            Self::File(backend) => backend.submit(task, lent, ring),
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
            Self::Null | Self::Memory(_) => Next::Done(Status::INTERNAL_ERROR),
        }
    }
}
