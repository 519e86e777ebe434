//! Block devices on top of a namespace: ublk, FUSE + loop, the kernel's nbd, and an NBD server on a unix socket.
//!
//! A device has two halves. The *device* half ([`Device`]) belongs to the control thread: it creates, resizes and
//! removes the kernel's device with calls that may block. The *queue* half ([`FrontEnd`], one per shard) never blocks:
//! it is a state machine between the completions of the shard's [`Ring`] and [`BlockRequest`]s, so it can be tested on a
//! memory or null backing without any network.
//!
//! ```text
//!   kernel --Completion--> FrontEnd --BlockRequest--> backing (a namespace head, memory, null)
//!   kernel <--ring op----- FrontEnd <--BlockDone----- backing
//! ```
//!
//! Invariants: every [`BlockRequest`] is answered by exactly one [`BlockDone`] with its tag; a request never exceeds the
//! [`BlockLimits`] of the device and is aligned to the block size; the buffer of a request stays alive until its answer.

mod commands;
mod device;
mod form;
mod fuse;
mod in_use;
pub mod keeper;
mod nbd;
pub mod serve;
mod spec;
mod ublk;

pub use crate::tokens::TokenSpace;
pub use device::{Device, DeviceState, Kept, QueueSetup};
pub use form::{BlockForm, FormUnavailable, NoForm};
pub use in_use::Use;
pub use spec::{DeviceError, DeviceSpec};

use fuse::FuseDevice;
use nbd::{NbdDevice, NbdSocketDevice};
use ublk::UblkDevice;

use nvmf_io::{Buf, BufPool, Completion, Ring};
use rustix::io::Errno;

/// What a block request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Fill the buffer from the namespace.
    Read,
    /// Store the buffer in the namespace; with `fua` it is on stable storage before the answer.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Everything that was answered before this request was made reaches stable storage.
    Flush,
    /// The content of the range no longer matters; what it reads as afterwards is not defined.
    Discard,
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// The backing may deallocate the range, as long as it then reads as zeroes.
        unmap: bool,
    },
}

/// One operation on the backing, small enough for one command of it.
#[derive(Debug)]
pub struct BlockRequest {
    /// What to do.
    pub op: BlockOp,
    /// First byte on the device, a multiple of the block size. 0 for a flush.
    pub offset_bytes: u64,
    /// Length, a multiple of the block size. 0 for a flush.
    pub len_bytes: u32,
    /// The payload of a read (to be filled) or of a write.
    pub buf: Option<Buf>,
    /// Where in `buf` the payload starts.
    pub buf_offset_bytes: u32,
    /// To be returned in the [`BlockDone`]; unique among the open requests of one front end, fewer than 2^32 values.
    pub tag: u64,
}

/// The answer to a [`BlockRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockDone {
    /// The request's tag.
    pub tag: u64,
    /// Success, or the error that the device's user shall see.
    pub result: Result<(), Errno>,
}

/// The largest operations that the backing takes in one request. A zero means that the operation is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// Bytes of a read or write; at least one block.
    pub max_transfer_bytes: u32,
    /// Bytes of a discard.
    pub max_discard_bytes: u32,
    /// Bytes of a write-zeroes.
    pub max_write_zeroes_bytes: u32,
}

impl BlockLimits {
    /// The largest request of the given kind; `u32::MAX` for a flush, which has no length.
    pub fn max_bytes(&self, op: BlockOp) -> u32 {
        match op {
            BlockOp::Read | BlockOp::Write { .. } => self.max_transfer_bytes,
            BlockOp::Discard => self.max_discard_bytes,
            BlockOp::WriteZeroes { .. } => self.max_write_zeroes_bytes,
            BlockOp::Flush => u32::MAX,
        }
    }
}

/// What a front end works with during one call.
pub struct FrontEndIo<'a> {
    /// The shard's ring.
    pub ring: &'a mut Ring,
    /// The shard's buffers. When it is dry, front ends leave requests in the kernel and try again in the next turn.
    pub pool: &'a BufPool,
    /// Where requests for the backing go.
    pub requests: &'a mut Vec<BlockRequest>,
    /// Front ends of the shard, this one among them: the more there are, the less each may hold of what all need.
    pub front_ends: usize,
}

/// The queue half of a device, owned by one shard.
///
/// Call order: `start` once; then, in each turn of the shard's loop, `on_completion` for each completion of this front
/// end's [`TokenSpace`], `on_done` for each answer of the backing, and `end_turn` once, which sends what the turn
/// produced; where nothing came for it, `end_turn` may be left out unless it `wants_every_turn`. After `stop`, or after the kernel ended the device, go on until `is_finished`; then drop it.
pub trait FrontEnd {
    /// Registers with the ring and begins to take requests.
    fn start(&mut self, tokens: TokenSpace, io: &mut FrontEndIo<'_>) -> std::io::Result<()>;
    /// A ring operation of this front end completed.
    fn on_completion(&mut self, completion: Completion, io: &mut FrontEndIo<'_>);
    /// The backing answered a request.
    fn on_done(&mut self, done: BlockDone, io: &mut FrontEndIo<'_>);
    /// The turn is over: submit what is pending, re-arm what waits.
    fn end_turn(&mut self, io: &mut FrontEndIo<'_>);
    /// Whether turns must end for this front end in which nothing came for it, as when it waits for a buffer.
    fn wants_every_turn(&self) -> bool {
        true
    }
    /// Nothing has been asked of the device for a while: let go of buffers that only wait for the next request.
    fn rest(&mut self, _io: &mut FrontEndIo<'_>) {}
    /// Take no further requests. Requests at the backing are still answered.
    fn stop(&mut self, io: &mut FrontEndIo<'_>);
    /// Nothing of this front end is open any more, neither in the ring nor at the backing.
    fn is_finished(&self) -> bool;
}
