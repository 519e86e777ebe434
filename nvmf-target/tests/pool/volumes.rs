//! Volumes from their making to their end, what is refused, and what a restart keeps.

use nvme_proto::wire::Status;
use nvmf_rpc::types::{
    CreateSnapshots, CreateVolume, DeleteSnapshot, DeleteVolume, GetPools, GetSnapshots,
    GetVolumes, Provisioning, ResizeVolume, SnapshotSpec, Source,
};
use serde_json::json;

use super::*;
use crate::session::HOST_2;

fn delete(name: &str, force: bool) -> DeleteVolume {
    DeleteVolume {
        pool: POOL.into(),
        name: name.into(),
        force,
    }
}

fn resize(name: &str, size_bytes: u64) -> ResizeVolume {
    ResizeVolume {
        pool: POOL.into(),
        name: name.into(),
        size_bytes,
    }
}

fn text<M: Method>(params: M) -> String {
    json!({"jsonrpc": "2.0", "method": M::NAME, "id": 1, "params": params}).to_string()
}

/// Whether a thread of the target is inside the kernel and cannot be woken.
fn is_stuck(target: &Target) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", target.pid())).unwrap();
    let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")));
    // A thread that ended meanwhile is not.
    stats.flatten().any(|stat| stat.contains(") D "))
}

/// Whoever asks for a volume by its name is not told that there is none while it is being made, by somebody who went away: it would be
/// made once more somewhere else.
#[test]
fn a_volume_in_the_making_is_waited_for() {
    let Some(mut rig) = Rig::xfs("volume in the making", "") else {
        return;
    };
    rig.mount.freeze();
    let mut maker = rig.target.raw();
    maker.send(text(CreateVolume {
        size_bytes: Some(4 * MIB),
        ..volume("v")
    }));
    let end = std::time::Instant::now() + crate::common::host::PATIENCE;
    while !is_stuck(&rig.target) {
        assert!(std::time::Instant::now() < end, "nothing is being made");
        std::thread::yield_now();
    }
    drop(maker);
    let mut asker = rig.target.raw();
    asker.send(text(GetVolumes {
        pool: None,
        name: Some("v".into()),
    }));
    // Asked later and answered at once, so the first question is being answered, too.
    assert_eq!(rig.ask(GetVolumes::default()), []);
    let other = GetVolumes {
        pool: Some(POOL.into()),
        name: Some("other".into()),
    };
    assert_eq!(rig.ask(other), []);
    rig.mount.thaw();
    let answer = asker.next().unwrap();
    assert_eq!(answer["result"][0]["name"], "v", "{answer}");
}

#[test]
fn a_volume_is_served_grown_and_removed_live() {
    let Some(rig) = Rig::xfs("volumes live", "") else {
        return;
    };
    let made = rig.volume("v", 8 * MIB);
    assert_eq!(
        (made.size_bytes, made.block_size, made.nsid),
        (8 * MIB, 4096, 1)
    );
    assert_eq!(made.nqn, "nqn.2025-01.org.example:p:v");
    assert_eq!(made.uuid, made.id);
    assert_eq!(made.nguid, made.id.replace('-', ""));
    assert_eq!(
        made.listeners[0].trsvcid,
        rig.target.address().port().to_string()
    );
    let (mut session, mut queue) = rig.connect(&made);
    let descriptors = session.descriptors(1);
    let uuid = uuid::Uuid::parse_str(&made.uuid).unwrap();
    assert!(
        descriptors
            .windows(16)
            .any(|bytes| bytes == uuid.as_bytes())
    );
    assert_eq!(queue.write(4096, vec![7; 8192]), Status::SUCCESS);
    assert_eq!(queue.read(0, 4096).unwrap(), vec![0; 4096]);

    let past_the_end = queue.read(8 * MIB, 4096).unwrap_err();
    assert!(past_the_end.is(Status::LBA_OUT_OF_RANGE), "{past_the_end}");
    session.request_event();
    assert_eq!(rig.ask(resize("v", 12 * MIB)).size_bytes, 12 * MIB);
    let (_, event) = session.admin.wait_any();
    assert!(event.status.is_success(), "the host is told");
    assert_eq!(session.blocks(1), 12 * MIB / 4096);
    assert_eq!(queue.write(11 * MIB, vec![3; 4096]), Status::SUCCESS);
    assert_eq!(rig.ask(resize("v", 12 * MIB)).size_bytes, 12 * MIB);
    assert_eq!(rig.refused(resize("v", MIB)), -22);

    let listed = rig.ask(GetVolumes::default());
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].connected_hosts, [HOST]);
    assert!(
        listed[0].allocated_bytes >= 2 * MIB,
        "two chunks of the extent size"
    );
    assert_eq!(rig.refused(delete("v", false)), -16);
    assert!(
        queue.read(0, 4096).is_ok(),
        "a refused removal touches nothing"
    );
    assert!(rig.ask(delete("v", true)));
    queue.wait_closed();
    assert!(rig.ask(GetVolumes::default()).is_empty());
    let refused = Session::connect(rig.target.address(), Options::new(&made.nqn));
    assert!(refused.is_err());
    assert_eq!(rig.refused(delete("v", true)), -2);
    let pools = rig.ask(GetPools::default());
    assert_eq!((pools[0].volumes, pools[0].provisioned_bytes), (0, 0));
    assert_eq!((pools[0].fs_type.as_str(), pools[0].reflink), ("xfs", true));
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let Some(mut rig) = Rig::xfs("pool killed", "") else {
        return;
    };
    let made = rig.volume("v", 8 * MIB);
    let shared = rig.ask(CreateVolume {
        size_bytes: Some(MIB),
        subsystem: Some("nqn.2025-01.org.example:both".into()),
        ..volume("s")
    });
    rig.grant("v", HOST_2);
    let (session, mut queue) = rig.connect(&made);
    assert_eq!(queue.write(0, vec![9; 65536]), Status::SUCCESS);
    let cloned = rig.make_clone("c", Source::Volume("v".into()));
    rig.kill_and_restart();
    drop((session, queue));
    let now = rig.ask(GetVolumes::default());
    let names: Vec<_> = now.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["c", "s", "v"]);
    let v = &now[2];
    assert_eq!(
        (&v.id, &v.nguid, &v.created),
        (&made.id, &made.nguid, &made.created)
    );
    assert_eq!(v.hosts, [HOST, HOST_2]);
    assert_eq!((&now[1].nqn, &now[1].id), (&shared.nqn, &shared.id));
    assert_eq!(now[0].source, Some(Source::Volume("v".into())));
    for name in [v, &now[0]] {
        let (_session, mut queue) = rig.connect(name);
        assert_eq!(queue.read(0, 65536).unwrap(), vec![9; 65536]);
    }
    assert_eq!(cloned.id, now[0].id);
}

