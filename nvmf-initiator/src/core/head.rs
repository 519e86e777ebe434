//! [`NamespaceHead`]: one namespace as its users on this shard see it.
//!
//! The head outlives associations. It holds requests that are not issued yet (`ready`) and parts of requests whose
//! command came back without being done (`retry`): by a loss of the connection, or refused with a status that
//! allows trying again. Parts of `retry` go first: they are the older ones.

use std::collections::VecDeque;
use std::sync::Arc;

use nvme_proto::wire::Status;
use nvme_proto::wire::nvm::BlockRange;

use super::message::{ControllerKey, HeadKey, HeadState};
use super::namespace::{Limits, NamespaceInfo};
use super::queue::Part;
use super::request::{IoError, Op, Request};

/// A command that a controller refuses without Do Not Retry is tried this often again, as the Linux host does.
const MAX_RETRIES: u8 = 5;
/// Pause before each of the retries: a controller that is not ready should find some time to become so.
const RETRY_DELAYS_MS: [u32; MAX_RETRIES as usize] = [0, 10, 50, 250, 1000];

/// A part that waits to be sent again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub part: Part,
    /// Not before this time (milliseconds of the shard's clock, which may wrap).
    pub not_before_ms: u32,
}

pub(crate) struct NamespaceHead {
    pub key: HeadKey,
    pub controller: ControllerKey,
    pub info: Arc<NamespaceInfo>,
    pub state: HeadState,
    /// Requests with parts that were never issued, oldest first.
    pub ready: VecDeque<u32>,
    pub retry: VecDeque<Retry>,
    /// Whether the head stands in its controller's line of heads that wait for room in a queue.
    pub in_line: bool,
    /// Requests of this head that are not answered.
    pub open: u32,
    /// No more requests; the head goes when the last is answered.
    pub closing: bool,
}

impl NamespaceHead {
    pub fn new(
        key: HeadKey,
        controller: ControllerKey,
        info: Arc<NamespaceInfo>,
        state: HeadState,
        capacity: usize,
    ) -> Self {
        NamespaceHead {
            key,
            controller,
            info,
            state,
            ready: VecDeque::with_capacity(capacity),
            retry: VecDeque::with_capacity(capacity),
            in_line: false,
            open: 0,
            closing: false,
        }
    }

    /// Whether something waits for room in a queue or for its time.
    pub fn has_backlog(&self) -> bool {
        !self.ready.is_empty() || !self.retry.is_empty()
    }

    /// Refuses what the controller could only refuse.
    pub fn check(&self, request: &Request) -> Result<(), IoError> {
        let info = &*self.info;
        if self.closing {
            return Err(IoError::Closed);
        }
        if let HeadState::Failing(error) = self.state {
            return Err(error);
        }
        if request.op == Op::Flush {
            return Ok(());
        }
        if max_blocks(request.op, &info.limits) == 0
            || (request.op == Op::Compare && !info.limits.compare)
        {
            return Err(IoError::Unsupported);
        }
        if info.read_only && request.op.is_write() {
            return Err(IoError::ReadOnly);
        }
        let end = request.slba.0.checked_add(request.blocks);
        if request.blocks == 0 || end.is_none_or(|end| end > info.blocks) {
            return Err(IoError::OutOfRange);
        }
        if request.op.has_data() {
            let need = request.blocks.checked_mul(info.block_bytes.into());
            let have = request
                .buf
                .as_ref()
                .map_or(0, |buf| buf.len().saturating_sub(request.buf_offset_bytes));
            if need.is_none_or(|need| need > have.into()) {
                return Err(IoError::BadBuffer);
            }
        }
        Ok(())
    }

    /// How many of `left` blocks the next command of a request takes.
    pub fn next_part_blocks(&self, op: Op, left: u64) -> u32 {
        // A limit of zero appears only when the namespace changed under an accepted request: then the
        // controller shall say no to one block rather than we wait for ever.
        let most = max_blocks(op, &self.info.limits).max(1);
        u32::try_from(left).map_or(most, |left| left.min(most))
    }
}

/// Blocks that one command of this kind takes.
fn max_blocks(op: Op, limits: &Limits) -> u32 {
    match op {
        Op::Read | Op::Write { .. } | Op::Compare => {
            limits.max_transfer_blocks.min(BlockRange::MAX_BLOCKS)
        }
        Op::WriteZeroes { .. } => limits.max_write_zeroes_blocks.min(BlockRange::MAX_BLOCKS),
        Op::Discard => limits.max_discard_blocks,
        Op::Flush => u32::MAX,
    }
}

