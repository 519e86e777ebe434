//! [`Buf`]: one owner of a piece of pool memory.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use nvme_proto::digest::Crc;

use super::pool::{Chunk, Fixed};
use crate::sys::mmap::Mapping;

/// Bytes copied at a time where a buffer cannot be borrowed because the kernel may be writing elsewhere in it.
const BOUNCE_BYTES: usize = 4096;

thread_local! {
    static COPIED_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that this thread has copied into buffers, out of them and between them so far: by [`Buf::copy_in`], [`Buf::copy_out`] and
/// [`Buf::copy_from`].
pub fn copied_bytes() -> u64 {
    COPIED_BYTES.get()
}

#[inline]
fn count_copied(bytes: usize) {
    COPIED_BYTES.set(COPIED_BYTES.get() + bytes as u64);
}

/// Bookkeeping of one buffer; lives in its chunk's header slab, apart from the data.
pub(super) struct Header {
    /// Handles alive; 0 while the buffer is on its free list.
    pub(super) refs: Cell<u32>,
    /// Operations in flight through which the kernel may write to the buffer.
    pub(super) kernel_writers: Cell<u32>,
    /// [`BufRef`]s alive.
    pub(super) readers: Cell<u32>,
    /// What was asked for, at most the class size.
    pub(super) len: Cell<u32>,
    pub(super) data: NonNull<u8>,
    pub(super) chunk: NonNull<Chunk>,
}

/// A counted handle to page-aligned memory of a [`BufPool`](super::BufPool).
///
/// Cloning makes another owner of the same bytes; the memory returns to the pool with the last owner, and a ring
/// operation is an owner until its completion. Since others (the kernel too) may own the bytes, they are copied in
/// and out, or borrowed for a moment with [`Buf::bytes`]; a sole owner can write in place with [`Buf::get_mut`].
///
/// The content of a fresh buffer is whatever its last user left: overwrite it, or [`Buf::fill`] it, before it goes
/// to a peer.
///
/// ```
/// use nvmf_io::{BufPool, PoolConfig};
/// let pool = BufPool::new(&PoolConfig::default());
/// let mut buf = pool.alloc(4096).expect("a new pool is not dry");
/// buf.copy_in(0, b"block");
/// let other = buf.clone();
/// let mut back = [0; 5];
/// other.copy_out(0, &mut back);
/// assert_eq!(&back, b"block");
/// assert_eq!(&other.bytes().expect("nobody writes")[..5], b"block");
/// assert!(buf.get_mut().is_none(), "two owners");
/// drop(other);
/// buf.get_mut().expect("one owner")[..5].fill(0);
/// ```
///
/// # Panics
/// Methods panic when the range given lies outside `0..len()`, as slices do. Those that write also panic on the
/// pool's shared zero buffer and while a [`BufRef`] of the same memory is alive, as `RefCell` does.
pub struct Buf {
    header: NonNull<Header>,
}

impl Buf {
    /// Takes over one count of `refs`, which the pool has set.
    ///
    /// # Safety
    /// `header` belongs to a live chunk, its `refs` counts the handle made here, and the chunk's pool has one
    /// strong count for this buffer.
    pub(super) unsafe fn from_header(header: NonNull<Header>) -> Self {
        Self { header }
    }

    fn header(&self) -> &Header {
        // SAFETY: a handle keeps `refs` above zero, and a chunk with such a header is neither re-carved nor freed:
        // the pool has a strong count for each buffer with handles. Headers are only changed through cells.
        unsafe { self.header.as_ref() }
    }

    fn chunk(&self) -> &Chunk {
        // SAFETY: the chunk owns the header, which is alive as argued above, and is only changed through cells
        // while it has live buffers.
        unsafe { self.header().chunk.as_ref() }
    }

    /// Bytes in this buffer: what was asked for at [`alloc`](super::BufPool::alloc).
    #[expect(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> u32 {
        self.header().len.get()
    }

    /// Whether this is the only handle: no other owner and no operation in flight.
    pub fn is_unique(&self) -> bool {
        self.header().refs.get() == 1
    }

    /// Whether `self` and `other` are handles to the same memory.
    pub fn same_as(&self, other: &Buf) -> bool {
        self.header == other.header
    }

    /// Address of byte `range.start`, after checking the range.
    fn at(&self, range: &Range<u32>) -> *mut u8 {
        let len = self.len();
        assert!(
            range.start <= range.end && range.end <= len,
            "range {}..{} outside a buffer of {len} bytes",
            range.start,
            range.end,
        );
        // SAFETY: `start <= len`, and `len` bytes from `data` on belong to this buffer.
        unsafe { self.header().data.as_ptr().add(range.start as usize) }
    }

    /// [`Buf::at`] for writing.
    fn at_mut(&self, range: &Range<u32>) -> *mut u8 {
        assert!(
            self.is_writable(),
            "write to a shared zero buffer or to one that is being read"
        );
        self.at(range)
    }

    fn is_writable(&self) -> bool {
        self.header().readers.get() == 0 && !self.chunk().read_only
    }

    /// Copies `bytes` to `offset`.
    pub fn copy_in(&self, offset: u32, bytes: &[u8]) {
        count_copied(bytes.len());
        let to = self.at_mut(&span(offset, bytes.len()));
        // SAFETY: the range lies in the buffer. No reference to these bytes exists: `get_mut` has no live slice
        // (this handle is borrowed), `readers` is 0. Source and destination may not overlap, since `bytes` is a
        // reference and none points into this buffer.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// Copies from `offset` into `bytes`, all of it.
    pub fn copy_out(&self, offset: u32, bytes: &mut [u8]) {
        count_copied(bytes.len());
        self.peek(offset, bytes);
    }

    /// The same for a look at the bytes that is no way to another place for them: for checksums and comparisons.
    pub(crate) fn peek(&self, offset: u32, bytes: &mut [u8]) {
        let from = self.at(&span(offset, bytes.len()));
        // SAFETY: the range lies in the buffer and is initialised; `bytes` is a unique reference, so it is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies `range` of `source` to `offset`; both may be the same buffer.
    pub fn copy_from(&self, offset: u32, source: &Buf, range: Range<u32>) {
        let len = (range.end - range.start) as usize;
        count_copied(len);
        let from = source.at(&range);
        let to = self.at_mut(&span(offset, len));
        // SAFETY: both ranges were checked, and `copy` allows them to overlap.
        unsafe { std::ptr::copy(from, to, len) };
    }

    /// Sets every byte of `range` to `byte`.
    pub fn fill(&self, range: Range<u32>, byte: u8) {
        let to = self.at_mut(&range);
        // SAFETY: as in `copy_in`.
        unsafe { std::ptr::write_bytes(to, byte, (range.end - range.start) as usize) };
    }

    /// The bytes, borrowed; `None` while the kernel may be writing to the buffer.
    pub fn bytes(&self) -> Option<BufRef<'_>> {
        let header = self.header();
        if header.kernel_writers.get() > 0 {
            return None;
        }
        header.readers.set(header.readers.get() + 1);
        Some(BufRef { buf: self })
    }

    /// The bytes to change in place, when nobody else owns them.
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        if !self.is_unique() || !self.is_writable() {
            return None;
        }
        let header = self.header();
        debug_assert_eq!(
            header.kernel_writers.get(),
            0,
            "an operation holds a handle"
        );
        // SAFETY: this is the only handle and it is mutably borrowed, so nobody can clone it, read it or give it to
        // the kernel while the slice lives; no operation is in flight, because operations hold handles.
        Some(unsafe {
            std::slice::from_raw_parts_mut(header.data.as_ptr(), header.len.get() as usize)
        })
    }

    /// CRC32C of `range`, continuing from `seed` (0 to start).
    pub fn crc32c(&self, range: Range<u32>, seed: u32) -> u32 {
        let mut crc = seed;
        self.pieces(range, |piece| {
            crc = Crc(crc).and(piece).0;
            true
        });
        crc
    }

    /// Whether all of `range` is zero.
    pub fn is_zero(&self, range: Range<u32>) -> bool {
        self.pieces(range, |piece| piece.iter().all(|&byte| byte == 0))
    }

    /// Whether the bytes of `range` equal those of `other` from `offset` on.
    pub fn eq_range(&self, range: Range<u32>, other: &Buf, offset: u32) -> bool {
        let mut at = offset;
        self.pieces(range, |mine| {
            let next = at + mine.len() as u32;
            let mut rest = mine;
            at = next;
            other.pieces(next - mine.len() as u32..next, |theirs| {
                let (head, tail) = rest.split_at(theirs.len());
                rest = tail;
                head == theirs
            })
        })
    }

    /// Shows `range` to `see` in one or more pieces, until it returns false; returns the last answer. `see` gets
    /// the bytes in place where that is sound, else copies of them.
    fn pieces(&self, range: Range<u32>, mut see: impl FnMut(&[u8]) -> bool) -> bool {
        let _ = self.at(&range);
        if let Some(bytes) = self.bytes() {
            return see(&bytes[range.start as usize..range.end as usize]);
        }
        let mut bounce = [0u8; BOUNCE_BYTES];
        let mut at = range.start;
        while at < range.end {
            let piece = &mut bounce[..((range.end - at) as usize).min(BOUNCE_BYTES)];
            self.peek(at, piece);
            if !see(piece) {
                return false;
            }
            at += piece.len() as u32;
        }
        true
    }

    /// Address of `range` for the kernel to read from, while an operation holds a handle.
    pub(crate) fn kernel_ptr(&self, range: &Range<u32>) -> *const u8 {
        self.at(range)
    }

    /// Address and length of `range` for the copies of [`crate::mem`].
    pub(crate) fn raw(&self, range: &Range<u32>) -> *const u8 {
        self.at(range)
    }

    /// As [`Buf::raw`], to be written.
    pub(crate) fn raw_mut(&self, range: &Range<u32>) -> *mut u8 {
        self.at_mut(range)
    }

    /// The memory that the buffer is part of, and whether it must not be written.
    pub(crate) fn mapping(&self) -> (Arc<Mapping>, bool) {
        let chunk = self.chunk();
        (chunk.mapping(), chunk.read_only)
    }

    /// The header, for [`DetachedBuf`](super::DetachedBuf).
    pub(super) fn header_ptr(&self) -> NonNull<Header> {
        self.header
    }

    /// The pool that it is of, to be compared.
    pub(super) fn pool(&self) -> *const () {
        self.chunk().pool()
    }

    /// State of the chunk's registration with a ring.
    pub(crate) fn fixed(&self) -> &Cell<Fixed> {
        &self.chunk().fixed
    }

    /// The ring with which the pool is registered, and the chunk's memory as a registration needs it.
    pub(crate) fn registration(&self) -> (u32, libc::iovec) {
        let chunk = self.chunk();
        (chunk.ring(), chunk.iovec())
    }
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        let refs = &self.header().refs;
        refs.set(
            refs.get()
                .checked_add(1)
                .expect("fewer than 2^32 handles fit in memory"),
        );
        Self {
            header: self.header,
        }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        let header = self.header();
        let refs = header.refs.get() - 1;
        header.refs.set(refs);
        if refs == 0 {
            // SAFETY: this was the last handle, so nobody else will use the header until the pool hands it out again.
            unsafe { Chunk::give_back(self.header) };
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// The bytes of a [`Buf`], borrowed; nobody can write to them meanwhile.
pub struct BufRef<'a> {
    buf: &'a Buf,
}

impl Deref for BufRef<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let header = self.buf.header();
        // SAFETY: `readers` is above zero for the life of this value: every path that writes (copies, fills,
        // `get_mut`, operations given to the kernel) checks it first, and no operation was writing when it was set.
        unsafe { std::slice::from_raw_parts(header.data.as_ptr(), header.len.get() as usize) }
    }
}

