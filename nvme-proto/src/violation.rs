//! The rules that a peer can break, one variant each, and the one table from a breach to what follows.
//!
//! A breach either fails one command, ends the connection with a termination request, or, where not even that can be sent, closes it.
//! It never reaches another connection.

use crate::wire::{Opcode, Status};
use core::fmt;

/// A rule that the peer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// An opcode that this queue does not support.
    UnsupportedOpcode(Opcode),
}

/// What a violation leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command completes with this status; the connection lives.
    Status(Status),
    /// The connection is closed without a word.
    Close,
}

impl Violation {
    /// What this breach leads to.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::UnsupportedOpcode(_) => Outcome::Status(Status::INVALID_OPCODE.dnr()),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnsupportedOpcode(opcode) => {
                write!(f, "opcode {opcode} is not supported on this queue")
            }
        }
    }
}

impl core::error::Error for Violation {}
