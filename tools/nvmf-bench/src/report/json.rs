//! fio's JSON, so that scripts and plots made for fio read our results.
//!
//! Keys and units are fio's: `bw` in KiB/s, `iops` as a number, `clat_ns` with percentiles named to six places. What is not
//! measured here (slat) is left at zero, as fio does where an engine does not report it.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::cli::JobSpec;
use crate::stats::{Direction, JobStats};

const PERCENTILES: [f64; 17] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95,
    99.99,
];

/// The whole document.
pub fn document(jobs: &[(JobSpec, JobStats)]) -> Value {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    json!({
        "fio version": concat!("nvmf-bench-", env!("CARGO_PKG_VERSION")),
        "timestamp": now.as_secs(),
        "timestamp_ms": now.as_millis() as u64,
        "jobs": jobs.iter().enumerate().map(|(i, (spec, stats))| job(i, spec, stats)).collect::<Vec<_>>(),
    })
}

fn job(index: usize, spec: &JobSpec, stats: &JobStats) -> Value {
    let seconds = stats.elapsed.as_secs_f64().max(1e-9);
    json!({
        "jobname": spec.name,
        "groupid": index,
        "job_start": 0,
        "error": u32::from(stats.errors > 0) * 5,
        "eta": 0,
        "elapsed": stats.elapsed.as_secs().max(1),
        "job options": {
            "filename": spec.filename, "rw": spec.rw.name(), "bs": spec.bs.to_string(), "iodepth": spec.iodepth.to_string(),
            "numjobs": spec.numjobs.to_string(), "rwmixread": spec.rwmixread.to_string(),
        },
        "read": direction(&stats.read, stats),
        "write": direction(&stats.write, stats),
        "trim": direction(&Direction::default(), stats),
        "sync": { "total_ios": 0, "lat_ns": latency(&Direction::default(), false) },
        "job_runtime": stats.elapsed.as_millis() as u64,
        "usr_cpu": stats.user_cpu.as_secs_f64() / seconds * 100.0,
        "sys_cpu": stats.system_cpu.as_secs_f64() / seconds * 100.0,
        "total_err": stats.errors,
        "verified_blocks": stats.verified_blocks,
        "errors": stats.error_samples,
        "rdma": stats.rdma.as_ref().map(|counts| json!({
            "work_requests": counts.work.work_requests(),
            "sends": counts.work.sends,
            "binds": counts.work.binds,
            "invalidations": counts.work.invalidations,
            "posts": counts.work.posts,
            "signalled": counts.work.signalled,
            "receives": counts.work.receives,
            "completions": counts.work.completions,
            "registrations": counts.registrations,
        })),
    })
}

fn direction(figures: &Direction, stats: &JobStats) -> Value {
    let bandwidth = stats.bandwidth(figures);
    json!({
        "io_bytes": figures.bytes,
        "io_kbytes": figures.bytes >> 10,
        "bw_bytes": bandwidth as u64,
        "bw": (bandwidth / 1024.0) as u64,
        "iops": stats.iops(figures),
        "runtime": stats.elapsed.as_millis() as u64,
        "total_ios": figures.ios,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": { "min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0 },
        "clat_ns": latency(figures, true),
        "lat_ns": latency(figures, false),
    })
}

fn latency(figures: &Direction, percentiles: bool) -> Value {
    let histogram = &figures.latency;
    let empty = histogram.is_empty();
    let mut value = json!({
        "min": if empty { 0 } else { histogram.min() },
        "max": histogram.max(),
        "mean": histogram.mean(),
        "stddev": histogram.stdev(),
        "N": histogram.len(),
    });
    if percentiles && !empty {
        let table: Map<String, Value> = PERCENTILES
            .iter()
            .map(|p| (format!("{p:.6}"), histogram.value_at_percentile(*p).into()))
            .collect();
        value["percentile"] = Value::Object(table);
    }
    value
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::jobfile;

    #[test]
    fn keys_are_those_of_fio() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.fio");
        std::fs::write(&path, "[one]\nfilename=/dev/null\nrw=randread\n").unwrap();
        let spec = jobfile::read(&path).unwrap().remove(0);
        let mut stats = JobStats {
            elapsed: Duration::from_secs(2),
            ..JobStats::default()
        };
        (1..=100).for_each(|us| stats.read.record(4096, Duration::from_micros(us)));
        let document = document(&[(spec, stats)]);
        let read = &document["jobs"][0]["read"];
        assert_eq!(read["iops"], 50.0);
        assert_eq!(read["bw"], 200);
        assert_eq!(read["total_ios"], 100);
        let p50 = read["clat_ns"]["percentile"]["50.000000"].as_u64().unwrap();
        assert!((50_000..=50_100).contains(&p50), "{p50}");
        assert_eq!(document["jobs"][0]["write"]["clat_ns"]["min"], 0);
    }
}
