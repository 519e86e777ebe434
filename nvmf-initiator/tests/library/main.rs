//! The library against targets in other processes, and against one in this process that misbehaves as it is told.

mod changes;
mod handle;
mod polled;
mod target;
