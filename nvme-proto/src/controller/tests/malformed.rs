//! Whatever an admin command holds, there is one answer, and the controller lives.

use super::*;
use proptest::prelude::*;

fn any_sqe() -> impl Strategy<Value = Sqe> {
    let opcode = prop_oneof![
        Just(0x02u8),
        Just(0x06),
        Just(0x08),
        Just(0x09),
        Just(0x0a),
        Just(0x0c),
        Just(0x18),
        Just(0x7f),
        any::<u8>(),
    ];
    let small = || prop_oneof![3 => 0u32..0x20, 1 => any::<u32>()];
    let length = prop_oneof![
        Just(0u32),
        Just(16),
        Just(512),
        Just(1024),
        Just(4096),
        any::<u32>()
    ];
    (
        opcode,
        any::<u8>(),
        small(),
        small(),
        small(),
        small(),
        any::<u64>(),
        any::<u32>(),
        length,
    )
        .prop_map(
            |(opcode, flags, nsid, cdw10, cdw11, cdw12, lpo, cdw14, length)| {
                let mut sqe = Sqe::new(crate::wire::Opcode(opcode));
                if flags < 16 {
                    sqe.flags = flags.rotate_right(2);
                }
                sqe.nsid.set(nsid);
                sqe.cdw10.set(cdw10 | u32::from(flags & 1) << 31);
                sqe.cdw11.set(cdw11);
                if flags & 2 == 0 {
                    sqe.cdw12.set(cdw12)
                } else {
                    sqe.set_cdw12_13(lpo)
                }
                if flags & 4 == 0 {
                    sqe.cdw14.set(cdw14)
                }
                sqe.dptr = SglDescriptor::transport(length);
                sqe
            },
        )
}

proptest! {
    #[test]
    fn every_command_is_answered(sqes in prop::collection::vec(any_sqe(), 1..60), discovery: bool, seed: u64) {
        let kind = if discovery { ControllerKind::Discovery } else { ControllerKind::Io };
        let mut host = Host::ready(kind);
        let mut held = 0;
        for (i, sqe) in sqes.into_iter().enumerate() {
            match host.send(sqe) {
                AdminAction::Complete { status, .. } => {
                    prop_assert_eq!(status.is_dnr(), !status.is_success());
                    prop_assert!(status.is_success() || host.data.is_empty());
                }
                AdminAction::CompleteWithData { len_bytes } => {
                    prop_assert_eq!(len_bytes, sqe.dptr.length_bytes());
                    prop_assert_eq!(host.data.len(), len_bytes as usize);
                    prop_assert!(len_bytes <= 1 << 20);
                }
                AdminAction::Hold => held += 1,
                AdminAction::Abort { .. } => prop_assert!(false, "there is no I/O queue"),
                AdminAction::Disable => host.controller.drained(),
                AdminAction::Shutdown { .. } => host.controller.shutdown_done(),
            }
            match seed >> (i % 64) & 3 {
                0 => host.controller.namespace_changed(Nsid(1)),
                1 => host.controller.discovery_changed(),
                2 => host.controller.health_changed(&host.subsystem),
                _ => {}
            }
            while host.controller.poll_event().is_some() {
                held -= 1;
            }
            prop_assert!((0..=4).contains(&held), "each request ends at most once, and AERL holds");
        }
    }
}
