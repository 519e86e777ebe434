//! One I/O queue: a connection, its commands and their buffers.
//!
//! A command goes: received and checked ([`Queue::command`]) → a buffer for its data, at once or when one is free → data from the host → started
//! unless a pause holds it ([`Queue::start`]) → operations on the backing ([`Queue::storage_done`]) → completed ([`Queue::finish`]). Receiving is in
//! `receive`, sending in `transmit`, the end in `lifecycle`.
//!
//! Invariants:
//! - an R2T goes out only for a command that has its buffer, so that whatever arrives has a place;
//! - in-capsule data has a place of its own: when the pool is dry the queue's reserve serves, and while that is taken, which only the backing and not the
//!   stream can prolong, nothing more is received: no wait for bytes that are behind the ones not read;
//! - `running` counts commands that the backing has: the queue outlives them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use nvme_proto::controller::validate_io;
use nvme_proto::queue::{QueueLimits, SlotId, Transfer};
use nvme_proto::violation::Violation;
use nvme_proto::wire::{Cid, Nsid, Qid, Status};
use nvmf_io::{Buf, Errno};

use super::context::{Context, Finished};
use super::disks::DiskId;
use super::lifecycle::{Ending, Life};
use super::message::{Adopt, CloseReason, Connection};
use super::receive::Rx;
use super::slot::{Command, Phase, Slots};
use super::spaces::SubsystemIndex;
use super::token::{Purpose, QueueKey};
use super::transmit::Tx;
use super::wire::{Rdma, Tcp, Wire};
use crate::backend::{Backend, Next, Task, Work, plan};
use crate::model::ControllerShared;

/// How often it is looked for hosts that hold buffers without going on, in the time that they are given.
pub(super) const STALL_CHECKS: u32 = 8;

/// An I/O queue.
pub(super) struct Queue {
    pub(super) key: QueueKey,
    pub(super) qid: Qid,
    pub(super) controller: Arc<ControllerShared>,
    pub(super) subsystem: SubsystemIndex,
    pub(super) wire: Wire,
    pub(super) limits: QueueLimits,
    pub(super) slots: Slots,
    pub(super) life: Life,
    pub(super) ending: Ending,
    /// Commands that wait for a buffer, in order.
    pub(super) waiting: VecDeque<SlotId>,
    /// Commands that a pause holds, in order.
    pub(super) held: VecDeque<SlotId>,
    /// Pauses in force on its controller or host.
    pub(super) paused: u32,
    /// Commands that the backing has.
    pub(super) running: u32,
    /// Bytes of buffers that its commands hold.
    pub(super) buffer_bytes: u64,
    /// Where in-capsule data goes when the pool is dry.
    reserve: Reserve,
    pub(super) is_dirty: bool,
    pub(super) is_ready: bool,
    pub(super) is_starving: bool,
    /// While input is looked at, more commands may follow.
    pub(super) looks_ahead: bool,
    /// A read that waits for the processor to fetch where it begins, until the next one is known or the input ends. The backing has it.
    fetching: Option<SlotId>,
    /// Commands received.
    pub(super) commands: u64,
}

#[derive(Debug)]
enum Reserve {
    /// There never was a buffer to spare; tried again when it would be needed.
    Due,
    Here(Buf),
    InUse,
}

impl Queue {
    /// A queue for an adopted connection. Allocates all that it needs later.
    ///
    /// # Errors
    /// Why the connection cannot be served.
    pub(super) fn new(
        key: QueueKey,
        adopt: Adopt,
        paused: u32,
        cx: &mut Context,
    ) -> Result<Self, String> {
        let subsystem = cx.spaces.subsystem(adopt.controller.key.subsystem);
        let cntlid = u32::from(adopt.controller.key.cntlid.0);
        let wire = match adopt.connection {
            Connection::Tcp { fd, received, conn } => Wire::Tcp(Tcp {
                conn: *conn,
                socket: cx.ring.add_socket(fd),
                rx: Rx::new(received),
                tx: Tx::new(),
            }),
            Connection::Rdma(qp) => {
                let connect = (adopt.connect_cid, cntlid);
                Wire::Rdma(Rdma::adopt(*qp, &adopt.limits, connect, key, cx)?)
            }
        };
        let depth = adopt.limits.depth;
        let mut queue = Self {
            key,
            qid: adopt.qid,
            controller: adopt.controller,
            subsystem,
            wire,
            limits: adopt.limits,
            slots: Slots::new(depth),
            life: Life::Live,
            ending: Ending::new(cx.now),
            waiting: VecDeque::with_capacity(depth.into()),
            held: VecDeque::with_capacity(depth.into()),
            paused,
            running: 0,
            buffer_bytes: 0,
            reserve: Reserve::Due,
            is_dirty: false,
            is_ready: false,
            is_starving: false,
            looks_ahead: false,
            fetching: None,
            commands: 0,
        };
        if let Wire::Tcp(_) = queue.wire {
            queue.reserve = queue.new_reserve(cx);
        }
        queue.mark_dirty(cx);
        queue.mark_ready(cx);
        Ok(queue)
    }

