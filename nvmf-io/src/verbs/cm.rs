//! The connection manager: identifiers, their events, private data.
//!
//! An identifier is to RDMA what a socket is to TCP. What happens to it is reported on its [`EventChannel`], under the [`IdKey`] that it
//! was given; events are copied and acknowledged before anyone sees them, so that an identifier can be dropped at any time.
//!
//! The library works on identifiers and queue pairs while it takes an event in. A channel's lock therefore covers taking an event and
//! ending an identifier or queue pair, which other threads may do; none of that is on the I/O path.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::abi::*;
use super::library::{Library, VerbsError, library};

/// Names an identifier in the events of its channel; never used twice on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdKey(u64);

/// Where the events of identifiers are reported. Its descriptor is readable when there are some.
pub struct EventChannel {
    library: &'static Library,
    raw: NonNull<RdmaEventChannel>,
    lock: Mutex<()>,
    last_key: AtomicU64,
}

// SAFETY: the library's functions on channels and identifiers may be called from any thread; what must not happen at the same time is
// kept apart by `lock`.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum CmEventKind {
    /// [`CmId::resolve_addr`] succeeded: the identifier has a device.
    AddrResolved,
    /// [`CmId::resolve_route`] succeeded: it can connect.
    RouteResolved,
    /// A peer asks for a connection, on the listening identifier of the event. Accept it or reject it; dropping it rejects it.
    ConnectRequest(CmId),
    /// The connection stands.
    Established,
    /// The peer refused; private data is that of its refusal when `status` is [`CmEvent::REJECTED_BY_CONSUMER`].
    Rejected,
    /// It could not be connected: address or route not resolved, peer silent, or a failure; `status` is an error number below 0.
    Failed(&'static str),
    /// The connection is over: call [`CmId::disconnect`] if that has not been done, or the peer may wait for it.
    Disconnected,
    /// The device goes away: end all that is on it.
    DeviceRemoved,
    /// The address moved to another device.
    AddressChanged,
    /// Any other event, by its number.
    Other(u32),
}

/// An event of an identifier.
#[derive(Debug)]
pub struct CmEvent {
    /// Whose.
    pub id: IdKey,
    /// What.
    pub kind: CmEventKind,
    /// An error number below 0, or the reason of a rejection; 0 where there is none.
    pub status: i32,
    /// What the peer sent with the event, filled with zeroes by the connection manager to a length of its own.
    pub private_data: Vec<u8>,
    /// Most READs that this side may have outstanding, as the peer offers in a request or an answer.
    pub initiator_depth: u8,
    /// Most READs that the peer wants to have outstanding here.
    pub responder_resources: u8,
}

impl CmEvent {
    /// [`CmEvent::status`] of a rejection that the peer's program made, with private data of its own.
    pub const REJECTED_BY_CONSUMER: i32 = 28;

    /// [`CmEvent::status`] of a rejection by a machine on which nobody listens there.
    pub const REJECTED_NO_LISTENER: i32 = 8;
}

/// What connecting and accepting say.
#[derive(Clone, Copy, Debug)]
pub struct ConnectParams<'a> {
    /// For the peer; at most 56 bytes when connecting, 196 when accepting.
    pub private_data: &'a [u8],
    /// Most READs that this side will have outstanding.
    pub initiator_depth: u8,
    /// Most READs of the peer that are served at once.
    pub responder_resources: u8,
    /// How often a send is tried again when it is not acknowledged; at most 7. Ignored when accepting.
    pub retry_count: u8,
    /// How often a send is tried again when the peer has no receive posted; 7 is for ever.
    pub rnr_retry_count: u8,
}

