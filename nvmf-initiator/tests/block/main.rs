//! The forms of block device on backings without a network, with the kernel and its tools on the other side.
//!
//! A test whose form this machine does not have says so and passes. The suite `block` in tests/guest runs them all where
//! every form is, and takes no such excuse.

mod device;
mod fuse;
mod nbd;
mod nbd_socket;
mod served;
mod ublk;
