//! The NBD protocol's numbers and structures, as far as a server of one export without structured replies needs them.
//!
//! Everything is big-endian. Names are those of the protocol's description.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a server begins with: `NBDMAGIC`.
pub(super) const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, which begins each option and follows [`INIT_MAGIC`].
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Longest string that the protocol has.
pub(super) const MAX_STRING_BYTES: u32 = 4096;
/// Zeroes at the end of the answer to [`option::EXPORT_NAME`], unless the client can do without.
pub(super) const EXPORT_NAME_PADDING_BYTES: usize = 124;

bitflags::bitflags! {
    /// Flags of server and client at the beginning; both have the same two.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct HandshakeFlags: u32 {
        const FIXED_NEWSTYLE = 1 << 0;
        const NO_ZEROES = 1 << 1;
    }

    /// Flags of a request.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct CommandFlags: u16 {
        const FUA = 1 << 0;
        const NO_HOLE = 1 << 1;
    }
}

/// Options of a client: an open set, others are answered with [`reply::ERR_UNSUP`].
pub(super) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
}

/// Kinds of answers to options.
pub(super) mod reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub const ERR_INVALID: u32 = 1 << 31 | 3;
    pub const ERR_UNKNOWN: u32 = 1 << 31 | 6;
    pub const ERR_TOO_BIG: u32 = 1 << 31 | 9;
}

/// Pieces of information about an export.
pub(super) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Types of requests: an open set, others are answered with [`NbdError::INVAL`](super::wire::NbdError::INVAL).
pub(super) mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
}

/// The error of a reply; 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NbdError(pub u32);

impl NbdError {
    pub const PERM: NbdError = NbdError(1);
    pub const IO: NbdError = NbdError(5);
    pub const NOMEM: NbdError = NbdError(12);
    pub const INVAL: NbdError = NbdError(22);
    pub const NOSPC: NbdError = NbdError(28);
    pub const NOTSUP: NbdError = NbdError(95);
    pub const SHUTDOWN: NbdError = NbdError(108);
}

/// What the server says first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Greeting {
    pub magic: U64,
    pub option_magic: U64,
    pub flags: U16,
}

/// What begins each option of a client; `len` bytes of data follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct OptionHeader {
    pub magic: U64,
    pub option: U32,
    pub len: U32,
}

/// What begins each answer to an option; `len` bytes of data follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct OptionReplyHeader {
    pub magic: U64,
    pub option: U32,
    pub kind: U32,
    pub len: U32,
}

/// [`info::EXPORT`]; the answer to [`option::EXPORT_NAME`] is its last two fields.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct InfoExport {
    pub kind: U16,
    pub size_bytes: U64,
    pub flags: U16,
}

/// [`info::BLOCK_SIZE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct InfoBlockSize {
    pub kind: U16,
    pub minimum_bytes: U32,
    pub preferred_bytes: U32,
    pub maximum_bytes: U32,
}

/// A request; the payload of a write follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RequestHeader {
    pub magic: U32,
    pub flags: U16,
    pub command: U16,
    pub cookie: U64,
    pub offset_bytes: U64,
    pub len_bytes: U32,
}

/// A reply; the payload of a read that succeeded follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct SimpleReply {
    pub magic: U32,
    pub error: U32,
    pub cookie: U64,
}

const _: () = assert!(size_of::<Greeting>() == 18);
const _: () = assert!(size_of::<OptionHeader>() == 16);
const _: () = assert!(size_of::<OptionReplyHeader>() == 20);
const _: () = assert!(size_of::<InfoExport>() == 12);
const _: () = assert!(size_of::<InfoBlockSize>() == 14);
const _: () = assert!(size_of::<RequestHeader>() == 28);
const _: () = assert!(size_of::<SimpleReply>() == 16);
