//! The devices that librdmacm has open in this process, and letting go of those that are removed.
//!
//! The library opens every device of the machine when it is asked for their list, and keeps one open that nobody uses any more, until it sees
//! another one. Most drivers take a device away from whoever has it open; one that cannot (soft RoCE's) waits until it is closed, for ever if
//! need be. So each device that the library opened is known here, and [`close_removed`] closes those that are gone and unused under the library.
//!
//! Invariant: a context that is known is open, because its entry owns a list of the library with it.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{fstat, major, minor};
use rustix::io::{DupFlags, dup3};

use super::abi::*;
use super::library::{Library, VerbsError};

/// Where the kernel lists the nodes of all character devices.
const NODES: &str = "/sys/dev/char";
/// Major and minor number of /dev/null, which stands in for a device that was closed under the library.
const NULL: (u32, u32) = (1, 3);

/// The library's list of open devices; while there is one, they stay open whatever becomes of identifiers on them.
struct DeviceList {
    library: &'static Library,
    raw: NonNull<*mut IbvContext>,
}

// SAFETY: the list is not changed once it is made, and the library's functions on it may be called from any thread.
unsafe impl Send for DeviceList {}
// SAFETY: as above.
unsafe impl Sync for DeviceList {}

impl DeviceList {
    fn take(library: &'static Library) -> Result<Arc<Self>, VerbsError> {
        let mut count: c_int = 0;
        // SAFETY: `count` has room for the number.
        let list = unsafe { (library.rdma_get_devices)(&mut count) };
        let raw = NonNull::new(list).ok_or_else(|| VerbsError::last("rdma_get_devices"))?;
        Ok(Arc::new(Self { library, raw }))
    }

    /// The open devices.
    fn contexts(&self) -> impl Iterator<Item = NonNull<IbvContext>> {
        // SAFETY: each step stays at or before the null that ends the list.
        let at = |index| NonNull::new(unsafe { *self.raw.as_ptr().add(index) });
        (0..).map_while(at)
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from the library and is given back once.
        unsafe { (self.library.rdma_free_devices)(self.raw.as_ptr()) };
    }
}

/// A device that the library has open. It stays open at least as long as this value.
pub(super) struct OpenDevice {
    context: NonNull<IbvContext>,
    name: String,
    /// Where the kernel lists the device's node; unknown where it lists none at all.
    node: Option<PathBuf>,
    _list: Arc<DeviceList>,
}

// SAFETY: nothing here changes after construction, and the library's functions on an open device may be called from any thread.
unsafe impl Send for OpenDevice {}
// SAFETY: as above.
unsafe impl Sync for OpenDevice {}

/// Those of this process.
static OPEN: Mutex<Vec<Arc<OpenDevice>>> = Mutex::new(Vec::new());

fn open_devices() -> MutexGuard<'static, Vec<Arc<OpenDevice>>> {
    // Nothing is left half done by a panic.
    OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl OpenDevice {
    /// The one with this context, which an identifier has; takes note of all others that the library has open.
    pub(super) fn of(
        library: &'static Library,
        context: NonNull<IbvContext>,
    ) -> Result<Arc<Self>, VerbsError> {
        let mut open = open_devices();
        let known = |open: &[Arc<Self>], context| {
            let mut open = open.iter();
            open.find(|device| device.context == context).cloned()
        };
        if known(&open, context).is_none() {
            let list = DeviceList::take(library)?;
            for context in list.contexts() {
                if known(&open, context).is_none() {
                    open.extend(Self::new(library, context, &list).map(Arc::new));
                }
            }
        }
        let device = known(&open, context).ok_or_else(|| removed("?"))?;
        match device.is_there() {
            true => Ok(device),
            false => Err(device.removed()),
        }
    }

    /// `None` for one that was closed under the library.
    fn new(
        library: &'static Library,
        context: NonNull<IbvContext>,
        list: &Arc<DeviceList>,
    ) -> Option<Self> {
        // SAFETY: the context is open, because the list has it.
        let (device, fd) = unsafe { (context.as_ref().device, context.as_ref().cmd_fd) };
        // SAFETY: the context owns the descriptor, and is open for the length of this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let number = fstat(fd).ok()?.st_rdev;
        let number = (major(number), minor(number));
        if number == NULL {
            return None;
        }
        // SAFETY: an open context has a device; its name is a C string in it, copied at once.
        let name = unsafe { CStr::from_ptr((library.ibv_get_device_name)(device)) };
        let nodes = Path::new(NODES);
        Some(Self {
            context,
            name: name.to_string_lossy().into_owned(),
            node: nodes
                .is_dir()
                .then(|| nodes.join(format!("{}:{}", number.0, number.1))),
            _list: Arc::clone(list),
        })
    }

    pub(super) fn context(&self) -> NonNull<IbvContext> {
        self.context
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel still has the device's node, which is the first thing that goes when a device is removed.
    pub(super) fn is_there(&self) -> bool {
        self.node.as_ref().is_none_or(|node| node.exists())
    }

    /// The error of who wants to use it when it is not.
    pub(super) fn removed(&self) -> VerbsError {
        removed(&self.name)
    }

    /// Puts /dev/null in the place of the context's descriptors, so that the kernel's files behind them are closed. The library closes its
    /// context some time; calls on it fail from here on.
    fn close_files(&self) -> io::Result<()> {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        // SAFETY: the context is open.
        let context = unsafe { self.context.as_ref() };
        for fd in [context.cmd_fd, context.async_fd] {
            // SAFETY: the library owns the descriptor, which stays open, and stays its own: it is not closed here.
            let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
            dup3(&null, &mut fd, DupFlags::CLOEXEC)?;
        }
        Ok(())
    }
}

impl fmt::Debug for OpenDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenDevice")
            .field("name", &self.name)
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

fn removed(device: &str) -> VerbsError {
    VerbsError::Device {
        device: device.to_owned(),
        lack: "is being removed".into(),
    }
}

/// Closes the devices that are removed and that no [`ProtectionDomain`](super::ProtectionDomain) is on, so that their removal does not wait for
/// this process. Call it about once a second where RDMA was used.
pub fn close_removed() {
    open_devices().retain(|device| {
        if device.is_there() || Arc::strong_count(device) > 1 {
            return true;
        }
        match device.close_files() {
            Ok(()) => tracing::info!(device = device.name, "an RDMA device that is being removed is closed"),
            Err(error) => {
                tracing::error!(device = device.name, %error, "an RDMA device that is being removed cannot be closed, and its removal waits for this process");
            }
        }
        false
    });
}
