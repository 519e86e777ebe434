//! A namespace as a file on FUSE, and a loop device on top of it.
//!
//! The file system has a root directory with one file and is never attached to any mount namespace: only the loop device
//! and we ourselves have the file open, so nothing is left behind when both are gone. The protocol is spoken straight
//! over `/dev/fuse` on the shard's ring; each shard has a channel of its own.
//!
//! What loop makes of the block layer's requests: reads and writes as direct I/O; a flush as FSYNC; discard, and
//! write-zeroes that may unmap, as FALLOCATE that punches a hole, whose range must read as zeroes afterwards; other
//! write-zeroes as FALLOCATE that zeroes the range. It has no FUA: the block layer adds a flush instead.

mod channel;
mod demand;
mod device;
mod front;
mod message;
mod wire;

pub(super) use device::FuseDevice;

/// Reads that a queue may have waiting for requests, at most.
pub(super) const MAX_READERS: u16 = 16;

/// Largest payload of one request: what the kernel's 256 pages per request come to.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
