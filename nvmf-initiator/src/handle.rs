//! [`Namespace`]: one namespace for any number of tasks and threads.
//!
//! A thread of its own runs a [`Session`]; handles send it operations and await the answers, on any executor. Data is
//! copied once on its way through: what goes without that copy is the polled form ([`crate::polled`]).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use bytes::Bytes;
//! use nvmf_initiator::handle::Namespace;
//! use nvmf_initiator::polled::SessionConfig;
//!
//! let disk = Namespace::connect("nvme+tcp://192.0.2.1:4420/nqn.2026-01.io.example:disk?nsid=1", SessionConfig::default())?;
//! let block = disk.info().block_bytes as usize;
//! disk.write(0, Bytes::from(vec![0x5a; block]), false).await?;
//! disk.flush().await?;
//! assert_eq!(disk.read(0, 1).await?, vec![0x5a; block]);
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use nvme_proto::wire::Lba;
use nvmf_io::Buf;
use tokio::sync::oneshot;

use crate::core::namespace::NamespaceInfo;
use crate::core::request::{Done, IoError, Op, Request};
use crate::core::shard::Full;
use crate::polled::{Session, SessionConfig, SessionError, Wait, Waker};

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
    /// More data than one operation takes.
    #[error("one operation moves at most {MAX_IO_BYTES} bytes; split it")]
    TooLarge,
    /// The thread behind the handle has ended.
    #[error("the thread behind this handle has ended")]
    Ended,
}

type Reply = oneshot::Sender<Result<Bytes, HandleError>>;

struct Job {
    op: Op,
    slba: u64,
    blocks: u64,
    data: Bytes,
    reply: Reply,
}

