//! Both ends of connections in one process: shows that the verbs do on this device what the transports need of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nvmf_io::verbs::{
    CmEvent, CmEventKind, CmId, ConnectParams, Done, EventChannel, HEADER_BYTES, IdleQueuePair,
    ProtectionDomain, QueuePair, QueueSizes, Registrar, Remote, RemoteAccess, SendWork,
};
use nvmf_io::{Buf, BufPool, PoolConfig};

use crate::link::{any_event, completion, completion_within, expect};
use crate::windows;

const SIZES: QueueSizes = QueueSizes {
    sends: 8,
    receives: 4,
    windows: 1,
};

/// How long address and route may take.
const RESOLVE_MS: u32 = 10_000;

fn params(private_data: &[u8]) -> ConnectParams<'_> {
    ConnectParams {
        private_data,
        initiator_depth: 1,
        responder_resources: 1,
        retry_count: 7,
        rnr_retry_count: 7,
    }
}

pub(crate) struct Ends {
    channel: Arc<EventChannel>,
    listener: CmId,
    address: SocketAddr,
}

/// Two ends of a connection.
pub(crate) struct Pair {
    pub(crate) host: QueuePair,
    pub(crate) target: QueuePair,
}

pub fn run(address: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let listener = CmId::new(&channel)?;
    listener.listen(address, 16)?;
    let ends = Ends {
        channel,
        listener,
        address,
    };
    println!("listening on {:?}", ends.listener.local_addr());
    let pool = BufPool::new(&PoolConfig::default());
    ends.refusal().context("a refusal with private data")?;
    println!("a refusal arrives with its private data");
    let pair = ends.connect().context("connecting")?;
    println!("connected, private data both ways");
    work(&ends, pair, &pool)?;
    windows::run(&ends, &pool).context("memory windows")?;
    wrong_key(&ends, &pool).context("a wrong key")?;
    move_between_threads(&ends).context("moving to another thread")?;
    ensure!(
        pool.in_use() == 0,
        "{} buffers are still held",
        pool.in_use()
    );
    println!("every buffer came back");
    Ok(())
}

impl Ends {
    /// Asks for a connection, in a domain or in one of its own. Returns the asking end, and the request that arrived.
    fn request(
        &self,
        private_data: &[u8],
        domain: Option<&Arc<ProtectionDomain>>,
    ) -> Result<(IdleQueuePair, CmId, CmEvent)> {
        let id = CmId::new(&self.channel)?;
        id.resolve_addr(None, self.address, RESOLVE_MS)?;
        expect(&self.channel, id.key(), |kind| {
            matches!(kind, CmEventKind::AddrResolved)
        })?;
        id.resolve_route(RESOLVE_MS)?;
        expect(&self.channel, id.key(), |kind| {
            matches!(kind, CmEventKind::RouteResolved)
        })?;
        let domain = match domain {
            Some(domain) => Arc::clone(domain),
            None => ProtectionDomain::new(&id)?,
        };
        let qp = IdleQueuePair::new(id, &domain, SIZES).map_err(|(_, error)| error)?;
        qp.id().connect(&params(private_data))?;
        let mut event = any_event(&self.channel)?;
        ensure!(
            event.id == self.listener.key(),
            "not the listener's: {event:?}"
        );
        let kind = std::mem::replace(&mut event.kind, CmEventKind::Other(0));
        let CmEventKind::ConnectRequest(request) = kind else {
            bail!("no connection request: {kind:?}");
        };
        Ok((qp, request, event))
    }

    pub(crate) fn connect(&self) -> Result<Pair> {
        self.connected(None)
    }

    /// A connection whose host is in the domain of another one's.
    pub(crate) fn connect_beside(&self, domain: &Arc<ProtectionDomain>) -> Result<Pair> {
        self.connected(Some(domain))
    }

    fn connected(&self, domain: Option<&Arc<ProtectionDomain>>) -> Result<Pair> {
        let (host, request, event) = self.request(b"from the host", domain)?;
        ensure!(
            event.private_data.starts_with(b"from the host\0"),
            "{:?}",
            event.private_data
        );
        let domain = ProtectionDomain::new(&request)?;
        let target = IdleQueuePair::new(request, &domain, SIZES).map_err(|(_, error)| error)?;
        let (mut host, target) = (host.attach(), target.attach());
        // The target may send as soon as it has accepted.
        for _ in 0..SIZES.receives {
            host.receive(None)?;
        }
        target.id().accept(&params(b"from the target"))?;
        let mut established = 0;
        while established < 2 {
            let event = any_event(&self.channel)?;
            ensure!(matches!(event.kind, CmEventKind::Established), "{event:?}");
            if event.id == host.id().key() {
                ensure!(
                    event.private_data.starts_with(b"from the target\0"),
                    "{:?}",
                    event.private_data
                );
            }
            established += 1;
        }
        Ok(Pair { host, target })
    }

