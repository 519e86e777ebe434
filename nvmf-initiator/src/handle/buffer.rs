//! [`Buffer`]: registered memory of a handle's session in the caller's hands.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nvmf_io::DetachedBuf;

use super::HandleError;
use crate::polled::Waker;

/// How a handle's thread hears of buffers that come back while it waits for one.
pub(super) struct Supply {
    waker: Waker,
    /// The thread has work that waits for a buffer.
    starved: AtomicBool,
}

impl Supply {
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Supply {
            waker,
            starved: AtomicBool::new(false),
        })
    }

    /// The thread says whether it wants to hear. After `true` it has to look once more before it sleeps: a buffer that came back
    /// before this is told to nobody.
    pub(super) fn set_starved(&self, starved: bool) {
        self.starved.store(starved, Ordering::SeqCst);
    }
}

/// Memory that the kernel knows already (where it may be locked), page-aligned and part of the session's pool. Data in it goes
/// from and to the socket without a copy by this library. It may outlive the handle.
///
/// Fresh from [`Namespace::alloc`](super::Namespace::alloc) it holds whatever its last user left.
pub struct Buffer {
    /// `None` once it was given to the session.
    memory: Option<DetachedBuf>,
    supply: Arc<Supply>,
}

impl Buffer {
    pub(super) fn new(memory: DetachedBuf, supply: &Arc<Supply>) -> Self {
        Buffer {
            memory: Some(memory),
            supply: supply.clone(),
        }
    }

    pub(super) fn into_memory(mut self) -> DetachedBuf {
        self.memory.take().expect("present until here")
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory
            .as_ref()
            .expect("present until it is given away")
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory
            .as_mut()
            .expect("present until it is given away")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            drop(memory);
            if self.supply.starved.load(Ordering::SeqCst) {
                self.supply.waker.wake();
            }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

/// An operation on a [`Buffer`] failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct BufferError {
    /// Why.
    pub error: HandleError,
    /// The buffer, to try again with; `None` when it went down with the handle's thread.
    pub buffer: Option<Buffer>,
}

impl From<BufferError> for HandleError {
    fn from(failed: BufferError) -> Self {
        failed.error
    }
}
