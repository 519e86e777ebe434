//! Checks of I/O commands.

use super::*;
use crate::wire::fabrics::{Cattr, ConnectSqe, disconnect_sqe};
use crate::wire::nvm::{BlockRange, DatasetManagement, DsmDword11, DsmRange, flush_sqe};
use crate::wire::{IoOpcode, Lba, Opcode};
use proptest::prelude::*;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const LIMITS: NamespaceLimits = NamespaceLimits {
    block_shift: 9,
    blocks: 10_000,
    read_only: false,
    max_transfer_bytes: 1 << 20,
};

fn range(slba: u64, blocks: u32) -> BlockRange {
    BlockRange {
        slba: Lba(slba),
        blocks,
    }
}

/// A command of `opcode` with the data that it moves.
fn command(opcode: Opcode, slba: u64, blocks: u32) -> Sqe {
    let moves = [IoOpcode::READ, IoOpcode::WRITE, IoOpcode::COMPARE].contains(&opcode);
    let bytes = if moves {
        blocks << LIMITS.block_shift
    } else {
        0
    };
    range(slba, blocks).to_sqe(opcode, Nsid(1), bytes).unwrap()
}

fn with_cdw12(mut sqe: Sqe, bits: u32) -> Sqe {
    sqe.cdw12 = U32::new(sqe.cdw12.get() | bits);
    sqe
}

fn validate(sqe: &Sqe) -> Result<IoCommand, Fault> {
    validate_io(sqe, Some(&LIMITS))
}

fn refused(sqe: &Sqe) -> Status {
    let status = validate(sqe).unwrap_err().status();
    assert!(status.is_dnr());
    status.code()
}

const RANGED: [Opcode; 5] = [
    IoOpcode::READ,
    IoOpcode::WRITE,
    IoOpcode::COMPARE,
    IoOpcode::VERIFY,
    IoOpcode::WRITE_ZEROES,
];
const MOVING: [Opcode; 3] = [IoOpcode::READ, IoOpcode::WRITE, IoOpcode::COMPARE];
const FUA: u32 = 1 << 30;

#[test]
fn good_commands() {
    let range = range(16, 8);
    for (fua, bits) in [(false, 0), (true, FUA)] {
        let ok = |opcode| validate(&with_cdw12(command(opcode, 16, 8), bits)).unwrap();
        assert_eq!(ok(IoOpcode::READ), IoCommand::Read { range, fua });
        assert_eq!(ok(IoOpcode::WRITE), IoCommand::Write { range, fua });
        assert_eq!(ok(IoOpcode::COMPARE), IoCommand::Compare { range, fua });
        assert_eq!(ok(IoOpcode::VERIFY), IoCommand::Verify { range, fua });
        let zero = ok(IoOpcode::WRITE_ZEROES);
        assert_eq!(
            zero,
            IoCommand::WriteZeroes {
                range,
                deallocate: false,
                fua
            }
        );
    }
    let deac = validate(&with_cdw12(command(IoOpcode::WRITE_ZEROES, 16, 8), 1 << 25));
    assert_eq!(
        deac,
        Ok(IoCommand::WriteZeroes {
            range,
            deallocate: true,
            fua: false
        })
    );
    // Limited Retry is a hint.
    assert!(validate(&with_cdw12(command(IoOpcode::READ, 0, 1), 1 << 31)).is_ok());
    assert_eq!(validate(&flush_sqe(Nsid(1))), Ok(IoCommand::Flush));
    assert_eq!(
        validate_io(&flush_sqe(Nsid::ALL), None),
        Ok(IoCommand::FlushAll)
    );
    assert_eq!(
        validate_io(&disconnect_sqe(), None),
        Ok(IoCommand::Disconnect)
    );
}

#[test]
fn lba_out_of_range() {
    for opcode in RANGED {
        assert!(validate(&command(opcode, 9_999, 1)).is_ok());
        assert!(validate(&command(opcode, 9_992, 8)).is_ok());
        for (slba, blocks) in [(10_000, 1), (9_993, 8), (u64::MAX, 1), (u64::MAX - 7, 8)] {
            assert_eq!(
                refused(&command(opcode, slba, blocks)),
                Status::LBA_OUT_OF_RANGE,
                "{opcode}"
            );
        }
    }
}

#[test]
fn sgl_length_is_blocks_times_block_size() {
    for opcode in MOVING {
        for bytes in [0, 511, 512, 4095, 8192, u32::MAX] {
            let mut sqe = command(opcode, 0, 8);
            sqe.dptr.length = U32::new(bytes);
            assert_eq!(
                refused(&sqe),
                Status::DATA_SGL_LENGTH_INVALID,
                "{opcode} {bytes}"
            );
        }
    }
    for mut sqe in [
        command(IoOpcode::VERIFY, 0, 1),
        command(IoOpcode::WRITE_ZEROES, 0, 1),
        flush_sqe(Nsid(1)),
        flush_sqe(Nsid::ALL),
    ] {
        sqe.dptr.length = U32::new(512);
        assert_eq!(
            refused(&sqe),
            Status::DATA_SGL_LENGTH_INVALID,
            "{}",
            sqe.opcode
        );
    }
}

