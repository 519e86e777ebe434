//! The side that asks: bare system calls, with latencies.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::plain::Memory;
use crate::shape::{Mode, Shape};

/// Time before anything counts.
pub(crate) const RAMP: Duration = Duration::from_millis(500);

/// Latencies kept at most: more than a minute at 500 000 per second.
const MAX_SAMPLES: usize = 40_000_000;

/// What was reached.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Requests answered per second.
    pub per_second: f64,
    /// Bytes per second, in the bulk modes.
    pub bytes_per_second: f64,
    /// Mean latency in microseconds.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
}

/// Latencies from a moment on.
pub(crate) struct Samples {
    from: Instant,
    nanos: Vec<u32>,
    count: u64,
}

impl Samples {
    /// None yet; what was asked before `from` does not count.
    pub(crate) fn new(from: Instant) -> Self {
        Self {
            from,
            nanos: Vec::with_capacity(4 << 20),
            count: 0,
        }
    }

    /// Adds those of another thread.
    pub(crate) fn append(&mut self, other: Self) {
        self.nanos.extend(other.nanos);
        self.count += other.count;
    }

    pub(crate) fn add(&mut self, asked: Instant, answered: Instant) {
        if asked >= self.from {
            self.count += 1;
            if self.nanos.len() < MAX_SAMPLES {
                let nanos = answered.duration_since(asked).as_nanos();
                self.nanos.push(u32::try_from(nanos).unwrap_or(u32::MAX));
            }
        }
    }

    pub(crate) fn figures(mut self, seconds: f64) -> Figures {
        self.nanos.sort_unstable();
        let at = |share: f64| {
            let index = (self.nanos.len() as f64 * share) as usize;
            self.nanos
                .get(index)
                .map_or(0.0, |&nanos| f64::from(nanos) / 1e3)
        };
        let sum: f64 = self.nanos.iter().copied().map(f64::from).sum();
        Figures {
            per_second: self.count as f64 / seconds,
            bytes_per_second: 0.0,
            mean_us: sum / 1e3 / self.nanos.len().max(1) as f64,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}

/// Asks for `seconds` after a short ramp.
pub fn run(mut socket: TcpStream, shape: &Shape, seconds: f64) -> Result<Figures> {
    let mut memory = Memory::new();
    let header = shape.request_header();
    let from = Instant::now() + RAMP;
    let until = from + Duration::from_secs_f64(seconds);
    let mut samples = Samples::new(from);
    match shape.mode {
        Mode::Bulk | Mode::Bulkspin => {
            let chunk = vec![0; shape.request];
            let mut bytes = 0;
            loop {
                let sent = match socket.write(&chunk) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                    result => result?,
                };
                let now = Instant::now();
                if now >= until {
                    break;
                }
                if now >= from {
                    bytes += sent;
                }
            }
            return Ok(Figures {
                bytes_per_second: bytes as f64 / seconds,
                ..Figures::default()
            });
        }
        Mode::Block | Mode::Spin => loop {
            let asked = Instant::now();
            if asked >= until {
                break;
            }
            memory.send(&mut socket, 1, shape.request, header)?;
            if !memory.receive_exactly(&mut socket, shape.response)? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            samples.add(asked, Instant::now());
        },
        Mode::Pipe | Mode::Many => {
            let mut asked = VecDeque::with_capacity(shape.depth);
            memory.send(&mut socket, shape.depth, shape.request, header)?;
            asked.resize(shape.depth, Instant::now());
            let mut have = 0;
            loop {
                match memory.receive(&mut socket, shape.response, 1 << 20)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    count => have += count,
                }
                let count = have / shape.response;
                have %= shape.response;
                if count == 0 {
                    continue;
                }
                let now = Instant::now();
                for _ in 0..count {
                    samples.add(asked.pop_front().expect("as many as were asked"), now);
                }
                if now >= until {
                    break;
                }
                memory.send(&mut socket, count, shape.request, header)?;
                asked.resize(shape.depth, now);
            }
        }
    }
    Ok(samples.figures(seconds))
}
