//! How long the answer to Keep Alive may take: until the controller has been silent for too long.
//!
//! Silence is counted in looks. One that comes late counts for nothing: then it was this process that stood still, and what the
//! controller said meanwhile has not been read yet.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Looks that make up the limit.
const LOOKS: u32 = 8;

/// Waits for `answer`; `None` after `limit` without a word. `heard` tells whether anything came from the controller since it was
/// last asked: a controller that says something is not gone, only slow, and has the limit once more.
pub(crate) async fn unless_silent<T>(
    limit: Duration,
    mut heard: impl FnMut() -> bool,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let mut answer = pin!(answer);
    let every = limit / LOOKS;
    let mut silent = 0;
    while silent < LOOKS {
        let look_at = Instant::now() + every;
        tokio::select! {
            biased;
            answer = &mut answer => return Some(answer),
            () = sleep_until(look_at) => {}
        }
        let late = look_at.elapsed() > every;
        if heard() {
            silent = 0;
        } else if !late {
            silent += 1;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(2500);

    #[tokio::test(start_paused = true)]
    async fn silence_has_its_limit() {
        let start = Instant::now();
        let answer = unless_silent(LIMIT, || false, pending::<()>()).await;
        assert_eq!(answer, None);
        let took = start.elapsed();
        // Timers count in milliseconds.
        assert!(took >= LIMIT && took < LIMIT + LIMIT / LOOKS, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_taken() {
        let late = async {
            sleep(LIMIT - Duration::from_millis(20)).await;
            7
        };
        assert_eq!(unless_silent(LIMIT, || false, late).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_heard_is_only_slow() {
        let start = Instant::now();
        let last_word = start + 3 * LIMIT;
        let told = Cell::new(start);
        let heard = || {
            let news = told.get() < last_word;
            told.set(Instant::now());
            news
        };
        assert_eq!(unless_silent(LIMIT, heard, pending::<()>()).await, None);
        let silence = last_word.elapsed();
        assert!(
            silence >= LIMIT && silence <= LIMIT + 2 * LIMIT / LOOKS,
            "{silence:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_in_which_this_process_stood_still_is_no_silence() {
        let (say, said) = oneshot::channel();
        let waiting = tokio::spawn(unless_silent(LIMIT, || false, said));
        // Right before the last look nothing runs for long, and then the answer that came meanwhile is read.
        sleep(LIMIT * 15 / 16).await;
        advance(10 * LIMIT).await;
        sleep(LIMIT / 16).await;
        say.send(()).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(Ok(())));
    }
}