    fn refusal(&self) -> Result<()> {
        let (host, request, _) = self.request(b"x", None)?;
        request.reject(b"refused")?;
        let event = expect(&self.channel, host.id().key(), |kind| {
            matches!(kind, CmEventKind::Rejected)
        })?;
        ensure!(
            event.status == CmEvent::REJECTED_BY_CONSUMER,
            "status {}",
            event.status
        );
        ensure!(
            event.private_data.starts_with(b"refused\0"),
            "{:?}",
            event.private_data
        );
        Ok(())
    }
}

pub(crate) fn buffer(pool: &BufPool, bytes: u32, fill: u8) -> Result<Buf> {
    let buf = pool.alloc(bytes).context("a buffer")?;
    buf.fill(0..bytes, fill);
    Ok(buf)
}

pub(crate) fn send(
    qp: &mut QueuePair,
    work: SendWork<'_>,
    token: u64,
    signalled: bool,
) -> Result<()> {
    qp.stage(work, token, signalled)?;
    Ok(())
}

pub(crate) fn sent(qp: &mut QueuePair, want: u64) -> Result<()> {
    match completion(qp)? {
        Done::Sent { token } if token == want => Ok(()),
        done => bail!("expected completion {want}, got {done:?}"),
    }
}

/// SEND with and without data, READ, WRITE followed by SEND with one signalled completion, and the end.
fn work(ends: &Ends, mut pair: Pair, pool: &BufPool) -> Result<()> {
    let mut of_target = Registrar::new(Arc::clone(pair.target.domain()), RemoteAccess::None);
    let mut of_host = Registrar::new(Arc::clone(pair.host.domain()), RemoteAccess::ReadWrite);

    // A capsule with data: the data land in a buffer of their own.
    let inbox = buffer(pool, 4096, 0)?;
    pair.target
        .receive(Some(of_target.segment(&inbox, 0..4096)?))?;
    ensure!(inbox.bytes().is_none(), "the device may write to it");
    drop(inbox);
    let outbox = buffer(pool, 4096, 0x5a)?;
    let data = Some(of_host.segment(&outbox, 0..3000)?);
    let header = [7; HEADER_BYTES];
    let work = SendWork::Send {
        header: &header,
        data,
        invalidate: None,
    };
    send(&mut pair.host, work, 1, true)?;
    pair.host.post()?;
    sent(&mut pair.host, 1)?;
    match completion(&mut pair.target)? {
        Done::Received {
            header: got,
            bytes: 3064,
            data: Some(data),
            invalidated: None,
        } => {
            ensure!(got == header);
            ensure!(
                data.eq_range(0..3000, &outbox, 0) && data.is_zero(3000..4096),
                "data differ"
            );
        }
        done => bail!("{done:?}"),
    }
    println!("SEND with a header and data in two segments");

    // READ, as a target gets the data of a write.
    let memory = buffer(pool, 1 << 20, 0x33)?;
    let segment = of_host.segment(&memory, 4096..1 << 20)?;
    let remote = Remote {
        address: segment.address(),
        key: segment.remote_key(),
    };
    let length = segment.len();
    let fetched = buffer(pool, 1 << 20, 0)?;
    let into = of_target.segment(&fetched, 0..length)?;
    send(
        &mut pair.target,
        SendWork::Read { into, from: remote },
        2,
        true,
    )?;
    pair.target.post()?;
    sent(&mut pair.target, 2)?;
    ensure!(fetched.eq_range(0..length, &memory, 4096), "data differ");
    println!("READ of {length} bytes");

    // WRITE and SEND, as a target answers a read: one post, one signalled completion.
    fetched.fill(0..length, 0xc4);
    let from = of_target.segment(&fetched, 0..length)?;
    send(
        &mut pair.target,
        SendWork::Write { from, into: remote },
        3,
        false,
    )?;
    let work = SendWork::Send {
        header: &[9; 16],
        data: None,
        invalidate: None,
    };
    send(&mut pair.target, work, 4, true)?;
    pair.target.post()?;
    match completion(&mut pair.host)? {
        Done::Received {
            header,
            bytes: 16,
            data: None,
            invalidated: None,
        } => {
            ensure!(header[..16] == [9; 16] && header[16..] == [0; 48]);
        }
        done => bail!("{done:?}"),
    }
    // The data are there before the message that follows them.
    ensure!(memory.eq_range(4096..1 << 20, &fetched, 0), "data differ");
    sent(&mut pair.target, 4)?;
    ensure!(
        completion_within(&mut pair.target, Duration::ZERO)?.is_none(),
        "WRITE was not signalled"
    );
    println!(
        "WRITE and SEND with one completion; {} and {} registrations",
        of_target.registrations(),
        of_host.registrations()
    );

    send(&mut pair.target, SendWork::Probe, 5, true)?;
    pair.target.post()?;
    sent(&mut pair.target, 5)?;
    println!("a sign of life");

    // The queue is bounded, and what it cannot take is refused.
    for token in 0..SIZES.sends {
        let work = SendWork::Invalidate { key: 0 };
        pair.target.stage(work, token.into(), false)?;
    }
    ensure!(
        pair.target
            .stage(SendWork::Invalidate { key: 0 }, 0, false)
            .is_err(),
        "more than fit"
    );
    // Staged work that is never posted goes with the queue pair.

    // The end: what is posted comes back, on both sides.
    pair.host.id().disconnect()?;
    flushed(&mut pair.host, SIZES.receives as usize - 1)?;
    ensure!(pair.host.in_flight() == 0);
    expect(&ends.channel, pair.target.id().key(), |kind| {
        matches!(kind, CmEventKind::Disconnected)
    })?;
    pair.target.id().disconnect()?;
    expect(&ends.channel, pair.host.id().key(), |kind| {
        matches!(kind, CmEventKind::Disconnected)
    })?;
    println!("disconnected, receives came back flushed");
    Ok(())
}

