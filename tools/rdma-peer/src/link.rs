//! Waiting for events and completions, with a time limit: what both modes share.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nvmf_io::verbs::{CmEvent, CmEventKind, Done, EventChannel, IdKey, QueuePair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long anything may take. Emulated machines are slow.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The next event of `id`; others are an error.
pub fn event(channel: &Arc<EventChannel>, id: IdKey) -> Result<CmEvent> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(event) = channel.next()? {
            if event.id == id {
                return Ok(event);
            }
            bail!("an event of another connection: {event:?}");
        }
        readable(channel, deadline, "an event of the connection manager")?;
    }
}

/// The next event of any identifier.
pub fn any_event(channel: &Arc<EventChannel>) -> Result<CmEvent> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(event) = channel.next()? {
            return Ok(event);
        }
        readable(channel, deadline, "an event of the connection manager")?;
    }
}

/// The next event of `id`, which has to be the one that `is` knows.
pub fn expect(
    channel: &Arc<EventChannel>,
    id: IdKey,
    is: fn(&CmEventKind) -> bool,
) -> Result<CmEvent> {
    let event = event(channel, id)?;
    match is(&event.kind) {
        true => Ok(event),
        false => Err(anyhow!("not the event that was expected: {event:?}")),
    }
}

/// The next completion. Waits as a program should: poll, arm, poll again, sleep.
pub fn completion(qp: &mut QueuePair) -> Result<Done> {
    completion_within(qp, LIMIT)?.ok_or_else(|| anyhow!("no completion in {LIMIT:?}"))
}

/// The next completion, if one comes in time.
pub fn completion_within(qp: &mut QueuePair, limit: Duration) -> Result<Option<Done>> {
    let deadline = Instant::now() + limit;
    loop {
        for armed in [false, true] {
            if armed {
                qp.queue().arm()?;
            }
            if let Some(done) = qp.poll_one()? {
                return Ok(Some(done));
            }
        }
        if readable(qp.queue(), deadline, "").is_err() {
            return Ok(None);
        }
        qp.queue().take_events();
    }
}

/// Waits until one of two descriptors is readable.
pub fn wait_for_either(one: impl AsFd, other: impl AsFd, deadline: Instant) -> Result<()> {
    let (one, other) = (one.as_fd(), other.as_fd());
    wait(
        &mut [
            PollFd::from_borrowed_fd(one, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ],
        deadline,
        "an answer or the end of the connection",
    )
}

fn readable(fd: impl AsFd, deadline: Instant, what: &str) -> Result<()> {
    wait(&mut [PollFd::new(&fd, PollFlags::IN)], deadline, what)
}

fn wait(fds: &mut [PollFd<'_>], deadline: Instant, what: &str) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        bail!("{what} did not come in {LIMIT:?}");
    }
    let timeout = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
