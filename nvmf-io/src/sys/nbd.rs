//! The kernel's nbd driver: attaching by netlink, which survives the server, and by ioctl.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use bitflags::bitflags;

use super::genl::{self, Attributes, Family};
use super::ioctl;

const NBD_SET_SOCK: u64 = 0xab00;
const NBD_SET_BLKSIZE: u64 = 0xab01;
const NBD_DO_IT: u64 = 0xab03;
const NBD_CLEAR_SOCK: u64 = 0xab04;
const NBD_SET_SIZE_BLOCKS: u64 = 0xab07;
const NBD_DISCONNECT: u64 = 0xab08;
const NBD_SET_TIMEOUT: u64 = 0xab09;
const NBD_SET_FLAGS: u64 = 0xab0a;

const GENL_VERSION: u8 = 1;
const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;
const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
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

/// A device to be attached by netlink.
#[derive(Clone, Debug)]
pub struct NbdConfig {
    /// N of `/dev/nbdN`; the kernel picks or makes one if `None`.
    pub index: Option<u32>,
    /// Size of the device.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_bytes: u64,
    /// Flags of the server.
    pub flags: ServerFlags,
    /// A request that takes longer makes its connection count as dead; `None` waits for ever.
    pub timeout: Option<Duration>,
    /// How long I/O is held when all connections are dead, for [`NbdNetlink::reconfigure`] to bring new ones.
    pub dead_connection_timeout: Duration,
    /// Must be the same when it is reconfigured (Linux 5.14).
    pub backend_identifier: Option<String>,
    /// Removes the device when it is disconnected.
    pub destroy_on_disconnect: bool,
}

/// The netlink interface of the driver; its devices outlive the process.
#[derive(Debug)]
pub struct NbdNetlink {
    family: Family,
}

impl NbdNetlink {
    /// Opens the interface. Needs CAP_SYS_ADMIN for what follows.
    pub fn open() -> io::Result<Self> {
        match Family::open("nbd", GENL_VERSION) {
            Ok(family) => Ok(Self { family }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::new(
                io::ErrorKind::NotFound,
                "this kernel has no nbd driver: load the module (modprobe nbd)",
            )),
            Err(error) => Err(error),
        }
    }

    /// Attaches `sockets`, one connection each, in the transmission phase; returns N of `/dev/nbdN`.
    pub fn connect(&mut self, config: &NbdConfig, sockets: &[BorrowedFd<'_>]) -> io::Result<u32> {
        let answer = self
            .family
            .call(CMD_CONNECT, &attributes(config, sockets))?;
        genl::attributes(&answer)
            .find(|&(kind, _)| kind == ATTR_INDEX)
            .and_then(|(_, value)| value.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "nbd: the answer has no index")
            })
    }

    /// Gives the attached device `config.index` new connections in place of dead ones; I/O held is sent again.
    pub fn reconfigure(
        &mut self,
        config: &NbdConfig,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.family
            .call(CMD_RECONFIGURE, &attributes(config, sockets))
            .map(drop)
    }

    /// Detaches `/dev/nbdN`; I/O in flight fails.
    pub fn disconnect(&mut self, index: u32) -> io::Result<()> {
        let mut request = Attributes::default();
        request.u32(ATTR_INDEX, index);
        self.family.call(CMD_DISCONNECT, &request).map(drop)
    }
}

fn attributes(config: &NbdConfig, sockets: &[BorrowedFd<'_>]) -> Attributes {
    let mut request = Attributes::default();
    if let Some(index) = config.index {
        request.u32(ATTR_INDEX, index);
    }
    request
        .u64(ATTR_SIZE_BYTES, config.size_bytes)
        .u64(ATTR_BLOCK_SIZE_BYTES, config.block_bytes)
        .u64(ATTR_SERVER_FLAGS, config.flags.bits())
        .u64(ATTR_CLIENT_FLAGS, u64::from(config.destroy_on_disconnect))
        .u64(
            ATTR_DEAD_CONN_TIMEOUT,
            config.dead_connection_timeout.as_secs(),
        );
    if let Some(timeout) = config.timeout {
        request.u64(ATTR_TIMEOUT, timeout.as_secs());
    }
    if let Some(identifier) = &config.backend_identifier {
        let mut text = identifier.as_bytes().to_vec();
        text.push(0);
        request.bytes(ATTR_BACKEND_IDENTIFIER, &text);
    }
    let mut list = Attributes::default();
    for socket in sockets {
        let mut item = Attributes::default();
        item.u32(SOCK_FD, socket.as_raw_fd().cast_unsigned());
        list.nested(SOCK_ITEM, &item);
    }
    request.nested(ATTR_SOCKETS, &list);
    request
}

/// Sets size and block size of the device (NBD_SET_BLKSIZE, NBD_SET_SIZE_BLOCKS); also the way to resize.
pub fn set_size(device: BorrowedFd<'_>, block_bytes: u32, blocks: u64) -> io::Result<()> {
    // SAFETY: both requests take their argument by value.
    unsafe {
        ioctl::value(device, NBD_SET_BLKSIZE, block_bytes.into())?;
        ioctl::value(device, NBD_SET_SIZE_BLOCKS, blocks)?;
    }
    Ok(())
}

/// Tells the driver what the server can do.
pub fn set_flags(device: BorrowedFd<'_>, flags: ServerFlags) -> io::Result<()> {
    // SAFETY: takes its argument by value.
    unsafe { ioctl::value(device, NBD_SET_FLAGS, flags.bits()) }.map(drop)
}

/// How long a request may take; zero for ever.
pub fn set_timeout(device: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    // SAFETY: takes its argument by value.
    unsafe { ioctl::value(device, NBD_SET_TIMEOUT, timeout.as_secs()) }.map(drop)
}

/// Adds a connection, of which the driver takes a reference.
pub fn set_socket(device: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    let fd =
        libc::c_ulong::try_from(socket.as_raw_fd()).expect("open descriptors are not negative");
    // SAFETY: takes a descriptor by value, which is open.
    unsafe { ioctl::value(device, NBD_SET_SOCK, fd) }.map(drop)
}

/// Serves the device: blocks the thread until it is disconnected.
pub fn do_it(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { ioctl::value(device, NBD_DO_IT, 0) }.map(drop)
}

/// Ends [`do_it`]: asks the server to disconnect.
pub fn disconnect(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { ioctl::value(device, NBD_DISCONNECT, 0) }.map(drop)
}

/// Forgets the connections of a device that nobody serves any more.
pub fn clear_sockets(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { ioctl::value(device, NBD_CLEAR_SOCK, 0) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_nbd_says_what_to_do() {
        match NbdNetlink::open() {
            Ok(_) => assert!(std::path::Path::new("/sys/module/nbd").exists()),
            Err(error) => assert!(error.to_string().contains("modprobe nbd"), "{error}"),
        }
    }
}
