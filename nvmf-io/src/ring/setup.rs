//! Creating a ring: the best flags the kernel takes, and errors that name cause and remedy.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::{Builder, IoUring, Probe, opcode};
use rustix::io::Errno;

use super::enter::Enter;
use super::files::FileTable;
use super::rx::RxBuffers;
use super::slab::Slab;
use super::{FixedBuffers, Ring, RingConfig};
use crate::buf::BufPool;
use crate::probe;

/// Why a ring cannot be had, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The kernel was built without io_uring, or is older than 5.1.
    #[error("this kernel has no io_uring: use Linux 5.15 or newer, built with CONFIG_IO_URING")]
    Missing,
    /// The administrator has switched io_uring off.
    #[error(
        "io_uring is switched off by kernel.io_uring_disabled={setting}: set it to 0 \
         (sysctl -w kernel.io_uring_disabled=0){}",
        if *.setting == 1 { ", or run with CAP_SYS_ADMIN or in the group kernel.io_uring_group" } else { "" }
    )]
    Disabled {
        /// Value of the sysctl: 1 for unprivileged processes, 2 for all.
        setting: u32,
    },
    /// A filter forbids the system call, as the default profiles of container runtimes do.
    #[error(
        "io_uring_setup is forbidden, most likely by a seccomp filter: allow io_uring_setup, io_uring_enter and \
         io_uring_register in the container's profile (docker run --security-opt seccomp=PROFILE.json)"
    )]
    Filtered,
    /// Too little memory may be locked; kernels before 5.12 charge rings to this limit.
    #[error(
        "the ring does not fit into RLIMIT_MEMLOCK ({limit_bytes} bytes): raise it (ulimit -l unlimited, \
         LimitMEMLOCK=infinity in the systemd unit, --ulimit memlock=-1 for containers)"
    )]
    MemoryLock {
        /// The soft limit.
        limit_bytes: u64,
    },
    /// No file descriptor is left.
    #[error(
        "no file descriptor left for the ring: RLIMIT_NOFILE is {limit}: raise it (ulimit -n, LimitNOFILE= in the \
         systemd unit, --ulimit nofile= for containers)"
    )]
    FileDescriptors {
        /// The soft limit.
        limit: u64,
    },
    /// The kernel has io_uring but lacks a part that nothing replaces.
    #[error("this kernel's io_uring lacks {what}: use Linux 5.15 or newer")]
    TooOld {
        /// The part.
        what: &'static str,
    },
    /// The configuration makes no ring.
    #[error("ring configuration: {0}")]
    Config(&'static str),
    /// Anything else.
    #[error("cannot {doing}")]
    Other {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl RingError {
    /// Explains a failure to create a ring.
    pub fn from_setup(source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSYS) => Self::Missing,
            Some(Errno::PERM) => match probe::io_uring_disabled() {
                Some(setting) if setting > 0 => Self::Disabled { setting },
                _ => Self::Filtered,
            },
            Some(Errno::NOMEM) => Self::MemoryLock {
                limit_bytes: probe::memlock_limit_bytes(),
            },
            Some(Errno::MFILE | Errno::NFILE) => Self::FileDescriptors {
                limit: probe::nofile_limit(),
            },
            _ => Self::Other {
                doing: "create an io_uring",
                source,
            },
        }
    }
}

/// What a ring uses of what kernels may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Completions are processed only inside [`Ring::wait`] (Linux 6.1); else at any return from the kernel (5.19),
    /// or by interrupting the thread.
    pub deferred: bool,
    /// The kernel takes receive buffers from a shared ring, once for many receives (6.0).
    pub multishot_receive: bool,
    /// Files and sockets are registered (5.19).
    pub registered_files: bool,
    /// Pool memory can be registered (5.19).
    pub registered_buffers: bool,
}

impl Ring {
    /// Makes a ring for the calling thread.
    pub fn new(config: &RingConfig) -> Result<Self, RingError> {
        static NEXT_ID: AtomicU32 = AtomicU32::new(1);
        if config.entries == 0 || config.completion_entries < config.entries {
            return Err(RingError::Config(
                "entries must be at least 1 and at most completion_entries",
            ));
        }
        let (uring, deferred) = build(config)?;
        if !uring.params().is_feature_nodrop() || !uring.params().is_feature_ext_arg() {
            return Err(RingError::TooOld {
                what: "NODROP or EXT_ARG (5.11)",
            });
        }
        let modern = !config.baseline;
        let multishot = modern && config.rx_buffers > 0 && has_linux_6_0(&uring);
        let rx = RxBuffers::new(&uring, config.rx_buffers, config.rx_buffer_bytes, multishot)?;
        let files = if modern {
            u64::from(config.files).min(probe::nofile_limit()) as u32
        } else {
            0
        };
        let files = FileTable::new(&uring, files);
        let fixed = config.fixed_buffers.min(u16::MAX.into());
        let fixed =
            if modern && fixed > 0 && uring.submitter().register_buffers_sparse(fixed).is_ok() {
                fixed as u16
            } else {
                0
            };
        let features = Features {
            deferred,
            multishot_receive: rx.is_provided(),
            registered_files: files.registered() > 0,
            registered_buffers: fixed > 0,
        };
        tracing::debug!(?features, "ring created");
        Ok(Self {
            enter: Enter::new(uring.as_raw_fd(), modern),
            uring: ManuallyDrop::new(uring),
            ops: ManuallyDrop::new(Slab::with_capacity(config.completion_entries as usize)),
            files,
            rx: Rc::new(rx),
            backlog: VecDeque::new(),
            local: VecDeque::new(),
            starved: VecDeque::new(),
            fixed: FixedBuffers {
                next: 0,
                capacity: fixed,
            },
            until_submitted: Vec::new(),
            features,
            always_poll_messages: config.baseline,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Lets reads and writes on buffers of `pool` use registered memory, chunk by chunk as they are first used,
    /// as far as RLIMIT_MEMLOCK allows; false when the pool belongs to another ring or the kernel cannot. A ring
    /// works with buffers of other pools too.
    pub fn register_pool(&mut self, pool: &BufPool) -> bool {
        self.features.registered_buffers && pool.bind(self.id)
    }
}

/// Builds with the best set of flags the kernel knows.
fn build(config: &RingConfig) -> Result<(IoUring, bool), RingError> {
    type Flags = fn(&mut Builder) -> &mut Builder;
    let sets: [(Flags, bool); 3] = [
        (
            |b| {
                b.setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_submit_all()
            },
            true,
        ),
        (|b| b.setup_coop_taskrun().setup_submit_all(), false),
        (|b| b, false),
    ];
    let sets = if config.baseline {
        &sets[2..]
    } else {
        &sets[..]
    };
    let mut last = None;
    for &(flags, deferred) in sets {
        let mut builder = IoUring::builder();
        builder
            .setup_clamp()
            .setup_cqsize(config.completion_entries)
            .dontfork();
        match flags(&mut builder).build(config.entries) {
            Ok(uring) => return Ok((uring, deferred)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(RingError::from_setup(error)),
        }
    }
    Err(RingError::from_setup(
        last.unwrap_or_else(|| Errno::INVAL.into()),
    ))
}

/// Multishot receives cannot be probed for; they came with the same release as this operation.
fn has_linux_6_0(uring: &IoUring) -> bool {
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).is_ok() && probe.is_supported(opcode::SendZc::CODE)
}
