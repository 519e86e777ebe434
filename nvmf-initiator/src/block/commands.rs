//! Open commands of a front end: splits what the kernel asks for into requests that the backing takes, and gathers the
//! answers.
//!
//! Invariants: a command has at most [`MAX_PARTS_IN_FLIGHT`] requests at the backing; after the first error no further
//! part is sent; it is finished exactly once, when no part is open. Slots are reused; a request's tag is its slot.

use nvmf_io::Buf;
use rustix::io::Errno;

use super::{BlockDone, BlockLimits, BlockOp, BlockRequest};

/// Enough to keep a fast target busy with the parts of one huge discard, few enough not to starve other commands.
const MAX_PARTS_IN_FLIGHT: u32 = 16;

/// One operation as the kernel or a client asked for it.
#[derive(Debug)]
pub(super) struct Operation {
    pub op: BlockOp,
    pub offset_bytes: u64,
    pub len_bytes: u64,
    /// The buffer, and where in it the payload starts.
    pub payload: Option<(Buf, u32)>,
}

/// A command all of whose parts are answered.
pub(super) struct Finished<R> {
    /// What the front end gave with the command.
    pub reply: R,
    /// The payload, as it was given.
    pub payload: Option<(Buf, u32)>,
    /// The first error of the parts, if one failed.
    pub result: Result<(), Errno>,
}

struct Command<R> {
    reply: R,
    operation: Operation,
    sent_bytes: u64,
    max_part_bytes: u32,
    open_parts: u32,
    result: Result<(), Errno>,
}

/// The table of open commands; `R` is what the front end needs to answer one.
pub(super) struct Commands<R> {
    slots: Vec<Option<Command<R>>>,
    free: Vec<u32>,
    limits: BlockLimits,
}

impl<R> Commands<R> {
    /// Room for `capacity` commands is made here; the table grows if the kernel sends more.
    pub fn new(limits: BlockLimits, capacity: usize) -> Self {
        Commands {
            slots: (0..capacity).map(|_| None).collect(),
            free: (0..capacity as u32).rev().collect(),
            limits,
        }
    }

