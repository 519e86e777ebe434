//! A namespace of a local NVMe device, by its character device: what it is and what it can do.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nvme_proto::wire::identify::flags::Oncs;
use nvme_proto::wire::identify::{Cns, IDENTIFY_DATA_BYTES, IdentifyController, IdentifyNamespace};
use nvme_proto::wire::{AdminOpcode, IoOpcode, Nsid, Status};
use nvmf_io::sys::nvme::{self, NvmeCommand};
use nvmf_io::{BigRing, BufPool, PoolConfig, Token, Wait};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::error::BackingError;
use super::storage::{access, of_device, open_error};
use super::work::PIECE_BYTES;

/// Memory pages that MDTS counts in. Controllers may count in larger ones, never in smaller.
const MIN_PAGE_BYTES: u32 = 4096;

/// An NVMe namespace of this machine.
#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    pub(super) fd: Arc<OwnedFd>,
    /// The block device of the same namespace, held so that nobody mounts it.
    _guard: Option<OwnedFd>,
    /// Its identifier at the device, which is not the one that hosts see.
    pub(super) nsid: Nsid,
    pub(super) block_shift: u8,
    /// The optional commands that it has.
    pub(super) commands: Oncs,
    /// The longest transfer in one command.
    pub(super) piece_bytes: u32,
}

impl Device {
    /// Opens `/dev/ngXnY` and asks what it is. Returns its size in bytes too.
    pub(super) fn open(path: &Path, read_only: bool) -> Result<(Self, u64), BackingError> {
        let fd = open(path, access(read_only) | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| of_device(open_error(path, read_only, errno)))?;
        let system = |action, errno| BackingError::System {
            what: what(path),
            action,
            errno,
        };
        let stat = fstat(&fd).map_err(|errno| system("asking what it is", errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            let remedy = "name a device /dev/ngXnY; block devices are served with --block";
            return Err(BackingError::WrongKind {
                path: path.into(),
                expected: "NVMe character device",
                remedy,
            });
        }
        let guard = guard(path, read_only)?;
        let nsid = nvme::namespace_id(fd.as_fd())
            .map_err(|error| system("asking for its NSID", errno_of(&error)))?;
        let mut device = Self {
            path: path.into(),
            fd: Arc::new(fd),
            _guard: guard,
            nsid: Nsid(nsid),
            block_shift: 0,
            commands: Oncs::empty(),
            piece_bytes: PIECE_BYTES,
        };
        let (namespace, size_bytes) = device.identify_namespace()?;
        let format = namespace.format();
        if format.ms.get() != 0 {
            return Err(device.unsupported("it is formatted with metadata, which is not served; format it without (nvme format)"));
        }
        device.block_shift = format.lbads;
        if !matches!(device.block_shift, 9 | 12) {
            return Err(device.unsupported("its blocks have neither 512 nor 4096 bytes; format it with one of them (nvme format)"));
        }
        let controller = device.identify(Cns::CONTROLLER, Nsid::NONE)?;
        let controller =
            IdentifyController::read_from_bytes(&controller[..]).expect("the size is right");
        device.commands = Oncs::from_bits_retain(controller.oncs.get());
        if let Some(limit) = controller.mdts_bytes(MIN_PAGE_BYTES) {
            device.piece_bytes = limit.min(PIECE_BYTES.into()) as u32;
        }
        device.try_command()?;
        Ok((device, size_bytes))
    }

    /// Its block size.
    pub(super) fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }

    /// Its size now.
    pub(super) fn measure(&self) -> Result<u64, BackingError> {
        Ok(self.identify_namespace()?.1)
    }

    /// Makes durable what was written. Blocks while the device does it.
    pub(super) fn flush(&self) -> Result<(), BackingError> {
        self.run(&self.command(IoOpcode::FLUSH.0), false, "flushing it")
    }

