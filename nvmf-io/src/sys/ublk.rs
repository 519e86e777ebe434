//! ublk: the control device, and the request descriptors that the driver shares with its server.
//!
//! Commands to `/dev/ublk-control` are io_uring commands in 128-byte entries; they may block, so [`UblkControl`] has a
//! small ring of its own and waits for each command. Layouts are those of the kernel's `ublk_cmd.h`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use crate::sys::mmap::{Access, Mapping};

/// Most requests that one queue can have open, in the driver.
pub const MAX_QUEUE_DEPTH: u16 = 4096;

bitflags::bitflags! {
    /// What a device and its server agree on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UblkFlags: u64 {
        /// The payload of a write is copied when the server asks for it, to where it then says.
        const NEED_GET_DATA = 1 << 2;
        /// The device stays when its server dies, and waits for another.
        const USER_RECOVERY = 1 << 3;
        /// Requests that the dead server had are issued again, instead of failing.
        const USER_RECOVERY_REISSUE = 1 << 4;
        /// Commands are encoded as ioctls are.
        const CMD_IOCTL_ENCODE = 1 << 6;
        /// The size can be changed while the device is live.
        const UPDATE_SIZE = 1 << 10;
    }

    /// Attributes of the disk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UblkAttrs: u32 {
        /// Writes are refused by the block layer.
        const READ_ONLY = 1 << 0;
        /// There is a cache that a flush empties.
        const VOLATILE_CACHE = 1 << 2;
        /// Writes can bypass the cache.
        const FUA = 1 << 3;
    }
}

/// State of a device, as the driver tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UblkState {
    /// Added and not started, or stopped.
    Dead,
    /// Serving.
    Live,
    /// Its server died; it waits for recovery.
    Quiesced,
    /// A state that this code does not know.
    Other(u16),
}

/// The kernel's `struct ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct RawInfo {
    queues: u16,
    queue_depth: u16,
    state: u16,
    pad0: u16,
    max_io_buf_bytes: u32,
    dev_id: u32,
    server_pid: i32,
    pad1: u32,
    flags: u64,
    server_flags: u64,
    owner_uid: u32,
    owner_gid: u32,
    reserved: [u64; 2],
}

const _: () = assert!(size_of::<RawInfo>() == 64);

/// What the driver knows about a device.
#[derive(Clone, Copy, Debug)]
pub struct UblkInfo {
    /// N of `/dev/ublkcN` and `/dev/ublkbN`.
    pub id: u32,
    /// Queues, at most one per CPU.
    pub queues: u16,
    /// Requests per queue.
    pub queue_depth: u16,
    /// Largest payload of one request.
    pub max_io_bytes: u32,
    /// What is agreed on.
    pub flags: UblkFlags,
    /// Where in its life it is.
    pub state: UblkState,
    /// Process that serves it, or -1.
    pub server_pid: i32,
}

/// Size and abilities of the disk.
#[derive(Clone, Copy, Debug)]
pub struct UblkParams {
    /// Attributes.
    pub attrs: UblkAttrs,
    /// Logical block size, a power of two.
    pub block_size_bytes: u32,
    /// Physical block size, a power of two, at least the logical one.
    pub physical_block_bytes: u32,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Largest read or write.
    pub max_io_bytes: u32,
    /// Largest discard; 0 means none.
    pub max_discard_bytes: u32,
    /// Largest write-zeroes; 0 means none.
    pub max_write_zeroes_bytes: u32,
}

/// The kernel's `struct ublk_params` up to and with the discard part.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawParams {
    len: u32,
    types: u32,
    // struct ublk_param_basic
    attrs: u32,
    logical_bs_shift: u8,
    physical_bs_shift: u8,
    io_opt_shift: u8,
    io_min_shift: u8,
    max_sectors: u32,
    chunk_sectors: u32,
    dev_sectors: u64,
    virt_boundary_mask: u64,
    // struct ublk_param_discard
    discard_alignment: u32,
    discard_granularity: u32,
    max_discard_sectors: u32,
    max_write_zeroes_sectors: u32,
    max_discard_segments: u16,
    reserved0: u16,
    // The kernel's structure goes on here; what `len` leaves out keeps its default.
    end: [u8; 0],
}