#[test]
fn transfers_are_bounded_by_mdts_and_wzsl() {
    for opcode in MOVING {
        assert!(validate(&command(opcode, 0, 2048)).is_ok());
        assert_eq!(
            refused(&command(opcode, 0, 2049)),
            Status::INVALID_FIELD,
            "{opcode}"
        );
    }
    let large = NamespaceLimits {
        block_shift: 12,
        blocks: 1 << 20,
        ..LIMITS
    };
    let zero = |blocks| validate_io(&command(IoOpcode::WRITE_ZEROES, 0, blocks), Some(&large));
    assert!(zero(8192).is_ok());
    assert_eq!(
        zero(8193).unwrap_err().status(),
        Status::INVALID_FIELD.dnr()
    );
    assert!(
        validate(&command(IoOpcode::VERIFY, 0, 10_000)).is_ok(),
        "VSL is 0: no limit"
    );
}

#[test]
fn namespace_must_exist() {
    for opcode in RANGED {
        let sqe = command(opcode, 0, 1);
        let fault = validate_io(&sqe, None).unwrap_err();
        assert_eq!(fault.status(), Status::INVALID_NAMESPACE.dnr(), "{opcode}");
        for nsid in [0, 0xffff_fffe, u32::MAX] {
            let mut sqe = sqe;
            sqe.nsid = U32::new(nsid);
            assert_eq!(
                refused(&sqe),
                Status::INVALID_NAMESPACE,
                "{opcode} NSID {nsid}"
            );
        }
    }
    assert_eq!(
        validate_io(&flush_sqe(Nsid(9)), None).unwrap_err(),
        Fault::InvalidNsid(Nsid(9))
    );
    assert_eq!(refused(&flush_sqe(Nsid(0))), Status::INVALID_NAMESPACE);
}

#[test]
fn write_protected_namespaces_are_read_only() {
    let read_only = NamespaceLimits {
        read_only: true,
        ..LIMITS
    };
    let dsm = DatasetManagement::deallocate(1).to_sqe(Nsid(1)).unwrap();
    for sqe in [
        command(IoOpcode::WRITE, 0, 1),
        command(IoOpcode::WRITE_ZEROES, 0, 1),
        dsm,
    ] {
        let fault = validate_io(&sqe, Some(&read_only)).unwrap_err();
        assert_eq!(
            fault.status(),
            Status::NAMESPACE_WRITE_PROTECTED.dnr(),
            "{}",
            sqe.opcode
        );
    }
    for opcode in [IoOpcode::READ, IoOpcode::COMPARE, IoOpcode::VERIFY] {
        assert!(
            validate_io(&command(opcode, 0, 1), Some(&read_only)).is_ok(),
            "{opcode}"
        );
    }
    assert!(validate_io(&flush_sqe(Nsid(1)), Some(&read_only)).is_ok());
}

#[test]
fn flags_and_fields_that_are_not_supported() {
    for opcode in RANGED {
        for flags in [0x00, 0x80, 0xc0, 0x41, 0x42, 0x43] {
            let mut sqe = command(opcode, 0, 1);
            sqe.flags = flags;
            assert_eq!(
                refused(&sqe),
                Status::INVALID_FIELD,
                "{opcode} flags {flags:02x}h"
            );
        }
        for prinfo in 1..16 {
            let sqe = with_cdw12(command(opcode, 0, 1), prinfo << 26);
            assert_eq!(
                refused(&sqe),
                Status::INVALID_PROTECTION_INFORMATION,
                "{opcode}"
            );
        }
    }
    // Streams: a directive type in a write.
    let streams = with_cdw12(command(IoOpcode::WRITE, 0, 1), 1 << 20);
    assert_eq!(refused(&streams), Status::INVALID_FIELD);
}

#[test]
fn unknown_commands() {
    let supported = [0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0c, 0x7f];
    for opcode in (0..=255).filter(|o| !supported.contains(o)) {
        assert_eq!(
            refused(&Sqe::new(Opcode(opcode))),
            Status::INVALID_OPCODE,
            "{opcode:02x}h"
        );
    }
}

#[test]
fn fabrics_commands_on_io_queues() {
    let mut sqe = disconnect_sqe();
    sqe.cdw10 = U32::new(1);
    assert_eq!(refused(&sqe), Status::CONNECT_INCOMPATIBLE_FORMAT);
    let connect = ConnectSqe::new(Qid(1), 32, Cattr::empty(), 0).into_sqe();
    assert_eq!(refused(&connect), Status::COMMAND_SEQUENCE_ERROR);
    for sqe in [
        PropertySqe::get(Property::CAP),
        PropertySqe::set(Property::CC, 0),
    ] {
        assert_eq!(refused(&sqe.into_sqe()), Status::INVALID_OPCODE);
    }
    let mut authentication = disconnect_sqe();
    authentication.as_mut_bytes()[4] = 0x05;
    assert_eq!(refused(&authentication), Status::INVALID_OPCODE);
}

