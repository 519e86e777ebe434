//! [`TxBatch`]: the headers and payloads of one vectored send.
//!
//! Invariant: every entry of the vector points into the batch's own arena, which never moves or grows, or into a
//! buffer that the batch holds a handle of. A batch in flight belongs to the ring until its completion.

use std::fmt;
use std::ops::Range;

use crate::buf::Buf;

/// What the kernel takes in one vector.
const IOV_MAX: usize = libc::UIO_MAXIOV as usize;

/// The batch has no room for what was pushed; send it and go on with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the transmit batch is full")]
pub struct BatchFull;

/// Headers (copied) and payloads (by reference) to be sent in one go, in the order in which they were pushed.
///
/// All memory is taken when the batch is made; clear it and use it again.
///
/// ```
/// use nvmf_io::{BufPool, PoolConfig, TxBatch};
/// let pool = BufPool::new(&PoolConfig::default());
/// let buf = pool.alloc(4096).unwrap();
/// let mut batch = TxBatch::new(TxBatch::DEFAULT_HEADER_BYTES, TxBatch::DEFAULT_SEGMENTS);
/// batch.push_header(&[7; 24])?;
/// batch.push_payload(&buf, 0..4096)?;
/// assert_eq!(batch.bytes(), 24 + 4096);
/// batch.clear();
/// assert!(batch.is_empty() && buf.is_unique());
/// # Ok::<(), nvmf_io::tx::BatchFull>(())
/// ```
pub struct TxBatch {
    /// Raw, because the vector points into it while `push_header` writes behind what it points at.
    arena: *mut [u8],
    arena_used: usize,
    iov: Vec<libc::iovec>,
    /// First entry of `iov` that was not sent completely.
    sent_segments: usize,
    held: Vec<Buf>,
    bytes: usize,
    msg: libc::msghdr,
}

impl TxBatch {
    /// Arena for 256 PDU headers with digests.
    pub const DEFAULT_HEADER_BYTES: usize = 256 * 32;
    /// Header, payload and data digest of 128 PDUs.
    pub const DEFAULT_SEGMENTS: usize = 3 * 128;

    /// A batch for at most `header_bytes` of headers and `segments` runs of headers and payloads (at most 1024, the
    /// kernel's bound).
    pub fn new(header_bytes: usize, segments: usize) -> Box<Self> {
        let segments = segments.clamp(1, IOV_MAX);
        Box::new(Self {
            arena: Box::into_raw(vec![0; header_bytes].into_boxed_slice()),
            arena_used: 0,
            iov: Vec::with_capacity(segments),
            sent_segments: 0,
            held: Vec::with_capacity(segments),
            bytes: 0,
            // SAFETY: all zeroes is the empty message: null pointers and zero lengths.
            msg: unsafe { std::mem::zeroed() },
        })
    }

    /// Appends a copy of `header`. Headers pushed one after another share a segment.
    pub fn push_header(&mut self, header: &[u8]) -> Result<(), BatchFull> {
        if header.len() > self.arena.len() - self.arena_used {
            return Err(BatchFull);
        }
        let base = self.arena.cast::<u8>();
        // SAFETY: `arena_used + header.len()` is within the arena, checked above. Only these bytes are written; the
        // vector points at bytes before them.
        let to = unsafe {
            let to = base.add(self.arena_used);
            std::ptr::copy_nonoverlapping(header.as_ptr(), to, header.len());
            to
        };
        match self.iov.last_mut() {
            Some(last) if last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == to => {
                last.iov_len += header.len();
            }
            _ => self.push_segment(to, header.len())?,
        }
        self.arena_used += header.len();
        self.bytes += header.len();
        Ok(())
    }

    /// Appends a digest or padding; the same as [`TxBatch::push_header`].
    pub fn push_trailer(&mut self, trailer: &[u8]) -> Result<(), BatchFull> {
        self.push_header(trailer)
    }

    /// Appends `range` of `buf`, without copying: the batch holds a handle until it is cleared.
    ///
    /// # Panics
    /// When `range` lies outside the buffer.
    pub fn push_payload(&mut self, buf: &Buf, range: Range<u32>) -> Result<(), BatchFull> {
        let len = (range.end - range.start) as usize;
        if len == 0 {
            return Ok(());
        }
        self.push_segment(buf.kernel_ptr(&range).cast_mut(), len)?;
        if !self.held.last().is_some_and(|last| last.same_as(buf)) {
            self.held.push(buf.clone());
        }
        self.bytes += len;
        Ok(())
    }

