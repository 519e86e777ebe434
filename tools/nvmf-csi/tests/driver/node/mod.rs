//! The node's calls, for real: devices by FUSE and loop, file systems, mounts.

pub mod ephemeral;
mod life;
mod raw;
mod refused;
