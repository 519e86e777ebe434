//! Serves a device from memory, from a file, or from nothing: for tests, and for measuring what a form costs alone.
//!
//! Each queue has a thread with its own ring, as the shards of the daemon are.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nvmf_io::mem::SharedMemory;
use nvmf_io::{
    Allocate, BufPool, Completion, Errno, FileId, Interest, PoolConfig, Ring, RingConfig, Wait,
    WriteFlags, mailbox,
};

use super::{
    BlockDone, BlockForm, BlockOp, BlockRequest, Device, DeviceError, DeviceSpec, FrontEnd,
    FrontEndIo, Kept, QueueSetup, TokenSpace,
};

/// Where the data is.
#[derive(Clone)]
pub enum Backing {
    /// Nowhere: reads give zeroes, writes are forgotten.
    Null,
    /// In memory that is at least as large as the device will ever be.
    Memory(Arc<SharedMemory>),
    /// In a file.
    File(Arc<OwnedFd>),
}

/// How a device is served.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Cores for the queues in turn; empty leaves it to the scheduler.
    pub cores: Vec<usize>,
    /// Spin that long before sleeping.
    pub busy_poll: Duration,
}

/// A device that is being served by threads of this process.
pub struct Server {
    device: Device,
    threads: Vec<JoinHandle<()>>,
    stop: Vec<mailbox::Sender<()>>,
}

const FRONT_END: TokenSpace = TokenSpace::new(1);
const BACKING: TokenSpace = TokenSpace::new(2);
const WAKE: TokenSpace = TokenSpace::new(3);

impl Server {
    /// Makes the device and attaches it.
    pub fn start(
        form: BlockForm,
        spec: &DeviceSpec,
        backing: &Backing,
        options: &ServeOptions,
    ) -> Result<Self, DeviceError> {
        let (device, queues) = Device::create(form, spec)?;
        let mut server = Self::run(device, queues, backing, options, spec)?;
        server.device.attach()?;
        Ok(server)
    }

    /// Takes over a device whose server died.
    pub fn resume(
        kept: Kept,
        spec: &DeviceSpec,
        backing: &Backing,
        options: &ServeOptions,
    ) -> Result<Self, DeviceError> {
        let (device, queues) = Device::resume(&kept.state, kept.fds, spec)?;
        Self::run(device, queues, backing, options, spec)
    }

    fn run(
        device: Device,
        queues: Vec<QueueSetup>,
        backing: &Backing,
        options: &ServeOptions,
        spec: &DeviceSpec,
    ) -> Result<Self, DeviceError> {
        let failed = |doing: &str, source| DeviceError::Step {
            name: spec.name.clone(),
            doing: doing.to_owned(),
            source,
        };
        let mut server = Server {
            device,
            threads: Vec::new(),
            stop: Vec::new(),
        };
        for (index, queue) in queues.into_iter().enumerate() {
            let (sender, receiver) = mailbox::channel().map_err(|e| failed("make a mailbox", e))?;
            let core =
                (!options.cores.is_empty()).then(|| options.cores[index % options.cores.len()]);
            let (backing, busy_poll, name) =
                (backing.clone(), options.busy_poll, spec.name.clone());
            let work = move || {
                if let Some(core) = core
                    && let Err(error) = nvmf_io::cpu::pin(core)
                {
                    tracing::warn!(core, %error, "cannot pin the thread");
                }
                if let Err(error) = serve_queue(queue, &backing, &receiver, busy_poll) {
                    tracing::error!(device = %name, queue = index, %error, "the queue is no longer served");
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("block-{index}"))
                .spawn(work)
                .map_err(|e| failed("start a thread", e))?;
            server.threads.push(thread);
            server.stop.push(sender);
        }
        Ok(server)
    }

    /// The device half.
    pub fn device(&mut self) -> &mut Device {
        &mut self.device
    }

    /// `/dev/…` or the path of the socket.
    pub fn path(&self) -> PathBuf {
        self.device.path().unwrap_or_default()
    }

    /// Removes the device; refused while it is in use, unless `force`d.
    pub fn detach(&mut self, force: bool) -> Result<(), DeviceError> {
        self.device.detach(force)?;
        if force {
            self.stop_queues();
        }
        Ok(())
    }

    fn stop_queues(&self) {
        for sender in &self.stop {
            // A queue that is gone needs no stop.
            let _ = sender.send(());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.detach(true) {
            tracing::warn!(%error, "a device is left behind");
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a queue panicked");
            }
        }
    }
}

fn serve_queue(
    queue: QueueSetup,
    backing: &Backing,
    stop: &mailbox::Receiver<()>,
    busy_poll: Duration,
) -> io::Result<()> {
    let mut ring = Ring::new(&RingConfig::default()).map_err(io::Error::other)?;
    let pool = BufPool::new(&PoolConfig {
        max_bytes: 512 << 20,
    });
    ring.poll_multishot(stop.fd(), Interest::Readable, WAKE.token(0));
    let mut front = queue.build();
    let mut backing = OpenBacking::new(backing, &mut ring);
    let mut requests = Vec::new();
    let mut done = Vec::new();
    front.start(
        FRONT_END,
        &mut FrontEndIo {
            ring: &mut ring,
            pool: &pool,
            requests: &mut requests,
        },
    )?;
    let mut last_work = Instant::now();
    loop {
        let mut io = FrontEndIo {
            ring: &mut ring,
            pool: &pool,
            requests: &mut requests,
        };
        front.end_turn(&mut io);
        if front.is_finished() {
            return Ok(());
        }
        let spin = !busy_poll.is_zero() && last_work.elapsed() < busy_poll;
        stop.park(|may_block| {
            ring.wait(if may_block && !spin {
                Wait::Block
            } else {
                Wait::Poll
            })
        })?;
        while let Some(completion) = ring.next() {
            last_work = Instant::now();
            match TokenSpace::upper_of(completion.token) {
                1 => {
                    let mut io = FrontEndIo {
                        ring: &mut ring,
                        pool: &pool,
                        requests: &mut requests,
                    };
                    front.on_completion(completion, &mut io);
                }
                2 => backing.on_completion(&completion, &mut done),
                _ => {}
            }
            answer(
                &mut *front,
                &mut backing,
                &mut ring,
                &pool,
                &mut requests,
                &mut done,
            );
        }
        if stop.try_recv().is_ok() {
            front.stop(&mut FrontEndIo {
                ring: &mut ring,
                pool: &pool,
                requests: &mut requests,
            });
        }
    }
}

/// Carries out what can be done at once, until nothing is left.
fn answer(
    front: &mut dyn FrontEnd,
    backing: &mut OpenBacking,
    ring: &mut Ring,
    pool: &BufPool,
    requests: &mut Vec<BlockRequest>,
    done: &mut Vec<BlockDone>,
) {
    while !requests.is_empty() || !done.is_empty() {
        for request in requests.drain(..) {
            backing.submit(request, ring, done);
        }
        for done in done.drain(..) {
            front.on_done(
                done,
                &mut FrontEndIo {
                    ring,
                    pool,
                    requests,
                },
            );
        }
    }
}

enum OpenBacking {
    Null,
    Memory(Arc<SharedMemory>),
    File {
        file: FileId,
        open: Vec<Option<(u64, u32)>>,
        free: Vec<u32>,
    },
}

impl OpenBacking {
    fn new(backing: &Backing, ring: &mut Ring) -> Self {
        match backing {
            Backing::Null => OpenBacking::Null,
            Backing::Memory(memory) => OpenBacking::Memory(memory.clone()),
            Backing::File(fd) => OpenBacking::File {
                file: ring.add_file(fd.clone()),
                open: Vec::new(),
                free: Vec::new(),
            },
        }
    }

