//! NVMe passthrough: commands go to the device's own queue, rewritten to its namespace, without a block layer between.
//!
//! The device's commands need a ring of their own ([`BigRing`]), which the shard's ring polls. Starting a command only queues it there;
//! [`Passthrough::reap`], once in a turn, submits what is queued and takes what is done.
//!
//! Long transfers are cut to what the device takes at once. What it does not have (Compare, Write Zeroes, Verify) is done with reads
//! and writes; what it answers goes to the host as it is.

use std::sync::Arc;

use nvme_proto::wire::identify::flags::Oncs;
use nvme_proto::wire::nvm::{DatasetManagement, RwDword12};
use nvme_proto::wire::{IoOpcode, Opcode, Status};
use nvmf_io::sys::nvme::NvmeCommand;
use nvmf_io::{BigRing, Buf, Errno, Interest, Ring, RingError, Token, Wait};

use super::command::BackendOp;
use super::device::Device;
use super::status::{Direction, status_of};
use super::work::{Lent, Next, PIECE_BYTES, Stage, Task, Work};

/// Entries of the device's ring; more commands than that queue up behind.
const RING_ENTRIES: u32 = 256;

/// A local NVMe namespace as one shard uses it.
#[derive(Debug)]
pub struct Passthrough {
    device: Arc<Device>,
    ring: BigRing,
    wake: Token,
    /// Commands were queued, or the device's ring said that some are done.
    due: bool,
}

impl Passthrough {
    /// Makes the device usable; `ring` completes `wake` whenever there is something to reap.
    pub(super) fn new(
        device: Arc<Device>,
        ring: &mut Ring,
        wake: Token,
    ) -> Result<Self, RingError> {
        let big = BigRing::new(RING_ENTRIES)?;
        ring.poll_multishot(&big, Interest::Readable, wake);
        Ok(Self {
            device,
            ring: big,
            wake,
            due: false,
        })
    }

    /// Takes it out of `ring` again.
    pub(super) fn detach(self, ring: &mut Ring) {
        ring.cancel(self.wake);
    }

    /// The shard's ring completed the wake token. `more`: it will again.
    pub fn woken(&mut self, ring: &mut Ring, more: bool) {
        self.due = true;
        if !more {
            ring.poll_multishot(&self.ring, Interest::Readable, self.wake);
        }
    }

    /// Submits what was queued and takes what is done: (token, status or error).
    pub fn reap(&mut self, done: &mut Vec<(Token, Result<u32, Errno>)>) {
        if !std::mem::take(&mut self.due) {
            return;
        }
        if let Err(error) = self.ring.wait(Wait::Poll) {
            tracing::error!(%error, "the ring of an NVMe device failed");
        }
        // All of them: the poll tells only of those that come later.
        while let Some(command) = self.ring.next() {
            done.push((command.token, command.result));
        }
    }

