//! Where the blocks of a namespace are.
//!
//! [`Backing`] is one opened file, device or piece of memory, shared by all shards.

mod backing;
mod direct;
mod error;
#[cfg(test)]
mod tests;

pub use backing::{Backing, BackingOptions, BackingSpec};
pub use error::BackingError;
