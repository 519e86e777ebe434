//! Tests of validation and translation of commands, against a null namespace.

use std::sync::Arc;

use nvme_proto::wire::nvm::{DatasetManagement, DsmDword11};
use nvme_proto::wire::{IoOpcode, Nsid, Opcode, SglDescriptor};
use zerocopy::little_endian::U32;

use super::*;
use crate::backend::{Backing, BackingOptions, BackingSpec};
use crate::model::{IoCounters, NamespaceIds};

const MDTS_BYTES: u32 = 1 << 20;
/// Bit 30 of dword 12: Force Unit Access.
const FUA: u32 = 1 << 30;
/// Bit 25 of dword 12 of Write Zeroes: deallocate.
const DEAC: u32 = 1 << 25;

/// 1000 blocks of 512 bytes.
fn namespace(read_only: bool) -> Namespace {
    let spec = BackingSpec::Null {
        size_bytes: 512_000,
    };
    let backing = Arc::new(Backing::open(&spec, &BackingOptions::default()).unwrap());
    Namespace {
        nsid: Nsid(1),
        ids: NamespaceIds {
            uuid: uuid::Uuid::from_u128(1),
            nguid: [1; 16],
            eui64: [0; 8],
        },
        geometry: Geometry::new(512, backing.size_bytes()).unwrap(),
        read_only,
        backing,
        counters: IoCounters::new(1),
    }
}

fn io(opcode: Opcode, slba: u64, nlb: u32) -> Sqe {
    let moves = [IoOpcode::READ, IoOpcode::WRITE, IoOpcode::COMPARE].contains(&opcode);
    let bytes = if moves { ((nlb & 0xffff) + 1) * 512 } else { 0 };
    let mut sqe = Sqe::new(opcode);
    sqe.nsid = U32::new(1);
    sqe.dptr = SglDescriptor::transport(bytes);
    sqe.set_cdw10_11(slba);
    sqe.cdw12 = U32::new(nlb);
    sqe
}

/// Dataset Management of `ranges` ranges with the room that they need.
fn dsm(ranges: u16, deallocate: bool) -> Sqe {
    let attributes = DsmDword11::default().with_ad(deallocate);
    let command = DatasetManagement { ranges, attributes };
    command.to_sqe(Nsid(1)).unwrap()
}

fn planned(sqe: &Sqe) -> Result<BackendOp, Status> {
    plan(sqe, &namespace(false), MDTS_BYTES).map(|plan| plan.op)
}

#[test]
fn commands_become_byte_ranges() {
    assert_eq!(
        planned(&io(IoOpcode::READ, 8, 7)),
        Ok(BackendOp::Read {
            offset_bytes: 4096,
            len_bytes: 4096
        })
    );
    assert_eq!(
        planned(&io(IoOpcode::WRITE, 999, FUA)),
        Ok(BackendOp::Write {
            offset_bytes: 999 * 512,
            len_bytes: 512,
            fua: true
        })
    );
    assert_eq!(
        planned(&io(IoOpcode::WRITE_ZEROES, 0, 999 | DEAC)),
        Ok(BackendOp::WriteZeroes {
            offset_bytes: 0,
            len_bytes: 512_000,
            deallocate: true,
            fua: false
        })
    );
    assert_eq!(
        planned(&io(IoOpcode::COMPARE, 1, 0)),
        Ok(BackendOp::Compare {
            offset_bytes: 512,
            len_bytes: 512
        })
    );
    assert_eq!(
        planned(&io(IoOpcode::VERIFY, 1, 1)),
        Ok(BackendOp::Verify {
            offset_bytes: 512,
            len_bytes: 1024
        })
    );
    assert_eq!(
        planned(&io(IoOpcode::FLUSH, u64::MAX, 0)),
        Ok(BackendOp::Flush)
    );
}

#[test]
fn blocks_outside_the_namespace_are_refused() {
    for opcode in [
        IoOpcode::READ,
        IoOpcode::WRITE,
        IoOpcode::WRITE_ZEROES,
        IoOpcode::COMPARE,
        IoOpcode::VERIFY,
    ] {
        for (slba, nlb) in [(1000, 0), (999, 1), (u64::MAX, 0), (u64::MAX, 0xffff)] {
            assert_eq!(
                planned(&io(opcode, slba, nlb)),
                Err(Status::LBA_OUT_OF_RANGE.dnr()),
                "{opcode:?} {slba}"
            );
        }
    }
}