    /// Looks at what came in.
    pub(super) fn look(&mut self, cx: &mut Context) {
        match self.wire {
            Wire::Tcp(_) => self.look_at_input(cx),
            Wire::Rdma(_) => {
                self.complete(cx);
            }
        }
    }

    /// Sends what there is to send.
    pub(super) fn transmit(&mut self, cx: &mut Context) {
        match self.wire {
            Wire::Tcp(_) => self.send(cx),
            Wire::Rdma(_) => self.post(cx),
        }
    }

    fn new_reserve(&self, cx: &Context) -> Reserve {
        match cx.pool.alloc(self.limits.in_capsule_bytes) {
            Some(buf) => Reserve::Here(buf),
            None => Reserve::Due,
        }
    }

    /// There may be something to send.
    #[inline]
    pub(super) fn mark_dirty(&mut self, cx: &mut Context) {
        if !self.is_dirty {
            self.is_dirty = true;
            cx.dirty.push(self.key);
        }
    }

    /// There is input to look at in the next turn.
    pub(super) fn mark_ready(&mut self, cx: &mut Context) {
        if !self.is_ready {
            self.is_ready = true;
            cx.ready.push_back(self.key);
        }
    }

    /// A command was received.
    pub(super) fn command(&mut self, cx: &mut Context, slot: SlotId) {
        self.commands += 1;
        self.controller.touch(cx.tick);
        let sqe = self.wire.queue().command(slot);
        if sqe.is_fabrics() {
            return self.fabrics_command(cx, slot);
        }
        let space_id = cx.spaces.find(self.subsystem, sqe.nsid());
        let namespace = space_id.map(|id| &*cx.spaces.get_mut(id).namespace);
        let plan = match plan(sqe, namespace, self.limits.max_transfer_bytes) {
            Ok(plan) => plan,
            Err(status) => {
                if let Some(namespace) = namespace {
                    namespace.counters.shard(cx.shard).failed(false);
                }
                return self.refuse(cx, slot, status);
            }
        };
        // Without a namespace of its own only what is for all of them passes the checks.
        let Some(space_id) = space_id.or_else(|| cx.spaces.next(self.subsystem, Nsid::NONE)) else {
            self.wire.queue_mut().complete(slot, Status::SUCCESS, 0);
            return self.mark_dirty(cx);
        };
        let space = cx.spaces.get_mut(space_id);
        let transfer = self.wire.queue().transfer(slot);
        space.users += 1;
        let needs_no_buffer = space.backend.needs_no_buffer(&plan.op);
        self.slots[slot].command = Some(Command {
            space: space_id,
            revision: space.revision,
            work: Work::new(plan.op).with_digest(self.wire.sends_digests()),
            for_all: plan.for_all,
            to_host_bytes: match transfer {
                Transfer::ToHost(len) => len,
                _ => 0,
            },
            class: plan.class,
            counted_bytes: plan.counted_bytes,
            received: cx.now,
        });
        if transfer == Transfer::None
            || (needs_no_buffer && matches!(transfer, Transfer::ToHost(_)))
        {
            return self.start(cx, slot);
        }
        if let Wire::Rdma(rdma) = &self.wire
            && let Transfer::InCapsule(_) = transfer
        {
            // They came with it, in a buffer that the link has back when the response goes out.
            if let Some(data) = rdma.link.in_capsule(slot).cloned() {
                self.buffer_bytes += u64::from(data.len());
                self.slots[slot].data = Some(data);
            }
            return self.start(cx, slot);
        }
        if needs_no_buffer && self.is_rdma() {
            // What nobody wants need not be fetched.
            return self.start(cx, slot);
        }
        if needs_no_buffer || self.take_buffer(cx, slot, transfer) {
            return self.buffer_ready(cx, slot, transfer);
        }
        self.slots[slot].phase = Phase::Buffer;
        if let Transfer::InCapsule(_) = transfer {
            // Its data come next, and nothing behind them can be received.
            self.wire.block(slot);
        } else {
            self.waiting.push_back(slot);
        }
        self.mark_starving(cx);
    }

