//! Queues of commands, apart from any transport.
//!
//! [`ControllerQueue`] and [`HostQueue`] know slots, command identifiers, SQHD and flow control, and which data a command still has
//! to move. How it moves is the transport's: [`tcp`](crate::tcp) turns "fetch this range", "send these data", "respond" into R2T,
//! H2CData, C2HData and capsules, RDMA into READ, WRITE and SEND. Nothing in here knows a PDU.
//!
//! Everything is allocated when a queue is made; after that each operation is a few table accesses.

mod cid_map;
pub mod controller;
pub mod host;
pub(crate) mod slot_ring;

pub use controller::ControllerQueue;
pub use host::HostQueue;

use crate::violation::Violation;
use crate::wire::{Psdt, Sqe};

/// The deepest queue that is supported, in entries.
pub const MAX_QUEUE_DEPTH: u16 = 1024;

/// Index of a command in its queue's tables, the same from the command's arrival (or submission) to its completion, then used again.
/// Over TCP a controller's slot is its TTAG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u16);

impl SlotId {
    /// As an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which data a command moves, in bytes (never 0), and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    #[default]
    None,
    /// From the host, inside the command capsule.
    InCapsule(u32),
    /// From the host, fetched by the controller.
    FromHost(u32),
    /// To the host.
    ToHost(u32),
}

impl Transfer {
    /// `bytes` between memory of the host and the controller, moved by the transport.
    #[inline]
    pub(crate) fn by_transport(
        from_host: bool,
        bytes: u32,
        limits: &QueueLimits,
    ) -> Result<Self, Violation> {
        if bytes > limits.max_transfer_bytes {
            return Err(Violation::TransferTooLong {
                bytes,
                limit: limits.max_transfer_bytes,
            });
        }
        Ok(if from_host {
            Self::FromHost(bytes)
        } else {
            Self::ToHost(bytes)
        })
    }

    /// Length in bytes.
    #[inline]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::None => 0,
            Self::InCapsule(n) | Self::FromHost(n) | Self::ToHost(n) => n,
        }
    }

    /// Bytes that the controller gets.
    #[inline]
    pub const fn bytes_from_host(self) -> u32 {
        match self {
            Self::InCapsule(n) | Self::FromHost(n) => n,
            Self::None | Self::ToHost(_) => 0,
        }
    }
}

/// Whether the data pointer is an SGL, as over fabrics each is. In fabrics commands the byte that says so is reserved.
#[inline]
pub(crate) fn has_sgl(sqe: &Sqe) -> bool {
    sqe.is_fabrics() || !matches!(sqe.psdt(), Psdt::Prp | Psdt::Reserved)
}

/// What a controller's queue is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Entries of the submission queue (SQSIZE + 1), 2 to [`MAX_QUEUE_DEPTH`]; clamped to that.
    pub depth: u16,
    /// Most in-capsule data of I/O commands, as announced with IOCCSZ. May be 0.
    pub in_capsule_bytes: u32,
    /// Most data of one command, as announced with MDTS.
    pub max_transfer_bytes: u32,
    /// Most data that one R2T asks for.
    pub r2t_window_bytes: u32,
    /// Whether the host minds SQHD: `false` when Connect disabled SQ flow control.
    pub flow_control: bool,
    /// Whether successful reads may end with SUCCESS in C2HData instead of a response capsule. Applies only without flow control.
    pub success_flag: bool,
    /// An admin queue: [`ADMIN_IN_CAPSULE_BYTES`](crate::tcp::ADMIN_IN_CAPSULE_BYTES) in a capsule, whatever the limit says.
    pub admin: bool,
}