    /// A command to this namespace, its dwords from 10 on still 0.
    pub(super) fn command(&self, opcode: u8) -> NvmeCommand {
        NvmeCommand {
            opcode,
            nsid: self.nsid.0,
            ..NvmeCommand::default()
        }
    }

    fn identify(&self, cns: Cns, nsid: Nsid) -> Result<Vec<u8>, BackingError> {
        let mut data = vec![0; IDENTIFY_DATA_BYTES];
        let command = NvmeCommand {
            opcode: AdminOpcode::IDENTIFY.0,
            nsid: nsid.0,
            cdw10_15: [cns.0.into(), 0, 0, 0, 0, 0],
            ..NvmeCommand::default()
        };
        let action = "identifying it";
        let outcome = nvme::admin(self.fd.as_fd(), &command, &mut data).map_err(|error| {
            BackingError::System {
                what: what(&self.path),
                action,
                errno: errno_of(&error),
            }
        })?;
        match Status(outcome.status) {
            status if status.is_success() => Ok(data),
            status => Err(self.unsupported(&format!("{action} failed: {status}"))),
        }
    }

    fn identify_namespace(&self) -> Result<(IdentifyNamespace, u64), BackingError> {
        let data = self.identify(Cns::NAMESPACE, self.nsid)?;
        let namespace = IdentifyNamespace::read_from_bytes(&data[..]).expect("the size is right");
        let block_bytes = namespace.format().block_size_bytes();
        let size_bytes =
            block_bytes.and_then(|bytes| namespace.nsze.get().checked_mul(bytes.into()));
        match size_bytes {
            Some(size_bytes) if size_bytes > 0 => Ok((namespace, size_bytes)),
            _ => Err(self.unsupported("it says that it has no blocks")),
        }
    }

    /// Reads a block the way that I/O will go, so that a kernel without it, or missing rights, are found at start.
    fn try_command(&self) -> Result<(), BackingError> {
        self.run(
            &self.command(IoOpcode::READ.0),
            true,
            "reading its first block",
        )
    }

    fn run(
        &self,
        command: &NvmeCommand,
        moves_a_block: bool,
        action: &'static str,
    ) -> Result<(), BackingError> {
        let failed = |why: String| {
            self.unsupported(&format!(
                "{action} failed: {why}; its block device can be served with --block"
            ))
        };
        let mut ring = BigRing::new(2).map_err(|error| failed(error.to_string()))?;
        let pool = BufPool::new(&PoolConfig::default());
        let buf = pool.alloc(self.block_bytes());
        let data = match &buf {
            Some(buf) if moves_a_block => Some((buf, 0..self.block_bytes())),
            _ => None,
        };
        ring.nvme(&self.fd, command, data, Token(0));
        let done = loop {
            ring.wait(Wait::Block)
                .map_err(|error| failed(error.to_string()))?;
            if let Some(done) = ring.next() {
                break done;
            }
        };
        match done.result {
            Ok(0) => Ok(()),
            Ok(status) => Err(failed(Status(status as u16).to_string())),
            Err(errno) => Err(failed(errno.to_string())),
        }
    }

    fn unsupported(&self, why: &str) -> BackingError {
        BackingError::Unsupported {
            what: what(&self.path),
            why: why.into(),
        }
    }
}

fn what(path: &Path) -> String {
    format!("NVMe device {}", path.display())
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Holds `/dev/nvmeXnY` exclusively while `/dev/ngXnY` is written to: refused while it is mounted, and nobody mounts it meanwhile.
fn guard(path: &Path, read_only: bool) -> Result<Option<OwnedFd>, BackingError> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("ng"));
    let Some(name) = name.filter(|_| !read_only) else {
        return Ok(None);
    };
    let block = path.with_file_name(format!("nvme{name}"));
    match open(
        &block,
        OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => Ok(Some(fd)),
        // Only ask for it to be let go; whatever else is wrong with the block device does not matter here.
        Err(Errno::BUSY) => Err(open_error(&block, read_only, Errno::BUSY)),
        Err(_) => Ok(None),
    }
}
