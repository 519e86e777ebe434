//! A controller's admin side as pure logic: properties, identify, features, log pages, events, keep
//! alive, and the checks of Connect and of I/O commands.
//!
//! The driver hands each admin command to [`Controller::admin`] and does what the [`AdminAction`] says;
//! it asks [`Controller::poll_event`] after each command and after each change that it reports, and
//! [`Controller::keep_alive`] at the deadline. Time is in milliseconds of any clock that does not go
//! back. Nothing here panics on what a host sends, and nothing grows with it.

mod connect;
mod error_log;
mod events;
mod fault;
mod features;
mod identify;
mod io;
mod keep_alive;
mod logs;
pub mod ops;
mod registers;
#[cfg(test)]
mod tests;
mod view;

pub use connect::ConnectRequest;
pub use error_log::ErrorRecord;
pub use events::EventCompletion;
pub use fault::Fault;
pub use io::{IoCommand, MAX_WRITE_ZEROES_BYTES, NamespaceLimits, dsm_ranges, validate_io};
pub use keep_alive::KeepAliveState;
pub use view::{
    DiscoveryRecords, NamespaceInfo, PreferredIo, SmartCounters, SubsystemInfo, SubsystemView,
};

use crate::wire::event::{AbortCommand, AsyncEvent};
use crate::wire::fabrics::PropertySqe;
use crate::wire::feature::{AsyncEventConfig, FeatureId, GetFeatures, Select, SetFeatures};
use crate::wire::identify::{IDENTIFY_DATA_BYTES, IdentifyCommand};
use crate::wire::log::TransportType;
use crate::wire::property::Csts;
use crate::wire::{
    AdminOpcode, Cid, Cntlid, FabricsType, Fuse, HostId, Nqn, Nsid, Psdt, Qid, Sqe, Status,
};
use error_log::ErrorLog;
use events::Events;
use features::{Features, Parts, Value};
use keep_alive::KeepAlive;
use logs::ChangedNamespaces;
use registers::{CcEffect, Registers};
use std::collections::BTreeSet;

/// What a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerKind {
    /// Serves namespaces.
    Io,
    /// Tells hosts where subsystems are.
    Discovery,
}

/// What carries the controller's queues; it decides which SGLs there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// RDMA.
    Rdma,
}

/// What a controller offers at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerLimits {
    /// Entries of an I/O queue, 1's based: MQES + 1.
    pub max_queue_entries: u16,
    /// I/O queues.
    pub max_io_queues: u16,
    /// Longest transfer in bytes: rounded down to a power of two of 4 KiB pages for MDTS, so give one.
    pub max_transfer_bytes: u32,
    /// Data in the capsule of an I/O command, in bytes; a multiple of 16.
    pub in_capsule_bytes: u32,
    /// Whether Flush with NSID FFFFFFFFh flushes all namespaces (VWC says so).
    pub flush_all: bool,
    /// How long a reset can take, in milliseconds (CAP.TO and CRTO).
    pub ready_timeout_ms: u32,
}

impl Default for ControllerLimits {
    fn default() -> Self {
        Self {
            max_queue_entries: 1024,
            max_io_queues: 128,
            max_transfer_bytes: 1 << 20,
            in_capsule_bytes: 16 << 10,
            flush_all: false,
            // Draining waits for the slowest command at the backing.
            ready_timeout_ms: 30_000,
        }
    }
}

/// What a controller is made from, mostly its Connect command.
#[derive(Clone, Debug)]
pub struct ControllerInit {
    /// What it is for.
    pub kind: ControllerKind,
    /// Its identifier.
    pub cntlid: Cntlid,
    /// The host that it belongs to.
    pub host_nqn: Nqn,
    /// That host's identifier.
    pub host_id: HostId,
    /// What carries its queues.
    pub transport: Transport,
    /// Keep alive time-out that the host asked for, in milliseconds; 0 for none.
    pub kato_ms: u32,
    /// What it offers.
    pub limits: ControllerLimits,
}

