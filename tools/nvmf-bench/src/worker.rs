//! One thread of a job: keeps `iodepth` I/Os in flight, counts them, and reads back what it wrote where asked to.
//!
//! Invariants: a tag is either free or names exactly one I/O in flight; in a verifying job two writes of the same block are
//! never in flight together (a pass ends before the next begins), so the last acknowledged one is what must be read back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nvmf_io::Buf;

use crate::cli::{JobSpec, Verify};
use crate::engine::{Done, Engine};
use crate::pattern::{Order, next_random};
use crate::stats::JobStats;
use crate::verify;

/// How often a sleeping worker looks whether it should stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How long the last I/Os may take after the time is up.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// What a worker shares with the thread that shows progress.
#[derive(Default)]
pub struct Shared {
    /// I/Os done so far, ramp time included.
    pub ios: AtomicU64,
    /// Bytes moved so far.
    pub bytes: AtomicU64,
    /// Set to make the worker stop early.
    pub stop: AtomicBool,
}

struct Slot {
    buf: Buf,
    block: u64,
    kind: Kind,
    submitted: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// The read-back after the run: checked, not timed.
    Check,
}

/// A job's thread.
pub struct Worker<'a, E> {
    engine: E,
    spec: &'a JobSpec,
    shared: &'a Shared,
    order: Order,
    slots: Vec<Slot>,
    free: Vec<u16>,
    done: Vec<Done>,
    stats: JobStats,
    /// For each block of a verifying writer: 0 = not written, else the pass of its last write plus one.
    written: Vec<u32>,
    /// One block, for stamping and checking.
    scratch: Vec<u8>,
    base: u64,
    seed: u64,
}

