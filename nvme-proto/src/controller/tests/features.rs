//! Features: every one with every SEL, and what is refused.

use super::*;
use crate::wire::feature::{AsyncEventConfig, Capabilities};
use crate::wire::log::{FeatureEffects, FeatureEffectsLog};

fn get(fid: FeatureId) -> Sqe {
    GetFeatures::current(fid).to_sqe(0)
}

fn select(fid: FeatureId, select: Select) -> Sqe {
    // Error Recovery is of a namespace, the Host Identifier has the 128-bit form only.
    GetFeatures {
        nsid: Nsid(1),
        fid,
        select,
        cdw11: 0,
    }
    .to_sqe(0)
}

fn set(fid: FeatureId, value: u32) -> Sqe {
    SetFeatures::new(fid, value).to_sqe()
}

/// (feature, value set, value then read, default)
const PLAIN: [(FeatureId, u32, u32, u32); 4] = [
    (FeatureId::ARBITRATION, 0x0102_03f3, 0x0102_0303, 7),
    (FeatureId::POWER_MANAGEMENT, 0x0000_0040, 0x40, 0),
    (FeatureId::WRITE_ATOMICITY, 1, 1, 0),
    (FeatureId::KEEP_ALIVE_TIMER, 7_001, 8_000, 0),
];

#[test]
fn values_are_kept_and_have_defaults() {
    let mut host = Host::io();
    for (fid, value, read, default) in PLAIN {
        assert_eq!(host.result(set(fid, value)), 0, "{fid:?}");
        assert_eq!(host.result(get(fid)), u64::from(read), "{fid:?}");
        for sel in [Select::Default, Select::Saved] {
            assert_eq!(
                host.result(select(fid, sel)),
                u64::from(default),
                "{fid:?} {sel:?}"
            );
        }
    }
}

/// SEL "supported capabilities", the effects log and the answers agree, for all 256 identifiers.
#[test]
fn feature_effects_log_matches_what_is_supported() {
    for kind in [ControllerKind::Io, ControllerKind::Discovery] {
        let mut host = Host::ready(kind);
        let page = FeatureEffectsLog::read_from_bytes(&host.get_log(LogId::FEATURE_EFFECTS, 1024))
            .unwrap();
        let mut supported = Vec::new();
        for fid in (0..=255).map(FeatureId) {
            let claimed = page.get(fid).contains(FeatureEffects::SUPPORTED);
            if claimed {
                supported.push(fid.0);
                let caps = host.result(select(fid, Select::SupportedCapabilities));
                let caps = Capabilities::from_bits(caps as u32).unwrap();
                assert!(!caps.contains(Capabilities::SAVEABLE), "{fid:?}");
                let of_namespace = page.get(fid).contains(FeatureEffects::SCOPE_NAMESPACE);
                assert_eq!(
                    caps.contains(Capabilities::NAMESPACE_SPECIFIC),
                    of_namespace,
                    "{fid:?}"
                );
                if !caps.contains(Capabilities::CHANGEABLE) {
                    let refused = host.refused(set(fid, 1));
                    let fixed = [
                        Status::FEATURE_NOT_CHANGEABLE,
                        Status::COMMAND_SEQUENCE_ERROR,
                    ];
                    assert!(fixed.contains(&refused), "{fid:?}");
                }
            } else {
                assert_eq!(host.refused(get(fid)), Status::INVALID_FIELD, "{fid:?}");
                assert_eq!(host.refused(set(fid, 0)), Status::INVALID_FIELD, "{fid:?}");
            }
        }
        match kind {
            ControllerKind::Io => {
                assert_eq!(supported, [1, 2, 4, 5, 6, 7, 0x0a, 0x0b, 0x0f, 0x19, 0x81])
            }
            ControllerKind::Discovery => assert_eq!(supported, [0x0b, 0x0f]),
        }
    }
}

#[test]
fn nothing_can_be_saved_and_reserved_selects_are_refused() {
    let mut host = Host::io();
    for fid in [
        0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x0a, 0x0b, 0x0f, 0x19, 0x81,
    ]
    .map(FeatureId)
    {
        let save = SetFeatures {
            save: true,
            ..SetFeatures::new(fid, 0)
        };
        assert_eq!(
            host.refused(save.to_sqe()),
            Status::FEATURE_NOT_SAVEABLE,
            "{fid:?}"
        );
        for sel in 4..8 {
            assert_eq!(
                host.refused(select(fid, Select::Reserved(sel))),
                Status::INVALID_FIELD
            );
        }
    }
}

#[test]
fn controller_features_are_not_set_for_one_namespace() {
    let mut host = Host::io();
    let of = |nsid| {
        SetFeatures {
            nsid,
            ..SetFeatures::new(FeatureId::WRITE_ATOMICITY, 0)
        }
        .to_sqe()
    };
    assert_eq!(
        host.refused(of(Nsid(1))),
        Status::FEATURE_NOT_NAMESPACE_SPECIFIC
    );
    host.result(of(Nsid::ALL));
}

#[test]
fn power_and_temperature() {
    let mut host = Host::io();
    assert_eq!(
        host.refused(set(FeatureId::POWER_MANAGEMENT, 1)),
        Status::INVALID_FIELD,
        "NPSS is 0"
    );
    let threshold = FeatureId::TEMPERATURE_THRESHOLD;
    let read = |cdw11| {
        GetFeatures {
            cdw11,
            ..GetFeatures::current(threshold)
        }
        .to_sqe(0)
    };
    assert_eq!(host.result(read(0)), 0xffff);
    assert_eq!(host.result(read(1 << 20)), 0);
    host.result(set(threshold, 0x0155));
    host.result(set(threshold, 0x001f_0111)); // all sensors, under temperature
    assert_eq!(host.result(read(0)), 0x0155);
    assert_eq!(host.result(read(1 << 20)), 0x0111);
    // A sensor that does not exist, a reserved threshold type, and "all" when reading.
    for value in [0x0001_0000, 0x0020_0000] {
        assert_eq!(host.refused(set(threshold, value)), Status::INVALID_FIELD);
        assert_eq!(host.refused(read(value)), Status::INVALID_FIELD);
    }
    assert_eq!(host.refused(read(0x000f_0000)), Status::INVALID_FIELD);
}

