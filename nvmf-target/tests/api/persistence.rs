//! What the API made outlives the target, however that ends.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::bad_input::everything;
use super::client;
use crate::process::{NQN, Target};
use crate::session::{Options, Session};

/// Fills a target with one of everything that is kept.
fn fill(target: &Target) {
    let path = target.file("disk");
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    target.call(
        "nvmf_create_transport",
        json!({"trtype": "TCP", "max_io_qpairs_per_ctrlr": 3}),
    );
    target.call(
        "bdev_malloc_create",
        json!({"name": "mem", "num_blocks": 256, "block_size": 4096}),
    );
    target.call("bdev_aio_create", json!({"name": "disk", "filename": path}));
    target.call(
        "bdev_null_create",
        json!({"name": "nil", "num_blocks": 2048, "block_size": 512}),
    );
    target.call("bdev_null_resize", json!({"name": "nil", "new_size": 3}));
    target.call(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "serial_number": "S1"}),
    );
    for (bdev, nsid) in [("mem", 4), ("disk", 1), ("nil", 2)] {
        let mut namespace = json!({"bdev_name": bdev, "nsid": nsid});
        if bdev == "nil" {
            namespace["nguid"] = "ABCDEF0123456789ABCDEF0123456789".into();
            namespace["eui64"] = "0123456789ABCDEF".into();
        }
        target.call(
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": namespace}),
        );
    }
    target.call(
        "nvmf_subsystem_add_host",
        json!({"nqn": NQN, "host": "nqn.2025-01.org.example:host"}),
    );
    target.call(
        "nvmf_subsystem_allow_any_host",
        json!({"nqn": NQN, "allow_any_host": true}),
    );
    let address = target.address();
    target.call(
        "nvmf_subsystem_add_listener",
        json!({"nqn": NQN, "listen_address": {
            "trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": address.port().to_string(),
        }}),
    );
}

/// What was served, by NSID: UUID and the rest of what identifies it.
fn namespaces(target: &Target) -> Vec<Value> {
    let mut listed = target.call("nvmf_get_subsystems", json!({"nqn": NQN}));
    let namespaces = listed[0]["namespaces"].take();
    namespaces.as_array().unwrap().clone()
}

#[test]
fn everything_comes_back_with_its_identifiers() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut target = client::empty();
        fill(&target);
        let (before, kept) = (namespaces(&target), target.address());
        let config = target.call("framework_get_config", json!({"name": "nvmf"}));
        target.signal(signal);
        target.wait_exit();
        let target = client::start_in(target.into_dir(), &["--listen", &format!("tcp://{kept}")]);
        let after = namespaces(&target);
        assert_eq!(
            target.call("framework_get_config", json!({"name": "nvmf"})),
            config
        );
        assert_eq!(after.len(), 3);
        for (before, after) in before.iter().zip(&after) {
            if before["bdev_name"] == "mem" {
                assert_ne!(
                    before["uuid"], after["uuid"],
                    "its content is not the same either"
                );
                assert_eq!(before["nsid"], after["nsid"]);
            } else {
                assert_eq!(before, after);
            }
        }
        let mut session = Session::bring_up(kept, Options::new(NQN));
        assert_eq!(session.namespaces(), [1, 2, 4]);
        assert_eq!(session.blocks(2), 3 * 2048, "as it was resized");
        let transports = target.call("nvmf_get_transports", Value::Null);
        assert_eq!(transports[0]["max_io_qpairs_per_ctrlr"], 3);
    }
}

#[test]
fn without_a_state_directory_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(client::SOCKET);
    let arguments = ["--rpc", socket.to_str().unwrap()];
    let mut target = Target::start(dir, &arguments);
    target.call(
        "bdev_malloc_create",
        json!({"num_blocks": 8, "block_size": 512}),
    );
    assert!(target.stop().success());
    let target = Target::start(target.into_dir(), &arguments);
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), json!([]));
}