/// What a completed command means for its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// Once more, after so many milliseconds.
    Retry(u32),
    Failed(IoError),
}

/// Judges a status of a part that was refused `retries` times before.
pub(crate) fn judge(status: Status, retries: u8) -> Verdict {
    if status.is_success() {
        Verdict::Done
    } else if status.is_dnr() || status.is(Status::COMPARE_FAILURE) || retries >= MAX_RETRIES {
        Verdict::Failed(IoError::Status(status))
    } else {
        Verdict::Retry(RETRY_DELAYS_MS[usize::from(retries)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::namespace::NamespaceIdentity;
    use nvme_proto::wire::{Lba, Nsid};

    fn head(limits: Limits) -> NamespaceHead {
        let info = NamespaceInfo {
            nsid: Nsid(1),
            identity: NamespaceIdentity::default(),
            block_bytes: 512,
            blocks: 1000,
            physical_block_bytes: 512,
            read_only: false,
            volatile_cache: true,
            limits,
        };
        NamespaceHead::new(
            HeadKey::unique(),
            ControllerKey::unique(),
            Arc::new(info),
            HeadState::Live,
            4,
        )
    }

    const LIMITS: Limits = Limits {
        max_transfer_blocks: 100_000,
        max_write_zeroes_blocks: 0,
        max_discard_blocks: u32::MAX,
        compare: false,
    };

    fn request(op: Op, slba: u64, blocks: u64) -> Request {
        Request {
            op,
            slba: Lba(slba),
            blocks,
            buf: None,
            buf_offset_bytes: 0,
            tag: 0,
        }
    }

    #[test]
    fn refuses_what_the_controller_could_only_refuse() {
        let mut head = head(LIMITS);
        assert_eq!(head.check(&request(Op::Flush, 0, 0)), Ok(()));
        assert_eq!(head.check(&request(Op::Discard, 0, 1000)), Ok(()));
        assert_eq!(
            head.check(&request(Op::Discard, 1, 1000)),
            Err(IoError::OutOfRange)
        );
        assert_eq!(
            head.check(&request(Op::Discard, u64::MAX, 2)),
            Err(IoError::OutOfRange)
        );
        assert_eq!(
            head.check(&request(Op::Discard, 0, 0)),
            Err(IoError::OutOfRange)
        );
        assert_eq!(
            head.check(&request(Op::Read, 0, 1)),
            Err(IoError::BadBuffer)
        );
        assert_eq!(
            head.check(&request(Op::Compare, 0, 1)),
            Err(IoError::Unsupported)
        );
        let zeroes = request(Op::WriteZeroes { deallocate: false }, 0, 1);
        assert_eq!(head.check(&zeroes), Err(IoError::Unsupported));
        Arc::get_mut(&mut head.info).unwrap().read_only = true;
        assert_eq!(
            head.check(&request(Op::Discard, 0, 1)),
            Err(IoError::ReadOnly)
        );
        head.state = HeadState::Failing(IoError::Lost);
        assert_eq!(head.check(&request(Op::Flush, 0, 0)), Err(IoError::Lost));
    }

    #[test]
    fn parts_fit_one_command() {
        let head = head(LIMITS);
        assert_eq!(
            head.next_part_blocks(Op::Read, 70_000),
            BlockRange::MAX_BLOCKS
        );
        assert_eq!(head.next_part_blocks(Op::Read, 5), 5);
        assert_eq!(head.next_part_blocks(Op::Discard, 1 << 40), u32::MAX);
    }

    #[test]
    fn refusals_are_retried_a_bounded_number_of_times() {
        let status = Status::NAMESPACE_NOT_READY;
        for retries in 0..MAX_RETRIES {
            assert!(matches!(judge(status, retries), Verdict::Retry(_)));
        }
        assert_eq!(
            judge(status, MAX_RETRIES),
            Verdict::Failed(IoError::Status(status))
        );
        assert_eq!(
            judge(status.dnr(), 0),
            Verdict::Failed(IoError::Status(status.dnr()))
        );
        assert_eq!(judge(Status::SUCCESS, 3), Verdict::Done);
        // A difference is an answer, not a failure to find one.
        let differs = Status::COMPARE_FAILURE;
        assert_eq!(judge(differs, 0), Verdict::Failed(IoError::Status(differs)));
    }
}
