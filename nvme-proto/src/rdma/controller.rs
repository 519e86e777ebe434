//! A queue's connection, the controller's side.
//!
//! The same [`ControllerQueue`] as over TCP: a fetch becomes an RDMA READ of all the command's data, data for the host an RDMA WRITE right
//! before the response, the response a SEND. Built after Connect was received, see [`ConnectCommand`](super::ConnectCommand).
//!
//! The driver's part: report each message with [`ControllerConn::receive`] and each READ with [`ControllerConn::fetched`]; give a buffer
//! to commands that move data; complete every command; post what [`ControllerConn::poll_work`] gives, in that order, and before a response the
//! receive that the command came in with, so that the host's next command finds one. After an error, or when the connection ends, call
//! [`ControllerConn::close`].

use super::controller_handshake::command;
use super::{RESPONSE_BYTES, RemoteMemory, data_pointer};
use crate::queue::controller::{Action, ControllerQueue, ControllerQueueConfig, Landed};
use crate::queue::{QueueLimits, SlotId, Transfer};
use crate::violation::Violation;
use crate::wire::{Cid, Cqe, SglDescriptor, Status};
use zerocopy::IntoBytes;

/// Windows of a fetch begin at multiples of this.
const WINDOW_UNIT_BYTES: u32 = 4096;

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A command. With [`Transfer::FromHost`] it waits for [`ControllerQueue::request_data`]; otherwise it can be executed: with
    /// [`Transfer::InCapsule`] its data came with it.
    Command {
        /// Its slot, until it is completed.
        slot: SlotId,
    },
    /// A command that breaks a rule of the transport. It is answered already; nothing is left to do but to count it.
    Refused {
        /// The command's identifier.
        cid: Cid,
        /// The rule.
        violation: Violation,
    },
}