#[test]
fn what_is_missing_is_kept_for_another_start() {
    let mut target = client::empty();
    fill(&target);
    let kept = target.address();
    assert!(target.stop().success());
    let (path, away) = (target.file("disk"), target.file("away"));
    fs::rename(&path, &away).unwrap();
    let listen = format!("tcp://{kept}");
    let mut target = client::start_in(target.into_dir(), &["--listen", &listen]);
    target.wait_log("no such file");
    let served: Vec<_> = namespaces(&target)
        .iter()
        .map(|n| n["nsid"].clone())
        .collect();
    assert_eq!(served, [2, 4]);
    // Changes of something else do not forget it.
    target.call(
        "bdev_null_create",
        json!({"name": "other", "num_blocks": 8, "block_size": 512}),
    );
    assert!(target.stop().success());
    fs::rename(&away, &path).unwrap();
    let target = client::start_in(target.into_dir(), &["--listen", &listen]);
    assert_eq!(namespaces(&target).len(), 3);
}

#[test]
fn a_damaged_state_is_not_taken_for_an_empty_one() {
    let mut target = client::empty();
    fill(&target);
    assert!(target.stop().success());
    let dir = target.into_dir();
    let file = dir.path().join(client::STATE).join("api.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (socket, state) = (path(client::SOCKET), path(client::STATE));
    let mut target = Target::spawn(dir, &["--rpc", &socket, "--state-dir", &state], &[]);
    assert_eq!(target.wait_exit().code(), Some(1));
    target.wait_log("not understood");
    assert_eq!(fs::read_to_string(&file).unwrap(), text[..text.len() / 2]);
}

/// Kills the target at many instants while it is changed; what it answered for must be there afterwards, and nothing half made.
#[test]
fn a_kill_at_any_instant_leaves_old_or_new() {
    let mut target = client::empty();
    let mut expected = everything(&target);
    for round in 0..24 {
        let name = format!("bdev{round}");
        let nqn = format!("{NQN}{round}");
        let rpc = target.rpc();
        let changes = [
            (
                "bdev_null_create",
                json!({"name": name, "num_blocks": 8, "block_size": 512}),
            ),
            ("nvmf_create_subsystem", json!({"nqn": nqn})),
            (
                "nvmf_subsystem_add_ns",
                json!({"nqn": nqn, "namespace": {"bdev_name": name}}),
            ),
            (
                "nvmf_subsystem_add_host",
                json!({"nqn": nqn, "host": "nqn.h"}),
            ),
            ("nvmf_subsystem_remove_ns", json!({"nqn": nqn, "nsid": 1})),
            ("nvmf_delete_subsystem", json!({"nqn": nqn})),
            ("bdev_null_delete", json!({"name": name})),
        ];
        // Some rounds are killed within the first change, some after the last.
        let delay = Duration::from_micros(round * 700);
        let pid = rustix::process::Pid::from_raw(target.pid() as i32).unwrap();
        let killer = std::thread::spawn(move || {
            let start = Instant::now();
            while start.elapsed() < delay {
                std::hint::spin_loop();
            }
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        });
        let mut done = 0;
        for (method, params) in &changes {
            if rpc.call(method, params.clone()).is_err() {
                break;
            }
            done += 1;
        }
        killer.join().unwrap();
        target.wait_exit();
        target = client::empty_in(target.into_dir());
        let found = everything(&target);
        // What was answered is there; the one after it may be.
        let states = states_after(&expected, &changes, &name, &nqn);
        assert!(
            states[done..]
                .iter()
                .take(2)
                .any(|state| *state == summary(&found)),
            "round {round}: {done} changes were answered, found {found}"
        );
        for (method, params) in [
            ("nvmf_delete_subsystem", json!({"nqn": nqn})),
            ("bdev_null_delete", json!({"name": name})),
        ] {
            // What is not there need not be removed.
            let _ = target.rpc().call(method, params);
        }
        expected = everything(&target);
    }
}

/// Block devices, subsystems, namespaces and hosts, as numbers.
fn summary(everything: &Value) -> [usize; 4] {
    let requests = |index: usize, method: &str| {
        let all = everything[index].as_array().unwrap();
        all.iter()
            .filter(|request| request["method"] == method)
            .count()
    };
    [
        requests(0, "bdev_null_create"),
        requests(1, "nvmf_create_subsystem"),
        requests(1, "nvmf_subsystem_add_ns"),
        requests(1, "nvmf_subsystem_add_host"),
    ]
}

/// What there is after none, one, … all of the changes.
fn states_after(
    before: &Value,
    changes: &[(&str, Value)],
    _name: &str,
    _nqn: &str,
) -> Vec<[usize; 4]> {
    let mut states = vec![summary(before)];
    for (method, _) in changes {
        let mut next = *states.last().unwrap();
        match *method {
            "bdev_null_create" => next[0] += 1,
            "nvmf_create_subsystem" => next[1] += 1,
            "nvmf_subsystem_add_ns" => next[2] += 1,
            "nvmf_subsystem_add_host" => next[3] += 1,
            "nvmf_subsystem_remove_ns" => next[2] -= 1,
            "nvmf_delete_subsystem" => {
                next[1] -= 1;
                next[3] -= 1;
            }
            _ => next[0] -= 1,
        }
        states.push(next);
    }
    states
}

#[test]
fn what_cannot_be_kept_is_not_done() {
    let target = client::empty();
    fill(&target);
    let before = everything(&target);
    // As root no permission is missing; a directory that is gone cannot be written by anybody.
    let (state, away) = (target.file(client::STATE), target.file("away"));
    fs::rename(&state, &away).unwrap();
    for (method, params) in [
        (
            "nvmf_create_subsystem",
            json!({"nqn": "nqn.2025-01.org.example:new"}),
        ),
        ("nvmf_delete_subsystem", json!({"nqn": NQN})),
        ("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 1})),
        (
            "bdev_null_create",
            json!({"name": "new", "num_blocks": 8, "block_size": 512}),
        ),
        ("bdev_malloc_delete", json!({"name": "mem"})),
        ("bdev_null_resize", json!({"name": "nil", "new_size": 9})),
    ] {
        let error = target.refusal(method, params);
        assert!(
            error.message.contains("nothing was changed"),
            "{method}: {error}"
        );
    }
    assert_eq!(everything(&target), before);
    assert_eq!(
        target
            .call("bdev_get_bdevs", Value::Null)
            .as_array()
            .unwrap()
            .len(),
        3
    );
    fs::rename(&away, &state).unwrap();
    target.call(
        "bdev_null_create",
        json!({"name": "new", "num_blocks": 8, "block_size": 512}),
    );
}

#[test]
fn changes_that_come_at_once_are_all_made_and_kept() {
    const CLIENTS: usize = 8;
    const EACH: usize = 6;
    let mut target = client::empty();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let rpc = target.rpc();
            scope.spawn(move || {
                for turn in 0..EACH {
                    let name = format!("b{client}-{turn}");
                    let nqn = format!("{NQN}{client}-{turn}");
                    let bdev = json!({"name": name, "num_blocks": 8, "block_size": 512});
                    rpc.call("bdev_null_create", bdev).unwrap();
                    rpc.call("nvmf_create_subsystem", json!({"nqn": nqn}))
                        .unwrap();
                    let namespace = json!({"nqn": nqn, "namespace": {"bdev_name": name}});
                    assert_eq!(rpc.call("nvmf_subsystem_add_ns", namespace).unwrap(), 1);
                    if turn % 2 == 1 {
                        rpc.call("nvmf_delete_subsystem", json!({"nqn": nqn}))
                            .unwrap();
                        rpc.call("bdev_null_delete", json!({"name": name})).unwrap();
                    }
                }
            });
        }
    });
    let kept = CLIENTS * EACH / 2;
    let before = everything(&target);
    assert_eq!(summary(&before), [kept, kept, kept, 0]);
    target.signal(Signal::KILL);
    target.wait_exit();
    let target = client::empty_in(target.into_dir());
    assert_eq!(everything(&target), before);
}