impl Drop for BufRef<'_> {
    fn drop(&mut self) {
        let readers = &self.buf.header().readers;
        readers.set(readers.get() - 1);
    }
}

/// A handle held by an operation through which the kernel writes to the buffer.
pub(crate) struct KernelWrite {
    buf: Buf,
}

impl KernelWrite {
    /// `None` when the buffer is being read or must not be written.
    pub(crate) fn new(buf: &Buf) -> Option<Self> {
        if !buf.is_writable() {
            return None;
        }
        let writers = &buf.header().kernel_writers;
        writers.set(writers.get() + 1);
        Some(Self { buf: buf.clone() })
    }

    /// The buffer, once the kernel is done with it.
    pub(crate) fn into_buf(self) -> Buf {
        self.buf.clone()
    }

    /// Address of `range` for the kernel to write to.
    pub(crate) fn ptr(&self, range: &Range<u32>) -> *mut u8 {
        self.buf.at(range)
    }
}

impl Drop for KernelWrite {
    fn drop(&mut self) {
        let writers = &self.buf.header().kernel_writers;
        writers.set(writers.get() - 1);
    }
}

/// `offset..offset + len`; saturates, so that an impossible length fails the range check.
fn span(offset: u32, len: usize) -> Range<u32> {
    offset..offset.saturating_add(u32::try_from(len).unwrap_or(u32::MAX))
}