impl EventChannel {
    /// A channel, non-blocking.
    pub fn new() -> Result<Arc<Self>, VerbsError> {
        let library = library()?;
        // SAFETY: no arguments.
        let raw = unsafe { (library.rdma_create_event_channel)() };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::last("rdma_create_event_channel"))?;
        let channel = Self {
            library,
            raw,
            lock: Mutex::new(()),
            last_key: AtomicU64::new(0),
        };
        set_nonblocking(channel.as_fd())?;
        Ok(Arc::new(channel))
    }

    /// The next event; `None` when there is none now.
    pub fn next(self: &Arc<Self>) -> Result<Option<CmEvent>, VerbsError> {
        let _guard = self.lock();
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is alive, and `raw` has room for a pointer.
        if unsafe { (self.library.rdma_get_cm_event)(self.raw.as_ptr(), &mut raw) } != 0 {
            let error = VerbsError::last("rdma_get_cm_event");
            return match error {
                VerbsError::Call {
                    errno: Errno::AGAIN | Errno::INTR,
                    ..
                } => Ok(None),
                error => Err(error),
            };
        }
        // SAFETY: an event was returned, which is valid until it is acknowledged below. The identifiers that it names exist until then:
        // ending one takes the lock that is held here.
        let event = unsafe { self.copy(&*raw) };
        // SAFETY: the event was returned by the library and is acknowledged once; nothing of it is used afterwards.
        unsafe { (self.library.rdma_ack_cm_event)(raw) };
        Ok(Some(event))
    }

    /// Copies an event.
    ///
    /// # Safety
    /// `event` is an event of this channel that is not acknowledged, and the identifiers that it names exist.
    unsafe fn copy(self: &Arc<Self>, event: &RdmaCmEvent) -> CmEvent {
        let conn = &event.conn;
        let private_data = match conn.private_data.is_null() || conn.private_data_len == 0 {
            true => Vec::new(),
            // SAFETY: the library says that so many bytes are there. All events of the identifiers that are made here (of the
            // TCP port space) carry the union's connection member.
            false => unsafe {
                std::slice::from_raw_parts(
                    conn.private_data.cast::<u8>(),
                    conn.private_data_len.into(),
                )
            }
            .to_vec(),
        };
        let mut id = event.id;
        let kind = match event.event {
            RDMA_CM_EVENT_CONNECT_REQUEST => {
                id = event.listen_id;
                CmEventKind::ConnectRequest(self.own(event.id))
            }
            RDMA_CM_EVENT_ADDR_RESOLVED => CmEventKind::AddrResolved,
            RDMA_CM_EVENT_ROUTE_RESOLVED => CmEventKind::RouteResolved,
            RDMA_CM_EVENT_ESTABLISHED => CmEventKind::Established,
            RDMA_CM_EVENT_REJECTED => CmEventKind::Rejected,
            RDMA_CM_EVENT_ADDR_ERROR => CmEventKind::Failed("the address was not resolved"),
            RDMA_CM_EVENT_ROUTE_ERROR => CmEventKind::Failed("no route was found"),
            RDMA_CM_EVENT_UNREACHABLE => CmEventKind::Failed("the peer does not answer"),
            RDMA_CM_EVENT_CONNECT_ERROR => CmEventKind::Failed("the connection failed"),
            RDMA_CM_EVENT_DISCONNECTED => CmEventKind::Disconnected,
            RDMA_CM_EVENT_DEVICE_REMOVAL => CmEventKind::DeviceRemoved,
            RDMA_CM_EVENT_ADDR_CHANGE => CmEventKind::AddressChanged,
            other => CmEventKind::Other(other),
        };
        CmEvent {
            // SAFETY: it exists, says the caller. Its context was set when it got its owner.
            id: IdKey(unsafe { (*id).context } as usize as u64),
            kind,
            status: event.status,
            private_data,
            initiator_depth: conn.initiator_depth,
            responder_resources: conn.responder_resources,
        }
    }

    /// Takes over an identifier that came with a connection request.
    fn own(self: &Arc<Self>, raw: *mut RdmaCmId) -> CmId {
        let key = self.next_key();
        // SAFETY: the identifier is new and nobody else's; its context is a plain field that is the program's to set.
        unsafe { (*raw).context = context(key) };
        CmId {
            raw: NonNull::new(raw).expect("a connection request has an identifier"),
            channel: Arc::clone(self),
            key,
        }
    }

    fn next_key(&self) -> IdKey {
        IdKey(self.last_key.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        // Nothing is left half done by a panic: the lock protects no data of ours.
        self.lock
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The key as the library keeps it, which never looks at it.
fn context(key: IdKey) -> *mut c_void {
    ptr::without_provenance_mut(key.0 as usize)
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel owns the descriptor and lives at least as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_ref().fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: identifiers hold the channel, so there are none left, and every event was acknowledged.
        unsafe { (self.library.rdma_destroy_event_channel)(self.raw.as_ptr()) };
    }
}

impl fmt::Debug for EventChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventChannel").finish_non_exhaustive()
    }
}

/// Makes the operations on a descriptor of the libraries return at once.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), VerbsError> {
    fcntl_getfl(fd)
        .and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK))
        .map_err(|errno| VerbsError::Call {
            call: "fcntl",
            errno,
        })
}

/// An identifier: a listener, or one end of a connection. Dropping it ends it, without a word to the peer if it was connected.
pub struct CmId {
    raw: NonNull<RdmaCmId>,
    channel: Arc<EventChannel>,
    key: IdKey,
}

