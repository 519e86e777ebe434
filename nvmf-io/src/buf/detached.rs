//! [`DetachedBuf`]: a pool's buffer on its way through other threads.
//!
//! Invariant: from [`BufPool::detach`](super::BufPool::detach) until it comes back (attached, or dropped and taken back) nobody
//! else reaches the buffer's bytes. The header that it names is looked at by the pool's thread alone; the memory is kept by the
//! mapping's own count, so that it is there even when the pool has ended.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use crossbeam_queue::SegQueue;

use super::handle::{Buf, Header};
use crate::sys::mmap::Mapping;

/// Buffers that were dropped elsewhere, until their pool takes them back.
#[derive(Default)]
pub(super) struct Home {
    returned: SegQueue<Returned>,
}

struct Returned(NonNull<Header>);

// SAFETY: the pointer is only carried; it is followed by the pool's thread alone.
unsafe impl Send for Returned {}

impl Home {
    pub(super) fn take(&self) -> Option<NonNull<Header>> {
        self.returned.pop().map(|returned| returned.0)
    }
}

/// A buffer of a [`BufPool`](super::BufPool) with one owner, which any thread may be: plain bytes to fill and to look at. When it
/// is dropped the pool has it again.
///
/// ```
/// use nvmf_io::{BufPool, PoolConfig};
/// let pool = BufPool::new(&PoolConfig::default());
/// let buf = pool.alloc(4096).expect("a new pool is not dry");
/// let mut detached = pool.detach(buf).expect("the only handle");
/// let filled = std::thread::spawn(move || {
///     detached.fill(7);
///     detached
/// });
/// let buf = pool.attach(filled.join().unwrap()).expect("it is this pool's");
/// assert!(buf.bytes().expect("nobody writes").iter().all(|byte| *byte == 7));
/// ```
pub struct DetachedBuf {
    data: NonNull<u8>,
    len: usize,
    /// `None` once it was attached again.
    header: Option<NonNull<Header>>,
    home: Arc<Home>,
    /// Keeps `data`.
    _mapping: Arc<Mapping>,
}

// SAFETY: the bytes belong to this value alone (see the module's text), and the header is not followed here.
unsafe impl Send for DetachedBuf {}
// SAFETY: through a shared reference the bytes can only be read.
unsafe impl Sync for DetachedBuf {}

impl DetachedBuf {
    /// `buf` is the only handle and will be forgotten; `None` for the shared zero buffer.
    pub(super) fn new(buf: &Buf, home: &Arc<Home>) -> Option<Self> {
        let (mapping, read_only) = buf.mapping();
        if read_only {
            return None;
        }
        let header = buf.header_ptr();
        // SAFETY: `buf` keeps the header alive.
        let fields = unsafe { header.as_ref() };
        Some(Self {
            data: fields.data,
            len: fields.len.get() as usize,
            header: Some(header),
            home: home.clone(),
            _mapping: mapping,
        })
    }

    /// Gives the header to the pool whose home is `home`; comes back when it is of another.
    pub(super) fn into_header(mut self, home: &Arc<Home>) -> Result<NonNull<Header>, Self> {
        if !Arc::ptr_eq(&self.home, home) {
            return Err(self);
        }
        Ok(self.header.take().expect("present until here"))
    }
}

impl Deref for DetachedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is kept, `len` bytes from `data` on are this buffer's and initialised, and nobody else
        // reaches them.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl DerefMut for DetachedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for DetachedBuf {
    fn drop(&mut self) {
        if let Some(header) = self.header.take() {
            self.home.returned.push(Returned(header));
        }
    }
}

impl fmt::Debug for DetachedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachedBuf")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
