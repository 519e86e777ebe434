//! Queue pairs: reliable connections with their completion queue, and what is posted on them.
//!
//! Each side of a queue pair completes in the order of posting, so what is in flight is a queue on either side, and a work
//! request's identifier is its number in that order: the completion of one is that of all before it on its side, signalled or not.
//!
//! Small messages (headers: capsules without data) need no memory of the caller's: the queue pair has a registered slot of
//! [`HEADER_BYTES`] for each work request, and sends them inline where the device can.
//!
//! Invariants:
//! - a buffer that a work request names is owned by its entry until the completion, or until the queue pair is destroyed; a buffer that
//!   the device may write to is marked as such meanwhile;
//! - a slot is used again only after the work request that used it completed: there are as many as the queue has places.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;

use super::abi::*;
use super::cm::CmId;
use super::completion::CompletionQueue;
use super::domain::ProtectionDomain;
use super::library::VerbsError;
use super::memory::{Region, Segment};
use super::window::Windows;
use super::work::{Done, HEADER_BYTES, NoRoom, QueueSizes, SendWork, WorkCounts, WorkStatus};
use crate::buf::{Buf, KernelWrite};
use crate::sys::mmap::{Access, Mapping};

/// Marks the identifiers of receives.
const RECEIVE: u64 = 1 << 63;

/// Completions taken from the device at a time.
const POLL_BATCH: usize = 16;

/// Segments of a work request: a header and a buffer.
const SEGMENTS: usize = 2;

/// What a posted work request holds on to.
enum Held {
    Nothing,
    Reads(#[expect(dead_code, reason = "held, not used")] Buf),
    Writes(KernelWrite),
}

struct InFlight {
    held: Held,
    token: u64,
}

/// A queue pair with nothing posted, which may move to another thread.
#[derive(Debug)]
pub struct IdleQueuePair(Core);

// SAFETY: nothing is posted, so no buffer is held, which are what belongs to a thread. The raw pointers are those of `requests`, only
// followed while a batch is posted; the library's objects may be used from any thread, one at a time.
unsafe impl Send for IdleQueuePair {}

/// What both forms of a queue pair are made of.
struct Core {
    id: ManuallyDrop<CmId>,
    queue: ManuallyDrop<CompletionQueue>,
    domain: Arc<ProtectionDomain>,
    windows: ManuallyDrop<Windows>,
    sizes: QueueSizes,
    max_inline_bytes: u32,
    /// Header slots: first those of sends, then those of receives.
    slots: ManuallyDrop<Mapping>,
    region: ManuallyDrop<Region>,
    /// Numbers of the next work requests.
    next_send: u64,
    next_receive: u64,
    /// Entries for the library, two segments each.
    requests: Box<[IbvSendWr]>,
    segments: Box<[[IbvSge; SEGMENTS]]>,
    sends: ManuallyDrop<VecDeque<InFlight>>,
    receives: ManuallyDrop<VecDeque<InFlight>>,
    /// Entries of `sends` that are not posted yet, at its end.
    staged: usize,
    /// Since they were last taken.
    counts: WorkCounts,
}

impl IdleQueuePair {
    /// A queue pair on an identifier that has a device, for a connection that is about to be asked for or accepted. Gives the
    /// identifier back on an error, so that it can be rejected.
    pub fn new(
        id: CmId,
        domain: &Arc<ProtectionDomain>,
        sizes: QueueSizes,
    ) -> Result<Self, (CmId, VerbsError)> {
        match Self::parts(&id, domain, sizes) {
            Ok((queue, slots, region, windows, max_inline_bytes)) => Ok(Self(Core {
                id: ManuallyDrop::new(id),
                queue: ManuallyDrop::new(queue),
                domain: Arc::clone(domain),
                windows: ManuallyDrop::new(windows),
                sizes,
                max_inline_bytes,
                slots: ManuallyDrop::new(slots),
                region: ManuallyDrop::new(region),
                next_send: 0,
                next_receive: 0,
                requests: vec![EMPTY; sizes.sends as usize].into(),
                segments: vec![[IbvSge::default(); SEGMENTS]; sizes.sends as usize].into(),
                sends: ManuallyDrop::new(VecDeque::with_capacity(sizes.sends as usize)),
                receives: ManuallyDrop::new(VecDeque::with_capacity(sizes.receives as usize)),
                staged: 0,
                counts: WorkCounts::default(),
            })),
            Err(error) => Err((id, error)),
        }
    }

