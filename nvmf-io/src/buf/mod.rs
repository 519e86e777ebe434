//! Data buffers: [`Buf`] handles, [`BufPool`] and the bookkeeping between them.
//!
//! Invariants:
//! - A buffer's bytes are initialised (they start as zero pages) and page-aligned.
//! - Handles are counted without atomics and cannot leave their thread; ring operations in flight hold handles.
//! - A reference to the bytes exists only while (a) it came from `&mut` of the only handle, or (b) the buffer is
//!   marked as being read, which every writer checks. Everything else copies through raw pointers.
//! - A [`DetachedBuf`] is the only way to a buffer's bytes while it lives, and keeps their memory itself: it may go to
//!   other threads and outlive the pool.

mod detached;
mod handle;
mod pool;

pub use detached::DetachedBuf;
pub(crate) use handle::KernelWrite;
pub use handle::{Buf, BufRef, copied_bytes};
pub(crate) use pool::Fixed;
pub use pool::{BufPool, CLASS_BYTES, PoolConfig, Spare, ZERO_BYTES};

#[cfg(test)]
mod tests;
