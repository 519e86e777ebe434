//! What clients send: as it should be, and as it should not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nvmf_rpc::error::code;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::client::{self, Raw, SOCKET, request};
use crate::common::host::PATIENCE;
use crate::process::{NQN, Target};

/// The most that the target's memory may grow while it is being flooded, in KiB: buffers of one connection, twice, and a margin.
const FLOOD_GROWTH_KIB: u64 = 8 << 10;

#[test]
fn the_version_and_the_methods_are_told() {
    let target = client::empty();
    let version = target.call("spdk_get_version", Value::Null);
    let text = version["version"].as_str().unwrap();
    assert_eq!(text, concat!("nvmf-target v", env!("CARGO_PKG_VERSION")));
    assert!(version["fields"]["major"].is_u64(), "{version}");
    let methods = target.call("rpc_get_methods", json!({"current": true}));
    for method in ["spdk_get_version", "rpc_get_methods"] {
        assert!(
            methods.as_array().unwrap().contains(&json!(method)),
            "{methods}"
        );
    }
    let error = target.refusal("spdk_get_version", json!({"verbose": true}));
    assert_eq!(error.code, code::INVALID_PARAMS);
    assert!(error.message.contains("verbose"), "{error}");
    let error = target.refusal("no_such_method", Value::Null);
    assert_eq!(error.code, code::METHOD_NOT_FOUND);
    assert!(error.message.contains("rpc_get_methods"), "{error}");
}

#[test]
fn requests_need_no_framing() {
    let target = client::empty();
    let indented = serde_json::to_string_pretty(&request(1, "spdk_get_version")).unwrap();
    let mut raw = target.raw();
    let answer = raw.ask(&indented);
    assert_eq!(
        (&answer["id"], &answer["jsonrpc"]),
        (&json!(1), &json!("2.0"))
    );
    assert!(answer["result"]["version"].is_string());
    // Several at once, with and without something between them, are answered in order on the same connection.
    let (a, b) = (request(2, "spdk_get_version"), request(3, "nonsense"));
    raw.send(format!("{a}{b}\n\n \t{indented}"));
    let ids: Vec<Value> = (0..3).map(|_| raw.next().unwrap()["id"].take()).collect();
    assert_eq!(ids, [2, 3, 1]);
    // One byte at a time.
    for byte in indented.bytes() {
        raw.send([byte]);
    }
    assert_eq!(raw.next().unwrap()["id"], 1);
}

#[test]
fn batches_are_answered_together() {
    let target = client::empty();
    let mut raw = target.raw();
    let notification = json!({"jsonrpc": "2.0", "method": "spdk_get_version"});
    let batch = json!([
        request(1, "spdk_get_version"),
        notification,
        5,
        request(2, "nonsense")
    ]);
    let answers = raw.ask(batch.to_string());
    let answers = answers.as_array().unwrap();
    assert_eq!(
        answers.len(),
        3,
        "a notification has no answer: {answers:?}"
    );
    assert_eq!(
        (&answers[0]["id"], answers[0]["error"].is_null()),
        (&json!(1), true)
    );
    assert_eq!(answers[1]["error"]["code"], code::INVALID_REQUEST);
    assert_eq!(answers[2]["error"]["code"], code::METHOD_NOT_FOUND);
    // A batch of notifications has no answer at all; what follows has.
    raw.send(json!([notification, notification]).to_string());
    assert_eq!(raw.ask(request(7, "spdk_get_version").to_string())["id"], 7);
    assert_eq!(raw.ask("[]")["error"]["code"], code::INVALID_REQUEST);
    let many = Value::Array(vec![notification; 101]);
    assert_eq!(
        raw.ask(many.to_string())["error"]["code"],
        code::INVALID_REQUEST
    );
}

