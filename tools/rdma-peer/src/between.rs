//! Between a host and a target: passes capsules on and moves the data itself, so that it is the host's target, with the keys to the host's
//! memory, and can do with them what a host has to bear, or must not let happen.
//!
//! The host's queues must have no more than 32 entries. An access that is refused breaks the connection, and hosts come back.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nvme_proto::wire::{Cid, Cqe, SglDescriptor, Sqe};
use nvmf_io::verbs::{
    CmEvent, CmEventKind, CmId, ConnectParams, Done, EventChannel, IdKey, IdleQueuePair, Lent,
    ProtectionDomain, QueuePair, QueueSizes, Registrar, Remote, RemoteAccess, SendWork,
};
use nvmf_io::{Buf, BufPool, PoolConfig};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::host::RECEIVES;
use crate::link::completion;
use crate::refused::{ask, resolved};

/// Most in-capsule data that a target may announce here.
const IN_CAPSULE_BYTES: u32 = 4096;
/// READs that the target may have outstanding here.
const TARGET_READS: u8 = 16;
/// Commands with keys on a connection before something is done with one of them.
const FAULT_AFTER: u32 = 40;
/// Marks READs of a command's data, beside its CID.
const FETCH: u64 = 1 << 32;
const PROBE: u64 = 1 << 33;

/// What is done with the keys of commands on I/O queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None is made invalid: the host has to.
    Keep,
    /// The same, and a key is used once more when its command is answered and the host has sent another one since.
    KeepAndUse,
    /// The same with keys that were made invalid as the host asks for.
    Use,
    /// An answer makes the key of another open command invalid.
    Steal,
    /// An answer that makes no key invalid comes twice.
    Twice,
}

impl std::str::FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "keep" => Self::Keep,
            "keep-and-use" => Self::KeepAndUse,
            "use" => Self::Use,
            "steal" => Self::Steal,
            "twice" => Self::Twice,
            _ => bail!("{text:?} is not keep, keep-and-use, use, steal or twice"),
        })
    }
}

/// The host's memory as a command names it.
#[derive(Clone, Copy)]
struct Named {
    remote: Remote,
    bytes: u32,
    /// The host's to be written.
    to_host: bool,
    invalidate: bool,
}

/// A command that is not answered.
struct Open {
    cid: Cid,
    sqe: Sqe,
    named: Option<Named>,
    /// Where its data are on the way.
    buf: Option<Buf>,
    /// That, as the target has it.
    lent: Option<Lent>,
}

struct Relay {
    host: QueuePair,
    target: QueuePair,
    target_channel: Arc<EventChannel>,
    of_host: Registrar,
    of_target: Registrar,
    pool: BufPool,
    is_io: bool,
    open: Vec<Open>,
    /// The last command with a key that was answered, and how many there were.
    answered: Option<Named>,
    count: u32,
}

