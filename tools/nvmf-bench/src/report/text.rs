//! The result for people, in fio's order: a line of rates and one of latency for each direction.

use std::fmt::Write;

use nvmf_initiator::polled::RdmaCounts;

use crate::cli::JobSpec;
use crate::report::TABLE_PERCENTILES;
use crate::stats::{Direction, JobStats};
use crate::units::{show_bytes, show_count, show_ns};

/// One job's result.
pub fn job(spec: &JobSpec, stats: &JobStats) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}: rw={} bs={} iodepth={} numjobs={} on {}",
        spec.name,
        spec.rw.name(),
        show_bytes(f64::from(spec.bs)),
        spec.iodepth,
        spec.numjobs,
        spec.filename.as_deref().unwrap_or("?")
    );
    for (word, direction) in [("read", &stats.read), ("write", &stats.write)] {
        if direction.ios > 0 {
            lines(&mut out, word, direction, stats);
        }
    }
    let total = stats.total().ios.max(1) as f64;
    let seconds = stats.elapsed.as_secs_f64().max(1e-9);
    let _ = writeln!(
        out,
        "  cpu: usr={:.1}% sys={:.1}%, {:.2} us for each I/O in this process",
        stats.user_cpu.as_secs_f64() / seconds * 100.0,
        stats.system_cpu.as_secs_f64() / seconds * 100.0,
        (stats.user_cpu + stats.system_cpu).as_secs_f64() * 1e6 / total
    );
    if stats.verified_blocks > 0 {
        let _ = writeln!(out, "  verify: {} blocks checked", stats.verified_blocks);
    }
    if let Some(RdmaCounts {
        work,
        registrations,
    }) = &stats.rdma
    {
        let _ = writeln!(
            out,
            "  rdma: {} work requests in {} posts, {} of them signalled, {} receives, {} completions, {registrations} registrations",
            work.work_requests(),
            work.posts,
            work.signalled,
            work.receives,
            work.completions
        );
        if work.binds > 0 {
            let _ = writeln!(
                out,
                "  memory windows: {} bound, {} closed by this host",
                work.binds, work.invalidations
            );
        }
    }
    if stats.errors > 0 {
        let _ = writeln!(out, "  ERRORS: {}", stats.errors);
        for error in &stats.error_samples {
            let _ = writeln!(out, "    {error}");
        }
    }
    out
}

fn lines(out: &mut String, word: &str, direction: &Direction, stats: &JobStats) {
    let _ = writeln!(
        out,
        "  {word}: IOPS={}, BW={}/s ({} in {:.2} s)",
        show_count(stats.iops(direction)),
        show_bytes(stats.bandwidth(direction)),
        show_bytes(direction.bytes as f64),
        stats.elapsed.as_secs_f64()
    );
    let latency = &direction.latency;
    let _ = write!(
        out,
        "    lat: min={}, mean={}, max={}",
        show_ns(latency.min() as f64),
        show_ns(latency.mean()),
        show_ns(latency.max() as f64)
    );
    for percentile in TABLE_PERCENTILES {
        let _ = write!(
            out,
            ", p{percentile}={}",
            show_ns(latency.value_at_percentile(percentile) as f64)
        );
    }
    out.push('\n');
}
