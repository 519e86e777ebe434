//! A device as this process uses it: the context that librdmacm opened, one protection domain on it, its limits.

use std::ffi::{CStr, c_int};
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{fstat, major, minor};
use rustix::io::{DupFlags, dup3};

use super::abi::*;
use super::cm::CmId;
use super::library::{Library, VerbsError};

/// What a device can do, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Most work requests on either queue of a queue pair.
    pub work_requests: u32,
    /// Most entries of a completion queue.
    pub completions: u32,
    /// Most segments of a work request.
    pub segments: u32,
    /// Most READs of a peer that a queue pair serves at once.
    pub read_responses: u8,
    /// Most READs that a queue pair has outstanding.
    pub reads: u8,
    /// Longest registration, in bytes.
    pub region_bytes: u64,
    /// Whether it has memory windows of type 2.
    pub memory_windows: bool,
    /// Whether SEND can invalidate a key of the peer.
    pub send_with_invalidate: bool,
}

/// A protection domain, which ties queue pairs to the memory that they may use, and the open device under it.
pub struct ProtectionDomain {
    library: &'static Library,
    raw: NonNull<IbvPd>,
    context: NonNull<IbvContext>,
    /// The library's list of open devices; while we have it, the device stays open whatever becomes of its identifiers.
    devices: NonNull<*mut IbvContext>,
    name: String,
    limits: DeviceLimits,
    /// Where the kernel lists the device's node, if it did when the domain was made.
    node: Option<PathBuf>,
    retired: AtomicBool,
}

// SAFETY: the library's functions on devices and domains may be called from any thread; nothing here changes after construction.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// A domain on the device that `id` is on.
    pub fn new(id: &CmId) -> Result<Arc<Self>, VerbsError> {
        let library = id.library();
        let missing = |lack: &str| VerbsError::Device {
            device: "?".into(),
            lack: lack.into(),
        };
        let context = id
            .verbs()
            .ok_or_else(|| missing("is not known: the address is not resolved"))?;
        let devices = open_devices(library)?;
        let drop_devices = || {
            // SAFETY: the list came from the library and is given back once, on a way that returns.
            unsafe { (library.rdma_free_devices)(devices.as_ptr()) }
        };
        if !lists(devices, context) {
            drop_devices();
            return Err(missing("is being removed"));
        }
        // SAFETY: the context is open, because the list has it.
        let device = unsafe { context.as_ref().device };
        // SAFETY: an open context has a device; its name is a C string in it, copied at once.
        let name = unsafe { CStr::from_ptr((library.ibv_get_device_name)(device)) }
            .to_string_lossy()
            .into_owned();
        let made = query(library, context).and_then(|limits| {
            // SAFETY: the context is open.
            let raw = unsafe { (library.ibv_alloc_pd)(context.as_ptr()) };
            let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
            Ok((raw, limits))
        });
        match made {
            Ok((raw, limits)) => Ok(Arc::new(Self {
                library,
                raw,
                context,
                devices,
                name,
                limits,
                node: node_of(context),
                retired: AtomicBool::new(false),
            })),
            Err(error) => {
                drop_devices();
                Err(error)
            }
        }
    }

    /// Whether `id` is on this device, so that a queue pair on it can use this domain.
    pub fn serves(&self, id: &CmId) -> bool {
        id.verbs() == Some(self.context)
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel still has the device's node, which is the first thing that goes when a device is removed.
    ///
    /// Most drivers tell of that with [`CmEventKind::DeviceRemoved`](super::CmEventKind::DeviceRemoved) too. One that cannot take a device away
    /// from processes (soft RoCE's) tells nobody, and the removal waits until every process has let go of the device.
    pub fn is_there(&self) -> bool {
        self.node.as_ref().is_none_or(|node| node.exists())
    }

    /// Notes that the device is gone, so that whoever keeps registrations on it for later gives them up.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Whether [`ProtectionDomain::retire`] was called.
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    /// The device's limits.
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    pub(super) fn as_ptr(&self) -> *mut IbvPd {
        self.raw.as_ptr()
    }

    pub(super) fn context(&self) -> NonNull<IbvContext> {
        self.context
    }

    /// The calls that the headers make inline.
    pub(super) fn ops(&self) -> &IbvContextOps {
        // SAFETY: the context is open as long as this value has the list of devices; its operations do not change.
        unsafe { &(*self.context.as_ptr()).ops }
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: all that was made in the domain holds it, so nothing is left. Its memory and the device are given back once.
        let result = unsafe { (self.library.ibv_dealloc_pd)(self.as_ptr()) };
        if result != 0 {
            let error = VerbsError::returned("ibv_dealloc_pd", result);
            tracing::error!(device = self.name, %error, "a protection domain is left behind, and with it the device stays open");
            return;
        }
        if !self.is_there()
            && let Err(error) = close_files(self.context)
        {
            tracing::error!(device = self.name, %error, "an RDMA device that is being removed cannot be closed, and its removal waits for this process");
        }
        // SAFETY: the list came from the library and is given back once.
        unsafe { (self.library.rdma_free_devices)(self.devices.as_ptr()) };
    }
}

