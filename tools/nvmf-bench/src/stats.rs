//! What one job counts: I/Os, bytes, errors and latency, for reads and writes apart.
//!
//! Latency is taken from the instant a batch of I/Os is handed to the ring to the instant the batch of completions that holds
//! it was collected; at most one clock reading a batch, so that measuring does not become the load.

use std::time::Duration;

use hdrhistogram::Histogram;
use nvmf_initiator::polled::RdmaCounts;

/// The longest latency that is told apart, in nanoseconds: longer ones count as this.
const MAX_LATENCY_NS: u64 = 600_000_000_000;

/// One direction's figures.
#[derive(Clone, Debug)]
pub struct Direction {
    /// I/Os that were done.
    pub ios: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Latency in nanoseconds.
    pub latency: Histogram<u64>,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            ios: 0,
            bytes: 0,
            latency: Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3)
                .expect("constant bounds are valid"),
        }
    }
}

impl Direction {
    /// Counts one I/O.
    #[inline]
    pub fn record(&mut self, bytes: u32, latency: Duration) {
        self.ios += 1;
        self.bytes += u64::from(bytes);
        self.latency.saturating_record(
            u64::try_from(latency.as_nanos())
                .unwrap_or(MAX_LATENCY_NS)
                .max(1),
        );
    }

    /// Adds another thread's figures.
    pub fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.bytes += other.bytes;
        self.latency.add(&other.latency).expect("same bounds");
    }
}

/// The figures of one job, all its threads together.
#[derive(Clone, Debug, Default)]
pub struct JobStats {
    /// Reads.
    pub read: Direction,
    /// Writes.
    pub write: Direction,
    /// Blocks that were read back and checked.
    pub verified_blocks: u64,
    /// The time over which reads and writes were counted.
    pub elapsed: Duration,
    /// CPU time of the job's threads in user space, over the same time.
    pub user_cpu: Duration,
    /// CPU time in the kernel.
    pub system_cpu: Duration,
    /// I/Os that failed, with the first few in words.
    pub errors: u64,
    /// The first errors.
    pub error_samples: Vec<String>,
    /// What was asked of RDMA devices for the I/O queues, Connect and reading back included; `None` over anything else.
    pub rdma: Option<RdmaCounts>,
}

/// Errors that are kept in words; the rest are counted.
pub const ERROR_SAMPLES: usize = 5;

impl JobStats {
    /// Counts an error.
    pub fn error(&mut self, text: String) {
        self.errors += 1;
        if self.error_samples.len() < ERROR_SAMPLES {
            self.error_samples.push(text);
        }
    }

    /// Adds another thread of the same job.
    pub fn add(&mut self, other: Self) {
        self.read.add(&other.read);
        self.write.add(&other.write);
        self.verified_blocks += other.verified_blocks;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.user_cpu += other.user_cpu;
        self.system_cpu += other.system_cpu;
        self.errors += other.errors;
        self.error_samples.extend(other.error_samples);
        self.error_samples.truncate(ERROR_SAMPLES);
        if let Some(other) = other.rdma {
            let counts = self.rdma.get_or_insert_default();
            counts.work += other.work;
            counts.registrations += other.registrations;
        }
    }

    /// Reads and writes together.
    pub fn total(&self) -> Direction {
        let mut total = self.read.clone();
        total.add(&self.write);
        total
    }

    /// I/Os a second.
    pub fn iops(&self, direction: &Direction) -> f64 {
        direction.ios as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Bytes a second.
    pub fn bandwidth(&self, direction: &Direction) -> f64 {
        direction.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}
