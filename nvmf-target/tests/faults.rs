//! What goes wrong on the storage node and on the way: the right status, and the queue lives.

mod common;

use std::io::Write;
use std::os::unix::fs::FileExt;

use common::host::io;
use common::*;
use nvme_proto::queue::Transfer;
use nvme_proto::wire::{IoOpcode, Nsid, Status};
use nvmf_target::backend::BackingSpec;
use zerocopy::little_endian::U32;

const SIZE: u64 = 16 << 20;

fn file(path: std::path::PathBuf) -> BackingSpec {
    BackingSpec::File {
        path,
        size_bytes: Some(SIZE),
    }
}

fn connect(rig: &mut Rig, options: &ConnectOptions) -> TestHost {
    let mut host = rig.connect_with(options);
    if let Some(namespace) = rig.table.get(Nsid(1)) {
        host.block_bytes = namespace.geometry.block_bytes().into();
    }
    host
}

/// Writes until one fails; then what was written is still there and reads go on.
fn fills_up(mount: &Mount) {
    let mut rig = Rig::new(&[file(mount.path("disk"))]);
    let mut host = connect(&mut rig, &ConnectOptions::default());
    let step = 64 << 10;
    let full = (0..SIZE / step).find_map(|at| {
        let status = host.write(at * step, vec![at as u8 | 1; step as usize]);
        (!status.is_success()).then_some((at, status))
    });
    let (at, status) = full.expect("the file system is smaller than the namespace");
    assert_eq!(status, Status::CAPACITY_EXCEEDED.dnr());
    assert!(at > 4, "{at}");
    for at in 0..at {
        assert_eq!(
            host.read(at * step, step as usize),
            Ok(vec![at as u8 | 1; step as usize]),
            "{at}"
        );
    }
    // Space that is given back can be used again.
    assert_eq!(host.deallocate(&[(0, 2 * step)]), Status::SUCCESS);
    assert_eq!(
        host.write(at * step, vec![0xaa; step as usize]),
        Status::SUCCESS
    );
    assert_eq!(host.read(0, 4096), Ok(vec![0; 4096]));
}

#[test]
fn a_full_file_system_in_memory() {
    if let Some(mount) = Mount::tmpfs("full tmpfs", 2 << 20) {
        fills_up(&mount);
    }
}

#[test]
fn a_full_ext4() {
    if let Some(mount) = Mount::ext4("full ext4", 8 << 20) {
        fills_up(&mount);
    }
}

#[test]
fn a_file_that_is_truncated_and_deleted_under_its_host() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut rig = Rig::new(&[file(path.clone())]);
    let mut host = connect(&mut rig, &ConnectOptions::default());
    assert_eq!(host.write(8 << 20, vec![1; 64 << 10]), Status::SUCCESS);
    let outside = std::fs::File::options().write(true).open(&path).unwrap();
    outside.set_len(8 << 20).unwrap();
    assert_eq!(host.write(8 << 20, vec![2; 4096]), Status::WRITE_FAULT);
    assert_eq!(
        outside.metadata().unwrap().len(),
        8 << 20,
        "not even the first write extends it"
    );
    assert_eq!(
        host.read(8 << 20, 4096),
        Err(Status::UNRECOVERED_READ_ERROR)
    );
    assert_eq!(host.write(8 << 20, vec![2; 128 << 10]), Status::WRITE_FAULT);
    assert_eq!(
        host.write((8 << 20) - 4096, vec![2; 8192]),
        Status::WRITE_FAULT
    );
    let compare = host.command(IoOpcode::COMPARE, 8 << 20, 4096);
    assert_eq!(
        host.with_data(&compare, vec![1; 4096]),
        Status::UNRECOVERED_READ_ERROR
    );
    assert_eq!(host.write(0, vec![3; 4096]), Status::SUCCESS);
    let namespace = rig.table.get(Nsid(1)).unwrap().clone();
    rig.stats();
    assert_eq!(namespace.counters.totals().media_errors, 5);

    std::fs::remove_file(&path).unwrap();
    outside.set_len(SIZE).unwrap();
    namespace.backing.inspect();
    assert_eq!(host.write(8 << 20, vec![4; 64 << 10]), Status::SUCCESS);
    assert_eq!(host.read(8 << 20, 64 << 10), Ok(vec![4; 64 << 10]));
}

/// Damages the byte at `at` of what a write sends, from the end.
fn damaged(host: &mut TestHost, len: usize, in_capsule: bool, from_end: usize) -> Status {
    let sqe = host.command(IoOpcode::WRITE, 0, len);
    let transfer = match in_capsule {
        true => Transfer::InCapsule(len as u32),
        false => Transfer::FromHost(len as u32),
    };
    let slot = host.submit(&sqe, transfer, vec![9; len]);
    if !in_capsule {
        host.flush();
        assert!(host.receive(), "the R2T");
    }
    let mut bytes = host.outgoing();
    let at = bytes.len() - from_end;
    bytes[at] ^= 1;
    host.stream.write_all(&bytes).unwrap();
    host.wait(slot).status
}

