//! Memory windows: what a peer can reach through one, and that nothing of that is left once it is closed.
//!
//! An access that is refused breaks the queue pair, so that each is tried on a connection of its own.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use nvmf_io::verbs::{Done, Lent, Registrar, Remote, RemoteAccess, SendWork};
use nvmf_io::{Buf, BufPool};

use crate::link::completion;
use crate::verbs::{Ends, Pair, buffer, forget_events, send, sent};

/// A window's length, and where it begins in its buffer: it has neighbours on both sides.
const BYTES: u32 = 4096;
const BEGIN: u32 = 4096;
const BUFFER_BYTES: u32 = BEGIN + 2 * BYTES;
/// What is registered at once.
const CHUNK_BYTES: i64 = 2 << 20;
/// What the host's memory holds.
const FILL: u8 = 0x11;

/// A connection whose host has a window over part of a buffer.
struct Bound {
    pair: Pair,
    of_host: Registrar,
    of_target: Registrar,
    memory: Buf,
    /// The target's.
    data: Buf,
    lent: Option<Lent>,
    remote: Remote,
    token: u64,
}

/// What the target may do through the window.
#[derive(Clone, Copy)]
enum For {
    Reading,
    Writing,
}

impl Bound {
    fn new(ends: &Ends, pool: &BufPool, purpose: For) -> Result<Self> {
        Self::on(ends.connect()?, pool, purpose)
    }

    fn on(pair: Pair, pool: &BufPool, purpose: For) -> Result<Self> {
        let of = |qp: &nvmf_io::verbs::QueuePair, access| {
            Registrar::new(Arc::clone(qp.domain()), access)
        };
        let mut bound = Self {
            of_host: of(&pair.host, RemoteAccess::Windows),
            of_target: of(&pair.target, RemoteAccess::None),
            pair,
            memory: buffer(pool, BUFFER_BYTES, FILL)?,
            data: buffer(pool, BYTES, 0x22)?,
            lent: None,
            remote: Remote { address: 0, key: 0 },
            token: 0,
        };
        bound.bind(purpose)?;
        Ok(bound)
    }

    /// Opens the window. Returns its key.
    fn bind(&mut self, purpose: For) -> Result<u32> {
        let segment = self.of_host.segment(&self.memory, BEGIN..BEGIN + BYTES)?;
        let lent = match purpose {
            For::Reading => segment.lend(),
            For::Writing => segment.lend_for_writing().context("nobody reads it")?,
        };
        let key = self.pair.host.window_key(0);
        self.remote = Remote {
            address: lent.remote().address,
            key,
        };
        self.token += 1;
        let to = lent.bindable().context("registered for windows")?;
        let work = SendWork::Bind { window: 0, to };
        send(&mut self.pair.host, work, self.token, true)?;
        self.pair.host.post()?;
        sent(&mut self.pair.host, self.token).context("binding")?;
        self.lent = Some(lent);
        Ok(key)
    }

    /// As long as the window, at so many bytes from it.
    fn beside(&self, offset_bytes: i64) -> Remote {
        Remote {
            address: self.remote.address.wrapping_add_signed(offset_bytes),
            ..self.remote
        }
    }

    fn stage_write(&mut self, into: Remote) -> Result<()> {
        self.token += 1;
        let from = self.of_target.segment(&self.data, 0..BYTES)?;
        let work = SendWork::Write { from, into };
        send(&mut self.pair.target, work, self.token, true)
    }

    fn stage_read(&mut self, from: Remote) -> Result<()> {
        self.token += 1;
        let into = self.of_target.segment(&self.data, 0..BYTES)?;
        let work = SendWork::Read { into, from };
        send(&mut self.pair.target, work, self.token, true)
    }

    /// What came of the target's last work request: `None` if it succeeded, else why not.
    fn outcome(&mut self) -> Result<Option<String>> {
        self.pair.target.post()?;
        match completion(&mut self.pair.target)? {
            Done::Sent { token } if token == self.token => Ok(None),
            Done::Failed {
                token: Some(token),
                status,
            } if token == self.token && !status.is_flushed() => Ok(Some(status.to_string())),
            done => bail!("not an outcome of {}: {done:?}", self.token),
        }
    }

    fn works(&mut self) -> Result<()> {
        match self.outcome()? {
            None => Ok(()),
            Some(status) => bail!("refused: {status}"),
        }
    }

    /// Ends the connection, on which the target must have been refused just now.
    fn refused(mut self, ends: &Ends, what: &str) -> Result<()> {
        let Some(status) = self.outcome()? else {
            bail!("{what}: the device lets the target do it");
        };
        println!("refused, {what}: {status}");
        drop(self);
        forget_events(ends)
    }

    /// The target's message arrives at the host, with an invalidation or not. Returns what that made invalid.
    fn message(&mut self, invalidate: Option<u32>) -> Result<Option<u32>> {
        self.token += 1;
        let work = SendWork::Send {
            header: &[1; 16],
            data: None,
            invalidate,
        };
        send(&mut self.pair.target, work, self.token, true)?;
        self.works().context("SEND")?;
        match completion(&mut self.pair.host)? {
            Done::Received { invalidated, .. } => {
                self.pair.host.receive(None)?;
                Ok(invalidated)
            }
            done => bail!("{done:?}"),
        }
    }

