//! Memory windows of type 2 of a queue pair: keys for ranges of registered memory that are made by a work request (bind) and ended by another
//! one (local invalidation), or by the peer's SEND (remote invalidation).
//!
//! They belong to a queue pair, through which alone the peer can use them, and end right before it: some devices keep a queue pair
//! as long as a window on it is bound (rxe does).
//!
//! Invariants:
//! - a window lives as long as the queue pair, so that no work request names one that is gone;
//! - the registration under a window lives until the window is bound again or ends.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::*;
use super::domain::ProtectionDomain;
use super::library::VerbsError;
use super::memory::{Bindable, Region};

/// The bits of a key that whoever binds a window chooses; the others are the device's.
const CHOSEN_BITS: u32 = 0xff;

/// See the module's text.
pub(super) struct Windows {
    domain: Arc<ProtectionDomain>,
    list: Vec<Window>,
}

struct Window {
    raw: NonNull<IbvMw>,
    /// The key of the last binding.
    key: u32,
    /// What that is over.
    region: Option<Arc<Region>>,
}

// SAFETY: the library's functions on windows may be called from any thread; these are used from one at a time.
unsafe impl Send for Windows {}

impl Windows {
    /// So many windows, none of them bound. Calls the device once for each.
    pub(super) fn new(domain: &Arc<ProtectionDomain>, count: u32) -> Result<Self, VerbsError> {
        let mut windows = Self {
            domain: Arc::clone(domain),
            list: Vec::with_capacity(count as usize),
        };
        if count == 0 {
            return Ok(windows);
        }
        let lack = |lack: String| VerbsError::Device {
            device: domain.device_name().to_owned(),
            lack,
        };
        let most = domain.limits().memory_windows;
        let alloc = match domain.ops().alloc_mw {
            Some(alloc) if most > 0 => alloc,
            _ => return Err(lack("has no memory windows of type 2".into())),
        };
        if count > most {
            return Err(lack(format!(
                "has {most} memory windows, {count} are needed for a queue"
            )));
        }
        for _ in 0..count {
            // SAFETY: the domain is alive.
            let raw = unsafe { alloc(domain.as_ptr(), IBV_MW_TYPE_2) };
            let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_mw"))?;
            windows.list.push(Window {
                raw,
                // SAFETY: the window was just made.
                key: unsafe { raw.as_ref().rkey },
                region: None,
            });
        }
        Ok(windows)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// The key that the next binding of a window has: another one than the last, so that a key that is known does not open it.
    pub(super) fn next_key(&self, window: usize) -> u32 {
        let key = self.list[window].key;
        key & !CHOSEN_BITS | key.wrapping_add(1) & CHOSEN_BITS
    }

    /// What a work request says that binds a window, which is not bound, under its next key.
    pub(super) fn bind(&mut self, window: usize, to: &Bindable<'_>) -> IbvSendBindMw {
        let next = self.next_key(window);
        let window = &mut self.list[window];
        // Providers find the window by the key that it has, and leave it to us to note which that is.
        // SAFETY: the window is alive and ours alone.
        unsafe { window.raw.as_mut() }.rkey = window.key;
        window.key = next;
        window.region = Some(Arc::clone(to.region));
        IbvSendBindMw {
            mw: window.raw.as_ptr(),
            rkey: next,
            bind_info: IbvMwBindInfo {
                mr: to.region.as_ptr(),
                addr: to.address,
                length: to.bytes.into(),
                mw_access_flags: to.access as u32,
            },
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        let Some(dealloc) = self.domain.ops().dealloc_mw else {
            return;
        };
        let mut failed = None;
        for window in self.list.drain(..) {
            // SAFETY: the window is ours and ended once. A work request that still names it fails at the device.
            let result = unsafe { dealloc(window.raw.as_ptr()) };
            if result != 0 {
                failed = Some(VerbsError::returned("ibv_dealloc_mw", result));
            }
        }
        if let Some(error) = failed {
            tracing::error!(device = self.domain.device_name(), %error, "memory windows are left behind");
        }
    }
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Windows({})", self.list.len())
    }
}
