//! A queue over RDMA: the queue pair, what is posted on it, and the protocol's state.
//!
//! A receive is posted for each entry of the queue, with a buffer for in-capsule data. A command takes its receive with it and gives it
//! back right before its response is posted, so a host that keeps to its queue always finds one, and one that does not is held up by the
//! device (RNR) without anything being dropped. In-capsule data are used where they arrived.
//!
//! What a turn has to post goes out with one call, of which the last work request and every READ are signalled: two work requests
//! and a share of a completion for a read, one and a share for a write in the capsule.

use nvme_proto::queue::{SlotId, Transfer};
use nvme_proto::rdma::ControllerConn;
use nvme_proto::rdma::controller::{Received, Work};
use nvme_proto::violation::Violation;
use nvme_proto::wire::Cid;
use nvmf_io::verbs::{
    Done, LinkFailure, NoRoom, QueuePair, Registrar, Remote, SendWork, VerbsError,
};
use nvmf_io::{Buf, BufPool};

use super::{DeviceUse, Registrars};

/// Work requests that one step of the protocol needs at most: pieces of data of nothing, and the response.
const STEP_REQUESTS: usize = 4;

/// Marks READs among tokens; the rest is the slot and the length.
const READ: u64 = 1 << 63;

/// Token of a sign of life.
const PROBE: u64 = 1 << 62;

/// What happened.
#[derive(Debug)]
pub enum LinkEvent {
    /// A command; see [`Received::Command`].
    Command(SlotId),
    /// A command that broke a rule; it is answered.
    Refused {
        /// Its identifier.
        cid: Cid,
        /// The rule.
        violation: Violation,
    },
    /// All data of the command are there.
    DataReady(SlotId),
    /// Something that was posted is done: buffers are free, and there is room for more.
    Sent,
    /// The host's device gave a sign of life.
    Alive,
}

/// See the module's text.
pub struct Link {
    qp: QueuePair,
    conn: ControllerConn,
    /// Buffers of in-capsule data in use, by the command's slot.
    capsules: Box<[Option<Buf>]>,
    /// Buffers of receives whose commands did not need them.
    spare: Vec<Buf>,
    /// Whether receives have buffers.
    has_data: bool,
    /// Ends: what still arrives is not looked at.
    closing: bool,
    device: DeviceUse,
}

impl Link {
    /// A link on a queue pair with nothing posted, for a queue of `depth` entries. Posts its receives, with buffers for in-capsule data
    /// from the pool. `None`: the pool is dry.
    pub fn new(
        mut qp: QueuePair,
        conn: ControllerConn,
        depth: u16,
        in_capsule_bytes: u32,
        pool: &BufPool,
        registrars: &mut Registrars,
    ) -> Result<Option<Self>, VerbsError> {
        let has_data = in_capsule_bytes > 0;
        let buffer_bytes = u64::from(depth) * u64::from(in_capsule_bytes);
        let bytes = qp.memory_bytes() as u64 + buffer_bytes;
        let device = registrars.enter(qp.domain(), bytes);
        let registrar = registrars.of(qp.domain());
        for _ in 0..depth {
            let data = match has_data {
                true => {
                    let Some(buf) = pool.alloc(in_capsule_bytes) else {
                        return Ok(None);
                    };
                    Some(registrar.segment(&buf, 0..in_capsule_bytes)?)
                }
                false => None,
            };
            qp.receive(data)?;
        }
        Ok(Some(Self {
            qp,
            conn,
            capsules: vec![None; depth.into()].into(),
            spare: Vec::with_capacity(depth.into()),
            has_data,
            closing: false,
            device,
        }))
    }

    /// The queue pair.
    pub fn qp(&self) -> &QueuePair {
        &self.qp
    }

    /// The protocol's state.
    pub fn conn(&self) -> &ControllerConn {
        &self.conn
    }

    /// The protocol's state, to change.
    pub fn conn_mut(&mut self) -> &mut ControllerConn {
        &mut self.conn
    }

    /// The in-capsule data of a command.
    pub fn in_capsule(&self, slot: SlotId) -> Option<&Buf> {
        self.capsules[slot.index()].as_ref()
    }