    fn invalidate_here(&mut self, key: u32) -> Result<()> {
        self.token += 1;
        let work = SendWork::Invalidate { key };
        send(&mut self.pair.host, work, self.token, true)?;
        self.pair.host.post()?;
        sent(&mut self.pair.host, self.token).context("local invalidation")
    }
}

pub fn run(ends: &Ends, pool: &BufPool) -> Result<()> {
    let first = ends.connect()?;
    let domain = Arc::clone(first.host.domain());
    println!(
        "{} memory windows on {}",
        domain.limits().memory_windows,
        domain.device_name()
    );
    drop(first);
    forget_events(ends)?;

    // The peer closes it.
    let mut bound = Bound::new(ends, pool, For::Writing)?;
    let first = bound.remote;
    bound.stage_write(first)?;
    bound.works().context("WRITE through a window")?;
    ensure!(bound.memory.bytes().is_none(), "the target may write to it");
    let invalidated = bound.message(Some(first.key))?;
    ensure!(invalidated == Some(first.key), "not invalidated");
    bound.lent = None;
    ensure!(
        bound.memory.eq_range(BEGIN..BEGIN + BYTES, &bound.data, 0),
        "data differ"
    );
    // The same window again, many times over, under keys that differ from one to the next.
    let mut last = first.key;
    for _ in 0..300 {
        let key = bound.bind(For::Writing)?;
        ensure!(key != last && key >> 8 == last >> 8, "{last:x}h, {key:x}h");
        last = key;
        let invalidated = bound.message(Some(key))?;
        ensure!(invalidated == Some(key), "not invalidated");
        bound.lent = None;
    }
    println!("a window was bound 301 times, and closed by the peer each time");
    bound.stage_write(Remote {
        key: last,
        ..bound.remote
    })?;
    bound.refused(ends, "a key after SEND with invalidate")?;

    // We close it.
    let mut bound = Bound::new(ends, pool, For::Reading)?;
    let first = bound.remote;
    bound.stage_read(first)?;
    bound.works().context("READ through a window")?;
    ensure!(
        bound.data.eq_range(0..BYTES, &bound.memory, BEGIN),
        "data differ"
    );
    let invalidated = bound.message(None)?;
    ensure!(invalidated.is_none(), "nobody asked for it");
    bound.stage_read(first)?;
    bound.works().context("a window is open until closed")?;
    bound.invalidate_here(first.key)?;
    bound.stage_read(first)?;
    bound.refused(ends, "a key after local invalidation")?;

    let mut bound = Bound::new(ends, pool, For::Reading)?;
    let old = bound.remote;
    bound.invalidate_here(old.key)?;
    bound.bind(For::Reading)?;
    bound.stage_read(old)?;
    bound.refused(ends, "the old key of a window that is bound again")?;

    let mut bound = Bound::new(ends, pool, For::Reading)?;
    bound.stage_write(bound.remote)?;
    bound.refused(ends, "WRITE through a window for READ")?;

    let mut bound = Bound::new(ends, pool, For::Writing)?;
    bound.stage_read(bound.remote)?;
    bound.refused(ends, "READ through a window for WRITE")?;

    // The registration's own key, which the host tells nobody.
    let mut bound = Bound::new(ends, pool, For::Reading)?;
    let segment = bound.of_host.segment(&bound.memory, 0..BYTES)?;
    bound.stage_read(Remote {
        address: segment.address(),
        key: segment.remote_key(),
    })?;
    bound.refused(ends, "the registration's key")?;

    // A window is its queue pair's alone, even with another one of the same domain beside it.
    let mut other = Bound::new(ends, pool, For::Reading)?;
    let beside = ends.connect_beside(other.pair.host.domain())?;
    let mut bound = Bound::on(beside, pool, For::Reading)?;
    other.stage_read(bound.remote)?;
    other.refused(ends, "the key of another connection's window")?;
    bound.stage_read(bound.remote)?;
    bound.works().context("the other connection's window")?;
    // Goes with its window open.
    drop(bound);
    forget_events(ends)?;

    bounds(ends, pool)
}

/// Whether the device holds windows to their bounds. Not every one does: soft RoCE of Linux 6.12 looks at those of the registration under
/// the window, which all have to hold.
fn bounds(ends: &Ends, pool: &BufPool) -> Result<()> {
    let mut held = [true; 2];
    for (held, (what, offset)) in held.iter_mut().zip([("before", -1), ("behind", 1)]) {
        let mut bound = Bound::new(ends, pool, For::Reading)?;
        bound.stage_read(bound.beside(offset))?;
        match bound.outcome()? {
            Some(status) => println!("refused, one byte {what} a window: {status}"),
            None => {
                println!("NOT refused by this device: one byte {what} a window");
                *held = false;
            }
        }
        drop(bound);
        forget_events(ends)?;
    }
    ensure!(held[0] == held[1], "one bound is held, the other is not");
    for (what, offset) in [("before", -CHUNK_BYTES), ("behind", CHUNK_BYTES)] {
        let mut bound = Bound::new(ends, pool, For::Reading)?;
        bound.stage_read(bound.beside(offset))?;
        bound.refused(ends, &format!("memory {what} a window's registration"))?;
    }
    Ok(())
}
