//! Every command on every backing, through real sockets.

mod common;

use common::host::io;
use common::*;
use nvme_proto::queue::Transfer;
use nvme_proto::wire::{FabricsType, IoOpcode, Nsid, Opcode, Sqe, Status};
use nvmf_target::backend::{BackingOptions, BackingSpec};
use nvmf_target::shard::Scope;
use rig::SUBSYSTEM;
use zerocopy::little_endian::U32;

/// Bytes that differ from block to block and from one `seed` to the next.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(31) ^ seed)
        .collect()
}

/// Reads and writes of all sizes: in the capsule, by one R2T, by several.
fn moves_data(host: &mut TestHost) {
    for (seed, len) in (1..).zip([
        512,
        4096,
        8192,
        16 << 10,
        (16 << 10) + 512,
        32 << 10,
        128 << 10,
        200 << 10,
        1 << 20,
    ]) {
        let len = (len as u64).next_multiple_of(host.block_bytes) as usize;
        let data = pattern(len, seed);
        assert_eq!(host.write(4 << 20, data.clone()), Status::SUCCESS, "{len}");
        assert_eq!(host.read(4 << 20, len).unwrap(), data, "{len}");
    }
}

fn all_commands(host: &mut TestHost) {
    let block = host.block_bytes as usize;
    assert_eq!(
        host.read(0, block),
        Ok(vec![0; block]),
        "a new namespace reads as zeroes"
    );
    moves_data(host);

    let flush = io(IoOpcode::FLUSH, host.nsid, 0, 1);
    assert_eq!(host.plain(&flush), Status::SUCCESS);

    let mut fua = host.command(IoOpcode::WRITE, 0, 64 << 10);
    fua.cdw12 = U32::new(fua.cdw12.get() | 1 << 30);
    assert_eq!(host.with_data(&fua, pattern(64 << 10, 77)), Status::SUCCESS);
    assert_eq!(host.read(0, 64 << 10), Ok(pattern(64 << 10, 77)));

    for len in [block, 8192, 512 << 10] {
        let data = pattern(len, 3);
        assert_eq!(host.write(1 << 20, data.clone()), Status::SUCCESS);
        let compare = host.command(IoOpcode::COMPARE, 1 << 20, len);
        assert_eq!(
            host.with_data(&compare, data.clone()),
            Status::SUCCESS,
            "{len}"
        );
        let mut other = data;
        other[len - 1] ^= 1;
        assert_eq!(
            host.with_data(&compare, other),
            Status::COMPARE_FAILURE.dnr(),
            "{len}"
        );
    }
    let verify = host.command(IoOpcode::VERIFY, 0, 16 << 20);
    assert_eq!(host.plain(&verify), Status::SUCCESS);

    for deallocate in [0, 1 << 25] {
        assert_eq!(host.write(1 << 20, vec![7; 1 << 20]), Status::SUCCESS);
        let mut zero = host.command(IoOpcode::WRITE_ZEROES, (1 << 20) + block as u64, 600 << 10);
        zero.cdw12 = U32::new(zero.cdw12.get() | deallocate);
        assert_eq!(host.plain(&zero), Status::SUCCESS);
        let mut expected = vec![7; 1 << 20];
        expected[block..][..600 << 10].fill(0);
        assert_eq!(host.read(1 << 20, 1 << 20), Ok(expected));
    }

    assert_eq!(host.write(0, vec![9; 64 << 10]), Status::SUCCESS);
    assert_eq!(
        host.deallocate(&[(0, 4096), (16384, 0), (32768, 16384)]),
        Status::SUCCESS
    );
    let mut expected = vec![9; 64 << 10];
    expected[..4096].fill(0);
    expected[32768..49152].fill(0);
    assert_eq!(host.read(0, 64 << 10), Ok(expected));
    assert_eq!(
        host.deallocate(&[(0, 4096), (SIZE, 4096)]),
        Status::LBA_OUT_OF_RANGE.dnr()
    );

    let mut hints = io(IoOpcode::DATASET_MANAGEMENT, host.nsid, 0, 1);
    hints.cdw11 = U32::new(0b11);
    assert_eq!(
        host.with_data(&hints, vec![0xff; 16]),
        Status::SUCCESS,
        "hints alone do nothing"
    );
}

