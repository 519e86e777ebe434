//! Discovery controllers: the log, its generation, its change event.

use super::*;
use crate::wire::log::{
    AddressFamily, DiscoveryEntry, DiscoveryHeader, SubsystemType, TcpSecurity, Treq,
};

fn entry(subtype: SubsystemType, subnqn: &Nqn) -> DiscoveryEntry {
    let treq = Treq::new(Treq::SECURE_NOT_REQUIRED, true);
    DiscoveryEntry::tcp(
        AddressFamily::IPV4,
        "192.0.2.1",
        "4420",
        subtype,
        subnqn,
        treq,
        TcpSecurity::NONE,
    )
    .unwrap()
}

fn host() -> Host {
    let mut host = Host::ready(ControllerKind::Discovery);
    let entries = vec![
        entry(SubsystemType::CURRENT_DISCOVERY, &Nqn::discovery()),
        entry(SubsystemType::NVM, &nqn(SUBNQN)),
    ];
    host.subsystem.discovery.insert(
        nqn(HOSTNQN),
        DiscoveryRecords {
            generation: 4,
            entries,
        },
    );
    let hidden = DiscoveryRecords {
        generation: 9,
        entries: vec![],
    };
    host.subsystem
        .discovery
        .insert(nqn("nqn.2024-01.io.example:other"), hidden);
    host
}

#[test]
fn host_reads_header_then_entries_then_header() {
    let mut host = host();
    let header = DiscoveryHeader::read_from_bytes(&host.get_log(LogId::DISCOVERY, 1024)).unwrap();
    assert_eq!(
        (
            header.genctr.get(),
            header.numrec.get(),
            header.recfmt.get()
        ),
        (4, 2, 0)
    );
    let page = host.get_log(LogId::DISCOVERY, 3 * 1024);
    let second = DiscoveryEntry::read_from_bytes(&page[2048..]).unwrap();
    assert_eq!(second.nqn(), Ok(nqn(SUBNQN)));
    assert_eq!(second.cntlid.get(), 0xffff);
    // Linux reads 16 bytes of the header to compare the generation; others read in parts of 4 KiB.
    assert_eq!(
        host.get_log(LogId::DISCOVERY, 16)[..8],
        [4, 0, 0, 0, 0, 0, 0, 0]
    );
    let part = host.read(GetLogPage::new(LogId::DISCOVERY, 1024, 2048).to_sqe());
    assert_eq!(part, page[2048..]);
    let past = GetLogPage::new(LogId::DISCOVERY, 1024, 3 * 1024 + 4);
    assert_eq!(host.refused(past.to_sqe()), Status::INVALID_FIELD);
}

#[test]
fn identify_of_a_discovery_controller() {
    let mut host = host();
    let id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    assert_eq!((id.cntrltype, id.dctype), (2, 1));
    assert_eq!(id.oaes.get(), 1 << 31);
    assert_eq!((id.sqes, id.cqes, id.nn.get(), id.oncs.get()), (0, 0, 0, 0));
    assert_ne!(id.lpa & 1 << 2, 0, "an offset into the log page");
    assert_ne!(id.sgls.get() & 1, 0);
    assert_ne!(id.kas.get(), 0, "persistent connections need keep alive");
}

#[test]
fn change_is_told_once_until_the_log_is_read() {
    let mut host = host();
    let tag = host.request_event();
    host.controller.discovery_changed();
    assert_eq!(host.event(), Some((tag, 0x0070_f002)));
    host.request_event();
    host.controller.discovery_changed();
    assert_eq!(host.event(), None);
    host.get_log(LogId::DISCOVERY, 1024);
    host.controller.discovery_changed();
    assert!(host.event().is_some());
}

#[test]
fn events_belong_to_their_kind_of_controller() {
    let mut host = host();
    host.request_event();
    host.controller.namespace_changed(Nsid(1));
    host.subsystem.smart.critical_warning = crate::wire::log::CriticalWarning::all();
    host.controller.health_changed(&host.subsystem);
    assert_eq!(host.event(), None);
    let mut io = Host::io();
    io.request_event();
    io.controller.discovery_changed();
    assert_eq!(io.event(), None);
}
