//! [`SharedMemory`]: the bytes of a memory namespace, used by all shards at once.
//!
//! Invariant: every access to a granule of 4096 bytes happens under the lock of that granule's stripe. A block of 512
//! to 4096 bytes lies in one granule, so a block is read and written whole. Copies hold one stripe at a time;
//! clearing takes the stripes of a segment in ascending order.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::buf::Buf;
use crate::sys::mmap::{Access, Mapping};

/// What is copied or cleared in one go, and the largest block that is never torn.
const GRANULE_BYTES: u64 = 4096;

/// Locks; the granules of one aligned segment have each their own.
const STRIPES: u64 = 2048;

/// What one `madvise` clears at most while it holds the locks: 8 MiB.
const SEGMENT_BYTES: u64 = STRIPES * GRANULE_BYTES;

/// Tries before a thread that waits for a stripe lets others run: a copy of a granule takes less than that.
const SPINS: u32 = 200;

/// Sparse memory shared by threads; zero until it is written.
///
/// Copies are untorn within an aligned block of up to 4096 bytes, as a device's blocks are.
///
/// ```
/// use nvmf_io::{BufPool, PoolConfig, mem::SharedMemory};
/// let memory = SharedMemory::new(1 << 30)?;
/// let pool = BufPool::new(&PoolConfig::default());
/// let buf = pool.alloc(4096).unwrap();
/// buf.fill(0..4096, 7);
/// memory.write(512 << 20, &buf, 0..4096);
/// memory.clear(512 << 20..(512 << 20) + 512)?;
/// memory.read(512 << 20, &buf, 0..4096);
/// assert!(buf.is_zero(0..512) && !buf.is_zero(512..513));
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
/// Methods panic when a range lies outside the memory or the buffer.
pub struct SharedMemory {
    mapping: Mapping,
    len: u64,
    stripes: Box<[Stripe]>,
}

/// A spin lock on its own cache line.
#[repr(align(64))]
struct Stripe(AtomicBool);

struct Held<'a>(&'a Stripe);

impl Stripe {
    fn lock(&self) -> Held<'_> {
        let mut spins = 0;
        while self
            .0
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                // The holder was descheduled.
                std::thread::yield_now();
            }
        }
        Held(self)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

