//! When to reconnect, when to fail I/O, and when to give up: the kernel's three time-outs as pure logic.
//!
//! After a loss the first attempt follows after `reconnect_delay`, and the next each `reconnect_delay` after
//! the last one ended. `fast_io_fail_tmo` after the loss, held I/O fails and new I/O fails at once, while
//! attempts go on. After `ctrl_loss_tmo / reconnect_delay` attempts (rounded up), or when the controller
//! refuses with Do Not Retry, the controller is given up. Time is a number of milliseconds from the caller.

use nvme_proto::wire::Status;

use crate::options::ConnectOptions;

/// The time-outs of one controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossPolicy {
    reconnect_delay_ms: u64,
    /// Attempts until the controller is given up; `None` is without end.
    max_attempts: Option<u64>,
    fast_io_fail_ms: Option<u64>,
}

/// What to do next about a lost controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossAction {
    /// Try to connect now; report the outcome with [`Loss::attempt_failed`].
    Reconnect,
    /// Fail what is held, and fail new I/O at once until the controller is back.
    FailIo,
    /// Nothing before this time.
    WaitUntil(u64),
    /// The controller is gone for good.
    GiveUp(GiveUp),
}

/// Why a controller was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GiveUp {
    /// `ctrl_loss_tmo` ran out.
    #[error("no reconnect within ctrl_loss_tmo ({attempts} attempts)")]
    LossTimeout {
        /// Attempts made.
        attempts: u64,
    },
    /// The controller said that trying again is of no use.
    #[error("the controller refused for good: {0}")]
    DoNotRetry(Status),
}

impl LossPolicy {
    /// The policy that these options ask for.
    pub fn new(options: &ConnectOptions) -> Self {
        let delay = u64::from(options.reconnect_delay.max(1));
        LossPolicy {
            reconnect_delay_ms: delay * 1000,
            max_attempts: u64::try_from(options.ctrl_loss_tmo)
                .ok()
                .map(|total| total.div_ceil(delay)),
            fast_io_fail_ms: u64::try_from(options.fast_io_fail_tmo)
                .ok()
                .map(|s| s * 1000),
        }
    }

    /// There is no connection at `now_ms` because this process is new: the first attempt is due at once.
    pub fn resumed(self, now_ms: u64) -> Loss {
        Loss {
            next_attempt_ms: now_ms,
            ..self.lost(now_ms)
        }
    }

    /// The connection was lost at `now_ms`.
    pub fn lost(self, now_ms: u64) -> Loss {
        Loss {
            next_attempt_ms: now_ms + self.reconnect_delay_ms,
            fail_io_ms: self.fast_io_fail_ms.map(|after| now_ms + after),
            policy: self,
            attempts: 0,
            refused: None,
            told: None,
        }
    }
}

/// The time from one loss to the reconnect or to the end.
#[derive(Debug, Clone)]
pub struct Loss {
    policy: LossPolicy,
    attempts: u64,
    next_attempt_ms: u64,
    fail_io_ms: Option<u64>,
    refused: Option<Status>,
    /// Why the last attempt failed.
    told: Option<String>,
}

impl Loss {
    /// What to do at `now_ms`. After [`LossAction::Reconnect`] ask again once its outcome was reported.
    pub fn poll(&mut self, now_ms: u64) -> LossAction {
        if let Some(status) = self.refused {
            return LossAction::GiveUp(GiveUp::DoNotRetry(status));
        }
        if self
            .policy
            .max_attempts
            .is_some_and(|max| self.attempts >= max)
        {
            return LossAction::GiveUp(GiveUp::LossTimeout {
                attempts: self.attempts,
            });
        }
        if self.fail_io_ms.is_some_and(|at| now_ms >= at) {
            self.fail_io_ms = None;
            return LossAction::FailIo;
        }
        if now_ms >= self.next_attempt_ms {
            self.attempts += 1;
            return LossAction::Reconnect;
        }
        LossAction::WaitUntil(
            self.fail_io_ms
                .map_or(self.next_attempt_ms, |at| at.min(self.next_attempt_ms)),
        )
    }

    /// When held I/O is to fail, if that is still to come: it may fall into an attempt.
    pub fn fail_io_deadline_ms(&self) -> Option<u64> {
        self.fail_io_ms
    }

