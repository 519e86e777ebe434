//! [`BufPool`]: size classes carved from chunks that are mapped as they are needed.
//!
//! Every chunk has the same size and alignment, whatever class it is carved into, so that a chunk whose buffers are
//! all free can be carved anew for another class, and so that one registration with the ring covers a chunk.
//!
//! Invariant against starvation: as long as a class owns no chunk, one of the pool's bound is kept for it, and a
//! class is never deprived of its last chunk. A request that found the pool dry can therefore be met as soon as
//! buffers of its own class come back, whatever the other classes do.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use super::detached::{DetachedBuf, Home};
use super::handle::{Buf, Header};
use crate::sys::mmap::{Access, Mapping};

/// Sizes that buffers come in.
pub const CLASS_BYTES: [u32; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20];

/// Length of [`BufPool::zero`].
pub const ZERO_BYTES: u32 = 1 << 20;

/// Unit in which the pool grows: the largest class, and the huge page size of most machines.
pub(super) const CHUNK_BYTES: usize = 2 << 20;

/// Steps in which a resident pool takes the memory of a chunk: few system calls, and little memory that nobody asked for.
pub(super) const POPULATE_BYTES: usize = 64 << 10;

/// The least bound that leaves each class its chunk.
pub(super) const MIN_CHUNKS: usize = CLASS_BYTES.len();

/// How large a pool may become.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Bound of the memory for buffers, rounded to whole chunks of 2 MiB, at least 12 MiB. Address space is taken
    /// as buffers are first needed, and is then kept.
    pub max_bytes: usize,
    /// Takes the memory of a buffer before it is handed out, rather than page by page as it is touched. For servers of
    /// devices on this machine: a page fault of a process that is being killed fails, and a request that the kernel was
    /// just copying into that page is lost with an I/O error.
    pub resident: bool,
}

impl Default for PoolConfig {
    /// 128 MiB: 128 transfers of 1 MiB at once.
    fn default() -> Self {
        Self {
            max_bytes: 128 << 20,
            resident: false,
        }
    }
}

/// What several pools of a thread may take together beyond the first chunk of each class, which is each pool's own. It bounds
/// what many pools hold, where the bound of each would allow far too much in sum.
#[derive(Clone, Debug)]
pub struct Spare {
    /// In chunks.
    left: Rc<Cell<usize>>,
}

impl Spare {
    /// Memory of this size, in whole chunks of 2 MiB.
    pub fn new(bytes: usize) -> Self {
        let left = Rc::new(Cell::new(bytes / CHUNK_BYTES));
        Self { left }
    }

    /// Bytes that no pool has taken.
    pub fn left_bytes(&self) -> usize {
        self.left.get() * CHUNK_BYTES
    }
}

/// Where a chunk stands with the ring's registered buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fixed {
    /// No operation used it yet.
    Untried,
    /// Registered under this index.
    Index(u16),
    /// Used by plain address.
    Refused,
}

/// A pool of [`Buf`]s for one thread; cloning it makes another handle to the same pool.
///
/// ```
/// use nvmf_io::{BufPool, PoolConfig};
/// let pool = BufPool::new(&PoolConfig { max_bytes: 16 << 20, ..PoolConfig::default() });
/// let buf = pool.alloc(70_000).expect("a new pool is not dry");
/// assert_eq!(buf.len(), 70_000);
/// assert!(pool.alloc(3 << 20).is_none(), "above the largest class");
/// ```
#[derive(Clone)]
pub struct BufPool {
    inner: Rc<Inner>,
}

struct Inner {
    resident: bool,
    chunks: RefCell<Vec<ChunkPtr>>,
    classes: [Class; CLASS_BYTES.len()],
    max_chunks: usize,
    /// Where chunks come from that are not the first of their class, and how many of them this pool has.
    spare: Option<(Spare, Cell<usize>)>,
    /// Identity of the ring the pool is registered with; 0 for none.
    ring: Cell<u32>,
    zero: Option<ChunkPtr>,
    /// Where detached buffers go when they are dropped.
    home: Arc<Home>,
    /// Detached buffers that have not come back.
    detached: Cell<usize>,
}

