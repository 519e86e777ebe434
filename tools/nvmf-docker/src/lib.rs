//! A Docker volume plugin: volumes of a pool of nvmf-target, attached, formatted and mounted where containers run.
//!
//! | module | what it is |
//! |---|---|
//! | [`http`] | dockerd's end: a socket, requests with limits of time, what was given up undone |
//! | [`protocol`] | the requests and answers of the plugin protocol |
//! | [`driver`] | what each request does |
//! | [`references`] | who uses a volume, over the deaths of dockerd |
//! | [`state`] | what the next plugin must know |
//! | [`pool`] | the target's management API |
//! | [`options`] | what users give to `docker volume create -o` |
//!
//! dockerd asks for a volume by name and says, by an ID, for whom. The plugin keeps three things that outlive it: its state
//! file, the mounts in the kernel, and the devices of the initiator's daemon. None of them depends on the plugin
//! running, so that it can be killed and replaced under containers that work. Where these three disagree after a crash,
//! [`driver::Driver::tidy`] takes away what nobody refers to.

pub mod driver;
pub mod error;
pub mod http;
pub mod options;
pub mod pool;
pub mod protocol;
pub mod references;
pub mod state;

pub use error::Error;