    /// Opens a command and sends its first parts. An operation that the backing does not support, and one of length
    /// zero that is not a flush, comes back finished.
    pub fn open(
        &mut self,
        reply: R,
        operation: Operation,
        out: &mut Vec<BlockRequest>,
    ) -> Option<Finished<R>> {
        let max_part_bytes = self.limits.max_bytes(operation.op);
        if max_part_bytes == 0 {
            return Some(Finished {
                reply,
                payload: operation.payload,
                result: Err(Errno::OPNOTSUPP),
            });
        }
        if operation.len_bytes == 0 && operation.op != BlockOp::Flush {
            return Some(Finished {
                reply,
                payload: operation.payload,
                result: Ok(()),
            });
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        let command = self.slots[slot as usize].insert(Command {
            reply,
            operation,
            sent_bytes: 0,
            max_part_bytes,
            open_parts: 0,
            result: Ok(()),
        });
        if command.operation.op == BlockOp::Flush {
            command.send_part(slot, out);
        }
        command.send_parts(slot, out);
        None
    }

    /// Takes the answer to one part. An answer that nobody waits for is ignored.
    pub fn done(&mut self, done: BlockDone, out: &mut Vec<BlockRequest>) -> Option<Finished<R>> {
        let slot = u32::try_from(done.tag).ok()?;
        let entry = self.slots.get_mut(slot as usize)?;
        let command = entry.as_mut()?;
        command.open_parts -= 1;
        if command.result.is_ok() {
            command.result = done.result;
        }
        command.send_parts(slot, out);
        if command.open_parts > 0 {
            return None;
        }
        let command = entry.take()?;
        self.free.push(slot);
        Some(Finished {
            reply: command.reply,
            payload: command.operation.payload,
            result: command.result,
        })
    }

    /// How many commands are open.
    pub fn open_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl<R> Command<R> {
    fn send_parts(&mut self, slot: u32, out: &mut Vec<BlockRequest>) {
        while self.result.is_ok()
            && self.open_parts < MAX_PARTS_IN_FLIGHT
            && self.sent_bytes < self.operation.len_bytes
        {
            self.send_part(slot, out);
        }
    }

    fn send_part(&mut self, slot: u32, out: &mut Vec<BlockRequest>) {
        let len_bytes =
            (self.operation.len_bytes - self.sent_bytes).min(self.max_part_bytes.into()) as u32;
        let (buf, start_bytes) = match &self.operation.payload {
            // An operation with a payload is no longer than a buffer.
            Some((buf, start_bytes)) => (Some(buf.clone()), start_bytes + self.sent_bytes as u32),
            None => (None, 0),
        };
        out.push(BlockRequest {
            op: self.operation.op,
            offset_bytes: self.operation.offset_bytes + self.sent_bytes,
            len_bytes,
            buf,
            buf_offset_bytes: start_bytes,
            tag: slot.into(),
        });
        self.sent_bytes += u64::from(len_bytes);
        self.open_parts += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BlockLimits = BlockLimits {
        max_transfer_bytes: 4096,
        max_discard_bytes: 1 << 20,
        max_write_zeroes_bytes: 0,
    };

    fn operation(op: BlockOp, offset_bytes: u64, len_bytes: u64) -> Operation {
        Operation {
            op,
            offset_bytes,
            len_bytes,
            payload: None,
        }
    }

    fn answer(tag: u64, result: Result<(), Errno>) -> BlockDone {
        BlockDone { tag, result }
    }

    #[test]
    fn parts_cover_the_operation_without_gap_or_overlap() {
        let mut commands = Commands::new(LIMITS, 1);
        let mut out = Vec::new();
        assert!(
            commands
                .open("reply", operation(BlockOp::Read, 512, 10_240), &mut out)
                .is_none()
        );
        let parts: Vec<_> = out.iter().map(|r| (r.offset_bytes, r.len_bytes)).collect();
        assert_eq!(parts, [(512, 4096), (4608, 4096), (8704, 2048)]);
        let tag = out[0].tag;
        assert!(commands.done(answer(tag, Ok(())), &mut out).is_none());
        assert!(commands.done(answer(tag, Ok(())), &mut out).is_none());
        let finished = commands.done(answer(tag, Ok(())), &mut out).unwrap();
        assert_eq!((finished.reply, finished.result), ("reply", Ok(())));
        assert_eq!(commands.open_count(), 0);
    }

    #[test]
    fn a_huge_discard_goes_out_in_windows_and_stops_at_the_first_error() {
        let mut commands = Commands::new(LIMITS, 1);
        let mut out = Vec::new();
        assert!(
            commands
                .open((), operation(BlockOp::Discard, 0, 1 << 30), &mut out)
                .is_none()
        );
        assert_eq!(out.len(), MAX_PARTS_IN_FLIGHT as usize);
        let tag = out[0].tag;
        assert!(commands.done(answer(tag, Ok(())), &mut out).is_none());
        assert_eq!(
            out.len(),
            MAX_PARTS_IN_FLIGHT as usize + 1,
            "an answer makes room for the next part"
        );
        assert!(
            commands
                .done(answer(tag, Err(Errno::NOSPC)), &mut out)
                .is_none()
        );
        for _ in 0..MAX_PARTS_IN_FLIGHT - 2 {
            assert!(commands.done(answer(tag, Ok(())), &mut out).is_none());
        }
        let finished = commands
            .done(answer(tag, Err(Errno::IO)), &mut out)
            .unwrap();
        assert_eq!(
            finished.result,
            Err(Errno::NOSPC),
            "the first error is the one that is told"
        );
        assert_eq!(out.len(), MAX_PARTS_IN_FLIGHT as usize + 1);
    }

    #[test]
    fn a_flush_is_one_request_and_an_empty_operation_none() {
        let mut commands = Commands::new(LIMITS, 1);
        let mut out = Vec::new();
        assert!(
            commands
                .open((), operation(BlockOp::Flush, 0, 0), &mut out)
                .is_none()
        );
        assert_eq!((out.len(), out[0].op), (1, BlockOp::Flush));
        assert!(
            commands
                .done(answer(out[0].tag, Ok(())), &mut out)
                .is_some()
        );
        let finished = commands
            .open((), operation(BlockOp::Discard, 0, 0), &mut out)
            .unwrap();
        assert_eq!((finished.result, out.len()), (Ok(()), 1));
    }

    #[test]
    fn what_the_backing_cannot_do_is_refused() {
        let mut commands = Commands::new(LIMITS, 1);
        let mut out = Vec::new();
        let zeroes = operation(BlockOp::WriteZeroes { unmap: true }, 0, 4096);
        assert_eq!(
            commands.open((), zeroes, &mut out).unwrap().result,
            Err(Errno::OPNOTSUPP)
        );
        assert!(out.is_empty());
    }

    #[test]
    fn more_commands_than_planned_for_and_stray_answers_are_borne() {
        let mut commands = Commands::new(LIMITS, 1);
        let mut out = Vec::new();
        for n in 0..3 {
            assert!(
                commands
                    .open(n, operation(BlockOp::Read, 0, 512), &mut out)
                    .is_none()
            );
        }
        assert_eq!(commands.open_count(), 3);
        assert!(commands.done(answer(77, Ok(())), &mut out).is_none());
        assert!(commands.done(answer(u64::MAX, Ok(())), &mut out).is_none());
        for request in std::mem::take(&mut out) {
            let finished = commands.done(answer(request.tag, Ok(())), &mut out);
            assert!(finished.is_some());
        }
        assert_eq!(commands.open_count(), 0);
    }
}
