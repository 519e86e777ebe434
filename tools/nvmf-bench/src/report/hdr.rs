//! The HdrHistogram interval log: one tagged interval for each job and direction.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::cli::JobSpec;
use crate::stats::JobStats;

/// Writes `path`. Values are nanoseconds.
pub fn write(path: &Path, jobs: &[(JobSpec, JobStats)]) -> Result<()> {
    let mut out = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder
        .add_comment("nvmf-bench latency in nanoseconds")
        .with_start_time(SystemTime::now())
        .with_max_value_divisor(1e6);
    let mut log = builder
        .begin_log_with(&mut out, &mut serializer)
        .context("beginning the histogram log")?;
    for (spec, stats) in jobs {
        for (word, direction) in [("read", &stats.read), ("write", &stats.write)] {
            if direction.ios > 0 {
                let name: String = format!("{}-{word}", spec.name)
                    .chars()
                    .map(|c| {
                        if c == ',' || c.is_whitespace() {
                            '_'
                        } else {
                            c
                        }
                    })
                    .collect();
                let tag = Tag::new(&name).context("a job's name")?;
                log.write_histogram(&direction.latency, Duration::ZERO, stats.elapsed, Some(tag))
                    .map_err(|e| anyhow::anyhow!("histogram log: {e:?}"))?;
            }
        }
    }
    std::fs::File::create(path)
        .and_then(|mut f| f.write_all(&out))
        .with_context(|| format!("writing {}", path.display()))
}
