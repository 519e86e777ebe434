//! The management API as its clients meet it: each test has a target with a socket and a state directory of its own.

pub mod client;
mod protocol;