    /// The data of the command have a place, or need none.
    fn buffer_ready(&mut self, cx: &mut Context, slot: SlotId, transfer: Transfer) {
        self.slots[slot].phase = Phase::Data;
        match transfer {
            Transfer::FromHost(_) => {
                if self.slots[slot].data.is_some() {
                    self.slots[slot].is_owed = true;
                    self.wire.expect();
                }
                self.wire.queue_mut().request_data(slot);
                self.mark_dirty(cx);
            }
            Transfer::InCapsule(_) => {}
            Transfer::None | Transfer::ToHost(_) => self.start(cx, slot),
        }
    }

    /// Gets a buffer for the command's data.
    fn take_buffer(&mut self, cx: &mut Context, slot: SlotId, transfer: Transfer) -> bool {
        let len = transfer.bytes();
        let in_capsule = matches!(transfer, Transfer::InCapsule(_));
        let fair =
            self.buffer_bytes == 0 || self.buffer_bytes + u64::from(len) <= cx.queue_share_bytes;
        let (buf, is_reserve) = match fair.then(|| cx.pool.alloc(len)).flatten() {
            Some(buf) => (buf, false),
            None if in_capsule => {
                if let Reserve::Due = self.reserve {
                    self.reserve = self.new_reserve(cx);
                }
                match std::mem::replace(&mut self.reserve, Reserve::InUse) {
                    Reserve::Here(buf) => (buf, true),
                    other => {
                        self.reserve = other;
                        return false;
                    }
                }
            }
            None => return false,
        };
        self.buffer_bytes += u64::from(buf.len());
        let slot = &mut self.slots[slot];
        slot.data = Some(buf);
        slot.is_reserve = is_reserve;
        true
    }

    /// The data that the host was asked for have come, or nobody wants them any more.
    pub(super) fn no_longer_owed(&mut self, slot: SlotId) {
        if std::mem::take(&mut self.slots[slot].is_owed) {
            self.wire.no_longer_expect();
        }
    }

    /// The command's buffer is no longer needed here.
    pub(super) fn release_buffer(&mut self, cx: &mut Context, slot: SlotId) {
        self.no_longer_owed(slot);
        let slot = &mut self.slots[slot];
        let Some(buf) = slot.data.take() else { return };
        self.buffer_bytes -= u64::from(buf.len());
        cx.buffers_freed = true;
        if std::mem::take(&mut slot.is_reserve) {
            self.reserve = Reserve::Here(buf);
        }
    }

    fn mark_starving(&mut self, cx: &mut Context) {
        if !self.is_starving {
            self.is_starving = true;
            cx.starving.push_back(self.key);
            cx.stall_check
                .get_or_insert(cx.now + cx.patience.stall / STALL_CHECKS);
        }
    }

    /// Tries once more to get the buffer for whatever waits longest. `true`: it got one.
    pub(super) fn serve_starving(&mut self, cx: &mut Context) -> bool {
        if let Some(slot) = self.wire.blocked() {
            let transfer = self.wire.queue().transfer(slot);
            if self.take_buffer(cx, slot, transfer) {
                self.wire.unblock();
                self.buffer_ready(cx, slot, transfer);
                self.mark_ready(cx);
                return true;
            }
        }
        let Some(&slot) = self.waiting.front() else {
            return false;
        };
        let transfer = self.wire.queue().transfer(slot);
        if self.take_buffer(cx, slot, transfer) {
            self.waiting.pop_front();
            self.buffer_ready(cx, slot, transfer);
            if let Wire::Tcp(_) = self.wire {
                // The data that are asked for now must find the right receive.
                self.arm(cx);
            }
            return true;
        }
        false
    }

    /// Whether a command waits for a buffer.
    pub(super) fn starves(&self) -> bool {
        self.wire.blocked().is_some() || !self.waiting.is_empty()
    }

    /// All that a command needs is there: hand it to the backing, unless a pause holds it.
    pub(super) fn start(&mut self, cx: &mut Context, slot: SlotId) {
        let Some(command) = self.slots[slot].command else {
            return;
        };
        let space = cx.spaces.get_mut(command.space);
        if (self.paused > 0 || space.paused > 0) && !space.retired {
            self.slots[slot].phase = Phase::Held;
            self.held.push_back(slot);
            return;
        }
        if space.revision != command.revision {
            // Resized or removed since it was checked.
            let sqe = self.wire.queue().command(slot);
            let checked = match space.retired {
                true => Err(Status::INVALID_NAMESPACE.dnr()),
                false if command.for_all => Ok(()),
                false => {
                    plan(sqe, Some(&space.namespace), self.limits.max_transfer_bytes).map(|_| ())
                }
            };
            if let Err(status) = checked {
                return self.finish(cx, slot, status);
            }
        }
        if let Some(disk) = space.disk {
            let disk = cx.spaces.disks.get_mut(disk);
            if !disk.start(self.key.index, slot, cx.now, Instant::now) {
                self.slots[slot].phase = Phase::Queued;
                return;
            }
        }
        self.running += 1;
        let space = cx.spaces.get_mut(command.space);
        space.running += 1;
        if self.looks_ahead && space.backend.prefetch(&command.work.op()) {
            self.slots[slot].phase = Phase::Running;
            if let Some(fetched) = self.fetching.replace(slot) {
                self.submit(cx, fetched);
            }
            return;
        }
        self.submit(cx, slot);
    }