fn on(spec: &BackingSpec, options: &ConnectOptions) -> (Rig, TestHost) {
    let mut rig = Rig::new(std::slice::from_ref(spec));
    let mut host = rig.connect_with(options);
    host.block_bytes = rig
        .table
        .get(Nsid(1))
        .unwrap()
        .geometry
        .block_bytes()
        .into();
    (rig, host)
}

#[test]
fn all_commands_on_memory() {
    let (_rig, mut host) = on(&memory(), &ConnectOptions::default());
    all_commands(&mut host);
}

#[test]
fn all_commands_on_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (_rig, mut host) = on(&file_in(dir.path()), &ConnectOptions::default());
    all_commands(&mut host);
}

#[test]
fn all_commands_with_digests_and_flow_control() {
    for (digests, flow_control) in [(true, false), (false, true), (true, true)] {
        let options = ConnectOptions {
            digests,
            flow_control,
            ..ConnectOptions::default()
        };
        let (_rig, mut host) = on(&memory(), &options);
        all_commands(&mut host);
    }
}

#[test]
fn small_windows_and_no_capsule_data() {
    let options = ConnectOptions {
        in_capsule_bytes: 0,
        r2t_window_bytes: 8192,
        max_h2c_data_bytes: 4096,
        digests: true,
        ..ConnectOptions::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let (_rig, mut host) = on(&file_in(dir.path()), &options);
    all_commands(&mut host);
}

#[test]
fn the_null_namespace_reads_zeroes_and_drops_writes() {
    for digests in [false, true] {
        let options = ConnectOptions {
            digests,
            ..ConnectOptions::default()
        };
        let (_rig, mut host) = on(
            &BackingSpec::Null {
                size_bytes: 1 << 40,
            },
            &options,
        );
        for len in [512, 4096, 64 << 10, 1 << 20] {
            assert_eq!(host.write(1 << 39, pattern(len, 1)), Status::SUCCESS);
            assert_eq!(host.read(1 << 39, len), Ok(vec![0; len]));
        }
        let compare = host.command(IoOpcode::COMPARE, 0, 4096);
        assert_eq!(host.with_data(&compare, vec![0; 4096]), Status::SUCCESS);
        assert_eq!(
            host.with_data(&compare, vec![1; 4096]),
            Status::COMPARE_FAILURE.dnr()
        );
        assert_eq!(
            host.plain(&host.command(IoOpcode::VERIFY, 0, 4096)),
            Status::SUCCESS
        );
        assert_eq!(
            host.plain(&host.command(IoOpcode::WRITE_ZEROES, 0, 4096)),
            Status::SUCCESS
        );
        assert_eq!(
            host.plain(&io(IoOpcode::FLUSH, host.nsid, 0, 1)),
            Status::SUCCESS
        );
    }
}

#[test]
fn deep_queues_of_mixed_sizes_keep_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    for (spec, digests) in [(memory(), true), (file_in(dir.path()), false)] {
        for depth in [2, 128, 1024] {
            let options = ConnectOptions {
                depth,
                digests,
                ..ConnectOptions::default()
            };
            let (_rig, mut host) = on(&spec, &options);
            let places = u64::from(depth) - 1;
            // Sizes around the capsule's limit and beyond, each in its own 64 KiB.
            let len = |place: u64| [4096, 16 << 10, 20 << 10, 64 << 10][(place % 4) as usize];
            let at = |place: u64| place * (64 << 10) % SIZE;
            let written: Vec<_> = (0..places)
                .map(|place| host.start_write(at(place), pattern(len(place), place as u8)))
                .collect();
            for slot in written {
                assert_eq!(host.wait(slot).status, Status::SUCCESS);
            }
            let read: Vec<_> = (0..places)
                .map(|place| host.start_read(at(place), len(place)))
                .collect();
            for (place, slot) in (0..places).zip(read) {
                let done = host.wait(slot);
                assert_eq!(done.status, Status::SUCCESS);
                assert!(!done.damaged, "place {place} of {places}");
                assert_eq!(
                    done.data,
                    pattern(len(place), place as u8),
                    "place {place} of {places}"
                );
            }
        }
    }
}

