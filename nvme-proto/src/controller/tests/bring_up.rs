//! The order in which a Linux host brings a controller up, works with it, and leaves.

use super::*;
use crate::wire::feature::AsyncEventConfig;
use crate::wire::identify::{NamespaceList, descriptors};
use crate::wire::log::{EffectsLog, SmartLog};
use crate::wire::property::{Cap, Crto, Csts};

#[test]
fn linux_host_bring_up() {
    let mut host = Host::connected(ControllerKind::Io);

    // Enable: CAP, CC without EN, CAP, CRTO, CC with EN, then poll CSTS.
    let cap = Cap(host.result(PropertySqe::get(Property::CAP).into_sqe()));
    assert_eq!((cap.mqes(), cap.mpsmin(), cap.dstrd()), (1023, 0, 0));
    assert!(cap.cqr() && cap.css() & Cap::CSS_IOCSS != 0);
    assert_eq!(host.set_cc(ENABLED & !1), AdminAction::SUCCESS);
    assert!(cap.crwms());
    let crto = Crto(host.result(PropertySqe::get(Property::CRTO).into_sqe()) as u32);
    assert!(
        u64::from(crto.crwmt()) >= cap.to(),
        "Linux warns about anything else"
    );
    assert_eq!(host.csts(), 0);
    assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
    assert_eq!(host.csts(), READY);
    assert_eq!(
        host.result(PropertySqe::get(Property::VS).into_sqe()),
        0x0002_0000
    );

    // Identify Controller, and the checks that nvme-tcp makes on it.
    let id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    assert_eq!(id.cntlid.get(), CNTLID.0);
    assert_eq!(id.sgls.get() & 0b11, 1, "SGLs are mandatory");
    assert_ne!(id.sgls.get() & 1 << 20, 0, "in-capsule data");
    assert!(
        id.ioccsz.get() >= 4 && id.iorcsz.get() >= 1 && id.maxcmd.get() > 0 && id.kas.get() > 0
    );
    assert_eq!(id.icdoff.get(), 0);

    // Effects log (by LPA), command set specific limits, I/O command sets.
    assert_ne!(id.lpa & 1 << 1, 0);
    let data = host.get_log(LogId::COMMAND_EFFECTS, 4096);
    assert!(EffectsLog::read_from_bytes(&data).is_ok());
    let _: crate::wire::identify::NvmIdentifyController = host.identify(Cns::CSI_CONTROLLER, 0);

    // Queues, events, and the I/O queues themselves.
    let asked = SetFeatures::new(FeatureId::NUMBER_OF_QUEUES, NumberOfQueues::both(4).0);
    let granted = NumberOfQueues(host.result(asked.to_sqe()) as u32);
    assert_eq!(granted.pairs(), 128);
    for qid in 1..=4 {
        host.controller.io_queue_connected(Qid(qid));
    }
    let oaes = id.oaes.get();
    host.result(SetFeatures::new(FeatureId::ASYNC_EVENT_CONFIGURATION, oaes).to_sqe());
    host.request_event();
    assert_eq!(host.event(), None);

    // Scan: the active list, then for each namespace its descriptors and structures.
    let list: NamespaceList = host.identify(Cns::ACTIVE_NAMESPACES, 0);
    assert_eq!(list.iter().collect::<Vec<_>>(), [Nsid(1), Nsid(3)]);
    for nsid in [1, 3] {
        let ids = host.read(IdentifyCommand::new(Cns::NAMESPACE_DESCRIPTORS, Nsid(nsid)).to_sqe());
        assert_eq!(descriptors(&ids).count(), 3, "UUID, NGUID and CSI");
        let ns: crate::wire::identify::IdentifyNamespace = host.identify(Cns::NAMESPACE, nsid);
        assert_eq!(ns.format().block_size_bytes(), Some(4096));
        let _: crate::wire::identify::NvmIdentifyNamespace =
            host.identify(Cns::CSI_NAMESPACE, nsid);
    }
    let smart = SmartLog::read_from_bytes(&host.get_log(LogId::SMART, 512)).unwrap();
    assert_eq!(
        smart.error_log_entries.get(),
        0,
        "none of this was an error"
    );

    // Shutdown: SHN normal, poll for SHST complete. Then the connections go.
    let shutdown = ENABLED | Cc::SHN_NORMAL << 14;
    assert_eq!(
        host.set_cc(shutdown),
        AdminAction::Shutdown { abrupt: false }
    );
    assert_eq!(Csts(host.csts() as u32).shst(), Csts::SHST_OCCURRING);
    host.controller.shutdown_done();
    assert_eq!(Csts(host.csts() as u32).shst(), Csts::SHST_COMPLETE);
    assert_eq!(
        host.controller.keep_alive_deadline_ms(),
        None,
        "no keep alive after a shutdown"
    );
}

#[test]
fn reset_brings_everything_back_to_its_default() {
    let mut host = Host::io();
    host.controller.io_queue_connected(Qid(1));
    host.result(SetFeatures::new(FeatureId::ASYNC_EVENT_CONFIGURATION, 0).to_sqe());
    host.result(SetFeatures::new(FeatureId::WRITE_ATOMICITY, 1).to_sqe());
    let tag = host.request_event();
    host.controller.namespace_changed(Nsid(1));

    assert_eq!(host.set_cc(ENABLED & !1), AdminAction::Disable);
    assert!(!host.controller.is_ready());
    assert_eq!(host.csts(), READY, "RDY stays until the drain is over");
    host.controller.io_queue_closed(Qid(1));
    host.controller.drained();
    assert_eq!(host.csts(), 0);
    let ended = host.controller.poll_event().expect("the held request ends");
    assert_eq!(
        (ended.tag, ended.status),
        (tag, Status::ABORTED_SQ_DELETION)
    );

    assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
    let config = host.result(GetFeatures::current(FeatureId::ASYNC_EVENT_CONFIGURATION).to_sqe(0));
    assert_eq!(
        config,
        u64::from(AsyncEventConfig::NAMESPACE_ATTRIBUTE.bits())
    );
    assert_eq!(
        host.result(GetFeatures::current(FeatureId::WRITE_ATOMICITY).to_sqe(0)),
        0
    );
    assert_eq!(host.get_log(LogId::CHANGED_NAMESPACES, 4096)[..4], [0; 4]);
    host.request_event();
    assert_eq!(host.event(), None);
}
