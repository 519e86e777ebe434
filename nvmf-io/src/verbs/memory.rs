//! Memory that a device may use.
//!
//! Buffers of a [`BufPool`](crate::BufPool) are carved from chunks of 2 MiB; a [`Registrar`] registers a chunk when a buffer of it is
//! first used and keeps that until it is dropped. So no command costs a registration, and the number of regions is bounded by the pool.
//! Where peers reach memory through windows only, the registration gives them nothing: see [`RemoteAccess::Windows`].

use std::ffi::c_int;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::abi::*;
use super::domain::ProtectionDomain;
use super::library::VerbsError;
use super::work::Remote;
use crate::buf::{Buf, KernelWrite};
use crate::sys::mmap::Mapping;

/// A registered region.
#[derive(Debug)]
pub(super) struct Region {
    domain: Arc<ProtectionDomain>,
    raw: NonNull<IbvMr>,
    /// Whether windows may be opened over it.
    takes_windows: bool,
}

// SAFETY: registrations may be used and ended from any thread.
unsafe impl Send for Region {}
// SAFETY: nothing of it changes; what the library keeps behind the pointer it guards itself.
unsafe impl Sync for Region {}

impl Region {
    /// Registers a mapping, which must be kept until the region is dropped.
    pub(super) fn new(
        domain: &Arc<ProtectionDomain>,
        mapping: &Mapping,
        access: c_int,
    ) -> Result<Self, VerbsError> {
        // SAFETY: the domain is alive and the range is mapped by us.
        let raw = unsafe {
            (domain.library().ibv_reg_mr)(
                domain.as_ptr(),
                mapping.base().as_ptr().cast(),
                mapping.len(),
                access,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("ibv_reg_mr"))?;
        Ok(Self {
            domain: Arc::clone(domain),
            raw,
            takes_windows: access & IBV_ACCESS_MW_BIND != 0,
        })
    }

    pub(super) fn as_ptr(&self) -> *mut IbvMr {
        self.raw.as_ptr()
    }

    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: the region is alive; the key does not change.
        unsafe { self.raw.as_ref().lkey }
    }

    fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.raw.as_ref().rkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is ours and ended once. A work request that still names it fails at the device.
        let result = unsafe { (self.domain.library().ibv_dereg_mr)(self.raw.as_ptr()) };
        if result != 0 {
            // The device keeps the pages themselves, not what is later mapped at their addresses.
            let error = VerbsError::returned("ibv_dereg_mr", result);
            tracing::error!(device = self.domain.device_name(), %error, "a registration is left behind");
        }
    }
}

/// What peers may do with registered memory, given its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAccess {
    /// Nothing: targets.
    None,
    /// Read and write: hosts whose pool is one registration.
    ReadWrite,
    /// Nothing but through memory windows.
    Windows,
}

impl RemoteAccess {
    fn bits(self) -> c_int {
        IBV_ACCESS_LOCAL_WRITE
            | match self {
                Self::None => 0,
                Self::ReadWrite => IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE,
                Self::Windows => IBV_ACCESS_MW_BIND,
            }
    }
}

/// Registers the memory of pools with a device, once for each chunk. Belongs to the pools' thread.
#[derive(Debug)]
pub struct Registrar {
    domain: Arc<ProtectionDomain>,
    access: RemoteAccess,
    /// By address.
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    base: usize,
    // Before the mapping: dropped first, but for a window that is still over it; the device keeps the pages that it knows.
    region: Arc<Region>,
    _mapping: Arc<Mapping>,
}

/// A registered range of a buffer, and an owner of it.
#[derive(Clone, Debug)]
pub struct Segment {
    pub(super) buf: Buf,
    pub(super) range: Range<u32>,
    pub(super) local_key: u32,
    pub(super) remote_key: u32,
    /// Where windows can be opened over it.
    region: Option<Arc<Region>>,
}

impl Segment {
    /// The key that a peer needs to use the memory.
    pub fn remote_key(&self) -> u32 {
        self.remote_key
    }

