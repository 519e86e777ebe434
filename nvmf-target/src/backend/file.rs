//! Files and block devices: which operation of the ring comes next for a command, and what its result means.
//!
//! Two steps that the shard takes in turn: [`FileBackend::submit`] starts the next operation, [`FileBackend::advance`] takes its
//! result. One operation of a command is in flight at a time.
//!
//! Durability: FUA writes carry RWF_DSYNC, Flush is fdatasync, zeroing with FUA ends with an fdatasync, and a read with FUA begins
//! with one. Deallocation is advice and promises nothing about power loss.
//!
//! A file that somebody truncates must not grow again by a write of ours: its blocks would be gone and nobody told. No flag of the kernel
//! forbids a write to extend a file, so a shard looks at the size once in each turn in which it starts or completes writes to the file (some 200 ns,
//! from what the kernel has cached), and then
//! - starts no write that ends past the end of the file, and
//! - acknowledges a write only if the file did not become shorter since it was started.
//!
//! What is left: a write that the kernel has already, or gets in the same turn, can extend the file that is truncated at that very moment. It fails with Write Fault
//! too, unless it covers the last block and so gives the file the size that it should have.

use std::sync::Arc;

use nvme_proto::wire::Status;
use nvmf_io::{Allocate, Errno, FileId, Ring, WriteFlags};

use super::backing::Backing;
use super::command::{BackendOp, Ranges};
use super::status::{Direction, status_of};
use super::work::{Lent, Next, PIECE_BYTES, Stage, Task, Work};

/// A file or block device as one shard uses it.
#[derive(Debug)]
pub struct FileBackend {
    file: FileId,
    backing: Arc<Backing>,
    /// Whether FALLOC_FL_ZERO_RANGE works, as far as is known.
    zero_range: bool,
    /// Whether FALLOC_FL_PUNCH_HOLE works, as far as is known.
    punch_hole: bool,
    /// When the size was looked at: [`Lent`] counts.
    looked_in: u64,
    /// Whether a look holds until completions are asked for: without it they come at any time.
    ring_is_deferred: bool,
}

/// The next piece of `len_bytes`, of which `done` are done: (offset from the start, length).
fn piece(done: u64, len_bytes: u64) -> u32 {
    (len_bytes - done).min(u64::from(PIECE_BYTES)) as u32
}

impl FileBackend {
    /// `backing`, which is registered with the shard's ring as `file`. `ring_is_deferred`: completions appear only while the shard
    /// waits.
    pub fn new(file: FileId, backing: Arc<Backing>, ring_is_deferred: bool) -> Self {
        Self {
            file,
            backing,
            zero_range: true,
            punch_hole: true,
            looked_in: u64::MAX,
            ring_is_deferred,
        }
    }

    /// Where the file ends, as of the last time completions were asked for; `u64::MAX` where it has its promised size.
    #[inline]
    fn end_bytes(&mut self, turn: u64) -> u64 {
        if self.looked_in != turn || !self.ring_is_deferred {
            self.looked_in = turn;
            self.backing.look_at_size();
        }
        self.backing.end_bytes()
    }

    /// Whether a write up to `end_bytes` may start: not where it would extend a file that was truncated.
    #[inline]
    fn may_write(&mut self, work: &mut Work, end_bytes: u64, lent: &Lent) -> bool {
        let file_end_bytes = self.end_bytes(lent.turn);
        work.end_bytes = work.end_bytes.max(file_end_bytes);
        end_bytes <= file_end_bytes
    }

    /// Behaves as on a file system without fallocate.
    #[cfg(test)]
    pub(super) fn forget_fallocate(&mut self) {
        self.zero_range = false;
        self.punch_hole = false;
    }

    /// Its file in the ring.
    pub fn file(&self) -> FileId {
        self.file
    }

