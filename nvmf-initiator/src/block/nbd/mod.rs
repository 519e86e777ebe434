//! A namespace over the NBD protocol: to the clients of a unix socket, or to the kernel's nbd driver.
//!
//! Both are served by the same front end on one shard: a device has one queue, whatever the number of connections. The
//! driver gets one connection, already negotiated; see [`kernel`] for why no more. Clients of the socket negotiate, and
//! may have several connections each, since a flush reaches what was written through any of them.
//!
//! | file | what it is |
//! |---|---|
//! | [`wire`] | the protocol's numbers and structures |
//! | [`negotiation`] | what is agreed before the first request: bytes in, bytes out |
//! | [`request`] | which requests are carried out, which refused, and which end the connection |
//! | [`connection`] | one connection on the ring |
//! | [`open`], [`replies`] | its requests that are not answered yet, and its answers that have not left yet |
//! | [`front`] | the queue half: the connections of a device, and new ones |
//! | [`socket`] | the device half of the server on a unix socket |
//! | [`kernel`] | the device half of `/dev/nbdN` |
//!
//! What the protocol does not have: a client of the socket learns of a resize when it connects anew.

mod connection;
mod front;
mod kernel;
mod negotiation;
mod open;
mod replies;
mod request;
mod socket;
mod wire;

use std::sync::Arc;

use nvmf_io::sys::nbd::ServerFlags;

use super::BlockLimits;
use super::spec::Geometry;

pub(super) use kernel::NbdDevice;
pub(super) use socket::NbdSocketDevice;

/// Largest payload of one request, which clients are told. Those that do not ask, such as nbd-client for the kernel, go by
/// the block layer's default, which is no more than this.
const MAX_TRANSFER_BYTES: u32 = 4 << 20;

/// A payload has a buffer for each so many bytes, and what is left.
const PART_BYTES: u32 = 1 << 20;

/// What is served, as clients see it.
#[derive(Debug)]
struct Export {
    geometry: Arc<Geometry>,
    flags: ServerFlags,
}

impl Export {
    fn new(geometry: Arc<Geometry>, limits: BlockLimits) -> Arc<Self> {
        let mut flags = ServerFlags::HAS_FLAGS
            | ServerFlags::SEND_FLUSH
            | ServerFlags::SEND_FUA
            | ServerFlags::CAN_MULTI_CONN;
        // A client emulates what is not offered: it writes zeroes itself, and does without a discard.
        flags.set(ServerFlags::READ_ONLY, geometry.read_only);
        flags.set(ServerFlags::SEND_TRIM, limits.max_discard_bytes > 0);
        flags.set(
            ServerFlags::SEND_WRITE_ZEROES,
            limits.max_write_zeroes_bytes > 0,
        );
        Arc::new(Export { geometry, flags })
    }
}

#[cfg(test)]
fn test_spec() -> super::DeviceSpec {
    super::DeviceSpec {
        name: "disk".into(),
        size_bytes: 64 << 20,
        block_size_bytes: 512,
        read_only: false,
        limits: BlockLimits {
            max_transfer_bytes: 1 << 20,
            max_discard_bytes: 1 << 20,
            max_write_zeroes_bytes: 1 << 20,
        },
        queues: 1,
        queue_depth: 8,
        fuse_readers: 1,
        runtime_dir: Default::default(),
    }
}

#[cfg(test)]
fn test_export() -> Arc<Export> {
    let spec = test_spec();
    Export::new(Geometry::new(&spec), spec.limits)
}
