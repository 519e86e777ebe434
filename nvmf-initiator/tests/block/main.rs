//! The forms of block device on backings without a network, with the kernel and its tools on the other side.
//!
//! A test whose form this machine does not have says so and passes; `make test` runs them where the forms are.

mod fuse;
mod served;
