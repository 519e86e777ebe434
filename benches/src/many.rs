//! Many connections with few messages in flight on each: bare system calls on sockets that epoll watches, edge-triggered.
//!
//! Both sides sleep when nothing is there. Each turn receives once from every connection that has something, and sends once on
//! every connection that has something to say, as a side that serves many connections cannot do with less. The side that asks
//! takes its connections in turn, so that what is in flight is spread over all of them.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Result};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nvmf_io::cpu;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::client::{Figures, RAMP, Samples};
use crate::plain::Memory;
use crate::shape::Shape;

/// Events taken at a time.
const EVENTS: usize = 512;

/// A receive: enough to take much at once, not so much that what it writes leaves the second-level cache.
const RECEIVE_BYTES: usize = 128 << 10;

/// A connection and what came of its next message.
struct Link {
    socket: TcpStream,
    have: usize,
}

/// Connections that are watched together.
struct Links {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    links: Vec<Link>,
}

impl Links {
    fn new(sockets: Vec<TcpStream>) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut links = Vec::with_capacity(sockets.len());
        for (at, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let flags = EventFlags::IN | EventFlags::ET;
            epoll::add(&epoll, &socket, EventData::new_u64(at as u64), flags)?;
            links.push(Link { socket, have: 0 });
        }
        Ok(Self {
            epoll,
            events: Vec::with_capacity(EVENTS),
            links,
        })
    }

    /// Sleeps until something is there; how many connections have something.
    fn wait(&mut self) -> Result<usize> {
        self.events.clear();
        let into = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, into, None) {
            Err(rustix::io::Errno::INTR) => Ok(0),
            result => Ok(result?),
        }
    }

    /// The connection of an event.
    fn ready(&self, event: usize) -> usize {
        self.events[event].data.u64() as usize
    }

    /// Takes what there is; how many messages are complete. An error at the end of the stream.
    fn receive(&mut self, at: usize, memory: &mut Memory, message: usize) -> Result<usize> {
        let link = &mut self.links[at];
        let into = memory.landing(RECEIVE_BYTES);
        loop {
            match (&link.socket).read(into) {
                Ok(0) => return Err(ErrorKind::ConnectionReset.into()),
                Ok(count) => {
                    link.have += count;
                    // Less than was asked for: nothing is left, and what comes later is another edge.
                    if count < into.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let messages = link.have / message;
        link.have %= message;
        Ok(messages)
    }
}

/// Answers requests until a peer closes.
pub fn serve(sockets: Vec<TcpStream>, shape: &Shape) -> Result<()> {
    let mut memory = Memory::new();
    let mut links = Links::new(sockets)?;
    let header = shape.response_header();
    loop {
        for event in 0..links.wait()? {
            let at = links.ready(event);
            let count = links.receive(at, &mut memory, shape.request)?;
            let socket = &mut links.links[at].socket;
            memory.send(socket, count, shape.response, header)?;
        }
    }
}

/// Asks for `seconds` after a short ramp, on each of `threads` lists of connections with a thread of its own; these take the
/// `cores` in turn.
pub fn run(
    threads: Vec<Vec<TcpStream>>,
    cores: &[usize],
    shape: &Shape,
    seconds: f64,
) -> Result<Figures> {
    let from = Instant::now() + RAMP;
    let depth = shape.depth / threads.len().max(1);
    let asked = std::thread::scope(|scope| {
        let asking: Vec<_> = threads
            .into_iter()
            .zip(cores.iter().cycle())
            .map(|(sockets, &core)| {
                scope.spawn(move || {
                    cpu::pin(core)?;
                    ask(sockets, shape, depth, from, seconds)
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(Error::other("a thread that asks panicked")))
            })
            .collect::<Result<Vec<(Samples, Vec<Link>)>>>()
    })?;
    let mut all = Samples::new(from);
    asked
        .into_iter()
        .for_each(|(samples, _)| all.append(samples));
    Ok(all.figures(seconds))
}

/// One thread that asks, with `depth` requests in flight. Its connections stay open until all threads are done: the other side ends
/// with the first that closes.
fn ask(
    sockets: Vec<TcpStream>,
    shape: &Shape,
    depth: usize,
    from: Instant,
    seconds: f64,
) -> Result<(Samples, Vec<Link>)> {
    let until = from + Duration::from_secs_f64(seconds);
    let mut memory = Memory::new();
    let mut links = Links::new(sockets)?;
    let mut samples = Samples::new(from);
    let header = shape.request_header();
    // When each request in flight was sent, and requests of this turn, by connection.
    let mut asked = vec![VecDeque::new(); links.links.len()];
    let mut turn = Turn::new(links.links.len());
    turn.add(depth);
    loop {
        let now = Instant::now();
        while let Some((at, count)) = turn.next() {
            memory.send(&mut links.links[at].socket, count, shape.request, header)?;
            asked[at].extend(std::iter::repeat_n(now, count));
        }
        if now >= until {
            return Ok((samples, links.links));
        }
        for event in 0..links.wait()? {
            let at = links.ready(event);
            let count = links.receive(at, &mut memory, shape.response)?;
            let now = Instant::now();
            for sent in asked[at].drain(..count) {
                samples.add(sent, now);
            }
            turn.add(count);
        }
    }
}

/// What is sent next, on which connection.
struct Turn {
    counts: Vec<usize>,
    touched: Vec<usize>,
    next: usize,
}

impl Turn {
    fn new(connections: usize) -> Self {
        Self {
            counts: vec![0; connections],
            touched: Vec::with_capacity(connections),
            next: 0,
        }
    }

    /// Spreads `count` requests over the connections whose turn it is.
    fn add(&mut self, count: usize) {
        for _ in 0..count {
            let at = self.next;
            self.next = (at + 1) % self.counts.len();
            if self.counts[at] == 0 {
                self.touched.push(at);
            }
            self.counts[at] += 1;
        }
    }

    fn next(&mut self) -> Option<(usize, usize)> {
        let at = self.touched.pop()?;
        Some((at, std::mem::take(&mut self.counts[at])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_take_connections_in_turn() {
        let mut turn = Turn::new(3);
        turn.add(4);
        let mut sent: Vec<_> = std::iter::from_fn(|| turn.next()).collect();
        sent.sort_unstable();
        assert_eq!(sent, [(0, 2), (1, 1), (2, 1)]);
        turn.add(1);
        assert_eq!(turn.next(), Some((1, 1)), "where the last turn stopped");
        assert_eq!(turn.next(), None);
    }
}
