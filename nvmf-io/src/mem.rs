//! [`SharedMemory`]: the bytes of a memory namespace, used by all shards at once.
//!
//! Invariant: every access to a granule of 4096 bytes happens under the lock of that granule's stripe. A block of 512
//! to 4096 bytes lies in one granule, so a block is read and written whole. Copies hold one stripe at a time;
//! clearing takes the stripes of a segment in ascending order.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use nvme_proto::digest::Crc;

use crate::buf::Buf;
use crate::sys::mmap::{Access, Mapping};

/// What is copied or cleared in one go, and the largest block that is never torn.
const GRANULE_BYTES: u64 = 4096;

/// Locks; the granules of one aligned segment have each their own.
const STRIPES: u64 = 2048;

/// What one `madvise` clears at most while it holds the locks: 8 MiB.
const SEGMENT_BYTES: u64 = STRIPES * GRANULE_BYTES;

/// What [`SharedMemory::read_summed`] copies before it sums it up: with its source it fits the first-level cache, and is long enough that how a checksum begins
/// and ends does not matter.
const SUMMED_BYTES: u32 = 16 << 10;

/// Tries before a thread that waits for a stripe lets others run: a copy of a granule takes less than that.
const SPINS: u32 = 200;

/// A line of the processor's cache.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const LINE_BYTES: usize = 64;

/// Lines that [`SharedMemory::prefetch`] asks for: what the processor waits for before its own prefetching takes over. All of a granule was no better.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const PREFETCHED_LINES: usize = 8;

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
    /// `len_bytes` of zeroes; memory is taken as it is written, in huge pages where the system gives them.
    pub fn new(len_bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(len_bytes)
            .ok()
            .filter(|&len| len > 0)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "memory of 0 or too many bytes")
            })?;
        let mapping = Mapping::anonymous(len, Access::ReadWrite)?;
        mapping.prefer_huge_pages();
        Ok(Self {
            mapping,
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

    /// As [`SharedMemory::read`]; the digest of what is in `range` of `buf` then. It is computed piece by piece while what was copied is in the cache, and
    /// of the copy, whatever is written to the memory meanwhile.
    pub fn read_summed(&self, offset: u64, buf: &Buf, range: Range<u32>) -> Crc {
        let mut crc = Crc::EMPTY;
        let mut at = range.start;
        loop {
            let end = at.saturating_add(SUMMED_BYTES).min(range.end);
            self.read(offset + u64::from(at - range.start), buf, at..end);
            crc = Crc(buf.crc32c(at..end, crc.0));
            if end == range.end {
                return crc;
            }
            at = end;
        }
    }

    /// Copies `range` of `buf` to `offset`.
    pub fn write(&self, offset: u64, buf: &Buf, range: Range<u32>) {
        // SAFETY: `range` of the buffer, checked by `raw`, is nobody else's to write, and buffers never overlap the mapping.
        unsafe { self.store(offset, buf.raw(&range), range.end - range.start) }
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
            buf.peek(at, &mut mine[..len]);
            equal &= mine[..len] == theirs[..len];
            at += len as u32;
        });
        equal
    }

    /// Copies `bytes` to `offset`.
    pub fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("a copy is shorter than 4 GiB");
        // SAFETY: all of `bytes`, which nobody writes meanwhile and the mapping is no part of.
        unsafe { self.store(offset, bytes.as_ptr(), len) }
    }

    /// Copies `len` bytes from `from` to `offset`.
    ///
    /// # Safety
    /// They can be read, nobody writes them meanwhile, and they lie outside the mapping.
    unsafe fn store(&self, offset: u64, mut from: *const u8, len: u32) {
        self.granules(offset, len, |to, len| {
            // SAFETY: `len` bytes at `to` are in the mapping and their stripe is held, so nobody else uses them; `from` goes through
            // what the caller gave, by the lengths so far.
            unsafe {
                copy_past_the_cache(from, to, len);
                from = from.add(len);
            }
        });
    }

    /// Has the processor fetch the begin of what is soon copied from `offset` on, and how to get there: memory that was used long ago is in no cache, and
    /// the rest of a copy is fetched as it goes. Nothing happens where the offset is outside.
    #[inline]
    pub fn prefetch(&self, offset: u64) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for line in 0..PREFETCHED_LINES {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let base = self.mapping.base().as_ptr();
            let address = base.wrapping_add((offset as usize).wrapping_add(line * LINE_BYTES));
            // SAFETY: a hint, which neither reads nor faults; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = offset;
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
        // SAFETY: the stripes of all granules in the range are held, and nobody uses a granule without its stripe.
        let result = unsafe {
            self.mapping
                .discard(range.start as usize..range.end as usize)
        };
        drop(held);
        result
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

/// Copies to memory that nobody is likely to need soon: a namespace is larger than a cache. Stores that go past the cache need not read what they
/// overwrite, and leave in the cache what a shard works with.
///
/// # Safety
/// As `std::ptr::copy_nonoverlapping`.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn copy_past_the_cache(from: *const u8, to: *mut u8, len: usize) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    const PIECE: usize = LINE_BYTES / 4;
    if !to.addr().is_multiple_of(LINE_BYTES) || !len.is_multiple_of(LINE_BYTES) {
        // SAFETY: passed on.
        return unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
    }
    for at in (0..len).step_by(LINE_BYTES) {
        // SAFETY: a line at `at` lies within `len`, which is a multiple of lines, on both sides; SSE2 is part of x86-64. Stores are to
        // aligned addresses, loads need no alignment.
        unsafe {
            let (from, to) = (from.add(at), to.add(at));
            let a = _mm_loadu_si128(from.cast());
            let b = _mm_loadu_si128(from.add(PIECE).cast());
            let c = _mm_loadu_si128(from.add(2 * PIECE).cast());
            let d = _mm_loadu_si128(from.add(3 * PIECE).cast());
            _mm_stream_si128(to.cast(), a);
            _mm_stream_si128(to.add(PIECE).cast(), b);
            _mm_stream_si128(to.add(2 * PIECE).cast(), c);
            _mm_stream_si128(to.add(3 * PIECE).cast(), d);
        }
    }
    // Such stores are ordered with no other until a fence: it comes before whatever tells others that the copy is done.
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_sfence() };
}