/// What to post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// RDMA READ: fetch data of a command into its buffer, and report that with [`ControllerConn::fetched`].
    Read {
        /// Whose buffer.
        slot: SlotId,
        /// Where in it, in bytes.
        offset: u32,
        /// How many; never 0.
        bytes: u32,
        /// Where they are.
        from: RemoteMemory,
    },
    /// RDMA WRITE: the first bytes of a command's buffer go to the host. Its response is what comes next.
    Write {
        /// Whose buffer.
        slot: SlotId,
        /// How many; never 0.
        bytes: u32,
        /// Where to.
        into: RemoteMemory,
    },
    /// SEND: a response. The slot is free; its buffer is no longer needed here once what was posted is done.
    Respond {
        /// The slot that it had; `None` for the response to Connect.
        slot: Option<SlotId>,
        /// The message.
        capsule: [u8; RESPONSE_BYTES as usize],
        /// The host's key that the message shall make invalid.
        invalidate: Option<u32>,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct ControllerConn {
    queue: ControllerQueue,
    limits: QueueLimits,
    /// Whether SEND can invalidate a key here.
    can_invalidate: bool,
    connect_response: Option<Cqe>,
    is_live: bool,
}

impl ControllerConn {
    /// A connection on which Connect was received. `can_invalidate`: the device's SEND can invalidate a key of the peer. Allocates all
    /// it will ever need.
    pub fn new(limits: QueueLimits, can_invalidate: bool) -> Self {
        let queue = ControllerQueue::new(ControllerQueueConfig {
            depth: limits.depth,
            flow_control: limits.flow_control,
            // One READ for the data of a command.
            fetch_window_bytes: limits
                .max_transfer_bytes
                .next_multiple_of(WINDOW_UNIT_BYTES),
            max_fetches: 1,
            elide_success: false,
        });
        Self {
            queue,
            limits,
            can_invalidate,
            connect_response: None,
            is_live: true,
        }
    }

    /// The queue: to look at commands and to complete them.
    #[inline]
    pub fn queue(&self) -> &ControllerQueue {
        &self.queue
    }

    /// The queue, to change.
    #[inline]
    pub fn queue_mut(&mut self) -> &mut ControllerQueue {
        &mut self.queue
    }

    /// Answers the Connect that led to this connection; `result` is DW0 (the CNTLID). Its response goes out before all others.
    pub fn accept_connect(&mut self, cid: Cid, result: u32) {
        self.connect_response = Some(self.queue.connect_response(cid, result));
    }

    /// A message of `bytes` arrived, which begins with `header`. After an error the connection is over.
    #[inline]
    pub fn receive(&mut self, header: &[u8], bytes: u32) -> Result<Received, Violation> {
        let received = self.command(header, bytes);
        if received.is_err() {
            self.is_live = false;
            self.queue.stop();
        }
        received
    }

    #[inline]
    fn command(&mut self, header: &[u8], bytes: u32) -> Result<Received, Violation> {
        let sqe = command(header, bytes)?;
        let (slot, cid_is_new) = self.queue.admit(&sqe)?;
        let transfer = match cid_is_new {
            true => data_pointer::transfer(&sqe, bytes, &self.limits),
            false => Err(Violation::CidInUse(sqe.cid())),
        };
        match transfer {
            Ok(transfer) => {
                self.queue.begin(slot, transfer);
                if let Transfer::InCapsule(bytes) = transfer {
                    self.queue.payload_arrived(slot, bytes);
                    self.queue.payload_ends(slot, true);
                }
                Ok(Received::Command { slot })
            }
            Err(violation) => {
                let status = violation.status().unwrap_or(Status::INTERNAL_ERROR);
                self.queue.refuse(slot, status, 0);
                Ok(Received::Refused {
                    cid: sqe.cid(),
                    violation,
                })
            }
        }
    }

    /// A READ of `bytes` for the command in `slot` is done. `true`: all its data are there, and it can be executed.
    pub fn fetched(&mut self, slot: SlotId, bytes: u32) -> bool {
        if !self.is_live {
            return false;
        }
        self.queue.payload_arrived(slot, bytes);
        self.queue.payload_ends(slot, true) == Landed::Ready
    }

    /// The next thing to post.
    #[inline]
    pub fn poll_work(&mut self) -> Option<Work> {
        if let Some(cqe) = self.connect_response.take() {
            return Some(respond(None, &cqe, None));
        }
        Some(match self.queue.poll()? {
            Action::Fetch {
                slot,
                offset,
                bytes,
                ..
            } => {
                let RemoteMemory { address, key } =
                    RemoteMemory::of(&self.queue.command(slot).dptr);
                Work::Read {
                    slot,
                    offset,
                    bytes,
                    from: RemoteMemory {
                        // An address that makes no sense fails at the host, whose it is.
                        address: address.wrapping_add(offset.into()),
                        key,
                    },
                }
            }
            Action::Send { slot, bytes, .. } => Work::Write {
                slot,
                bytes,
                into: RemoteMemory::of(&self.queue.command(slot).dptr),
            },
            Action::Respond { slot, cqe } => {
                let moved = self.queue.transfer(slot) != Transfer::None;
                let sgl = &self.queue.command(slot).dptr;
                let asked = sgl.kind == SglDescriptor::KIND_KEYED_INVALIDATE;
                let invalidate = (moved && asked && self.can_invalidate).then(|| sgl.key());
                respond(Some(slot), &cqe, invalidate)
            }
        })
    }

    /// Whether [`ControllerConn::poll_work`] may have something to post.
    #[inline]
    pub fn wants_post(&self) -> bool {
        self.queue.has_actions() || self.connect_response.is_some()
    }

    /// No command is taken or answered any more. `released` is told each slot that ends now, so that its buffer can go; those being
    /// executed stay until the driver completes them.
    pub fn close(&mut self, released: impl FnMut(SlotId)) {
        self.is_live = false;
        self.connect_response = None;
        self.queue.close(released);
    }
}

fn respond(slot: Option<SlotId>, cqe: &Cqe, invalidate: Option<u32>) -> Work {
    let mut capsule = [0; RESPONSE_BYTES as usize];
    capsule.copy_from_slice(cqe.as_bytes());
    Work::Respond {
        slot,
        capsule,
        invalidate,
    }
}
