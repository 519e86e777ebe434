//! The kernel's nbd driver, by netlink: its devices outlive the process that made them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use bitflags::bitflags;

use super::genl::{self, Attributes, Family};

const GENL_VERSION: u8 = 1;
const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

bitflags! {
    /// What the server can do (NBD_FLAG_*).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ServerFlags: u64 {
        /// The other flags mean something.
        const HAS_FLAGS = 1 << 0;
        /// Writes are refused.
        const READ_ONLY = 1 << 1;
        /// Flush is understood.
        const SEND_FLUSH = 1 << 2;
        /// Writes with FUA are understood.
        const SEND_FUA = 1 << 3;
        /// Not a solid-state device.
        const ROTATIONAL = 1 << 4;
        /// Trim is understood.
        const SEND_TRIM = 1 << 5;
        /// Write-zeroes is understood (used by Linux 6.11 and newer).
        const SEND_WRITE_ZEROES = 1 << 6;
        /// A flush on one connection covers the writes of all.
        const CAN_MULTI_CONN = 1 << 8;
    }
}

/// A device to be attached.
///
/// No limit is set for the time that a request may take: with one, or with several connections, which have one of their
/// own, the driver sends a request that takes longer once more, while the first may still be on its way.
#[derive(Clone, Debug)]
pub struct NbdConfig {
    /// Size of the device.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_bytes: u64,
    /// Flags of the server.
    pub flags: ServerFlags,
    /// How long I/O is held when the connection is dead, for [`NbdNetlink::reconnect`] to bring a new one.
    pub dead_connection_timeout: Duration,
    /// Says whose device it is; must be the same in what is asked for later (Linux 5.14).
    pub backend_identifier: String,
}

/// The netlink interface of the driver.
#[derive(Debug)]
pub struct NbdNetlink {
    family: Family,
}

impl NbdNetlink {
    /// Opens the interface; [`io::ErrorKind::NotFound`] when the kernel has no such driver. Needs CAP_SYS_ADMIN for what
    /// follows.
    pub fn open() -> io::Result<Self> {
        let family = Family::open("nbd", GENL_VERSION)?;
        Ok(Self { family })
    }

    /// Attaches a connection in the transmission phase; returns N of `/dev/nbdN`, which the kernel picks or makes.
    pub fn connect(&mut self, config: &NbdConfig, socket: BorrowedFd<'_>) -> io::Result<u32> {
        let mut request = Attributes::default();
        identify(&mut request, &config.backend_identifier);
        request
            .u64(ATTR_SIZE_BYTES, config.size_bytes)
            .u64(ATTR_BLOCK_SIZE_BYTES, config.block_bytes)
            .u64(ATTR_SERVER_FLAGS, config.flags.bits())
            .u64(
                ATTR_DEAD_CONN_TIMEOUT,
                config.dead_connection_timeout.as_secs(),
            )
            .nested(ATTR_SOCKETS, &sockets(socket));
        let answer = self.family.call(CMD_CONNECT, &request)?;
        genl::attributes(&answer)
            .find(|&(kind, _)| kind == ATTR_INDEX)
            .and_then(|(_, value)| value.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "nbd: the answer has no index")
            })
    }

    /// Gives an attached device a new connection in place of its dead one; I/O held is sent again. Does nothing when the
    /// driver has not noticed the death yet: then the other end of `socket` is hung up once `socket` is closed.
    pub fn reconnect(
        &mut self,
        index: u32,
        backend_identifier: &str,
        socket: BorrowedFd<'_>,
    ) -> io::Result<()> {
        // No size: to set one, the driver waits for the I/O in flight, which waits for the connection.
        let mut request = Attributes::default();
        request.u32(ATTR_INDEX, index);
        identify(&mut request, backend_identifier);
        request.nested(ATTR_SOCKETS, &sockets(socket));
        self.family.call(CMD_RECONFIGURE, &request).map(drop)
    }

    /// Changes the size of an attached device, once all I/O in flight is answered.
    pub fn resize(
        &mut self,
        index: u32,
        backend_identifier: &str,
        size_bytes: u64,
    ) -> io::Result<()> {
        let mut request = Attributes::default();
        request
            .u32(ATTR_INDEX, index)
            .u64(ATTR_SIZE_BYTES, size_bytes);
        identify(&mut request, backend_identifier);
        self.family.call(CMD_RECONFIGURE, &request).map(drop)
    }

    /// Detaches `/dev/nbdN`; I/O in flight fails.
    pub fn disconnect(&mut self, index: u32) -> io::Result<()> {
        let mut request = Attributes::default();
        request.u32(ATTR_INDEX, index);
        self.family.call(CMD_DISCONNECT, &request).map(drop)
    }
}

fn identify(request: &mut Attributes, backend_identifier: &str) {
    let mut text = backend_identifier.as_bytes().to_vec();
    text.push(0);
    request.bytes(ATTR_BACKEND_IDENTIFIER, &text);
}

fn sockets(socket: BorrowedFd<'_>) -> Attributes {
    let (mut list, mut item) = (Attributes::default(), Attributes::default());
    item.u32(SOCK_FD, socket.as_raw_fd().cast_unsigned());
    list.nested(SOCK_ITEM, &item);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nbd_says_so() {
        match NbdNetlink::open() {
            Ok(_) => assert!(std::path::Path::new("/sys/module/nbd").exists()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        }
    }
}
