//! Who may use a volume, changed while hosts are connected.

use std::sync::mpsc::channel;
use std::time::Duration;

use nvme_proto::wire::Status;
use nvmf_rpc::types::RemoveHost;

use super::*;
use crate::session::HOST_2;

fn remove(name: &str, host: &str) -> RemoveHost {
    RemoveHost {
        pool: POOL.into(),
        name: name.into(),
        host: host.into(),
    }
}

#[test]
fn only_hosts_that_were_granted_a_volume_connect_to_it() {
    let Some(rig) = Rig::xfs("grants", "") else {
        return;
    };
    let nobody = rig.ask(CreateVolume {
        size_bytes: Some(MIB),
        ..volume("v")
    });
    let connect = |host: &str, id: u8| {
        let options = Options::new(&nobody.nqn).host(host, id);
        Session::connect(rig.target.address(), options)
    };
    let (status, _) = connect(HOST, 1).err().expect("nobody may connect");
    assert!(status.is(Status::CONNECT_INVALID_HOST), "{status}");
    assert_eq!(rig.grant("v", HOST).hosts, [HOST]);
    assert_eq!(rig.grant("v", HOST).hosts, [HOST], "again is no error");
    let (mut session, mut queue) = rig.connect(&nobody);
    assert!(connect(HOST_2, 2).is_err());
    rig.grant("v", HOST_2);
    let Ok(mut second) = connect(HOST_2, 2) else {
        panic!("granted, and refused");
    };
    let listed = rig.ask(remove("v", HOST_2));
    assert_eq!(
        (listed.hosts.as_slice(), listed.connected_hosts.as_slice()),
        ([HOST.to_owned()].as_slice(), [HOST.to_owned()].as_slice())
    );
    second.admin.wait_closed();
    assert!(queue.read(0, 4096).is_ok(), "the other host goes on");
    assert_eq!(session.namespaces(), [1]);
    assert!(
        rig.ask(remove("v", HOST_2)).hosts == [HOST],
        "again is no error"
    );
    assert!(connect(HOST_2, 2).is_err());
}

#[test]
fn grants_wait_for_snapshots_of_volumes_in_the_same_subsystem() {
    let Some(rig) = Rig::xfs("grants and snapshots", "") else {
        return;
    };
    for name in ["one", "two"] {
        rig.ask(CreateVolume {
            size_bytes: Some(MIB),
            subsystem: Some("nqn.2025-01.org.example:both".into()),
            ..volume(name)
        });
    }
    let client = rig.target.rpc();
    std::thread::scope(|threads| {
        let snapshots = threads.spawn(move || {
            for number in 0..40 {
                let params = CreateSnapshot {
                    pool: POOL.into(),
                    volume: "two".into(),
                    name: format!("s{number}"),
                    ..CreateSnapshot::default()
                };
                client.request(&params).unwrap();
            }
        });
        while !snapshots.is_finished() {
            assert_eq!(rig.grant("one", HOST).hosts, [HOST]);
            assert!(rig.ask(remove("one", HOST)).hosts.is_empty());
        }
    });
}

#[test]
fn a_removed_host_is_fenced_when_the_call_returns() {
    let Some(mut rig) = Rig::xfs("fencing", "") else {
        return;
    };
    let made = rig.volume("v", 4 * MIB);
    let other = rig.volume("other", 4 * MIB);
    let (session, mut queue) = rig.connect(&made);
    assert_eq!(queue.write(0, vec![1; 4096]), Status::SUCCESS);
    // A write that the kernel has and cannot finish.
    rig.mount.freeze();
    queue.start_write(MIB, vec![2; 4096]);
    queue.flush();
    let (sender, fenced) = channel();
    let client = rig.target.rpc();
    let call = std::thread::spawn(move || {
        let params = serde_json::to_value(remove("v", HOST)).unwrap();
        sender.send(client.call(RemoveHost::NAME, params)).unwrap();
    });
    // The record cannot be written either while the file system is frozen, so this shows that nothing is said too early.
    let early = fenced.recv_timeout(Duration::from_millis(300));
    assert!(
        early.is_err(),
        "returned while a write was running: {early:?}"
    );
    rig.mount.thaw();
    fenced.recv().unwrap().unwrap();
    call.join().unwrap();
    // The write has landed, and nothing of that host can come after it.
    let path = rig.mount.path("volumes/v.raw");
    let before = std::fs::read(&path).unwrap();
    assert_eq!(before[MIB as usize], 2);
    queue.wait_closed();
    drop(session);
    let refused = Session::connect(rig.target.address(), Options::new(&made.nqn));
    assert!(refused.is_err());
    let (_session, mut untouched) = rig.connect(&other);
    assert_eq!(untouched.write(0, vec![1; 4096]), Status::SUCCESS);
}

#[test]
fn nothing_of_a_removed_host_lands_after_the_call() {
    let Some(mut rig) = Rig::xfs("fencing under load", "") else {
        return;
    };
    let made = rig.volume("v", 64 * MIB);
    let path = rig.mount.path("volumes/v.raw");
    for round in 1..=5u8 {
        rig.grant("v", HOST);
        let (_session, mut queue) = rig.connect(&made);
        // In flight when the host is removed: at the storage, in buffers, waiting for data, in the socket.
        for index in 0..24 {
            queue.start_write(index * MIB, vec![round; MIB as usize]);
        }
        queue.flush();
        rig.ask(remove("v", HOST));
        let landed = std::fs::read(&path).unwrap();
        queue.wait_closed();
        // Restarting on the same file waits for whatever the kernel still had.
        rig.kill_and_restart();
        assert!(
            landed == std::fs::read(&path).unwrap(),
            "something landed later"
        );
    }
}