/// What the driver has to do about an admin command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAction {
    /// Complete it, without data.
    Complete {
        /// Status.
        status: Status,
        /// Dwords 0 and 1.
        result: u64,
    },
    /// Complete it successfully with the first `len_bytes` bytes of `out`.
    CompleteWithData {
        /// How many.
        len_bytes: u32,
    },
    /// Keep it until [`Controller::poll_event`] names its tag.
    Hold,
    /// Try to abort the command `cid` of the I/O queue `sqid`, complete this one successfully with
    /// [`AbortCommand::result`], and say so with [`Controller::abort_done`].
    Abort {
        /// Queue of the command to abort.
        sqid: Qid,
        /// The command to abort.
        cid: Cid,
    },
    /// Complete it successfully now. Then end all I/O queues, wait until none of their commands is at
    /// the backing, and call [`Controller::drained`].
    Disable,
    /// Complete it successfully now. Then make everything durable (unless `abrupt`) and call
    /// [`Controller::shutdown_done`]. The controller lives on until the host disconnects.
    Shutdown {
        /// The host does not wait.
        abrupt: bool,
    },
}

impl AdminAction {
    const SUCCESS: Self = Self::Complete {
        status: Status::SUCCESS,
        result: 0,
    };
}

/// The admin side of one controller.
#[derive(Debug)]
pub struct Controller {
    init: ControllerInit,
    registers: Registers,
    features: Features,
    events: Events,
    errors: ErrorLog,
    changed_namespaces: ChangedNamespaces,
    keep_alive: KeepAlive,
    io_queues: BTreeSet<Qid>,
    aborts: u16,
}

impl Controller {
    /// A controller that is not enabled yet.
    pub fn new(init: ControllerInit, now_ms: u64) -> Self {
        let notices = match init.kind {
            ControllerKind::Io => AsyncEventConfig::NAMESPACE_ATTRIBUTE,
            ControllerKind::Discovery => AsyncEventConfig::DISCOVERY_LOG_CHANGE,
        };
        let trtype = match init.transport {
            Transport::Tcp => TransportType::TCP,
            Transport::Rdma => TransportType::RDMA,
        };
        Self {
            registers: Registers::new(init.kind, &init.limits),
            features: Features::default(),
            events: Events::new(notices, init.kind == ControllerKind::Io),
            errors: ErrorLog::new(trtype),
            changed_namespaces: ChangedNamespaces::default(),
            keep_alive: KeepAlive::new(init.kind, init.kato_ms, now_ms),
            io_queues: BTreeSet::new(),
            aborts: 0,
            init,
        }
    }

    /// What the controller was made from.
    pub fn init(&self) -> &ControllerInit {
        &self.init
    }

    /// Whether I/O commands can be executed.
    pub fn is_ready(&self) -> bool {
        self.registers.is_ready()
    }

    /// Controller Status.
    pub fn csts(&self) -> Csts {
        self.registers.csts()
    }

    /// How many I/O queues there can be.
    pub fn max_io_queues(&self) -> u16 {
        match self.init.kind {
            ControllerKind::Io => self.init.limits.max_io_queues,
            ControllerKind::Discovery => 0,
        }
    }

    /// Handles an admin command. `tag` is the driver's name for it, given back by
    /// [`Controller::poll_event`] if the command is held. `out` is cleared and, with
    /// [`AdminAction::CompleteWithData`], holds the data.
    pub fn admin(
        &mut self,
        sqe: &Sqe,
        tag: u16,
        view: &dyn SubsystemView,
        out: &mut Vec<u8>,
        now_ms: u64,
    ) -> AdminAction {
        self.keep_alive.traffic(now_ms);
        out.clear();
        self.execute(sqe, tag, view, out).unwrap_or_else(|fault| {
            out.clear();
            // More: the error log has an entry about this.
            let status = fault.status().more();
            self.log_error(&ErrorRecord {
                sqid: Qid::ADMIN,
                cid: sqe.cid(),
                status,
                location: fault.location(),
                nsid: if sqe.is_fabrics() {
                    Nsid::NONE
                } else {
                    sqe.nsid()
                },
                lba: None,
            });
            AdminAction::Complete {
                status,
                result: fault.result(),
            }
        })
    }