/// See the module's text. Clones share the connection, which ends in order with the last of them.
#[derive(Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Option<Sender<Job>>,
    waker: Waker,
    info: NamespaceInfo,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Connects to the namespace of an `nvme+tcp://` URL; waits for the outcome.
    pub fn connect(url: &str, config: SessionConfig) -> Result<Namespace, SessionError> {
        let (jobs, inbox) = crossbeam_channel::unbounded();
        let (ready, connected) = std::sync::mpsc::channel();
        let url = url.to_owned();
        let thread = std::thread::Builder::new()
            .name("nvmf-handle".to_owned())
            .spawn(move || match Session::connect(&url, &config) {
                Ok(session) => {
                    let _ = ready.send(Ok((session.waker(), session.namespace().clone())));
                    Worker::new(session, inbox).run();
                }
                Err(error) => drop(ready.send(Err(error))),
            })?;
        let ended = || {
            Err(SessionError::System(io::Error::other(
                "the handle's thread died at its start",
            )))
        };
        let (waker, info) = connected.recv().unwrap_or_else(|_| ended())?;
        Ok(Namespace {
            shared: Arc::new(Shared {
                jobs: Some(jobs),
                waker,
                info,
                thread: Some(thread),
            }),
        })
    }

    /// What the namespace was when it was connected.
    pub fn info(&self) -> &NamespaceInfo {
        &self.shared.info
    }

    /// Reads `blocks` blocks from block `slba` on.
    pub async fn read(&self, slba: u64, blocks: u32) -> Result<Bytes, HandleError> {
        self.run(Op::Read, slba, blocks.into(), Bytes::new()).await
    }

    /// Writes whole blocks from block `slba` on; with `fua` they are on stable storage when this returns.
    pub async fn write(&self, slba: u64, data: Bytes, fua: bool) -> Result<(), HandleError> {
        let blocks = self.whole_blocks(&data)?;
        self.run(Op::Write { fua }, slba, blocks, data)
            .await
            .map(drop)
    }

    /// Compares whole blocks with those from block `slba` on; a difference is the status Compare Failure.
    pub async fn compare(&self, slba: u64, data: Bytes) -> Result<(), HandleError> {
        let blocks = self.whole_blocks(&data)?;
        self.run(Op::Compare, slba, blocks, data).await.map(drop)
    }

    /// Brings every write that has returned to stable storage.
    pub async fn flush(&self) -> Result<(), HandleError> {
        self.run(Op::Flush, 0, 0, Bytes::new()).await.map(drop)
    }

    /// Says that the content of these blocks no longer matters.
    pub async fn discard(&self, slba: u64, blocks: u64) -> Result<(), HandleError> {
        self.run(Op::Discard, slba, blocks, Bytes::new())
            .await
            .map(drop)
    }

    /// Makes these blocks zero; with `deallocate` they may lose their storage.
    pub async fn write_zeroes(
        &self,
        slba: u64,
        blocks: u64,
        deallocate: bool,
    ) -> Result<(), HandleError> {
        self.run(Op::WriteZeroes { deallocate }, slba, blocks, Bytes::new())
            .await
            .map(drop)
    }

    fn whole_blocks(&self, data: &Bytes) -> Result<u64, HandleError> {
        let block_bytes = self.shared.info.block_bytes;
        if !data.len().is_multiple_of(block_bytes as usize) {
            return Err(HandleError::Partial {
                bytes: data.len(),
                block_bytes,
            });
        }
        Ok((data.len() / block_bytes as usize) as u64)
    }

    async fn run(&self, op: Op, slba: u64, blocks: u64, data: Bytes) -> Result<Bytes, HandleError> {
        let bytes = blocks.saturating_mul(self.shared.info.block_bytes.into());
        if op.has_data() && bytes > MAX_IO_BYTES.into() {
            return Err(HandleError::TooLarge);
        }
        let (reply, answered) = oneshot::channel();
        let jobs = self.shared.jobs.as_ref().ok_or(HandleError::Ended)?;
        jobs.send(Job {
            op,
            slba,
            blocks,
            data,
            reply,
        })
        .map_err(|_| HandleError::Ended)?;
        self.shared.waker.wake();
        answered.await.unwrap_or(Err(HandleError::Ended))
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

struct Open {
    reply: Reply,
    buf: Option<Buf>,
    bytes: u32,
    is_read: bool,
}

struct Worker {
    session: Session,
    inbox: Receiver<Job>,
    /// Jobs that found no buffer or no room.
    waiting: VecDeque<Job>,
    open: Vec<Option<Open>>,
    free: Vec<usize>,
}

impl Worker {
    fn new(session: Session, inbox: Receiver<Job>) -> Self {
        Worker {
            session,
            inbox,
            waiting: VecDeque::new(),
            open: Vec::new(),
            free: Vec::new(),
        }
    }

    fn run(mut self) {
        let mut done = Vec::new();
        loop {
            let mut ended = false;
            loop {
                match self.inbox.try_recv() {
                    Ok(job) => self.waiting.push_back(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        ended = true;
                        break;
                    }
                }
            }
            while let Some(job) = self.waiting.pop_front() {
                if let Err(job) = self.start(job) {
                    self.waiting.push_front(job);
                    break;
                }
            }
            if ended {
                // With the last handle went everybody who could wait for an answer.
                return self.session.disconnect();
            }
            if let Err(error) = self.session.poll(Wait::Block, &mut done) {
                tracing::error!(%error, "the ring of a handle failed");
                return;
            }
            for done in done.drain(..) {
                self.finish(done);
            }
        }
    }

    /// Begins a job, or gives it back when something is short that comes back by itself.
    fn start(&mut self, job: Job) -> Result<(), Job> {
        let bytes = if job.op.has_data() {
            // Bounded by the handle.
            (job.blocks * u64::from(self.session.namespace().block_bytes)) as u32
        } else {
            0
        };
        let buf = match bytes {
            0 => None,
            _ => match self.session.alloc(bytes) {
                Some(buf) => Some(buf),
                None => return Err(job),
            },
        };
        if let (Some(buf), false) = (&buf, job.data.is_empty()) {
            buf.copy_in(0, &job.data);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        let request = Request {
            op: job.op,
            slba: Lba(job.slba),
            blocks: job.blocks,
            buf: buf.clone(),
            buf_offset_bytes: 0,
            tag: slot as u64,
        };
        if let Err(Full(_)) = self.session.submit(request) {
            self.free.push(slot);
            return Err(job);
        }
        self.open[slot] = Some(Open {
            reply: job.reply,
            buf,
            bytes,
            is_read: job.op == Op::Read,
        });
        Ok(())
    }

    fn finish(&mut self, done: Done) {
        let slot = done.tag as usize;
        let Some(open) = self.open[slot].take() else {
            return;
        };
        self.free.push(slot);
        let result = done
            .result
            .map_err(HandleError::Io)
            .map(|()| match open.buf {
                Some(buf) if open.is_read => {
                    let mut data = vec![0; open.bytes as usize];
                    buf.copy_out(0, &mut data);
                    Bytes::from(data)
                }
                _ => Bytes::new(),
            });
        // Whoever asked may have stopped waiting.
        let _ = open.reply.send(result);
    }
}