#[test]
fn damaged_data_fail_their_command_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for spec in [
        file(dir.path().join("disk")),
        BackingSpec::Null { size_bytes: SIZE },
    ] {
        let mut rig = Rig::new(&[spec]);
        let options = ConnectOptions {
            digests: true,
            ..ConnectOptions::default()
        };
        let mut host = connect(&mut rig, &options);
        // In the capsule, by R2T through receive buffers, by R2T straight into place; data and digest.
        for (len, in_capsule) in [
            (4096, true),
            (16 << 10, true),
            (20 << 10, false),
            (128 << 10, false),
        ] {
            for from_end in [1, 4, 5, len / 2, len] {
                let status = damaged(&mut host, len, in_capsule, from_end);
                assert_eq!(
                    status,
                    Status::TRANSIENT_TRANSPORT_ERROR,
                    "{len} {from_end}"
                );
            }
            assert_eq!(host.read(0, 4096), Ok(vec![0; 4096]), "nothing was written");
        }
    }
}

#[test]
fn many_compares_share_one_buffer() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&[file(dir.path().join("disk"))]);
    let mut hosts = [
        rig.connect(),
        rig.connect_with(&ConnectOptions {
            qid: 2,
            ..ConnectOptions::default()
        }),
    ];
    for host in &mut hosts {
        host.block_bytes = rig
            .table
            .get(Nsid(1))
            .unwrap()
            .geometry
            .block_bytes()
            .into();
    }
    assert_eq!(hosts[0].write(0, vec![5; 1 << 20]), Status::SUCCESS);
    let mut open = Vec::new();
    for (index, host) in hosts.iter_mut().enumerate() {
        for n in 0..16u8 {
            let sqe = host.command(IoOpcode::COMPARE, 0, 600 << 10);
            let mut data = vec![5; 600 << 10];
            if n % 4 == 3 {
                data[599 << 10] = 6;
            }
            let slot = host.submit(&sqe, Transfer::FromHost(600 << 10), data);
            open.push((index, slot, n % 4 == 3));
        }
    }
    for (index, slot, differs) in open {
        let expected = if differs {
            Status::COMPARE_FAILURE.dnr()
        } else {
            Status::SUCCESS
        };
        assert_eq!(hosts[index].wait(slot).status, expected);
    }
}

/// What is at `offset_bytes` of the file after a power cut now: the file system as its device has it, mounted anew.
fn after_power_cut(mount: &Mount, offset_bytes: u64) -> u8 {
    let copy = mount.copy();
    let mut byte = [0];
    let file = std::fs::File::open(copy.path("disk")).unwrap();
    file.read_exact_at(&mut byte, offset_bytes).unwrap();
    byte[0]
}

#[test]
fn flush_and_fua_survive_a_power_cut() {
    let Some(mount) = Mount::ext4("power cut", 32 << 20) else {
        return;
    };
    let mut rig = Rig::new(&[file(mount.path("disk"))]);
    let mut host = connect(&mut rig, &ConnectOptions::default());
    let flush = io(IoOpcode::FLUSH, Nsid(1), 0, 1);
    assert_eq!(host.plain(&flush), Status::SUCCESS);

    // Blocks of a sparse file: their place in the file is known on disk only after a commit of the journal. That the cut
    // loses one without it shows that this test would see a Flush or FUA that does nothing. Something else on the machine may
    // commit at any time, so that has several tries.
    let lost = (0..8).any(|at| {
        assert_eq!(host.write(at << 20, vec![1; 4096]), Status::SUCCESS);
        after_power_cut(&mount, at << 20) == 0
    });
    assert!(
        lost,
        "without Flush or FUA a write should not have survived"
    );

    assert_eq!(host.plain(&flush), Status::SUCCESS);
    assert_eq!(after_power_cut(&mount, 0), 1, "Flush");

    let mut fua = host.command(IoOpcode::WRITE, 10 << 20, 4096);
    fua.cdw12 = U32::new(fua.cdw12.get() | 1 << 30);
    assert_eq!(host.with_data(&fua, vec![2; 4096]), Status::SUCCESS);
    assert_eq!(after_power_cut(&mount, 10 << 20), 2, "FUA");

    let mut zero = host.command(IoOpcode::WRITE_ZEROES, 10 << 20, 4096);
    for deallocate in [0, 1 << 25] {
        assert_eq!(host.with_data(&fua, vec![3; 4096]), Status::SUCCESS);
        zero.cdw12 = U32::new(fua.cdw12.get() | deallocate);
        assert_eq!(host.plain(&zero), Status::SUCCESS);
        assert_eq!(
            after_power_cut(&mount, 10 << 20),
            0,
            "Write Zeroes with FUA"
        );
    }
}
