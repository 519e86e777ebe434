//! A remote namespace through our own initiator, in this process and on the job's own thread.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nvmf_initiator::polled::{self, Op, RdmaCounts, Request, Session, SessionConfig};
use nvmf_initiator::wire::Lba;
use nvmf_io::{Buf, PoolConfig, Wait};

use super::{Done, Engine};
use crate::cli::JobSpec;

/// Room in the pool beside what the job's own buffers take.
const POOL_SLACK_BYTES: usize = 16 << 20;
/// Entries of an I/O queue that nobody asked to be larger: nvme-cli's default.
const DEFAULT_QUEUE_ENTRIES: u16 = 128;

/// One namespace, one I/O queue.
pub struct NvmfEngine {
    session: Session,
    answers: Vec<polled::Done>,
    block_bytes: u32,
    blocks_per_io: u64,
    size_bytes: u64,
}

impl NvmfEngine {
    /// Connects. `url` may carry the initiator's options; those of the job are added where it has none.
    pub fn open(url: &str, spec: &JobSpec) -> Result<Self> {
        let buffers = usize::from(spec.iodepth) * (spec.bs as usize).next_power_of_two();
        let config = SessionConfig {
            max_requests: spec.iodepth.into(),
            busy_poll: Duration::from_micros(spec.busy_poll),
            pool: PoolConfig {
                max_bytes: buffers * 2 + POOL_SLACK_BYTES,
                ..PoolConfig::default()
            },
            ..SessionConfig::default()
        };
        let session = Session::connect(&with_options(url, spec), &config)
            // Its message has those of its causes already.
            .map_err(|error| anyhow!("{url}: {error}"))?;
        let namespace = session.namespace();
        let block_bytes = namespace.block_bytes;
        Ok(Self {
            size_bytes: namespace.size_bytes(),
            block_bytes,
            blocks_per_io: u64::from(spec.bs / block_bytes),
            answers: Vec::with_capacity(spec.iodepth.into()),
            session,
        })
    }

    #[inline]
    fn submit(&mut self, op: Op, offset: u64, buf: &Buf, tag: u16) -> Result<()> {
        let request = Request {
            op,
            slba: Lba(offset / u64::from(self.block_bytes)),
            blocks: self.blocks_per_io,
            buf: Some(buf.clone()),
            buf_offset_bytes: 0,
            tag: tag.into(),
        };
        self.session
            .submit(request)
            .map_err(|_| anyhow!("the session takes no more requests than its depth"))
    }
}

/// Options that the job gives and the URL does not.
fn with_options(url: &str, spec: &JobSpec) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let mut parts: Vec<String> = query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(String::from)
        .collect();
    let has = |parts: &[String], key: &str| parts.iter().any(|p| p.split('=').next() == Some(key));
    // One entry of a queue always stays empty.
    let entries = (spec.iodepth + 1).max(DEFAULT_QUEUE_ENTRIES);
    let wanted = [
        (
            "queue_size",
            (entries > DEFAULT_QUEUE_ENTRIES).then(|| entries.to_string()),
        ),
        ("hdr_digest", spec.hdr_digest.then(|| "1".into())),
        ("data_digest", spec.data_digest.then(|| "1".into())),
        ("hostnqn", spec.hostnqn.clone()),
    ];
    for (key, value) in wanted {
        if let Some(value) = value.filter(|_| !has(&parts, key)) {
            parts.push(format!("{key}={value}"));
        }
    }
    if parts.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", parts.join("&"))
    }
}

impl Engine for NvmfEngine {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn alloc(&mut self, len: u32) -> Result<Buf> {
        self.session
            .alloc(len)
            .with_context(|| format!("no room for a buffer of {len} bytes"))
    }

    #[inline]
    fn read(&mut self, offset: u64, buf: &Buf, tag: u16) -> Result<()> {
        self.submit(Op::Read, offset, buf, tag)
    }

    #[inline]
    fn write(&mut self, offset: u64, buf: &Buf, tag: u16) -> Result<()> {
        self.submit(Op::Write { fua: false }, offset, buf, tag)
    }

    fn poll(&mut self, limit: Duration, done: &mut Vec<Done>) -> Result<()> {
        self.session
            .poll(Wait::Until(Instant::now() + limit), &mut self.answers)?;
        for answer in self.answers.drain(..) {
            let tag = u16::try_from(answer.tag).context("an answer to no I/O of ours")?;
            done.push(Done {
                tag,
                result: answer.result.map_err(anyhow::Error::new),
            });
        }
        Ok(())
    }

    fn rdma_counts(&self) -> Option<RdmaCounts> {
        let counts = self.session.rdma_counts();
        (counts != RdmaCounts::default()).then_some(counts)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn options_of_the_url_go_before_those_of_the_job() {
        let spec = Cli::parse_from(["nvmf-bench", "--iodepth=512", "--hdr-digest=1"]).job;
        assert_eq!(
            with_options("nvme+tcp://h/n", &spec),
            "nvme+tcp://h/n?queue_size=513&hdr_digest=1"
        );
        assert_eq!(
            with_options("nvme+tcp://h/n?nsid=2&queue_size=9&hdr_digest=0", &spec),
            "nvme+tcp://h/n?nsid=2&queue_size=9&hdr_digest=0"
        );
    }
}
