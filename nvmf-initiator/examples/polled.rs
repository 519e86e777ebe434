//! Writes a pattern to the first megabytes of a namespace, reads it back and compares: `polled URL [MIB]`.
//!
//! It overwrites what is there.

use std::collections::VecDeque;
use std::time::Instant;

use nvmf_initiator::polled::{Done, Op, Request, Session, SessionConfig, Wait};
use nvmf_initiator::wire::Lba;

const CHUNK_BYTES: u32 = 64 << 10;
const DEPTH: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("usage: polled URL [MIB]")?;
    let mib: u64 = args.next().map_or(Ok(16), |text| text.parse())?;
    let mut session = Session::connect(&url, &SessionConfig::default())?;
    println!("{:?}\n{:?}", session.controller(), session.namespace());
    let chunks = (mib << 20) / u64::from(CHUNK_BYTES);
    for op in [Op::Write { fua: false }, Op::Read] {
        let start = Instant::now();
        pass(&mut session, op, chunks)?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{op:?}: {mib} MiB in {seconds:.3} s, {:.0} MiB/s",
            mib as f64 / seconds
        );
    }
    one(&mut session, Op::Flush, 0)?;
    session.disconnect();
    Ok(())
}

/// All chunks, [`DEPTH`] at a time.
fn pass(session: &mut Session, op: Op, chunks: u64) -> Result<(), Box<dyn std::error::Error>> {
    let blocks = u64::from(CHUNK_BYTES / session.namespace().block_bytes);
    let mut idle: VecDeque<_> = (0..DEPTH)
        .map(|_| session.alloc(CHUNK_BYTES).expect("a new pool is not dry"))
        .collect();
    let mut busy: Vec<_> = (0..chunks).map(|_| None).collect();
    let (mut next, mut open) = (0, 0);
    let mut done: Vec<Done> = Vec::new();
    while next < chunks || open > 0 {
        while next < chunks
            && let Some(buf) = idle.pop_front()
        {
            match op {
                Op::Read => buf.fill(0..CHUNK_BYTES, 0xee),
                _ => buf.copy_in(0, &pattern(next)),
            }
            session.submit(Request {
                op,
                slba: Lba(next * blocks),
                blocks,
                buf: Some(buf.clone()),
                buf_offset_bytes: 0,
                tag: next,
            })?;
            busy[next as usize] = Some(buf);
            (next, open) = (next + 1, open + 1);
        }
        session.poll(Wait::Block, &mut done)?;
        for Done { tag, result } in done.drain(..) {
            result?;
            open -= 1;
            let buf = busy[tag as usize].take().ok_or("answered twice")?;
            if op == Op::Read {
                let mut got = vec![0; CHUNK_BYTES as usize];
                buf.copy_out(0, &mut got);
                if got != pattern(tag) {
                    return Err(format!("chunk {tag} came back different").into());
                }
            }
            idle.push_back(buf);
        }
    }
    Ok(())
}

fn one(session: &mut Session, op: Op, tag: u64) -> Result<(), Box<dyn std::error::Error>> {
    session.submit(Request {
        op,
        slba: Lba(0),
        blocks: 0,
        buf: None,
        buf_offset_bytes: 0,
        tag,
    })?;
    let mut done = Vec::new();
    while done.is_empty() {
        session.poll(Wait::Block, &mut done)?;
    }
    Ok(done[0].result?)
}

/// Different in each chunk and in each word of it.
fn pattern(chunk: u64) -> Vec<u8> {
    let words = 0..u64::from(CHUNK_BYTES) / 8;
    words
        .flat_map(|word| (chunk << 32 ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}
