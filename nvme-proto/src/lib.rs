//! The NVM Express standard as types and state machines.
//!
//! Nothing here reads a socket, a file or a clock: bytes and the time come in as arguments, and what shall happen next goes out as
//! values. That is what makes it possible to simulate, to fuzz and to read on its own.
//!
//! - [`wire`]: every structure that crosses the wire, little endian, with its size asserted at compile time.
//! - [`queue`]: a queue's slots, identifiers and flow control on either side, whatever the transport.
//! - [`tcp`]: PDUs, handshake and the state machines of a TCP connection; [`digest`]: CRC32C.
//! - [`rdma`]: private data, capsules and the state machines of an RDMA connection.
//! - [`auth`]: in-band authentication with DH-HMAC-CHAP.
//! - [`controller`]: the admin side of a controller, and the checks of every command.
//! - [`violation`]: the rules that a peer can break, and what each breach leads to.
#![forbid(unsafe_code)]

pub mod auth;
pub mod controller;
pub mod digest;
pub mod queue;
pub mod rdma;
pub mod tcp;
pub mod violation;
pub mod wire;
