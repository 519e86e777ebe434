//! A namespace as a ublk device, `/dev/ublkbN`: one hardware queue for each shard, no file system between.
//!
//! Devices are made with NEED_GET_DATA, so that memory is taken for requests in flight only, in their size: a read's
//! when it is started, a write's when the driver says how long it is, which costs writes one more command. They are also
//! made with USER_RECOVERY and REISSUE: when the server dies, the driver holds what comes in and issues again what was
//! in flight, to whoever takes the device over. A write may so be carried out twice.

mod device;
mod front;

pub(super) use device::UblkDevice;

/// Largest payload of one request.
const MAX_TRANSFER_BYTES: u32 = 1 << 20;