/// # Safety
/// As `std::ptr::copy_nonoverlapping`.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn copy_past_the_cache(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: passed on.
    unsafe { std::ptr::copy_nonoverlapping(from, to, len) }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{BufPool, PoolConfig};
    use std::sync::Arc;

    const KIB: u64 = 1024;

    fn bytes(memory: &SharedMemory, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xff; len];
        memory.read_bytes(offset, &mut bytes);
        bytes
    }

    #[test]
    fn copies_across_granules() {
        let pool = BufPool::new(&PoolConfig::default());
        let memory = SharedMemory::new(64 * KIB).unwrap();
        let buf = pool.alloc(10_000).unwrap();
        for index in 0..10_000u32 {
            buf.copy_in(index, &[(index % 251) as u8]);
        }
        memory.write(4000, &buf, 5..9_995);
        assert!(memory.equals(4000, &buf, 5..9_995));
        assert!(!memory.equals(4001, &buf, 5..9_995));
        assert_eq!(bytes(&memory, 3999, 2), [0, 5]);
        let back = pool.alloc(10_000).unwrap();
        memory.read(4000, &back, 5..9_995);
        assert!(back.eq_range(5..9_995, &buf, 5));
    }

    #[test]
    fn bytes_of_others_are_copied_across_granules_too() {
        let memory = SharedMemory::new(64 * KIB).unwrap();
        let written: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
        for (offset, range) in [(4000, 5..9_995), (8192, 0..4096), (8192, 1..4097)] {
            memory.write_bytes(offset, &written[range.clone()]);
            memory.prefetch(offset);
            assert_eq!(bytes(&memory, offset, range.len()), written[range]);
        }
        memory.write_bytes(64 * KIB, &[]);
        for outside in [64 * KIB, 1 << 40, u64::MAX] {
            memory.prefetch(outside);
        }
    }

    #[test]
    fn known_digests_of_what_is_copied() {
        let pool = BufPool::new(&PoolConfig::default());
        let memory = SharedMemory::new(64 * KIB).unwrap();
        memory.write_bytes(4090, b"123456789");
        memory.write_bytes(8192, &[0xff; 32]);
        let buf = pool.alloc(4096).unwrap();
        // The check value of CRC-32C, and those of RFC 3720, appendix B.4.
        for (offset, len, known) in [
            (4090, 9, 0xe306_9283),
            (8192, 32, 0x62a8_ab43),
            (16 * KIB, 32, 0x8a91_36aa),
            (0, 0, 0),
        ] {
            let crc = memory.read_summed(offset, &buf, 7..7 + len);
            assert_eq!(crc, Crc(known), "{len} bytes at {offset}");
        }
    }

    /// Against the copy and another implementation of the digest, over lengths that take one piece, several and parts of them.
    #[test]
    fn copies_with_a_digest_are_as_those_without() {
        const MAX: u32 = if cfg!(miri) { 40 << 10 } else { 200 << 10 };
        let pool = BufPool::new(&PoolConfig::default());
        let memory = SharedMemory::new(u64::from(MAX)).unwrap();
        let (plain, summed) = (pool.alloc(MAX).unwrap(), pool.alloc(MAX).unwrap());
        let content: Vec<u8> = (0..MAX)
            .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        memory.write_bytes(0, &content);
        let mut random = 1u32;
        let mut below = |bound: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((u64::from(random) * u64::from(bound)) >> 32) as u32
        };
        let edges = [SUMMED_BYTES - 1, SUMMED_BYTES, SUMMED_BYTES + 1];
        for round in 0..if cfg!(miri) { 6 } else { 500 } {
            let len = match edges.get(round) {
                Some(&edge) => edge,
                None => 1 + below(MAX - 1),
            };
            let (offset, start) = (u64::from(below(MAX - len + 1)), below(MAX - len + 1));
            let range = start..start + len;
            let crc = memory.read_summed(offset, &summed, range.clone());
            memory.read(offset, &plain, range.clone());
            let (first, last) = (offset as usize, offset as usize + len as usize);
            assert!(summed.eq_range(range, &plain, start));
            let expected = crc32c::crc32c(&content[first..last]);
            assert_eq!(crc, Crc(expected), "{len} bytes at {offset} to {start}");
        }
    }

    /// What is sent is the copy: its digest is right also where others write what is being read.
    #[test]
    fn a_digest_is_of_the_copy_whoever_writes_meanwhile() {
        const LEN: u32 = 3 * SUMMED_BYTES;
        let rounds = if cfg!(miri) { 3 } else { 500 };
        let memory = SharedMemory::new(LEN.into()).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut value = 0u8;
                while !done.load(Ordering::Relaxed) {
                    value = value.wrapping_add(1);
                    memory.write_bytes(0, &[value; LEN as usize]);
                }
            });
            let pool = BufPool::new(&PoolConfig::default());
            let buf = pool.alloc(LEN).unwrap();
            // Ends the writer whatever happens here.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..rounds {
                    let crc = memory.read_summed(0, &buf, 0..LEN);
                    assert_eq!(crc, Crc::of(&buf.bytes().unwrap()));
                }
            }));
            done.store(true, Ordering::Relaxed);
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
    }

    #[test]
    fn clearing_is_exact() {
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(32 << 10).unwrap();
        buf.fill(0..32 << 10, 1);
        let memory = SharedMemory::new(32 * KIB).unwrap();
        for (start, end) in [
            (0, 0),
            (0, 512),
            (512, 1024),
            (4096, 8192),
            (512, 12_800),
            (100, 32_000),
            (0, 32_768),
        ] {
            memory.write(0, &buf, 0..32 << 10);
            memory.clear(start..end).unwrap();
            let now = bytes(&memory, 0, 32 << 10);
            for (at, &byte) in now.iter().enumerate() {
                let cleared = (start..end).contains(&(at as u64));
                assert_eq!(
                    byte,
                    u8::from(!cleared),
                    "byte {at} after clearing {start}..{end}"
                );
            }
        }
    }

    #[test]
    fn ranges_outside_panic() {
        let memory = SharedMemory::new(8192).unwrap();
        let out = |range: Range<u64>| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                memory.read_bytes(
                    range.start,
                    &mut vec![0; (range.end - range.start) as usize],
                );
            }))
            .is_err()
        };
        assert!(!out(8000..8192));
        assert!(out(8000..8193));
        assert!(out(u64::MAX - 1..u64::MAX));
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(4096).unwrap();
        let read = |offset| {
            let read = || memory.read_summed(offset, &buf, 0..4096);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).is_err()
        };
        assert!(!read(4096));
        assert!(read(4097) && read(u64::MAX));
        let write = || memory.write_bytes(8000, &[0; 193]);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(write)).is_err());
        assert!(SharedMemory::new(0).is_err());
    }

    #[test]
    #[cfg(not(miri))]
    fn clearing_gives_memory_back() {
        let memory = SharedMemory::new(64 << 20).unwrap();
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(2 << 20).unwrap();
        buf.fill(0..2 << 20, 1);
        let address = memory.mapping.base().as_ptr().addr();
        let present = || crate::process::present_bytes(address, 64 << 20);
        for part in 0..32 {
            memory.write(part * (2 << 20), &buf, 0..2 << 20);
        }
        assert_eq!(present(), 64 << 20);
        memory.clear(1..(64 << 20) - 1).unwrap();
        assert!(present() <= 8 << 20, "{}", present());
        assert_eq!(bytes(&memory, 0, 2), [1, 0]);
        assert_eq!(bytes(&memory, (64 << 20) - 2, 2), [0, 1]);
    }

    /// Writers fill whole blocks with one value, others clear, and readers must never see a mixture.
    #[test]
    fn blocks_are_never_torn() {
        let rounds = if cfg!(miri) { 4 } else { 20_000 };
        let memory = Arc::new(SharedMemory::new(16 * KIB).unwrap());
        let threads: Vec<_> = (1..=3u8)
            .map(|value| {
                let memory = memory.clone();
                std::thread::spawn(move || {
                    let pool = BufPool::new(&PoolConfig::default());
                    let buf = pool.alloc(8192).unwrap();
                    for round in 0..rounds {
                        buf.fill(0..8192, value);
                        memory.write(4096, &buf, 0..8192);
                        if round % 16 == 0 {
                            memory.clear(4096..8192).unwrap();
                        }
                        memory.read(4096, &buf, 0..8192);
                        for block in 0..2 {
                            let start = block * 4096;
                            let mut first = [0];
                            buf.copy_out(start, &mut first);
                            let mut whole = vec![0; 4096];
                            buf.copy_out(start, &mut whole);
                            assert!(whole.iter().all(|byte| *byte == first[0]), "a torn block");
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