/// Where sysfs lists the character device of an open context.
fn node_of(context: NonNull<IbvContext>) -> Option<PathBuf> {
    // SAFETY: the context is open, and so is its descriptor for the length of this call.
    let fd = unsafe { BorrowedFd::borrow_raw(context.as_ref().cmd_fd) };
    let device = fstat(fd).ok()?.st_rdev;
    let node = format!("/sys/dev/char/{}:{}", major(device), minor(device));
    Some(PathBuf::from(node)).filter(|node| node.exists())
}

/// Puts /dev/null in the place of a context's descriptors, so that the kernel's files behind them are closed.
///
/// librdmacm keeps a device open that nobody uses, until it sees another one. A driver that cannot take a device away from a process
/// waits for that for ever. The library still has its context, and closes it some time; calls on it fail from here on.
fn close_files(context: NonNull<IbvContext>) -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // SAFETY: the context is open: the caller still has the list of devices.
    let context = unsafe { context.as_ref() };
    for fd in [context.cmd_fd, context.async_fd] {
        // SAFETY: the library owns the descriptor, which stays open, and stays its own: it is not closed here.
        let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
        dup3(&null, &mut fd, DupFlags::CLOEXEC)?;
    }
    Ok(())
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectionDomain")
            .field("device", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

fn open_devices(library: &Library) -> Result<NonNull<*mut IbvContext>, VerbsError> {
    let mut count: c_int = 0;
    // SAFETY: `count` has room for the number.
    let list = unsafe { (library.rdma_get_devices)(&mut count) };
    NonNull::new(list).ok_or_else(|| VerbsError::last("rdma_get_devices"))
}

/// Whether the library's list, which ends with a null, has the context.
fn lists(list: NonNull<*mut IbvContext>, context: NonNull<IbvContext>) -> bool {
    let mut at = list.as_ptr();
    loop {
        // SAFETY: `at` starts at the list and stops at the null that ends it.
        let entry = unsafe { *at };
        if entry.is_null() {
            return false;
        }
        if ptr::eq(entry, context.as_ptr()) {
            return true;
        }
        // SAFETY: the entry was not the last.
        at = unsafe { at.add(1) };
    }
}

fn query(library: &Library, context: NonNull<IbvContext>) -> Result<DeviceLimits, VerbsError> {
    let mut attr = MaybeUninit::<IbvDeviceAttr>::zeroed();
    // SAFETY: the context is open, and `attr` has room for the structure.
    let result = unsafe { (library.ibv_query_device)(context.as_ptr(), attr.as_mut_ptr()) };
    if result != 0 {
        return Err(VerbsError::returned("ibv_query_device", result));
    }
    // SAFETY: zeroes were valid, and the library wrote numbers.
    let attr = unsafe { attr.assume_init() };
    let count = |value: c_int| u32::try_from(value).unwrap_or(0);
    let depth = |value: c_int| u8::try_from(value.clamp(0, 255)).unwrap_or(u8::MAX);
    let has = |flags| attr.device_cap_flags & flags != 0;
    Ok(DeviceLimits {
        work_requests: count(attr.max_qp_wr),
        completions: count(attr.max_cqe),
        segments: count(attr.max_sge.min(attr.max_sge_rd.max(1))),
        read_responses: depth(attr.max_qp_rd_atom),
        reads: depth(attr.max_qp_init_rd_atom),
        region_bytes: attr.max_mr_size,
        memory_windows: has(IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B),
        send_with_invalidate: has(IBV_DEVICE_MEM_MGT_EXTENSIONS),
    })
}
