//! Asynchronous events: delivery, masking, limits.

use super::*;
use crate::wire::event::async_event_request_sqe;
use crate::wire::log::CriticalWarning;

const NAMESPACE_CHANGED: u64 = 0x0004_0002;

fn acknowledge(host: &mut Host, lid: LogId) {
    host.get_log(lid, 512);
}

#[test]
fn event_goes_to_the_oldest_request() {
    let mut host = Host::io();
    let (first, second) = (host.request_event(), host.request_event());
    host.controller.namespace_changed(Nsid(1));
    assert_eq!(host.event(), Some((first, NAMESPACE_CHANGED)));
    acknowledge(&mut host, LogId::CHANGED_NAMESPACES);
    host.controller.namespace_changed(Nsid(1));
    assert_eq!(host.event(), Some((second, NAMESPACE_CHANGED)));
    assert_eq!(host.event(), None);
}

#[test]
fn event_is_masked_until_its_page_is_read() {
    let mut host = Host::io();
    for _ in 0..3 {
        host.request_event();
    }
    host.controller.namespace_changed(Nsid(1));
    assert!(host.event().is_some());
    host.controller.namespace_changed(Nsid(2));
    assert_eq!(host.event(), None, "masked");
    let retain = GetLogPage {
        rae: true,
        ..GetLogPage::new(LogId::CHANGED_NAMESPACES, 4096, 0)
    };
    host.read(retain.to_sqe());
    host.controller.namespace_changed(Nsid(3));
    assert_eq!(host.event(), None, "RAE keeps the mask");
    acknowledge(&mut host, LogId::SMART);
    host.controller.namespace_changed(Nsid(3));
    assert_eq!(host.event(), None, "another page does not help");
    acknowledge(&mut host, LogId::CHANGED_NAMESPACES);
    assert_eq!(host.event(), None, "the page told all of it");
    host.controller.namespace_changed(Nsid(3));
    assert!(host.event().is_some());
}

#[test]
fn event_waits_for_a_request() {
    let mut host = Host::io();
    host.controller.namespace_changed(Nsid(1));
    host.controller.namespace_changed(Nsid(2));
    assert_eq!(host.event(), None);
    let tag = host.request_event();
    assert_eq!(host.event(), Some((tag, NAMESPACE_CHANGED)));
    host.request_event();
    assert_eq!(host.event(), None, "two changes, one event");

    // Read before it could be told: nothing is left to tell.
    let mut host = Host::io();
    host.controller.namespace_changed(Nsid(1));
    acknowledge(&mut host, LogId::CHANGED_NAMESPACES);
    host.request_event();
    assert_eq!(host.event(), None);
}

#[test]
fn more_requests_than_aerl_are_refused() {
    let mut host = Host::io();
    let id: IdentifyController = host.identify(Cns::CONTROLLER, 0);
    for _ in 0..=id.aerl {
        host.request_event();
    }
    assert_eq!(
        host.refused(async_event_request_sqe()),
        Status::AER_LIMIT_EXCEEDED
    );
    host.controller.namespace_changed(Nsid(1));
    assert!(host.event().is_some());
    host.request_event();
}

#[test]
fn disabled_events_are_not_told_but_listed() {
    let mut host = Host::io();
    host.request_event();
    host.controller.namespace_changed(Nsid(1));
    let off = SetFeatures::new(FeatureId::ASYNC_EVENT_CONFIGURATION, 0).to_sqe();
    host.result(off);
    assert_eq!(host.event(), None, "switched off before it was told");
    host.controller.namespace_changed(Nsid(7));
    assert_eq!(host.event(), None);
    assert_eq!(
        host.get_log(LogId::CHANGED_NAMESPACES, 8),
        [1, 0, 0, 0, 7, 0, 0, 0]
    );
}

#[test]
fn smart_events_are_told_when_a_warning_is_new_and_enabled() {
    let mut host = Host::io();
    for _ in 0..4 {
        host.request_event();
    }
    let warn = |host: &mut Host, warning| {
        host.subsystem.smart.critical_warning = warning;
        let Host {
            controller,
            subsystem,
            ..
        } = host;
        controller.health_changed(subsystem);
        host.event().map(|(_, result)| result)
    };
    assert_eq!(warn(&mut host, CriticalWarning::SPARE), None, "not enabled");
    let all = SetFeatures::new(FeatureId::ASYNC_EVENT_CONFIGURATION, 0x1f).to_sqe();
    host.result(all);
    assert_eq!(warn(&mut host, CriticalWarning::SPARE), None, "not new");
    assert_eq!(
        warn(
            &mut host,
            CriticalWarning::SPARE | CriticalWarning::READ_ONLY
        ),
        Some(0x0002_0001)
    );
    assert_eq!(warn(&mut host, CriticalWarning::empty()), None);
    assert_eq!(warn(&mut host, CriticalWarning::SPARE), Some(0x0002_0201));
    acknowledge(&mut host, LogId::SMART);
    assert_eq!(
        warn(&mut host, CriticalWarning::RELIABILITY),
        Some(0x0002_0001)
    );
}

#[test]
fn temperature_threshold_makes_an_event() {
    let mut host = Host::io();
    host.subsystem.smart.temperature_kelvins = Some(310);
    host.result(SetFeatures::new(FeatureId::ASYNC_EVENT_CONFIGURATION, 0b10).to_sqe());
    let tag = host.request_event();
    host.result(SetFeatures::new(FeatureId::TEMPERATURE_THRESHOLD, 311).to_sqe());
    assert_eq!(host.event(), None);
    host.result(SetFeatures::new(FeatureId::TEMPERATURE_THRESHOLD, 310).to_sqe());
    assert_eq!(host.event(), Some((tag, 0x0002_0101)));
    assert_eq!(host.get_log(LogId::SMART, 512)[0], 0b10);
}
