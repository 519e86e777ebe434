//! The NVM Express standard as types and state machines.
//!
//! Nothing here reads a socket, a file or a clock: bytes and the time come in as arguments, and what shall happen next goes out as
//! values. That is what makes it possible to simulate, to fuzz and to read on its own.
//!
//! - [`wire`]: every structure that crosses the wire, little endian, with its size asserted at compile time.
//! - [`violation`]: the rules that a peer can break, and what each breach leads to.
#![forbid(unsafe_code)]

pub mod violation;
pub mod wire;