impl<'a, E: Engine> Worker<'a, E> {
    /// Checks the job against the place and allocates its buffers. `thread` counts the job's threads.
    pub fn new(mut engine: E, spec: &'a JobSpec, shared: &'a Shared, thread: u64) -> Result<Self> {
        let verifying_writer = spec.verify != Verify::None && spec.rw.writes();
        // Writers that verify must not overwrite each other: each thread gets a part of its own.
        let parts = if verifying_writer {
            u64::from(spec.numjobs)
        } else {
            1
        };
        let blocks = range_blocks(spec, engine.size_bytes(), engine.block_bytes(), parts)?;
        let base = spec.offset
            + if verifying_writer {
                thread * blocks * u64::from(spec.bs)
            } else {
                0
            };
        let seed = spec
            .randseed
            .wrapping_add(thread.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let mut random = seed;
        let mut slots = Vec::with_capacity(spec.iodepth.into());
        for _ in 0..spec.iodepth {
            let mut buf = engine
                .alloc(spec.bs)
                .context("allocating the job's buffers")?;
            let bytes = buf.get_mut().context("a fresh buffer has one owner")?;
            // Incompressible content: a device with compression or zero detection would otherwise flatter itself.
            bytes.chunks_mut(8).for_each(|c| {
                c.copy_from_slice(&next_random(&mut random).to_le_bytes()[..c.len()])
            });
            slots.push(Slot {
                buf,
                block: 0,
                kind: Kind::Read,
                submitted: Instant::now(),
            });
        }
        Ok(Self {
            order: Order::new(blocks, spec.rw.is_random(), seed),
            written: if verifying_writer {
                vec![0; blocks as usize]
            } else {
                Vec::new()
            },
            free: (0..spec.iodepth).rev().collect(),
            done: Vec::with_capacity(spec.iodepth.into()),
            scratch: vec![0; spec.bs as usize],
            stats: JobStats::default(),
            engine,
            spec,
            shared,
            slots,
            base,
            seed,
        })
    }

    /// Runs the job to its end.
    pub fn run(mut self) -> Result<JobStats> {
        let spec = self.spec;
        let read_percent = u64::from(spec.rw.read_percent(spec.rwmixread));
        let mut coin = self.seed ^ 0xc01d_c0de;
        let begin = Instant::now();
        let count_from = begin + spec.ramp_time;
        let deadline = spec.runtime.map(|t| count_from + t);
        let gap = spec
            .rate_iops
            .map(|rate| Duration::from_nanos(1_000_000_000 / rate));
        let mut next_at = begin;
        let mut cpu_at_start = None;
        let mut now = begin;
        loop {
            if cpu_at_start.is_none() && now >= count_from {
                cpu_at_start = Some((now, thread_cpu()));
            }
            let over = deadline.is_some_and(|d| now >= d)
                || self.shared.stop.load(Ordering::Relaxed)
                || self.stats.errors > 0;
            let loops = spec.time_based && deadline.is_some();
            if over || (self.order.pass() > 0 && !loops) {
                break;
            }
            let pass_must_end =
                !self.written.is_empty() && self.order.at_pass_start() && !self.is_idle();
            while !pass_must_end && !self.free.is_empty() && (gap.is_none() || next_at <= now) {
                let pass = self.order.pass();
                let block = self.order.next_block();
                let kind = if read_percent == 100
                    || (read_percent > 0 && next_random(&mut coin) % 100 < read_percent)
                {
                    Kind::Read
                } else {
                    Kind::Write
                };
                self.submit(block, kind, pass, now)?;
                if let Some(gap) = gap {
                    next_at += gap;
                }
                if self.order.at_pass_start() {
                    break;
                }
            }
            let limit = match gap {
                Some(_) if !self.free.is_empty() => {
                    next_at.saturating_duration_since(now).min(LOOK_UP)
                }
                _ => LOOK_UP,
            };
            self.engine.poll(limit, &mut self.done)?;
            now = Instant::now();
            self.account(now, cpu_at_start.is_some());
        }
        self.drain(cpu_at_start.is_some())?;
        if let Some((from, (user, system))) = cpu_at_start {
            let (user_end, system_end) = thread_cpu();
            self.stats.elapsed = from.elapsed();
            self.stats.user_cpu = user_end.saturating_sub(user);
            self.stats.system_cpu = system_end.saturating_sub(system);
        }
        self.read_back()?;
        self.stats.rdma = self.engine.rdma_counts();
        Ok(self.stats)
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn offset(&self, block: u64) -> u64 {
        self.base + block * u64::from(self.spec.bs)
    }

    #[inline]
    fn submit(&mut self, block: u64, kind: Kind, pass: u64, now: Instant) -> Result<()> {
        let offset = self.offset(block);
        let tag = self.free.pop().context("submitted beyond the depth")?;
        let slot = &mut self.slots[usize::from(tag)];
        (slot.block, slot.kind, slot.submitted) = (block, kind, now);
        if kind != Kind::Write {
            return self.engine.read(offset, &slot.buf, tag);
        }
        if let Some(written) = self.written.get_mut(block as usize) {
            *written = pass as u32 + 1;
            // Through a copy: a write may be answered before its send is, and until then the buffer has two owners.
            verify::stamp(&mut self.scratch, offset, u64::from(*written), self.seed);
            slot.buf.copy_in(0, &self.scratch);
        }
        self.engine.write(offset, &slot.buf, tag)
    }

    /// Books what the last poll brought, all at the instant `now`.
    fn account(&mut self, now: Instant, counted: bool) {
        if self.done.is_empty() {
            return;
        }
        let bs = self.spec.bs;
        self.shared
            .ios
            .fetch_add(self.done.len() as u64, Ordering::Relaxed);
        self.shared
            .bytes
            .fetch_add(self.done.len() as u64 * u64::from(bs), Ordering::Relaxed);
        let mut done = std::mem::take(&mut self.done);
        for Done { tag, result } in done.drain(..) {
            self.free.push(tag);
            let slot = &mut self.slots[usize::from(tag)];
            let offset = self.base + slot.block * u64::from(bs);
            if let Err(error) = result {
                let word = if slot.kind == Kind::Write {
                    "write"
                } else {
                    "read"
                };
                self.stats.error(format!(
                    "{word} of {bs} bytes at offset {offset}: {error:#}"
                ));
                continue;
            }
            if counted && slot.kind != Kind::Check {
                let direction = if slot.kind == Kind::Read {
                    &mut self.stats.read
                } else {
                    &mut self.stats.write
                };
                direction.record(bs, now.saturating_duration_since(slot.submitted));
            }
            if slot.kind != Kind::Write && self.spec.verify != Verify::None {
                let expected = match self.written.get(slot.block as usize) {
                    Some(0) => continue,
                    Some(generation) => Some(u64::from(*generation)),
                    None => None,
                };
                slot.buf.copy_out(0, &mut self.scratch);
                match verify::check(&self.scratch, offset, expected) {
                    Ok(()) => self.stats.verified_blocks += 1,
                    Err(mismatch) => self
                        .stats
                        .error(format!("verify at offset {offset}: {mismatch}")),
                }
            }
        }
        self.done = done;
    }

    /// Waits for everything in flight.
    fn drain(&mut self, counted: bool) -> Result<()> {
        let limit = Instant::now() + DRAIN_LIMIT;
        while !self.is_idle() {
            self.engine.poll(LOOK_UP, &mut self.done)?;
            let now = Instant::now();
            self.account(now, counted);
            if now > limit {
                bail!(
                    "{} I/O(s) still in flight {} s after the last was sent",
                    self.slots.len() - self.free.len(),
                    DRAIN_LIMIT.as_secs()
                );
            }
        }
        Ok(())
    }

    /// Reads back every block that a verifying writer wrote.
    fn read_back(&mut self) -> Result<()> {
        for block in 0..self.written.len() as u64 {
            if self.written[block as usize] == 0 || self.stats.errors > 0 {
                continue;
            }
            while self.free.is_empty() {
                self.engine.poll(LOOK_UP, &mut self.done)?;
                self.account(Instant::now(), false);
            }
            self.submit(block, Kind::Check, 0, Instant::now())?;
        }
        self.drain(false)
    }
}

/// The most blocks that a verifying writer keeps track of: 1 TiB of 4 KiB blocks, 1 GiB of memory.
const MAX_VERIFIED_BLOCKS: u64 = 1 << 28;

/// The blocks that each of `parts` threads works over.
fn range_blocks(spec: &JobSpec, size_bytes: u64, unit: u32, parts: u64) -> Result<u64> {
    let (bs, unit) = (u64::from(spec.bs), u64::from(unit));
    if !bs.is_multiple_of(unit) || !spec.offset.is_multiple_of(unit) {
        bail!(
            "bs {bs} and offset {} must be multiples of the place's block of {unit} bytes",
            spec.offset
        );
    }
    let room = size_bytes.saturating_sub(spec.offset);
    if room == 0 {
        bail!(
            "offset {} is not within the place, which holds {size_bytes} bytes",
            spec.offset
        );
    }
    let want = spec.size.unwrap_or(room / parts);
    if want.checked_mul(parts).is_none_or(|all| all > room) {
        bail!(
            "size {want} for each of {parts} range(s) from offset {} does not fit: the place holds {size_bytes} bytes",
            spec.offset
        );
    }
    let blocks = want / bs;
    if blocks == 0 {
        bail!("the range of {want} bytes holds no block of {bs} bytes (--size, --bs)");
    }
    if spec.verify != Verify::None && spec.rw.writes() && blocks > MAX_VERIFIED_BLOCKS {
        bail!(
            "{blocks} blocks are too many to verify in one job: give a --size of at most {} bytes",
            MAX_VERIFIED_BLOCKS * bs
        );
    }
    Ok(blocks)
}

/// CPU time of this thread in user space and in the kernel.
fn thread_cpu() -> (Duration, Duration) {
    nvmf_io::process::thread_cpu_time()
}
