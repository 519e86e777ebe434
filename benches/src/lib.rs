//! Yardsticks: what two pinned processes can do over the loopback with no protocol at all, and what the ring of
//! nvmf-io does of it with no protocol either.
//!
//! One process sends requests of a fixed size and counts responses of a fixed size ([`client`]), the other answers
//! them: with bare system calls ([`plain`], the ceiling; [`many`], over many connections) or through the ring ([`ring`]).
//!
//! Beside that, the steps that the protocol takes for each command ([`hot`]), for counting and timing them.

pub mod client;
pub mod hot;
pub mod many;
pub mod plain;
pub mod ring;
pub mod shape;