    /// Starts the next operation of the command, or ends it where there is nothing to start.
    pub fn submit(&mut self, task: &mut Task<'_>, lent: &mut Lent, ring: &mut Ring) -> Next {
        let (file, token, done) = (self.file, task.token, task.work.done);
        if let Stage::SyncFirst | Stage::Sync = task.work.stage {
            ring.fsync(file, true, token);
            return Next::InFlight;
        }
        match (task.work.op, task.data) {
            (BackendOp::Nothing, _) => return Next::Done(Status::SUCCESS),
            (BackendOp::Flush, _) => ring.fsync(file, true, token),
            (
                BackendOp::Read {
                    offset_bytes,
                    len_bytes,
                    ..
                },
                Some(data),
            ) => {
                ring.read(
                    file,
                    offset_bytes + done,
                    data,
                    done as u32..len_bytes,
                    token,
                );
            }
            (
                BackendOp::Write {
                    offset_bytes,
                    len_bytes,
                    fua,
                },
                Some(data),
            ) => {
                if !self.may_write(task.work, offset_bytes + u64::from(len_bytes), lent) {
                    return Next::Done(Status::WRITE_FAULT);
                }
                let flags = WriteFlags { dsync: fua };
                ring.write(
                    file,
                    offset_bytes + done,
                    data,
                    done as u32..len_bytes,
                    flags,
                    token,
                );
            }
            (
                BackendOp::WriteZeroes {
                    offset_bytes,
                    len_bytes,
                    deallocate,
                    fua,
                },
                _,
            ) => {
                if !self.may_write(task.work, offset_bytes + len_bytes, lent) {
                    return Next::Done(Status::WRITE_FAULT);
                }
                match self.zeroing(task.work.stage, deallocate) {
                    Some(mode) => ring.fallocate(file, mode, offset_bytes, len_bytes, token),
                    None => {
                        task.work.stage = Stage::ByWriting;
                        let flags = WriteFlags { dsync: fua };
                        let len = piece(done, len_bytes);
                        ring.write(
                            file,
                            offset_bytes + done,
                            &lent.zeroes,
                            0..len,
                            flags,
                            token,
                        );
                    }
                }
            }
            (BackendOp::Deallocate { ranges }, Some(data)) => {
                let ranges = Ranges::new(data, ranges, &task.geometry);
                return self.deallocate(ranges, task, ring);
            }
            (
                BackendOp::Verify {
                    offset_bytes,
                    len_bytes,
                },
                _,
            ) => {
                let len = piece(done, len_bytes);
                ring.read(file, offset_bytes + done, &lent.sink, 0..len, token);
            }
            (
                BackendOp::Compare {
                    offset_bytes,
                    len_bytes,
                },
                Some(_),
            ) => {
                if lent.comparing {
                    return Next::WaitForCompare;
                }
                let len = piece(done, len_bytes.into());
                ring.read(file, offset_bytes + done, &lent.compare, 0..len, token);
                lent.comparing = true;
            }
            (op, None) => {
                tracing::error!(
                    ?op,
                    "a command that moves data reached its backing without a buffer"
                );
                return Next::Done(Status::INTERNAL_ERROR);
            }
        }
        Next::InFlight
    }

    /// How to zero a range: the best that is not known to fail; `None` by writing.
    fn zeroing(&self, stage: Stage, deallocate: bool) -> Option<Allocate> {
        if stage == Stage::ByWriting {
            None
        } else if deallocate && self.punch_hole {
            Some(Allocate::PUNCH_HOLE | Allocate::KEEP_SIZE)
        } else if self.zero_range {
            Some(Allocate::ZERO_RANGE | Allocate::KEEP_SIZE)
        } else {
            None
        }
    }

    /// Starts the deallocation of the next range. All ranges are checked before the first is touched.
    fn deallocate(&mut self, ranges: Ranges<'_>, task: &mut Task<'_>, ring: &mut Ring) -> Next {
        if task.work.done == 0
            && let Err(status) = ranges.check()
        {
            return Next::Done(status);
        }
        match ranges.get(task.work.done as usize) {
            Some((offset_bytes, len_bytes)) if self.punch_hole => {
                let mode = Allocate::PUNCH_HOLE | Allocate::KEEP_SIZE;
                ring.fallocate(self.file, mode, offset_bytes, len_bytes, task.token);
                Next::InFlight
            }
            _ => Next::Done(Status::SUCCESS),
        }
    }

