//! The RDMA transport: connection manager private data, capsules, and one state machine per queue connection on either side.
//!
//! - [`cm`]: what connecting, accepting and rejecting carry;
//! - [`controller_handshake`]: Connect on the controller's side;
//! - [`controller::ControllerConn`] and [`host::HostConn`]: a queue over a connection. Messages come in through `receive`; what to post is
//!   asked for with `poll_work`. Data never pass through here: they move between the memory that descriptors name and the
//!   buffers that the caller knows by [`SlotId`](crate::queue::SlotId).
//!
//! RDMA has no termination request: whoever breaks a rule that fails no single command is disconnected.
//!
//! Nothing allocates after construction.

pub mod cm;
pub mod controller;
pub mod controller_handshake;
mod data_pointer;
pub mod host;

use crate::wire::SglDescriptor;

pub use cm::{CmAccept, CmFault, CmReject, CmRequest, CmStatus};
pub use controller::ControllerConn;
pub use controller_handshake::{ConnectCommand, ConnectSource};
pub use host::HostConn;

/// A command capsule without data: a submission queue entry.
pub const COMMAND_BYTES: u32 = 64;

/// A response capsule: a completion queue entry.
pub const RESPONSE_BYTES: u32 = 16;

/// Memory of the peer, as a keyed descriptor names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteMemory {
    /// Its address there.
    pub address: u64,
    /// The key for it.
    pub key: u32,
}

impl RemoteMemory {
    /// What a keyed descriptor names.
    fn of(sgl: &SglDescriptor) -> Self {
        Self {
            address: sgl.address.get(),
            key: sgl.key(),
        }
    }
}
