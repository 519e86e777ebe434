//! RDMA, as far as both threads of a host share it: [`HostLink`], a queue pair with its protocol state, and [`Registrars`], which have
//! one for each device on a thread.
//!
//! A link is made on the control thread, sends Connect there and is either kept, for an admin queue, or given to a shard with
//! nothing posted on it. Data never pass through it: the target reads from and writes to the buffers that a command names, which
//! are those of the thread's pools. A pool's memory is registered once, with a key that the target may use as long as the queue pair
//! stands. With memory windows the registration gives no access: a window is bound over just the memory of a command, right before the
//! command is sent, for the access that it needs and under a key of its own. The target's answer makes that key invalid, or we do before the
//! command counts as answered.
//!
//! Invariants:
//! - once a link serves there is a receive for every command that can be open, so that the target always finds one;
//! - a buffer is lent to the target until its command is answered, or until the queue pair is destroyed;
//! - with windows no command is answered before its window is closed, and its slot, with the window, is free only then;
//! - there is room for the invalidation of each window that is bound;
//! - data in a capsule are the device's until the SEND that carries them is done, which the answer may overtake: [`Answer::after`].

mod registrars;
mod windows;

use std::ops::Range;

use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::rdma::HostConn;
use nvme_proto::rdma::host::{LocalMemory, SubmitError};
use nvme_proto::wire::{Cqe, Sqe};
use nvmf_io::Buf;
use nvmf_io::verbs::{
    Done, Lent, LinkFailure, ProtectionDomain, QueuePair, QueueSizes, Segment, SendWork,
    VerbsError, WorkCounts,
};
use zerocopy::IntoBytes;

pub(crate) use registrars::{Registrars, SharedRegistrar, access};
use windows::{Unclosed, Window, Windows};

/// Completions taken between two looks at how many more there may be.
const POLL_LIMIT: usize = 256;

/// Work requests for each entry of a queue beside its receive: a SEND; with windows a binding and an invalidation too.
fn sends_per_entry(windows: bool) -> u32 {
    if windows { 3 } else { 1 }
}

/// Work requests of a queue of so many entries, and a window for each command that can be open, where windows are asked for.
pub(crate) fn queue_sizes(entries: u16, windows: bool) -> QueueSizes {
    QueueSizes {
        sends: u32::from(entries) * sends_per_entry(windows),
        receives: entries.into(),
        windows: if windows { u32::from(entries) - 1 } else { 0 },
    }
}

/// Most entries of a queue that a device has room for.
pub(crate) fn most_entries(domain: &ProtectionDomain, windows: bool) -> u16 {
    let limits = domain.limits();
    let sends = sends_per_entry(windows);
    // Sends and receives share a completion queue.
    let most = (limits.work_requests / sends).min(limits.completions / (sends + 1));
    u16::try_from(most).unwrap_or(u16::MAX)
}

/// Why a command was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// No more can be open.
    Full,
    /// The link is of no more use.
    Failed(LinkFailure),
}

/// The memory that a command moves.
pub(crate) enum Memory<'a> {
    None,
    /// To the controller.
    Out(&'a Buf, Range<u32>),
    /// From the controller.
    In(&'a Buf, Range<u32>),
}

/// A command was answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// The slot that it had, which is free.
    pub slot: SlotId,
    pub cqe: Cqe,
    /// Its buffer is free once [`HostLink::acknowledged`] is at least this.
    pub after: u64,
}

#[derive(Default)]
struct SlotMemory {
    lent: Option<Lent>,
    /// Data to send with the command.
    capsule: Option<Segment>,
    /// Number of the SEND that took data along; 0 where there were none.
    sent_as: u64,
    window: Window,
}

/// See the module's text.
pub(crate) struct HostLink {
    // Before what it uses: destroyed first.
    qp: QueuePair,
    conn: HostConn,
    registrar: SharedRegistrar,
    slots: Box<[SlotMemory]>,
    /// `None`: the registrations' keys are what commands name.
    windows: Option<Windows>,
    /// Work requests staged so far, and the number of the last that is known to be done.
    sent: u64,
    acknowledged: u64,
    /// A receive that was used is posted again.
    serving: bool,
    closing: bool,
}