    /// The address that a peer names.
    pub fn address(&self) -> u64 {
        self.buf.kernel_ptr(&self.range).addr() as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> u32 {
        self.range.end - self.range.start
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Lends the memory to a peer that will read it.
    pub fn lend(self) -> Lent {
        Lent {
            remote: self.remote(),
            bytes: self.len(),
            region: self.region,
            held: LentTo::Reader { _buf: self.buf },
        }
    }

    /// Lends the memory to a peer that will write to it; `None` while somebody reads it, or where it must not be written.
    pub fn lend_for_writing(self) -> Option<Lent> {
        let held = KernelWrite::new(&self.buf)?;
        Some(Lent {
            remote: self.remote(),
            bytes: self.len(),
            region: self.region,
            held: LentTo::Writer { _buf: held },
        })
    }

    fn remote(&self) -> Remote {
        Remote {
            address: self.address(),
            key: self.remote_key,
        }
    }
}

/// Memory that a peer uses with the key that it was told. Keep it until the peer says that it is done (through a window: until the device
/// says that the window is closed), or until the queue pair through which the peer reaches it is destroyed; meanwhile the buffer is not
/// used for anything else, nor read where the peer writes.
#[must_use = "the memory is free for other uses once this is dropped"]
pub struct Lent {
    remote: Remote,
    bytes: u32,
    region: Option<Arc<Region>>,
    held: LentTo,
}

enum LentTo {
    Reader { _buf: Buf },
    Writer { _buf: KernelWrite },
}

impl Lent {
    /// What the peer has to know.
    pub fn remote(&self) -> Remote {
        self.remote
    }

    /// As a window is opened over it: exactly these bytes, to read or to write as it was lent. `None` where that is not possible: it is not
    /// registered for [`RemoteAccess::Windows`], or must not be written, which rules windows out even for reading.
    pub fn bindable(&self) -> Option<Bindable<'_>> {
        Some(Bindable {
            region: self.region.as_ref()?,
            address: self.remote.address,
            bytes: self.bytes,
            access: match self.held {
                LentTo::Reader { .. } => IBV_ACCESS_REMOTE_READ,
                LentTo::Writer { .. } => IBV_ACCESS_REMOTE_WRITE,
            },
        })
    }
}

/// Lent memory that a window can be opened over: see [`Lent::bindable`].
#[derive(Debug)]
pub struct Bindable<'a> {
    pub(super) region: &'a Arc<Region>,
    pub(super) address: u64,
    pub(super) bytes: u32,
    pub(super) access: c_int,
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&self.remote).finish()
    }
}

impl Registrar {
    /// A registrar without registrations.
    pub fn new(domain: Arc<ProtectionDomain>, access: RemoteAccess) -> Self {
        Self {
            domain,
            access,
            chunks: Vec::new(),
        }
    }

    /// The domain that it registers with.
    pub fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// Registrations made so far.
    pub fn registrations(&self) -> usize {
        self.chunks.len()
    }

    /// A range of a buffer as work requests take it. Registers the buffer's chunk if that is new.
    ///
    /// # Panics
    /// When the range lies outside the buffer.
    pub fn segment(&mut self, buf: &Buf, range: Range<u32>) -> Result<Segment, VerbsError> {
        // Checks the range.
        let address = buf.kernel_ptr(&range).addr();
        let at = match self
            .chunks
            .binary_search_by(|chunk| chunk.base.cmp(&address))
        {
            Ok(at) => at,
            Err(next) => match next
                .checked_sub(1)
                .filter(|&at| self.chunks[at].covers(address))
            {
                Some(at) => at,
                None => self.register(buf)?,
            },
        };
        let region = &self.chunks[at].region;
        Ok(Segment {
            buf: buf.clone(),
            range,
            local_key: region.local_key(),
            remote_key: region.remote_key(),
            region: region.takes_windows.then(|| Arc::clone(region)),
        })
    }

    #[cold]
    fn register(&mut self, buf: &Buf) -> Result<usize, VerbsError> {
        // Pools that ended since: nobody has their memory any more but us. Segments hold buffers, and so the memory.
        self.chunks
            .retain(|chunk| Arc::strong_count(&chunk._mapping) > 1);
        let (mapping, read_only) = buf.mapping();
        // The kernel takes memory for windows only where it could be written.
        let access = match (read_only, self.access) {
            (false, access) => access.bits(),
            (true, RemoteAccess::ReadWrite) => IBV_ACCESS_REMOTE_READ,
            (true, _) => 0,
        };
        let region = Region::new(&self.domain, &mapping, access)?;
        let base = mapping.base().as_ptr().addr();
        let at = self.chunks.partition_point(|chunk| chunk.base < base);
        self.chunks.insert(
            at,
            Chunk {
                base,
                region: Arc::new(region),
                _mapping: mapping,
            },
        );
        Ok(at)
    }
}

impl Chunk {
    fn covers(&self, address: usize) -> bool {
        address - self.base < self._mapping.len()
    }
}
