//! Properties: sizes, access, and the CC/CSTS life cycle.

use super::*;
use crate::wire::property::Csts;

#[test]
fn property_get_checks_offset_and_size() {
    let mut host = Host::connected(ControllerKind::Io);
    for property in [
        Property::CAP,
        Property::VS,
        Property::CC,
        Property::CSTS,
        Property::NSSR,
        Property::CRTO,
    ] {
        host.result(PropertySqe::get(property).into_sqe());
        let mut wrong = PropertySqe::get(property);
        wrong.attrib ^= 1;
        assert_eq!(
            host.refused(wrong.into_sqe()),
            Status::INVALID_FIELD,
            "{property:?}"
        );
        wrong.attrib = 2;
        assert_eq!(
            host.refused(wrong.into_sqe()),
            Status::INVALID_FIELD,
            "{property:?}"
        );
    }
    // INTMS, AQA, CMBLOC: PCIe only. 1000h: doorbells. An odd offset.
    for offset in [0x0c, 0x24, 0x38, 0x1000, 0x15, u32::MAX] {
        assert_eq!(
            host.refused(PropertySqe::get(Property(offset)).into_sqe()),
            Status::INVALID_FIELD
        );
    }
}

#[test]
fn property_set_is_for_cc_only() {
    let mut host = Host::connected(ControllerKind::Io);
    for property in [
        Property::VS,
        Property::CSTS,
        Property::NSSR,
        Property::CRTO,
        Property(0x24),
    ] {
        assert_eq!(
            host.refused(PropertySqe::set(property, 0).into_sqe()),
            Status::INVALID_FIELD,
            "{property:?}"
        );
    }
    let mut cap = PropertySqe::set(Property::CAP, 0);
    cap.attrib = 1;
    assert_eq!(host.refused(cap.into_sqe()), Status::INVALID_FIELD);
    let mut wide = PropertySqe::set(Property::CC, ENABLED);
    wide.attrib = 1;
    assert_eq!(host.refused(wide.into_sqe()), Status::INVALID_FIELD);
    assert_eq!(host.csts(), 0, "CC did not change");
}

#[test]
fn enabling_with_unsupported_settings_is_fatal_until_disabled() {
    for bad in [
        ENABLED & !0x000f_0000,       // IOSQES 0
        ENABLED & !0x00f0_0000,       // IOCQES 0
        ENABLED & !0x70 | 0b001 << 4, // CSS reserved
        ENABLED & !0x70 | 0b111 << 4, // admin command set only
        ENABLED | 1 << 7,             // MPS 8 KiB
        ENABLED | 0b001 << 11,        // AMS weighted round robin
        ENABLED | 1 << 24,            // CRIME
    ] {
        let mut host = Host::connected(ControllerKind::Io);
        assert_eq!(host.set_cc(bad), AdminAction::SUCCESS);
        assert_eq!(host.csts(), 0b10, "CFS for CC {bad:#x}");
        assert!(!host.controller.is_ready());
        assert_eq!(
            host.refused(IdentifyCommand::new(Cns::CONTROLLER, Nsid(0)).to_sqe()),
            Status::COMMAND_SEQUENCE_ERROR
        );
        assert_eq!(host.set_cc(bad & !1), AdminAction::Disable);
        host.controller.drained();
        assert_eq!(host.csts(), 0);
        assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
        assert_eq!(host.csts(), READY);
    }
}

#[test]
fn discovery_controllers_do_not_care_about_io_queue_entry_sizes() {
    let mut host = Host::connected(ControllerKind::Discovery);
    assert_eq!(host.set_cc(1), AdminAction::SUCCESS);
    assert_eq!(host.csts(), READY);
}

#[test]
fn settings_do_not_change_while_enabled() {
    let mut host = Host::io();
    for change in [1 << 7, 1 << 11, 0x60, 1 << 16, 1 << 20] {
        assert_eq!(
            host.set_cc(ENABLED ^ change),
            AdminAction::Complete {
                status: Status::INVALID_FIELD.dnr().more(),
                result: 0,
            }
        );
    }
    assert_eq!(
        host.set_cc(ENABLED),
        AdminAction::SUCCESS,
        "the same again is no change"
    );
    assert_eq!(
        host.result(PropertySqe::get(Property::CC).into_sqe()),
        u64::from(ENABLED)
    );
}

#[test]
fn enabling_waits_for_the_reset() {
    let mut host = Host::io();
    assert_eq!(host.set_cc(0), AdminAction::Disable);
    assert_eq!(
        host.refused(PropertySqe::set(Property::CC, ENABLED).into_sqe()),
        Status::COMMAND_SEQUENCE_ERROR
    );
    host.controller.drained();
    assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
    host.controller.drained();
    assert_eq!(
        host.csts(),
        READY,
        "a drain that nobody asked for changes nothing"
    );
}

#[test]
fn shutdown_notifications() {
    let abrupt = ENABLED | Cc::SHN_ABRUPT << 14;
    let normal = ENABLED | Cc::SHN_NORMAL << 14;
    let mut host = Host::io();
    host.controller.shutdown_done();
    assert_eq!(host.csts(), READY, "nothing was shut down");
    assert_eq!(host.set_cc(abrupt), AdminAction::Shutdown { abrupt: true });
    assert_eq!(
        host.set_cc(normal),
        AdminAction::SUCCESS,
        "one shutdown is enough"
    );
    assert_eq!(
        host.refused(crate::wire::event::keep_alive_sqe()),
        Status::COMMAND_SEQUENCE_ERROR
    );
    host.controller.shutdown_done();
    assert_eq!(Csts(host.csts() as u32).shst(), Csts::SHST_COMPLETE);

    // Reset and enable again: normal operation, with keep alive.
    assert_eq!(host.set_cc(0), AdminAction::Disable);
    host.controller.drained();
    assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
    assert_eq!(host.csts(), READY);
    assert!(host.controller.keep_alive_deadline_ms().is_some());

    // A shutdown of a controller that was never enabled completes as well.
    let mut host = Host::connected(ControllerKind::Io);
    assert_eq!(
        host.set_cc(normal & !1),
        AdminAction::Shutdown { abrupt: false }
    );
    host.controller.shutdown_done();
    assert_eq!(Csts(host.csts() as u32).shst(), Csts::SHST_COMPLETE);
    assert_eq!(host.set_cc(ENABLED), AdminAction::SUCCESS);
    assert_eq!(host.csts(), READY);
}
