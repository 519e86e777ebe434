//! RDMA, as far as both threads of a host share it: [`HostLink`], a queue pair with its protocol state, and [`Registrars`], one for
//! each device on a thread.
//!
//! A link is made on the control thread, sends Connect there and is either kept, for an admin queue, or given to a shard with
//! nothing posted on it. Data never pass through it: the target reads from and writes to the buffers that a command names, which
//! are those of the thread's pools. A pool's memory is registered once, with a key that the target may use as long as the queue pair
//! stands.
//!
//! Invariants:
//! - once a link serves there is a receive for every command that can be open, so that the target always finds one;
//! - a buffer is lent to the target until its command is answered, or until the queue pair is destroyed;
//! - data in a capsule are the device's until the SEND that carries them is done, which the answer may overtake: [`Answer::after`].

use std::cell::RefCell;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::rdma::HostConn;
use nvme_proto::rdma::host::{LocalMemory, SubmitError};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cqe, Sqe};
use nvmf_io::Buf;
use nvmf_io::verbs::{
    Done, Lent, ProtectionDomain, QueuePair, QueueSizes, Registrar, RemoteAccess, Segment,
    SendWork, VerbsError, WorkCounts,
};
use zerocopy::IntoBytes;

/// Completions taken between two looks at how many more there may be.
const POLL_LIMIT: usize = 256;

/// Work requests of a queue of so many entries: a SEND and a receive for each.
pub(crate) fn queue_sizes(entries: u16) -> QueueSizes {
    QueueSizes {
        sends: entries.into(),
        receives: entries.into(),
    }
}

/// Most entries of a queue that a device has room for.
pub(crate) fn most_entries(domain: &ProtectionDomain) -> u16 {
    let limits = domain.limits();
    // Sends and receives share a completion queue.
    let most = limits.work_requests.min(limits.completions / 2);
    u16::try_from(most).unwrap_or(u16::MAX)
}

/// Registers the pools of one thread with one device. Shared by the device's queues on the thread, and gone with the last of them: a
/// host that is not connected leaves nothing on the device.
pub(crate) type SharedRegistrar = Rc<RefCell<Registrar>>;

/// The registrars of one thread.
#[derive(Debug, Default)]
pub(crate) struct Registrars(Vec<Weak<RefCell<Registrar>>>);

impl Registrars {
    /// The one for a device.
    pub fn of(&mut self, domain: &Arc<ProtectionDomain>) -> SharedRegistrar {
        self.0.retain(|registrar| registrar.strong_count() > 0);
        let known = |registrar: &SharedRegistrar| Arc::ptr_eq(registrar.borrow().domain(), domain);
        if let Some(registrar) = self.0.iter().filter_map(Weak::upgrade).find(known) {
            return registrar;
        }
        let registrar = Registrar::new(Arc::clone(domain), RemoteAccess::ReadWrite);
        let registrar = Rc::new(RefCell::new(registrar));
        self.0.push(Rc::downgrade(&registrar));
        registrar
    }

    /// Registrations that there are.
    pub fn registrations(&self) -> usize {
        let alive = self.0.iter().filter_map(Weak::upgrade);
        alive
            .map(|registrar| registrar.borrow().registrations())
            .sum()
    }
}

/// Why a link is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkFailure {
    /// The target broke a rule.
    Violation(Violation),
    /// A work request failed, or the device did.
    Broken(String),
    /// Everything comes back: the target is gone.
    Flushed,
}

impl From<VerbsError> for LinkFailure {
    fn from(error: VerbsError) -> Self {
        LinkFailure::Broken(error.to_string())
    }
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
}

/// See the module's text.
pub(crate) struct HostLink {
    // Before what it uses: destroyed first.
    qp: QueuePair,
    conn: HostConn,
    registrar: SharedRegistrar,
    slots: Box<[SlotMemory]>,
    /// SENDs staged so far, and the number of the last that is known to be done.
    sent: u64,
    acknowledged: u64,
    /// A receive that was used is posted again.
    serving: bool,
    closing: bool,
}

impl HostLink {
    /// A link on a queue pair whose connection stands, without receives beyond those that are posted: as many commands may be sent.
    pub fn new(qp: QueuePair, conn: HostConn, registrar: SharedRegistrar) -> Self {
        let slots = std::iter::repeat_with(SlotMemory::default).take(conn.capacity());
        HostLink {
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
        let remote = place.lent.as_ref().map(Lent::remote);
        let memory = remote.map(|remote| LocalMemory {
            address: remote.address,
            key: remote.key,
            invalidate: false,
        });
        match self.conn.submit(sqe, transfer, memory) {
            Ok(slot) => {
                self.slots[slot.index()] = place;
                Ok(slot)
            }
            Err(SubmitError::QueueFull(_)) => Err(NotTaken::Full),
            Err(error) => Err(NotTaken::Failed(LinkFailure::Broken(error.to_string()))),
        }
    }

    /// Posts what there is to send, as far as there is room, with one call of which the last work request is signalled.
    pub fn post(&mut self) -> Result<(), VerbsError> {
        if self.closing {
            return Ok(());
        }
        while self.qp.send_room() > 0
            && let Some(work) = self.conn.poll_work()
        {
            let place = &mut self.slots[work.slot.index()];
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
            acknowledged,
            serving,
            closing,
            ..
        } = self;
        let mut failure = None;
        let mut more = true;
        while more {
            more = qp.poll(POLL_LIMIT, |qp, done| match done {
                Done::Received { .. } if *closing || failure.is_some() => {}
                Done::Received {
                    header,
                    bytes,
                    invalidated,
                    ..
                } => match conn.receive(&header, bytes, invalidated) {
                    Ok(completed) => {
                        let place = &mut slots[completed.slot.index()];
                        place.lent = None;
                        answered(Answer {
                            slot: completed.slot,
                            cqe: completed.cqe,
                            after: place.sent_as,
                        });
                        if *serving && let Err(error) = qp.receive(None) {
                            failure = Some(error.into());
                        }
                    }
                    Err(violation) => failure = Some(LinkFailure::Violation(violation)),
                },
                Done::Sent { token } => *acknowledged = token,
                Done::Failed { status, .. } => {
                    failure.get_or_insert_with(|| match status.is_flushed() {
                        true => LinkFailure::Flushed,
                        false => LinkFailure::Broken(status.to_string()),
                    });
                }
            })?;
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
