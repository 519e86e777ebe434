//! Messages to a thread that may be asleep in its ring.
//!
//! A send to an awake receiver costs no system call. Before it blocks, the receiver says that it is asleep and then
//! looks into the queue once more; a sender queues its message and then looks whether the receiver is asleep. Both
//! put a sequentially consistent fence between the two steps, so at least one sees the other: no message is slept on.
//!
//! ```
//! use nvmf_io::{Interest, Ring, RingConfig, Token, Wait, mailbox};
//! let (sender, receiver) = mailbox::channel::<&str>()?;
//! let mut ring = Ring::new(&RingConfig::default())?;
//! const WAKE: Token = Token(1);
//! ring.poll_multishot(receiver.fd(), Interest::Readable, WAKE);
//! std::thread::spawn(move || sender.send("hello"));
//! let message = loop {
//!     receiver.park(|may_block| ring.wait(if may_block { Wait::Block } else { Wait::Poll }))?;
//!     while ring.next().is_some() {} // the wake itself, and other completions
//!     if let Ok(message) = receiver.try_recv() {
//!         break message;
//!     }
//! };
//! assert_eq!(message, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

pub use crossbeam_channel::TryRecvError;
use rustix::event::EventfdFlags;

struct Shared {
    asleep: AtomicBool,
    event: OwnedFd,
}

/// Makes a mailbox without a bound: what flows through it is control, never I/O.
pub fn channel<T>() -> io::Result<(Sender<T>, Receiver<T>)> {
    with(crossbeam_channel::unbounded())
}

/// Makes a mailbox that holds at most `capacity` messages; senders wait while it is full.
pub fn bounded<T>(capacity: usize) -> io::Result<(Sender<T>, Receiver<T>)> {
    with(crossbeam_channel::bounded(capacity))
}

fn with<T>(
    (queue_in, queue_out): (crossbeam_channel::Sender<T>, crossbeam_channel::Receiver<T>),
) -> io::Result<(Sender<T>, Receiver<T>)> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    // A receiver counts as asleep until it parks for the first time: it may wait on the descriptor by other means.
    let shared = Arc::new(Shared {
        asleep: AtomicBool::new(true),
        event,
    });
    Ok((
        Sender {
            queue: queue_in,
            shared: shared.clone(),
        },
        Receiver {
            queue: queue_out,
            shared,
        },
    ))
}

/// The sending side; clone it freely.
pub struct Sender<T> {
    queue: crossbeam_channel::Sender<T>,
    shared: Arc<Shared>,
}

/// The receiver is gone; the message comes back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the mailbox is gone")]
pub struct Disconnected<T>(pub T);

impl<T> Sender<T> {
    /// Queues `message`, waits for room in a bounded mailbox, and wakes the receiver if it is asleep.
    pub fn send(&self, message: T) -> Result<(), Disconnected<T>> {
        self.queue
            .send(message)
            .map_err(|error| Disconnected(error.0))?;
        self.wake();
        Ok(())
    }

    /// Makes the receiver return from [`Receiver::park`] soon, with or without a message.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        // One wake for each sleep: whoever clears the flag writes.
        if self.shared.asleep.load(Ordering::Relaxed)
            && self.shared.asleep.swap(false, Ordering::AcqRel)
        {
            // Fails only when the counter is full, and then the receiver is woken already.
            let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The receiver may be asleep for the sake of this sender only; it is cheap to let it look.
        self.wake();
    }
}

/// The receiving side.
pub struct Receiver<T> {
    queue: crossbeam_channel::Receiver<T>,
    shared: Arc<Shared>,
}

impl<T> Receiver<T> {
    /// The next message; [`TryRecvError::Disconnected`] when there is none and no sender is left.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.queue.try_recv()
    }

    /// The descriptor that becomes readable when a sender wakes the receiver: wait on it with
    /// [`Ring::poll_multishot`](crate::Ring::poll_multishot), or with anything that polls.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Calls `sleep`, telling it whether it may block (the queue is empty); from now until it returns, senders wake
    /// through [`Receiver::fd`].
    pub fn park<R>(&self, sleep: impl FnOnce(bool) -> R) -> R {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let result = sleep(self.queue.is_empty());
        self.shared.asleep.store(false, Ordering::Relaxed);
        result
    }

    /// Says that the receiver sleeps by other means than [`Receiver::park`], as it does when the mailbox is new: the
    /// next send makes [`Receiver::fd`] readable. Look into the queue once more after this call, then wait.
    pub fn arm(&self) {
        self.shared.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Makes [`Receiver::fd`] not readable; needed only where readability is level-triggered.
    pub fn drain(&self) {
        let _ = rustix::io::read(&self.shared.event, &mut [0; 8]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Interest, Ring, RingConfig, Token, Wait};

    const WAKE: Token = Token(1);

    /// Wakes so far, taken off the counter.
    fn wakes<T>(receiver: &Receiver<T>) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(receiver.fd(), &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    #[test]
    fn only_a_sleeper_is_woken_and_once() {
        let (sender, receiver) = channel().unwrap();
        receiver.park(|may_block| assert!(may_block));
        for n in 0..10 {
            sender.send(n).unwrap();
        }
        assert_eq!(wakes(&receiver), 0, "awake");
        receiver.park(|may_block| {
            assert!(!may_block, "there is something to do");
            sender.send(10).unwrap();
            sender.send(11).unwrap();
        });
        assert_eq!(wakes(&receiver), 1);
        sender.send(12).unwrap();
        assert_eq!(wakes(&receiver), 0, "awake again");
        receiver.arm();
        sender.wake();
        assert_eq!(wakes(&receiver), 1);
        let all: Vec<i32> = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        assert_eq!(all, (0..=12).collect::<Vec<_>>());
        receiver.arm();
        drop(sender);
        assert_eq!(wakes(&receiver), 1, "the last sender's end is worth a look");
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    }

    #[test]
    fn a_send_to_nobody_gives_the_message_back() {
        let (sender, receiver) = bounded(1).unwrap();
        sender.send(1).unwrap();
        drop(receiver);
        assert_eq!(sender.send(2), Err(Disconnected(2)));
    }

    /// Two threads that sleep in their rings whenever they have nothing to do pass a ball; a lost wake would stop
    /// them for good.
    #[test]
    fn no_wake_is_lost() {
        const ROUNDS: u32 = 5_000;
        let (left_in, left_out) = channel::<u32>().unwrap();
        let (right_in, right_out) = channel::<u32>().unwrap();
        let play = |out: Receiver<u32>, back: Sender<u32>| {
            let mut ring = Ring::new(&RingConfig {
                rx_buffers: 0,
                ..RingConfig::default()
            })
            .unwrap();
            ring.poll_multishot(out.fd(), Interest::Readable, WAKE);
            loop {
                while let Ok(ball) = out.try_recv() {
                    if ball < ROUNDS && back.send(ball + 1).is_err() || ball + 1 >= ROUNDS {
                        return;
                    }
                }
                out.park(|may_block| ring.wait(if may_block { Wait::Block } else { Wait::Poll }))
                    .unwrap();
                while let Some(completion) = ring.next() {
                    assert!(completion.more, "the poll stays armed: {completion:?}");
                }
            }
        };
        left_in.send(0).unwrap();
        let other = std::thread::spawn(move || play(right_out, left_in));
        play(left_out, right_in);
        other.join().unwrap();
    }
}
