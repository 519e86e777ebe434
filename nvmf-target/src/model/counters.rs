//! Counters of commands and bytes, one line of them for each shard.
//!
//! A shard writes only its own line, with a relaxed load and store; readers sum the lines on demand. So the I/O path
//! shares no cache line with another core and needs no atomic read-modify-write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::histogram::{LatencyHistogram, LatencySummary};

/// What a command counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoClass {
    /// Read, and Compare and Verify, which read.
    Read,
    /// Write and Write Zeroes.
    Write,
    /// Flush.
    Flush,
    /// Dataset Management and whatever else moves no data of the namespace.
    Other,
}

/// The counters that one shard writes.
// Two lines: the adjacent-line prefetcher of x86 pairs 64-byte lines.
#[repr(align(128))]
#[derive(Debug, Default)]
pub struct ShardCounters {
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    others: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    errors: AtomicU64,
    media_errors: AtomicU64,
    read_latency: LatencyHistogram,
    write_latency: LatencyHistogram,
}

#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed) + by, Relaxed);
}

impl ShardCounters {
    /// Counts a command that completed successfully. `bytes` is what it read or wrote of the namespace, `nanos` the time from the
    /// command's arrival to the moment its response was queued.
    #[inline]
    pub fn succeeded(&self, class: IoClass, bytes: u64, nanos: u64) {
        match class {
            IoClass::Read => {
                bump(&self.reads, 1);
                bump(&self.read_bytes, bytes);
                self.read_latency.record(nanos);
            }
            IoClass::Write => {
                bump(&self.writes, 1);
                bump(&self.written_bytes, bytes);
                self.write_latency.record(nanos);
            }
            IoClass::Flush => bump(&self.flushes, 1),
            IoClass::Other => bump(&self.others, 1),
        }
    }

    /// How many commands completed, with whatever status.
    pub fn completed(&self) -> u64 {
        let counters = [
            &self.reads,
            &self.writes,
            &self.flushes,
            &self.others,
            &self.errors,
        ];
        counters.iter().map(|counter| counter.load(Relaxed)).sum()
    }

    /// Counts a command that completed with an error status; `media` when the backing failed (status code type 2h), which
    /// SMART reports as a media and data integrity error.
    pub fn failed(&self, media: bool) {
        bump(&self.errors, 1);
        if media {
            bump(&self.media_errors, 1);
        }
    }
}

/// Counters of one namespace or one controller, over all shards.
#[derive(Debug)]
pub struct IoCounters {
    shards: Box<[ShardCounters]>,
}

impl IoCounters {
    /// Counters for `shards` shards (the number of shards is fixed for the life of the process).
    pub fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..shards).map(|_| ShardCounters::default()).collect(),
        })
    }

    /// The line that shard `index` writes.
    #[inline]
    pub fn shard(&self, index: usize) -> &ShardCounters {
        &self.shards[index]
    }

    /// Sums all shards. Not a consistent snapshot: commands complete while it sums.
    pub fn totals(&self) -> IoTotals {
        let mut totals = IoTotals::default();
        for shard in &self.shards {
            totals.reads += shard.reads.load(Relaxed);
            totals.writes += shard.writes.load(Relaxed);
            totals.flushes += shard.flushes.load(Relaxed);
            totals.others += shard.others.load(Relaxed);
            totals.read_bytes += shard.read_bytes.load(Relaxed);
            totals.written_bytes += shard.written_bytes.load(Relaxed);
            totals.errors += shard.errors.load(Relaxed);
            totals.media_errors += shard.media_errors.load(Relaxed);
            shard.read_latency.add_to(&mut totals.read_latency);
            shard.write_latency.add_to(&mut totals.write_latency);
        }
        totals
    }
}

/// The sum of [`IoCounters`] over the shards.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct IoTotals {
    /// Read, Compare and Verify commands that succeeded.
    pub reads: u64,
    /// Write and Write Zeroes commands that succeeded.
    pub writes: u64,
    /// Flush commands that succeeded.
    pub flushes: u64,
    /// Other I/O commands that succeeded.
    pub others: u64,
    /// Bytes read by the commands of `reads`.
    pub read_bytes: u64,
    /// Bytes written by the commands of `writes`.
    pub written_bytes: u64,
    /// Commands that completed with an error status.
    pub errors: u64,
    /// Those of `errors` where the backing failed (status code type 2h).
    pub media_errors: u64,
    /// From the arrival of a read to its response being queued.
    pub read_latency: LatencySummary,
    /// From the arrival of a write to its response being queued.
    pub write_latency: LatencySummary,
}

impl IoTotals {
    /// Adds `other`, for a subsystem's sum over its namespaces.
    pub fn add(&mut self, other: &IoTotals) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.others += other.others;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
        self.errors += other.errors;
        self.media_errors += other.media_errors;
        self.read_latency.add(&other.read_latency);
        self.write_latency.add(&other.write_latency);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_sum_the_shards() {
        let counters = IoCounters::new(3);
        counters.shard(0).succeeded(IoClass::Read, 4096, 900);
        counters.shard(2).succeeded(IoClass::Read, 512, 2_000);
        counters.shard(2).succeeded(IoClass::Write, 8192, 5_000);
        counters.shard(1).succeeded(IoClass::Flush, 0, 0);
        counters.shard(1).succeeded(IoClass::Other, 0, 0);
        counters.shard(1).failed(false);
        counters.shard(1).failed(true);
        let mut totals = counters.totals();
        assert_eq!(
            (totals.reads, totals.writes, totals.flushes, totals.others),
            (2, 1, 1, 1)
        );
        assert_eq!((totals.read_bytes, totals.written_bytes), (4608, 8192));
        assert_eq!((totals.errors, totals.media_errors), (2, 1));
        let completed: Vec<u64> = (0..3).map(|i| counters.shard(i).completed()).collect();
        assert_eq!(completed, [1, 4, 2]);
        assert_eq!(
            (totals.read_latency.count(), totals.write_latency.count()),
            (2, 1)
        );
        totals.add(&counters.totals());
        assert_eq!((totals.reads, totals.read_latency.count()), (4, 4));
    }
}
