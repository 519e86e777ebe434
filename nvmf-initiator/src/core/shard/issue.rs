//! From requests to commands, and from their completions to answers.
//!
//! A request's parts go to queues as long as there is room. Heads that have more stand in their controller's line and take turns, one
//! part each; room that a completion makes is used at once. A part that comes back undone waits at its head.

use nvme_proto::wire::Lba;
use nvme_proto::wire::nvm::DsmRange;

use super::{Completed, Shard, ShardController};
use crate::core::head::{Retry, Verdict, judge};
use crate::core::message::{ControllerKey, HeadState};
use crate::core::namespace::NamespaceInfo;
use crate::core::queue::{Data, Finished, IoQueue, Part};
use crate::core::request::{Done, IoError, Op, command};

impl Shard {
    /// Issues what is left of a request as far as there is room. True when nothing is left.
    pub(super) fn issue_rest(&mut self, opened: u32) -> bool {
        loop {
            let open = self.requests.get(opened);
            if !open.has_rest() {
                // The unit that stood for the blocks not issued.
                self.finish(opened, None);
                return true;
            }
            let head = self.heads[open.head]
                .as_ref()
                .expect("the head of an open request");
            let blocks = match open.op {
                Op::Flush => 0,
                op => head.next_part_blocks(op, open.blocks - open.issued),
            };
            let part = Part {
                request: opened,
                first: open.issued,
                blocks,
                retries: 0,
            };
            if !self.issue(part) {
                return false;
            }
            let open = self.requests.get_mut(opened);
            open.issued += u64::from(blocks.max(1));
            open.pending += 1;
        }
    }

    /// Gives a part to a queue; false when none has room.
    fn issue(&mut self, part: Part) -> bool {
        let head = self.requests.get(part.request).head;
        let controller = self.heads[head]
            .as_ref()
            .expect("the head of an open request")
            .controller;
        let Some(index) = self.queue_with_room(controller) else {
            return false;
        };
        let open = self.requests.get(part.request);
        let head = self.heads[head]
            .as_ref()
            .expect("the head of an open request");
        let slba = Lba(open.slba + part.first);
        let offset = |info: &NamespaceInfo| {
            // Both fit: the buffer holds the whole request, and its length has 32 bits.
            open.buf_offset + (part.first * u64::from(info.block_bytes)) as u32
        };
        let data = match (open.op, &open.buf) {
            (Op::Read, Some(buf)) => Data::In(
                buf.clone(),
                offset(&head.info),
                part.blocks * head.info.block_bytes,
            ),
            (Op::Write { .. } | Op::Compare, Some(buf)) => Data::Out(
                buf.clone(),
                offset(&head.info),
                part.blocks * head.info.block_bytes,
            ),
            _ => Data::None,
        };
        let sqe = command(open.op, head.info.nsid, slba, part.blocks);
        self.last_used = index;
        let queue = self.queues[index].as_mut().expect("a queue with room");
        let taken = match open.op {
            Op::Discard => {
                let range = DsmRange::new(slba, part.blocks);
                queue.submit_range(&sqe, range, part, self.now_ms)
            }
            _ => queue.submit(&sqe, data, part, self.now_ms),
        };
        // One that broke says so when it is flushed.
        self.mark_dirty(index);
        taken
    }

    fn queue_with_room(&mut self, key: ControllerKey) -> Option<usize> {
        let ShardController {
            queues, rotation, ..
        } = self.controllers.get_mut(&key)?;
        let has_room = |at: usize| {
            self.queues[queues[at]]
                .as_ref()
                .is_some_and(IoQueue::has_room)
        };
        let at = rotation.pick(queues.len(), self.flushes, self.requests.open(), has_room)?;
        Some(queues[at])
    }

    pub(super) fn stand_in_line(&mut self, index: usize) {
        let Some(head) = &mut self.heads[index] else {
            return;
        };
        if head.in_line || head.state != HeadState::Live || !head.has_backlog() {
            return;
        }
        if let Some(controller) = self.controllers.get_mut(&head.controller) {
            head.in_line = true;
            controller.line.push_back(index);
        }
    }