#[test]
fn a_batch_does_not_hold_up_other_clients() {
    let target = client::empty();
    for number in 0..50 {
        target.call(
            "bdev_null_create",
            json!({"name": format!("n{number}"), "num_blocks": 8, "block_size": 512}),
        );
    }
    let mut raw = target.raw();
    let other = target.rpc();
    let batch: Vec<_> = (0..100).map(|id| request(id, "bdev_get_bdevs")).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let others = threads.spawn(|| {
            let mut served = 0;
            while !done.load(Ordering::Relaxed) {
                other.call("spdk_get_version", Value::Null).unwrap();
                served += 1;
            }
            served
        });
        let answers = raw.ask(Value::Array(batch).to_string());
        done.store(true, Ordering::Relaxed);
        assert_eq!(answers.as_array().unwrap().len(), 100);
        let served = others.join().unwrap();
        assert!(served >= 10, "{served} requests within a batch of 100");
    });
}

#[test]
fn garbage_ends_its_own_connection_and_nothing_else() {
    let target = client::empty();
    end_with_garbage(|| target.raw());
}

/// Garbage on connections that `connect` makes, each of which ends, and nothing else does.
pub fn end_with_garbage(connect: impl Fn() -> Raw) {
    let mut bystander = connect();
    bystander.send("{\"jsonrpc\": \"2.0\", \"method\": \"spdk_");
    for garbage in [
        "hello",
        "\u{0}\u{1}\u{2}",
        "]",
        "{]",
        "{\"a\": tru}",
        "[1,2",
        "\"text\"",
        "{\"jsonrpc\": \"2.0\" \"id\": 1}",
        &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)),
    ] {
        let mut raw = connect();
        raw.send(garbage);
        if garbage == "[1,2" {
            // Half a message is waited for; its end is the client's.
            drop(raw);
            continue;
        }
        let answer = raw.next().unwrap();
        assert_eq!(answer["error"]["code"], code::PARSE_ERROR, "{garbage:.40}");
        assert_eq!(answer["id"], Value::Null);
        assert_eq!(raw.next(), None, "the stream cannot go on: {garbage:.40}");
    }
    for (wrong, expected) in [
        ("{}", code::INVALID_REQUEST),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":1,\"id\":1}",
            code::INVALID_REQUEST,
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"method\":\"m\",\"params\":[],\"id\":1}",
            code::INVALID_PARAMS,
        ),
    ] {
        let answer = connect().ask(wrong);
        assert_eq!(answer["error"]["code"], expected, "{wrong}");
    }
    assert_eq!(bystander.ask("get_version\", \"id\": 9}")["id"], 9);
}

fn memory_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_mebibytes_are_refused_without_being_kept() {
    let target = client::empty();
    flood(&target, target.raw());
}

/// A request of 100 MiB, which must be refused without growing the target.
pub fn flood(target: &Target, mut raw: Raw) {
    target.call("spdk_get_version", Value::Null);
    let before = memory_kib(target.pid());
    raw.send("{\"jsonrpc\": \"2.0\", \"method\": \"m\", \"params\": {\"a\": \"");
    let mebibyte = vec![b'x'; 1 << 20];
    let mut most = 0;
    for _ in 0..100 {
        // The target cuts off whoever goes on for too long.
        if raw.socket.write_all(&mebibyte).is_err() {
            break;
        }
        most = most.max(memory_kib(target.pid()));
    }
    assert!(
        most < before + FLOOD_GROWTH_KIB,
        "grew from {before} to {most} KiB"
    );
    let answer = raw.next().unwrap();
    assert_eq!(answer["error"]["code"], code::INVALID_REQUEST, "{answer}");
    assert_eq!(raw.next(), None);
    target.call("spdk_get_version", Value::Null);
}

#[test]
fn a_client_that_leaves_in_the_middle_is_forgotten() {
    let target = client::empty();
    for _ in 0..300 {
        // More than there may be at one time.
        let mut raw = target.raw();
        raw.send(request(1, "spdk_get_version").to_string());
        raw.send("{\"jsonrpc\":");
    }
    let start = Instant::now();
    while target.rpc().call("spdk_get_version", Value::Null).is_err() {
        assert!(start.elapsed() < PATIENCE, "no connection is free again");
    }
}