// SAFETY: the library's functions may be called from any thread; it is used from one at a time, except by event handling, which the
// channel's lock keeps apart where that matters.
unsafe impl Send for CmId {}

impl CmId {
    /// A new identifier.
    pub fn new(channel: &Arc<EventChannel>) -> Result<Self, VerbsError> {
        let key = channel.next_key();
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is alive and `raw` has room for a pointer; the context is a number that nobody follows.
        let result = unsafe {
            (channel.library.rdma_create_id)(
                channel.raw.as_ptr(),
                &mut raw,
                context(key),
                RDMA_PS_TCP,
            )
        };
        check("rdma_create_id", result)?;
        Ok(Self {
            raw: NonNull::new(raw).ok_or_else(|| VerbsError::last("rdma_create_id"))?,
            channel: Arc::clone(channel),
            key,
        })
    }

    /// Its name in events.
    pub fn key(&self) -> IdKey {
        self.key
    }

    /// Its channel.
    pub fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Listens on `addr`; connection requests come as events of this identifier.
    pub fn listen(&self, addr: SocketAddr, backlog: u16) -> Result<(), VerbsError> {
        self.set_option::<c_int>(RDMA_OPTION_ID_REUSEADDR, 1)?;
        if addr.is_ipv6() {
            // The two families are listened on apart, as over TCP.
            self.set_option::<c_int>(RDMA_OPTION_ID_AFONLY, 1)?;
        }
        let mut storage = to_storage(addr);
        let library = self.channel.library;
        // SAFETY: the identifier is alive; the address is a socket address of its family.
        let result =
            unsafe { (library.rdma_bind_addr)(self.as_ptr(), ptr::from_mut(&mut storage).cast()) };
        check("rdma_bind_addr", result)?;
        // SAFETY: the identifier is alive.
        let result = unsafe { (library.rdma_listen)(self.as_ptr(), backlog.into()) };
        check("rdma_listen", result)
    }

    /// Sets the type of service of the connection; before its address is resolved.
    pub fn set_tos(&self, tos: u8) -> Result<(), VerbsError> {
        self.set_option(RDMA_OPTION_ID_TOS, tos)
    }

    fn set_option<T>(&self, option: c_int, mut value: T) -> Result<(), VerbsError> {
        // SAFETY: the identifier is alive; the library reads a value of the size given, and refuses sizes that an option does not have.
        let result = unsafe {
            (self.channel.library.rdma_set_option)(
                self.as_ptr(),
                RDMA_OPTION_ID,
                option,
                ptr::from_mut(&mut value).cast(),
                size_of::<T>(),
            )
        };
        check("rdma_set_option", result)
    }

    /// Looks for the device that reaches `to`, from `from` if given. Answered by an event.
    pub fn resolve_addr(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        timeout_ms: u32,
    ) -> Result<(), VerbsError> {
        let mut from = from.map(to_storage);
        let from = from
            .as_mut()
            .map_or(ptr::null_mut(), |from| ptr::from_mut(from).cast());
        let mut to = to_storage(to);
        let timeout_ms = timeout_ms.min(c_int::MAX as u32) as c_int;
        // SAFETY: the identifier is alive; the addresses are socket addresses of their families and outlive the call.
        let result = unsafe {
            (self.channel.library.rdma_resolve_addr)(
                self.as_ptr(),
                from,
                ptr::from_mut(&mut to).cast(),
                timeout_ms,
            )
        };
        check("rdma_resolve_addr", result)
    }

    /// Looks for the route to the resolved address. Answered by an event.
    pub fn resolve_route(&self, timeout_ms: u32) -> Result<(), VerbsError> {
        let timeout_ms = timeout_ms.min(c_int::MAX as u32) as c_int;
        // SAFETY: the identifier is alive.
        let result =
            unsafe { (self.channel.library.rdma_resolve_route)(self.as_ptr(), timeout_ms) };
        check("rdma_resolve_route", result)
    }

    /// Asks the peer for a connection, over the queue pair that was made on the identifier. Answered by an event.
    pub fn connect(&self, params: &ConnectParams<'_>) -> Result<(), VerbsError> {
        let mut params = to_conn_param(params);
        // SAFETY: the identifier is alive; the private data is borrowed beyond the call.
        let result = unsafe { (self.channel.library.rdma_connect)(self.as_ptr(), &mut params) };
        check("rdma_connect", result)
    }

    /// Accepts a connection request, over the queue pair that was made on the identifier. An event says when it stands.
    pub fn accept(&self, params: &ConnectParams<'_>) -> Result<(), VerbsError> {
        let mut params = to_conn_param(params);
        // SAFETY: the identifier is alive; the private data is borrowed beyond the call.
        let result = unsafe { (self.channel.library.rdma_accept)(self.as_ptr(), &mut params) };
        check("rdma_accept", result)
    }