const PARAMS_BYTES: usize = std::mem::offset_of!(RawParams, end);
const _: () = assert!(PARAMS_BYTES == 60);

const PARAM_TYPE_BASIC: u32 = 1 << 0;
const PARAM_TYPE_DISCARD: u32 = 1 << 1;

/// `struct ublksrv_ctrl_cmd`, which fills the first 32 of the 80 command bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Command {
    dev_id: u32,
    queue_id: u16,
    len: u16,
    addr: u64,
    data: u64,
    dev_path_len: u16,
    pad: u16,
    reserved: u32,
}

const _: () = assert!(size_of::<Command>() == 32);

const fn ior(number: u32) -> u32 {
    2 << 30 | (size_of::<Command>() as u32) << 16 | (b'u' as u32) << 8 | number
}

const fn iowr(number: u32) -> u32 {
    3 << 30 | (size_of::<Command>() as u32) << 16 | (b'u' as u32) << 8 | number
}

const GET_DEV_INFO: u32 = ior(0x02);
const ADD_DEV: u32 = iowr(0x04);
const DEL_DEV: u32 = iowr(0x05);
const START_DEV: u32 = iowr(0x06);
const STOP_DEV: u32 = iowr(0x07);
const SET_PARAMS: u32 = iowr(0x08);
const START_USER_RECOVERY: u32 = iowr(0x10);
const END_USER_RECOVERY: u32 = iowr(0x11);
const GET_FEATURES: u32 = ior(0x13);
const DEL_DEV_ASYNC: u32 = ior(0x14);
const UPDATE_SIZE: u32 = iowr(0x15);

/// For a command that is not about a device yet.
const NO_DEVICE: u32 = u32::MAX;
/// For a command that is not about a queue.
const NO_QUEUE: u16 = u16::MAX;
/// Buffers of control commands: the largest structure is below this.
const BUFFER_BYTES: usize = 128;

/// The ublk control device. Every command blocks until the driver has carried it out.
pub struct UblkControl {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    file: File,
    buffer: Box<[u64; BUFFER_BYTES / 8]>,
}

