//! Runs jobs: a thread for each, a line of progress, and the figures gathered at the end.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::cli::JobSpec;
use crate::engine::{Engine, FileEngine, NvmfEngine, is_remote};
use crate::interrupt;
use crate::stats::JobStats;
use crate::units::{show_bytes, show_count};
use crate::worker::{Shared, Worker};

/// How often the thread that shows progress looks whether it should stop the others.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Runs all `jobs` at the same time, but for those that wait for the ones before them, and returns their figures in the same order. Those that
/// were not begun or could not be, because of an error or a signal, are left out at the end; with the error, if there is one besides those of I/O.
pub fn run(jobs: &[JobSpec], progress: bool) -> (Vec<JobStats>, Option<anyhow::Error>) {
    let mut all = Vec::with_capacity(jobs.len());
    for at_once in jobs.chunk_by(|_, next| !next.stonewall) {
        let stats = match together(at_once, progress) {
            Ok(stats) => stats,
            Err(error) => return (all, Some(error)),
        };
        let failed = stats.iter().any(|stats| stats.errors > 0);
        all.extend(stats);
        if failed || interrupt::came() {
            break;
        }
    }
    (all, None)
}

/// Runs all `jobs` at the same time.
pub fn together(jobs: &[JobSpec], progress: bool) -> Result<Vec<JobStats>> {
    let threads: Vec<(usize, u64)> = jobs
        .iter()
        .enumerate()
        .flat_map(|(j, spec)| (0..u64::from(spec.numjobs)).map(move |t| (j, t)))
        .collect();
    let shared: Arc<Vec<Shared>> = Arc::new(threads.iter().map(|_| Shared::default()).collect());
    // All places are open and all buffers there before the first I/O is sent.
    let ready = Barrier::new(threads.len());
    let (sender, results) = channel();
    let mut stats: Vec<JobStats> = vec![JobStats::default(); jobs.len()];
    std::thread::scope(|scope| {
        for (index, &(job, thread)) in threads.iter().enumerate() {
            let (sender, shared, ready) = (sender.clone(), &shared[index], &ready);
            let spec = &jobs[job];
            std::thread::Builder::new()
                .name(format!("{}.{thread}", spec.name))
                .spawn_scoped(scope, move || {
                    let outcome = one_thread(spec, shared, ready, thread);
                    let _ = sender.send((job, outcome));
                })
                .context("starting a job's thread")?;
        }
        drop(sender);
        let mut meter = Meter::new(progress);
        let mut failure = None;
        loop {
            if interrupt::came() {
                stop(&shared);
            }
            match results.recv_timeout(LOOK_UP) {
                Ok((job, Ok(figures))) => {
                    if figures.errors > 0 {
                        stop(&shared);
                    }
                    stats[job].add(figures);
                }
                Ok((job, Err(error))) => {
                    stop(&shared);
                    failure.get_or_insert_with(|| error.context(format!("job {}", jobs[job].name)));
                }
                Err(RecvTimeoutError::Timeout) => meter.show(&shared),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        meter.end();
        failure.map_or(Ok(()), Err)
    })?;
    Ok(stats)
}

fn stop(shared: &[Shared]) {
    shared
        .iter()
        .for_each(|s| s.stop.store(true, Ordering::Relaxed));
}

fn one_thread(spec: &JobSpec, shared: &Shared, ready: &Barrier, thread: u64) -> Result<JobStats> {
    let what = spec.check().map_err(|wrong| anyhow!(wrong));
    let what = what.map(|()| spec.filename.as_deref().unwrap_or_default());
    let opened = what.and_then(|what| {
        if let Some(cores) = &spec.cpus_allowed {
            let core = cores[thread as usize % cores.len()];
            nvmf_io::cpu::pin(core).with_context(|| format!("--cpus-allowed: core {core}"))?;
        }
        Ok(what)
    });
    match opened {
        Ok(what) if is_remote(what) => {
            drive(NvmfEngine::open(what, spec), spec, shared, ready, thread)
        }
        Ok(what) => drive(FileEngine::open(what, spec), spec, shared, ready, thread),
        Err(error) => {
            ready.wait();
            Err(error)
        }
    }
}

fn drive<E: Engine>(
    engine: Result<E>,
    spec: &JobSpec,
    shared: &Shared,
    ready: &Barrier,
    thread: u64,
) -> Result<JobStats> {
    let worker = engine.and_then(|engine| Worker::new(engine, spec, shared, thread));
    // Waiting comes before the error is looked at: the others must not wait for ever for a thread that failed.
    ready.wait();
    worker?.run()
}

/// One line on a terminal, rewritten each second; a line every ten seconds elsewhere.
struct Meter {
    on: bool,
    terminal: bool,
    began: Instant,
    last: (Instant, u64, u64),
    shown_at: Instant,
    shown: u32,
}

impl Meter {
    fn new(on: bool) -> Self {
        let now = Instant::now();
        Self {
            on,
            terminal: std::io::stderr().is_terminal(),
            began: now,
            last: (now, 0, 0),
            shown_at: now,
            shown: 0,
        }
    }

    fn show(&mut self, shared: &[Shared]) {
        if self.shown_at.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.shown_at = Instant::now();
        self.shown += 1;
        if !self.on || (!self.terminal && !self.shown.is_multiple_of(10)) {
            return;
        }
        let now = Instant::now();
        let ios: u64 = shared.iter().map(|s| s.ios.load(Ordering::Relaxed)).sum();
        let bytes: u64 = shared.iter().map(|s| s.bytes.load(Ordering::Relaxed)).sum();
        let seconds = (now - self.last.0).as_secs_f64();
        let line = format!(
            "[{:>4} s] {} IOPS, {}/s",
            self.began.elapsed().as_secs(),
            show_count((ios - self.last.1) as f64 / seconds),
            show_bytes((bytes - self.last.2) as f64 / seconds)
        );
        self.last = (now, ios, bytes);
        if self.terminal {
            eprint!("\r\x1b[K{line}")
        } else {
            eprintln!("{line}")
        }
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.on && self.terminal && self.shown > 0 {
            eprint!("\r\x1b[K");
        }
    }
}
