//! The driver as an orchestrator meets it: over its socket, with a real target, the real initiator and the kernel's mounts.

mod controller;
mod node;
mod rig;