#[test]
fn volumes_may_share_a_subsystem() {
    let Some(rig) = Rig::xfs("shared subsystems", "") else {
        return;
    };
    let nqn = "nqn.2025-01.org.example:both";
    let make = |name: &str, hosts: &[&str]| CreateVolume {
        size_bytes: Some(MIB),
        subsystem: Some(nqn.into()),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..volume(name)
    };
    let one = rig.ask(make("one", &[HOST]));
    let (mut session, mut first) = rig.connect(&one);
    let two = rig.ask(make("two", &[]));
    assert_eq!((two.nqn.as_str(), one.nsid, two.nsid), (nqn, 1, 2));
    assert_eq!(two.hosts, [HOST], "hosts are common");
    assert_eq!(rig.refused(make("three", &[HOST_2])), -22);
    assert_eq!(session.namespaces(), [1, 2]);
    rig.grant("two", HOST_2);
    let all = rig.ask(GetVolumes::default());
    assert!(all.iter().all(|volume| volume.hosts == [HOST, HOST_2]));
    assert!(rig.ask(delete("two", true)));
    assert_eq!(session.namespaces(), [1]);
    assert!(first.read(0, 4096).is_ok(), "the other one's host goes on");
    let third = rig.ask(make("three", &[]));
    assert_eq!(third.nsid, 2);
    let own = rig.volume("own", MIB);
    let taken = CreateVolume {
        subsystem: Some(own.nqn),
        ..make("four", &[])
    };
    assert_eq!(
        rig.refused(taken),
        -1,
        "a volume's own subsystem is not shared"
    );
}