impl HostLink {
    /// A link on a queue pair whose connection stands, without receives beyond those that are posted: as many commands may be sent. If
    /// the queue pair has memory windows, commands name their keys.
    pub fn new(qp: QueuePair, conn: HostConn, registrar: SharedRegistrar) -> Self {
        let slots = std::iter::repeat_with(SlotMemory::default).take(conn.capacity());
        let windows = (qp.windows() > 0).then(|| Windows::new(conn.capacity()));
        HostLink {
            windows,
            qp,
            slots: slots.collect(),
            conn,
            registrar,
            sent: 0,
            acknowledged: 0,
            serving: false,
            closing: false,
        }
    }

    /// Posts a receive for each command that can be open, now and again after each answer. Before that nothing may be posted.
    pub fn serve(&mut self) -> Result<(), VerbsError> {
        self.serving = true;
        for _ in 0..self.conn.capacity() {
            self.qp.receive(None)?;
        }
        Ok(())
    }

    /// The queue pair and the protocol's state, for a new link. The queue pair comes apart from its link only with nothing posted on it.
    pub fn into_parts(self) -> (QueuePair, HostConn) {
        (self.qp, self.conn)
    }

    pub fn qp(&self) -> &QueuePair {
        &self.qp
    }

    pub fn conn(&self) -> &HostConn {
        &self.conn
    }

    /// What was done on the queue pair.
    pub fn counts(&self) -> WorkCounts {
        self.qp.counts()
    }

    /// The number of the last SEND that is known to be done.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Takes a command; [`HostLink::post`] sends it.
    pub fn submit(&mut self, sqe: &Sqe, memory: Memory<'_>) -> Result<SlotId, NotTaken> {
        let broken = |error: VerbsError| NotTaken::Failed(error.into());
        let segment = |buf: &Buf, range: Range<u32>| {
            let mut registrar = self.registrar.borrow_mut();
            registrar.segment(buf, range).map_err(broken)
        };
        let mut place = SlotMemory::default();
        let transfer = match memory {
            Memory::None => Transfer::None,
            Memory::Out(buf, range) => {
                let transfer = self.conn.write_transfer(range.end - range.start);
                let segment = segment(buf, range)?;
                match transfer {
                    Transfer::InCapsule(_) => place.capsule = Some(segment),
                    _ => place.lent = Some(segment.lend()),
                }
                transfer
            }
            Memory::In(buf, range) => {
                let bytes = range.end - range.start;
                let lent = segment(buf, range)?.lend_for_writing();
                place.lent = Some(lent.ok_or_else(|| {
                    let why = "a buffer to read into is being read, or must not be written";
                    NotTaken::Failed(LinkFailure::Broken(why.to_owned()))
                })?);
                Transfer::ToHost(bytes)
            }
        };
        let memory = match &place.lent {
            None => None,
            Some(lent) => Some(self.named(lent)?),
        };
        match self.conn.submit(sqe, transfer, memory) {
            Ok(slot) => {
                self.slots[slot.index()] = place;
                Ok(slot)
            }
            Err(SubmitError::QueueFull(_)) => Err(NotTaken::Full),
            Err(error) => Err(NotTaken::Failed(LinkFailure::Broken(error.to_string()))),
        }
    }

    /// How the next command names the memory that it is lent.
    fn named(&self, lent: &Lent) -> Result<LocalMemory, NotTaken> {
        let remote = lent.remote();
        let mut memory = LocalMemory {
            address: remote.address,
            key: remote.key,
            invalidate: false,
        };
        if self.windows.is_some() {
            if lent.bindable().is_none() {
                let why = "no memory window can be opened over a buffer that must not be written";
                return Err(NotTaken::Failed(LinkFailure::Broken(why.to_owned())));
            }
            let slot = self.conn.next_slot().ok_or(NotTaken::Full)?;
            memory.key = self.qp.window_key(slot.index());
            // As Linux's host does, whatever the controller says of itself: one that cannot leaves it to us.
            memory.invalidate = true;
        }
        Ok(memory)
    }

    /// Work requests that have to fit before another command is sent: its own, and the invalidations that may come before it.
    fn room_for_command(&self) -> usize {
        match &self.windows {
            None => 1,
            Some(windows) => windows.bound + 3,
        }
    }

