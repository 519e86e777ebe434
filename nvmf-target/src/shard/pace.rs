//! When the first of a batch go ahead of the rest.
//!
//! What a turn starts goes to the kernel at its end, and what it answers goes out at its end, all at once: that costs least. But a disk
//! stands still while a shard prepares a whole batch for it, and the host stands still while the shard goes through everything that
//! completed together. So operations go to the kernel a few at a time, and the first answers of a turn before the others, as long as
//! nothing else is there to do once they went: storage that completes within the call (a page cache, a disk that is faster than the processor)
//! gets whole batches for the rest of the turn.

/// Operations that are handed over together. With all of a queue of 32 the disk waited for a quarter of the time, see BENCHMARKS.
const STARTED_TOGETHER: u32 = 4;

/// Answers of a turn that go out before the others: a send costs as much as some commands, one or two are too few for it.
const ANSWERED_FIRST: u32 = 8;

/// What a turn has started and completed on files and devices.
#[derive(Debug, Default)]
pub(super) struct Pace {
    started: u32,
    completed: u32,
    /// Something was there to do when operations had gone: the turn goes on in batches.
    is_busy: bool,
    /// The last operations that went ahead left nothing to do.
    storage_is_slow: bool,
}

impl Pace {
    pub(super) fn begin_turn(&mut self) {
        self.started = 0;
        self.completed = 0;
        self.is_busy = false;
    }

    /// An operation was queued. Whether it shall go to the kernel now, with those before it; then say what that brought.
    #[inline]
    pub(super) fn started(&mut self) -> bool {
        if self.is_busy {
            return false;
        }
        self.started += 1;
        self.started.is_multiple_of(STARTED_TOGETHER)
    }

    /// They went; whether something `is_there` to do.
    pub(super) fn went(&mut self, is_there: bool) {
        self.is_busy = is_there;
        self.storage_is_slow = !is_there;
    }

    /// An operation completed. Whether the answers so far shall go out now.
    #[inline]
    pub(super) fn completed(&mut self) -> bool {
        self.completed += 1;
        self.storage_is_slow && self.completed == ANSWERED_FIRST
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nvmf_io::ring::Interest;
    use nvmf_io::{Ring, RingConfig, Token, Wait};

    use super::*;

    /// An operation was queued: whether it went.
    fn goes(pace: &mut Pace, ring: &mut Ring) -> bool {
        let goes = pace.started();
        if goes {
            ring.wait(Wait::Poll).unwrap();
            pace.went(ring.has_completions());
        }
        goes
    }

    fn first_answers(pace: &mut Pace) -> Option<u32> {
        (1..100).find(|_| pace.completed())
    }

    #[test]
    fn what_does_not_complete_at_once_goes_ahead_and_is_answered_early() {
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        let (silent, _peer) = UnixStream::pair().unwrap();
        let mut pace = Pace::default();
        pace.begin_turn();
        let mut went = Vec::new();
        for at in 1..=9 {
            // Nothing ever arrives there: an operation that stays with the kernel.
            ring.poll_multishot(&silent, Interest::Readable, Token(at));
            if goes(&mut pace, &mut ring) {
                went.push(at);
            }
        }
        assert_eq!(went, [4, 8]);
        pace.begin_turn();
        assert_eq!(first_answers(&mut pace), Some(ANSWERED_FIRST));
    }

    #[test]
    fn what_completes_at_once_is_handed_over_and_answered_in_whole_batches() {
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        let mut pace = Pace::default();
        pace.begin_turn();
        let mut went = Vec::new();
        for at in 1..=9 {
            ring.nop(Token(at));
            if goes(&mut pace, &mut ring) {
                went.push(at);
            }
        }
        assert_eq!(went, [4], "the rest of the turn stays together");
        assert_eq!(first_answers(&mut pace), None);
    }
}