#[test]
fn bad_input_is_refused_with_the_code_of_the_contract() {
    let Some(rig) = Rig::xfs("pool's refusals", "") else {
        return;
    };
    let made = rig.volume("v", MIB);
    let create = |name: &str| CreateVolume {
        size_bytes: Some(MIB),
        ..volume(name)
    };
    // An existing name comes with what exists.
    let again = serde_json::to_value(create("v")).unwrap();
    let refusal = rig.target.refusal("pool_create_volume", again);
    assert_eq!(
        (refusal.code, &refusal.data.unwrap()["id"]),
        (-17, &json!(made.id))
    );
    let elsewhere = CreateVolume {
        pool: "other".into(),
        ..create("w")
    };
    assert_eq!(rig.refused(elsewhere), -2);
    assert_eq!(rig.refused(create("../w")), -22);
    assert_eq!(rig.refused(create("")), -22);
    assert_eq!(rig.refused(volume("w")), -22, "no size");
    let odd_blocks = CreateVolume {
        block_size: Some(1000),
        ..create("w")
    };
    assert_eq!(rig.refused(odd_blocks), -22);
    let bad_host = CreateVolume {
        hosts: vec!["h".into()],
        ..create("w")
    };
    assert_eq!(rig.refused(bad_host), -22);
    let bad_subsystem = CreateVolume {
        subsystem: Some("x".into()),
        ..create("w")
    };
    assert_eq!(rig.refused(bad_subsystem), -22);
    let too_much = CreateVolume {
        size_bytes: Some(1 << 40),
        ..create("w")
    };
    assert_eq!(rig.refused(too_much), -28);
    let thick_clone = CreateVolume {
        provisioning: Provisioning::Thick,
        source: Some(Source::Volume("v".into())),
        ..volume("w")
    };
    assert_eq!(rig.refused(thick_clone), -22);
    let of_nothing = CreateVolume {
        source: Some(Source::Snapshot("none".into())),
        ..volume("w")
    };
    assert_eq!(rig.refused(of_nothing), -2);
    assert_eq!(rig.refused(resize("w", MIB)), -2);
    assert_eq!(rig.refused(delete("w", false)), -2);
    let none = |name: &str| DeleteSnapshot {
        pool: POOL.into(),
        name: name.into(),
    };
    assert_eq!(rig.refused(none("s")), -2);
    let group = |members: &[(&str, &str)]| CreateSnapshots {
        pool: POOL.into(),
        snapshots: members
            .iter()
            .map(|(volume, name)| SnapshotSpec {
                volume: (*volume).into(),
                name: (*name).into(),
                ..SnapshotSpec::default()
            })
            .collect(),
    };
    assert_eq!(rig.refused(group(&[])), -22);
    assert_eq!(rig.refused(group(&[("v", "s"), ("w", "t")])), -2);
    assert_eq!(rig.refused(group(&[("v", "s"), ("v", "t")])), -22);
    assert!(rig.ask(GetSnapshots::default()).is_empty(), "all or none");
    let snapshot = rig.snapshot("v", "s");
    let again = json!({"pool": POOL, "volume": "v", "name": "s"});
    let refusal = rig.target.refusal("pool_create_snapshot", again);
    assert_eq!(
        (refusal.code, &refusal.data.unwrap()["id"]),
        (-17, &json!(snapshot.id))
    );
    assert!(rig.ask(none("s")));
    assert_eq!(
        rig.refused(GetPools {
            name: Some("x".into())
        }),
        -2
    );
    let names = |name: &str| GetVolumes {
        name: Some(name.into()),
        ..GetVolumes::default()
    };
    assert_eq!(rig.ask(names("v")).len(), 1);
    assert!(rig.ask(names("w")).is_empty());
    // What a pool serves is changed by pool methods only.
    let foreign = json!({"nqn": made.nqn, "host": HOST_2});
    let refusal = rig.target.rpc().call("nvmf_subsystem_add_host", foreign);
    assert!(refusal.is_err());
}

#[test]
fn read_only_volumes_refuse_writes() {
    let Some(rig) = Rig::xfs("read-only volumes", "") else {
        return;
    };
    let made = rig.volume("v", MIB);
    let (session, mut queue) = rig.connect(&made);
    assert_eq!(queue.write(0, vec![1; 4096]), Status::SUCCESS);
    drop((session, queue));
    let frozen = rig.ask(CreateVolume {
        source: Some(Source::Volume("v".into())),
        hosts: vec![HOST.into()],
        read_only: true,
        ..volume("r")
    });
    let (_session, mut queue) = rig.connect(&frozen);
    assert_eq!(queue.read(0, 4096).unwrap(), vec![1; 4096]);
    let status = queue.write(0, vec![2; 4096]);
    assert!(status.is(Status::NAMESPACE_WRITE_PROTECTED), "{status}");
}

#[test]
fn without_reflinks_snapshots_are_refused_and_volumes_work() {
    let Some(mount) = Mount::ext4("a served pool on ext4", 64 * MIB) else {
        return;
    };
    let rig = Rig::on(mount, "");
    let made = rig.volume("v", MIB);
    let (_session, mut queue) = rig.connect(&made);
    assert_eq!(queue.write(0, vec![1; 4096]), Status::SUCCESS);
    let snapshot = json!({"pool": POOL, "volume": "v", "name": "s"});
    let refusal = rig.target.refusal("pool_create_snapshot", snapshot);
    assert_eq!(refusal.code, -95);
    assert!(refusal.message.contains("XFS"), "{}", refusal.message);
    let clone = CreateVolume {
        source: Some(Source::Volume("v".into())),
        ..volume("c")
    };
    assert_eq!(rig.refused(clone), -95);
    assert!(!rig.ask(GetPools::default())[0].reflink);
}
