//! Accepting connections: how many there may be, and what happens when the system has no descriptor for another one.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use nvmf_io::net::{SocketOptions, configure};
use tokio::time::{Instant, sleep};

use super::net::{Listener, Stream};

/// Pause after a failed accept. The causes (no descriptors, no memory) last for a while, and the listener would be
/// found ready again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Least time between two log lines about the same trouble.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts connections against a bound. Clones count together.
#[derive(Clone, Default)]
pub struct ConnectionCount(Rc<Cell<usize>>);

/// One counted connection, as long as it lives.
pub struct Counted(Rc<Cell<usize>>);

impl ConnectionCount {
    /// One more, unless there are `limit` already.
    pub fn admit(&self, limit: usize) -> Option<Counted> {
        if self.0.get() >= limit {
            return None;
        }
        self.0.set(self.0.get() + 1);
        Some(Counted(Rc::clone(&self.0)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Lets a log line through once in a while and counts the others.
#[derive(Default)]
pub struct RateLimit {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// The number of lines suppressed since the last one, if a line may be logged at `now`.
    pub fn allow(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now - last < LOG_INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Accepts connections for ever. `admit` takes each or says why not; a connection that it refuses is closed.
pub async fn accept_loop(listener: &Listener, mut admit: impl FnMut(Stream) -> Result<(), String>) {
    let mut failures = RateLimit::default();
    let mut refusals = RateLimit::default();
    loop {
        let accepted = listener.accept().await;
        let outcome = match accepted {
            Ok((socket, peer)) => prepare(socket, peer),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(stream) => {
                let peer = stream.peer();
                if let Err(reason) = admit(stream)
                    && let Some(suppressed) = refusals.allow(Instant::now())
                {
                    tracing::warn!(%peer, listener = %listener.address, suppressed, "connection refused: {reason}");
                }
            }
            Err(error) => {
                if let Some(suppressed) = failures.allow(Instant::now()) {
                    let remedy = remedy(&error);
                    tracing::error!(listener = %listener.address, suppressed, "cannot accept a connection: {error}{remedy}");
                }
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

fn prepare(socket: TcpStream, peer: SocketAddr) -> io::Result<Stream> {
    configure(&socket, &SocketOptions::default())?;
    Stream::new(socket, peer)
}

fn remedy(error: &io::Error) -> &'static str {
    match error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error)
    {
        Some(rustix::io::Errno::MFILE) => {
            "; raise the limit on open files (ulimit -n, LimitNOFILE in a unit) or lower limits.connections"
        }
        Some(rustix::io::Errno::NFILE) => "; the whole system is out of files: raise fs.file-max",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_as_long_as_they_live() {
        let count = ConnectionCount::default();
        let first = count.admit(2).unwrap();
        let _second = count.admit(2).unwrap();
        assert!(count.admit(2).is_none());
        drop(first);
        assert!(count.admit(2).is_some());
    }

    #[test]
    fn log_lines_are_let_through_once_in_a_while() {
        let mut limit = RateLimit::default();
        let start = Instant::now();
        assert_eq!(limit.allow(start), Some(0));
        assert_eq!(limit.allow(start + LOG_INTERVAL / 2), None);
        assert_eq!(limit.allow(start + LOG_INTERVAL * 3 / 4), None);
        assert_eq!(limit.allow(start + LOG_INTERVAL), Some(2));
    }
}
