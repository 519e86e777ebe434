//! A pool that runs full: writers hear of it, nothing else breaks, and it recovers.

use nvme_proto::wire::{IoOpcode, Status};
use nvmf_rpc::types::{DeleteVolume, GetPools};

use super::*;

const MORE: &str = "overcommit = \"allow\"\nextent-size = \"64K\"";

#[test]
fn writers_of_a_full_pool_get_capacity_exceeded_and_go_on_when_there_is_room() {
    if let Some(rig) = Rig::xfs("full pool", MORE) {
        fill_and_free(&rig, true);
    }
}

#[test]
fn a_full_pool_on_btrfs_recovers_too() {
    // With copy-on-write even an overwrite needs new blocks; without it, it is as on XFS.
    for in_place in [true, false] {
        let more = format!("{MORE}\nnocow = {in_place}");
        if let Some(mount) = Mount::btrfs("full pool on btrfs", 512 * MIB) {
            fill_and_free(&Rig::on(mount, &more), in_place);
        }
    }
}

/// `in_place`: blocks that are there are overwritten where they are.
fn fill_and_free(rig: &Rig, in_place: bool) {
    let victim = rig.volume("victim", 2048 * MIB);
    let calm = rig.volume("calm", 16 * MIB);
    let (_calm_session, mut calm_queue) = rig.connect(&calm);
    assert_eq!(calm_queue.write(0, vec![5; 65536]), Status::SUCCESS);
    let hog = rig.volume("hog", 2048 * MIB);
    let (_session, mut queue) = rig.connect(&hog);
    let (victim_session, mut victim_queue) = rig.connect(&victim);
    let mut offset = 0;
    let chunk = 1 << 20;
    let status = loop {
        let status = queue.write(offset, vec![1; chunk]);
        if status != Status::SUCCESS {
            break status;
        }
        offset += chunk as u64;
        assert!(offset < 2048 * MIB, "it never was full");
    };
    assert_eq!(status, Status::CAPACITY_EXCEEDED.dnr());
    // To the last block, so that no allocation is left for anybody.
    while queue.write(offset, vec![1; 65536]) == Status::SUCCESS {
        offset += 65536;
    }
    let refused = victim_queue.write(512 * MIB, vec![2; 65536]);
    assert_eq!(refused, Status::CAPACITY_EXCEEDED.dnr());
    let pool = rig.ask(GetPools::default()).remove(0);
    assert!(pool.free_bytes < 8 * MIB, "{pool:?}");

    // What has its blocks already works as before, on every queue, and so do reads and flushes.
    let byte = if in_place { 6 } else { 5 };
    if in_place {
        assert_eq!(calm_queue.write(0, vec![byte; 65536]), Status::SUCCESS);
    }
    assert_eq!(calm_queue.read(0, 65536).unwrap(), vec![byte; 65536]);
    assert_eq!(queue.read(0, 65536).unwrap(), vec![1; 65536]);
    let flush = queue.command(IoOpcode::FLUSH, 0, 4096);
    assert_eq!(queue.plain(&flush), Status::SUCCESS);
    let snapshot = serde_json::json!({"pool": POOL, "volume": "calm", "name": "s"});
    match rig.target.rpc().call("pool_create_snapshot", snapshot) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.code(), Some(-28), "{error}"),
    }
    assert!(victim_queue.read(0, 4096).is_ok(), "the connection lives");
    drop((queue, _session));

    rig.ask(DeleteVolume {
        pool: POOL.into(),
        name: "hog".into(),
        force: true,
    });
    assert_eq!(
        victim_queue.write(512 * MIB, vec![2; 65536]),
        Status::SUCCESS
    );
    assert_eq!(victim_queue.read(512 * MIB, 65536).unwrap(), vec![2; 65536]);
    drop(victim_session);
    let pool = rig.ask(GetPools::default()).remove(0);
    assert!(pool.free_bytes > 256 * MIB, "{pool:?}");
}
