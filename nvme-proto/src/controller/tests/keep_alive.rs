//! Keep alive in virtual time.

use super::*;
use crate::wire::event::keep_alive_sqe;

fn with_kato(kind: ControllerKind, kato_ms: u32) -> Host {
    Host::with(ControllerInit {
        kato_ms,
        ..init(kind)
    })
}

#[test]
fn expires_without_traffic() {
    let mut host = with_kato(ControllerKind::Io, 5_000);
    assert_eq!(host.controller.keep_alive_deadline_ms(), Some(5_000));
    assert_eq!(
        host.controller.keep_alive(4_999, false),
        KeepAliveState::Alive { deadline_ms: 5_000 }
    );
    assert_eq!(
        host.controller.keep_alive(5_000, false),
        KeepAliveState::Expired
    );
}

#[test]
fn any_admin_command_is_traffic() {
    let mut host = Host::io();
    host.now_ms = 3_000;
    host.result(keep_alive_sqe());
    assert_eq!(
        host.controller.keep_alive(5_000, false),
        KeepAliveState::Alive { deadline_ms: 8_000 }
    );
    host.now_ms = 7_999;
    host.csts();
    assert_eq!(
        host.controller.keep_alive(8_000, false),
        KeepAliveState::Alive {
            deadline_ms: 12_999
        }
    );
    host.now_ms = 12_000;
    host.refused(Sqe::new(crate::wire::Opcode(0xee)));
    assert_eq!(
        host.controller.keep_alive_deadline_ms(),
        Some(17_000),
        "a refused command is traffic too"
    );
}

#[test]
fn io_is_traffic() {
    let mut host = Host::io();
    assert_eq!(
        host.controller.keep_alive(5_000, true),
        KeepAliveState::Alive {
            deadline_ms: 10_000
        }
    );
    assert_eq!(
        host.controller.keep_alive(10_000, false),
        KeepAliveState::Expired
    );
}

#[test]
fn zero_is_no_timer_for_io_controllers() {
    let mut host = with_kato(ControllerKind::Io, 0);
    assert_eq!(host.controller.keep_alive_deadline_ms(), None);
    assert_eq!(
        host.controller.keep_alive(u64::MAX, false),
        KeepAliveState::Off
    );
    host.set_cc(ENABLED);
    assert_eq!(
        host.send(keep_alive_sqe()),
        AdminAction::SUCCESS,
        "harmless all the same"
    );
}

#[test]
fn discovery_controllers_end_when_idle_even_without_a_time_out() {
    let mut host = with_kato(ControllerKind::Discovery, 0);
    assert_eq!(host.controller.keep_alive_deadline_ms(), Some(120_000));
    assert_eq!(
        host.controller.keep_alive(120_000, false),
        KeepAliveState::Expired
    );
    let host = with_kato(ControllerKind::Discovery, 30_000);
    assert_eq!(host.controller.keep_alive_deadline_ms(), Some(30_000));
}

#[test]
fn time_out_is_rounded_up_and_can_be_changed() {
    let mut host = with_kato(ControllerKind::Io, 5_001);
    assert_eq!(host.controller.keep_alive_deadline_ms(), Some(6_000));
    host.set_cc(ENABLED);
    let fid = FeatureId::KEEP_ALIVE_TIMER;
    host.now_ms = 100;
    host.result(SetFeatures::new(fid, 9_500).to_sqe());
    assert_eq!(host.controller.keep_alive_deadline_ms(), Some(10_100));
    assert_eq!(host.result(GetFeatures::current(fid).to_sqe(0)), 10_000);
    host.result(SetFeatures::new(fid, 0).to_sqe());
    assert_eq!(host.controller.keep_alive_deadline_ms(), None);
    host.result(SetFeatures::new(fid, u32::MAX).to_sqe());
    let longest = host.result(GetFeatures::current(fid).to_sqe(0));
    assert!(
        longest.is_multiple_of(1_000) && longest <= u64::from(u32::MAX),
        "rounded down where up does not fit"
    );
}

#[test]
fn stops_at_shutdown() {
    let mut host = Host::io();
    host.set_cc(ENABLED | Cc::SHN_NORMAL << 14);
    assert_eq!(
        host.controller.keep_alive(1 << 40, false),
        KeepAliveState::Off
    );
}