    /// Held I/O was failed while an attempt was going on.
    pub fn io_failed(&mut self) {
        self.fail_io_ms = None;
    }

    /// An attempt ended without a connection; `status` where a controller answered and refused.
    pub fn attempt_failed(&mut self, now_ms: u64, status: Option<Status>) {
        self.refused = status.filter(|status| status.is_dnr());
        self.next_attempt_ms = now_ms + self.policy.reconnect_delay_ms;
    }

    /// Whether an attempt failed for this reason for the first time, or again after another one: one line of the log is enough for a
    /// target that stays away.
    pub fn is_news(&mut self, why: &str) -> bool {
        let is_news = self.told.as_deref() != Some(why);
        if is_news {
            self.told = Some(why.to_owned());
        }
        is_news
    }

    /// Attempts made so far.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(reconnect_delay: u32, ctrl_loss_tmo: i32, fast_io_fail_tmo: i32) -> LossPolicy {
        LossPolicy::new(&ConnectOptions {
            reconnect_delay,
            ctrl_loss_tmo,
            fast_io_fail_tmo,
            ..Default::default()
        })
    }

    #[test]
    fn attempts_come_each_delay_and_end_with_the_loss_timeout() {
        // 25 s at 10 s each: three attempts, as the kernel rounds up.
        let mut loss = policy(10, 25, -1).lost(1_000);
        let mut now = 1_000;
        for attempt in 1..=3 {
            assert_eq!(loss.poll(now), LossAction::WaitUntil(now + 10_000));
            now += 10_000;
            assert_eq!(loss.poll(now), LossAction::Reconnect);
            now += 500;
            loss.attempt_failed(now, None);
            assert_eq!(loss.attempts(), attempt);
        }
        assert_eq!(
            loss.poll(now),
            LossAction::GiveUp(GiveUp::LossTimeout { attempts: 3 })
        );
    }

    #[test]
    fn zero_gives_up_at_once_and_minus_one_never() {
        assert_eq!(
            policy(10, 0, -1).lost(0).poll(0),
            LossAction::GiveUp(GiveUp::LossTimeout { attempts: 0 })
        );
        let mut loss = policy(1, -1, -1).lost(0);
        for now in (1..=10_000).map(|s| s * 1_000) {
            assert_eq!(loss.poll(now), LossAction::Reconnect);
            loss.attempt_failed(now, Some(Status::INTERNAL_ERROR));
        }
    }

    #[test]
    fn io_fails_once_while_attempts_go_on() {
        let mut loss = policy(10, 600, 4).lost(0);
        assert_eq!(loss.poll(0), LossAction::WaitUntil(4_000));
        assert_eq!(loss.poll(4_000), LossAction::FailIo);
        assert_eq!(loss.poll(4_000), LossAction::WaitUntil(10_000));
        assert_eq!(loss.poll(10_000), LossAction::Reconnect);
        assert_eq!(policy(10, 600, 0).lost(0).poll(0), LossAction::FailIo);
    }

    #[test]
    fn the_same_failure_is_news_once() {
        let mut loss = policy(10, 600, -1).lost(0);
        let told = [
            "refused",
            "refused",
            "refused",
            "unreachable",
            "refused",
            "refused",
        ];
        assert_eq!(
            told.map(|why| loss.is_news(why)),
            [true, false, false, true, true, false]
        );
        // Another loss is told again.
        assert!(policy(10, 600, -1).lost(0).is_news("refused"));
    }

    #[test]
    fn a_new_process_tries_at_once() {
        let mut loss = policy(10, 600, -1).resumed(5);
        assert_eq!(loss.poll(5), LossAction::Reconnect);
        loss.attempt_failed(6, None);
        assert_eq!(loss.poll(6), LossAction::WaitUntil(10_006));
    }

    #[test]
    fn do_not_retry_ends_it_and_a_plain_refusal_does_not() {
        let mut loss = policy(1, 600, -1).lost(0);
        loss.poll(1_000);
        loss.attempt_failed(1_000, Some(Status::CONNECT_CONTROLLER_BUSY));
        assert_eq!(loss.poll(2_000), LossAction::Reconnect);
        let refusal = Status::CONNECT_INVALID_HOST.dnr();
        loss.attempt_failed(2_000, Some(refusal));
        assert_eq!(
            loss.poll(2_000),
            LossAction::GiveUp(GiveUp::DoNotRetry(refusal))
        );
    }
}
