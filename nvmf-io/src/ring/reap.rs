//! Taking completions, and going on behind the caller's back with what is not finished.

use io_uring::cqueue;
use rustix::io::Errno;

use super::ops::{Receive, Step, Work};
use super::{Completion, Ring, Token};

impl Ring {
    /// The next completion; call it until there is none, then [`Ring::wait`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the ring is no iterator: completions go on after `None`"
    )]
    pub fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.local.pop_front() {
                return Some(completion);
            }
            let entry = self.uring.completion().next()?;
            if let Some(completion) = self.reap(&entry) {
                return Some(completion);
            }
        }
    }

    /// Whether [`Ring::next`] has one.
    pub fn has_completions(&mut self) -> bool {
        !self.local.is_empty() || !self.uring.completion().is_empty()
    }

    fn reap(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let flags = entry.flags();
        let result = match u32::try_from(entry.result()) {
            Ok(count) => Ok(count),
            Err(_) => Err(Errno::from_raw_os_error(-entry.result())),
        };
        let index = self.ops.find(entry.user_data())?;
        let op = self.ops.get_mut(index);
        let token = op.token;
        match op.work() {
            Work::Receive(_) => self.reap_receive(index, token, result, flags),
            Work::ReceiveInto { range, done, .. } => {
                let len = range.end - range.start;
                match result {
                    Ok(count) if count > 0 && *done + count < len => {
                        *done += count;
                        self.arm_receive_into(index);
                        None
                    }
                    Ok(count) => {
                        let total = *done + count;
                        self.finish(index, token, Ok(total))
                    }
                    Err(errno) => self.finish(index, token, Err(errno)),
                }
            }
            Work::Send { batch, done, .. } => {
                let batch = batch.as_mut();
                match result {
                    Ok(count) if count > 0 && (*done + count) < batch.bytes() as u32 => {
                        *done += count;
                        batch.advance(count as usize);
                        self.arm_send(index);
                        None
                    }
                    Ok(count) => {
                        let total = *done + count;
                        self.finish(index, token, Ok(total))
                    }
                    Err(errno) => self.finish(index, token, Err(errno)),
                }
            }
            Work::Message(_) => {
                if self.continue_message(index, result) {
                    return None;
                }
                self.finish(index, token, result)
            }
            Work::Poll {
                multishot: true, ..
            } if result.is_ok() => {
                // The kernel ends it where its queues were full, and after one wake if what is polled is a ring.
                if !cqueue::more(flags) {
                    self.arm_poll(index);
                }
                Some(Completion {
                    more: true,
                    ..Completion::bare(token, result)
                })
            }
            _ if cqueue::more(flags) => Some(Completion {
                more: true,
                ..Completion::bare(token, result)
            }),
            _ => self.finish(index, token, result),
        }
    }

    fn reap_receive(
        &mut self,
        index: u32,
        token: Token,
        result: Result<u32, Errno>,
        flags: u32,
    ) -> Option<Completion> {
        let Work::Receive(Receive {
            multishot,
            step,
            cancelled,
            ..
        }) = self.ops.get_mut(index).work()
        else {
            return None;
        };
        let (multishot, cancelled) = (*multishot, *cancelled);
        let provided = cqueue::buffer_select(flags);
        let buffer = match (*step, provided) {
            (Step::Provided, Some(id)) => {
                self.rx.taken();
                Some(id)
            }
            (Step::Into(id), _) => Some(id),
            _ => None,
        };
        // Dropped at once where nothing was received.
        let chunk = buffer.map(|id| self.rx.chunk(id, result.unwrap_or(0)));
        match (result, *step) {
            (Ok(_), Step::Readable)
            | (Err(Errno::AGAIN), Step::Into(_))
            | (Err(Errno::NOBUFS), Step::Provided)
                if cancelled =>
            {
                self.ops.remove(index);
                Some(Completion::bare(token, Err(Errno::CANCELED)))
            }
            (Ok(_), Step::Readable) => {
                self.receive_readable(index);
                None
            }
            (Err(Errno::AGAIN), Step::Into(_)) => {
                *step = Step::Readable;
                self.arm_receive(index);
                None
            }
            (Err(Errno::NOBUFS), Step::Provided) => {
                *step = Step::Starved;
                self.starved.push_back(index);
                None
            }
            (Ok(count), _) if count > 0 => {
                let goes_on = cqueue::more(flags) || (multishot && !cancelled);
                if !goes_on {
                    self.ops.remove(index);
                } else if !cqueue::more(flags) {
                    if let Step::Into(_) = *step {
                        *step = Step::Readable;
                    }
                    self.arm_receive(index);
                }
                Some(Completion {
                    more: goes_on,
                    rx: chunk,
                    ..Completion::bare(token, Ok(count))
                })
            }
            (result, _) => {
                self.ops.remove(index);
                Some(Completion::bare(token, result))
            }
        }
    }

    /// Goes on with a receive without provided buffers once its socket is readable.
    fn receive_readable(&mut self, index: u32) {
        let free = self.rx.take_free();
        let Work::Receive(receive) = self.ops.get_mut(index).work() else {
            return;
        };
        if let Some(id) = free {
            receive.step = Step::Into(id);
            self.arm_receive(index);
        } else {
            receive.step = Step::Starved;
            self.starved.push_back(index);
        }
    }

    fn finish(
        &mut self,
        index: u32,
        token: Token,
        result: Result<u32, Errno>,
    ) -> Option<Completion> {
        let work = self.ops.remove(index);
        Some(Completion::of(work, token, result))
    }
}