fn flushed(qp: &mut QueuePair, count: usize) -> Result<()> {
    for _ in 0..count {
        match completion(qp)? {
            Done::Failed { status, .. } if status.is_flushed() => {}
            done => bail!("not flushed: {done:?}"),
        }
    }
    Ok(())
}

/// READ with a key that does not exist fails on its own side, and everything after it comes back.
fn wrong_key(ends: &Ends, pool: &BufPool) -> Result<()> {
    let mut pair = ends.connect()?;
    let mut of_target = Registrar::new(Arc::clone(pair.target.domain()), RemoteAccess::None);
    let buf = buffer(pool, 4096, 0)?;
    let into = of_target.segment(&buf, 0..4096)?;
    let from = Remote {
        address: 4096,
        key: 0xdead_beef,
    };
    send(&mut pair.target, SendWork::Read { into, from }, 1, true)?;
    let work = SendWork::Send {
        header: &[1; 16],
        data: None,
        invalidate: None,
    };
    send(&mut pair.target, work, 2, true)?;
    pair.target.post()?;
    match completion(&mut pair.target)? {
        Done::Failed {
            token: Some(1),
            status,
        } if !status.is_flushed() => {
            println!("a wrong key fails the queue pair: {status}");
        }
        done => bail!("{done:?}"),
    }
    flushed(&mut pair.target, 1)?;
    ensure!(pair.target.in_flight() == 0 && pair.target.detach().is_ok());
    drop(pair.host);
    forget_events(ends)
}

/// An idle queue pair goes to another thread and works there.
fn move_between_threads(ends: &Ends) -> Result<()> {
    let mut pair = ends.connect()?;
    let idle = match pair.target.detach() {
        Ok(idle) => idle,
        Err(_) => bail!("something is posted on a new queue pair"),
    };
    let thread = std::thread::spawn(move || -> Result<()> {
        let mut target = idle.attach();
        let work = SendWork::Send {
            header: b"from another thread",
            data: None,
            invalidate: None,
        };
        send(&mut target, work, 1, true)?;
        target.post()?;
        sent(&mut target, 1)
    });
    match completion(&mut pair.host)? {
        Done::Received {
            header, bytes: 19, ..
        } => ensure!(header.starts_with(b"from another thread\0")),
        done => bail!("{done:?}"),
    }
    thread.join().expect("the thread does not panic")?;
    println!("a queue pair moved to another thread");
    drop(pair.host);
    forget_events(ends)
}

/// Connections were dropped without a word: what the manager says of them concerns nobody.
pub(crate) fn forget_events(ends: &Ends) -> Result<()> {
    while ends.channel.next()?.is_some() {}
    Ok(())
}