/// Serves hosts at `listen`, for ever.
pub fn run(listen: SocketAddr, target: SocketAddr, fault: Fault) -> Result<()> {
    let channel = EventChannel::new()?;
    let listener = CmId::new(&channel)?;
    listener.listen(listen, 16)?;
    println!("listening on {listen}");
    let mut fault = Some(fault);
    let mut relays: Vec<(IdKey, Relay)> = Vec::new();
    loop {
        // Looked at before and after all are armed: what came before that is not told of.
        for armed in [false, true] {
            while let Some(event) = channel.next()? {
                let key = event.id;
                match event.kind {
                    CmEventKind::ConnectRequest(_) => relays.push(Relay::accept(event, target)?),
                    CmEventKind::Established => {}
                    _ => relays.retain(|(id, _)| *id != key),
                }
            }
            if armed {
                for (_, relay) in &relays {
                    relay.host.queue().arm()?;
                    relay.target.queue().arm()?;
                }
            }
            let mut ended = Vec::new();
            for (id, relay) in &mut relays {
                if !relay.turn(&mut fault)? {
                    ended.push(*id);
                }
            }
            relays.retain(|(id, _)| !ended.contains(id));
        }
        let mut fds = vec![PollFd::new(&*channel, PollFlags::IN)];
        for (_, relay) in &relays {
            fds.push(PollFd::new(relay.host.queue(), PollFlags::IN));
            fds.push(PollFd::new(relay.target.queue(), PollFlags::IN));
            fds.push(PollFd::new(&*relay.target_channel, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for (_, relay) in &relays {
            relay.host.queue().take_events();
            relay.target.queue().take_events();
        }
    }
}

impl Relay {
    /// Connects to the target as the host asks us to, and accepts.
    fn accept(event: CmEvent, address: SocketAddr) -> Result<(IdKey, Self)> {
        let CmEventKind::ConnectRequest(id) = event.kind else {
            bail!("no connection request");
        };
        let key = id.key();
        let request = event.private_data.get(..32).context("private data")?;
        let target_channel = EventChannel::new()?;
        let mut target = resolved(&target_channel, address)?.attach();
        for _ in 0..RECEIVES {
            target.receive(None)?;
        }
        let answer = ask(&target_channel, target.id(), request, TARGET_READS)?;
        ensure!(
            matches!(answer.kind, CmEventKind::Established),
            "{answer:?}"
        );
        let domain = ProtectionDomain::new(&id)?;
        let sizes = QueueSizes {
            sends: 4 * RECEIVES as u32,
            receives: RECEIVES as u32,
            windows: 0,
        };
        let host = IdleQueuePair::new(id, &domain, sizes).map_err(|(_, error)| error)?;
        let mut relay = Self {
            of_host: Registrar::new(domain, RemoteAccess::None),
            of_target: Registrar::new(Arc::clone(target.domain()), RemoteAccess::ReadWrite),
            host: host.attach(),
            target,
            target_channel,
            pool: BufPool::new(&PoolConfig::default()),
            // QID, behind RECFMT.
            is_io: request[2..4] != [0, 0],
            open: Vec::new(),
            answered: None,
            count: 0,
        };
        for _ in 0..RECEIVES {
            relay.receive()?;
        }
        relay.host.id().accept(&ConnectParams {
            private_data: answer.private_data.get(..32).context("private data")?,
            initiator_depth: event.initiator_depth,
            responder_resources: 0,
            retry_count: 7,
            rnr_retry_count: 7,
        })?;
        Ok((key, relay))
    }

    fn receive(&mut self) -> Result<()> {
        let buf = self.pool.alloc(IN_CAPSULE_BYTES).context("a buffer")?;
        let segment = self.of_host.segment(&buf, 0..IN_CAPSULE_BYTES)?;
        Ok(self.host.receive(Some(segment))?)
    }

    /// Passes on what came. False when the connection is over, on either side.
    fn turn(&mut self, fault: &mut Option<Fault>) -> Result<bool> {
        loop {
            if self.target_channel.next()?.is_some() {
                return Ok(false);
            }
            let (from_host, from_target) = (self.host.poll_one()?, self.target.poll_one()?);
            if from_host.is_none() && from_target.is_none() {
                return Ok(true);
            }
            match from_host {
                Some(Done::Received {
                    header,
                    bytes,
                    data,
                    ..
                }) => {
                    self.receive()?;
                    ensure!(bytes >= 64, "a capsule of {bytes} bytes");
                    let sqe = Sqe::read_from_bytes(&header).map_err(|_| Errno::INVAL)?;
                    if !self.command(sqe, data.map(|buf| (buf, bytes - 64)), fault)? {
                        return Ok(false);
                    }
                }
                Some(Done::Sent { token }) if token & FETCH != 0 => {
                    let cid = Cid(token as u16);
                    let at = self.position(cid).context("a command that was fetched")?;
                    self.forward(at, None)?;
                }
                Some(Done::Failed { .. }) => return Ok(false),
                Some(Done::Sent { .. }) | None => {}
            }
            match from_target {
                Some(Done::Received { header, .. }) => {
                    self.target.receive(None)?;
                    let (cqe, _) = Cqe::read_from_prefix(&header).map_err(|_| Errno::INVAL)?;
                    self.response(&cqe, fault)?;
                }
                Some(Done::Failed { .. }) => return Ok(false),
                Some(Done::Sent { .. }) | None => {}
            }
        }
    }

    fn position(&self, cid: Cid) -> Option<usize> {
        self.open.iter().position(|open| open.cid == cid)
    }

    /// A command came. False when the connection broke over what was tried before it.
    fn command(
        &mut self,
        sqe: Sqe,
        data: Option<(Buf, u32)>,
        fault: &mut Option<Fault>,
    ) -> Result<bool> {
        let bytes = sqe.dptr.length_bytes();
        let to_host = sqe.is_controller_to_host();
        let moves = bytes > 0 && (to_host || sqe.is_host_to_controller());
        let named = (sqe.dptr.is_keyed() && moves).then(|| Named {
            remote: Remote {
                address: sqe.dptr.address.get(),
                key: sqe.dptr.key(),
            },
            bytes,
            to_host,
            invalidate: sqe.dptr.kind == SglDescriptor::KIND_KEYED_INVALIDATE,
        });
        // With nothing else open the host has taken the last answer, and this command has opened no window.
        if let Some(Fault::KeepAndUse | Fault::Use) = fault
            && self.is_io
            && named.is_none()
            && self.open.is_empty()
            && self.count >= FAULT_AFTER
            && let Some(answered) = self.answered
        {
            *fault = match fault {
                Some(Fault::KeepAndUse) => Some(Fault::Keep),
                _ => None,
            };
            self.use_again(answered)?;
            return Ok(false);
        }
        let buf = match named {
            Some(_) => Some(self.pool.alloc(bytes).context("a buffer for data")?),
            None => None,
        };
        let at = self.open.len();
        self.open.push(Open {
            cid: sqe.cid(),
            sqe,
            named,
            buf,
            lent: None,
        });
        match (named, &self.open[at].buf) {
            (Some(named), Some(buf)) if !named.to_host => {
                let into = self.of_host.segment(buf, 0..bytes)?;
                let from = named.remote;
                let token = FETCH | u64::from(self.open[at].cid.0);
                self.host
                    .stage(SendWork::Read { into, from }, token, true)?;
                self.host.post()?;
            }
            _ => self.forward(at, data)?,
        }
        Ok(true)
    }

    /// Sends a command to the target, with our memory in the place of the host's.
    fn forward(&mut self, at: usize, data: Option<(Buf, u32)>) -> Result<()> {
        let open = &mut self.open[at];
        if let (Some(named), Some(buf)) = (open.named, &open.buf) {
            let segment = self.of_target.segment(buf, 0..named.bytes)?;
            let lent = match named.to_host {
                true => segment.lend_for_writing().context("nobody reads it")?,
                false => segment.lend(),
            };
            let Remote { address, key } = lent.remote();
            let dptr = SglDescriptor::keyed(address, named.bytes, key, false);
            open.sqe.dptr = dptr.context("a length that was one before")?;
            open.lent = Some(lent);
        }
        let data = match data {
            Some((buf, bytes)) if bytes > 0 => Some(self.of_target.segment(&buf, 0..bytes)?),
            _ => None,
        };
        let send = SendWork::Send {
            header: open.sqe.as_bytes(),
            data,
            invalidate: None,
        };
        self.target.stage(send, 0, true)?;
        Ok(self.target.post()?)
    }

    fn response(&mut self, cqe: &Cqe, fault: &mut Option<Fault>) -> Result<()> {
        let at = self.position(cqe.cid()).context("an answer to nothing")?;
        let Open {
            named, buf, lent, ..
        } = self.open.swap_remove(at);
        drop(lent);
        let (mut invalidate, mut twice) = (None, false);
        if let (Some(named), Some(buf)) = (named, buf) {
            if named.to_host && cqe.status().is_success() {
                let from = self.of_host.segment(&buf, 0..named.bytes)?;
                let into = named.remote;
                self.host.stage(SendWork::Write { from, into }, 0, false)?;
            }
            invalidate = named.invalidate.then_some(named.remote.key);
            if self.is_io {
                self.answered = Some(named);
                self.count += 1;
                let others = self.open.iter().filter_map(|open| open.named);
                let other = others.map(|other| other.remote.key).next();
                match (*fault, other) {
                    (Some(Fault::Keep | Fault::KeepAndUse), _) => invalidate = None,
                    (Some(Fault::Steal), Some(key)) if self.count >= FAULT_AFTER => {
                        println!(
                            "the answer to {} makes another key invalid: {key:x}h",
                            cqe.cid()
                        );
                        *fault = None;
                        invalidate = Some(key);
                    }
                    (Some(Fault::Twice), _) if self.count >= FAULT_AFTER => {
                        println!("the answer to {} comes twice", cqe.cid());
                        *fault = None;
                        invalidate = None;
                        twice = true;
                    }
                    _ => {}
                }
            }
        }
        if twice {
            self.host.stage(answer(cqe, None), 0, false)?;
        }
        self.host.stage(answer(cqe, invalidate), 0, true)?;
        Ok(self.host.post()?)
    }

    /// Uses the memory of a command that was answered. An error when that works.
    fn use_again(&mut self, named: Named) -> Result<()> {
        let buf = self.pool.alloc(named.bytes).context("a buffer")?;
        let ours = self.of_host.segment(&buf, 0..named.bytes)?;
        let (work, what) = match named.to_host {
            true => (
                SendWork::Write {
                    from: ours,
                    into: named.remote,
                },
                "WRITE",
            ),
            false => (
                SendWork::Read {
                    into: ours,
                    from: named.remote,
                },
                "READ",
            ),
        };
        self.host.stage(work, PROBE, true)?;
        self.host.post()?;
        loop {
            match completion(&mut self.host)? {
                Done::Sent { token: PROBE } => {
                    bail!("the host's memory is STILL OPEN after its command ended: {what} worked")
                }
                Done::Failed {
                    token: Some(PROBE),
                    status,
                } if !status.is_flushed() => {
                    println!("{what} with the key of a command that ended is refused: {status}");
                    return Ok(());
                }
                Done::Sent { .. } => {}
                done => bail!("neither done nor refused: {done:?}"),
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Either may be gone already.
        let _ = self.host.id().disconnect();
        let _ = self.target.id().disconnect();
    }
}

fn answer(cqe: &Cqe, invalidate: Option<u32>) -> SendWork<'_> {
    SendWork::Send {
        header: cqe.as_bytes(),
        data: None,
        invalidate,
    }
}
