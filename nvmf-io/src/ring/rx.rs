//! Receive buffers: a shared supply that small and unpredictable receives draw from.
//!
//! With a provided-buffer ring the kernel picks a buffer when bytes arrive. Without one, the ring picks it when a
//! socket is readable. Either way a buffer is in one place at a time: with the kernel (or on the free list), in an
//! operation, or in an [`RxChunk`], which gives it back when dropped.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::{IoUring, types::BufRingEntry};

use super::setup::RingError;
use crate::sys::mmap::{Access, Mapping};

/// The only buffer group of a ring.
pub(super) const GROUP: u16 = 0;

pub(super) struct RxBuffers {
    data: Mapping,
    buffer_bytes: u32,
    count: u16,
    available: Cell<u16>,
    supply: Supply,
}

enum Supply {
    /// Entries that the kernel takes from, and the tail up to which we have filled them.
    Provided {
        entries: Mapping,
        tail: Cell<u16>,
    },
    Free(RefCell<Vec<u16>>),
}

impl RxBuffers {
    pub(super) fn new(
        uring: &IoUring,
        count: u16,
        buffer_bytes: u32,
        provided: bool,
    ) -> Result<Self, RingError> {
        if count > 0
            && (!count.is_power_of_two() || buffer_bytes == 0 || !buffer_bytes.is_multiple_of(4096))
        {
            return Err(RingError::Config(
                "rx_buffers must be a power of two and rx_buffer_bytes a multiple of 4096",
            ));
        }
        let map = |len: usize| {
            Mapping::anonymous(len, Access::ReadWrite).map_err(|source| RingError::Other {
                doing: "map receive buffers",
                source,
            })
        };
        // An empty mapping does not exist; one page stands for it.
        let data = map((usize::from(count) * buffer_bytes as usize).max(4096))?;
        data.prefer_huge_pages();
        let mut buffers = Self {
            data,
            buffer_bytes,
            count,
            available: Cell::new(0),
            supply: Supply::Free(RefCell::new(Vec::with_capacity(count.into()))),
        };
        if provided && count > 0 {
            let entries = map(usize::from(count) * size_of::<BufRingEntry>())?;
            // SAFETY: the entries and the buffers they will name live in `RxBuffers`. `Ring` keeps it until the
            // io_uring is closed with no operation in flight, or leaks it.
            let registered = unsafe {
                uring.submitter().register_buf_ring_with_flags(
                    entries.base().as_ptr().addr() as u64,
                    count,
                    GROUP,
                    0,
                )
            };
            match registered {
                Ok(()) => {
                    buffers.supply = Supply::Provided {
                        entries,
                        tail: Cell::new(0),
                    }
                }
                Err(error) => tracing::debug!(%error, "no provided-buffer ring"),
            }
        }
        (0..count).for_each(|id| buffers.give_back(id));
        Ok(buffers)
    }

    pub(super) fn is_provided(&self) -> bool {
        matches!(self.supply, Supply::Provided { .. })
    }

    pub(super) fn available(&self) -> usize {
        self.available.get().into()
    }

    /// First byte and length of buffer `id`.
    fn buffer(&self, id: u16) -> (NonNull<u8>, u32) {
        assert!(id < self.count, "receive buffer {id} of {}", self.count);
        // SAFETY: `id` is below `count`, and the mapping has `count * buffer_bytes` bytes.
        let base = unsafe {
            self.data
                .base()
                .add(usize::from(id) * self.buffer_bytes as usize)
        };
        (base, self.buffer_bytes)
    }

    /// Gives a buffer to the kernel, or puts it on the free list.
    pub(super) fn give_back(&self, id: u16) {
        let (base, len) = self.buffer(id);
        match &self.supply {
            Supply::Provided { entries, tail } => {
                let ring = entries.base().cast::<BufRingEntry>();
                let at = tail.get();
                let next = at.wrapping_add(1);
                // SAFETY: the index is masked to `count` entries, all of which the mapping holds. The kernel reads an
                // entry only once the tail, published below, has passed it, and at most `count` buffers exist, so
                // this entry was consumed. The tail overlays a reserved field of entry 0 that the setters leave
                // alone.
                unsafe {
                    let entry = &mut *ring.add(usize::from(at & (self.count - 1))).as_ptr();
                    entry.set_addr(base.as_ptr().addr() as u64);
                    entry.set_len(len);
                    entry.set_bid(id);
                    let shared_tail = BufRingEntry::tail(ring.as_ptr()).cast_mut();
                    AtomicU16::from_ptr(shared_tail).store(next, Ordering::Release);
                }
                tail.set(next);
            }
            Supply::Free(free) => free.borrow_mut().push(id),
        }
        self.available.set(self.available.get() + 1);
    }

    /// Takes a buffer off the free list, for an operation.
    pub(super) fn take_free(&self) -> Option<u16> {
        let Supply::Free(free) = &self.supply else {
            return None;
        };
        let id = free.borrow_mut().pop()?;
        self.available.set(self.available.get() - 1);
        Some(id)
    }

    /// Where the kernel writes for an operation that took buffer `id`.
    pub(super) fn target(&self, id: u16) -> (*mut u8, u32) {
        let (base, len) = self.buffer(id);
        (base.as_ptr(), len)
    }

    /// Notes that the kernel took a buffer from the ring.
    pub(super) fn taken(&self) {
        self.available.set(self.available.get() - 1);
    }

    /// The first `len` bytes of buffer `id`, which came with a completion.
    pub(super) fn chunk(self: &Rc<Self>, id: u16, len: u32) -> RxChunk {
        let (_, bytes) = self.buffer(id);
        RxChunk {
            buffers: self.clone(),
            id,
            len: len.min(bytes),
        }
    }
}

/// Received bytes, in a receive buffer that goes back to its ring when this is dropped.
pub struct RxChunk {
    buffers: Rc<RxBuffers>,
    id: u16,
    len: u32,
}

impl Deref for RxChunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (base, _) = self.buffers.buffer(self.id);
        // SAFETY: `len` bytes of this buffer are initialised (the mapping began as zero pages). The kernel is done
        // with it and gets it back only when this value is dropped.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), self.len as usize) }
    }
}

impl Drop for RxChunk {
    fn drop(&mut self) {
        self.buffers.give_back(self.id);
    }
}

impl fmt::Debug for RxChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxChunk")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
