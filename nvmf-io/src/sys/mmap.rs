//! Anonymous and device memory mappings that unmap themselves.
//!
//! A [`Mapping`] only ever hands out raw pointers; who forms references from them argues why at that place.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// What the memory may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    ReadWrite,
}

impl Access {
    fn bits(self) -> i32 {
        match self {
            Access::Read => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A memory mapping, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Miri knows no mappings of this kind: there the memory comes from the allocator.
    #[cfg(miri)]
    layout: std::alloc::Layout,
}

// SAFETY: a mapping is only an address range that belongs to the process; unmapping works from any thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference only the base address and the length can be read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory of `len` bytes. Nothing is resident until it is touched, and no swap is reserved for it.
    #[cfg(not(miri))]
    pub(crate) fn anonymous(len: usize, access: Access) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(len, access, flags, -1, 0)
    }

    /// Like [`Mapping::anonymous`], with a base that is a multiple of `align` (a power of two).
    #[cfg(not(miri))]
    pub(crate) fn anonymous_aligned(len: usize, align: usize, access: Access) -> io::Result<Self> {
        debug_assert!(align.is_power_of_two());
        let wide = Self::anonymous(len + align, access)?;
        let base = wide.base.as_ptr().addr();
        let head = base.next_multiple_of(align) - base;
        let tail = align - head;
        let total = wide.len;
        let start = wide.base;
        std::mem::forget(wide);
        // SAFETY: `head + len + tail == total`, so all three parts lie inside the mapping that was just made and
        // forgotten above; the two ends are given back here and the middle gets its own owner.
        unsafe {
            if head > 0 {
                libc::munmap(start.as_ptr().cast(), head);
            }
            if tail > 0 {
                libc::munmap(start.as_ptr().add(total - tail).cast(), tail);
            }
            Ok(Self {
                base: start.add(head),
                len,
            })
        }
    }

    #[cfg(miri)]
    pub(crate) fn anonymous(len: usize, access: Access) -> io::Result<Self> {
        Self::anonymous_aligned(len, 4096, access)
    }

    #[cfg(miri)]
    pub(crate) fn anonymous_aligned(len: usize, align: usize, _: Access) -> io::Result<Self> {
        let layout = std::alloc::Layout::from_size_align(len, align).map_err(io::Error::other)?;
        // SAFETY: the layouts asked for are not empty.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, layout })
    }

    /// Asks for huge pages where they fit: fewer faults and fewer misses of the TLB. Without them it works as well.
    pub(crate) fn prefer_huge_pages(&self) {
        #[cfg(not(miri))]
        // SAFETY: the advice concerns this mapping alone and changes no content.
        unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE);
        }
    }

    /// Takes the memory of whole pages of the mapping now. Where the kernel cannot (before 5.14, or short of memory), it
    /// comes page by page as it is touched.
    pub(crate) fn populate(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(not(miri))]
        // SAFETY: checked to be inside this mapping, which alone the advice concerns; it changes no content.
        unsafe {
            libc::madvise(
                self.base.as_ptr().add(range.start).cast(),
                range.end - range.start,
                libc::MADV_POPULATE_WRITE,
            );
        }
    }

    /// `len` bytes of `fd` from `offset` on, shared with whoever else maps them (a device, usually).
    pub(crate) fn shared(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        access: Access,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "mapping offset too large"))?;
        Self::map(len, access, libc::MAP_SHARED, fd.as_raw_fd(), offset)
    }

    fn map(
        len: usize,
        access: Access,
        flags: i32,
        fd: i32,
        offset: libc::off_t,
    ) -> io::Result<Self> {
        // SAFETY: the address is chosen by the kernel, so that no existing mapping is replaced.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access.bits(), flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).expect("the kernel never maps the null page unasked");
        Ok(Self {
            base,
            len,
            #[cfg(miri)]
            layout: std::alloc::Layout::new::<()>(),
        })
    }

    /// Makes whole pages of anonymous memory read as zeroes and gives them back to the system.
    ///
    /// # Safety
    /// Nobody uses the range meanwhile.
    pub(crate) unsafe fn discard(&self, range: Range<usize>) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: checked to be inside the mapping.
        let start = unsafe { self.base.as_ptr().add(range.start) };
        let len = range.end - range.start;
        if cfg!(miri) {
            // SAFETY: inside the mapping, and the caller vouches for the rest.
            unsafe { std::ptr::write_bytes(start, 0, len) };
            return Ok(());
        }
        // SAFETY: dropping private anonymous pages makes them read as zeroes; the caller vouches for the rest.
        match unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// First byte; page-aligned.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped (allocated) by us and belongs to this value alone.
        unsafe {
            #[cfg(not(miri))]
            libc::munmap(self.base.as_ptr().cast(), self.len);
            #[cfg(miri)]
            std::alloc::dealloc(self.base.as_ptr(), self.layout);
        }
    }
}