    /// Queues the next command to the device.
    pub(super) fn submit(&mut self, task: &mut Task<'_>, lent: &mut Lent) -> Next {
        let done = task.work.done;
        let has = |command: Oncs| self.device.commands.contains(command);
        let (command, data) = match (task.work.op, task.data) {
            (BackendOp::Nothing, _) => return Next::Done(Status::SUCCESS),
            (BackendOp::Flush, _) => (self.device.command(IoOpcode::FLUSH.0), None),
            (
                BackendOp::Read {
                    offset_bytes,
                    len_bytes,
                    fua,
                },
                Some(data),
            ) => {
                let flags = RwDword12::default().with_fua(fua);
                self.piece(IoOpcode::READ, offset_bytes, len_bytes, done, flags, data)
            }
            (
                BackendOp::Write {
                    offset_bytes,
                    len_bytes,
                    fua,
                },
                Some(data),
            ) => {
                let flags = RwDword12::default().with_fua(fua);
                self.piece(IoOpcode::WRITE, offset_bytes, len_bytes, done, flags, data)
            }
            (
                BackendOp::Compare {
                    offset_bytes,
                    len_bytes,
                },
                Some(data),
            ) if has(Oncs::COMPARE) => self.piece(
                IoOpcode::COMPARE,
                offset_bytes,
                len_bytes,
                done,
                RwDword12::default(),
                data,
            ),
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
                lent.comparing = true;
                self.scratch(
                    IoOpcode::READ,
                    offset_bytes,
                    len_bytes.into(),
                    done,
                    false,
                    &lent.compare,
                )
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
                if task.work.stage == Stage::Main && has(Oncs::WRITE_ZEROES) {
                    let flags = RwDword12::default().with_fua(fua).with_deac(deallocate);
                    (
                        self.blocks(IoOpcode::WRITE_ZEROES, offset_bytes, len_bytes, flags),
                        None,
                    )
                } else {
                    task.work.stage = Stage::ByWriting;
                    self.scratch(
                        IoOpcode::WRITE,
                        offset_bytes,
                        len_bytes,
                        done,
                        fua,
                        &lent.zeroes,
                    )
                }
            }
            (
                BackendOp::Verify {
                    offset_bytes,
                    len_bytes,
                },
                _,
            ) if has(Oncs::VERIFY) => (
                self.blocks(
                    IoOpcode::VERIFY,
                    offset_bytes,
                    len_bytes,
                    RwDword12::default(),
                ),
                None,
            ),
            (
                BackendOp::Verify {
                    offset_bytes,
                    len_bytes,
                },
                _,
            ) => self.scratch(
                IoOpcode::READ,
                offset_bytes,
                len_bytes,
                done,
                false,
                &lent.sink,
            ),
            // Advice that cannot be followed is not an error.
            (BackendOp::Deallocate { .. }, _) if !has(Oncs::DATASET_MANAGEMENT) => {
                return Next::Done(Status::SUCCESS);
            }
            (BackendOp::Deallocate { ranges }, Some(data)) => {
                let deallocate = DatasetManagement::deallocate(ranges);
                let mut command = self.device.command(IoOpcode::DATASET_MANAGEMENT.0);
                command.cdw10_15[0] = u32::from(ranges) - 1;
                command.cdw10_15[1] = deallocate.attributes.0;
                // The host's block numbers are the device's: the whole namespace is served, in its blocks.
                (command, Some((data, 0..deallocate.data_bytes())))
            }
            (op, None) => {
                tracing::error!(
                    ?op,
                    "a command that moves data reached its backing without a buffer"
                );
                return Next::Done(Status::INTERNAL_ERROR);
            }
        };
        self.ring.nvme(&self.device.fd, &command, data, task.token);
        self.due = true;
        Next::InFlight
    }

    /// A command on blocks.
    fn blocks(
        &self,
        opcode: Opcode,
        offset_bytes: u64,
        len_bytes: u64,
        flags: RwDword12,
    ) -> NvmeCommand {
        let mut command = self.device.command(opcode.0);
        let slba = offset_bytes >> self.device.block_shift;
        let blocks = (len_bytes >> self.device.block_shift) as u32;
        command.cdw10_15[0] = slba as u32;
        command.cdw10_15[1] = (slba >> 32) as u32;
        command.cdw10_15[2] = flags.0 | (blocks - 1);
        command
    }

    /// The next piece of a transfer between the host's buffer and the device.
    fn piece<'a>(
        &self,
        opcode: Opcode,
        offset_bytes: u64,
        len_bytes: u32,
        done: u64,
        flags: RwDword12,
        data: &'a Buf,
    ) -> (NvmeCommand, Option<(&'a Buf, std::ops::Range<u32>)>) {
        let start = done as u32;
        let len = (len_bytes - start).min(self.device.piece_bytes);
        (
            self.blocks(opcode, offset_bytes + done, len.into(), flags),
            Some((data, start..start + len)),
        )
    }

    /// The next piece of a transfer between a lent buffer, used from its start, and the device.
    fn scratch<'a>(
        &self,
        opcode: Opcode,
        offset_bytes: u64,
        len_bytes: u64,
        done: u64,
        fua: bool,
        buf: &'a Buf,
    ) -> (NvmeCommand, Option<(&'a Buf, std::ops::Range<u32>)>) {
        let len = self.next_len(len_bytes, done);
        let flags = RwDword12::default().with_fua(fua);
        (
            self.blocks(opcode, offset_bytes + done, len, flags),
            Some((buf, 0..len as u32)),
        )
    }

    fn next_len(&self, len_bytes: u64, done: u64) -> u64 {
        (len_bytes - done).min(self.device.piece_bytes.min(PIECE_BYTES).into())
    }

    /// Takes the outcome of the command that the last [`Passthrough::submit`] queued.
    pub(super) fn advance(
        &mut self,
        task: &mut Task<'_>,
        lent: &mut Lent,
        result: Result<u32, Errno>,
    ) -> Next {
        let Work {
            op, stage, done, ..
        } = *task.work;
        let emulated_compare = matches!(op, BackendOp::Compare { .. })
            && !self.device.commands.contains(Oncs::COMPARE);
        if emulated_compare {
            lent.comparing = false;
        }
        let direction = match op {
            BackendOp::Read { .. } | BackendOp::Compare { .. } | BackendOp::Verify { .. } => {
                Direction::Read
            }
            _ => Direction::Write,
        };
        let status = match result {
            Ok(raw) => device_status(raw),
            Err(errno) => status_of(errno, direction),
        };
        if matches!(op, BackendOp::WriteZeroes { .. })
            && stage == Stage::Main
            && status.is(Status::INVALID_FIELD)
        {
            // Longer than the device zeroes at once.
            task.work.stage = Stage::ByWriting;
            return Next::Again;
        }
        if !status.is_success() {
            return Next::Done(status);
        }
        let (total, moved) = match op {
            BackendOp::Read { len_bytes, .. } | BackendOp::Write { len_bytes, .. } => {
                (len_bytes.into(), true)
            }
            BackendOp::Compare { len_bytes, .. } => (len_bytes.into(), true),
            BackendOp::WriteZeroes { len_bytes, .. } => (len_bytes, stage == Stage::ByWriting),
            BackendOp::Verify { len_bytes, .. } => {
                (len_bytes, !self.device.commands.contains(Oncs::VERIFY))
            }
            _ => (0, false),
        };
        if !moved {
            return Next::Done(Status::SUCCESS);
        }
        let len = self.next_len(total, done);
        if emulated_compare
            && let Some(data) = task.data
            && !data.eq_range(done as u32..(done + len) as u32, &lent.compare, 0)
        {
            return Next::Done(Status::COMPARE_FAILURE.dnr());
        }
        task.work.done += len;
        if task.work.done == total {
            Next::Done(Status::SUCCESS)
        } else {
            Next::Again
        }
    }
}

/// What the device answered, for the host: More and the retry delay are about the device's own logs and settings.
fn device_status(raw: u32) -> Status {
    let status = Status(raw as u16);
    let plain = Status::new(status.sct(), status.sc());
    if status.is_dnr() { plain.dnr() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_device_answers_reaches_the_host() {
        assert_eq!(device_status(0), Status::SUCCESS);
        assert_eq!(device_status(0x4281), Status::UNRECOVERED_READ_ERROR.dnr());
        assert_eq!(
            device_status(0x3a80),
            Status::WRITE_FAULT,
            "without More and retry delay"
        );
    }
}
