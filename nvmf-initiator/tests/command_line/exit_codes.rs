//! Each exit code that the help names, and the message beside it: what is wrong and what to do.

use std::net::TcpListener;
use std::path::Path;

use nvmf_initiator::block::BlockForm;

use crate::rig::{NQN, Node, address, config, serve};

#[test]
fn two_for_arguments_that_make_no_sense() {
    let node = Node::new();
    let cases: [(&str, &[&str]); 23] = [
        ("", &["Usage"]),
        ("connectt", &["connectt"]),
        ("connect -n n", &["no address", "--traddr"]),
        ("connect -a 127.0.0.1", &["--nqn"]),
        ("connect -t fc -a h -n n", &["'fc'", "tcp and rdma"]),
        (
            "connect -t rdma -a h -n n -g",
            &["--hdr-digest", "over RDMA"],
        ),
        ("connect -t fc -a h -n n", &["fc", "tcp"]),
        ("connect -a h -n n -s 70000", &["70000", "--trsvcid"]),
        ("connect -a h -n n -Q 8", &["--queue-size", "16 to 1024"]),
        ("connect -a h -n n -i 0", &["--nr-io-queues", "1 to 128"]),
        ("connect -a h -n n -c 0", &["--reconnect-delay"]),
        (
            "connect -a h -n n -l 5 -F 9",
            &["--fast_io_fail_tmo", "--ctrl-loss-tmo"],
        ),
        (
            "connect -a h -n n --memory-windows",
            &["--memory-windows", "over TCP"],
        ),
        ("discover -a h -c 0", &["--reconnect-delay"]),
        ("connect-all -a h -Q 8", &["--queue-size", "16 to 1024"]),
        // What a URL gives is called as the URL calls it.
        (
            "id-ctrl nvme+tcp://h/n?memory_windows",
            &["option memory_windows"],
        ),
        (
            "connect -a h -n n -w here",
            &["--host-traddr", "here", "IP address"],
        ),
        ("connect -a h -n n -I seven", &["seven", "UUID"]),
        ("connect -a h -n n --block tape", &["tape", "fuse"]),
        ("disconnect", &["--nqn", "--device"]),
        ("disconnect -n n -d nvmf0", &["cannot be used with"]),
        ("id-ctrl nvme+tcp://h:1/n?nisd=1", &["nisd"]),
        ("id-ctrl", &["a device", "--traddr"]),
    ];
    for (line, says) in cases {
        let outcome = node.run(line);
        assert_eq!(outcome.code, 2, "{line}: {outcome:?}");
        for word in says {
            assert!(
                outcome.err.contains(word),
                "{line}: {word} is missing in {outcome:?}"
            );
        }
    }
    let long = format!("connect -a h -n {}", "n".repeat(224));
    node.run(&long).failed(2, &["223 bytes"]);
}

#[test]
fn three_for_what_is_not_there() {
    let node = Node::new();
    node.run("disconnect -n nqn.x")
        .failed(3, &["nothing is connected"]);
    node.run("id-ctrl /dev/loop7")
        .failed(3, &["/dev/loop7", "nothing is connected"]);
    // All of nothing is nothing wrong.
    assert_eq!(
        node.run("disconnect --all").ok(),
        "disconnected 0 controllers\n"
    );

    let at = address();
    serve(&config(at, 4420, &[NQN]));
    node.run(&format!("connect -a {at} -n {NQN} --block none"))
        .ok();
    node.run("disconnect -n nqn.x")
        .failed(3, &["nqn.x", "`list`"]);
    node.run("disconnect -d /dev/loop7")
        .failed(3, &["/dev/loop7", "`list`"]);
    node.run("id-ns nvmf7").failed(3, &["nvmf7", "`list`"]);
    assert_eq!(node.run("disconnect -d nvmf0").ok(), "disconnected nvmf0\n");
}

