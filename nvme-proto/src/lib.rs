//! The standard as types and state machines.
#![forbid(unsafe_code)]
