//! `nvmf-bench compare A B`: the same workloads on both in turn, several rounds, and one table with the ratios.
//!
//! Machines drift; a ratio taken within one round does not. Each round runs A and B one right after the other, the first of
//! the two changing from round to round, and the table shows the median over rounds with the least and the most.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cli::{Compare, JobSpec, Workload};
use crate::interrupt;
use crate::run;
use crate::stats::JobStats;
use crate::units::{show_bytes, show_count, show_ns};

/// How long each run counts where --runtime is not given.
const DEFAULT_RUNTIME: Duration = Duration::from_secs(5);
/// How long each run warms up where --ramp-time is not given.
const DEFAULT_RAMP: Duration = Duration::from_millis(500);

/// One side of one row in one round.
pub struct Sample {
    /// I/Os a second.
    pub iops: f64,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Mean, then the percentiles of the tables, in nanoseconds.
    pub latency_ns: [f64; 5],
    /// CPU time for each I/O in nanoseconds: this process's, and the target's where its pid was given.
    pub cpu_ns: f64,
}

/// One row: all rounds of one workload.
pub struct Row {
    /// The workload's name.
    pub name: String,
    /// A's samples, one a round.
    pub a: Vec<Sample>,
    /// B's samples.
    pub b: Vec<Sample>,
    /// The last round's figures, for the plot.
    pub last: (JobStats, JobStats),
    /// Errors on either side, in words.
    pub errors: Vec<String>,
}