impl UblkControl {
    /// Opens `/dev/ublk-control`.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/ublk-control")?;
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder().build(2)?;
        Ok(UblkControl {
            ring,
            file,
            buffer: Box::new([0; BUFFER_BYTES / 8]),
        })
    }

    /// What the driver can do.
    pub fn features(&mut self) -> io::Result<UblkFlags> {
        self.command(GET_FEATURES, NO_DEVICE, 8, 0)?;
        Ok(UblkFlags::from_bits_retain(self.buffer[0]))
    }

    /// Adds a device with a number of the driver's choice. The driver may lower the number of queues.
    pub fn add(
        &mut self,
        queues: u16,
        queue_depth: u16,
        max_io_bytes: u32,
        flags: UblkFlags,
    ) -> io::Result<UblkInfo> {
        self.put(RawInfo {
            queues,
            queue_depth,
            state: 0,
            pad0: 0,
            max_io_buf_bytes: max_io_bytes,
            dev_id: NO_DEVICE,
            server_pid: std::process::id() as i32,
            pad1: 0,
            flags: (flags | UblkFlags::CMD_IOCTL_ENCODE).bits(),
            server_flags: 0,
            owner_uid: 0,
            owner_gid: 0,
            reserved: [0; 2],
        });
        self.command(ADD_DEV, NO_DEVICE, size_of::<RawInfo>(), 0)?;
        Ok(self.info_from_buffer())
    }

    /// Tells the size and abilities of the disk, before it is started.
    pub fn set_params(&mut self, id: u32, params: &UblkParams) -> io::Result<()> {
        let sectors = |bytes: u32| bytes >> 9;
        let discards = params.max_discard_bytes > 0 || params.max_write_zeroes_bytes > 0;
        self.put(RawParams {
            len: PARAMS_BYTES as u32,
            types: PARAM_TYPE_BASIC | if discards { PARAM_TYPE_DISCARD } else { 0 },
            attrs: params.attrs.bits(),
            logical_bs_shift: params.block_size_bytes.ilog2() as u8,
            physical_bs_shift: params.physical_block_bytes.ilog2() as u8,
            io_opt_shift: params.physical_block_bytes.ilog2() as u8,
            io_min_shift: params.physical_block_bytes.ilog2() as u8,
            max_sectors: sectors(params.max_io_bytes),
            chunk_sectors: 0,
            dev_sectors: params.size_bytes >> 9,
            virt_boundary_mask: 0,
            discard_alignment: 0,
            discard_granularity: params.block_size_bytes,
            max_discard_sectors: sectors(params.max_discard_bytes),
            max_write_zeroes_sectors: sectors(params.max_write_zeroes_bytes),
            max_discard_segments: 1,
            reserved0: 0,
            end: [],
        });
        self.command(SET_PARAMS, id, PARAMS_BYTES, 0)
    }

    /// Makes the disk appear. Blocks until the server has fetched every tag of every queue, and through the scan for
    /// partitions: the server must not be the calling thread.
    pub fn start(&mut self, id: u32) -> io::Result<()> {
        self.command(START_DEV, id, 0, std::process::id().into())
    }

    /// Makes the disk vanish. Blocks until its requests are done; then the fetches of the queues end with ENODEV.
    pub fn stop(&mut self, id: u32) -> io::Result<()> {
        self.command(STOP_DEV, id, 0, 0)
    }

    /// Deletes a stopped device; its number is free once every descriptor of `/dev/ublkcN` is closed.
    pub fn delete(&mut self, id: u32) -> io::Result<()> {
        match self.command(DEL_DEV_ASYNC, id, 0, 0) {
            // Before Linux 6.10 there is only the form that waits for the descriptors.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.command(DEL_DEV, id, 0, 0)
            }
            other => other,
        }
    }

    /// What the driver knows about a device.
    pub fn info(&mut self, id: u32) -> io::Result<UblkInfo> {
        self.command(GET_DEV_INFO, id, size_of::<RawInfo>(), 0)?;
        Ok(self.info_from_buffer())
    }

    /// Prepares a device for another server. `ResourceBusy` while the old one is not fully gone: try again.
    pub fn start_recovery(&mut self, id: u32) -> io::Result<()> {
        self.command(START_USER_RECOVERY, id, 0, 0)
    }

    /// Hands the device to this process. Blocks until every tag of every queue was fetched.
    pub fn end_recovery(&mut self, id: u32) -> io::Result<()> {
        self.command(END_USER_RECOVERY, id, 0, std::process::id().into())
    }

    /// Changes the size of a live disk. Needs [`UblkFlags::UPDATE_SIZE`] (Linux 6.16).
    pub fn update_size(&mut self, id: u32, size_bytes: u64) -> io::Result<()> {
        self.command(UPDATE_SIZE, id, 0, size_bytes >> 9)
    }

    fn put<T: Copy>(&mut self, value: T) {
        const { assert!(size_of::<T>() <= BUFFER_BYTES && align_of::<T>() <= 8) };
        self.buffer.fill(0);
        // SAFETY: the buffer is large enough and aligned for T, and nothing refers to it.
        unsafe { self.buffer.as_mut_ptr().cast::<T>().write(value) };
    }

    fn info_from_buffer(&self) -> UblkInfo {
        // SAFETY: the buffer is large enough and aligned, and every bit pattern is a RawInfo.
        let raw = unsafe { self.buffer.as_ptr().cast::<RawInfo>().read() };
        UblkInfo {
            id: raw.dev_id,
            queues: raw.queues,
            queue_depth: raw.queue_depth,
            max_io_bytes: raw.max_io_buf_bytes,
            flags: UblkFlags::from_bits_retain(raw.flags),
            state: match raw.state {
                0 => UblkState::Dead,
                1 => UblkState::Live,
                2 => UblkState::Quiesced,
                other => UblkState::Other(other),
            },
            server_pid: raw.server_pid,
        }
    }

    /// One command with the first `len` bytes of the buffer.
    fn command(&mut self, op: u32, dev_id: u32, len: usize, data: u64) -> io::Result<()> {
        assert!(len <= BUFFER_BYTES);
        let command = Command {
            dev_id,
            queue_id: NO_QUEUE,
            len: len as u16,
            addr: if len == 0 {
                0
            } else {
                self.buffer.as_mut_ptr() as u64
            },
            data,
            dev_path_len: 0,
            pad: 0,
            reserved: 0,
        };
        let mut bytes = [0; 80];
        // SAFETY: `Command` has 32 bytes, all of them initialised (no padding: the fields fill it), and u8 has no
        // alignment.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const command).cast::<u8>(),
                bytes.as_mut_ptr(),
                size_of::<Command>(),
            )
        };
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), op)
            .cmd(bytes)
            .build();
        // SAFETY: the file and the buffer live in `self`, and this function does not return before the command is
        // complete: nothing else touches them meanwhile.
        unsafe { self.ring.submission().push(&entry) }.expect("the ring is empty between commands");
        loop {
            if let Some(completion) = self.ring.completion().next() {
                let result = completion.result();
                return if result < 0 {
                    Err(io::Error::from_raw_os_error(-result))
                } else {
                    Ok(())
                };
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The command may be in flight and must not outlive the buffer, so there is no way back.
                Err(e) => panic!("cannot wait for a ublk control command: {e}"),
            }
        }
    }
}

