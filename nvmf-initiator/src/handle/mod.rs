//! [`Namespace`]: one namespace for any number of tasks and threads.
//!
//! A thread of its own runs a [`Session`]; handles send it operations and await the answers, on any executor. Data is given
//! either as owned bytes, which are copied once on their way, or in a [`Buffer`] of the session's registered memory, which
//! is not. The shard-local form without any thread in between is [`crate::polled`].
//!
//! A future that is dropped before it is ready leaves its operation running: a write may still happen, and its memory is
//! kept until it has. While the connection is lost operations wait for the reconnect, within `fast_io_fail_tmo` and `ctrl_loss_tmo`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use bytes::Bytes;
//! use nvmf_initiator::handle::Namespace;
//! use nvmf_initiator::polled::SessionConfig;
//!
//! let url = "nvme+tcp://192.0.2.1:4420/nqn.2026-01.io.example:disk?nsid=1";
//! let disk = Namespace::connect(url, SessionConfig::default()).await?;
//! let block = disk.info().block_bytes;
//! disk.write(0, Bytes::from(vec![0x5a; block as usize]), false).await?;
//! disk.flush().await?;
//! let buffer = disk.read_into(0, disk.alloc(block).await?).await?;
//! assert!(buffer.iter().all(|byte| *byte == 0x5a));
//! disk.close().await;
//! # Ok(())
//! # }
//! ```

mod buffer;
mod worker;

use std::io;
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use self::buffer::Supply;
pub use self::buffer::{Buffer, BufferError};
use self::worker::{Answer, Data, Job, Outcome, Work, Worker};
use crate::core::namespace::NamespaceInfo;
use crate::core::request::{IoError, Op};
use crate::polled::{Session, SessionConfig, SessionError, Waker};

/// Most bytes of one operation: the largest buffer of the session's pool.
pub const MAX_IO_BYTES: u32 = 2 << 20;

/// Why an operation was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// The operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The data is no whole number of blocks.
    #[error("{bytes} bytes are no whole number of {block_bytes}-byte blocks")]
    Partial {
        /// Bytes given.
        bytes: usize,
        /// Bytes of a block.
        block_bytes: u32,
    },
    /// No data at all.
    #[error("nothing to move: no blocks, or a buffer of no bytes")]
    Empty,
    /// More data than one operation takes.
    #[error("one operation moves at most {MAX_IO_BYTES} bytes; split it")]
    TooLarge,
    /// The buffer is registered with another connection.
    #[error("the buffer belongs to another handle; take one from this handle")]
    ForeignBuffer,
    /// The thread behind the handle has ended.
    #[error("the handle was closed, or its thread has failed")]
    Ended,
}

/// See the module's text. Clones share the connection, which ends in order with the last of them; that drop waits for it, so
/// in a task prefer [`Namespace::close`].
#[derive(Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Option<Sender<Job>>,
    waker: Waker,
    info: Arc<RwLock<Arc<NamespaceInfo>>>,
    thread: Option<JoinHandle<()>>,
}

/// What a handle's thread says once it is connected.
type Started = Result<(Waker, Arc<RwLock<Arc<NamespaceInfo>>>), SessionError>;

impl Namespace {
    /// Connects to the namespace of an `nvme+tcp://` or `nvme+rdma://` URL.
    pub async fn connect(url: &str, config: SessionConfig) -> Result<Namespace, SessionError> {
        let (ready, connected) = oneshot::channel();
        let start = Start::spawn(url, config, move |started| _ = ready.send(started))?;
        start.finish(connected.await.ok())
    }

    /// The same for threads without an executor; waits for the outcome.
    pub fn connect_blocking(url: &str, config: SessionConfig) -> Result<Namespace, SessionError> {
        let (ready, connected) = std::sync::mpsc::channel();
        let start = Start::spawn(url, config, move |started| _ = ready.send(started))?;
        start.finish(connected.recv().ok())
    }

