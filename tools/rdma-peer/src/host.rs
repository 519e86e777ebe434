//! A host that sends what it is told to, right or wrong: one queue over one connection, no queueing, no recovery.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nvme_proto::rdma::CmRequest;
use nvme_proto::wire::fabrics::{Cattr, ConnectData, ConnectResult, ConnectSqe, PropertySqe};
use nvme_proto::wire::property::Property;
use nvme_proto::wire::{Cid, Cntlid, Cqe, HostId, Nqn, Qid, Sqe, Status};
use nvmf_io::verbs::{
    CmEventKind, Done, EventChannel, QueuePair, Registrar, RemoteAccess, SendWork,
};
use nvmf_io::{Buf, BufPool, PoolConfig};
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use crate::link::{LIMIT, wait_for_either};
use crate::refused::{ask, resolved};

/// Receives that are posted: the most that [`resolved`] leaves room for.
pub const RECEIVES: usize = 32;
/// The host's memory that commands name.
pub const MEMORY_BYTES: u32 = 1 << 20;
/// CC: enabled, entries of 64 and 16 bytes.
const CC_ENABLED: u32 = 0x0046_0001;
const CSTS_READY: u64 = 1;

/// What comes of a command.
#[derive(Debug)]
pub enum Answer {
    /// A response.
    Completed(Cqe),
    /// The target ended the connection.
    Closed,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: HostId,
    pub nqn: Nqn,
    pub subsystem: Nqn,
}

impl Identity {
    /// The `number`th of the hosts of a test.
    pub fn new(number: u8, subsystem: &str) -> Result<Self> {
        let text = format!("nqn.2024-01.org.example:peer-{number}");
        let nqn = |text: &str| {
            let parsed = text.parse::<Nqn>();
            parsed.map_err(|error| anyhow::anyhow!("{text}: {error}"))
        };
        Ok(Self {
            id: HostId([number; 16]),
            nqn: nqn(&text)?,
            subsystem: nqn(subsystem)?,
        })
    }
}

/// One queue's connection.
pub struct Host {
    channel: Arc<EventChannel>,
    qp: QueuePair,
    registrar: Registrar,
    pool: BufPool,
    /// What commands read and write.
    pub memory: Buf,
    last_cid: u16,
}

impl Host {
    /// A connection with nothing sent on it, for the queue `qid` of `entries`.
    pub fn open(address: SocketAddr, qid: Qid, entries: u16) -> Result<Self> {
        Self::open_with(address, qid, entries, RECEIVES)
    }

    /// The same with so many receives for responses.
    fn open_with(address: SocketAddr, qid: Qid, entries: u16, receives: usize) -> Result<Self> {
        let channel = EventChannel::new()?;
        let mut qp = resolved(&channel, address)?.attach();
        for _ in 0..receives {
            qp.receive(None)?;
        }
        let request = CmRequest::new(qid, entries, Cntlid(0xffff));
        let event = ask(&channel, qp.id(), request.as_bytes(), 1)?;
        ensure!(matches!(event.kind, CmEventKind::Established), "{event:?}");
        let registrar = Registrar::new(Arc::clone(qp.domain()), RemoteAccess::ReadWrite);
        let pool = BufPool::new(&PoolConfig::default());
        let memory = pool.alloc(MEMORY_BYTES).context("memory of the host")?;
        Ok(Self {
            channel,
            qp,
            registrar,
            pool,
            memory,
            last_cid: 0,
        })
    }