impl Drop for UblkControl {
    fn drop(&mut self) {
        // Reached with a command in flight only when the wait failed for good (the panic above): the driver may still
        // write to the buffer, so it must stay.
        if std::thread::panicking() {
            std::mem::forget(std::mem::replace(
                &mut self.buffer,
                Box::new([0; BUFFER_BYTES / 8]),
            ));
        }
    }
}

/// Operations of requests; an open set.
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Flush the volatile cache.
    pub const FLUSH: u8 = 2;
    /// Discard.
    pub const DISCARD: u8 = 3;
    /// Write zeroes.
    pub const WRITE_ZEROES: u8 = 5;
}

bitflags::bitflags! {
    /// Flags of requests.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct UblkRequestFlags: u32 {
        /// Force unit access.
        const FUA = 1 << 13;
        /// Zeroes must stay allocated.
        const NOUNMAP = 1 << 15;
    }
}

/// One request as the driver describes it, the kernel's `struct ublksrv_io_desc` without the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UblkDescriptor {
    /// Operation, see [`op`].
    pub op: u8,
    /// Flags.
    pub flags: UblkRequestFlags,
    /// Length in units of 512 bytes.
    pub sectors: u32,
    /// Start in units of 512 bytes.
    pub start_sector: u64,
}

#[repr(C)]
struct RawDescriptor {
    op_flags: u32,
    sectors: u32,
    start_sector: u64,
    addr: u64,
}

const _: () = assert!(size_of::<RawDescriptor>() == 24);

/// The descriptors of one queue, written by the driver, read by us.
pub struct UblkDescriptors {
    mapping: Mapping,
    depth: u16,
}

impl UblkDescriptors {
    /// Maps the descriptors of a queue of `/dev/ublkcN`.
    pub fn map(device: BorrowedFd<'_>, queue: u16, depth: u16) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        let bytes_of = |depth: u16| {
            (usize::from(depth) * size_of::<RawDescriptor>()).next_multiple_of(page_bytes)
        };
        let offset = u64::from(queue) * bytes_of(MAX_QUEUE_DEPTH) as u64;
        let mapping = Mapping::shared(device, offset, bytes_of(depth), Access::Read)?;
        Ok(UblkDescriptors { mapping, depth })
    }

    /// The request that a completed fetch of `tag` announced.
    ///
    /// # Panics
    /// When `tag` is not below the depth of the queue.
    pub fn get(&self, tag: u16) -> UblkDescriptor {
        assert!(
            tag < self.depth,
            "tag {tag} in a queue of depth {}",
            self.depth
        );
        // SAFETY: the mapping holds `depth` descriptors and is page aligned. The driver may write at any time, hence
        // volatile reads of plain integers and no reference; it does not write this descriptor between the completion
        // of the fetch and our answer.
        unsafe {
            let raw = self
                .mapping
                .base()
                .cast::<RawDescriptor>()
                .add(tag.into())
                .as_ptr();
            let op_flags = (&raw const (*raw).op_flags).read_volatile();
            UblkDescriptor {
                op: op_flags as u8,
                flags: UblkRequestFlags::from_bits_retain(op_flags & !0xff),
                sectors: (&raw const (*raw).sectors).read_volatile(),
                start_sector: (&raw const (*raw).start_sector).read_volatile(),
            }
        }
    }
}