#[test]
fn four_for_what_is_connected_already() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 4420, &[NQN]));
    let line = format!("connect -a {at} -n {NQN} --block none");
    assert_eq!(node.run(&line).ok(), "nvmf0 namespace 1 (no device)\n");
    node.run(&line).failed(4, &["nvmf0", "--duplicate-connect"]);
    assert_eq!(
        node.run(&format!("{line} -D")).ok(),
        "nvmf1 namespace 1 (no device)\n"
    );
    let gone = node.run(&format!("disconnect -n {NQN} -o json")).json();
    assert_eq!(
        gone,
        serde_json::json!({ "disconnected": ["nvmf0", "nvmf1"] })
    );
}

#[test]
fn five_for_what_the_target_refuses() {
    let (node, at) = (Node::new(), address());
    let host = "nqn.2025-01.org.example:host";
    let text = config(at, 4420, &[NQN]).replace(
        "allow-any-host = true",
        &format!("allowed-hosts = [\"{host}\"]"),
    );
    serve(&format!("{text}[keep-alive]\nmax-ms = 60000\n"));
    node.run(&format!("discover -a {at} -s 4420 -q {host}"))
        .ok();
    node.run(&format!(
        "connect -a {at} -n {NQN} --block none -q {host} -k 0"
    ))
    .failed(5, &["--keep-alive-tmo"]);
    let unknown = format!("connect -a {at} -n nqn.2025-01.org.example:no --block none");
    node.run(&unknown).failed(
        5,
        &[
            "nqn.2025-01.org.example:no",
            "01/82h Connect Invalid Parameters",
        ],
    );
    let connect = format!("connect -a {at} -n {NQN} --block none");
    node.run(&connect).failed(5, &["host"]);
    node.run(&format!("{connect} -q {host}")).ok();
    node.run(&format!("id-ctrl -a {at} --nqn {NQN} -q {host}"))
        .ok();
}

#[test]
fn six_for_what_cannot_be_reached() {
    let node = Node::new();
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let says: &[&str] = &["nothing listens there"];
    node.run(&format!("connect -a 127.0.0.1 -s {port} -n n --block none"))
        .failed(6, says);
    node.run(&format!("discover -a 127.0.0.1 -s {port}"))
        .failed(6, says);
    node.run(&format!("id-ctrl nvme+tcp://127.0.0.1:{port}/n"))
        .failed(6, says);
    node.run("discover -a no-such-host.invalid")
        .failed(6, &["no-such-host.invalid"]);
}

#[test]
fn seven_for_what_this_system_lacks() {
    let node = Node::new();
    if BlockForm::Nbd.available().is_err() {
        node.run("connect -a 127.0.0.1 -n n --block nbd")
            .failed(7, &["nbd is not available"]);
    }
    // Nobody, root included, makes folders in procfs.
    let run_dir = Path::new("/proc/nvmf-initiator");
    node.run_in(run_dir, "connect -a 127.0.0.1 -n n")
        .failed(7, &["/proc/nvmf-initiator", "--run-dir"]);
    node.run_in(run_dir, "daemon")
        .failed(7, &["/proc/nvmf-initiator", "--run-dir"]);
}

#[test]
fn identify_without_connecting() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 4420, &[NQN]));
    for line in [
        format!("id-ctrl nvme+tcp://{at}/{NQN}"),
        format!("id-ctrl nvme+tcp://{at}:4420?hdr_digest&data_digest --nqn {NQN}"),
        format!("id-ctrl -a {at} -s 4420 --nqn {NQN}"),
    ] {
        let id = node.run(&format!("{line} -o json")).json();
        assert_eq!(id["subnqn"], NQN, "{line}");
    }
    let id = node
        .run(&format!("id-ns nvme+tcp://{at}/{NQN}?nsid=1 -o json"))
        .json();
    assert_eq!(id["nsze"], 2048);
    // The flag wins over the URL; what is not attached is a structure of zeroes, as the standard has it.
    let id = node
        .run(&format!("id-ns nvme+tcp://{at}/{NQN}?nsid=1 -n 7 -o json"))
        .json();
    assert_eq!(id["nsze"], 0);
    let text = node.run(&format!("id-ns nvme+tcp://{at}/{NQN} -n 7")).ok();
    assert!(text.contains("no active namespace"), "{text}");
    node.run(&format!("id-ctrl -a {at}")).failed(2, &["--nqn"]);
    assert!(node.connected().is_empty());
}