    fn execute(
        &mut self,
        sqe: &Sqe,
        tag: u16,
        view: &dyn SubsystemView,
        out: &mut Vec<u8>,
    ) -> Result<AdminAction, Fault> {
        // In fabrics commands the byte with FUSE and PSDT is reserved.
        if sqe.is_fabrics() {
            return self.fabrics(sqe);
        }
        if sqe.fuse() != Fuse::Normal {
            return Err(Fault::Fused);
        }
        if sqe.psdt() != Psdt::Sgl {
            return Err(Fault::NotSgl);
        }
        if ops::admin_op(sqe.opcode, self.init.kind).is_none() {
            return Err(Fault::UnsupportedOpcode(sqe.opcode));
        }
        if !self.registers.is_ready() {
            return Err(Fault::NotReady);
        }
        match sqe.opcode {
            AdminOpcode::IDENTIFY => {
                expect_bytes(sqe, IDENTIFY_DATA_BYTES as u64)?;
                identify::identify(&IdentifyCommand::from_sqe(sqe), &self.init, view, out)?;
                Ok(with_data(out))
            }
            AdminOpcode::GET_LOG_PAGE => {
                self.get_log_page(sqe, view, out)?;
                Ok(with_data(out))
            }
            AdminOpcode::GET_FEATURES => self.get_features(sqe, view, out),
            AdminOpcode::SET_FEATURES => {
                expect_bytes(sqe, 0)?;
                let set = SetFeatures::from_sqe(sqe);
                let (features, mut parts) = self.feature_parts(view);
                let result = features.set(&set, &mut parts)?;
                // A new threshold can make a temperature critical.
                let warning = self.critical_warning(view);
                self.events.set_warnings(warning);
                Ok(AdminAction::Complete {
                    status: Status::SUCCESS,
                    result: result.into(),
                })
            }
            AdminOpcode::ASYNC_EVENT_REQUEST => {
                expect_bytes(sqe, 0)?;
                self.events.hold(tag, sqe.cid())?;
                Ok(AdminAction::Hold)
            }
            AdminOpcode::ABORT => self.abort(sqe),
            AdminOpcode::KEEP_ALIVE => expect_bytes(sqe, 0).map(|()| AdminAction::SUCCESS),
            other => Err(Fault::UnsupportedOpcode(other)),
        }
    }

    fn fabrics(&mut self, sqe: &Sqe) -> Result<AdminAction, Fault> {
        match sqe.fctype() {
            FabricsType::PROPERTY_GET => {
                let result = self.registers.get(&PropertySqe::from_sqe(sqe))?;
                Ok(AdminAction::Complete {
                    status: Status::SUCCESS,
                    result,
                })
            }
            FabricsType::PROPERTY_SET => {
                Ok(match self.registers.set(&PropertySqe::from_sqe(sqe))? {
                    CcEffect::None => AdminAction::SUCCESS,
                    CcEffect::Enabled => {
                        self.keep_alive.start();
                        AdminAction::SUCCESS
                    }
                    CcEffect::Disable => AdminAction::Disable,
                    CcEffect::Shutdown { abrupt } => {
                        // The host may go silent from here on; its connections say when it is gone.
                        self.keep_alive.stop();
                        AdminAction::Shutdown { abrupt }
                    }
                })
            }
            FabricsType::CONNECT => Err(Fault::AlreadyConnected),
            FabricsType::DISCONNECT => Err(Fault::DisconnectAdmin),
            other => Err(Fault::UnsupportedFctype(other.0)),
        }
    }

