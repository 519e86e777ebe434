//! The TCP transport from outside: hosts and controllers in memory, right and wrong ones.
// One program for all of it, so that it is linked once.

#[path = "tcp/bad_controller.rs"]
mod bad_controller;
#[path = "tcp/bad_host/mod.rs"]
mod bad_host;
#[path = "tcp/chunking.rs"]
mod chunking;
#[path = "tcp/flow.rs"]
mod flow;
#[path = "tcp/golden.rs"]
mod golden;
#[path = "tcp/handshake.rs"]
mod handshake;
#[path = "tcp/pair.rs"]
mod pair;
#[path = "tcp/support/mod.rs"]
mod support;
