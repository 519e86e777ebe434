//! The thread behind a handle: takes jobs, keeps what they need alive, answers them.
//!
//! Invariants:
//! - the memory of an operation is here from its start to its completion, whether or not anybody still waits for the answer;
//! - jobs that wait for memory do not hold up those that need none: a caller may hold all buffers, and get further only by
//!   using them.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use crossbeam_channel::{Receiver, TryRecvError};
use nvme_proto::wire::Lba;
use nvmf_io::{Buf, DetachedBuf};
use tokio::sync::oneshot;

use super::buffer::{Buffer, BufferError, Supply};
use super::{HandleError, NamespaceInfo};
use crate::core::request::{Done, IoError, Op, Request};
use crate::core::shard::Full;
use crate::polled::{Session, Wait};

/// What a job came to.
pub(super) enum Answer {
    Done,
    Read(Bytes),
    Buffer(Buffer),
}

pub(super) type Outcome = Result<Answer, BufferError>;

/// What a job is about.
pub(super) enum Work {
    /// An operation.
    Io {
        op: Op,
        slba: u64,
        blocks: u64,
        data: Data,
    },
    /// A buffer of so many bytes.
    Alloc(u32),
    /// Disconnect, and answer when that is done.
    Close,
}

/// Where the data of an operation is.
pub(super) enum Data {
    None,
    /// To be written, and copied into registered memory first.
    Owned(Bytes),
    /// To be read, and copied out of registered memory afterwards: so many bytes.
    Wanted(u32),
    /// In place.
    Registered(DetachedBuf),
}

pub(super) struct Job {
    pub work: Work,
    pub reply: oneshot::Sender<Outcome>,
}

impl Job {
    fn needs_memory(&self) -> bool {
        match &self.work {
            Work::Alloc(_) => true,
            Work::Io { data, .. } => match data {
                Data::Owned(bytes) => !bytes.is_empty(),
                Data::Wanted(bytes) => *bytes > 0,
                Data::None | Data::Registered(_) => false,
            },
            Work::Close => false,
        }
    }
}

/// Why a job could not begin.
enum Short {
    /// The pool is dry.
    Memory(Job),
    /// As many operations are open as the session takes.
    Room(Job),
}

struct Open {
    reply: oneshot::Sender<Outcome>,
    buf: Option<Buf>,
    then: Then,
}

/// What becomes of an operation's memory.
enum Then {
    /// Back to the pool.
    Drop,
    /// Copied out.
    Copy,
    /// Given back to the caller.
    Return,
}

pub(super) struct Worker {
    session: Session,
    inbox: Receiver<Job>,
    supply: Arc<Supply>,
    /// What callers are told of the namespace.
    info: Arc<RwLock<Arc<NamespaceInfo>>>,
    /// Jobs that wait for memory.
    dry: VecDeque<Job>,
    /// Jobs that wait for another to complete.
    full: VecDeque<Job>,
    open: Vec<Option<Open>>,
    free: Vec<usize>,
    /// Operations that are over, with memory that the ring has not let go of yet: a response may be seen before the completion
    /// of the send that it answers.
    held: Vec<Held>,
}

struct Held {
    reply: oneshot::Sender<Outcome>,
    buf: Buf,
    result: Result<(), IoError>,
}

/// What the inbox says about going on.
enum End {
    /// Somebody asked for it and wants to be told.
    Asked(oneshot::Sender<Outcome>),
    /// With the last handle went everybody who could wait for an answer.
    Forgotten,
}