#[test]
fn error_recovery_is_of_a_namespace() {
    let mut host = Host::io();
    let fid = FeatureId::ERROR_RECOVERY;
    let set = |nsid, value| {
        SetFeatures {
            nsid: Nsid(nsid),
            ..SetFeatures::new(fid, value)
        }
        .to_sqe()
    };
    let get = |nsid, select| {
        GetFeatures {
            nsid: Nsid(nsid),
            fid,
            select,
            cdw11: 0,
        }
        .to_sqe(0)
    };
    host.result(set(3, 50));
    assert_eq!(host.result(get(3, Select::Current)), 50);
    assert_eq!(host.result(get(3, Select::Default)), 0);
    assert_eq!(host.result(get(1, Select::Current)), 0);
    host.result(set(u32::MAX, 60));
    assert_eq!(
        (
            host.result(get(1, Select::Current)),
            host.result(get(3, Select::Current))
        ),
        (60, 60)
    );
    for nsid in [0, 2, 33] {
        assert_eq!(host.refused(set(nsid, 1)), Status::INVALID_NAMESPACE);
        assert_eq!(
            host.refused(get(nsid, Select::Current)),
            Status::INVALID_NAMESPACE
        );
    }
    assert_eq!(
        host.refused(get(u32::MAX, Select::Current)),
        Status::INVALID_NAMESPACE
    );
    assert_eq!(
        host.refused(set(1, 1 << 16)),
        Status::INVALID_FIELD,
        "DULBE needs NSFEAT bit 2"
    );
}

#[test]
fn number_of_queues() {
    let mut host = Host::io();
    let fid = FeatureId::NUMBER_OF_QUEUES;
    assert_eq!(
        host.result(set(fid, NumberOfQueues::both(1).0)),
        0x007f_007f
    );
    assert_eq!(host.result(get(fid)), 0x007f_007f);
    for value in [0xffff_0000, 0x0000_ffff, 0xffff_ffff] {
        assert_eq!(
            host.refused(set(fid, value)),
            Status::INVALID_FIELD,
            "{value:08x}h"
        );
    }
    host.controller.io_queue_connected(Qid(1));
    assert_eq!(host.refused(set(fid, 0)), Status::COMMAND_SEQUENCE_ERROR);
    host.controller.io_queue_closed(Qid(1));
    host.result(set(fid, 0));
}

#[test]
fn write_cache_is_always_on() {
    let mut host = Host::io();
    assert_eq!(host.result(get(FeatureId::VOLATILE_WRITE_CACHE)), 1);
    for value in [0, 1] {
        assert_eq!(
            host.refused(set(FeatureId::VOLATILE_WRITE_CACHE, value)),
            Status::FEATURE_NOT_CHANGEABLE
        );
    }
}

#[test]
fn event_configuration_takes_supported_events_only() {
    let fid = FeatureId::ASYNC_EVENT_CONFIGURATION;
    let mut host = Host::io();
    assert_eq!(host.result(get(fid)), 1 << 8);
    host.result(set(fid, 0x11f));
    assert_eq!(host.result(get(fid)), 0x11f);
    for value in [1 << 9, 1 << 11, 1 << 31, 1 << 6] {
        assert_eq!(
            host.refused(set(fid, value)),
            Status::INVALID_FIELD,
            "{value:08x}h"
        );
    }
    assert_eq!(host.result(get(fid)), 0x11f);

    let mut host = Host::ready(ControllerKind::Discovery);
    let only = AsyncEventConfig::DISCOVERY_LOG_CHANGE.bits();
    assert_eq!(host.result(get(fid)), u64::from(only));
    host.result(set(fid, 0));
    assert_eq!(host.refused(set(fid, 1 << 8)), Status::INVALID_FIELD);
}

#[test]
fn host_identifier() {
    let mut host = Host::io();
    let fid = FeatureId::HOST_IDENTIFIER;
    let get = |cdw11, bytes| {
        GetFeatures {
            cdw11,
            ..GetFeatures::current(fid)
        }
        .to_sqe(bytes)
    };
    assert_eq!(host.read(get(1, 16)), HOSTID.0);
    assert_eq!(
        host.refused(get(0, 8)),
        Status::INVALID_FIELD,
        "64-bit identifiers do not exist on fabrics"
    );
    assert_eq!(host.refused(set(fid, 1)), Status::COMMAND_SEQUENCE_ERROR);
    let capabilities = GetFeatures {
        select: Select::SupportedCapabilities,
        ..GetFeatures::current(fid)
    };
    assert_eq!(host.result(capabilities.to_sqe(16)), 0);
}

#[test]
fn io_command_set_profile() {
    let mut host = Host::io();
    host.result(set(FeatureId::IO_COMMAND_SET_PROFILE, 0));
    assert_eq!(host.result(get(FeatureId::IO_COMMAND_SET_PROFILE)), 0);
    let refused = host.refused(set(FeatureId::IO_COMMAND_SET_PROFILE, 1));
    assert_eq!(refused, Status::IO_COMMAND_SET_COMBINATION_REJECTED);
}