    /// An admin queue with an enabled controller, and the controller's identifier.
    pub fn bring_up(address: SocketAddr, who: &Identity, kato_ms: u32) -> Result<(Self, Cntlid)> {
        let mut admin = Self::open(address, Qid(0), 32)?;
        let connect = ConnectSqe::new(Qid(0), 32, Cattr::empty(), kato_ms);
        let data = ConnectData::new(who.id, Cntlid(0xffff), &who.subsystem, &who.nqn);
        let cqe = admin.succeed(connect.into_sqe(), data.as_bytes())?;
        let cntlid = ConnectResult::from_result(cqe.result()).cntlid;
        admin.succeed(PropertySqe::set(Property::CC, CC_ENABLED).into_sqe(), &[])?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let cqe = admin.succeed(PropertySqe::get(Property::CSTS).into_sqe(), &[])?;
            if cqe.result() & CSTS_READY != 0 {
                return Ok((admin, cntlid));
            }
            ensure!(
                Instant::now() < deadline,
                "the controller is not ready in {LIMIT:?}"
            );
        }
    }

    /// An I/O queue of a controller, with so many receives for responses.
    pub fn io(
        address: SocketAddr,
        who: &Identity,
        cntlid: Cntlid,
        qid: Qid,
        entries: u16,
        receives: usize,
    ) -> Result<Self> {
        let mut host = Self::open_with(address, qid, entries, receives)?;
        let connect = ConnectSqe::new(qid, entries, Cattr::empty(), 0);
        let data = ConnectData::new(who.id, cntlid, &who.subsystem, &who.nqn);
        host.succeed(connect.into_sqe(), data.as_bytes())?;
        Ok(host)
    }

    /// The host's memory from its beginning, as a command names it: address and key.
    pub fn remote(&mut self) -> Result<(u64, u32)> {
        let segment = self.registrar.segment(&self.memory, 0..MEMORY_BYTES)?;
        Ok((segment.address(), segment.remote_key()))
    }

    /// A CID that was not used yet.
    pub fn next_cid(&mut self) -> Cid {
        self.last_cid += 1;
        Cid(self.last_cid)
    }

    /// Sends a message: the first `length` bytes of the command and what is behind it.
    pub fn send(&mut self, sqe: &Sqe, length: usize, data: &[u8]) -> Result<()> {
        let segment = match data {
            [] => None,
            data => {
                let buf = self.pool.alloc(data.len() as u32).context("a buffer")?;
                buf.copy_in(0, data);
                Some(self.registrar.segment(&buf, 0..data.len() as u32)?)
            }
        };
        let work = SendWork::Send {
            header: &sqe.as_bytes()[..length],
            data: segment,
            invalidate: None,
        };
        self.qp.stage(work, 0, true)?;
        Ok(self.qp.post()?)
    }

    /// The next response, or the end of the connection.
    pub fn answer(&mut self) -> Result<Answer> {
        loop {
            match self.next_done()? {
                Some(Done::Received { header, bytes, .. }) => {
                    ensure!(bytes == 16, "a response of {bytes} bytes");
                    self.qp.receive(None)?;
                    let cqe = Cqe::read_from_bytes(&header[..16]);
                    return Ok(Answer::Completed(
                        cqe.map_err(|_| anyhow::anyhow!("no CQE"))?,
                    ));
                }
                Some(Done::Sent { .. }) => {}
                Some(Done::Failed { .. }) | None => return Ok(Answer::Closed),
            }
        }
    }

    /// The next completion; none when the target hung up.
    fn next_done(&mut self) -> Result<Option<Done>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            for armed in [false, true] {
                if armed {
                    self.qp.queue().arm()?;
                }
                if let Some(done) = self.qp.poll_one()? {
                    return Ok(Some(done));
                }
            }
            match self.channel.next()?.map(|event| event.kind) {
                Some(CmEventKind::Disconnected) => return Ok(None),
                Some(_) => continue,
                None => {}
            }
            wait_for_either(self.qp.queue(), &*self.channel, deadline)?;
            self.qp.queue().take_events();
        }
    }

    /// Sends a command under a new CID, and waits for what comes of it.
    pub fn exchange(&mut self, mut sqe: Sqe, data: &[u8]) -> Result<Answer> {
        sqe.cid = U16::new(self.next_cid().0);
        self.send(&sqe, Sqe::SIZE, data)?;
        let answer = self.answer()?;
        if let Answer::Completed(cqe) = &answer {
            ensure!(
                cqe.cid() == sqe.cid(),
                "{} was answered as {}",
                sqe.cid(),
                cqe.cid()
            );
        }
        Ok(answer)
    }

    /// A command that has to succeed.
    pub fn succeed(&mut self, sqe: Sqe, data: &[u8]) -> Result<Cqe> {
        match self.exchange(sqe, data)? {
            Answer::Completed(cqe) if cqe.status().is_success() => Ok(cqe),
            Answer::Completed(cqe) => bail!("failed with {}", cqe.status()),
            Answer::Closed => bail!("the target hung up"),
        }
    }

    /// A command that has to fail with `status`, whatever is said of retrying.
    pub fn fail(&mut self, sqe: Sqe, data: &[u8], status: Status) -> Result<()> {
        match self.exchange(sqe, data)? {
            Answer::Completed(cqe) if cqe.status().is(status) => Ok(()),
            Answer::Completed(cqe) => bail!("expected {status}, got {}", cqe.status()),
            Answer::Closed => bail!("expected {status}, but the target hung up"),
        }
    }

    /// Waits until the target ends the connection. Returns how long it took.
    pub fn until_closed(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        loop {
            if let Answer::Closed = self.answer()? {
                return Ok(begin.elapsed());
            }
        }
    }
}
