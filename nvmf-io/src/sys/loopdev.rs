//! Loop devices: a block device whose content is a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use super::ioctl;

const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_PARTSCAN: u32 = 8;
const LO_FLAGS_DIRECT_IO: u32 = 16;

const NAME_BYTES: usize = 64;

/// Somebody else can take the free number between the question and the attachment, and of all who ask at once only one gets
/// it. More losses in a row than devices could be attached at once mean that something else is wrong.
const ATTACH_ATTEMPTS: u32 = 1024;

/// The kernel's `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_BYTES],
    crypt_name: [u8; NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<Info>() == 232);

impl Info {
    const ZERO: Info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_BYTES],
        crypt_name: [0; NAME_BYTES],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// The kernel's `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Configuration>() == 304);

/// How a loop device is to be made.
#[derive(Clone, Debug)]
pub struct LoopConfig<'a> {
    /// Logical block size: 512, 1024, 2048 or 4096.
    pub block_size_bytes: u32,
    /// Refuse writes.
    pub read_only: bool,
    /// The device is found again by this name; cut at 63 bytes.
    pub name: &'a str,
}

/// An attached loop device.
///
/// It is not held open: the last close of a block device waits until its dirty pages are written, and a process that is
/// killed while it serves the backing file itself would wait for itself forever. So a device stays attached until
/// [`LoopDevice::detach`], whatever becomes of who attached it.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device, with direct I/O and a scan for partitions. Reads from `backing` happen
    /// before this returns: whoever serves it must not be the calling thread.
    pub fn attach(backing: impl AsFd, config: &LoopConfig<'_>) -> io::Result<Self> {
        let control_device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let mut info = Info {
            flags: LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO,
            ..Info::ZERO
        };
        if config.read_only {
            info.flags |= LO_FLAGS_READ_ONLY;
        }
        info.file_name = file_name(config.name);
        let mut configuration = Configuration {
            fd: backing.as_fd().as_raw_fd().cast_unsigned(),
            block_size: config.block_size_bytes,
            info,
            reserved: [0; 8],
        };
        for _ in 0..ATTACH_ATTEMPTS {
            // SAFETY: the ioctl takes no argument.
            let number = unsafe { ioctl::value(control_device.as_fd(), LOOP_CTL_GET_FREE, 0) }?;
            let number = number.cast_unsigned();
            let path = device_path(number);
            let file = OpenOptions::new()
                .read(true)
                .write(!config.read_only)
                .open(path)?;
            // SAFETY: the ioctl reads a `struct loop_config`, whose layout `Configuration` has.
            match unsafe { ioctl::with(file.as_fd(), LOOP_CONFIGURE, &mut configuration) } {
                Ok(_) => return Ok(LoopDevice { number }),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(e),
            }
        }
        let error = "every free loop device was taken by somebody else at once";
        Err(io::Error::new(io::ErrorKind::ResourceBusy, error))
    }

    /// The device of this number that another process attached under this name.
    pub fn find(number: u32, name: &str) -> io::Result<Self> {
        let device = LoopDevice { number };
        if status(&device.open()?)?.file_name != file_name(name) {
            let error = format!("{} is not {name}", device.path().display());
            return Err(io::Error::new(io::ErrorKind::NotFound, error));
        }
        Ok(device)
    }

    /// Reading is enough: all that is done is ioctls.
    fn open(&self) -> io::Result<File> {
        File::open(self.path())
    }

    /// Takes over the size that the backing file has now.
    pub fn update_capacity(&self) -> io::Result<()> {
        control(&self.open()?, LOOP_SET_CAPACITY)
    }

    /// Whether the device passes the page cache of the backing file by.
    pub fn is_direct_io(&self) -> io::Result<bool> {
        Ok(status(&self.open()?)?.flags & LO_FLAGS_DIRECT_IO != 0)
    }

    /// Detaches the device: at once when nobody has it open, else at the last close.
    pub fn detach(self) -> io::Result<()> {
        control(&self.open()?, LOOP_CLR_FD)
    }

    /// N of `/dev/loopN`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> PathBuf {
        device_path(self.number)
    }
}

fn file_name(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let name = &name.as_bytes()[..name.len().min(NAME_BYTES - 1)];
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

/// One of the ioctls without an argument: LOOP_CLR_FD, LOOP_SET_CAPACITY.
fn control(file: &File, request: u64) -> io::Result<()> {
    // SAFETY: on a loop device these take no argument.
    unsafe { ioctl::value(file.as_fd(), request, 0) }.map(drop)
}

fn device_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn status(file: &File) -> io::Result<Info> {
    let mut info = Info::ZERO;
    // SAFETY: the ioctl writes a `struct loop_info64`, whose layout `Info` has; any bytes are valid in it.
    unsafe { ioctl::with(file.as_fd(), LOOP_GET_STATUS64, &mut info) }?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    #[test]
    fn attach_resize_and_vanish() {
        if OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .is_err()
        {
            return eprintln!("skipped: no loop devices here");
        }
        let mut backing = tempfile::tempfile().unwrap();
        backing.write_all(&[7; 1 << 20]).unwrap();
        let config = LoopConfig {
            block_size_bytes: 4096,
            read_only: false,
            name: "nvmf-io test",
        };
        let device = LoopDevice::attach(&backing, &config).unwrap();
        let path = device.path();
        let size = |path: &PathBuf| -> u64 {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            std::fs::read_to_string(format!("/sys/block/{name}/size"))
                .unwrap()
                .trim()
                .parse()
                .unwrap()
        };
        assert_eq!(size(&path), 2048);
        let mut block = [0; 4096];
        File::open(&path)
            .unwrap()
            .read_exact_at(&mut block, 4096)
            .unwrap();
        assert!(block.iter().all(|&b| b == 7));

        backing.set_len(2 << 20).unwrap();
        device.update_capacity().unwrap();
        assert_eq!(size(&path), 4096);

        let number: u32 = path
            .to_str()
            .unwrap()
            .trim_start_matches("/dev/loop")
            .parse()
            .unwrap();
        assert!(LoopDevice::find(number, "another name").is_err());
        let device = LoopDevice::find(number, "nvmf-io test").unwrap();
        device.detach().unwrap();
        // Detached at once, unless udev looks at it at this very moment.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while size(&path) != 0 {
            assert!(
                std::time::Instant::now() < deadline,
                "{} stays attached",
                path.display()
            );
            std::thread::yield_now();
        }
    }
}
