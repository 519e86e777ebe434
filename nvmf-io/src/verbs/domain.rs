//! A device as this process uses it: the context that librdmacm opened, one protection domain on it, its limits.

use std::ffi::c_int;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::abi::*;
use super::cm::CmId;
use super::devices::{OpenDevice, close_removed};
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
    /// Most memory windows; 0 where it has none of type 2.
    pub memory_windows: u32,
    /// Whether SEND can invalidate a key of the peer.
    pub send_with_invalidate: bool,
}

/// A protection domain, which ties queue pairs to the memory that they may use, and the open device under it.
pub struct ProtectionDomain {
    library: &'static Library,
    raw: NonNull<IbvPd>,
    /// While we have it, the device stays open whatever becomes of its identifiers. `None` once the domain is given back.
    device: Option<Arc<OpenDevice>>,
    limits: DeviceLimits,
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
        let context = id.verbs().ok_or_else(|| VerbsError::Device {
            device: "?".into(),
            lack: "is not known: the address is not resolved".into(),
        })?;
        let device = OpenDevice::of(library, context)?;
        let limits = query(library, device.context())?;
        // SAFETY: the context is open.
        let raw = unsafe { (library.ibv_alloc_pd)(device.context().as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_alloc_pd"))?;
        Ok(Arc::new(Self {
            library,
            raw,
            device: Some(device),
            limits,
            retired: AtomicBool::new(false),
        }))
    }

    fn device(&self) -> &OpenDevice {
        let device = self.device.as_ref();
        device.expect("taken only when the domain is dropped")
    }

    /// Whether `id` is on this device, so that a queue pair on it can use this domain.
    pub fn serves(&self, id: &CmId) -> bool {
        id.verbs() == Some(self.context())
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        self.device().name()
    }

    /// Whether the kernel still has the device.
    ///
    /// Most drivers tell of that with [`CmEventKind::DeviceRemoved`](super::CmEventKind::DeviceRemoved) too. One that cannot take a device away
    /// from processes (soft RoCE's) tells nobody, and the removal waits until every process has let go of the device.
    pub fn is_there(&self) -> bool {
        self.device().is_there()
    }

    /// Why the device cannot be used once it is gone.
    pub fn removed(&self) -> VerbsError {
        self.device().removed()
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
        self.device().context()
    }

    /// The calls that the headers make inline.
    pub(super) fn ops(&self) -> &IbvContextOps {
        // SAFETY: the context is open as long as this value has the device; its operations do not change.
        unsafe { &(*self.context().as_ptr()).ops }
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: all that was made in the domain holds it, so nothing is left. Its memory is given back once.
        let result = unsafe { (self.library.ibv_dealloc_pd)(self.as_ptr()) };
        let device = self.device.take();
        if result != 0 {
            let error = VerbsError::returned("ibv_dealloc_pd", result);
            let name = device.as_ref().map(|device| device.name());
            tracing::error!(device = name, %error, "a protection domain is left behind, and with it the device stays open");
            return std::mem::forget(device);
        }
        drop(device);
        close_removed();
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectionDomain")
            .field("device", &self.device)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
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
        memory_windows: match has(IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B) {
            true => count(attr.max_mw),
            false => 0,
        },
        send_with_invalidate: has(IBV_DEVICE_MEM_MGT_EXTENSIONS),
    })
}