    /// Posts what there is to send, as far as there is room, with one call of which the last work request is signalled.
    pub fn post(&mut self) -> Result<(), VerbsError> {
        if self.closing {
            return Ok(());
        }
        while self.qp.send_room() >= self.room_for_command()
            && let Some(work) = self.conn.poll_work()
        {
            let place = &mut self.slots[work.slot.index()];
            if let Some(windows) = &mut self.windows
                && let Some(lent) = &place.lent
            {
                let window = work.slot.index();
                place.window = Window::Bound(self.qp.window_key(window));
                windows.bound += 1;
                self.sent += 1;
                let to = lent.bindable().expect("seen when it was submitted");
                let bind = SendWork::Bind { window, to };
                let staged = self.qp.stage(bind, self.sent, false);
                staged.expect("asked for room");
            }
            self.sent += 1;
            let data = place.capsule.take();
            place.sent_as = if data.is_some() { self.sent } else { 0 };
            let header = self.conn.command(work.slot).as_bytes();
            let send = SendWork::Send {
                header,
                data,
                invalidate: None,
            };
            let staged = self.qp.stage(send, self.sent, false);
            staged.expect("asked for room");
        }
        self.qp.post()
    }

    /// Takes completions until there are none; hands out answers. There are no more than commands are open.
    pub fn poll(&mut self, mut answered: impl FnMut(Answer)) -> Result<(), LinkFailure> {
        let HostLink {
            qp,
            conn,
            slots,
            windows,
            sent,
            acknowledged,
            serving,
            closing,
            ..
        } = self;
        let mut failure = None;
        let mut answer = |conn: &mut HostConn,
                          slots: &mut [SlotMemory],
                          header: &[u8],
                          bytes: u32,
                          invalidated: Option<u32>|
         -> Result<(), LinkFailure> {
            let completed = conn.receive(header, bytes, invalidated)?;
            let place = &mut slots[completed.slot.index()];
            place.lent = None;
            place.window = Window::Closed;
            answered(Answer {
                slot: completed.slot,
                cqe: completed.cqe,
                after: place.sent_as,
            });
            Ok(())
        };
        let mut more = true;
        while more {
            more = qp.poll(POLL_LIMIT, |qp, done| match done {
                Done::Received { .. } if *closing || failure.is_some() => {}
                Done::Received {
                    header,
                    bytes,
                    invalidated,
                    ..
                } => {
                    let open = match windows {
                        Some(windows) => {
                            windows.answered(qp, conn, slots, sent, &header, bytes, invalidated)
                        }
                        None => Ok(false),
                    };
                    let taken = open.and_then(|open| match open {
                        true => Ok(()),
                        false => answer(conn, slots, &header, bytes, invalidated),
                    });
                    let ready = taken.and_then(|()| match *serving {
                        true => Ok(qp.receive(None)?),
                        false => Ok(()),
                    });
                    failure = ready.err();
                }
                Done::Sent { token } => {
                    *acknowledged = token;
                    while let Some(Unclosed { header, bytes, .. }) =
                        windows.as_mut().and_then(|windows| windows.closed(token))
                        && failure.is_none()
                    {
                        failure = answer(conn, slots, &header, bytes, None).err();
                    }
                }
                Done::Failed { status, .. } => {
                    failure.get_or_insert_with(|| status.into());
                }
            })?;
            // Invalidations that answers made necessary.
            if windows.is_some()
                && !*closing
                && let Err(error) = qp.post()
            {
                // Why the link broke, if it did, was seen before.
                failure.get_or_insert(error.into());
            }
        }
        match failure {
            Some(failure) if !self.closing => Err(failure),
            _ => Ok(()),
        }
    }

    /// Ends the connection: what is posted comes back, and nothing that still arrives counts.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            self.conn.close(|_| {});
            // Fails when the device is gone; the queue pair is then destroyed with what is posted.
            let _ = self.qp.id().disconnect();
        }
    }

    /// Nothing is posted any more.
    pub fn is_quiet(&self) -> bool {
        self.qp.in_flight() == 0
    }
}
