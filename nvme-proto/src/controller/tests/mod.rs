//! Scenario tests of the admin side: a small host that sends commands to a [`Controller`] over a
//! subsystem whose state the test changes.

mod bring_up;
mod commands;
mod connect;
mod discovery;
mod events;
mod features;
mod identify;
mod io;
mod keep_alive;
mod logs;
mod malformed;
mod properties;

use super::*;
use crate::wire::feature::{FeatureId, NumberOfQueues};
use crate::wire::identify::{Cns, IdentifyController};
use crate::wire::log::{GetLogPage, LogId};
use crate::wire::property::{Cc, Property};
use crate::wire::text::Ascii;
use crate::wire::{Eui64, Nguid, SglDescriptor, Uuid};
use std::collections::BTreeMap;
use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

/// A subsystem that a test can change.
struct Subsystem {
    info: SubsystemInfo,
    namespaces: BTreeMap<Nsid, NamespaceInfo>,
    smart: SmartCounters,
    smart_of: BTreeMap<Nsid, SmartCounters>,
    discovery: BTreeMap<Nqn, DiscoveryRecords>,
}

impl SubsystemView for Subsystem {
    fn subsystem(&self) -> &SubsystemInfo {
        &self.info
    }

    fn namespace(&self, nsid: Nsid) -> Option<NamespaceInfo> {
        self.namespaces.get(&nsid).copied()
    }

    fn next_namespace(&self, after: Nsid) -> Option<Nsid> {
        let next = Nsid(after.0.checked_add(1)?);
        self.namespaces.range(next..).next().map(|(&nsid, _)| nsid)
    }

    fn smart(&self, namespace: Option<Nsid>) -> SmartCounters {
        match namespace {
            None => self.smart,
            Some(nsid) => self.smart_of.get(&nsid).copied().unwrap_or_default(),
        }
    }

    fn discovery(&self, host: &Nqn) -> DiscoveryRecords {
        self.discovery.get(host).cloned().unwrap_or_default()
    }
}

fn nqn(text: &str) -> Nqn {
    text.parse().unwrap()
}

const SUBNQN: &str = "nqn.2024-01.io.example:disks";
const HOSTNQN: &str = "nqn.2024-01.io.example:host";
const HOSTID: HostId = HostId([7; 16]);
const CNTLID: Cntlid = Cntlid(5);

fn namespace(blocks: u64) -> NamespaceInfo {
    NamespaceInfo {
        block_shift: 12,
        blocks,
        used_blocks: None,
        read_only: false,
        uuid: Uuid([1; 16]),
        nguid: Nguid([2; 16]),
        eui64: Eui64::NONE,
        deallocate_reads_zeroes: true,
        atomic_blocks: 1,
        preferred: None,
    }
}

fn subsystem() -> Subsystem {
    let info = SubsystemInfo {
        nqn: nqn(SUBNQN),
        serial: Ascii::new("S123").unwrap(),
        model: Ascii::new("Example").unwrap(),
        firmware: Ascii::new("0.1").unwrap(),
        max_nsid: Nsid(32),
        multiple_ports: false,
    };
    Subsystem {
        info,
        namespaces: BTreeMap::from([(Nsid(1), namespace(1000)), (Nsid(3), namespace(2000))]),
        smart: SmartCounters::default(),
        smart_of: BTreeMap::new(),
        discovery: BTreeMap::new(),
    }
}

fn init(kind: ControllerKind) -> ControllerInit {
    ControllerInit {
        kind,
        cntlid: CNTLID,
        host_nqn: nqn(HOSTNQN),
        host_id: HOSTID,
        transport: Transport::Tcp,
        kato_ms: 5_000,
        limits: ControllerLimits::default(),
    }
}

/// A host with its admin queue.
struct Host {
    controller: Controller,
    subsystem: Subsystem,
    now_ms: u64,
    next_cid: u16,
    data: Vec<u8>,
}

impl Host {
    /// Connected, but the controller is not enabled yet.
    fn connected(kind: ControllerKind) -> Self {
        Self::with(init(kind))
    }

    fn with(init: ControllerInit) -> Self {
        Self {
            controller: Controller::new(init, 0),
            subsystem: subsystem(),
            now_ms: 0,
            next_cid: 100,
            data: Vec::new(),
        }
    }

    /// An enabled controller of `kind`.
    fn ready(kind: ControllerKind) -> Self {
        let mut host = Self::connected(kind);
        assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
        assert!(host.controller.is_ready());
        host
    }

    fn io() -> Self {
        Self::ready(ControllerKind::Io)
    }

    /// Sends a command under a new CID, which is also its tag.
    fn send(&mut self, mut sqe: Sqe) -> AdminAction {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        sqe.cid = U16::new(cid);
        self.controller
            .admin(&sqe, cid, &self.subsystem, &mut self.data, self.now_ms)
    }

    /// Sends a command that must succeed without data, and gives the result.
    fn result(&mut self, sqe: Sqe) -> u64 {
        match self.send(sqe) {
            AdminAction::Complete { status, result } if status == Status::SUCCESS => result,
            other => panic!("{other:?}"),
        }
    }

    /// Sends a command that must succeed with data.
    fn read(&mut self, sqe: Sqe) -> Vec<u8> {
        let expected = sqe.dptr.length_bytes() as usize;
        match self.send(sqe) {
            AdminAction::CompleteWithData { len_bytes } => {
                assert_eq!(len_bytes as usize, self.data.len());
                assert_eq!(
                    self.data.len(),
                    expected,
                    "no more and no less than the SGL describes"
                );
                self.data.clone()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends a command that must be refused, for good, and gives the status without M.
    fn refused(&mut self, sqe: Sqe) -> Status {
        let errors = self.controller.errors.count();
        match self.send(sqe) {
            AdminAction::Complete { status, .. } if !status.is_success() => {
                assert!(status.is_dnr(), "{status}");
                assert!(status.is_more(), "the error log tells more");
                assert_eq!(self.controller.errors.count(), errors + 1);
                status.code()
            }
            other => panic!("{other:?}"),
        }
    }

    fn set_cc(&mut self, cc: u32) -> AdminAction {
        self.send(PropertySqe::set(Property::CC, cc).into_sqe())
    }

    fn csts(&mut self) -> u64 {
        self.result(PropertySqe::get(Property::CSTS).into_sqe())
    }

    fn identify<T: FromBytes>(&mut self, cns: Cns, nsid: u32) -> T {
        let data = self.read(IdentifyCommand::new(cns, Nsid(nsid)).to_sqe());
        T::read_from_bytes(&data).unwrap_or_else(|_| panic!("4096 bytes"))
    }

    fn get_log(&mut self, lid: LogId, length_bytes: u32) -> Vec<u8> {
        self.read(GetLogPage::new(lid, length_bytes, 0).to_sqe())
    }

    /// Sends an Asynchronous Event Request, which must be held, and gives its tag.
    fn request_event(&mut self) -> u16 {
        let tag = self.next_cid;
        assert_eq!(
            self.send(crate::wire::event::async_event_request_sqe()),
            AdminAction::Hold
        );
        tag
    }

    /// The next event, as (tag, dword 0).
    fn event(&mut self) -> Option<(u16, u64)> {
        self.controller.poll_event().map(|e| {
            assert_eq!(e.status, Status::SUCCESS);
            (e.tag, e.result)
        })
    }
}

/// CC as Linux writes it: IOCQES 4, IOSQES 6, CSS 110b, EN.
const ENABLED: u32 = 0x0046_0061;
/// CSTS.RDY.
const READY: u64 = 1;
