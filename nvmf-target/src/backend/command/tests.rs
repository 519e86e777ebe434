//! Tests of the translation of commands, against a null namespace.

use std::sync::Arc;

use nvme_proto::wire::{IoOpcode, Nsid, Opcode, SglDescriptor};
use nvmf_io::{BufPool, PoolConfig};
use zerocopy::little_endian::U32;

use super::*;
use crate::backend::{Backing, BackingOptions, BackingSpec};
use crate::model::{IoCounters, NamespaceIds};

const MDTS_BYTES: u32 = 1 << 20;
const FUA: u32 = 1 << 30;
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

/// A command with `data_bytes` described by its SGL.
fn io(opcode: Opcode, slba: u64, dword12: u32, data_bytes: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode);
    sqe.nsid = U32::new(1);
    sqe.set_cdw10_11(slba);
    sqe.cdw12 = U32::new(dword12);
    sqe.dptr = SglDescriptor::transport(data_bytes);
    sqe
}

fn planned(sqe: &Sqe) -> Result<BackendOp, Status> {
    plan(sqe, Some(&namespace(false)), MDTS_BYTES).map(|plan| plan.op)
}

#[test]
fn commands_become_byte_ranges() {
    let cases = [
        (
            io(IoOpcode::READ, 8, 7, 4096),
            BackendOp::Read {
                offset_bytes: 4096,
                len_bytes: 4096,
                fua: false,
            },
        ),
        (
            io(IoOpcode::READ, 0, FUA, 512),
            BackendOp::Read {
                offset_bytes: 0,
                len_bytes: 512,
                fua: true,
            },
        ),
        (
            io(IoOpcode::WRITE, 999, FUA, 512),
            BackendOp::Write {
                offset_bytes: 999 * 512,
                len_bytes: 512,
                fua: true,
            },
        ),
        (
            io(IoOpcode::WRITE_ZEROES, 0, 999 | DEAC, 0),
            BackendOp::WriteZeroes {
                offset_bytes: 0,
                len_bytes: 512_000,
                deallocate: true,
                fua: false,
            },
        ),
        (
            io(IoOpcode::COMPARE, 1, 0, 512),
            BackendOp::Compare {
                offset_bytes: 512,
                len_bytes: 512,
            },
        ),
        (
            io(IoOpcode::VERIFY, 1, 1, 0),
            BackendOp::Verify {
                offset_bytes: 512,
                len_bytes: 1024,
            },
        ),
        (io(IoOpcode::FLUSH, 0, 0, 0), BackendOp::Flush),
    ];
    for (sqe, op) in cases {
        assert_eq!(planned(&sqe), Ok(op), "{sqe:?}");
    }
}

#[test]
fn what_fails_its_checks_has_no_plan() {
    assert_eq!(
        planned(&io(IoOpcode::READ, 1000, 0, 512)),
        Err(Status::LBA_OUT_OF_RANGE.dnr())
    );
    assert_eq!(
        planned(&io(IoOpcode::READ, 0, 0, 1024)),
        Err(Status::DATA_SGL_LENGTH_INVALID.dnr())
    );
    assert_eq!(
        planned(&io(Opcode(0x80), 0, 0, 0)),
        Err(Status::INVALID_OPCODE.dnr())
    );
    let long = plan(
        &io(IoOpcode::READ, 0, 127, 65536),
        Some(&namespace(false)),
        32768,
    );
    assert_eq!(long, Err(Status::INVALID_FIELD.dnr()), "above MDTS");
    let protected = plan(
        &io(IoOpcode::WRITE, 0, 0, 512),
        Some(&namespace(true)),
        MDTS_BYTES,
    );
    assert_eq!(protected, Err(Status::NAMESPACE_WRITE_PROTECTED.dnr()));
    let nowhere = plan(&io(IoOpcode::READ, 0, 0, 512), None, MDTS_BYTES);
    assert_eq!(nowhere, Err(Status::INVALID_NAMESPACE.dnr()));
}

#[test]
fn flush_of_all_needs_no_namespace() {
    let mut sqe = io(IoOpcode::FLUSH, 0, 0, 0);
    sqe.nsid = U32::new(Nsid::ALL.0);
    let planned = plan(&sqe, None, MDTS_BYTES).unwrap();
    assert_eq!((planned.op, planned.for_all), (BackendOp::Flush, true));
}

#[test]
fn ranges_of_dataset_management() {
    let pool = BufPool::new(&PoolConfig::default());
    let buf = pool.alloc(4096).unwrap();
    buf.fill(0..4096, 0);
    let geometry = namespace(false).geometry;
    for (index, (start, blocks)) in [(16u64, 8u32), (0, 0), (999, 1), (1000, 1)]
        .into_iter()
        .enumerate()
    {
        buf.copy_in(index as u32 * 16 + 4, &blocks.to_le_bytes());
        buf.copy_in(index as u32 * 16 + 8, &start.to_le_bytes());
    }
    let three = Ranges::new(&buf, 3, &geometry);
    assert_eq!(three.check(), Ok(()));
    assert_eq!(three.get(0), Some((8192, 4096)));
    assert_eq!(
        three.get(1),
        Some((999 * 512, 512)),
        "the empty one is left out"
    );
    assert_eq!(three.get(2), None);
    let four = Ranges::new(&buf, 4, &geometry);
    assert_eq!(four.check(), Err(Status::LBA_OUT_OF_RANGE.dnr()));
}