#[test]
fn transfers_above_mdts_are_refused_but_not_what_transfers_nothing() {
    let limit = |opcode| plan(&io(opcode, 0, 127), &namespace(false), 32768).map(|_| ());
    for opcode in [IoOpcode::READ, IoOpcode::WRITE, IoOpcode::COMPARE] {
        assert_eq!(
            limit(opcode),
            Err(Status::INVALID_FIELD.dnr()),
            "{opcode:?}"
        );
    }
    for opcode in [IoOpcode::WRITE_ZEROES, IoOpcode::VERIFY] {
        assert_eq!(limit(opcode), Ok(()), "{opcode:?}");
    }
}

#[test]
fn a_read_only_namespace_is_never_written() {
    for sqe in [
        io(IoOpcode::WRITE, 0, 0),
        io(IoOpcode::WRITE_ZEROES, 0, 0),
        dsm(1, true),
    ] {
        let refused = plan(&sqe, &namespace(true), MDTS_BYTES);
        assert_eq!(
            refused,
            Err(Status::NAMESPACE_WRITE_PROTECTED.dnr()),
            "{:?}",
            sqe.opcode
        );
    }
    for opcode in [
        IoOpcode::READ,
        IoOpcode::COMPARE,
        IoOpcode::VERIFY,
        IoOpcode::FLUSH,
    ] {
        assert!(
            plan(&io(opcode, 0, 0), &namespace(true), MDTS_BYTES).is_ok(),
            "{opcode:?}"
        );
    }
}

#[test]
fn what_is_not_offered_is_refused() {
    for opcode in [0x03, 0x04, 0x0d, 0x0e, 0x11, 0x15, 0x18, 0x19, 0x80, 0xff].map(Opcode) {
        assert_eq!(
            planned(&io(opcode, 0, 0)),
            Err(Status::INVALID_OPCODE.dnr()),
            "{opcode:?}"
        );
    }
    for flags in [0x41, 0x42, 0x43, 0x00, 0x80, 0xc0] {
        let mut sqe = io(IoOpcode::READ, 0, 0);
        sqe.flags = flags;
        assert_eq!(
            planned(&sqe),
            Err(Status::INVALID_FIELD.dnr()),
            "flags {flags:02x}h"
        );
    }
}

#[test]
fn the_sgl_describes_what_the_command_moves() {
    let bad = Err(Status::DATA_SGL_LENGTH_INVALID.dnr());
    assert_eq!(DataNeeds::ToHost(512).check(0, 512), Ok(()));
    assert_eq!(DataNeeds::ToHost(512).check(0, 513), bad);
    assert_eq!(DataNeeds::ToHost(512).check(512, 0), bad);
    assert_eq!(DataNeeds::FromHost(512).check(512, 0), Ok(()));
    assert_eq!(DataNeeds::FromHost(512).check(511, 0), bad);
    assert_eq!(DataNeeds::FromHost(512).check(0, 0), bad);
    assert_eq!(DataNeeds::FromHostAtLeast(16).check(4096, 0), Ok(()));
    assert_eq!(DataNeeds::FromHostAtLeast(16).check(15, 0), bad);
    assert_eq!(DataNeeds::None.check(0, 0), Ok(()));
}

#[test]
fn dataset_management_ranges() {
    let geometry = namespace(false).geometry;
    let range = |blocks: u32, start: u64| {
        let mut raw = [0xffu8; 16];
        raw[4..8].copy_from_slice(&blocks.to_le_bytes());
        raw[8..].copy_from_slice(&start.to_le_bytes());
        dsm_range(&raw, &geometry)
    };
    assert_eq!(range(8, 16), Ok(Some((8192, 4096))));
    assert_eq!(range(0, 1000), Ok(None));
    assert_eq!(range(1, 1000), Err(Status::LBA_OUT_OF_RANGE.dnr()));
    assert_eq!(
        range(u32::MAX, u64::MAX),
        Err(Status::LBA_OUT_OF_RANGE.dnr())
    );

    assert_eq!(
        planned(&dsm(256, false)),
        Ok(BackendOp::Nothing),
        "hints alone do nothing"
    );
    let plan = plan(&dsm(256, true), &namespace(false), MDTS_BYTES).unwrap();
    assert_eq!(plan.op, BackendOp::Deallocate { ranges: 256 });
    assert_eq!(plan.data, DataNeeds::FromHostAtLeast(4096));
}
