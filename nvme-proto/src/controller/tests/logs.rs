//! Log pages: what each says, parts of them, and what is refused.

use super::*;
use crate::wire::identify::{Csi, NamespaceList};
use crate::wire::log::{
    CriticalWarning, ErrorEntry, ParameterLocation, SmartLog, SupportedLog, SupportedLogs,
};
use crate::wire::{Lba, Opcode};

#[test]
fn supported_pages_page_matches_what_is_supported() {
    for kind in [ControllerKind::Io, ControllerKind::Discovery] {
        let mut host = Host::ready(kind);
        let page = SupportedLogs::read_from_bytes(&host.get_log(LogId::SUPPORTED, 1024)).unwrap();
        for lid in (0..=255).map(LogId) {
            let get = GetLogPage::new(lid, 512, 0).to_sqe();
            if page.get(lid).contains(SupportedLog::SUPPORTED) {
                host.read(get);
            } else {
                assert_eq!(host.refused(get), Status::INVALID_LOG_PAGE, "{lid:?}");
            }
        }
    }
}

#[test]
fn error_log_has_the_newest_first() {
    let mut host = Host::io();
    let mut bad = Sqe::new(Opcode(0xee));
    bad.nsid = zerocopy::little_endian::U32::new(9);
    host.refused(bad);
    host.controller.log_error(&ErrorRecord {
        sqid: Qid(4),
        cid: Cid(0x77),
        status: Status::LBA_OUT_OF_RANGE.dnr(),
        location: Some(ParameterLocation::byte(40)),
        nsid: Nsid(1),
        lba: Some(Lba(12345)),
    });
    let page = host.get_log(LogId::ERROR, 64 * 64);
    let entry = |i: usize| ErrorEntry::read_from_bytes(&page[i * 64..(i + 1) * 64]).unwrap();
    assert_eq!(
        (
            entry(0).error_count.get(),
            entry(0).sqid.get(),
            entry(0).lba.get()
        ),
        (2, 4, 12345)
    );
    assert_eq!(entry(0).status(), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(
        (
            entry(1).error_count.get(),
            entry(1).nsid.get(),
            entry(1).cid.get()
        ),
        (1, 9, 101)
    );
    assert_eq!(entry(1).location(), Some(ParameterLocation::byte(0)));
    assert!(entry(1).status().is(Status::INVALID_OPCODE));
    assert_eq!((entry(1).trtype, entry(2).error_count.get()), (3, 0));
}

#[test]
fn error_log_is_bounded() {
    let mut host = Host::io();
    for _ in 0..100 {
        host.refused(Sqe::new(Opcode(0xee)));
    }
    let page = host.get_log(LogId::ERROR, 64 * 64);
    let counts: Vec<u64> = page
        .chunks(64)
        .map(|e| ErrorEntry::read_from_bytes(e).unwrap().error_count.get())
        .collect();
    assert_eq!(counts, (37..=100).rev().collect::<Vec<_>>());
    let smart = SmartLog::read_from_bytes(&host.get_log(LogId::SMART, 512)).unwrap();
    assert_eq!(smart.error_log_entries.get(), 100);
}

#[test]
fn smart_counters_come_from_the_subsystem() {
    let mut host = Host::io();
    host.subsystem.smart = SmartCounters {
        critical_warning: CriticalWarning::READ_ONLY,
        temperature_kelvins: Some(300),
        available_spare_percent: 99,
        bytes_read: 1,
        bytes_written: 512_001,
        read_commands: 3,
        write_commands: 4,
        busy_minutes: 5,
        power_cycles: 6,
        power_on_hours: 7,
        unsafe_shutdowns: 8,
        media_errors: 9,
    };
    host.subsystem.smart_of.insert(
        Nsid(3),
        SmartCounters {
            read_commands: 42,
            ..Default::default()
        },
    );
    let log = SmartLog::read_from_bytes(&host.get_log(LogId::SMART, 512)).unwrap();
    assert_eq!(
        (
            log.critical_warning,
            log.composite_temperature.get(),
            log.available_spare
        ),
        (8, 300, 99)
    );
    assert_eq!(
        (log.data_units_read.get(), log.data_units_written.get()),
        (1, 2)
    );
    assert_eq!(
        (log.host_read_commands.get(), log.host_write_commands.get()),
        (3, 4)
    );
    assert_eq!(
        (
            log.controller_busy_time.get(),
            log.power_cycles.get(),
            log.power_on_hours.get()
        ),
        (5, 6, 7)
    );
    assert_eq!((log.unsafe_shutdowns.get(), log.media_errors.get()), (8, 9));

    let of = |nsid| {
        GetLogPage {
            nsid: Nsid(nsid),
            ..GetLogPage::new(LogId::SMART, 512, 0)
        }
        .to_sqe()
    };
    let log = SmartLog::read_from_bytes(&host.read(of(3))).unwrap();
    assert_eq!(log.host_read_commands.get(), 42);
    assert_eq!(
        SmartLog::read_from_bytes(&host.read(of(0)))
            .unwrap()
            .host_read_commands
            .get(),
        3
    );
    for nsid in [2, 33] {
        assert_eq!(host.refused(of(nsid)), Status::INVALID_NAMESPACE);
    }
}

#[test]
fn firmware_slot_page() {
    let mut host = Host::io();
    let page = host.get_log(LogId::FIRMWARE_SLOT, 512);
    assert_eq!(page[0], 1);
    assert_eq!(&page[8..16], b"0.1     ");
    assert!(page[16..].iter().all(|&b| b == 0));
}

#[test]
fn changed_namespaces_are_listed_once_and_cleared() {
    let mut host = Host::io();
    for nsid in [9, 3, 9] {
        host.controller.namespace_changed(Nsid(nsid));
    }
    let list = |host: &mut Host, rae| {
        let get = GetLogPage {
            rae,
            ..GetLogPage::new(LogId::CHANGED_NAMESPACES, 4096, 0)
        };
        let page = host.read(get.to_sqe());
        NamespaceList::read_from_bytes(&page)
            .unwrap()
            .iter()
            .map(|n| n.0)
            .collect::<Vec<_>>()
    };
    assert_eq!(list(&mut host, true), [3, 9], "in order; RAE keeps them");
    assert_eq!(list(&mut host, false), [3, 9]);
    assert_eq!(list(&mut host, false), []);

    for nsid in 1..=1024 {
        host.controller.namespace_changed(Nsid(nsid));
    }
    assert_eq!(list(&mut host, true).len(), 1024);
    host.controller.namespace_changed(Nsid(1024));
    assert_eq!(
        list(&mut host, true).len(),
        1024,
        "one that is listed already"
    );
    host.controller.namespace_changed(Nsid(1025));
    assert_eq!(list(&mut host, false), [u32::MAX], "more than fit");
    assert_eq!(list(&mut host, false), []);
}

#[test]
fn management_interface_page_is_empty() {
    let mut host = Host::io();
    assert!(
        host.get_log(LogId::MI_EFFECTS, 4096)
            .iter()
            .all(|&b| b == 0)
    );
}

#[test]
fn parts_of_pages() {
    let mut host = Host::io();
    let whole = host.get_log(LogId::FIRMWARE_SLOT, 512);
    let at = |offset| GetLogPage::new(LogId::FIRMWARE_SLOT, 16, offset).to_sqe();
    assert_eq!(host.read(at(8)), whole[8..24]);
    assert_eq!(
        host.read(at(512)),
        [0; 16],
        "at the end: nothing but zeroes"
    );
    assert_eq!(
        host.get_log(LogId::FIRMWARE_SLOT, 1024)[512..],
        [0; 512],
        "beyond the end"
    );
    for offset in [516, 1 << 40, u64::MAX - 3, 2, 7] {
        assert_eq!(
            host.refused(at(offset)),
            Status::INVALID_FIELD,
            "offset {offset}"
        );
    }
    let index = GetLogPage {
        offset_is_index: true,
        ..GetLogPage::new(LogId::FIRMWARE_SLOT, 16, 0)
    };
    assert_eq!(host.refused(index.to_sqe()), Status::INVALID_FIELD);
}

#[test]
fn length_is_bounded_by_mdts() {
    let mut host = Host::io();
    assert_eq!(host.get_log(LogId::ERROR, 1 << 20).len(), 1 << 20);
    for length in [(1 << 20) + 4, u32::MAX] {
        assert_eq!(
            host.refused(GetLogPage::new(LogId::ERROR, length, 0).to_sqe()),
            Status::INVALID_FIELD
        );
    }
}

#[test]
fn effects_are_of_the_nvm_command_set() {
    let mut host = Host::io();
    let get = GetLogPage {
        csi: Csi(2),
        ..GetLogPage::new(LogId::COMMAND_EFFECTS, 4096, 0)
    };
    assert_eq!(host.refused(get.to_sqe()), Status::INVALID_FIELD);
}