    /// What the namespace is now; its size may change while connected.
    pub fn info(&self) -> Arc<NamespaceInfo> {
        // A thread that panicked while it wrote left a whole value behind.
        let info = self.shared.info.read();
        info.unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// Reads `blocks` blocks from block `slba` on.
    pub async fn read(&self, slba: u64, blocks: u32) -> Result<Bytes, HandleError> {
        let bytes = u64::from(blocks) * u64::from(self.info().block_bytes);
        let data = Data::Wanted(bounded(bytes)?);
        match self.io(Op::Read, slba, blocks.into(), data).await? {
            Answer::Read(bytes) => Ok(bytes),
            Answer::Done | Answer::Buffer(_) => Err(HandleError::Ended),
        }
    }

    /// Writes whole blocks from block `slba` on; with `fua` they are on stable storage when this returns.
    pub async fn write(&self, slba: u64, data: Bytes, fua: bool) -> Result<(), HandleError> {
        let blocks = self.whole_blocks(data.len())?;
        let io = self.io(Op::Write { fua }, slba, blocks, Data::Owned(data));
        Ok(io.await.map(drop)?)
    }

    /// Compares whole blocks with those from block `slba` on; a difference is the status Compare Failure.
    pub async fn compare(&self, slba: u64, data: Bytes) -> Result<(), HandleError> {
        let blocks = self.whole_blocks(data.len())?;
        let io = self.io(Op::Compare, slba, blocks, Data::Owned(data));
        Ok(io.await.map(drop)?)
    }

    /// Brings every write that has returned to stable storage.
    pub async fn flush(&self) -> Result<(), HandleError> {
        Ok(self.io(Op::Flush, 0, 0, Data::None).await.map(drop)?)
    }

    /// Says that the content of these blocks no longer matters.
    pub async fn discard(&self, slba: u64, blocks: u64) -> Result<(), HandleError> {
        let io = self.io(Op::Discard, slba, blocks, Data::None);
        Ok(io.await.map(drop)?)
    }

    /// Makes these blocks zero; with `deallocate` they may lose their storage.
    pub async fn write_zeroes(
        &self,
        slba: u64,
        blocks: u64,
        deallocate: bool,
    ) -> Result<(), HandleError> {
        let io = self.io(Op::WriteZeroes { deallocate }, slba, blocks, Data::None);
        Ok(io.await.map(drop)?)
    }

    /// A buffer of registered memory, for [`Namespace::read_into`] and [`Namespace::write_from`] of this handle and its clones. The
    /// pool is bounded ([`SessionConfig::pool`]) and shared with the operations on owned bytes: when it is dry this, and they, wait until a buffer is dropped.
    pub async fn alloc(&self, len_bytes: u32) -> Result<Buffer, HandleError> {
        let len_bytes = bounded(len_bytes.into())?;
        match self.run(Work::Alloc(len_bytes)).await? {
            Answer::Buffer(buffer) => Ok(buffer),
            Answer::Done | Answer::Read(_) => Err(HandleError::Ended),
        }
    }

    /// Reads whole blocks from block `slba` on until the buffer is full.
    pub async fn read_into(&self, slba: u64, buffer: Buffer) -> Result<Buffer, BufferError> {
        self.registered(Op::Read, slba, buffer).await
    }

    /// Writes the buffer, whole blocks of it, from block `slba` on; with `fua` they are on stable storage when this returns.
    pub async fn write_from(
        &self,
        slba: u64,
        buffer: Buffer,
        fua: bool,
    ) -> Result<Buffer, BufferError> {
        self.registered(Op::Write { fua }, slba, buffer).await
    }

    /// Ends the connection in order and waits until that is done. Clones of this handle are closed with it: what they have open, or
    /// ask for later, ends with [`HandleError::Ended`].
    pub async fn close(self) {
        // An error means that it has ended before.
        let _ = self.run(Work::Close).await;
    }

    fn whole_blocks(&self, bytes: usize) -> Result<u64, HandleError> {
        bounded(bytes as u64)?;
        let block_bytes = self.info().block_bytes;
        if !bytes.is_multiple_of(block_bytes as usize) {
            return Err(HandleError::Partial { bytes, block_bytes });
        }
        Ok((bytes / block_bytes as usize) as u64)
    }

    async fn registered(&self, op: Op, slba: u64, buffer: Buffer) -> Result<Buffer, BufferError> {
        let blocks = match self.whole_blocks(buffer.len()) {
            Ok(blocks) => blocks,
            Err(error) => {
                let buffer = Some(buffer);
                return Err(BufferError { error, buffer });
            }
        };
        let data = Data::Registered(buffer.into_memory());
        match self.io(op, slba, blocks, data).await? {
            Answer::Buffer(buffer) => Ok(buffer),
            Answer::Done | Answer::Read(_) => Err(ended()),
        }
    }

    async fn io(&self, op: Op, slba: u64, blocks: u64, data: Data) -> Outcome {
        let work = Work::Io {
            op,
            slba,
            blocks,
            data,
        };
        self.run(work).await
    }

    async fn run(&self, work: Work) -> Outcome {
        let (reply, answered) = oneshot::channel();
        let jobs = self.shared.jobs.as_ref();
        let job = Job { work, reply };
        jobs.and_then(|jobs| jobs.send(job).ok())
            .ok_or_else(ended)?;
        self.shared.waker.wake();
        answered.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> BufferError {
    BufferError {
        error: HandleError::Ended,
        buffer: None,
    }
}

/// The length of an operation's data, if one operation can move it.
fn bounded(bytes: u64) -> Result<u32, HandleError> {
    match u32::try_from(bytes) {
        Ok(0) => Err(HandleError::Empty),
        Ok(bytes @ 1..=MAX_IO_BYTES) => Ok(bytes),
        _ => Err(HandleError::TooLarge),
    }
}

/// A thread that is connecting.
struct Start {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
}

impl Start {
    fn spawn(
        url: &str,
        config: SessionConfig,
        ready: impl FnOnce(Started) + Send + 'static,
    ) -> io::Result<Start> {
        let (jobs, inbox) = crossbeam_channel::unbounded();
        let url = url.to_owned();
        let connect = move || match Session::connect(&url, &config) {
            Ok(session) => {
                let waker = session.waker();
                let info = Arc::new(RwLock::new(session.namespace_shared().clone()));
                let supply = Supply::new(waker.clone());
                // Whoever asked may have stopped waiting: then there are no jobs, and never will be.
                ready(Ok((waker, info.clone())));
                Worker::new(session, inbox, supply, info).run();
            }
            Err(error) => ready(Err(error)),
        };
        let thread = std::thread::Builder::new()
            .name("nvmf-handle".to_owned())
            .spawn(connect)?;
        Ok(Start { jobs, thread })
    }

    fn finish(self, started: Option<Started>) -> Result<Namespace, SessionError> {
        let died = || Err(io::Error::other("the handle's thread died at its start").into());
        let (waker, info) = started.unwrap_or_else(died)?;
        Ok(Namespace {
            shared: Arc::new(Shared {
                jobs: Some(self.jobs),
                waker,
                info,
                thread: Some(self.thread),
            }),
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.jobs.take());
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // It panicked, if at all, where everybody could see it.
            let _ = thread.join();
        }
    }
}
