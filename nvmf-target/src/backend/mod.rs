//! Where the blocks of a namespace are.
//!
//! [`Backing`] is one opened file, device or piece of memory, shared by all shards.

mod backing;
mod command;
mod direct;
mod error;
mod status;
#[cfg(test)]
mod tests;

pub use backing::{Backing, BackingOptions, BackingSpec};
pub use command::{BackendOp, DataNeeds, Plan, plan};
pub use error::BackingError;
pub use status::{Direction, status_of};