struct Class {
    free: RefCell<Vec<NonNull<Header>>>,
    chunks: Cell<usize>,
}

/// Owner of a chunk. A raw pointer rather than a box, because headers point at their chunk too.
struct ChunkPtr(NonNull<Chunk>);

impl std::ops::Deref for ChunkPtr {
    type Target = Chunk;

    fn deref(&self) -> &Chunk {
        // SAFETY: the chunk lives as long as this value and is only changed through cells.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for ChunkPtr {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`, and dropped only when no buffer of the chunk has handles: by the pool's
        // end, which handles prevent, or by `grow` or `trim` for an idle chunk.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Memory of [`CHUNK_BYTES`] (less for the zero buffer), carved into buffers of one class.
pub(super) struct Chunk {
    /// Shared with detached buffers, which may outlive the pool.
    mapping: Arc<Mapping>,
    headers: Box<[Header]>,
    class: usize,
    free: Cell<usize>,
    /// Bytes from the start on whose memory is there, as far as that matters to this pool.
    populated_bytes: Cell<usize>,
    pub(super) read_only: bool,
    pub(super) fixed: Cell<Fixed>,
    pool: *const Inner,
}

impl BufPool {
    /// An empty pool: memory is mapped when buffers are first asked for.
    pub fn new(config: &PoolConfig) -> Self {
        Self::with(config, None)
    }

    /// An empty pool that shares `spare` with others of this thread. Where that is used up it grows no further, as if it had come
    /// to its own bound.
    pub fn sharing(config: &PoolConfig, spare: &Spare) -> Self {
        Self::with(config, Some((spare.clone(), Cell::new(0))))
    }

    fn with(config: &PoolConfig, spare: Option<(Spare, Cell<usize>)>) -> Self {
        let inner = Rc::new_cyclic(|weak| Inner {
            resident: config.resident,
            chunks: RefCell::new(Vec::new()),
            classes: std::array::from_fn(|_| Class {
                free: RefCell::new(Vec::new()),
                chunks: Cell::new(0),
            }),
            max_chunks: config.max_bytes.div_ceil(CHUNK_BYTES).max(MIN_CHUNKS),
            spare,
            ring: Cell::new(0),
            zero: Chunk::zero(weak.as_ptr()),
            home: Arc::default(),
            detached: Cell::new(0),
        });
        Self { inner }
    }

    /// A buffer of `len` bytes, 1 to 2 MiB; `None` when the pool is dry (wait until a buffer is dropped) or `len` is
    /// out of bounds. Its content is whatever it last held.
    pub fn alloc(&self, len: u32) -> Option<Buf> {
        let class = CLASS_BYTES.iter().position(|&bytes| len <= bytes)?;
        if len == 0 {
            return None;
        }
        if self.inner.detached.get() > 0 {
            self.take_back();
        }
        let free = &self.inner.classes[class].free;
        let header = free.borrow_mut().pop();
        match header {
            Some(header) => Some(self.hand_out(header, len)),
            None => self.alloc_slow(class, len),
        }
    }

    #[cold]
    fn alloc_slow(&self, class: usize, len: u32) -> Option<Buf> {
        self.grow(class);
        let header = self.inner.classes[class].free.borrow_mut().pop()?;
        Some(self.hand_out(header, len))
    }

    fn hand_out(&self, header: NonNull<Header>, len: u32) -> Buf {
        // SAFETY: a header on a free list belongs to a chunk of this pool, which lives as long as `inner`.
        let (fields, chunk) = unsafe { (header.as_ref(), header.as_ref().chunk.as_ref()) };
        debug_assert_eq!(fields.refs.get(), 0);
        let end_bytes = fields.data.addr().get() - chunk.mapping.base().addr().get() + len as usize;
        if end_bytes > chunk.populated_bytes.get() {
            chunk.populate(end_bytes);
        }
        fields.refs.set(1);
        fields.len.set(len);
        fields.readers.set(0);
        chunk.free.set(chunk.free.get().wrapping_sub(1));
        // SAFETY: `pool` is the address of a live `Rc` allocation: `inner` holds it. The count is given back by
        // `Chunk::give_back`, and keeps the pool alive as long as the buffer has handles.
        unsafe { Rc::increment_strong_count(chunk.pool) };
        // SAFETY: `refs` is 1 for this handle and the pool was counted just now.
        unsafe { Buf::from_header(header) }
    }

    /// Gets another chunk for `class`: a new one within the bound, else one that another class has no use for.
    fn grow(&self, class: usize) {
        let inner = &*self.inner;
        let mut chunks = inner.chunks.borrow_mut();
        let kept_for_others = (0..CLASS_BYTES.len())
            .filter(|&other| other != class && inner.classes[other].chunks.get() == 0)
            .count();
        let may_grow =
            chunks.len() + kept_for_others < inner.max_chunks && inner.has_spare_for(class);
        let mapping = if may_grow {
            match Mapping::anonymous_aligned(CHUNK_BYTES, CHUNK_BYTES, Access::ReadWrite) {
                Ok(mapping) if inner.resident => Some((Arc::new(mapping), Fixed::Untried, 0)),
                Ok(mapping) => {
                    mapping.prefer_huge_pages();
                    Some((Arc::new(mapping), Fixed::Untried, CHUNK_BYTES))
                }
                Err(error) => {
                    tracing::warn!(%error, "the buffer pool cannot grow; requests wait for buffers in use");
                    None
                }
            }
        } else {
            None
        };
        let source = mapping.or_else(|| {
            let idle = chunks.iter().position(|chunk| {
                chunk.class != class
                    && chunk.free.get() == chunk.headers.len()
                    && inner.classes[chunk.class].chunks.get() > 1
            })?;
            let chunk = chunks.swap_remove(idle);
            inner.disown(&chunk);
            let populated_bytes = chunk.populated_bytes.get();
            Some((chunk.mapping.clone(), chunk.fixed.get(), populated_bytes))
        });
        let Some((mapping, fixed, populated_bytes)) = source else {
            return;
        };
        let chunk = Chunk::carve(mapping, class, fixed, Rc::as_ptr(&self.inner));
        chunk.populated_bytes.set(populated_bytes);
        let owner = &inner.classes[class];
        owner.chunks.set(owner.chunks.get() + 1);
        let mut free = owner.free.borrow_mut();
        // Room for every buffer of the class, so that giving back never allocates.
        let buffers = owner.chunks.get() * (CHUNK_BYTES / CLASS_BYTES[class] as usize);
        let missing = buffers.saturating_sub(free.len());
        free.reserve(missing);
        // Lowest address on top: memory is touched from the front.
        free.extend(chunk.headers.iter().rev().map(NonNull::from));
        chunks.push(chunk);
        inner.settle();
    }

    /// Gives memory that no buffer uses back to the system, chunks aside that are registered with a ring, which keeps
    /// them whatever becomes of them here. For a pool whose user rests: the next buffers cost system calls again.
    pub fn trim(&self) {
        let inner = &*self.inner;
        inner.chunks.borrow_mut().retain(|chunk| {
            let is_idle = chunk.free.get() == chunk.headers.len();
            if !is_idle || matches!(chunk.fixed.get(), Fixed::Index(_)) {
                return true;
            }
            inner.disown(chunk);
            false
        });
        inner.settle();
    }

    /// The shared zero buffer of [`ZERO_BYTES`]: it costs no memory and cannot be written. `None` only when the
    /// address space is exhausted.
    pub fn zero(&self) -> Option<Buf> {
        let chunk = self.inner.zero.as_ref()?;
        let header = &chunk.headers[0];
        let refs = header.refs.get();
        header.refs.set(refs.checked_add(1)?);
        if refs == 0 {
            // SAFETY: as in `hand_out`.
            unsafe { Rc::increment_strong_count(chunk.pool) };
        }
        // SAFETY: `refs` counts this handle, and the pool is counted once while there are any.
        Some(unsafe { Buf::from_header(NonNull::from(header)) })
    }

    /// Makes a buffer one that can leave this thread, when `buf` is its only handle and of this pool; else it comes back.
    pub fn detach(&self, buf: Buf) -> Result<DetachedBuf, Buf> {
        if !buf.is_unique() || buf.pool() != Rc::as_ptr(&self.inner).cast() {
            return Err(buf);
        }
        let Some(detached) = DetachedBuf::new(&buf, &self.inner.home) else {
            return Err(buf);
        };
        self.inner.detached.set(self.inner.detached.get() + 1);
        // The header's count of handles stays at 1, so that the buffer is on no free list and its chunk is not idle;
        // its count of the pool goes, so that the pool can end.
        std::mem::forget(buf);
        // SAFETY: the count is the one that the forgotten handle had, and `self` has another.
        unsafe { Rc::decrement_strong_count(Rc::as_ptr(&self.inner)) };
        Ok(detached)
    }

    /// Takes a detached buffer in again; one of another pool comes back.
    pub fn attach(&self, detached: DetachedBuf) -> Result<Buf, DetachedBuf> {
        let header = detached.into_header(&self.inner.home)?;
        self.inner.detached.set(self.inner.detached.get() - 1);
        // SAFETY: the count is given back when the handle made below is dropped.
        unsafe { Rc::increment_strong_count(Rc::as_ptr(&self.inner)) };
        // SAFETY: the header is of this pool, whose chunks with a detached buffer stay as they are, and its `refs`
        // has been 1 since it was detached.
        Ok(unsafe { Buf::from_header(header) })
    }

    /// Puts the detached buffers that were dropped on their free lists.
    #[cold]
    fn take_back(&self) {
        while let Some(header) = self.inner.home.take() {
            self.inner.detached.set(self.inner.detached.get() - 1);
            // SAFETY: as in `attach`; whoever had it dropped it, so this is the only use of it.
            let (fields, chunk) = unsafe { (header.as_ref(), header.as_ref().chunk.as_ref()) };
            fields.refs.set(0);
            chunk.free.set(chunk.free.get() + 1);
            self.inner.classes[chunk.class]
                .free
                .borrow_mut()
                .push(header);
        }
    }

    /// Bytes of address space that the pool holds for buffers, in use or free.
    pub fn mapped_bytes(&self) -> usize {
        self.inner.chunks.borrow().len() * CHUNK_BYTES
    }

    /// Bytes of them whose memory is there, as far as this pool saw to it.
    #[cfg(test)]
    pub(super) fn populated_bytes(&self) -> usize {
        let chunks = self.inner.chunks.borrow();
        chunks.iter().map(|chunk| chunk.populated_bytes.get()).sum()
    }

    /// Buffers in use, the zero buffer aside. Detached buffers that were dropped count until the next
    /// [`BufPool::alloc`].
    pub fn in_use(&self) -> usize {
        self.inner
            .chunks
            .borrow()
            .iter()
            .map(|chunk| chunk.headers.len() - chunk.free.get())
            .sum()
    }

    /// Binds the pool to a ring, for life; false when it is bound to another one.
    pub(crate) fn bind(&self, ring: u32) -> bool {
        if self.inner.ring.get() == 0 {
            self.inner.ring.set(ring);
        }
        self.inner.ring.get() == ring
    }
}

impl Inner {
    /// Whether one more chunk of this class may be taken, as far as that is for all pools to bear.
    fn has_spare_for(&self, class: usize) -> bool {
        let is_first = self.classes[class].chunks.get() == 0;
        is_first
            || self
                .spare
                .as_ref()
                .is_none_or(|(spare, _)| spare.left.get() > 0)
    }

    /// Takes from what is spare, or gives back to it, what this pool has now beyond the first chunk of each class.
    fn settle(&self) {
        if let Some((spare, taken)) = &self.spare {
            let beyond = self
                .classes
                .iter()
                .map(|class| class.chunks.get().saturating_sub(1));
            let now = beyond.sum();
            spare
                .left
                .set((spare.left.get() + taken.get()).saturating_sub(now));
            taken.set(now);
        }
    }

    /// Takes a chunk whose buffers are all free from its class, before it goes or becomes one of another class.
    fn disown(&self, chunk: &Chunk) {
        let owner = &self.classes[chunk.class];
        owner.chunks.set(owner.chunks.get() - 1);
        let mine = chunk.headers.as_ptr_range();
        owner
            .free
            .borrow_mut()
            .retain(|header| !mine.contains(&header.as_ptr().cast_const()));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((spare, taken)) = &self.spare {
            spare.left.set(spare.left.get() + taken.get());
        }
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("mapped_bytes", &self.mapped_bytes())
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}

impl Chunk {
    /// Carves `mapping` into free buffers of `class`.
    fn carve(mapping: Arc<Mapping>, class: usize, fixed: Fixed, pool: *const Inner) -> ChunkPtr {
        let bytes = CLASS_BYTES[class] as usize;
        let count = mapping.len() / bytes;
        Self::with_headers(mapping, count, bytes, class, fixed, false, pool)
    }

    fn zero(pool: *const Inner) -> Option<ChunkPtr> {
        let mapping = Arc::new(Mapping::anonymous(ZERO_BYTES as usize, Access::Read).ok()?);
        let chunk = Self::with_headers(
            mapping,
            1,
            ZERO_BYTES as usize,
            0,
            Fixed::Refused,
            true,
            pool,
        );
        chunk.headers[0].len.set(ZERO_BYTES);
        Some(chunk)
    }

    fn with_headers(
        mapping: Arc<Mapping>,
        count: usize,
        bytes: usize,
        class: usize,
        fixed: Fixed,
        read_only: bool,
        pool: *const Inner,
    ) -> ChunkPtr {
        assert!(count * bytes <= mapping.len());
        let (base, mapping_bytes) = (mapping.base(), mapping.len());
        let chunk = Box::new(Self {
            mapping,
            headers: Box::new([]),
            class,
            free: Cell::new(count),
            populated_bytes: Cell::new(mapping_bytes),
            read_only,
            fixed: Cell::new(fixed),
            pool,
        });
        let chunk = NonNull::from(Box::leak(chunk));
        let headers = (0..count)
            .map(|index| Header {
                refs: Cell::new(0),
                kernel_writers: Cell::new(0),
                readers: Cell::new(0),
                len: Cell::new(0),
                // SAFETY: `count * bytes` bytes from `base` on lie in the mapping.
                data: unsafe { base.add(index * bytes) },
                chunk,
            })
            .collect();
        // SAFETY: the chunk was leaked just above and nobody else uses its address yet.
        unsafe { (*chunk.as_ptr()).headers = headers };
        ChunkPtr(chunk)
    }

    /// Has the memory of the first `end_bytes` bytes there.
    #[cold]
    fn populate(&self, end_bytes: usize) {
        let from = self.populated_bytes.get();
        let to = end_bytes
            .next_multiple_of(POPULATE_BYTES)
            .min(self.mapping.len());
        self.mapping.populate(from..to);
        self.populated_bytes.set(to);
    }

    /// Puts a buffer back on its free list.
    ///
    /// # Safety
    /// The buffer's last handle is being dropped.
    pub(super) unsafe fn give_back(header: NonNull<Header>) {
        // SAFETY: the handle being dropped kept chunk and pool alive up to here, and the pool stays alive until its
        // count is given back in the last line.
        unsafe {
            let chunk = header.as_ref().chunk.as_ref();
            let pool = chunk.pool;
            if !chunk.read_only {
                chunk.free.set(chunk.free.get() + 1);
                (*pool).classes[chunk.class].free.borrow_mut().push(header);
            }
            Rc::decrement_strong_count(pool);
        }
    }

    /// The pool, to be compared.
    pub(super) fn pool(&self) -> *const () {
        self.pool.cast()
    }

    pub(super) fn ring(&self) -> u32 {
        // SAFETY: who can reach a chunk holds a buffer of it, which keeps the pool alive.
        unsafe { (*self.pool).ring.get() }
    }

    pub(super) fn mapping(&self) -> Arc<Mapping> {
        Arc::clone(&self.mapping)
    }

    pub(super) fn iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.mapping.base().as_ptr().cast(),
            iov_len: self.mapping.len(),
        }
    }
}
