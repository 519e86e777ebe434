//! System calls and ioctls that no other crate offers safely, one file for each kernel interface.

pub mod block;
pub(crate) mod ioctl;
pub(crate) mod mmap;