    /// Takes the result of the operation that the last [`FileBackend::submit`] started.
    pub fn advance(
        &mut self,
        task: &mut Task<'_>,
        lent: &mut Lent,
        result: Result<u32, Errno>,
    ) -> Next {
        let next = self.step(task, lent, result);
        let writes = matches!(
            task.work.op,
            BackendOp::Write { .. } | BackendOp::WriteZeroes { .. }
        );
        if writes
            && next == Next::Done(Status::SUCCESS)
            && self.end_bytes(lent.turn) < task.work.end_bytes
        {
            return Next::Done(Status::WRITE_FAULT);
        }
        next
    }

    fn step(&mut self, task: &mut Task<'_>, lent: &mut Lent, result: Result<u32, Errno>) -> Next {
        let work = &mut *task.work;
        match (work.op, work.stage) {
            (_, Stage::SyncFirst) if result.is_ok() => {
                work.stage = Stage::Main;
                Next::Again
            }
            (_, Stage::SyncFirst | Stage::Sync) | (BackendOp::Flush | BackendOp::Nothing, _) => {
                match result {
                    Ok(_) => Next::Done(Status::SUCCESS),
                    Err(errno) => Next::Done(status_of(errno, Direction::Write)),
                }
            }
            (
                BackendOp::Read {
                    offset_bytes,
                    len_bytes,
                    ..
                },
                _,
            ) => self.moved(
                work,
                offset_bytes,
                len_bytes.into(),
                result,
                Direction::Read,
            ),
            (
                BackendOp::Verify {
                    offset_bytes,
                    len_bytes,
                },
                _,
            ) => self.moved(work, offset_bytes, len_bytes, result, Direction::Read),
            (
                BackendOp::Write {
                    offset_bytes,
                    len_bytes,
                    ..
                },
                _,
            ) => self.moved(
                work,
                offset_bytes,
                len_bytes.into(),
                result,
                Direction::Write,
            ),
            (
                BackendOp::WriteZeroes {
                    offset_bytes,
                    len_bytes,
                    ..
                },
                Stage::ByWriting,
            ) => self.moved(work, offset_bytes, len_bytes, result, Direction::Write),
            (
                BackendOp::WriteZeroes {
                    deallocate, fua, ..
                },
                Stage::Main,
            ) => match result {
                Ok(_) if fua => {
                    work.stage = Stage::Sync;
                    Next::Again
                }
                Ok(_) => Next::Done(Status::SUCCESS),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                    // Remember, and try the next best way.
                    if deallocate && self.punch_hole {
                        self.punch_hole = false;
                    } else {
                        self.zero_range = false;
                    }
                    Next::Again
                }
                Err(errno) => Next::Done(status_of(errno, Direction::Write)),
            },
            (BackendOp::Deallocate { .. }, _) => match result {
                Ok(_) => {
                    work.done += 1;
                    Next::Again
                }
                // Advice that cannot be followed is not an error.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {
                    self.punch_hole = false;
                    Next::Done(Status::SUCCESS)
                }
                Err(errno) => Next::Done(status_of(errno, Direction::Write)),
            },
            (
                BackendOp::Compare {
                    offset_bytes,
                    len_bytes,
                },
                _,
            ) => {
                let at = work.done as u32;
                let next = self.moved(
                    work,
                    offset_bytes,
                    len_bytes.into(),
                    result,
                    Direction::Read,
                );
                lent.comparing = false;
                let read = at..work.done as u32;
                match task.data {
                    Some(data) if !data.eq_range(read, &lent.compare, 0) => {
                        Next::Done(Status::COMPARE_FAILURE.dnr())
                    }
                    _ => next,
                }
            }
        }
    }

    /// Counts bytes that were read or written. Nothing moved, or a part that direct I/O cannot go on from, means that the
    /// file ends there.
    fn moved(
        &self,
        work: &mut Work,
        offset_bytes: u64,
        len_bytes: u64,
        result: Result<u32, Errno>,
        direction: Direction,
    ) -> Next {
        let count = match result {
            Ok(count) => u64::from(count),
            Err(errno) => return Next::Done(status_of(errno, direction)),
        };
        work.done += count;
        if work.done == len_bytes {
            return Next::Done(Status::SUCCESS);
        }
        if count == 0 || !work.done.is_multiple_of(self.backing.unit_bytes().into()) {
            self.backing.found_short(offset_bytes + work.done);
            return Next::Done(direction.fault());
        }
        Next::Again
    }
}
