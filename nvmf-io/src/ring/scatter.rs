//! [`RxScatter`]: one receive into two places, a range of a buffer and a room of its own.
//!
//! Invariant: the vector points into the room, which is part of the scatter, and into the buffer that `into` holds; the kernel uses
//! both only while the scatter belongs to an operation of the ring.

use std::fmt;
use std::ops::Range;

use crate::buf::{Buf, KernelWrite};

/// Room for what comes with payload: a digest and a header, or the rest of a header and the next one.
const ROOM_BYTES: usize = 128;

/// The places of one vectored receive. It is made once and used again, so that receiving allocates nothing.
///
/// ```
/// use std::io::Write;
/// use nvmf_io::{BufPool, PoolConfig, Ring, RingConfig, Token, Wait, ring::RxScatter};
/// let (mut peer, ours) = std::os::unix::net::UnixStream::pair()?;
/// let mut ring = Ring::new(&RingConfig::default())?;
/// let socket = ring.add_socket(std::os::fd::OwnedFd::from(ours));
/// let pool = BufPool::new(&PoolConfig::default());
/// let buf = pool.alloc(4096).expect("a new pool is not dry");
///
/// peer.write_all(b"payload, header, more")?;
/// ring.recv_scatter(socket, RxScatter::new(), Some((&buf, 100..107)), 8, Token(1));
/// ring.wait(Wait::Block)?;
/// let done = ring.next().expect("waited for it");
/// let scatter = done.scatter.expect("it comes back");
/// assert_eq!((scatter.buffer_bytes(), scatter.room()), (7, &b", header"[..]));
/// assert_eq!(&buf.bytes().expect("nobody writes")[100..107], b"payload");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RxScatter {
    room: [u8; ROOM_BYTES],
    /// Buffer and room; only the room where there is no buffer.
    iov: [libc::iovec; 2],
    msg: libc::msghdr,
    /// The buffer, while the kernel may write to it.
    into: Option<KernelWrite>,
    /// Bytes that the buffer was to take; once landed, those that it took.
    buffer_bytes: u32,
    /// Bytes of the room that were received.
    room_bytes: u32,
}

impl RxScatter {
    /// Length of the room.
    pub const ROOM_BYTES: u32 = ROOM_BYTES as u32;

    /// A scatter that received nothing. It is pointed at, so it lives in a box.
    pub fn new() -> Box<Self> {
        const NOWHERE: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Box::new(Self {
            room: [0; ROOM_BYTES],
            iov: [NOWHERE; 2],
            // SAFETY: all zeroes is the empty message: null pointers and zero lengths.
            msg: unsafe { std::mem::zeroed() },
            into: None,
            buffer_bytes: 0,
            room_bytes: 0,
        })
    }

    /// Bytes that the last receive put into the buffer.
    pub fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// What the last receive put into the room.
    pub fn room(&self) -> &[u8] {
        &self.room[..self.room_bytes as usize]
    }

    /// Sets the places of the next receive. False when the buffer is being read or must not be written.
    pub(super) fn aim(&mut self, into: Option<(&Buf, Range<u32>)>, room_bytes: u32) -> bool {
        (self.buffer_bytes, self.room_bytes) = (0, 0);
        let mut segments = 0;
        if let Some((buf, range)) = into {
            let Some(into) = KernelWrite::new(buf) else {
                return false;
            };
            self.buffer_bytes = range.end - range.start;
            self.iov[0] = libc::iovec {
                iov_base: into.ptr(&range).cast(),
                iov_len: self.buffer_bytes as usize,
            };
            self.into = Some(into);
            segments = 1;
        }
        self.iov[segments] = libc::iovec {
            iov_base: self.room.as_mut_ptr().cast(),
            iov_len: (room_bytes as usize).min(ROOM_BYTES),
        };
        self.msg.msg_iovlen = segments + 1;
        true
    }

    /// The message that names the places. It and they stay where they are as long as the scatter does.
    pub(super) fn message(&mut self) -> *mut libc::msghdr {
        self.msg.msg_iov = self.iov.as_mut_ptr();
        &raw mut self.msg
    }

    /// The receive ended with so many bytes: the kernel is done with both places.
    pub(super) fn landed(&mut self, bytes: u32) {
        self.into = None;
        let room_bytes = bytes.saturating_sub(self.buffer_bytes);
        self.buffer_bytes = bytes.min(self.buffer_bytes);
        self.room_bytes = room_bytes.min(Self::ROOM_BYTES);
    }
}

impl fmt::Debug for RxScatter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RxScatter")
            .field("buffer_bytes", &self.buffer_bytes)
            .field("room", &self.room())
            .finish_non_exhaustive()
    }
}
