//! librdmacm and libibverbs, found when they are first needed.
//!
//! The binary is not linked with them: it starts where they are missing, and says so only to who asks for RDMA. One `dlopen` of
//! librdmacm brings libibverbs along, whose symbols are then found through the same handle. What was loaded stays.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use rustix::io::Errno;
use thiserror::Error;

use super::abi::*;

/// The name that all distributions have for the version of librdmacm that this was written for.
const LIBRARY: &CStr = c"librdmacm.so.1";

/// Why RDMA cannot be used, or what failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VerbsError {
    /// The library is not there, or cannot be loaded.
    #[error(
        "RDMA needs librdmacm and libibverbs, which cannot be loaded ({0}); install them (Debian and Ubuntu: apt install librdmacm1 ibverbs-providers; Fedora: dnf install librdmacm libibverbs)"
    )]
    Missing(String),
    /// The library lacks a function.
    #[error("this librdmacm has no {0}: it is too old; install rdma-core 28 or later")]
    Symbol(&'static str),
    /// A call failed.
    #[error("{call}: {errno}{remedy}", remedy = remedy(call, *errno))]
    Call {
        /// The library's function.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The device lacks something.
    #[error("the RDMA device {device} {lack}")]
    Device {
        /// Its name.
        device: String,
        /// What it lacks, as the rest of a sentence.
        lack: String,
    },
}

/// What to do about a failure.
fn remedy(call: &str, errno: Errno) -> &'static str {
    match (call, errno) {
        ("rdma_create_event_channel", Errno::NODEV | Errno::NOENT | Errno::NOSYS) => {
            "; the kernel has no RDMA connection manager: load rdma_ucm, and a driver for the device (rdma link show lists devices)"
        }
        ("rdma_bind_addr" | "rdma_resolve_addr", Errno::NODEV | Errno::ADDRNOTAVAIL) => {
            "; no RDMA device has this address: rdma link show lists devices, and their network interfaces need the address"
        }
        ("ibv_reg_mr", Errno::NOMEM) => {
            "; memory for RDMA is locked: raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK in a unit)"
        }
        (_, Errno::ACCESS | Errno::PERM) => "; access to /dev/infiniband is missing",
        _ => "",
    }
}

