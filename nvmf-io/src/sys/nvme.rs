//! NVMe passthrough: identify through ioctls, I/O through [`BigRing::nvme`](crate::BigRing::nvme).

use std::io;
use std::os::fd::BorrowedFd;

use super::ioctl;

/// `_IO('N', 0x40)`.
const NVME_IOCTL_ID: u64 = 0x4e40;
/// `_IOWR('N', 0x47, struct nvme_passthru_cmd64)`.
const NVME_IOCTL_ADMIN64_CMD: u64 = 0xc050_4e47;
/// `_IOWR('N', 0x80, struct nvme_uring_cmd)`.
pub(crate) const NVME_URING_CMD_IO: u32 = 0xc048_4e80;

/// A command as the driver takes it. Command identifier and data pointer are the driver's business.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvmeCommand {
    /// Opcode.
    pub opcode: u8,
    /// Fused operation and data pointer kind; the driver wants 0.
    pub flags: u8,
    /// Namespace.
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Command dwords 10 to 15.
    pub cdw10_15: [u32; 6],
    /// Time after which the driver aborts the command; 0 for its default.
    pub timeout_ms: u32,
}

/// `struct nvme_uring_cmd`; followed by the result it is `struct nvme_passthru_cmd64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UringCommand {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10_15: [u32; 6],
    timeout_ms: u32,
    rsvd2: u32,
}

const _: () = assert!(size_of::<UringCommand>() == 72);

impl UringCommand {
    pub(crate) fn new(command: &NvmeCommand, addr: u64, data_len: u32) -> Self {
        Self {
            opcode: command.opcode,
            flags: command.flags,
            rsvd1: 0,
            nsid: command.nsid,
            cdw2: command.cdw2,
            cdw3: command.cdw3,
            metadata: 0,
            addr,
            metadata_len: 0,
            data_len,
            cdw10_15: command.cdw10_15,
            timeout_ms: command.timeout_ms,
            rsvd2: 0,
        }
    }

    /// The 80 bytes of command space in a large submission entry.
    pub(crate) fn to_bytes(self) -> [u8; 80] {
        let mut bytes = [0; 80];
        // SAFETY: the structure has 72 bytes without padding, and any bytes are a `[u8; 72]`.
        let own: [u8; size_of::<Self>()] = unsafe { std::mem::transmute(self) };
        bytes[..own.len()].copy_from_slice(&own);
        bytes
    }
}

/// `struct nvme_passthru_cmd64`.
#[repr(C)]
struct AdminCommand {
    command: UringCommand,
    result: u64,
}

const _: () = assert!(size_of::<AdminCommand>() == 80);

/// The NSID of the namespace that `device` (`/dev/ngXnY` or `/dev/nvmeXnY`) is.
pub fn namespace_id(device: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: takes no argument.
    let nsid = unsafe { ioctl::value(device, NVME_IOCTL_ID, 0) }?;
    Ok(nsid.cast_unsigned())
}

/// The outcome of an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminOutcome {
    /// Status field without the phase bit; 0 for success.
    pub status: u16,
    /// Dwords 0 and 1 of the completion.
    pub result: u64,
}

/// Runs an admin command and waits for it; `data` is read or written as the opcode says (bit 0 host to controller,
/// bit 1 controller to host). Needs CAP_SYS_ADMIN except for identify commands on Linux 6.2.
pub fn admin(
    device: BorrowedFd<'_>,
    command: &NvmeCommand,
    data: &mut [u8],
) -> io::Result<AdminOutcome> {
    let len = u32::try_from(data.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "4 GiB of data and more"))?;
    let mut admin = AdminCommand {
        command: UringCommand::new(command, data.as_mut_ptr().addr() as u64, len),
        result: 0,
    };
    // SAFETY: the request reads and writes an `nvme_passthru_cmd64`; the data it names is `data`, `data_len` bytes
    // long and mutably borrowed until the call returns. `as_mut_ptr().addr()` loses provenance only in the
    // abstract: the kernel is the one who uses the address.
    let status = unsafe { ioctl::with(device, NVME_IOCTL_ADMIN64_CMD, &mut admin) }?;
    Ok(AdminOutcome {
        status: status as u16,
        result: admin.result,
    })
}
