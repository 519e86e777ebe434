//! What goes over `/dev/fuse`: the structures of the kernel's FUSE protocol, version 7.31 and newer, that one file in
//! one directory needs.
//!
//! All fields are in native byte order: both ends are on this machine. Names are the kernel header's.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version that we speak.
pub(super) const KERNEL_VERSION: u32 = 7;
/// Minor version that we speak; the lower of ours and the kernel's is in force.
pub(super) const MINOR_VERSION: u32 = 38;
/// The oldest minor version that has everything we rely on: 64-byte INIT replies, MAX_PAGES, and a kernel with a
/// detachable mount (Linux 5.2).
pub(super) const MIN_MINOR_VERSION: u32 = 31;

/// Node of the root directory.
pub(super) const ROOT_NODE: u64 = 1;

/// FUSE opcodes, an open set: the kernel sends others too and learns that they are not implemented.
pub(super) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
}

/// Notification codes; they travel in the error field of a reply with unique 0.
pub(super) const NOTIFY_RESEND: i32 = 7;

bitflags::bitflags! {
    /// What the kernel offers and we accept in INIT; upper half in `flags2`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct InitFlags: u64 {
        const BIG_WRITES = 1 << 5;
        const ASYNC_DIO = 1 << 15;
        const ABORT_ERROR = 1 << 21;
        const MAX_PAGES = 1 << 22;
        const INIT_EXT = 1 << 30;
        const HAS_RESEND = 1 << 39;
    }

    /// What a SETATTR sets.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct SetattrValid: u32 {
        const SIZE = 1 << 3;
    }

    /// Flags of an open file.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct OpenFlags: u32 {
        const DIRECT_IO = 1 << 0;
        const NOFLUSH = 1 << 5;
        const PARALLEL_DIRECT_WRITES = 1 << 6;
    }

    /// Modes of fallocate(2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct FallocateMode: u32 {
        const KEEP_SIZE = 0x01;
        const PUNCH_HOLE = 0x02;
        const ZERO_RANGE = 0x10;
    }
}

macro_rules! wire_struct {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
        pub(super) struct $name { $(pub $field: $type),+ }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire_struct!(
    /// Head of each request.
    InHeader, 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
);
wire_struct!(
    /// Head of each reply; `error` is 0 or a negative errno.
    OutHeader, 16 { len: u32, error: i32, unique: u64 }
);
wire_struct!(InitIn, 64 {
    major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
});
wire_struct!(InitOut, 64 {
    major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
    max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, unused: [u32; 7],
});
wire_struct!(Attr, 88 {
    ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
    ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
});
wire_struct!(EntryOut, 128 {
    nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
    attr: Attr,
});
wire_struct!(AttrOut, 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr });
wire_struct!(
    /// Beginning of the body of SETATTR: as far as the size, the only attribute that is ever set.
    SetattrIn, 24 { valid: u32, padding: u32, fh: u64, size: u64 }
);
wire_struct!(OpenOut, 16 { fh: u64, open_flags: u32, backing_id: i32 });
wire_struct!(
    /// Body of READ and of WRITE, which have the same layout.
    TransferIn, 40 {
        fh: u64, offset: u64, size: u32, flags: u32, lock_owner: u64, open_flags: u32, padding: u32,
    }
);
wire_struct!(WriteOut, 8 { size: u32, padding: u32 });
wire_struct!(FallocateIn, 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 });
wire_struct!(StatfsOut, 80 {
    blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
    padding: u32, spare: [u32; 6],
});

/// Bytes before the payload of a WRITE. A read of `/dev/fuse` into a first piece of this length and a second one that
/// is page aligned puts the payload where direct I/O and the network want it.
pub(super) const WRITE_HEADER_BYTES: usize = size_of::<InHeader>() + size_of::<TransferIn>();