#[test]
fn namespaces_of_a_subsystem_are_apart() {
    let mut rig = Rig::new(&[memory(), memory()]);
    let mut host = rig.connect();
    assert_eq!(host.write(0, vec![1; 4096]), Status::SUCCESS);
    host.nsid = Nsid(2);
    assert_eq!(host.read(0, 4096), Ok(vec![0; 4096]));
    for nsid in [0, 3, 0xffff_fffe, 0xffff_ffff] {
        host.nsid = Nsid(nsid);
        assert_eq!(
            host.read(0, 4096),
            Err(Status::INVALID_NAMESPACE.dnr()),
            "{nsid}"
        );
        assert_eq!(
            host.write(0, vec![0; 4096]),
            Status::INVALID_NAMESPACE.dnr(),
            "{nsid}"
        );
        assert_eq!(
            host.write(0, vec![0; 256 << 10]),
            Status::INVALID_NAMESPACE.dnr(),
            "{nsid}"
        );
        let flush = match nsid {
            0xffff_ffff => Status::SUCCESS,
            _ => Status::INVALID_NAMESPACE.dnr(),
        };
        assert_eq!(host.plain(&io(IoOpcode::FLUSH, host.nsid, 0, 1)), flush);
    }
}

#[test]
fn one_flush_reaches_all_namespaces() {
    let dir = tempfile::tempdir().unwrap();
    let other = BackingSpec::File {
        path: dir.path().join("other"),
        size_bytes: Some(SIZE),
    };
    let mut rig = Rig::new(&[memory(), file_in(dir.path()), other]);
    let mut host = rig.connect();
    let flush = io(IoOpcode::FLUSH, Nsid::ALL, 0, 1);
    assert_eq!(host.plain(&flush), Status::SUCCESS);
    rig.pause(Scope::Namespace(SUBSYSTEM, Nsid(3)));
    let slot = host.submit(&flush, Transfer::None, Vec::new());
    host.flush();
    host.nsid = Nsid(2);
    host.read(0, 4096).unwrap();
    assert_eq!(host.completed(), 0, "it waits for the last namespace");
    rig.resume(Scope::Namespace(SUBSYSTEM, Nsid(3)));
    assert_eq!(host.wait(slot).status, Status::SUCCESS);
    rig.set_namespaces(nvmf_target::model::NamespaceTable::default());
    assert_eq!(host.plain(&flush), Status::SUCCESS, "nothing to flush");
}

#[test]
fn commands_that_break_a_rule_are_refused_and_the_queue_lives() {
    let (_rig, mut host) = on(&memory(), &ConnectOptions::default());
    let blocks = SIZE / 512;
    let to_host = Transfer::ToHost;
    let refused = |host: &mut TestHost, sqe: &Sqe, transfer: Transfer, status: Status| {
        let done = host.run(sqe, transfer, vec![0; transfer.bytes() as usize]);
        assert_eq!(done.status, status.dnr(), "{sqe:?}");
        assert_eq!(host.read(0, 512), Ok(vec![0; 512]), "the queue lives");
    };
    let nsid = Nsid(1);
    for (slba, nlb) in [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1)] {
        let sqe = io(IoOpcode::READ, nsid, slba, nlb);
        refused(
            &mut host,
            &sqe,
            to_host(nlb * 512),
            Status::LBA_OUT_OF_RANGE,
        );
        let sqe = io(IoOpcode::WRITE, nsid, slba, nlb);
        refused(
            &mut host,
            &sqe,
            Transfer::InCapsule(nlb * 512),
            Status::LBA_OUT_OF_RANGE,
        );
        refused(
            &mut host,
            &sqe,
            Transfer::FromHost(nlb * 512),
            Status::LBA_OUT_OF_RANGE,
        );
        let sqe = io(IoOpcode::WRITE_ZEROES, nsid, slba, nlb);
        refused(&mut host, &sqe, Transfer::None, Status::LBA_OUT_OF_RANGE);
    }
    for bytes in [0, 511, 513, 1024] {
        let transfer = if bytes == 0 {
            Transfer::None
        } else {
            to_host(bytes)
        };
        refused(
            &mut host,
            &io(IoOpcode::READ, nsid, 0, 1),
            transfer,
            Status::DATA_SGL_LENGTH_INVALID,
        );
        let transfer = if bytes == 0 {
            Transfer::None
        } else {
            Transfer::FromHost(bytes)
        };
        refused(
            &mut host,
            &io(IoOpcode::WRITE, nsid, 0, 1),
            transfer,
            Status::DATA_SGL_LENGTH_INVALID,
        );
    }
    let short_ranges = io(IoOpcode::DATASET_MANAGEMENT, nsid, 2, 1);
    refused(
        &mut host,
        &short_ranges,
        Transfer::InCapsule(32),
        Status::DATA_SGL_LENGTH_INVALID,
    );
    for opcode in [0x04, 0x0d, 0x11, 0x19, 0x80, 0xff] {
        refused(
            &mut host,
            &io(Opcode(opcode), nsid, 0, 1),
            Transfer::None,
            Status::INVALID_OPCODE,
        );
    }
    for fuse in [1, 2, 3] {
        let mut sqe = io(IoOpcode::READ, nsid, 0, 1);
        sqe.flags |= fuse;
        refused(&mut host, &sqe, to_host(512), Status::INVALID_FIELD);
    }
    for (fctype, status) in [
        (FabricsType::CONNECT, Status::COMMAND_SEQUENCE_ERROR),
        (FabricsType::PROPERTY_SET, Status::INVALID_OPCODE),
        (FabricsType::PROPERTY_GET, Status::INVALID_OPCODE),
        (FabricsType::AUTHENTICATION_SEND, Status::INVALID_OPCODE),
    ] {
        let mut sqe = Sqe::new(Opcode::FABRICS);
        sqe.nsid = U32::new(fctype.0.into());
        let transfer = if fctype == FabricsType::CONNECT {
            Transfer::InCapsule(1024)
        } else {
            Transfer::None
        };
        refused(&mut host, &sqe, transfer, status);
    }
}