    fn parts(
        id: &CmId,
        domain: &Arc<ProtectionDomain>,
        sizes: QueueSizes,
    ) -> Result<(CompletionQueue, Mapping, Region, Windows, u32), VerbsError> {
        let limits = domain.limits();
        let lack = |lack: String| VerbsError::Device {
            device: domain.device_name().to_owned(),
            lack,
        };
        if !domain.serves(id) {
            return Err(lack("is not the one that the connection is on".into()));
        }
        let (most, entries) = (
            sizes.sends.max(sizes.receives),
            sizes.sends + sizes.receives,
        );
        if most == 0 || most > limits.work_requests || entries > limits.completions {
            return Err(lack(format!(
                "takes at most {} work requests and {} completions, {most} and {entries} are needed",
                limits.work_requests, limits.completions
            )));
        }
        if (limits.segments as usize) < SEGMENTS {
            return Err(lack(format!("takes fewer than {SEGMENTS} segments")));
        }
        let bytes = entries as usize * HEADER_BYTES;
        let slots =
            Mapping::anonymous(bytes, Access::ReadWrite).map_err(|_| VerbsError::last("mmap"))?;
        let region = Region::new(domain, &slots, IBV_ACCESS_LOCAL_WRITE)?;
        let windows = Windows::new(domain, sizes.windows)?;
        let queue = CompletionQueue::new(domain, entries)?;
        let inline = create(id, domain, &queue, sizes, HEADER_BYTES as u32)
            .or_else(|_| create(id, domain, &queue, sizes, 0))?;
        Ok((queue, slots, region, windows, inline))
    }

    /// Its connection.
    pub fn id(&self) -> &CmId {
        &self.0.id
    }

    /// For use on this thread.
    pub fn attach(self) -> QueuePair {
        QueuePair(self.0)
    }
}

impl Core {
    fn qp(&self) -> *mut IbvQp {
        // SAFETY: the identifier is alive; the field was set when the queue pair was made.
        unsafe { (*self.id.as_ptr()).qp }
    }

    fn slot(&self, index: u64) -> *mut u8 {
        // SAFETY: slots of sends and receives lie in the mapping, which was made with room for them.
        unsafe {
            self.slots
                .base()
                .as_ptr()
                .add(index as usize * HEADER_BYTES)
        }
    }

    fn send_slot(&self, number: u64) -> *mut u8 {
        self.slot(number % u64::from(self.sizes.sends))
    }

    fn receive_slot(&self, number: u64) -> *mut u8 {
        self.slot(u64::from(self.sizes.sends) + number % u64::from(self.sizes.receives))
    }

    fn poll(&mut self, into: &mut [IbvWc]) -> Result<usize, VerbsError> {
        let count = self.queue.poll(into)?;
        self.counts.polls += 1;
        self.counts.idle_polls += u64::from(count == 0);
        self.counts.completions += count as u64;
        Ok(count)
    }