    fn push_segment(&mut self, base: *mut u8, len: usize) -> Result<(), BatchFull> {
        if self.iov.len() == self.iov.capacity() {
            return Err(BatchFull);
        }
        self.iov.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        });
        Ok(())
    }

    /// Whether `header_bytes` in `segments` more segments (one for each payload, one for each run of headers
    /// between payloads) are sure to fit.
    pub fn fits(&self, header_bytes: usize, segments: usize) -> bool {
        header_bytes <= self.arena.len() - self.arena_used
            && segments <= self.iov.capacity() - self.iov.len()
    }

    /// Bytes pushed since the last [`TxBatch::clear`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Forgets the content and drops the handles.
    pub fn clear(&mut self) {
        self.arena_used = 0;
        self.iov.clear();
        self.sent_segments = 0;
        self.held.clear();
        self.bytes = 0;
    }

    /// The message for what is not sent yet.
    pub(crate) fn message(&mut self) -> *const libc::msghdr {
        let rest = &mut self.iov[self.sent_segments..];
        self.msg.msg_iov = rest.as_mut_ptr();
        self.msg.msg_iovlen = rest.len();
        &raw const self.msg
    }

    /// What is not sent yet, if that is one segment.
    pub(crate) fn only_segment(&self) -> Option<(*const u8, usize)> {
        match self.iov[self.sent_segments..] {
            [only] => Some((only.iov_base.cast(), only.iov_len)),
            _ => None,
        }
    }

    /// The vector, for a vectored write.
    pub(crate) fn segments(&self) -> (*const libc::iovec, u32) {
        (self.iov.as_ptr(), self.iov.len() as u32)
    }

    /// Takes the first `sent` bytes off [`TxBatch::message`].
    pub(crate) fn advance(&mut self, mut sent: usize) {
        while sent > 0 {
            let Some(segment) = self.iov.get_mut(self.sent_segments) else {
                return;
            };
            if sent < segment.iov_len {
                segment.iov_base = segment.iov_base.wrapping_byte_add(sent);
                segment.iov_len -= sent;
                return;
            }
            sent -= segment.iov_len;
            self.sent_segments += 1;
        }
    }
}

impl Drop for TxBatch {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw` in `new`; whoever drops the batch owns it, so the kernel is done with it.
        drop(unsafe { Box::from_raw(self.arena) });
    }
}

impl fmt::Debug for TxBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxBatch")
            .field("bytes", &self.bytes)
            .field("segments", &self.iov.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{BufPool, PoolConfig};

    /// What the segments not yet sent hold.
    fn rest(batch: &mut TxBatch) -> Vec<u8> {
        // SAFETY: the message points at segments of live memory, which nobody writes meanwhile.
        unsafe {
            let message = &*batch.message();
            let segments = std::slice::from_raw_parts(message.msg_iov, message.msg_iovlen);
            segments
                .iter()
                .flat_map(|s| std::slice::from_raw_parts(s.iov_base.cast::<u8>(), s.iov_len))
                .copied()
                .collect()
        }
    }

    #[test]
    fn segments_and_bytes() {
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(8).unwrap();
        buf.copy_in(0, b"ABCDEFGH");
        let mut batch = TxBatch::new(16, 5);
        batch.push_header(b"12").unwrap();
        batch.push_header(b"34").unwrap();
        assert_eq!(
            batch.iov.len(),
            1,
            "headers one after another share a segment"
        );
        batch.push_payload(&buf, 0..3).unwrap();
        batch.push_payload(&buf, 4..4).unwrap();
        batch.push_payload(&buf, 5..8).unwrap();
        batch.push_trailer(b"56").unwrap();
        assert_eq!(batch.iov.len(), 4);
        assert_eq!(batch.bytes(), 12);
        assert_eq!(rest(&mut batch), b"1234ABCFGH56");
        assert_eq!(
            batch.held.len(),
            1,
            "one handle for neighbours of one buffer"
        );

        // Sent in parts of any size.
        for step in 1..=12 {
            let mut batch = TxBatch::new(16, 5);
            batch.push_header(b"1234").unwrap();
            batch.push_payload(&buf, 0..8).unwrap();
            let mut left = b"1234ABCDEFGH".to_vec();
            while !left.is_empty() {
                assert_eq!(rest(&mut batch), left);
                let sent = step.min(left.len());
                batch.advance(sent);
                left.drain(..sent);
            }
            assert_eq!(rest(&mut batch), b"");
            assert_eq!(batch.bytes(), 12, "what was pushed, not what is left");
        }
    }

    #[test]
    fn a_full_batch_says_so_and_stays_as_it_was() {
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(8).unwrap();
        let mut batch = TxBatch::new(8, 2);
        assert!(batch.fits(8, 2) && !batch.fits(9, 1) && !batch.fits(1, 3));
        batch.push_header(b"1234").unwrap();
        batch.push_payload(&buf, 0..1).unwrap();
        assert_eq!(batch.push_header(b"5"), Err(BatchFull), "no segment left");
        assert_eq!(batch.push_payload(&buf, 0..1), Err(BatchFull));
        assert_eq!(batch.bytes(), 5);
        assert_eq!(rest(&mut batch).len(), 5);
        batch.clear();
        assert!(buf.is_unique() && batch.is_empty());
        assert_eq!(
            batch.push_header(b"123456789"),
            Err(BatchFull),
            "arena too small"
        );
        batch.push_header(b"12345678").unwrap();
        assert_eq!(batch.push_header(b"9"), Err(BatchFull));
        assert_eq!(rest(&mut batch), b"12345678");
    }

    #[test]
    fn moving_the_box_leaves_the_segments_where_they_are() {
        let mut batch = TxBatch::new(8, 2);
        batch.push_header(b"12").unwrap();
        let mut moved = [Some(batch)];
        let mut batch = moved[0].take().unwrap();
        batch.push_header(b"34").unwrap();
        assert_eq!(rest(&mut batch), b"1234");
        assert_eq!(batch.iov.len(), 1);
    }
}
