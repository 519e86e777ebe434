//! The requests of a connection that are not answered yet.

use nvmf_io::Buf;
use nvmf_io::buf::CLASS_BYTES;

use super::wire::NbdError;
use super::{MAX_TRANSFER_BYTES, PART_BYTES};

/// Buffers of the longest request.
const MAX_PARTS: usize = (MAX_TRANSFER_BYTES / PART_BYTES) as usize;

/// What a buffer of this length takes of the pool.
pub(super) fn memory_of(len_bytes: u32) -> u32 {
    let class = CLASS_BYTES.iter().find(|&&bytes| len_bytes <= bytes);
    class.copied().unwrap_or(len_bytes)
}

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u16);

/// One request.
pub(super) struct OpenRequest {
    pub cookie: u64,
    /// The first error of its parts.
    pub result: Result<(), NbdError>,
    /// Parts at the backing.
    pub parts: u32,
    /// More parts are to come.
    pub more: bool,
    /// It is not done before a flush: FUA of an operation that has none.
    pub then_flush: bool,
    /// Of a read, in order.
    bufs: [Option<Buf>; MAX_PARTS],
}

impl OpenRequest {
    /// Adds a buffer of a read.
    pub fn push(&mut self, buf: Buf) {
        if let Some(free) = self.bufs.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(buf);
        }
    }

    /// The buffer of a part of a read.
    pub fn buf(&self, at: usize) -> Option<Buf> {
        self.bufs.get(at).cloned().flatten()
    }

    pub fn bufs(&self) -> impl Iterator<Item = &Buf> {
        self.bufs.iter().flatten()
    }

    /// What its buffers take of the pool.
    pub fn memory_bytes(&self) -> u32 {
        self.bufs().map(|buf| memory_of(buf.len())).sum()
    }
}

/// The table of them, all of it made at the beginning.
pub(super) struct OpenRequests {
    slots: Vec<OpenRequest>,
    free: Vec<Slot>,
}

impl OpenRequests {
    pub fn new(depth: u16) -> Self {
        let closed = || OpenRequest {
            cookie: 0,
            result: Ok(()),
            parts: 0,
            more: false,
            then_flush: false,
            bufs: Default::default(),
        };
        OpenRequests {
            slots: (0..depth).map(|_| closed()).collect(),
            free: (0..depth).rev().map(Slot).collect(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        (self.slots.len() - self.free.len()) as u32
    }

    /// Takes a slot, of which there is one as long as the connection keeps to its depth.
    pub fn begin(&mut self, cookie: u64) -> Slot {
        let slot = self
            .free
            .pop()
            .expect("fewer requests are open than the depth");
        self.get(slot).cookie = cookie;
        slot
    }

    pub fn get(&mut self, slot: Slot) -> &mut OpenRequest {
        &mut self.slots[usize::from(slot.0)]
    }

    /// It is answered.
    pub fn end(&mut self, slot: Slot) {
        let request = self.get(slot);
        request.bufs = Default::default();
        (request.result, request.more, request.then_flush) = (Ok(()), false, false);
        self.free.push(slot);
    }

    /// It will not be answered: gives it up once nothing of it is at the backing. Returns what its buffers took.
    pub fn abandon(&mut self, slot: Slot) -> u32 {
        let request = self.get(slot);
        request.more = false;
        if request.parts > 0 {
            return 0;
        }
        let memory_bytes = request.memory_bytes();
        self.end(slot);
        memory_bytes
    }
}