    /// A segment of a slot.
    fn slot_segment(&self, slot: *mut u8, bytes: usize) -> IbvSge {
        IbvSge {
            addr: slot.addr() as u64,
            length: bytes as u32,
            lkey: self.region.local_key(),
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let library = self.domain.library();
        // SAFETY: dropped once, here; what is staged and names one is never posted.
        unsafe { ManuallyDrop::drop(&mut self.windows) };
        {
            let _guard = self.id.channel().lock();
            // SAFETY: the identifier is alive and has a queue pair, which is destroyed once, here.
            unsafe { (library.rdma_destroy_qp)(self.id.as_ptr()) };
        }
        // SAFETY: taken once, here, and not used again.
        let queue = unsafe { ManuallyDrop::take(&mut self.queue) };
        if let Err(error) = queue.destroy() {
            // That its completion queue is in use is the one sign that the queue pair still exists. Nothing that it may use is freed.
            tracing::error!(device = self.domain.device_name(), %error, "a queue pair is left behind, with its memory");
            return;
        }
        // SAFETY: each is dropped once, here. The queue pair is gone, so the device uses neither slots nor buffers any more.
        unsafe {
            ManuallyDrop::drop(&mut self.region);
            ManuallyDrop::drop(&mut self.slots);
            ManuallyDrop::drop(&mut self.sends);
            ManuallyDrop::drop(&mut self.receives);
            ManuallyDrop::drop(&mut self.id);
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("id", &*self.id)
            .field("sizes", &self.sizes)
            .field("sends", &self.sends.len())
            .field("receives", &self.receives.len())
            .finish_non_exhaustive()
    }
}

/// Makes the queue pair on the identifier. Returns how many bytes can be sent inline.
fn create(
    id: &CmId,
    domain: &ProtectionDomain,
    queue: &CompletionQueue,
    sizes: QueueSizes,
    inline_bytes: u32,
) -> Result<u32, VerbsError> {
    let mut attr = IbvQpInitAttr {
        qp_context: ptr::null_mut(),
        send_cq: queue.as_ptr(),
        recv_cq: queue.as_ptr(),
        srq: ptr::null_mut(),
        cap: IbvQpCap {
            max_send_wr: sizes.sends,
            max_recv_wr: sizes.receives,
            max_send_sge: SEGMENTS as u32,
            max_recv_sge: SEGMENTS as u32,
            max_inline_data: inline_bytes,
        },
        qp_type: IBV_QPT_RC,
        sq_sig_all: 0,
    };
    // SAFETY: identifier, domain and queue are alive and on one device, which the caller checked.
    let result =
        unsafe { (domain.library().rdma_create_qp)(id.as_ptr(), domain.as_ptr(), &mut attr) };
    match result {
        0 => Ok(attr.cap.max_inline_data),
        _ => Err(VerbsError::last("rdma_create_qp")),
    }
}

/// A queue pair in use by this thread.
///
/// Dropping it destroys it: what is posted is given up, and its buffers are free after that. Whoever wants to know what came of it calls
/// [`CmId::disconnect`] and polls until [`QueuePair::in_flight`] is 0.
#[derive(Debug)]
pub struct QueuePair(Core);

impl QueuePair {
    /// Its connection.
    pub fn id(&self) -> &CmId {
        &self.0.id
    }

    /// Its completion queue, to be armed and waited for.
    pub fn queue(&self) -> &CompletionQueue {
        &self.0.queue
    }

    /// The domain that it is in.
    pub fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.0.domain
    }

    /// How many memory windows it has.
    pub fn windows(&self) -> usize {
        self.0.windows.len()
    }

    /// The key that the next [`SendWork::Bind`] of a window gives to it.
    ///
    /// # Panics
    /// When there is no such window.
    pub fn window_key(&self, window: usize) -> u32 {
        self.0.windows.next_key(window)
    }

    /// Work requests posted and not completed.
    pub fn in_flight(&self) -> usize {
        self.0.sends.len() + self.0.receives.len()
    }

    /// Work requests that are not receives, posted or staged and not known to be completed.
    pub fn sends_in_flight(&self) -> usize {
        self.0.sends.len()
    }

    /// Room for work requests that are not receives.
    pub fn send_room(&self) -> usize {
        self.0.sizes.sends as usize - self.0.sends.len()
    }

    /// What it did since that was last taken.
    pub fn counts(&self) -> WorkCounts {
        self.0.counts
    }

    /// What was done since this was last called.
    #[inline]
    pub fn take_counts(&mut self) -> WorkCounts {
        std::mem::take(&mut self.0.counts)
    }

    /// Memory that it takes here, in bytes, beside what driver and device have for it and the buffers that are posted.
    pub fn memory_bytes(&self) -> usize {
        let core = &self.0;
        core.slots.len()
            + size_of_val(&*core.requests)
            + size_of_val(&*core.segments)
            + (core.sends.capacity() + core.receives.capacity()) * size_of::<InFlight>()
    }

    /// To another thread, if nothing is posted.
    pub fn detach(self) -> Result<IdleQueuePair, Box<Self>> {
        match self.in_flight() {
            0 => Ok(IdleQueuePair(self.0)),
            _ => Err(Box::new(self)),
        }
    }

    /// Posts a receive for a message with a header and, if there is a buffer, data after it. The buffer comes back with the message.
    pub fn receive(&mut self, data: Option<Segment>) -> Result<(), VerbsError> {
        let core = &mut self.0;
        let full = VerbsError::Call {
            call: "ibv_post_recv",
            errno: rustix::io::Errno::NOMEM,
        };
        if core.receives.len() == core.sizes.receives as usize {
            return Err(full);
        }
        let Some(post) = core.domain.ops().post_recv else {
            return Err(VerbsError::Symbol("post_recv"));
        };
        let number = core.next_receive;
        let mut segments = [
            core.slot_segment(core.receive_slot(number), HEADER_BYTES),
            IbvSge::default(),
        ];
        let (count, held) = match data {
            None => (1, Held::Nothing),
            Some(segment) => {
                segments[1] = sge(&segment);
                let held = KernelWrite::new(&segment.buf).ok_or(full)?;
                (2, Held::Writes(held))
            }
        };
        let mut request = IbvRecvWr {
            wr_id: RECEIVE | number,
            next: ptr::null_mut(),
            sg_list: segments.as_mut_ptr(),
            num_sge: count,
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive; request and segments outlive the call, which copies them. The memory that the segments name
        // is the slot, which no other receive in flight has, and a buffer that the entry made below holds.
        let result = unsafe { post(core.qp(), &mut request, &mut bad) };
        if result != 0 {
            return Err(VerbsError::returned("ibv_post_recv", result));
        }
        core.next_receive = (number + 1) & !RECEIVE;
        core.counts.receives += 1;
        self.0.receives.push_back(InFlight { held, token: 0 });
        Ok(())
    }

    /// Stages a work request, to be posted with those before it by [`QueuePair::post`]. Only those that are signalled are reported
    /// when they succeed.
    pub fn stage(&mut self, work: SendWork<'_>, token: u64, signalled: bool) -> Result<(), NoRoom> {
        if self.send_room() == 0 {
            return Err(NoRoom);
        }
        let core = &mut self.0;
        let number = core.next_send;
        let mut request = IbvSendWr {
            wr_id: number,
            send_flags: if signalled { IBV_SEND_SIGNALED } else { 0 },
            ..EMPTY
        };
        let at = core.staged;
        let held = match work {
            SendWork::Send {
                header,
                data,
                invalidate,
            } => {
                let bytes = header.len().min(HEADER_BYTES);
                let slot = core.send_slot(number);
                // SAFETY: the slot has room for so many bytes; the work request that used it before completed, since there are as many
                // slots as places and this one has a place.
                unsafe { ptr::copy_nonoverlapping(header.as_ptr(), slot, bytes) };
                core.segments[at][0] = core.slot_segment(slot, bytes);
                request.num_sge = 1;
                request.opcode = IBV_WR_SEND;
                if let Some(key) = invalidate {
                    request.opcode = IBV_WR_SEND_WITH_INV;
                    request.invalidate_rkey = key;
                }
                match data {
                    Some(segment) => {
                        core.segments[at][1] = sge(&segment);
                        request.num_sge = 2;
                        Held::Reads(segment.buf)
                    }
                    None => {
                        if bytes as u32 <= core.max_inline_bytes {
                            request.send_flags |= IBV_SEND_INLINE;
                        }
                        Held::Nothing
                    }
                }
            }
            SendWork::Read { into, from } => {
                core.segments[at][0] = sge(&into);
                request.num_sge = 1;
                request.opcode = IBV_WR_RDMA_READ;
                (request.remote_addr, request.rkey) = (from.address, from.key);
                Held::Writes(KernelWrite::new(&into.buf).ok_or(NoRoom)?)
            }
            SendWork::Write { from, into } => {
                core.segments[at][0] = sge(&from);
                request.num_sge = 1;
                request.opcode = IBV_WR_RDMA_WRITE;
                (request.remote_addr, request.rkey) = (into.address, into.key);
                Held::Reads(from.buf)
            }
            SendWork::Probe => {
                request.opcode = IBV_WR_RDMA_WRITE;
                Held::Nothing
            }
            SendWork::Invalidate { key } => {
                request.opcode = IBV_WR_LOCAL_INV;
                request.invalidate_rkey = key;
                Held::Nothing
            }
            SendWork::Bind { window, to } => {
                request.opcode = IBV_WR_BIND_MW;
                // The window keeps the registration, and both stay where they are as long as the queue pair.
                request.bind_mw = core.windows.bind(window, &to);
                Held::Nothing
            }
        };
        let counted = match request.opcode {
            IBV_WR_SEND | IBV_WR_SEND_WITH_INV => &mut core.counts.sends,
            IBV_WR_RDMA_READ => &mut core.counts.reads,
            IBV_WR_RDMA_WRITE if request.num_sge > 0 => &mut core.counts.writes,
            IBV_WR_BIND_MW => &mut core.counts.binds,
            IBV_WR_LOCAL_INV => &mut core.counts.invalidations,
            _ => &mut core.counts.others,
        };
        *counted += 1;
        core.requests[at] = request;
        core.next_send = (number + 1) & !RECEIVE;
        self.0.sends.push_back(InFlight { held, token });
        self.0.staged += 1;
        Ok(())
    }

    /// Posts what is staged, with one call. The last one is signalled, whatever it was staged with, and so tells of all. After an error the queue pair is of no more use: disconnect it.
    pub fn post(&mut self) -> Result<(), VerbsError> {
        let count = std::mem::take(&mut self.0.staged);
        if count == 0 {
            return Ok(());
        }
        let core = &mut self.0;
        let Some(post) = core.domain.ops().post_send else {
            return Err(VerbsError::Symbol("post_send"));
        };
        core.requests[count - 1].send_flags |= IBV_SEND_SIGNALED;
        let base = core.requests.as_mut_ptr();
        for at in 0..count {
            let next = match at + 1 < count {
                // SAFETY: the index is below the number of entries.
                true => unsafe { base.add(at + 1) },
                false => ptr::null_mut(),
            };
            let segments = core.segments[at].as_mut_ptr();
            let request = &mut core.requests[at];
            request.next = next;
            request.sg_list = segments;
            core.counts.signalled += u64::from(request.send_flags & IBV_SEND_SIGNALED != 0);
        }
        core.counts.posts += 1;
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair is alive; requests and segments outlive the call, which copies them. What the segments name is held by
        // the entries that were made when they were staged.
        let result = unsafe { post(core.qp(), core.requests.as_mut_ptr(), &mut bad) };
        if result == 0 {
            return Ok(());
        }
        // Those from `bad` on were not posted, and never will be. Where a driver names none of ours, all may have been: their buffers stay.
        let posted = core.requests[..count]
            .iter()
            .position(|request| ptr::eq(request, bad))
            .unwrap_or(count);
        let given_up = count - posted;
        let left = core.sends.len() - given_up;
        core.sends.truncate(left);
        core.next_send = core.next_send.wrapping_sub(given_up as u64) & !RECEIVE;
        Err(VerbsError::returned("ibv_post_send", result))
    }

    /// Takes completions, at most about `limit`, and reports them to `done`. Returns whether there may be more.
    pub fn poll(
        &mut self,
        limit: usize,
        mut done: impl FnMut(&mut Self, Done),
    ) -> Result<bool, VerbsError> {
        let mut taken = 0;
        while taken < limit {
            let mut completions = [IbvWc::default(); POLL_BATCH];
            let count = self.0.poll(&mut completions)?;
            for completion in &completions[..count] {
                if let Some(what) = self.completed(completion) {
                    done(self, what);
                }
            }
            if count < POLL_BATCH {
                return Ok(false);
            }
            taken += count;
        }
        Ok(true)
    }

    /// Takes one completion.
    pub fn poll_one(&mut self) -> Result<Option<Done>, VerbsError> {
        loop {
            let mut completion = [IbvWc::default()];
            if self.0.poll(&mut completion)? == 0 {
                return Ok(None);
            }
            if let Some(done) = self.completed(&completion[0]) {
                return Ok(Some(done));
            }
        }
    }

    fn completed(&mut self, completion: &IbvWc) -> Option<Done> {
        let status = WorkStatus(completion.status);
        let failed = completion.status != IBV_WC_SUCCESS;
        if completion.wr_id & RECEIVE != 0 {
            let number = completion.wr_id & !RECEIVE;
            let entry = self.0.receives.pop_front()?;
            if failed {
                return Some(Done::Failed {
                    token: None,
                    status,
                });
            }
            let mut header = [0; HEADER_BYTES];
            let bytes = (completion.byte_len as usize).min(HEADER_BYTES);
            // SAFETY: the slot has room for a header, and its receive has completed: the device writes there no more.
            unsafe {
                ptr::copy_nonoverlapping(self.0.receive_slot(number), header.as_mut_ptr(), bytes);
            }
            let data = match entry.held {
                Held::Writes(buf) => Some(buf.into_buf()),
                Held::Nothing | Held::Reads(_) => None,
            };
            // rxe with rdma-core 44 and older reports the flag in its kernel number, which on a reliable connection means nothing else.
            let invalidated = completion.wc_flags & (IBV_WC_WITH_INV | IBV_WC_WITH_INV_OF_RXE) != 0;
            return Some(Done::Received {
                header,
                bytes: completion.byte_len,
                data,
                invalidated: invalidated.then_some(completion.invalidated_rkey),
            });
        }
        // Everything up to this one is done. Places are counted back from the next number, modulo what numbers there are.
        let posted = self.0.sends.len() as u64;
        let behind = self.0.next_send.wrapping_sub(completion.wr_id) & !RECEIVE;
        if behind == 0 || behind > posted {
            // One that was given up when posting failed, or nonsense of a driver; it holds nothing.
            return None;
        }
        let mut token = 0;
        for _ in 0..=(posted - behind) {
            token = self.0.sends.pop_front()?.token;
        }
        self.0.counts.failed += u64::from(failed);
        Some(match failed {
            true => Done::Failed {
                token: Some(token),
                status,
            },
            false => Done::Sent { token },
        })
    }
}

/// `IBV_WC_WITH_INV` as rxe reports it with rdma-core up to 44: the kernel's number instead of the library's.
const IBV_WC_WITH_INV_OF_RXE: u32 = 1 << 2;

fn sge(segment: &Segment) -> IbvSge {
    IbvSge {
        addr: segment.address(),
        length: segment.len(),
        lkey: segment.local_key,
    }
}

const EMPTY: IbvSendWr = IbvSendWr {
    wr_id: 0,
    next: ptr::null_mut(),
    sg_list: ptr::null_mut(),
    num_sge: 0 as c_int,
    opcode: 0,
    send_flags: 0,
    invalidate_rkey: 0,
    remote_addr: 0,
    rkey: 0,
    _wr_rest: [0; 5],
    _qp_type: 0,
    bind_mw: IbvSendBindMw {
        mw: ptr::null_mut(),
        rkey: 0,
        bind_info: IbvMwBindInfo {
            mr: ptr::null_mut(),
            addr: 0,
            length: 0,
            mw_access_flags: 0,
        },
    },
};
