//! What is exchanged, and how the two processes wait.

use clap::{Args, ValueEnum};

/// Data of a message longer than this is sent from its own segment, apart from a header.
const DATA_MIN_BYTES: usize = 4096;

/// How both sides go about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// One request at a time; both sides sleep in the kernel.
    Block,
    /// One request at a time; both sides spin on their socket.
    Spin,
    /// `depth` requests in flight, all that arrived answered with one send; both sides spin.
    Pipe,
    /// `depth` requests in flight in all, spread over `connections`; both sides sleep when nothing is there.
    Many,
    /// One way only: chunks of the request size, as fast as they are taken; the receiver sleeps.
    Bulk,
    /// As bulk, with both sides spinning.
    Bulkspin,
}

impl Mode {
    /// Whether the sockets are non-blocking.
    pub fn spins(self) -> bool {
        matches!(self, Self::Spin | Self::Pipe | Self::Bulkspin)
    }
}

/// What is exchanged. Sizes of NVMe/TCP: a read of 4 KiB is 72 → 4120 bytes, a write in the capsule 4168 → 24.
#[derive(Args, Clone, Debug)]
pub struct Shape {
    /// How both sides go about it.
    #[arg(value_enum)]
    pub mode: Mode,
    /// Requests in flight (pipe, many).
    #[arg(long, default_value_t = 1)]
    pub depth: usize,
    /// Connections (many).
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Threads that ask, each with its part of connections and depth (many).
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Bytes of a request, or of a chunk in the bulk modes.
    #[arg(long, default_value_t = 72)]
    pub request: usize,
    /// Bytes of a response, or of a receive in the bulk modes.
    #[arg(long, default_value_t = 4120)]
    pub response: usize,
}

impl Shape {
    /// Length of a request's header, when its data comes from another segment.
    pub fn request_header(&self) -> usize {
        if self.request > DATA_MIN_BYTES { 72 } else { 0 }
    }

    /// Length of a response's header, when its data comes from another segment.
    pub fn response_header(&self) -> usize {
        if self.response > DATA_MIN_BYTES {
            24
        } else {
            0
        }
    }
}
