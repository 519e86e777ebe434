//! Memory windows of a link: which are bound, and answers that wait until theirs are closed.
//!
//! Invariants: no command is answered before its window is closed, and its slot, with the window, is free only then; there is room for
//! the invalidation of each window that is bound.

use std::collections::VecDeque;

use nvme_proto::rdma::HostConn;
use nvme_proto::violation::Violation;
use nvmf_io::verbs::{HEADER_BYTES, LinkFailure, QueuePair, SendWork};

use super::SlotMemory;

/// The window of a slot.
#[derive(Clone, Copy, Default)]
pub(super) enum Window {
    #[default]
    Closed,
    /// Bound under this key.
    Bound(u32),
    /// The command was answered, and the invalidation is posted.
    Closing,
}

/// The windows of a link, one for each slot.
pub(super) struct Windows {
    /// Those that are bound, whose commands are not answered.
    pub bound: usize,
    /// Answers whose windows are being closed, in the order of the invalidations.
    closing: VecDeque<Unclosed>,
}

/// An answer that left its command's window open.
pub(super) struct Unclosed {
    /// Number of the invalidation.
    closed_by: u64,
    pub header: [u8; HEADER_BYTES],
    pub bytes: u32,
}

impl Windows {
    /// None is bound; no more than `capacity` commands are open at once.
    pub fn new(capacity: usize) -> Self {
        Windows {
            bound: 0,
            closing: VecDeque::with_capacity(capacity),
        }
    }

    /// A message arrived. If it answers a command and left the command's window open, has that closed, keeps the message until then, and
    /// returns true.
    #[expect(
        clippy::too_many_arguments,
        reason = "the link's parts, and a message's"
    )]
    pub fn answered(
        &mut self,
        qp: &mut QueuePair,
        conn: &HostConn,
        slots: &mut [SlotMemory],
        sent: &mut u64,
        header: &[u8; HEADER_BYTES],
        bytes: u32,
        invalidated: Option<u32>,
    ) -> Result<bool, LinkFailure> {
        let Some(slot) = conn.responds_to(header, bytes) else {
            return Ok(false);
        };
        let place = &mut slots[slot.index()];
        match place.window {
            Window::Closed => Ok(false),
            // One answer was taken already.
            Window::Closing => {
                let cid = conn.command(slot).cid();
                Err(LinkFailure::Violation(Violation::ResponseCid(cid)))
            }
            Window::Bound(key) => {
                self.bound -= 1;
                if invalidated.is_some() {
                    // That it was this key is for the protocol's state to see.
                    return Ok(false);
                }
                place.window = Window::Closing;
                *sent += 1;
                let staged = qp.stage(SendWork::Invalidate { key }, *sent, false);
                staged.expect("room was left for it");
                self.closing.push_back(Unclosed {
                    closed_by: *sent,
                    header: *header,
                    bytes,
                });
                Ok(true)
            }
        }
    }

    /// The next answer whose window is closed, now that all work requests up to `acknowledged` are done.
    pub fn closed(&mut self, acknowledged: u64) -> Option<Unclosed> {
        let first = self.closing.front()?;
        (first.closed_by <= acknowledged).then(|| self.closing.pop_front())?
    }
}
