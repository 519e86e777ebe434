//! Backends alone, without sockets: opening them, and every operation on each through a real ring.

mod execute;
mod open;
