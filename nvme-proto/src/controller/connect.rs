//! Connect: what can be said of the command on its own, and of an I/O queue against its controller.
//!
//! [`ConnectRequest::parse`] comes first, on any queue. The target then looks the subsystem and the host
//! up ([`Fault::UnknownSubsystem`], [`Fault::HostNotAllowed`]), and for an I/O queue the controller
//! ([`Fault::UnknownController`]), which checks the rest with `Controller::check_io_connect`.

use super::fault::Fault;
use crate::wire::fabrics::{Cattr, ConnectData, ConnectSqe, RECFMT_0};
use crate::wire::{Cid, Cntlid, FabricsType, HostId, Nqn, Qid, Sqe};
use zerocopy::FromBytes;

/// A Connect command whose fields make sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// The command.
    pub cid: Cid,
    /// The queue to make.
    pub qid: Qid,
    /// Its size in entries, 2 to 65536.
    pub entries: u32,
    /// The host asks to do without submission queue flow control.
    pub disable_sq_flow_control: bool,
    /// Keep alive time-out in milliseconds, 0 for none. Means something on the admin queue.
    pub kato_ms: u32,
    /// The host's identifier.
    pub host_id: HostId,
    /// FFFFh on the admin queue, else the controller.
    pub cntlid: Cntlid,
    /// The subsystem.
    pub subnqn: Nqn,
    /// The host.
    pub hostnqn: Nqn,
}

impl ConnectRequest {
    /// Reads a Connect command and its data. Anything else than Connect is refused, as it must be on a
    /// queue that is not connected yet. `max_admin_entries` bounds the admin queue; an I/O queue is
    /// bounded by its controller.
    pub fn parse(sqe: &Sqe, data: &[u8], max_admin_entries: u32) -> Result<Self, Fault> {
        if !sqe.is_fabrics() {
            return Err(Fault::UnsupportedOpcode(sqe.opcode));
        }
        if sqe.fctype() != FabricsType::CONNECT {
            return Err(Fault::UnsupportedFctype(sqe.fctype().0));
        }
        let connect = ConnectSqe::from_sqe(sqe);
        if connect.recfmt.get() != RECFMT_0 {
            return Err(Fault::RecordFormat(connect.recfmt.get()));
        }
        super::expect_bytes(sqe, ConnectData::SIZE as u64)?;
        let data = ConnectData::read_from_bytes(data).map_err(|_| Fault::DataLength {
            described: data.len().min(u32::MAX as usize) as u32,
            expected: ConnectData::SIZE as u64,
        })?;
        let qid = Qid(connect.qid.get());
        // SQSIZE is 0's based; a queue of one entry could never hold a command.
        let entries = u32::from(connect.sqsize.get()) + 1;
        if entries < 2 {
            return Err(Fault::QueueTooSmall);
        }
        let cntlid = Cntlid(data.cntlid.get());
        if qid.is_admin() {
            if entries > max_admin_entries {
                return Err(Fault::QueueTooLarge {
                    entries,
                    limit: max_admin_entries,
                });
            }
            if cntlid != Cntlid::DYNAMIC {
                return Err(Fault::CntlidNotDynamic(cntlid));
            }
        }
        Ok(Self {
            cid: sqe.cid(),
            qid,
            entries,
            disable_sq_flow_control: Cattr::from_bits_retain(connect.cattr)
                .contains(Cattr::DISABLE_SQ_FLOW_CONTROL),
            kato_ms: connect.kato.get(),
            host_id: data.hostid,
            cntlid,
            subnqn: Nqn::from_field(&data.subnqn).map_err(Fault::BadSubnqn)?,
            hostnqn: Nqn::from_field(&data.hostnqn).map_err(Fault::BadHostnqn)?,
        })
    }
}

impl super::Controller {
    /// Checks a Connect for an I/O queue of this controller. Where all is well the target makes the queue
    /// and says so with `io_queue_connected`.
    ///
    /// A reconnecting host races its own old connection, so a target may wait shortly before it sends
    /// [`Fault::QidInUse`].
    pub fn check_io_connect(&self, request: &ConnectRequest, subnqn: &Nqn) -> Result<(), Fault> {
        let init = &self.init;
        if request.cntlid != init.cntlid {
            return Err(Fault::UnknownController(request.cntlid));
        }
        if request.subnqn != *subnqn {
            return Err(Fault::SubnqnMismatch);
        }
        if request.hostnqn != init.host_nqn {
            return Err(Fault::HostnqnMismatch);
        }
        if request.host_id != init.host_id {
            return Err(Fault::HostidMismatch);
        }
        if request.qid.is_admin() || request.qid.0 > self.max_io_queues() {
            return Err(Fault::QidOutOfRange(request.qid));
        }
        let limit = u32::from(init.limits.max_queue_entries);
        if request.entries > limit {
            return Err(Fault::QueueTooLarge {
                entries: request.entries,
                limit,
            });
        }
        // Linux's target takes I/O queues earlier, SPDK's does not; no host makes them earlier.
        if !self.registers.is_ready() {
            return Err(Fault::QueueBeforeReady(request.qid));
        }
        if self.io_queues.contains(&request.qid) {
            return Err(Fault::QidInUse(request.qid));
        }
        Ok(())
    }
}