/// Runs the comparison.
pub fn compare(options: &Compare) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (index, workload) in options.workloads.iter().enumerate() {
        let mut row = Row {
            name: workload.name(),
            a: Vec::new(),
            b: Vec::new(),
            last: Default::default(),
            errors: Vec::new(),
        };
        for round in 0..options.rounds {
            if !options.output.quiet {
                eprintln!(
                    "[{}/{}] {}, round {} of {}",
                    index + 1,
                    options.workloads.len(),
                    row.name,
                    round + 1,
                    options.rounds
                );
            }
            for turn in 0..2 {
                let is_a = (turn + round) % 2 == 0;
                let place = if is_a { &options.a } else { &options.b };
                let spec = job(options, workload, place);
                let target = options.target_pid.filter(|_| is_a);
                let before = target.map(target_cpu).transpose()?;
                let stats = run::together(std::slice::from_ref(&spec), false)?.remove(0);
                let target_cpu = match (target, before) {
                    (Some(pid), Some(before)) => target_cpu(pid)?.saturating_sub(before),
                    _ => Duration::ZERO,
                };
                row.errors
                    .extend(stats.error_samples.iter().map(|e| format!("{place}: {e}")));
                if interrupt::came() {
                    // Only rounds of which both sides are there say something.
                    let whole = row.a.len().min(row.b.len());
                    row.a.truncate(whole);
                    row.b.truncate(whole);
                    rows.extend((whole > 0).then_some(row));
                    return Ok(rows);
                }
                let sample = sample(&spec, &stats, target_cpu);
                if is_a {
                    row.a.push(sample);
                    row.last.0 = stats;
                } else {
                    row.b.push(sample);
                    row.last.1 = stats;
                }
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

fn job(options: &Compare, workload: &Workload, place: &str) -> JobSpec {
    let mut spec = options.job.clone();
    spec.filename = Some(place.to_owned());
    (spec.rw, spec.bs, spec.iodepth) = (workload.rw, workload.block_bytes, workload.iodepth);
    spec.runtime.get_or_insert(DEFAULT_RUNTIME);
    spec.time_based = true;
    if spec.ramp_time.is_zero() {
        spec.ramp_time = DEFAULT_RAMP;
    }
    spec
}

/// The target runs through ramp and drain too: its time is scaled to the counted part.
fn sample(spec: &JobSpec, stats: &JobStats, target_cpu: Duration) -> Sample {
    let total = stats.total();
    let ios = total.ios.max(1) as f64;
    let counted =
        stats.elapsed.as_secs_f64() / (stats.elapsed + spec.ramp_time).as_secs_f64().max(1e-9);
    let at = |p| total.latency.value_at_percentile(p) as f64;
    Sample {
        iops: stats.iops(&total),
        bandwidth: stats.bandwidth(&total),
        latency_ns: [
            total.latency.mean(),
            at(50.0),
            at(99.0),
            at(99.9),
            at(99.99),
        ],
        cpu_ns: ((stats.user_cpu + stats.system_cpu).as_nanos() as f64
            + target_cpu.as_nanos() as f64 * counted)
            / ios,
    }
}

fn target_cpu(pid: u32) -> Result<Duration> {
    nvmf_io::process::cpu_time_of(pid).map_err(|e| anyhow::anyhow!("--target-pid {pid}: {e}"))
}

/// Least, median and most.
pub fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => [0.0; 3],
        n if n % 2 == 0 => [
            values[0],
            (values[n / 2 - 1] + values[n / 2]) / 2.0,
            values[n - 1],
        ],
        n => [values[0], values[n / 2], values[n - 1]],
    }
}

fn ratio(row: &Row, of: impl Fn(&Sample) -> f64) -> [f64; 3] {
    spread(
        row.a
            .iter()
            .zip(&row.b)
            .map(|(a, b)| of(a) / of(b).max(1e-9)),
    )
}

/// The table for people.
pub fn table(options: &Compare, rows: &[Row]) -> String {
    let mut out = format!(
        "A = {}\nB = {}\n{} round(s), medians; ratio = A/B within a round (least..most)\n\n",
        options.a, options.b, options.rounds
    );
    out.push_str(&format!(
        "{:<20} {:<4} {:>9} {:>12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9}\n",
        "workload", "", "IOPS", "bandwidth", "mean", "p50", "p99", "p99.9", "p99.99", "CPU/IO"
    ));
    for row in rows {
        for (side, samples) in [("A", &row.a), ("B", &row.b)] {
            let median = |of: &dyn Fn(&Sample) -> f64| spread(samples.iter().map(of))[1];
            let latency: Vec<String> = (0..5)
                .map(|i| format!("{:>10}", show_ns(median(&|s| s.latency_ns[i]))))
                .collect();
            out.push_str(&format!(
                "{:<20} {side:<4} {:>9} {:>12} {} {:>9}\n",
                if side == "A" { row.name.as_str() } else { "" },
                show_count(median(&|s| s.iops)),
                format!("{}/s", show_bytes(median(&|s| s.bandwidth))),
                latency.join(" "),
                show_ns(median(&|s| s.cpu_ns)),
            ));
        }
        let [least, median, most] = ratio(row, |s| s.iops);
        let latency: Vec<String> = (0..5)
            .map(|i| format!("{:>10.2}", ratio(row, |s| s.latency_ns[i])[1]))
            .collect();
        out.push_str(&format!(
            "{:<20} {:<4} {:>9.2} {:>12} {} {:>9.2}\n",
            "",
            "A/B",
            median,
            format!("({least:.2}..{most:.2})"),
            latency.join(" "),
            ratio(row, |s| s.cpu_ns)[1],
        ));
        row.errors
            .iter()
            .for_each(|e| out.push_str(&format!("  ERROR {e}\n")));
    }
    out
}

/// The table for scripts.
pub fn json(options: &Compare, rows: &[Row]) -> Value {
    let side = |samples: &[Sample]| {
        json!({
            "iops": spread(samples.iter().map(|s| s.iops)), "bw_bytes": spread(samples.iter().map(|s| s.bandwidth)),
            "lat_ns": { "mean": spread(samples.iter().map(|s| s.latency_ns[0]))[1], "p50": spread(samples.iter().map(|s| s.latency_ns[1]))[1],
                "p99": spread(samples.iter().map(|s| s.latency_ns[2]))[1], "p99.9": spread(samples.iter().map(|s| s.latency_ns[3]))[1],
                "p99.99": spread(samples.iter().map(|s| s.latency_ns[4]))[1] },
            "cpu_ns_per_io": spread(samples.iter().map(|s| s.cpu_ns))[1],
        })
    };
    json!({
        "a": options.a, "b": options.b, "rounds": options.rounds,
        "rows": rows.iter().map(|row| json!({
            "workload": row.name, "a": side(&row.a), "b": side(&row.b), "errors": row.errors,
            "ratio": { "iops": ratio(row, |s| s.iops), "mean": ratio(row, |s| s.latency_ns[0]), "p99": ratio(row, |s| s.latency_ns[2]), "cpu": ratio(row, |s| s.cpu_ns) },
        })).collect::<Vec<_>>(),
        "order": "arrays are [least, median, most]",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(spread([3.0, 1.0, 2.0].into_iter()), [1.0, 2.0, 3.0]);
        assert_eq!(spread([4.0, 1.0].into_iter()), [1.0, 2.5, 4.0]);
        assert_eq!(spread(std::iter::empty()), [0.0; 3]);
    }
}
