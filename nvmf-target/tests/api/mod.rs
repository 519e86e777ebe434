//! The management API as its clients meet it: each test has a target with a socket and a state directory of its own.

mod bad_input;
mod certificates;
pub mod client;
mod persistence;
mod protocol;
mod spdk_client;
mod subsystems;
mod tls;
