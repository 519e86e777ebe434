//! The table of a shard's open requests: fixed in size, so that nothing is allocated for an operation.
//!
//! Invariant: `pending` counts the parts of a request that are issued or wait to be sent again, plus one while blocks of
//! it are not issued yet. The request is answered exactly when `pending` falls to zero.

use nvmf_io::Buf;

use super::request::{IoError, Op, Request};

/// An open request.
#[derive(Debug)]
pub(crate) struct Open {
    /// Index of its head.
    pub head: usize,
    pub tag: u64,
    pub op: Op,
    pub slba: u64,
    pub blocks: u64,
    pub buf: Option<Buf>,
    pub buf_offset: u32,
    /// Blocks that were given to commands.
    pub issued: u64,
    pub pending: u32,
    /// The first error of any part.
    pub error: Option<IoError>,
}

impl Open {
    /// Whether blocks (or the one command of a flush) are still to be issued.
    pub fn has_rest(&self) -> bool {
        self.error.is_none()
            && (self.issued < self.blocks || (self.op == Op::Flush && self.issued == 0))
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Requests {
    slots: Box<[Option<Open>]>,
    free: Vec<u32>,
}

impl Requests {
    pub fn new(capacity: u32) -> Self {
        Requests {
            slots: std::iter::repeat_with(|| None)
                .take(capacity as usize)
                .collect(),
            free: (0..capacity).rev().collect(),
        }
    }

    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Opens a request with nothing issued: `pending` is 1 for its blocks. The caller has asked [`Requests::is_full`].
    pub fn insert(&mut self, head: usize, request: Request) -> u32 {
        let index = self.free.pop().expect("the caller asked for room");
        self.slots[index as usize] = Some(Open {
            head,
            tag: request.tag,
            op: request.op,
            slba: request.slba.0,
            blocks: request.blocks,
            buf: request.buf,
            buf_offset: request.buf_offset_bytes,
            issued: 0,
            pending: 1,
            error: None,
        });
        index
    }

    pub fn get_mut(&mut self, index: u32) -> &mut Open {
        self.slots[index as usize]
            .as_mut()
            .expect("an open request")
    }

    pub fn get(&self, index: u32) -> &Open {
        self.slots[index as usize]
            .as_ref()
            .expect("an open request")
    }

    /// One of what `pending` counts is over. Returns the request when it was the last.
    pub fn finish_one(&mut self, index: u32, error: Option<IoError>) -> Option<Open> {
        let open = self.get_mut(index);
        open.error = open.error.or(error);
        open.pending -= 1;
        if open.pending > 0 {
            return None;
        }
        self.free.push(index);
        self.slots[index as usize].take()
    }
}
