//! The other side of the comparison: the same answers through the ring of nvmf-io, as a target's shard gives them.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nvmf_io::{Buf, BufPool, PoolConfig, Ring, RingConfig, SockId, Token, TxBatch, Wait};

use crate::shape::Shape;

/// The lowest bit of a token; the others number the connection.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;

/// How the ring is used.
#[derive(Args, Clone, Debug)]
pub struct RingOptions {
    /// Receive buffers.
    #[arg(long, default_value_t = RingConfig::default().rx_buffers)]
    pub rx_buffers: u16,
    /// Bytes of a receive buffer.
    #[arg(long, default_value_t = RingConfig::default().rx_buffer_bytes)]
    pub rx_buffer_bytes: u32,
    /// Files registered; 0 to use plain descriptors.
    #[arg(long, default_value_t = RingConfig::default().files)]
    pub files: u32,
    /// Uses only what the oldest supported kernel has.
    #[arg(long)]
    pub baseline: bool,
    /// Spins this long for completions before it sleeps.
    #[arg(long, default_value_t = 0)]
    pub busy_poll_us: u64,
    /// Copies what is received into a data buffer, as a write in a capsule is.
    #[arg(long)]
    pub copy: bool,
    /// Receives all but the first 72 bytes of a request straight into a data buffer.
    #[arg(long)]
    pub exact: bool,
}

/// A connection and what it is doing.
struct Link {
    socket: SockId,
    sending: bool,
    /// Requests that arrived and are not answered.
    owed: usize,
    /// Bytes of the next request that arrived.
    have: usize,
    /// It is in the list of those that get an answer in this turn.
    dirty: bool,
}

/// All connections, and what they share.
struct Server {
    ring: Ring,
    links: Vec<Link>,
    #[expect(clippy::vec_box, reason = "the ring takes and returns boxes")]
    batches: Vec<Box<TxBatch>>,
    response: Buf,
    landing: Buf,
    dirty: Vec<usize>,
}

impl Link {
    fn token(at: usize, what: u64) -> Token {
        Token((at as u64) << 1 | what)
    }
}

impl Server {
    /// Asks for what comes next. With exact receives, `have` below the header's length means that a header is being received.
    fn receive(&mut self, at: usize, shape: &Shape, options: &RingOptions) {
        let (link, token) = (&self.links[at], Link::token(at, RECEIVE));
        let header = 72.min(shape.request);
        if !options.exact {
            self.ring.recv_multishot(link.socket, token);
        } else {
            let end = if link.have < header {
                header
            } else {
                shape.request
            };
            let range = link.have as u32..end as u32;
            self.ring
                .recv_into(link.socket, &self.landing, range, token);
        }
    }
}

/// Answers requests until a peer closes.
pub fn serve(sockets: Vec<TcpStream>, shape: &Shape, options: &RingOptions) -> Result<()> {
    let config = RingConfig {
        rx_buffers: options.rx_buffers,
        rx_buffer_bytes: options.rx_buffer_bytes,
        files: options.files,
        baseline: options.baseline,
        ..RingConfig::default()
    };
    let mut ring = Ring::new(&config)?;
    let pool = BufPool::new(&PoolConfig::default());
    ring.register_pool(&pool);
    let mut links = Vec::with_capacity(sockets.len());
    for socket in sockets {
        socket.set_nonblocking(false)?;
        links.push(Link {
            socket: ring.add_socket(OwnedFd::from(socket)),
            sending: false,
            owed: 0,
            have: 0,
            dirty: false,
        });
    }
    let response = pool
        .alloc(shape.response.max(24) as u32)
        .context("response too large")?;
    response.fill(0..response.len(), 0xa5);
    let landing = pool
        .alloc((shape.request as u32).max(4096))
        .context("request too large")?;
    let mut server = Server {
        ring,
        links,
        batches: Vec::new(),
        response,
        landing,
        dirty: Vec::new(),
    };
    for at in 0..server.links.len() {
        server.receive(at, shape, options);
    }
    let window = Duration::from_micros(options.busy_poll_us);
    let mut spin_until = Instant::now();
    loop {
        let mut progress = false;
        while let Some(done) = server.ring.next() {
            progress = true;
            let at = (done.token.0 >> 1) as usize;
            if done.token.0 & 1 == SEND {
                done.result.context("send")?;
                let mut batch = done.batch.expect("sends return their batch");
                batch.clear();
                server.batches.push(batch);
                server.links[at].sending = false;
            } else {
                let count = done.result.context("receive")? as usize;
                if count == 0 {
                    return Ok(());
                }
                if let Some(chunk) = done.rx
                    && options.copy
                {
                    copy_in(&server.landing, &chunk);
                }
                let link = &mut server.links[at];
                link.have += count;
                link.owed += link.have / shape.request;
                link.have %= shape.request;
                if !done.more {
                    server.receive(at, shape, options);
                }
            }
            let link = &mut server.links[at];
            if link.owed > 0 && !link.dirty {
                link.dirty = true;
                server.dirty.push(at);
            }
        }
        while let Some(at) = server.dirty.pop() {
            server.links[at].dirty = false;
            if !server.links[at].sending {
                answer(&mut server, shape, at)?;
            }
        }
        let wait = if window.is_zero() {
            Wait::Block
        } else {
            let now = Instant::now();
            if progress {
                spin_until = now + window;
            }
            if now < spin_until {
                Wait::Poll
            } else {
                Wait::Block
            }
        };
        server.ring.wait(wait)?;
    }
}

fn copy_in(landing: &Buf, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(bytes.len().min(landing.len() as usize));
        landing.copy_in(0, head);
        bytes = rest;
    }
}

/// Sends as many responses as a batch takes.
fn answer(server: &mut Server, shape: &Shape, at: usize) -> Result<()> {
    let mut batch = server
        .batches
        .pop()
        .unwrap_or_else(|| TxBatch::new(TxBatch::DEFAULT_HEADER_BYTES, TxBatch::DEFAULT_SEGMENTS));
    let header = shape.response.min(24);
    let link = &mut server.links[at];
    while link.owed > 0 && batch.fits(header, 2) {
        batch.push_header(&[0x5a; 24][..header])?;
        batch.push_payload(&server.response, 0..(shape.response - header) as u32)?;
        link.owed -= 1;
    }
    link.sending = true;
    server.ring.send(link.socket, batch, Link::token(at, SEND));
    Ok(())
}