#[test]
fn connections_are_bounded() {
    let target = client::empty();
    // As many as there may be, each known to be open by its answer.
    let ask = request(1, "spdk_get_version").to_string();
    let mut open: Vec<_> = (0..128).map(|_| target.raw()).collect();
    for raw in &mut open {
        assert_eq!(raw.ask(&ask)["id"], 1);
    }
    let mut one_more = target.raw();
    let mut buffer = [0];
    assert_eq!(one_more.socket.read(&mut buffer).unwrap_or(0), 0);
    assert_eq!(open[0].ask(&ask)["id"], 1);
}

#[test]
fn only_root_and_the_targets_user_get_in() {
    let target = client::empty();
    let mode = fs::metadata(target.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let state = fs::metadata(target.file(client::STATE)).unwrap();
    assert_eq!(state.permissions().mode() & 0o777, 0o700);
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: that another user is turned away cannot be tried");
        return;
    }
    // Another user, even with the mode widened and the directory open.
    for path in [target.dir.path().to_owned(), target.socket()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.settimeout(20)\ns.connect(sys.argv[1])\n\
        try:\n s.sendall(b'{\"jsonrpc\":\"2.0\",\"method\":\"spdk_get_version\",\"id\":1}')\n print(len(s.recv(4096)))\n\
        except OSError: print(0)\n";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(target.socket());
    let root = command.output().unwrap();
    assert_ne!(root.stdout, b"0\n", "the script works: {root:?}");
    let nobody = command.uid(65534).gid(65534).output().unwrap();
    assert_eq!(nobody.stdout, b"0\n", "{nobody:?}");
}

#[test]
fn the_socket_goes_with_the_target_and_is_taken_over_from_a_dead_one() {
    let mut target = client::empty();
    let socket = target.socket();
    target.signal(Signal::KILL);
    target.wait_exit();
    assert!(socket.exists(), "nobody removed it");
    let dir = target.into_dir();
    let mut target = client::empty_in(dir);
    target.call("spdk_get_version", Value::Null);
    assert!(target.stop().success());
    assert!(!socket.exists());
}

#[test]
fn two_targets_do_not_share_an_api() {
    let first = client::empty();
    let socket = first.socket();
    let mut second = Target::spawn(
        tempfile::tempdir().unwrap(),
        &[
            "--memory",
            "1M",
            "--nqn",
            NQN,
            "--rpc",
            socket.to_str().unwrap(),
        ],
        &[],
    );
    assert_eq!(second.wait_exit().code(), Some(1));
    second.wait_log("another process listens there");
    let state = first.file(client::STATE);
    let other = tempfile::tempdir().unwrap();
    let other_socket = other.path().join(SOCKET);
    let mut third = Target::spawn(
        other,
        &[
            "--rpc",
            other_socket.to_str().unwrap(),
            "--state-dir",
            state.to_str().unwrap(),
        ],
        &[],
    );
    assert_eq!(third.wait_exit().code(), Some(1));
    third.wait_log("another target has this state directory");
    first.call("spdk_get_version", Value::Null);
}

#[test]
fn an_api_that_is_off_is_off() {
    let target = Target::quick(&["--rpc", "none"]);
    assert!(!target.file(SOCKET).exists());
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(SOCKET);
    let text = format!(
        "[api]\nsocket = \"{}\"\nstate-dir = \"none\"\n",
        socket.display()
    );
    fs::write(dir.path().join("t.toml"), text).unwrap();
    let file = dir.path().join("t.toml").to_str().unwrap().to_owned();
    let mut declared = Target::spawn(dir, &["--config", &file], &[]);
    declared.wait_ready();
    declared.call("spdk_get_version", Value::Null);
}
