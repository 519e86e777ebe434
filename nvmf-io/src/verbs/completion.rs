//! Completion queues, each with a channel of its own: a descriptor that is readable when an armed queue got something.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::*;
use super::cm::set_nonblocking;
use super::domain::ProtectionDomain;
use super::library::VerbsError;

/// A completion queue and its channel.
#[derive(Debug)]
pub struct CompletionQueue {
    domain: Arc<ProtectionDomain>,
    raw: NonNull<IbvCq>,
    channel: NonNull<IbvCompChannel>,
}

// SAFETY: the library's functions may be called from any thread; it is used from one at a time.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    /// A queue with room for `entries`, not armed.
    pub fn new(domain: &Arc<ProtectionDomain>, entries: u32) -> Result<Self, VerbsError> {
        let library = domain.library();
        // SAFETY: the device is open.
        let channel = unsafe { (library.ibv_create_comp_channel)(domain.context().as_ptr()) };
        let channel =
            NonNull::new(channel).ok_or_else(|| VerbsError::last("ibv_create_comp_channel"))?;
        let entries = entries.min(domain.limits().completions) as c_int;
        // SAFETY: device and channel are alive; there is no context to follow.
        let raw = unsafe {
            (library.ibv_create_cq)(
                domain.context().as_ptr(),
                entries,
                ptr::null_mut::<c_void>(),
                channel.as_ptr(),
                0,
            )
        };
        let Some(raw) = NonNull::new(raw) else {
            let error = VerbsError::last("ibv_create_cq");
            // SAFETY: the channel is ours and has no queue.
            unsafe { (library.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let queue = Self {
            domain: Arc::clone(domain),
            raw,
            channel,
        };
        set_nonblocking(queue.as_fd())?;
        Ok(queue)
    }

    /// Asks for an event when the next completion comes. What came before is not told of: poll once more.
    pub fn arm(&self) -> Result<(), VerbsError> {
        let Some(arm) = self.domain.ops().req_notify_cq else {
            return Err(VerbsError::Symbol("req_notify_cq"));
        };
        // SAFETY: the queue is alive.
        match unsafe { arm(self.raw.as_ptr(), 0) } {
            0 => Ok(()),
            errno => Err(VerbsError::returned("ibv_req_notify_cq", errno)),
        }
    }

    /// Takes the events that made the descriptor readable. Returns how many.
    pub fn take_events(&self) -> u32 {
        let library = self.domain.library();
        let mut events = 0;
        loop {
            let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is alive and non-blocking; both places have room for a pointer.
            let result = unsafe {
                (library.ibv_get_cq_event)(self.channel.as_ptr(), &mut queue, &mut context)
            };
            if result != 0 {
                break;
            }
            // The channel serves this queue alone.
            debug_assert!(ptr::eq(queue, self.raw.as_ptr()));
            events += 1;
        }
        if events > 0 {
            // SAFETY: the queue is alive, and so many events of it were taken just now.
            unsafe { (library.ibv_ack_cq_events)(self.raw.as_ptr(), events as c_uint) };
        }
        events
    }

    /// Takes completions, as many as fit. Returns how many.
    pub(super) fn poll(&self, into: &mut [IbvWc]) -> Result<usize, VerbsError> {
        let Some(poll) = self.domain.ops().poll_cq else {
            return Err(VerbsError::Symbol("poll_cq"));
        };
        // SAFETY: the queue is alive; so many entries fit.
        let count = unsafe { poll(self.raw.as_ptr(), into.len() as c_int, into.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) => Ok(count.min(into.len())),
            Err(_) => Err(VerbsError::returned("ibv_poll_cq", count)),
        }
    }

    pub(super) fn as_ptr(&self) -> *mut IbvCq {
        self.raw.as_ptr()
    }

    /// Ends the queue. An error means that something is still attached to it: it then stays.
    pub(super) fn destroy(self) -> Result<(), VerbsError> {
        let library = self.domain.library();
        let (raw, channel) = (self.raw, self.channel);
        // All events were acknowledged when they were taken, so this does not wait.
        // SAFETY: the queue is ours and ended once: `self` is forgotten below.
        let result = unsafe { (library.ibv_destroy_cq)(raw.as_ptr()) };
        // SAFETY: the domain is moved out of a value that is forgotten, so it is dropped once.
        let domain = unsafe { ptr::read(&self.domain) };
        std::mem::forget(self);
        if result != 0 {
            std::mem::forget(domain);
            return Err(VerbsError::returned("ibv_destroy_cq", result));
        }
        // SAFETY: the channel is ours and serves no queue any more.
        unsafe { (library.ibv_destroy_comp_channel)(channel.as_ptr()) };
        Ok(())
    }
}

impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel owns the descriptor and lives as long as this value.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let library = self.domain.library();
        // SAFETY: the queue is ours and ended once; nothing is attached to it, since a queue pair owns its queue and ends it by
        // `destroy`. The channel follows.
        unsafe {
            if (library.ibv_destroy_cq)(self.raw.as_ptr()) == 0 {
                (library.ibv_destroy_comp_channel)(self.channel.as_ptr());
            }
        }
    }
}