    /// Issues for the heads that wait, one part of each in turn, while there is room.
    pub(super) fn pump(&mut self, key: ControllerKey) {
        loop {
            let Some(controller) = self.controllers.get_mut(&key) else {
                return;
            };
            let Some(index) = controller.line.pop_front() else {
                return;
            };
            let Some(head) = &mut self.heads[index] else {
                continue;
            };
            head.in_line = false;
            if head.state != HeadState::Live {
                continue;
            }
            if !self.issue_one(index) {
                return;
            }
            self.stand_in_line_if_due(index);
        }
    }

    /// Issues the oldest waiting part of a head. False when no queue has room: the head stands in line again, in front.
    fn issue_one(&mut self, index: usize) -> bool {
        let now_ms = self.now_ms;
        let head = self.heads[index].as_mut().expect("a head in line");
        if let Some(at) = head.retry.iter().position(|retry| is_due(retry, now_ms)) {
            let retry = head.retry[at];
            if !self.issue(retry.part) {
                self.first_in_line(index);
                return false;
            }
            let head = self.heads[index].as_mut().expect("a head in line");
            head.retry.remove(at);
            self.delayed -= 1;
            return true;
        }
        let Some(&opened) = head.ready.front() else {
            return true;
        };
        let all = self.issue_rest(opened);
        let Some(head) = self.heads[index].as_mut() else {
            return true;
        };
        if all {
            head.ready.pop_front();
        } else {
            self.first_in_line(index);
        }
        all
    }

    fn first_in_line(&mut self, index: usize) {
        let head = self.heads[index].as_mut().expect("a head in line");
        if let Some(controller) = self.controllers.get_mut(&head.controller) {
            head.in_line = true;
            controller.line.push_front(index);
        }
    }

    /// In line again, unless all that waits is waiting for its time.
    pub(super) fn stand_in_line_if_due(&mut self, index: usize) {
        let now_ms = self.now_ms;
        let due = self.heads[index].as_ref().is_some_and(|head| {
            !head.ready.is_empty() || head.retry.iter().any(|retry| is_due(retry, now_ms))
        });
        if due {
            self.stand_in_line(index);
        }
    }

    /// Deals with what a queue finished, then uses the room.
    pub(super) fn settle(&mut self, index: usize) {
        if self.finished.is_empty() {
            return;
        }
        let mut finished = std::mem::take(&mut self.finished);
        for Finished { part, status } in finished.drain(..) {
            match judge(status, part.retries) {
                Verdict::Done => self.finish(part.request, None),
                Verdict::Failed(error) => self.finish(part.request, Some(error)),
                Verdict::Retry(after_ms) => {
                    let part = Part {
                        retries: part.retries + 1,
                        ..part
                    };
                    self.try_again(part, self.now_ms.wrapping_add(after_ms));
                }
            }
        }
        self.finished = finished;
        if let Some(queue) = &self.queues[index] {
            let controller = queue.controller;
            self.pump(controller);
        }
    }

    /// Puts a part back to its head, or fails it where the head fails.
    pub(super) fn try_again(&mut self, part: Part, not_before_ms: u32) {
        let index = self.requests.get(part.request).head;
        let head = self.heads[index]
            .as_mut()
            .expect("the head of an open request");
        let failing = match head.state {
            HeadState::Failing(error) => Some(error),
            _ if head.closing => Some(IoError::Closed),
            _ => None,
        };
        if failing.is_some() {
            return self.finish(part.request, failing);
        }
        head.retry.push_back(Retry {
            part,
            not_before_ms,
        });
        self.delayed += 1;
        self.stand_in_line_if_due(index);
    }

    /// One of what a request waits for is over.
    pub(super) fn finish(&mut self, opened: u32, error: Option<IoError>) {
        let Some(open) = self.requests.finish_one(opened, error) else {
            return;
        };
        let head = self.heads[open.head]
            .as_mut()
            .expect("the head of an open request");
        head.open -= 1;
        let result = open.error.map_or(Ok(()), Err);
        self.completed.push_back(Completed {
            head: head.key,
            done: Done {
                tag: open.tag,
                result,
            },
        });
        self.forget_if_closed(open.head);
    }

    pub(super) fn forget_if_closed(&mut self, index: usize) {
        if self.heads[index]
            .as_ref()
            .is_some_and(|head| head.closing && head.open == 0)
        {
            self.heads[index] = None;
        }
    }
}

fn is_due(retry: &Retry, now_ms: u32) -> bool {
    // The clock wraps: what lies less than half of its range ahead is the future.
    now_ms.wrapping_sub(retry.not_before_ms) < u32::MAX / 2
}
