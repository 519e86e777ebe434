//! What a job drives: a place that takes reads and writes and says when they are done.
//!
//! An engine lives on its job's thread, with a ring of its own. The worker is generic over it, so the choice of engine costs
//! nothing per I/O.

mod file;
mod nvmf;

use std::time::Duration;

use anyhow::Result;
use nvmf_initiator::polled::RdmaCounts;
use nvmf_io::Buf;

pub use file::FileEngine;
pub use nvmf::NvmfEngine;

/// One I/O that is done.
#[derive(Debug)]
pub struct Done {
    /// The tag given at submission.
    pub tag: u16,
    /// What went wrong, if anything did.
    pub result: Result<()>,
}

/// A place that takes I/O.
pub trait Engine {
    /// Bytes that the place holds.
    fn size_bytes(&self) -> u64;
    /// The granularity of offsets and lengths.
    fn block_bytes(&self) -> u32;
    /// A buffer of `len` bytes that this engine moves without copying.
    fn alloc(&mut self, len: u32) -> Result<Buf>;
    /// Starts a read into `buf`. `tag` is below the depth that the engine was opened with.
    fn read(&mut self, offset: u64, buf: &Buf, tag: u16) -> Result<()>;
    /// Starts a write of `buf`.
    fn write(&mut self, offset: u64, buf: &Buf, tag: u16) -> Result<()>;
    /// Sends what was started and collects what is done into `done`; waits for the first at most `limit` long.
    fn poll(&mut self, limit: Duration, done: &mut Vec<Done>) -> Result<()>;
    /// What was asked of RDMA devices so far, where there are any.
    fn rdma_counts(&self) -> Option<RdmaCounts> {
        None
    }
}

/// Whether a filename means a namespace rather than a local path.
pub fn is_remote(what: &str) -> bool {
    what.starts_with("nvme+")
}