    /// No more commands follow: executes the read that waits.
    pub(super) fn end_looking_ahead(&mut self, cx: &mut Context) {
        self.looks_ahead = false;
        if let Some(fetched) = self.fetching.take() {
            self.submit(cx, fetched);
        }
    }

    /// As [`Queue::start`], for a command whose data are all in `received` and not yet in its buffer.
    pub(super) fn start_with(&mut self, cx: &mut Context, slot: SlotId, received: &[u8]) {
        if let Some(command) = &self.slots[slot].command {
            let space = cx.spaces.get_mut(command.space);
            let is_free = self.paused == 0 && space.paused == 0;
            if is_free
                && space.revision == command.revision
                && space.backend.write_in_place(&command.work.op(), received)
            {
                return self.finish(cx, slot, Status::SUCCESS);
            }
        }
        self.keep_data(slot, 0, received);
        self.start(cx, slot);
    }

    /// Copies data of a command to their place in its buffer. Without one they go nowhere, as those of writes to the null namespace do.
    pub(super) fn keep_data(&self, slot: SlotId, offset: u32, received: &[u8]) {
        if let Some(data) = &self.slots[slot].data {
            data.copy_in(offset, received);
        }
    }

    /// The backing no longer has the command.
    pub(super) fn stop_running(&mut self, cx: &mut Context, slot: SlotId) {
        self.running -= 1;
        if let Some(command) = &self.slots[slot].command {
            let space = cx.spaces.get_mut(command.space);
            space.running -= 1;
            if let Some(disk) = space.disk {
                let disk = cx.spaces.disks.get_mut(disk);
                disk.ended(self.key.index, slot, Instant::now);
            }
        }
    }

    /// Starts commands that waited for others of this connection to leave the disk.
    pub(super) fn start_queued(&mut self, cx: &mut Context, disk: Option<DiskId>) {
        while let Some(disk) = disk
            && let Some(slot) = cx.spaces.disks.get_mut(disk).next(self.key.index)
        {
            self.start(cx, slot);
        }
    }

    /// Takes the steps of a command that need no waiting.
    fn submit(&mut self, cx: &mut Context, slot: SlotId) {
        let token = Purpose::Storage(self.key, slot).token();
        let state = &mut self.slots[slot];
        let Some(command) = &mut state.command else {
            return;
        };
        let space = cx.spaces.get_mut(command.space);
        loop {
            let mut task = Task {
                work: &mut command.work,
                data: state.data.as_ref(),
                geometry: space.namespace.geometry,
                token,
            };
            match space.backend.submit(&mut task, &mut cx.lent, &mut cx.ring) {
                Next::Again => {}
                Next::InFlight => {
                    state.phase = Phase::Running;
                    if let Backend::File(_) = space.backend
                        && cx.pace.started()
                    {
                        cx.enter();
                        cx.pace.went(cx.ring.has_completions());
                    }
                    return;
                }
                Next::WaitForCompare => {
                    state.phase = Phase::Comparing;
                    cx.comparing.push_back((self.key, slot));
                    return;
                }
                Next::Done(status) => {
                    if let Some(disk) = space.disk {
                        // Nothing that the disk did.
                        cx.spaces
                            .disks
                            .get_mut(disk)
                            .do_not_measure(self.key.index, slot);
                    }
                    self.stop_running(cx, slot);
                    return self.finish(cx, slot, status);
                }
            }
        }
    }

    /// The disk that a command runs on.
    pub(super) fn disk_of(&self, cx: &mut Context, slot: SlotId) -> Option<DiskId> {
        let command = self.slots[slot].command.as_ref()?;
        cx.spaces.get_mut(command.space).disk
    }

    /// The compare buffer is free: go on with a command that waited for it.
    pub(super) fn compare_again(&mut self, cx: &mut Context, slot: SlotId) {
        if self.slots[slot].phase == Phase::Comparing {
            let disk = self.disk_of(cx, slot);
            self.submit(cx, slot);
            self.start_queued(cx, disk);
        }
    }