impl Worker {
    pub(super) fn new(
        session: Session,
        inbox: Receiver<Job>,
        supply: Arc<Supply>,
        info: Arc<RwLock<Arc<NamespaceInfo>>>,
    ) -> Self {
        Worker {
            session,
            inbox,
            supply,
            info,
            dry: VecDeque::new(),
            full: VecDeque::new(),
            open: Vec::new(),
            free: Vec::new(),
            held: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        let mut done = Vec::new();
        loop {
            if let Some(end) = self.take_jobs() {
                // What is open ends unanswered, which its callers see as the end of the thread.
                self.session.disconnect();
                if let End::Asked(reply) = end {
                    let _ = reply.send(Ok(Answer::Done));
                }
                return;
            }
            self.start_waiting();
            if let Err(error) = self.session.poll(Wait::Block, &mut done) {
                tracing::error!(%error, "the ring of a handle failed");
                return;
            }
            for done in done.drain(..) {
                self.finish(done);
            }
            self.release_held();
            self.publish();
        }
    }

    fn take_jobs(&mut self) -> Option<End> {
        loop {
            match self.inbox.try_recv() {
                Ok(Job {
                    work: Work::Close,
                    reply,
                }) => return Some(End::Asked(reply)),
                Ok(job) if !self.full.is_empty() => self.full.push_back(job),
                Ok(job) if job.needs_memory() && !self.dry.is_empty() => self.dry.push_back(job),
                Ok(job) => match self.start(job) {
                    Ok(()) => {}
                    Err(Short::Memory(job)) => self.dry.push_back(job),
                    Err(Short::Room(job)) => self.full.push_back(job),
                },
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(End::Forgotten),
            }
        }
    }

    /// Begins what waited, as far as there is what it waits for.
    fn start_waiting(&mut self) {
        while let Some(job) = self.full.pop_front() {
            if job.needs_memory() && !self.dry.is_empty() {
                self.dry.push_back(job);
                continue;
            }
            match self.start(job) {
                Ok(()) => {}
                Err(Short::Memory(job)) => self.dry.push_back(job),
                Err(Short::Room(job)) => {
                    self.full.push_front(job);
                    return;
                }
            }
        }
        self.supply.set_starved(!self.dry.is_empty());
        while let Some(job) = self.dry.pop_front() {
            match self.start(job) {
                Ok(()) => {}
                Err(Short::Memory(job)) => return self.dry.push_front(job),
                Err(Short::Room(job)) => {
                    self.full.push_back(job);
                    return;
                }
            }
        }
        self.supply.set_starved(false);
    }

    fn start(&mut self, job: Job) -> Result<(), Short> {
        let Job { work, reply } = job;
        let (op, slba, blocks, data) = match work {
            Work::Io {
                op,
                slba,
                blocks,
                data,
            } => (op, slba, blocks, data),
            Work::Alloc(bytes) => return self.hand_out(bytes, reply),
            Work::Close => unreachable!("taken from the inbox before"),
        };
        let again = |data, reply| Job {
            work: Work::Io {
                op,
                slba,
                blocks,
                data,
            },
            reply,
        };
        if self.session.open() >= self.session.max_requests() {
            return Err(Short::Room(again(data, reply)));
        }
        let (buf, then) = match data {
            Data::Owned(bytes) if !bytes.is_empty() => {
                // Bounded by the handle.
                let Some(buf) = self.session.alloc(bytes.len() as u32) else {
                    return Err(Short::Memory(again(Data::Owned(bytes), reply)));
                };
                buf.copy_in(0, &bytes);
                (Some(buf), Then::Drop)
            }
            Data::Wanted(bytes @ 1..) => {
                let Some(buf) = self.session.alloc(bytes) else {
                    return Err(Short::Memory(again(data, reply)));
                };
                (Some(buf), Then::Copy)
            }
            Data::Registered(memory) => match self.session.pool().attach(memory) {
                Ok(buf) => (Some(buf), Then::Return),
                Err(memory) => {
                    let failed = BufferError {
                        error: HandleError::ForeignBuffer,
                        buffer: Some(Buffer::new(memory, &self.supply)),
                    };
                    let _ = reply.send(Err(failed));
                    return Ok(());
                }
            },
            Data::None | Data::Owned(_) | Data::Wanted(_) => (None, Then::Drop),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        let request = Request {
            op,
            slba: Lba(slba),
            blocks,
            buf: buf.clone(),
            buf_offset_bytes: 0,
            tag: slot as u64,
        };
        match self.session.submit(request) {
            Ok(()) => self.open[slot] = Some(Open { reply, buf, then }),
            Err(Full(_)) => unreachable!("there was room for it"),
        }
        Ok(())
    }

    fn hand_out(&mut self, bytes: u32, reply: oneshot::Sender<Outcome>) -> Result<(), Short> {
        let Some(buf) = self.session.alloc(bytes) else {
            return Err(Short::Memory(Job {
                work: Work::Alloc(bytes),
                reply,
            }));
        };
        let memory = self.session.pool().detach(buf);
        let buffer = Buffer::new(memory.expect("a new buffer has one handle"), &self.supply);
        // Whoever asked may have stopped waiting.
        let _ = reply.send(Ok(Answer::Buffer(buffer)));
        Ok(())
    }

    fn finish(&mut self, done: Done) {
        let slot = done.tag as usize;
        let Some(Open { reply, buf, then }) = self.open[slot].take() else {
            return;
        };
        self.free.push(slot);
        match (then, buf) {
            (Then::Return, Some(buf)) => {
                let result = done.result;
                self.held.push(Held { reply, buf, result });
            }
            (Then::Copy, Some(buf)) if done.result.is_ok() && !reply.is_closed() => {
                let mut data = vec![0; buf.len() as usize];
                buf.copy_out(0, &mut data);
                let _ = reply.send(Ok(Answer::Read(Bytes::from(data))));
            }
            _ => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(answer(done.result, None));
            }
        }
    }

    /// Gives buffers back to their callers as soon as nobody else has them.
    fn release_held(&mut self) {
        let mut at = 0;
        while at < self.held.len() {
            if !self.held[at].buf.is_unique() {
                at += 1;
                continue;
            }
            let Held { reply, buf, result } = self.held.swap_remove(at);
            let memory = self.session.pool().detach(buf);
            let memory = memory.expect("it is of the session's pool, and has one handle");
            let _ = reply.send(answer(result, Some(Buffer::new(memory, &self.supply))));
        }
    }

    /// Tells callers what the namespace is by now.
    fn publish(&mut self) {
        // Nobody else takes them, and they must not pile up.
        self.session.events().for_each(drop);
        let now = self.session.namespace_shared();
        let known = self.info.read().is_ok_and(|known| Arc::ptr_eq(&known, now));
        if !known && let Ok(mut info) = self.info.write() {
            *info = now.clone();
        }
    }
}

fn answer(result: Result<(), IoError>, buffer: Option<Buffer>) -> Outcome {
    match (result, buffer) {
        (Ok(()), Some(buffer)) => Ok(Answer::Buffer(buffer)),
        (Ok(()), None) => Ok(Answer::Done),
        (Err(error), buffer) => Err(BufferError {
            error: error.into(),
            buffer,
        }),
    }
}
