//! Bounds on what hosts may use, and the transport's options, with the range of each.

use std::ops::RangeInclusive;

/// Entries of an I/O queue: MQES is 0's based, a queue of one entry could hold no command under flow control.
pub const QUEUE_DEPTH: RangeInclusive<u64> = 2..=1024;
/// I/O queues of one controller.
pub const IO_QUEUES: RangeInclusive<u64> = 1..=128;
/// Bytes of data in an I/O command capsule; a multiple of 16, which is the unit of IOCCSZ.
pub const IN_CAPSULE_BYTES: RangeInclusive<u64> = 0..=16384;
/// Bytes that one command may transfer (MDTS): a power of two. 8 KiB at least, since every host builds its page tables for
/// more than one page; 2 MiB at most, the largest data buffer.
pub const MAX_TRANSFER_BYTES: RangeInclusive<u64> = 8192..=2 << 20;
/// Bytes that one R2T may ask for. 4 KiB is the least MAXH2CDATA that the transport allows.
pub const R2T_WINDOW_BYTES: RangeInclusive<u64> = 4096..=2 << 20;
/// Connections over all listeners.
pub const CONNECTIONS: RangeInclusive<u64> = 1..=65536;
/// Bytes of data buffers of one shard. The least holds one largest transfer in each direction beside small ones.
pub const BUFFER_BYTES: RangeInclusive<u64> = 8 << 20..=1 << 40;
/// Milliseconds from accept to Connect. The shortest is for tests and the boldest; two minutes are more than any host waits.
pub const HANDSHAKE_MS: RangeInclusive<u64> = 100..=120_000;
/// Namespaces of one subsystem: the NSID is an index into a table that every shard holds.
pub const NSID: RangeInclusive<u64> = 1..=1024;
/// Microseconds of spinning: beyond a second it would be a core burnt.
pub const BUSY_POLL_US: RangeInclusive<u64> = 0..=1_000_000;
/// Controller PDU data alignment in units of four bytes, 0's based.
pub const CPDA: RangeInclusive<u64> = 0..=31;
/// Milliseconds of a keep-alive timeout. KAS counts in 100 ms; an hour without a sign of life is no keep-alive.
pub const KEEP_ALIVE_MS: RangeInclusive<u64> = 100..=3_600_000;

/// What hosts may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries of an I/O queue.
    pub queue_depth: u16,
    /// Most I/O queues of a controller.
    pub io_queues: u16,
    /// Most data in a command capsule.
    pub in_capsule_bytes: u32,
    /// Most data of one command.
    pub max_transfer_bytes: u32,
    /// Most data that one R2T asks for, which is MAXH2CDATA as well.
    pub r2t_window_bytes: u32,
    /// Most connections at a time, over all listeners and kinds.
    pub connections: usize,
    /// Most memory in data buffers of one shard.
    pub buffer_bytes: u64,
    /// How long a connection has for ICReq and Connect before it is closed.
    pub handshake_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            queue_depth: 1024,
            io_queues: 128,
            in_capsule_bytes: 16384,
            max_transfer_bytes: 1 << 20,
            r2t_window_bytes: 1 << 20,
            connections: 4096,
            buffer_bytes: 256 << 20,
            // A host sends both PDUs without waiting for anything but ICResp; the rest is for slow networks and
            // emulated machines.
            handshake_ms: 20_000,
        }
    }
}

/// Options of the TCP transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Whether a host that asks for header digests gets them.
    pub header_digest: bool,
    /// Whether a host that asks for data digests gets them.
    pub data_digest: bool,
    /// Alignment that hosts must give the data they send: (CPDA + 1) * 4 bytes. Linux hosts refuse all but 0.
    pub cpda: u8,
    /// Whether the SUCCESS flag may stand for the response of a read, where SQ flow control is off.
    pub success_flag: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        TcpOptions {
            header_digest: true,
            data_digest: true,
            cpda: 0,
            success_flag: true,
        }
    }
}

/// Which keep-alive timeouts hosts get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepAliveBounds {
    /// Shorter timeouts are raised to this; 0 for no bound.
    pub min_ms: u32,
    /// Longer timeouts, and none at all except for discovery, are refused; `None` for no bound.
    pub max_ms: Option<u32>,
}