    /// An operation on the backing ended.
    pub(super) fn storage_done(
        &mut self,
        cx: &mut Context,
        slot: SlotId,
        result: Result<u32, Errno>,
    ) {
        let token = Purpose::Storage(self.key, slot).token();
        let state = &mut self.slots[slot];
        let Some(command) = &mut state.command else {
            return;
        };
        let space = cx.spaces.get_mut(command.space);
        let disk = space.disk;
        let mut task = Task {
            work: &mut command.work,
            data: state.data.as_ref(),
            geometry: space.namespace.geometry,
            token,
        };
        match space.backend.advance(&mut task, &mut cx.lent, result) {
            Next::Done(status) => {
                self.stop_running(cx, slot);
                self.finish(cx, slot, status);
            }
            _ => self.submit(cx, slot),
        }
        self.start_queued(cx, disk);
    }

    /// Completes a command that was checked.
    pub(super) fn finish(&mut self, cx: &mut Context, slot: SlotId, status: Status) {
        let state = &mut self.slots[slot];
        let Some(command) = state.command.take() else {
            return;
        };
        if command.for_all && status.is_success() && self.next_namespace(cx, slot, command) {
            return;
        }
        let state = &mut self.slots[slot];
        let space = cx.spaces.get_mut(command.space);
        if status.is_success() {
            cx.finished.push(Finished {
                queue: self.key,
                space: command.space,
                class: command.class,
                bytes: command.counted_bytes,
                received: command.received,
            });
        } else {
            let media = status.sct() == Status::SCT_MEDIA && !status.is(Status::COMPARE_FAILURE);
            space.namespace.counters.shard(cx.shard).failed(media);
            self.controller.counters.shard(cx.shard).failed(media);
            cx.spaces.unuse(command.space, &mut cx.ring);
        }
        if status.is_success() && command.to_host_bytes > 0 && self.life.answers() {
            state.phase = Phase::Sending;
            state.digest = command.work.digest();
            self.wire
                .queue_mut()
                .complete_with_data(slot, command.to_host_bytes, 0);
        } else {
            state.phase = Phase::Free;
            self.release_buffer(cx, slot);
            self.wire.queue_mut().complete(slot, status, 0);
        }
        self.answer_abort(cx, slot, status);
        self.mark_dirty(cx);
    }

    /// Goes on with a command for all namespaces. `false`: there are no more.
    fn next_namespace(&mut self, cx: &mut Context, slot: SlotId, mut command: Command) -> bool {
        let here = cx.spaces.get_mut(command.space).namespace.nsid;
        let Some(next) = cx.spaces.next(self.subsystem, here) else {
            return false;
        };
        cx.spaces.unuse(command.space, &mut cx.ring);
        let space = cx.spaces.get_mut(next);
        space.users += 1;
        command.space = next;
        command.revision = space.revision;
        command.work = Work::new(command.work.op());
        self.slots[slot].command = Some(command);
        self.start(cx, slot);
        true
    }

    /// A command broke a rule of the transport, and was answered.
    pub(super) fn refused(&mut self, cx: &mut Context, cid: Cid, violation: Violation) {
        tracing::debug!(queue = %self.qid, %cid, %violation, "command refused");
        self.commands += 1;
        self.controller.touch(cx.tick);
        self.controller.counters.shard(cx.shard).failed(false);
        self.mark_dirty(cx);
    }

    /// Completes a command that failed its checks.
    fn refuse(&mut self, cx: &mut Context, slot: SlotId, status: Status) {
        self.controller.counters.shard(cx.shard).failed(false);
        self.wire.queue_mut().complete(slot, status, 0);
        self.mark_dirty(cx);
    }

    /// A fabrics command on an I/O queue: Disconnect, or one that is in the wrong place.
    fn fabrics_command(&mut self, cx: &mut Context, slot: SlotId) {
        let sqe = self.wire.queue().command(slot);
        let status = match validate_io(sqe, None) {
            Ok(_) => Status::SUCCESS,
            Err(fault) => fault.status(),
        };
        let disconnects = status.is_success();
        self.wire.queue_mut().complete(slot, status, 0);
        self.mark_dirty(cx);
        if disconnects {
            self.drain(cx, CloseReason::Disconnected);
        }
    }

    /// Ends one pause, here or of a namespace: starts what is no longer held, in order.
    pub(super) fn release_held(&mut self, cx: &mut Context) {
        for _ in 0..self.held.len() {
            let Some(slot) = self.held.pop_front() else {
                return;
            };
            // Goes to the back again when another pause holds it.
            self.start(cx, slot);
        }
    }
}
