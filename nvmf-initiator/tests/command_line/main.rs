//! The command line against targets that listen on this machine: what it takes, prints and writes down, and its exit codes.
//!
//! Nothing here makes a device (`--block none`), so no privilege is needed; devices are the suites' in tests/guest.

mod connect_all;
mod discover;
mod exit_codes;
mod identity;
mod rig;
