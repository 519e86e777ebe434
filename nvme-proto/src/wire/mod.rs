//! What crosses the wire, byte for byte.
//!
//! Every structure is `#[repr(C)]`, unaligned, made of little-endian fields, and asserts its size at compile time, so that it can be
//! viewed in a received buffer without a copy. Codes that a peer chooses (opcodes, status codes, identifiers of features and log
//! pages) are open newtypes with named constants, never Rust enums: any value may arrive.

mod bits;
pub mod command;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod ids;
pub mod log;
pub mod nqn;
pub mod nvm;
pub mod opcode;
pub mod property;
pub mod sgl;
pub mod status;
pub mod text;
pub mod uid;

pub use command::{Cqe, Fuse, Psdt, Sqe};
pub use ids::{Cid, Cntlid, Lba, Nsid, Qid};
pub use nqn::Nqn;
pub use opcode::{AdminOpcode, FabricsType, IoOpcode, Opcode};
pub use sgl::SglDescriptor;
pub use status::Status;
pub use uid::{Eui64, HostId, Nguid, Uuid};
