//! A request as it lies in the buffer that it was read into, and what is answered to the first of all.

use nvmf_io::{Buf, Errno};
use zerocopy::{FromBytes, IntoBytes};

use super::MAX_TRANSFER_BYTES;
use super::wire::{self, InHeader, InitFlags};

/// A page: payloads start on its boundary.
pub(super) const PAYLOAD_AT: u32 = 4096;

/// Where a reader's buffer is read into, so that the payload of a WRITE starts at [`PAYLOAD_AT`].
pub(super) const MESSAGE_AT: u32 = PAYLOAD_AT - wire::WRITE_HEADER_BYTES as u32;

/// Room for the largest request.
pub(super) const READER_BYTES: u32 = PAYLOAD_AT + MAX_TRANSFER_BYTES;

/// Asynchronous requests that the kernel may have open: loop devices have queues of 128, and their largest request
/// makes two of ours. Its default of 12 would be the bottleneck.
const MAX_BACKGROUND: u16 = 1024;

/// A request as it lies in a reader's buffer.
pub(super) struct Message {
    pub header: InHeader,
    pub buf: Buf,
}

impl Message {
    /// The structure behind the header.
    pub fn body<T: FromBytes + IntoBytes>(&self) -> Result<T, Errno> {
        if (self.header.len as usize) < size_of::<InHeader>() + size_of::<T>() {
            return Err(Errno::INVAL);
        }
        let mut body = T::new_zeroed();
        self.buf.copy_out(
            MESSAGE_AT + size_of::<InHeader>() as u32,
            body.as_mut_bytes(),
        );
        Ok(body)
    }

    /// Whether what follows the header is `name` and a zero byte.
    pub fn names(&self, name: &str) -> bool {
        let start = MESSAGE_AT + size_of::<InHeader>() as u32;
        let len = (self.header.len as usize).saturating_sub(size_of::<InHeader>());
        let Some(bytes) = self.buf.bytes() else {
            return false;
        };
        let said = &bytes[start as usize..start as usize + len];
        said.split_last()
            .is_some_and(|(&end, said)| end == 0 && said == name.as_bytes())
    }
}

/// Our answer to the kernel's offer.
pub(super) fn negotiate(offer: &wire::InitIn) -> Result<wire::InitOut, Errno> {
    if offer.major != wire::KERNEL_VERSION || offer.minor < wire::MIN_MINOR_VERSION {
        tracing::error!(
            "the kernel speaks FUSE {}.{}; 7.31 (Linux 5.2) is needed",
            offer.major,
            offer.minor
        );
        return Err(Errno::PROTO);
    }
    let offered =
        InitFlags::from_bits_retain(u64::from(offer.flags2) << 32 | u64::from(offer.flags));
    let flags = offered & InitFlags::all();
    Ok(wire::InitOut {
        major: wire::KERNEL_VERSION,
        minor: wire::MINOR_VERSION.min(offer.minor),
        max_readahead: 0,
        flags: flags.bits() as u32,
        flags2: (flags.bits() >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_TRANSFER_BYTES,
        max_pages: (MAX_TRANSFER_BYTES / 4096) as u16,
        time_gran: 1,
        ..Default::default()
    })
}
