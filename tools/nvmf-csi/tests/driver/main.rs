//! The driver as an orchestrator meets it: over its socket, with a real target, the real initiator and the kernel's mounts.

mod concurrency;
mod controller;
mod crash;
mod identity;
mod load;
mod many;
mod moving;
mod node;
mod pod;
mod remote;
mod rig;
mod targets;
mod tracer;
mod writer;
