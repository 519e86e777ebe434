//! A latency histogram that one thread writes and any thread reads.
//!
//! Buckets are log-linear: each power of two of nanoseconds is cut into [`SUB_BUCKETS`] equal parts, so
//! that a bucket is never wider than 1/8 of its lower bound. The writer uses a relaxed load and a relaxed
//! store, never a read-modify-write: there is one writer for each histogram, by construction of
//! [`super::counters::IoCounters`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Equal parts that each power of two is cut into: 12.5 % resolution.
const SUB_BUCKETS: u64 = 8;
const SUB_BITS: u32 = SUB_BUCKETS.trailing_zeros();
/// Everything below 2^6 ns shares the first octave: it is less than one clock read.
const FIRST_OCTAVE: u32 = 6;
/// Everything above 2^36 ns (69 s) is counted in the last bucket: hosts time out long before.
const LAST_OCTAVE: u32 = 36;
/// Number of buckets.
pub const BUCKETS: usize = ((LAST_OCTAVE - FIRST_OCTAVE) as usize) * SUB_BUCKETS as usize + 1;

/// Index of the bucket that counts `nanos`.
fn bucket_of(nanos: u64) -> usize {
    if nanos < 1 << FIRST_OCTAVE {
        return 0;
    }
    let octave = 63 - nanos.leading_zeros();
    if octave >= LAST_OCTAVE {
        return BUCKETS - 1;
    }
    let sub = (nanos >> (octave - SUB_BITS)) & (SUB_BUCKETS - 1);
    ((octave - FIRST_OCTAVE) as u64 * SUB_BUCKETS + sub) as usize
}

/// Highest value, in nanoseconds, that bucket `index` counts.
fn upper_bound_nanos(index: usize) -> u64 {
    let octave = FIRST_OCTAVE + (index as u64 / SUB_BUCKETS) as u32;
    let sub = index as u64 % SUB_BUCKETS;
    (1u64 << octave) + ((sub + 1) << (octave - SUB_BITS)) - 1
}

/// The live histogram: written by one shard, read by anyone.
#[derive(Debug)]
pub struct LatencyHistogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }
}

impl LatencyHistogram {
    /// Counts one latency. Only the owning shard may call this.
    #[inline]
    pub fn record(&self, nanos: u64) {
        let bucket = &self.buckets[bucket_of(nanos)];
        bucket.store(bucket.load(Relaxed) + 1, Relaxed);
    }

    /// Adds the counts of this histogram to `sum`.
    pub fn add_to(&self, sum: &mut LatencySummary) {
        for (bucket, total) in self.buckets.iter().zip(sum.buckets.iter_mut()) {
            *total += bucket.load(Relaxed);
        }
    }
}

/// Summed counts of any number of [`LatencyHistogram`]s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencySummary {
    buckets: Box<[u64; BUCKETS]>,
}

impl Default for LatencySummary {
    fn default() -> Self {
        Self {
            buckets: Box::new([0; BUCKETS]),
        }
    }
}

impl LatencySummary {
    /// Adds the counts of `other`.
    pub fn add(&mut self, other: &LatencySummary) {
        for (total, n) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *total += n;
        }
    }

    /// Number of latencies counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The latency in nanoseconds that `fraction` (0.0 to 1.0) of all commands did not exceed, rounded up to its
    /// bucket's bound; `None` when nothing was counted.
    pub fn quantile_nanos(&self, fraction: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * fraction).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        self.buckets.iter().enumerate().find_map(|(index, n)| {
            seen += n;
            (seen >= rank).then(|| upper_bound_nanos(index))
        })
    }

    /// The non-empty buckets as (upper bound in nanoseconds, count), ascending: what a metrics page prints.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets
            .iter()
            .enumerate()
            .filter(|(_, n)| **n != 0)
            .map(|(index, n)| (upper_bound_nanos(index), *n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_its_bucket_and_buckets_are_narrow() {
        let mut last = 0;
        for shift in 0..63 {
            for part in 0..16u64 {
                let nanos = (1u64 << shift) + ((part << shift) >> 4);
                let index = bucket_of(nanos);
                assert!(index >= last, "buckets must ascend with the value {nanos}");
                last = index;
                if (1 << FIRST_OCTAVE..1 << LAST_OCTAVE).contains(&nanos) {
                    let upper = upper_bound_nanos(index);
                    assert!(
                        nanos <= upper && upper < nanos + nanos / 8 + 1,
                        "{nanos} in a bucket up to {upper}"
                    );
                }
            }
        }
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_follow_the_counts() {
        let histogram = LatencyHistogram::default();
        for _ in 0..99 {
            histogram.record(1_000);
        }
        histogram.record(1_000_000);
        let mut sum = LatencySummary::default();
        assert_eq!(sum.quantile_nanos(0.5), None);
        histogram.add_to(&mut sum);
        histogram.add_to(&mut sum);
        assert_eq!(sum.count(), 200);
        assert!((1_000..1_125).contains(&sum.quantile_nanos(0.99).unwrap()));
        assert!((1_000_000..1_125_000).contains(&sum.quantile_nanos(0.999).unwrap()));
        assert_eq!(sum.buckets().map(|(_, n)| n).collect::<Vec<_>>(), [198, 2]);
    }
}