#[test]
fn a_read_only_namespace_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk"), vec![5; 1 << 20]).unwrap();
    let spec = BackingSpec::File {
        path: dir.path().join("disk"),
        size_bytes: None,
    };
    let options = BackingOptions {
        read_only: true,
        block_bytes: None,
    };
    let backing = nvmf_target::backend::Backing::open(&spec, &options).unwrap();
    let mut rig = Rig::new(&[]);
    rig.set_namespaces(nvmf_target::model::NamespaceTable::new([namespace_on(
        1,
        backing.into(),
    )]));
    let mut host = rig.connect();
    assert_eq!(host.read(0, 4096), Ok(vec![5; 4096]));
    let refused = Status::NAMESPACE_WRITE_PROTECTED.dnr();
    assert_eq!(host.write(0, vec![1; 4096]), refused);
    assert_eq!(host.write(0, vec![1; 64 << 10]), refused);
    assert_eq!(
        host.plain(&host.command(IoOpcode::WRITE_ZEROES, 0, 4096)),
        refused
    );
    assert_eq!(host.deallocate(&[(0, 4096)]), refused);
    assert_eq!(host.read(0, 4096), Ok(vec![5; 4096]));
}

#[test]
fn counters_tell_what_was_done() {
    let mut rig = Rig::new(&[memory()]);
    let mut host = rig.connect();
    assert!(rig.controllers[0].take_traffic() || rig.controllers[0].counters.totals().reads == 0);
    assert_eq!(host.write(0, vec![1; 64 << 10]), Status::SUCCESS);
    for _ in 0..3 {
        host.read(0, 4096).unwrap();
    }
    assert!(host.read(SIZE, 4096).is_err());
    assert_eq!(
        host.plain(&io(IoOpcode::FLUSH, Nsid(1), 0, 1)),
        Status::SUCCESS
    );
    assert!(rig.controllers[0].take_traffic());
    // The shard counts at the end of the turn in which it answers; this answer comes after that turn.
    rig.stats();
    for totals in [
        rig.table.get(Nsid(1)).unwrap().counters.totals(),
        rig.controllers[0].counters.totals(),
    ] {
        assert_eq!((totals.reads, totals.writes, totals.flushes), (3, 1, 1));
        assert_eq!(
            (totals.read_bytes, totals.written_bytes),
            (3 * 4096, 64 << 10)
        );
        assert_eq!((totals.errors, totals.media_errors), (1, 0));
        assert_eq!(totals.read_latency.count(), 3);
        assert!(totals.write_latency.quantile_nanos(1.0).unwrap() > 0);
    }
}
