//! The binary as hosts and operators meet it: spawned for real, driven over sockets by a host of the protocol crate's own, and by
//! signals.

mod common;

#[path = "server/process.rs"]
mod process;
#[path = "server/session.rs"]
mod session;

#[path = "api/mod.rs"]
mod api;
#[path = "server/authentication.rs"]
mod authentication;
#[path = "server/bring_up.rs"]
mod bring_up;
#[path = "server/command_line.rs"]
mod command_line;
#[path = "server/discovery.rs"]
mod discovery;
#[path = "server/fence.rs"]
mod fence;
#[path = "server/keep_alive.rs"]
mod keep_alive;
#[path = "server/manager.rs"]
mod manager;
#[path = "pool/mod.rs"]
mod pool;
#[path = "server/reload.rs"]
mod reload;
#[path = "server/silent.rs"]
mod silent;
#[path = "server/stop.rs"]
mod stop;
