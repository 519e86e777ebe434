//! System calls and ioctls that no other crate offers safely, one file for each kernel interface.

pub mod block;
pub mod fds;
pub mod file;
pub mod fuse;
mod genl;
pub(crate) mod ioctl;
pub mod loopdev;
pub(crate) mod mmap;
pub mod nbd;
pub mod nvme;
pub mod ublk;
