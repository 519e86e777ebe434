//! The other side of the comparison: the same answers through the ring of nvmf-io, as a target's shard gives them.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nvmf_io::{Buf, BufPool, PoolConfig, Ring, RingConfig, Token, TxBatch, Wait};

use crate::shape::Shape;

const RECEIVE: Token = Token(0);
const SEND: Token = Token(1);

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

/// One connection and what it is doing.
struct Server {
    ring: Ring,
    pool: BufPool,
    #[expect(clippy::vec_box, reason = "the ring takes and returns boxes")]
    batches: Vec<Box<TxBatch>>,
    sending: bool,
    /// Requests that arrived and are not answered.
    owed: usize,
    /// Bytes of the next request that arrived.
    have: usize,
}

/// Answers requests until the peer closes.
pub fn serve(socket: TcpStream, shape: &Shape, options: &RingOptions) -> Result<()> {
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
    socket.set_nonblocking(false)?;
    let socket = ring.add_socket(OwnedFd::from(socket));
    let mut server = Server {
        ring,
        pool,
        batches: Vec::new(),
        sending: false,
        owed: 0,
        have: 0,
    };
    let response = server
        .pool
        .alloc(shape.response.max(24) as u32)
        .context("response too large")?;
    response.fill(0..response.len(), 0xa5);
    let landing = server
        .pool
        .alloc((shape.request as u32).max(4096))
        .context("request too large")?;
    let header = 72.min(shape.request);
    // With exact receives, `have` below the header's length means that a header is being received.
    let receive = |server: &mut Server| {
        if !options.exact {
            server.ring.recv_multishot(socket, RECEIVE);
        } else if server.have < header {
            let range = server.have as u32..header as u32;
            server.ring.recv_into(socket, &landing, range, RECEIVE);
        } else {
            let range = server.have as u32..shape.request as u32;
            server.ring.recv_into(socket, &landing, range, RECEIVE);
        }
    };
    receive(&mut server);
    let window = Duration::from_micros(options.busy_poll_us);
    let mut spin_until = Instant::now();
    loop {
        let mut progress = false;
        while let Some(done) = server.ring.next() {
            progress = true;
            if done.token == SEND {
                done.result.context("send")?;
                server.sending = false;
                let mut batch = done.batch.expect("sends return their batch");
                batch.clear();
                server.batches.push(batch);
                continue;
            }
            let count = done.result.context("receive")? as usize;
            if count == 0 {
                return Ok(());
            }
            if let Some(chunk) = done.rx
                && options.copy
            {
                copy_in(&landing, &chunk);
            }
            server.have += count;
            server.owed += server.have / shape.request;
            server.have %= shape.request;
            if !done.more {
                receive(&mut server);
            }
        }
        if server.owed > 0 && !server.sending {
            answer(&mut server, shape, &response, socket)?;
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
fn answer(
    server: &mut Server,
    shape: &Shape,
    response: &Buf,
    socket: nvmf_io::SockId,
) -> Result<()> {
    let mut batch = server
        .batches
        .pop()
        .unwrap_or_else(|| TxBatch::new(TxBatch::DEFAULT_HEADER_BYTES, TxBatch::DEFAULT_SEGMENTS));
    let header = shape.response.min(24);
    while server.owed > 0 && batch.fits(header, 2) {
        batch.push_header(&[0x5a; 24][..header])?;
        batch.push_payload(response, 0..(shape.response - header) as u32)?;
        server.owed -= 1;
    }
    server.sending = true;
    server.ring.send(socket, batch, SEND);
    Ok(())
}