impl SharedMemory {
    /// `len_bytes` of zeroes; memory is taken as it is written.
    pub fn new(len_bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(len_bytes)
            .ok()
            .filter(|&len| len > 0)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "memory of 0 or too many bytes")
            })?;
        Ok(Self {
            mapping: Mapping::anonymous(len, Access::ReadWrite)?,
            len: len_bytes,
            stripes: (0..STRIPES)
                .map(|_| Stripe(AtomicBool::new(false)))
                .collect(),
        })
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Copies from `offset` into `range` of `buf`.
    pub fn read(&self, offset: u64, buf: &Buf, range: Range<u32>) {
        let mut to = buf.raw_mut(&range);
        self.granules(offset, range.end - range.start, |from, len| {
            // SAFETY: `len` bytes at `from` are in the mapping and their stripe is held, so nobody writes them;
            // `to` has gone through `range`, checked above, by the lengths so far. Buffers never overlap the mapping.
            unsafe {
                std::ptr::copy_nonoverlapping(from, to, len);
                to = to.add(len);
            }
        });
    }

    /// Copies `range` of `buf` to `offset`.
    pub fn write(&self, offset: u64, buf: &Buf, range: Range<u32>) {
        let mut from = buf.raw(&range);
        self.granules(offset, range.end - range.start, |to, len| {
            // SAFETY: as in `read`, with the roles changed; the stripe is held, so nobody else uses these bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(from, to, len);
                from = from.add(len);
            }
        });
    }

    /// Whether `range` of `buf` equals the bytes from `offset` on.
    pub fn equals(&self, offset: u64, buf: &Buf, range: Range<u32>) -> bool {
        let mut equal = true;
        let mut at = range.start;
        let mut mine = [0u8; GRANULE_BYTES as usize];
        let mut theirs = mine;
        self.granules(offset, range.end - range.start, |from, len| {
            // SAFETY: `len` bytes at `from` are in the mapping, their stripe is held, and `len` is at most a granule.
            unsafe { std::ptr::copy_nonoverlapping(from, theirs.as_mut_ptr(), len) };
            buf.copy_out(at, &mut mine[..len]);
            equal &= mine[..len] == theirs[..len];
            at += len as u32;
        });
        equal
    }

    /// Copies from `offset` into `bytes`.
    pub fn read_bytes(&self, offset: u64, bytes: &mut [u8]) {
        let len = u32::try_from(bytes.len()).expect("a copy is shorter than 4 GiB");
        let mut to = bytes.as_mut_ptr();
        self.granules(offset, len, |from, len| {
            // SAFETY: as in `read`; `to` goes through `bytes`.
            unsafe {
                std::ptr::copy_nonoverlapping(from, to, len);
                to = to.add(len);
            }
        });
    }

    /// Makes `range` read as zeroes and gives whole pages of it back to the system.
    pub fn clear(&self, range: Range<u64>) -> io::Result<()> {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} outside {} bytes",
            self.len
        );
        let first_page = range.start.next_multiple_of(GRANULE_BYTES);
        let last_page = range.end - range.end % GRANULE_BYTES;
        if first_page >= last_page {
            self.zero(range);
            return Ok(());
        }
        self.zero(range.start..first_page);
        let mut at = first_page;
        while at < last_page {
            let end = (at - at % SEGMENT_BYTES + SEGMENT_BYTES).min(last_page);
            self.discard(at..end)?;
            at = end;
        }
        self.zero(last_page..range.end);
        Ok(())
    }

    /// Overwrites with zeroes.
    fn zero(&self, range: Range<u64>) {
        // At most two granules at the ends of a range, or a range within one or two.
        self.granules(range.start, (range.end - range.start) as u32, |to, len| {
            // SAFETY: in the mapping, under the stripe's lock.
            unsafe { std::ptr::write_bytes(to, 0, len) };
        });
    }

    /// Drops the pages of `range`, whole granules within one segment.
    fn discard(&self, range: Range<u64>) -> io::Result<()> {
        let first = range.start / GRANULE_BYTES;
        let count = (range.end - range.start) / GRANULE_BYTES;
        // Within a segment the stripes ascend with the granules.
        let held: Vec<Held<'_>> = (first..first + count)
            .map(|granule| self.stripe(granule).lock())
            .collect();
        // SAFETY: the range lies in the mapping and nobody uses it while its stripes are held; dropped private
        // anonymous pages read as zeroes afterwards.
        let result = unsafe {
            libc::madvise(
                self.mapping
                    .base()
                    .as_ptr()
                    .add(range.start as usize)
                    .cast(),
                (range.end - range.start) as usize,
                libc::MADV_DONTNEED,
            )
        };
        let error = io::Error::last_os_error();
        drop(held);
        if result == 0 { Ok(()) } else { Err(error) }
    }

    fn stripe(&self, granule: u64) -> &Stripe {
        &self.stripes[(granule % STRIPES) as usize]
    }

    /// Calls `each` with address and length of every piece of a granule in `len` bytes from `offset` on, under the
    /// lock of its stripe.
    fn granules(&self, offset: u64, len: u32, mut each: impl FnMut(*mut u8, usize)) {
        let end = offset
            .checked_add(len.into())
            .filter(|&end| end <= self.len);
        let Some(end) = end else {
            panic!("{len} bytes at {offset} outside {} bytes", self.len)
        };
        let mut at = offset;
        while at < end {
            let granule = at / GRANULE_BYTES;
            let piece = ((granule + 1) * GRANULE_BYTES).min(end) - at;
            let held = self.stripe(granule).lock();
            // SAFETY: `at < end <= len`, and the mapping has `len` bytes.
            let address = unsafe { self.mapping.base().as_ptr().add(at as usize) };
            each(address, piece as usize);
            drop(held);
            at += piece;
        }
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
