//! What crosses the wire, byte for byte.
//!
//! Every structure is `#[repr(C)]`, unaligned, made of little-endian fields, and asserts its size at compile time, so that it can be
//! viewed in a received buffer without a copy. Codes that a peer chooses (opcodes, status codes, identifiers of features and log
//! pages) are open newtypes with named constants, never Rust enums: any value may arrive.

pub mod command;
pub mod ids;
pub mod opcode;
pub mod sgl;
pub mod status;

pub use command::{Cqe, Fuse, Psdt, Sqe};
pub use ids::{Cid, Cntlid, Lba, Nsid, Qid};
pub use opcode::{AdminOpcode, FabricsType, IoOpcode, Opcode};
pub use sgl::SglDescriptor;
pub use status::Status;