#[test]
fn dataset_management_takes_room_for_more_ranges() {
    let dsm = |ranges, bytes| {
        let mut sqe = DatasetManagement::deallocate(ranges)
            .to_sqe(Nsid(1))
            .unwrap();
        sqe.dptr.length = U32::new(bytes);
        sqe
    };
    assert_eq!(
        validate(&dsm(2, 32)),
        Ok(IoCommand::Deallocate { ranges: 2 })
    );
    // Linux always describes 4096 bytes.
    assert_eq!(
        validate(&dsm(1, 4096)),
        Ok(IoCommand::Deallocate { ranges: 1 })
    );
    assert_eq!(
        validate(&dsm(256, 4096)),
        Ok(IoCommand::Deallocate { ranges: 256 })
    );
    assert_eq!(refused(&dsm(2, 31)), Status::DATA_SGL_LENGTH_INVALID);
    assert_eq!(refused(&dsm(1, (1 << 20) + 16)), Status::INVALID_FIELD);
    let hint = DatasetManagement {
        ranges: 3,
        attributes: DsmDword11(0b11),
    }
    .to_sqe(Nsid(1))
    .unwrap();
    assert_eq!(validate(&hint), Ok(IoCommand::DatasetHint { ranges: 3 }));
}

#[test]
fn ranges_are_checked_one_by_one() {
    let mut data = Vec::new();
    for (slba, blocks) in [
        (0, 8),
        (5, 0),
        (9_999, 1),
        (9_999, 2),
        (u64::MAX, 1),
        (1, 1),
    ] {
        data.extend_from_slice(DsmRange::new(Lba(slba), blocks).as_bytes());
    }
    let found: Vec<_> = dsm_ranges(&data, 5, &LIMITS).collect();
    let outside = |slba, blocks| {
        Err(Fault::LbaOutOfRange {
            slba: Lba(slba),
            blocks,
        })
    };
    assert_eq!(
        found,
        [
            Ok((Lba(0), 8)),
            Ok((Lba(9_999), 1)),
            outside(9_999, 2),
            outside(u64::MAX, 1)
        ]
    );
    assert_eq!(
        dsm_ranges(&data[..20], 5, &LIMITS).count(),
        1,
        "short data yields less"
    );
}

proptest! {
    /// What passes lies within the namespace and within the limits, whatever the bytes were.
    #[test]
    fn whatever_passes_is_within_the_limits(
        bytes in prop::collection::vec(any::<u8>(), 64),
        slba in 0u64..12_000,
        opcode in prop::sample::select(ops::IO.iter().map(|op| op.opcode).collect::<Vec<_>>()),
        exact: bool,
    ) {
        let mut sqe = Sqe::read_from_bytes(&bytes).unwrap();
        sqe.opcode = opcode;
        sqe.nsid = U32::new(1);
        sqe.set_cdw10_11(slba);
        if exact {
            sqe.flags = Sqe::FLAGS_SGL;
            sqe.cdw12 = U32::new(sqe.cdw12.get() & 0x43ff_ffff & !0x00f0_f000);
            let blocks = (sqe.cdw12.get() & 0xffff) + 1;
            let moves = MOVING.contains(&opcode);
            sqe.dptr = SglDescriptor::transport(if moves { blocks << LIMITS.block_shift } else { 0 });
        }
        match validate(&sqe) {
            Ok(IoCommand::Read { range, .. } | IoCommand::Write { range, .. } | IoCommand::Compare { range, .. }) => {
                prop_assert!(range.end().unwrap().0 <= LIMITS.blocks);
                let bytes = range.blocks << LIMITS.block_shift;
                prop_assert!(bytes <= LIMITS.max_transfer_bytes);
                prop_assert_eq!(bytes, sqe.dptr.length_bytes());
            }
            Ok(IoCommand::Verify { range, .. } | IoCommand::WriteZeroes { range, .. }) => {
                prop_assert!(range.end().unwrap().0 <= LIMITS.blocks);
            }
            Ok(IoCommand::Deallocate { ranges } | IoCommand::DatasetHint { ranges }) => {
                prop_assert!(u32::from(ranges) * 16 <= sqe.dptr.length_bytes());
            }
            Ok(IoCommand::Flush | IoCommand::FlushAll) => prop_assert_eq!(opcode, IoOpcode::FLUSH),
            Ok(IoCommand::Disconnect) => prop_assert!(false, "not a fabrics command"),
            Err(fault) => prop_assert!(fault.status().is_dnr() && !fault.status().is_success()),
        }
    }
}