    /// Takes completions, about `limit` at most. Returns whether there may be more.
    pub fn poll(&mut self, limit: usize, events: &mut Vec<LinkEvent>) -> Result<bool, LinkFailure> {
        let Link {
            qp,
            conn,
            capsules,
            spare,
            closing,
            device,
            ..
        } = self;
        let mut failure = None;
        let more = qp.poll(limit, |_, done| match done {
            Done::Received {
                header,
                bytes,
                data,
                ..
            } => {
                if *closing || failure.is_some() {
                    return;
                }
                match conn.receive(&header, bytes) {
                    Ok(Received::Command { slot }) => {
                        match conn.queue().transfer(slot) {
                            Transfer::InCapsule(_) => capsules[slot.index()] = data,
                            _ => spare.extend(data),
                        }
                        events.push(LinkEvent::Command(slot));
                    }
                    Ok(Received::Refused { cid, violation }) => {
                        spare.extend(data);
                        events.push(LinkEvent::Refused { cid, violation });
                    }
                    Err(violation) => failure = Some(violation.into()),
                }
            }
            Done::Sent { token } => {
                if token & READ != 0 {
                    let slot = SlotId((token >> 32) as u16);
                    if conn.fetched(slot, token as u32) {
                        events.push(LinkEvent::DataReady(slot));
                    }
                }
                events.push(match token {
                    PROBE => LinkEvent::Alive,
                    _ => LinkEvent::Sent,
                });
            }
            Done::Failed { status, .. } => {
                failure.get_or_insert_with(|| status.into());
            }
        });
        device.add(qp.take_counts());
        let more = more?;
        match failure {
            Some(failure) if !self.closing => Err(failure),
            _ => Ok(more),
        }
    }

    /// Posts what the protocol has to say, as far as there is room. `data` gives up a command's buffer, or lends it for a READ; none stands for
    /// zeroes.
    pub fn post(
        &mut self,
        registrar: &mut Registrar,
        zeroes: &Buf,
        mut data: impl FnMut(SlotId) -> Option<Buf>,
    ) -> Result<(), VerbsError> {
        if self.closing {
            return Ok(());
        }
        let no_room = |_: NoRoom| VerbsError::Call {
            call: "ibv_post_send",
            errno: nvmf_io::Errno::NOMEM,
        };
        while self.qp.send_room() >= STEP_REQUESTS
            && let Some(work) = self.conn.poll_work()
        {
            match work {
                Work::Read {
                    slot,
                    offset,
                    bytes,
                    from,
                } => {
                    // Data are asked for only once there is a buffer for them.
                    let buf = data(slot).ok_or_else(|| no_room(NoRoom))?;
                    let into = registrar.segment(&buf, offset..offset + bytes)?;
                    let from = Remote {
                        address: from.address,
                        key: from.key,
                    };
                    let token = READ | u64::from(slot.0) << 32 | u64::from(bytes);
                    self.qp
                        .stage(SendWork::Read { into, from }, token, true)
                        .map_err(no_room)?;
                }
                Work::Write { slot, bytes, into } => {
                    let buf = data(slot);
                    let mut at = 0;
                    while at < bytes {
                        let (from, piece) = match &buf {
                            Some(buf) => (buf, at..bytes),
                            None => (zeroes, 0..(bytes - at).min(zeroes.len())),
                        };
                        let into = Remote {
                            address: into.address.wrapping_add(at.into()),
                            key: into.key,
                        };
                        at += piece.end - piece.start;
                        let from = registrar.segment(from, piece)?;
                        self.qp
                            .stage(SendWork::Write { from, into }, 0, false)
                            .map_err(no_room)?;
                    }
                }
                Work::Respond {
                    slot,
                    capsule,
                    invalidate,
                } => {
                    if let Some(slot) = slot {
                        self.receive_again(slot, registrar)?;
                    }
                    let work = SendWork::Send {
                        header: &capsule,
                        data: None,
                        invalidate,
                    };
                    self.qp.stage(work, 0, false).map_err(no_room)?;
                }
            }
        }
        let posted = self.qp.post();
        self.device.add(self.qp.take_counts());
        posted
    }

    /// Posts the receive that the command in `slot` came in with.
    fn receive_again(&mut self, slot: SlotId, registrar: &mut Registrar) -> Result<(), VerbsError> {
        if !self.has_data {
            return self.qp.receive(None);
        }
        let used = self.capsules[slot.index()].take();
        let buf = used.or_else(|| self.spare.pop());
        let segment = buf
            .map(|buf| registrar.segment(&buf, 0..buf.len()))
            .transpose()?;
        self.qp.receive(segment)
    }

    /// Asks the host's device for a sign of life.
    pub fn probe(&mut self) -> Result<(), VerbsError> {
        if self.qp.stage(SendWork::Probe, PROBE, true).is_err() {
            // As many acknowledgements are under way; the next of them will do.
            return Ok(());
        }
        self.qp.post()
    }

    /// Ends the connection: what is posted comes back, and nothing that still arrives is looked at.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.closing, true) {
            // Fails when the device is gone; the queue pair is then destroyed with what is posted.
            let _ = self.qp.id().disconnect();
        }
    }

    /// Nothing is posted any more.
    pub fn is_quiet(&self) -> bool {
        self.qp.in_flight() == 0
    }

    /// All that was to be sent has been acknowledged.
    pub fn is_sent(&self) -> bool {
        self.qp.sends_in_flight() == 0
    }
}