    /// Refuses a connection request, with private data of at most 148 bytes.
    pub fn reject(&self, private_data: &[u8]) -> Result<(), VerbsError> {
        // SAFETY: the identifier is alive; so many bytes are there.
        let result = unsafe {
            (self.channel.library.rdma_reject)(
                self.as_ptr(),
                private_data.as_ptr().cast(),
                private_data.len().min(u8::MAX.into()) as u8,
            )
        };
        check("rdma_reject", result)
    }

    /// Ends the connection: what is posted on the queue pair comes back flushed.
    pub fn disconnect(&self) -> Result<(), VerbsError> {
        // SAFETY: the identifier is alive.
        let result = unsafe { (self.channel.library.rdma_disconnect)(self.as_ptr()) };
        check("rdma_disconnect", result)
    }

    /// Our address of the connection, or the one listened on.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        // SAFETY: the identifier is alive. The library writes its addresses only in calls on it and before events of it are seen.
        from_storage(unsafe { &(*self.as_ptr()).route.addr.src })
    }

    /// The peer's address.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        // SAFETY: as above.
        from_storage(unsafe { &(*self.as_ptr()).route.addr.dst })
    }

    /// Whether it is on a device: one that listens on a wildcard address is on none.
    pub fn has_device(&self) -> bool {
        self.verbs().is_some()
    }

    pub(super) fn library(&self) -> &'static Library {
        self.channel.library
    }

    pub(super) fn as_ptr(&self) -> *mut RdmaCmId {
        self.raw.as_ptr()
    }

    /// The device that it is on, if it is on one.
    pub(super) fn verbs(&self) -> Option<NonNull<IbvContext>> {
        // SAFETY: the identifier is alive; the field is set once, before the event that tells of it.
        NonNull::new(unsafe { (*self.as_ptr()).verbs })
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        let _guard = self.channel.lock();
        // SAFETY: the identifier is ours and alive, a queue pair on it was destroyed before (its owner owns the identifier too). No
        // event of it is unacknowledged: that only happens under the lock.
        unsafe { (self.channel.library.rdma_destroy_id)(self.as_ptr()) };
    }
}

impl fmt::Debug for CmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmId")
            .field("key", &self.key)
            .field("local", &self.local_addr())
            .field("peer", &self.peer_addr())
            .finish_non_exhaustive()
    }
}

fn check(call: &'static str, result: c_int) -> Result<(), VerbsError> {
    match result {
        0 => Ok(()),
        _ => Err(VerbsError::last(call)),
    }
}

fn to_conn_param(params: &ConnectParams<'_>) -> RdmaConnParam {
    RdmaConnParam {
        private_data: params.private_data.as_ptr().cast(),
        private_data_len: params.private_data.len().min(u8::MAX.into()) as u8,
        responder_resources: params.responder_resources,
        initiator_depth: params.initiator_depth,
        flow_control: 1,
        retry_count: params.retry_count.min(7),
        rnr_retry_count: params.rnr_retry_count.min(7),
        srq: 0,
        qp_num: 0,
    }
}

fn to_storage(addr: SocketAddr) -> libc::sockaddr_storage {
    // SAFETY: all zeroes are a socket address without a family.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    match addr {
        SocketAddr::V4(v4) => {
            let to = ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>();
            // SAFETY: the storage is large enough for, and aligned as, an address of any family.
            unsafe {
                (*to).sin_family = libc::AF_INET as libc::sa_family_t;
                (*to).sin_port = v4.port().to_be();
                (*to).sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            }
        }
        SocketAddr::V6(v6) => {
            let to = ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>();
            // SAFETY: as above.
            unsafe {
                (*to).sin6_family = libc::AF_INET6 as libc::sa_family_t;
                (*to).sin6_port = v6.port().to_be();
                (*to).sin6_flowinfo = v6.flowinfo();
                (*to).sin6_addr.s6_addr = v6.ip().octets();
                (*to).sin6_scope_id = v6.scope_id();
            }
        }
    }
    storage
}

fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: an address of this family is such a structure, which the storage has room for.
            let v4 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were() {
        for text in ["10.1.2.3:4420", "[fd00::7]:1", "[fe80::1%3]:4420"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(from_storage(&to_storage(addr)), Some(addr));
        }
        // SAFETY: all zeroes are a socket address without a family.
        assert_eq!(from_storage(&unsafe { std::mem::zeroed() }), None);
    }
}
