//! A local file or block device through io_uring: the side that a remote namespace is held against.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nvmf_io::{Buf, BufPool, FileId, PoolConfig, Ring, RingConfig, Token, Wait, WriteFlags};

use super::{Done, Engine};
use crate::cli::JobSpec;

/// Room in the pool beside what the job's own buffers take.
const POOL_SLACK_BYTES: usize = 16 << 20;
/// How long a claimed device is taken for one that another job, or a process that has just ended, looks at.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const CLAIM_PAUSE: Duration = Duration::from_millis(20);

/// A file on this machine.
pub struct FileEngine {
    ring: Ring,
    pool: BufPool,
    file: FileId,
    size_bytes: u64,
    block_bytes: u32,
    io_bytes: u32,
    spin: Duration,
}

impl FileEngine {
    /// Opens `path`; a file that is not there is made if the job writes and gives a size, as fio does.
    pub fn open(path: &str, spec: &JobSpec) -> Result<Self> {
        let (file, is_block) = open(Path::new(path), spec).with_context(|| path.to_owned())?;
        let wanted = spec
            .size
            .unwrap_or(0)
            .saturating_mul(spec.numjobs.into())
            .saturating_add(spec.offset);
        let size_bytes = size(&file, is_block, wanted, spec).with_context(|| path.to_owned())?;
        let ring = Ring::new(&RingConfig {
            rx_buffers: 0,
            entries: u32::from(spec.iodepth).next_power_of_two().max(8),
            ..RingConfig::default()
        })?;
        let pool = BufPool::new(&PoolConfig {
            max_bytes: usize::from(spec.iodepth) * (spec.bs as usize).next_power_of_two() * 2
                + POOL_SLACK_BYTES,
            ..PoolConfig::default()
        });
        let mut ring = ring;
        ring.register_pool(&pool);
        let file = ring.add_file(OwnedFd::from(file));
        Ok(Self {
            ring,
            pool,
            file,
            size_bytes,
            block_bytes: 512,
            io_bytes: spec.bs,
            spin: Duration::from_micros(spec.busy_poll),
        })
    }
}

fn open(path: &Path, spec: &JobSpec) -> Result<(File, bool)> {
    let is_block = path
        .metadata()
        .is_ok_and(|m| m.file_type().is_block_device());
    let writes = spec.rw.writes();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(writes)
        .create(writes && !is_block && spec.size.is_some());
    if is_block && writes {
        refuse_claimed(path)?;
    }
    let flags = if spec.direct { libc_o_direct() } else { 0 };
    let file =
        options
            .custom_flags(flags)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INVAL.raw_os_error() && spec.direct => {
                    anyhow!("the file system refuses direct I/O: add --direct=0")
                }
                _ if error.kind() == ErrorKind::NotFound => anyhow!(
                    "there is no such file; make it first: nvmf-bench --filename {} --rw write --bs 1m --size SIZE",
                    path.display()
                ),
                _ => error.into(),
            })?;
    Ok((file, is_block))
}

/// A device that is mounted or claimed otherwise must not be overwritten by a benchmark. The claim that tells is given up again at
/// once, or jobs on one device would shut each other out; for the moment that another job holds it, it is tried again.
fn refuse_claimed(path: &Path) -> Result<()> {
    let mut exclusive = OpenOptions::new();
    exclusive
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits() as i32);
    let begin = Instant::now();
    loop {
        match exclusive.open(path) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::BUSY.raw_os_error()) => {
                return Err(error.into());
            }
            Err(_) => ensure!(
                begin.elapsed() < CLAIM_PATIENCE,
                "the device is in use (mounted?): it is not written to"
            ),
        }
        std::thread::sleep(CLAIM_PAUSE);
    }
}

fn libc_o_direct() -> i32 {
    rustix::fs::OFlags::DIRECT.bits() as i32
}

/// The bytes there are; a file that a writing job finds too short is grown to `wanted`.
fn size(file: &File, is_block: bool, wanted: u64, spec: &JobSpec) -> Result<u64> {
    let mut handle = file;
    let found = if is_block {
        handle.seek(SeekFrom::End(0))?
    } else {
        file.metadata()?.len()
    };
    if found < wanted && !is_block && spec.rw.writes() {
        file.set_len(wanted).context("growing the file")?;
        return Ok(wanted);
    }
    if found == 0 {
        bail!("it is empty: give --size and a writing pattern, or fill it first");
    }
    Ok(found)
}

impl Engine for FileEngine {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn alloc(&mut self, len: u32) -> Result<Buf> {
        self.pool
            .alloc(len)
            .with_context(|| format!("no room for a buffer of {len} bytes"))
    }

    #[inline]
    fn read(&mut self, offset: u64, buf: &Buf, tag: u16) -> Result<()> {
        self.ring
            .read(self.file, offset, buf, 0..self.io_bytes, Token(tag.into()));
        Ok(())
    }

    #[inline]
    fn write(&mut self, offset: u64, buf: &Buf, tag: u16) -> Result<()> {
        self.ring.write(
            self.file,
            offset,
            buf,
            0..self.io_bytes,
            WriteFlags::default(),
            Token(tag.into()),
        );
        Ok(())
    }

    fn poll(&mut self, limit: Duration, done: &mut Vec<Done>) -> Result<()> {
        if !self.spin.is_zero() {
            let until = Instant::now() + self.spin.min(limit);
            loop {
                self.ring.wait(Wait::Poll)?;
                self.collect(done)?;
                if !done.is_empty() || Instant::now() >= until {
                    break;
                }
            }
            if !done.is_empty() {
                return Ok(());
            }
        }
        self.ring.wait(Wait::Until(Instant::now() + limit))?;
        self.collect(done)
    }
}

impl FileEngine {
    #[inline]
    fn collect(&mut self, done: &mut Vec<Done>) -> Result<()> {
        while let Some(completion) = self.ring.next() {
            let result = match completion.result {
                Ok(bytes) if bytes == self.io_bytes => Ok(()),
                Ok(bytes) => Err(anyhow!(
                    "only {bytes} of {} bytes were moved",
                    self.io_bytes
                )),
                Err(errno) => Err(errno.into()),
            };
            let tag =
                u16::try_from(completion.token.0).context("a completion of no I/O of ours")?;
            ensure!(
                done.len() < done.capacity(),
                "more completions than I/Os in flight"
            );
            done.push(Done { tag, result });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser as _;

    fn open(words: &[&str], path: &Path) -> Result<FileEngine> {
        let cli = Cli::parse_from([&["nvmf-bench", "--direct=0"], words].concat());
        FileEngine::open(path.to_str().unwrap(), &cli.job)
    }

    #[test]
    fn a_file_that_is_missing_is_made_by_the_command_that_the_error_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("local.img");
        let error = format!("{:#}", open(&["--rw", "read"], &path).err().unwrap());
        let (_, command) = error.split_once("nvmf-bench ").unwrap();
        let named = format!("--filename {} ", path.display());
        let rest = command.strip_prefix(&named).unwrap();
        let words = rest.replace("SIZE", "1m");
        let words: Vec<_> = words.split(' ').collect();
        open(&words, &path).unwrap();
        open(&["--rw", "read"], &path).unwrap();
    }
}