    fn submit(&mut self, request: BlockRequest, ring: &mut Ring, done: &mut Vec<BlockDone>) {
        let tag = request.tag;
        let range = request.buf_offset_bytes..request.buf_offset_bytes + request.len_bytes;
        let (offset, len) = (request.offset_bytes, u64::from(request.len_bytes));
        match self {
            OpenBacking::Null => {
                if let (BlockOp::Read, Some(buf)) = (request.op, &request.buf) {
                    buf.fill(range, 0);
                }
                done.push(BlockDone {
                    tag,
                    result: Ok(()),
                });
            }
            OpenBacking::Memory(memory) => {
                let result = match (request.op, &request.buf) {
                    (BlockOp::Read, Some(buf)) => {
                        memory.read(offset, buf, range);
                        Ok(())
                    }
                    (BlockOp::Write { .. }, Some(buf)) => {
                        memory.write(offset, buf, range);
                        Ok(())
                    }
                    (BlockOp::Read | BlockOp::Write { .. }, None) => Err(Errno::INVAL),
                    (BlockOp::Flush, _) => Ok(()),
                    (BlockOp::Discard | BlockOp::WriteZeroes { .. }, _) => {
                        memory.clear(offset..offset + len).map_err(|_| Errno::IO)
                    }
                };
                done.push(BlockDone { tag, result });
            }
            OpenBacking::File { file, open, free } => {
                let slot = free.pop().unwrap_or_else(|| {
                    open.push(None);
                    open.len() as u32 - 1
                });
                let token = BACKING.token(slot);
                let expected = match (request.op, &request.buf) {
                    (BlockOp::Read, Some(buf)) => {
                        ring.read(*file, offset, buf, range, token);
                        request.len_bytes
                    }
                    (BlockOp::Write { fua }, Some(buf)) => {
                        ring.write(*file, offset, buf, range, WriteFlags { dsync: fua }, token);
                        request.len_bytes
                    }
                    (BlockOp::Read | BlockOp::Write { .. }, None) => {
                        free.push(slot);
                        return done.push(BlockDone {
                            tag,
                            result: Err(Errno::INVAL),
                        });
                    }
                    (BlockOp::Flush, _) => {
                        ring.fsync(*file, true, token);
                        0
                    }
                    (BlockOp::Discard | BlockOp::WriteZeroes { .. }, _) => {
                        ring.fallocate(
                            *file,
                            Allocate::PUNCH_HOLE | Allocate::KEEP_SIZE,
                            offset,
                            len,
                            token,
                        );
                        0
                    }
                };
                open[slot as usize] = Some((tag, expected));
            }
        }
    }

    fn on_completion(&mut self, completion: &Completion, done: &mut Vec<BlockDone>) {
        let OpenBacking::File { open, free, .. } = self else {
            return;
        };
        let slot = TokenSpace::local_of(completion.token);
        let Some((tag, expected)) = open.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        free.push(slot);
        let result = match completion.result {
            Ok(bytes) if bytes == expected => Ok(()),
            Ok(_) => Err(Errno::IO),
            Err(errno) => Err(errno),
        };
        done.push(BlockDone { tag, result });
    }
}