    fn feature_parts<'a>(
        &'a mut self,
        view: &'a dyn SubsystemView,
    ) -> (&'a mut Features, Parts<'a>) {
        let parts = Parts {
            kind: self.init.kind,
            host_id: self.init.host_id,
            max_io_queues: self.init.limits.max_io_queues,
            io_queues_exist: !self.io_queues.is_empty(),
            keep_alive: &mut self.keep_alive,
            events: &mut self.events,
            view,
        };
        (&mut self.features, parts)
    }

    fn get_features(
        &mut self,
        sqe: &Sqe,
        view: &dyn SubsystemView,
        out: &mut Vec<u8>,
    ) -> Result<AdminAction, Fault> {
        let get = GetFeatures::from_sqe(sqe);
        let (features, parts) = self.feature_parts(view);
        match features.get(&get, &parts)? {
            Value::HostId(id) => {
                expect_bytes(sqe, id.0.len() as u64)?;
                out.extend_from_slice(&id.0);
                Ok(with_data(out))
            }
            Value::Dword0(value) => {
                // A host that asks what can be done with the host identifier may have room for it.
                let room_for_host_id = get.fid == FeatureId::HOST_IDENTIFIER
                    && get.select == Select::SupportedCapabilities;
                if !room_for_host_id {
                    expect_bytes(sqe, 0)?;
                }
                Ok(AdminAction::Complete {
                    status: Status::SUCCESS,
                    result: value.into(),
                })
            }
        }
    }

    fn abort(&mut self, sqe: &Sqe) -> Result<AdminAction, Fault> {
        expect_bytes(sqe, 0)?;
        let AbortCommand { sqid, cid } = AbortCommand::from_sqe(sqe);
        if self.io_queues.contains(&sqid) {
            if self.aborts > u16::from(identify::ACL) {
                return Err(Fault::AbortLimit);
            }
            self.aborts += 1;
            return Ok(AdminAction::Abort { sqid, cid });
        }
        // On the admin queue nothing is outstanding but held event requests (and other aborts).
        let aborted = sqid.is_admin() && self.events.abort(cid);
        Ok(AdminAction::Complete {
            status: Status::SUCCESS,
            result: AbortCommand::result(aborted),
        })
    }

    /// An [`AdminAction::Abort`] was completed.
    pub fn abort_done(&mut self) {
        self.aborts = self.aborts.saturating_sub(1);
    }

    /// [`AdminAction::Disable`] was carried out: the controller is reset.
    pub fn drained(&mut self) {
        self.registers.drained();
        self.features = Features::default();
        self.events.reset();
        self.changed_namespaces.clear();
    }

    /// [`AdminAction::Shutdown`] was carried out.
    pub fn shutdown_done(&mut self) {
        self.registers.shutdown_done();
    }

    /// An I/O queue was made. `check_io_connect` said that it could be.
    pub fn io_queue_connected(&mut self, qid: Qid) {
        self.io_queues.insert(qid);
    }

    /// An I/O queue is gone.
    pub fn io_queue_closed(&mut self, qid: Qid) {
        self.io_queues.remove(&qid);
    }

    /// The I/O queues that exist.
    pub fn io_queues(&self) -> impl Iterator<Item = Qid> + '_ {
        self.io_queues.iter().copied()
    }

    /// A namespace was added, removed or resized, or another attribute of it changed.
    pub fn namespace_changed(&mut self, nsid: Nsid) {
        if self.init.kind == ControllerKind::Io {
            self.changed_namespaces.add(nsid);
            self.events.raise(AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED);
        }
    }

    /// What the discovery service tells this host changed.
    pub fn discovery_changed(&mut self) {
        if self.init.kind == ControllerKind::Discovery {
            self.events.raise(AsyncEvent::DISCOVERY_LOG_CHANGED);
        }
    }

    /// The health of the subsystem may have changed.
    pub fn health_changed(&mut self, view: &dyn SubsystemView) {
        if self.init.kind == ControllerKind::Io {
            let warning = self.critical_warning(view);
            self.events.set_warnings(warning);
        }
    }

    /// The next held Asynchronous Event Request that is to be completed.
    pub fn poll_event(&mut self) -> Option<EventCompletion> {
        self.events.poll()
    }

    /// Notes a failed command of an I/O queue in the error log. Admin commands note themselves.
    pub fn log_error(&mut self, error: &ErrorRecord) {
        self.errors.record(error);
    }

    /// When to ask [`Controller::keep_alive`], or `None` where there is no timer.
    pub fn keep_alive_deadline_ms(&self) -> Option<u64> {
        self.keep_alive.deadline_ms()
    }

    /// Whether the host is alive. `io_traffic` says whether any I/O queue has received a command since
    /// the last time this was asked.
    pub fn keep_alive(&mut self, now_ms: u64, io_traffic: bool) -> KeepAliveState {
        self.keep_alive.check(now_ms, io_traffic)
    }
}

fn with_data(out: &[u8]) -> AdminAction {
    // Bounded by the transfer limit, which is 32 bits.
    AdminAction::CompleteWithData {
        len_bytes: out.len() as u32,
    }
}

/// The SGL describes exactly `expected` bytes.
fn expect_bytes(sqe: &Sqe, expected: u64) -> Result<(), Fault> {
    let described = sqe.dptr.length_bytes();
    match u64::from(described) == expected {
        true => Ok(()),
        false => Err(Fault::DataLength {
            described,
            expected,
        }),
    }
}
