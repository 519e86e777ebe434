//! Rings, buffers, sockets and timers: everything between the protocol and the kernel.
//!
//! This is the only crate of the workspace with `unsafe` code; every public item is safe to use in any order.
//!
//! | module | what it is |
//! |---|---|
//! | [`buf`] | [`Buf`], counted handles to page-aligned memory, and [`BufPool`], where they come from |
//! | [`tx`] | [`TxBatch`], what one vectored send carries |
//! | [`ring`] | [`Ring`], one io_uring per shard |
//! | [`mailbox`] | messages to a shard that may be asleep in its ring |
//! | [`mem`] | the backing of memory namespaces, shared by shards |
//! | [`net`] | listening, connecting, socket options |
//! | [`cpu`], [`process`], [`probe`], [`timer`] | affinity; process-wide settings; what the kernel can do; deadlines |
//! | [`verbs`] | RDMA: connections and work requests, by libraries that are looked for at run time |
//! | [`sys`] | ioctls and system calls of the block device front ends |
//!
//! Invariant that makes the rest sound: memory that the kernel may touch is owned by an operation in the ring's
//! slab until the final completion of that operation, whatever the caller does meanwhile.

pub mod buf;
pub mod cpu;
pub mod mailbox;
pub mod mem;
pub mod net;
pub mod probe;
pub mod process;
pub mod ring;
pub mod sys;
pub mod timer;
pub mod tx;
pub mod verbs;

pub use buf::{Buf, BufPool, DetachedBuf, PoolConfig, Spare};
pub use ring::{
    Allocate, BigRing, CommandDone, Completion, FileId, Interest, Ring, RingConfig, RingError,
    RxChunk, RxScatter, SockId, Token, UblkCommand, Wait, WriteFlags,
};
pub use rustix::io::Errno;
pub use tx::TxBatch;
