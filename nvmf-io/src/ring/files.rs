//! Files and sockets of a ring, registered with the kernel where it can.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, types};
use rustix::io::Errno;

/// A file (or device) that a ring works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub(super) Id);

/// A stream socket that a ring works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SockId(pub(super) Id);

/// A slot, and which of its occupants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    index: u32,
    generation: u32,
}

/// How an entry names its file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Fixed(types::Fixed),
    Fd(types::Fd),
}

struct Slot {
    fd: Option<Arc<OwnedFd>>,
    generation: u32,
    fixed: bool,
}

pub(super) struct FileTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots below this index exist in the kernel's table.
    registered: u32,
}

impl FileTable {
    /// A table with up to `capacity` registered slots.
    pub(super) fn new(uring: &IoUring, capacity: u32) -> Self {
        let registered =
            if capacity > 0 && uring.submitter().register_files_sparse(capacity).is_ok() {
                capacity
            } else {
                0
            };
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            registered,
        }
    }

    pub(super) fn registered(&self) -> u32 {
        self.registered
    }

    pub(super) fn add(&mut self, uring: &IoUring, fd: Arc<OwnedFd>) -> Id {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                fd: None,
                generation: 0,
                fixed: false,
            });
            (self.slots.len() - 1) as u32
        });
        let raw = fd.as_raw_fd();
        let fixed = index < self.registered
            && uring
                .submitter()
                .register_files_update(index, &[raw])
                .is_ok();
        let slot = &mut self.slots[index as usize];
        slot.fd = Some(fd);
        slot.fixed = fixed;
        Id {
            index,
            generation: slot.generation,
        }
    }

    /// Forgets a file; operations in flight keep it open in the kernel. Without `reuse` its number is never used
    /// again, because entries not yet submitted name it.
    pub(super) fn remove(&mut self, uring: &IoUring, id: Id, reuse: bool) -> Option<Arc<OwnedFd>> {
        self.target(id).ok()?;
        let slot = &mut self.slots[id.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        if !reuse {
            tracing::warn!("a file was removed while the ring was congested; its slot stays taken");
            return slot.fd.clone();
        }
        if slot.fixed {
            // Fails only for indices outside the table; this one was registered.
            let _ = uring.submitter().register_files_update(id.index, &[-1]);
        }
        self.free.push(id.index);
        slot.fd.take()
    }

    pub(super) fn target(&self, id: Id) -> Result<Target, Errno> {
        match self.slots.get(id.index as usize) {
            Some(Slot {
                fd: Some(fd),
                generation,
                fixed,
            }) if *generation == id.generation => Ok(Self::name(id.index, *fixed, fd.as_raw_fd())),
            _ => Err(Errno::BADF),
        }
    }

    fn name(index: u32, fixed: bool, raw: RawFd) -> Target {
        if fixed {
            Target::Fixed(types::Fixed(index))
        } else {
            Target::Fd(types::Fd(raw))
        }
    }

    pub(super) fn fd(&self, id: Id) -> io::Result<BorrowedFd<'_>> {
        self.target(id)?;
        match &self.slots[id.index as usize].fd {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(Errno::BADF.into()),
        }
    }
}
