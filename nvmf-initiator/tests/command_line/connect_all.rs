//! `connect-all`: by flags, by `discovery.conf`, by `config.json`.

use std::fs;

use serde_json::json;

use crate::rig::{NQN, Node, address, config, serve};

const OTHER: &str = "nqn.2025-01.org.example:b";

#[test]
fn by_flags_and_a_second_time() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 8009, &[NQN, OTHER]));
    let line = format!("connect-all -a {at} --block none");
    let said = node.run(&line).ok();
    assert_eq!(
        said,
        "nvmf0 namespace 1 (no device)\nnvmf1 namespace 1 (no device)\n"
    );
    assert_eq!(node.connected(), [NQN, OTHER]);
    // What is connected is no failure; it is said, unless nobody wants to hear it.
    let again = node.run(&line);
    assert!(
        again.err.contains("connected already, as nvmf0"),
        "{again:?}"
    );
    assert_eq!(again.ok(), "");
    let quiet = node.run(&format!("{line} --quiet"));
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""));
}

#[test]
fn by_both_files() {
    let (node, one, two) = (Node::new(), address(), address());
    serve(&config(one, 8009, &[NQN]));
    serve(&config(two, 4420, &[OTHER]));
    node.run("connect-all")
        .failed(2, &["--traddr", "config.json", "discovery.conf"]);
    fs::write(
        node.etc().join("discovery.conf"),
        format!("-t tcp -a {one}\n"),
    )
    .unwrap();
    let port = json!({ "transport": "tcp", "traddr": two.to_string(), "queue_size": 32, "reconnect_delay": 3 });
    let hosts = json!([{ "hostnqn": "nqn.2025-01.org.example:host", "hostid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
                         "subsystems": [{ "nqn": OTHER, "ports": [port] }] }]);
    let path = node.etc().join("config.json");
    fs::write(&path, hosts.to_string()).unwrap();
    node.run("connect-all --block none").ok();
    assert_eq!(node.connected(), [NQN, OTHER]);
    let list = node.run("list --json").json();
    // The file says who connects.
    assert_eq!(
        list["controllers"][0]["hostnqn"],
        "nqn.2025-01.org.example:host"
    );
    node.run("disconnect --all").ok();

    node.run("connect-all --block none --config none").ok();
    assert_eq!(node.connected(), [NQN]);
    node.run("disconnect --all").ok();

    // A file of another name, and one that is not there.
    let elsewhere = node.etc().join("elsewhere.json");
    let line = format!("connect-all --block none -J {}", elsewhere.display());
    node.run(&line).failed(2, &[elsewhere.to_str().unwrap()]);
    fs::rename(&path, &elsewhere).unwrap();
    node.run(&line).ok();
    assert_eq!(node.connected(), [NQN, OTHER]);
}

#[test]
fn a_discovery_controller_in_config_json_is_followed() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 8009, &[NQN, OTHER]));
    let nqn = "nqn.2014-08.org.nvmexpress.discovery";
    let port = json!({ "transport": "tcp", "traddr": at.to_string() });
    let hosts = json!([{ "subsystems": [{ "nqn": nqn, "ports": [port] }] }]);
    fs::write(node.etc().join("config.json"), hosts.to_string()).unwrap();
    node.run("connect-all --block none").ok();
    assert_eq!(node.connected(), [NQN, OTHER]);
}

#[test]
fn what_is_not_built_is_refused_before_anything_is_connected() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 4420, &[NQN]));
    let path = node.etc().join("config.json");
    let good = json!({ "transport": "tcp", "traddr": at.to_string() });
    let bad = json!({ "transport": "tcp", "traddr": at.to_string(), "dhchap_key": "DHHC-1:00:x:" });
    let hosts = json!([{ "subsystems": [{ "nqn": NQN, "ports": [good] }, { "nqn": OTHER, "ports": [bad] }] }]);
    fs::write(&path, hosts.to_string()).unwrap();
    node.run("connect-all --block none")
        .failed(2, &[path.to_str().unwrap(), OTHER, "dhchap_key"]);
    assert!(node.connected().is_empty());
    fs::write(&path, "[{").unwrap();
    node.run("connect-all --block none")
        .failed(2, &[path.to_str().unwrap(), "line 1"]);
}
