//! What the fuzz targets do with their input. Each `run` must never panic, whatever the bytes are; they are also what the regression
//! tests of `nvme-proto` replay the corpus with.
#![forbid(unsafe_code)]

pub mod controller;
pub mod decoder;
mod hex;
pub mod host;
mod input;
#[path = "../../nvme-proto/tests/tcp/support/raw.rs"]
#[allow(dead_code)]
mod raw;

pub use hex::from_hex;