impl VerbsError {
    /// The failure of `call` that the C library's error number tells.
    pub(super) fn last(call: &'static str) -> Self {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        Self::Call {
            call,
            errno: Errno::from_raw_os_error(errno),
        }
    }

    /// The failure of `call` that its result tells.
    pub(super) fn returned(call: &'static str, errno: c_int) -> Self {
        Self::Call {
            call,
            errno: Errno::from_raw_os_error(errno.abs()),
        }
    }
}

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions of the libraries that we call, by their own names.
        #[derive(Debug)]
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Library {
            fn find(handle: *mut c_void) -> Result<Self, VerbsError> {
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: the handle is a loaded library that is never unloaded, the name ends with a NUL.
                        let address = unsafe { libc::dlsym(handle, name.as_ptr().cast()) };
                        if address.is_null() {
                            return Err(VerbsError::Symbol(stringify!($name)));
                        }
                        // SAFETY: the address is that of the library's function of this name, whose declaration in the public
                        // headers is the one above; pointers to functions and to data are of one kind here.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(address)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    rdma_create_event_channel: fn() -> *mut RdmaEventChannel;
    rdma_destroy_event_channel: fn(*mut RdmaEventChannel);
    rdma_create_id: fn(*mut RdmaEventChannel, *mut *mut RdmaCmId, *mut c_void, c_uint) -> c_int;
    rdma_destroy_id: fn(*mut RdmaCmId) -> c_int;
    rdma_bind_addr: fn(*mut RdmaCmId, *mut libc::sockaddr) -> c_int;
    rdma_listen: fn(*mut RdmaCmId, c_int) -> c_int;
    rdma_resolve_addr: fn(*mut RdmaCmId, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
    rdma_resolve_route: fn(*mut RdmaCmId, c_int) -> c_int;
    rdma_connect: fn(*mut RdmaCmId, *mut RdmaConnParam) -> c_int;
    rdma_accept: fn(*mut RdmaCmId, *mut RdmaConnParam) -> c_int;
    rdma_reject: fn(*mut RdmaCmId, *const c_void, u8) -> c_int;
    rdma_disconnect: fn(*mut RdmaCmId) -> c_int;
    rdma_get_cm_event: fn(*mut RdmaEventChannel, *mut *mut RdmaCmEvent) -> c_int;
    rdma_ack_cm_event: fn(*mut RdmaCmEvent) -> c_int;
    rdma_create_qp: fn(*mut RdmaCmId, *mut IbvPd, *mut IbvQpInitAttr) -> c_int;
    rdma_destroy_qp: fn(*mut RdmaCmId);
    rdma_set_option: fn(*mut RdmaCmId, c_int, c_int, *mut c_void, usize) -> c_int;
    rdma_get_devices: fn(*mut c_int) -> *mut *mut IbvContext;
    rdma_free_devices: fn(*mut *mut IbvContext);
    ibv_get_device_name: fn(*mut IbvDevice) -> *const c_char;
    ibv_query_device: fn(*mut IbvContext, *mut IbvDeviceAttr) -> c_int;
    ibv_alloc_pd: fn(*mut IbvContext) -> *mut IbvPd;
    ibv_dealloc_pd: fn(*mut IbvPd) -> c_int;
    ibv_reg_mr: fn(*mut IbvPd, *mut c_void, usize, c_int) -> *mut IbvMr;
    ibv_dereg_mr: fn(*mut IbvMr) -> c_int;
    ibv_create_comp_channel: fn(*mut IbvContext) -> *mut IbvCompChannel;
    ibv_destroy_comp_channel: fn(*mut IbvCompChannel) -> c_int;
    ibv_create_cq: fn(*mut IbvContext, c_int, *mut c_void, *mut IbvCompChannel, c_int) -> *mut IbvCq;
    ibv_destroy_cq: fn(*mut IbvCq) -> c_int;
    ibv_get_cq_event: fn(*mut IbvCompChannel, *mut *mut IbvCq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut IbvCq, c_uint);
    ibv_wc_status_str: fn(c_uint) -> *const c_char;
}

/// The libraries; loaded at the first call. A failure is not remembered: they may be installed while the process runs.
pub(super) fn library() -> Result<&'static Library, VerbsError> {
    static LOADED: OnceLock<Library> = OnceLock::new();
    if let Some(library) = LOADED.get() {
        return Ok(library);
    }
    let library = load(LIBRARY)?;
    Ok(LOADED.get_or_init(|| library))
}

/// Whether RDMA can be used on this machine, as far as libraries go; an error says what to install.
pub fn available() -> Result<(), VerbsError> {
    library().map(|_| ())
}

fn load(name: &CStr) -> Result<Library, VerbsError> {
    // SAFETY: the name is a C string. The library's initialisers are those of the system's rdma-core, which expect to be run so.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: no arguments. The text belongs to this thread and stays until its next call of the dynamic linker.
        let text = unsafe { libc::dlerror() };
        let text = match text.is_null() {
            true => name.to_string_lossy(),
            // SAFETY: not null, so a C string, which stays as long as said above; it is copied at once.
            false => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
        };
        return Err(VerbsError::Missing(text.into_owned()));
    }
    Library::find(handle)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_what_to_install() {
        let error = load(c"librdmacm-of-no-version.so.0").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("librdmacm-of-no-version.so.0"), "{text}");
        assert!(
            text.contains("apt install librdmacm1 ibverbs-providers"),
            "{text}"
        );
    }

    #[test]
    fn a_library_without_the_functions_is_named_too_old() {
        // The C library is everywhere and has none of them.
        let error = load(c"libc.so.6").unwrap_err();
        assert_eq!(error, VerbsError::Symbol("rdma_create_event_channel"));
    }

    #[test]
    fn failures_say_what_to_do() {
        let text = |call, errno| VerbsError::Call { call, errno }.to_string();
        assert!(text("ibv_reg_mr", Errno::NOMEM).contains("RLIMIT_MEMLOCK"));
        assert!(text("rdma_bind_addr", Errno::NODEV).contains("rdma link show"));
        assert!(text("rdma_create_event_channel", Errno::NODEV).contains("rdma_ucm"));
    }
}
