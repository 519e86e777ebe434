//! `discover`: the log in both forms, `discovery.conf`, referrals.

use std::fs;

use serde_json::{Value, json};

use crate::rig::{NQN, Node, address, config, serve};

/// NQNs of subsystems with namespaces in a log.
fn subsystems(log: &Value) -> Vec<&str> {
    let records = log["records"].as_array().unwrap().iter();
    let nvm = records.filter(|record| record["subtype"] == "nvme subsystem");
    nvm.map(|record| record["subnqn"].as_str().unwrap())
        .collect()
}

#[test]
fn for_people_and_for_programs() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 8009, &[NQN]));
    // The port of discovery is the default.
    let log = node.run(&format!("discover -a {at} -o json")).json();
    assert_eq!(subsystems(&log), [NQN]);
    let records = log["records"].as_array().unwrap();
    let record = records
        .iter()
        .find(|record| record["subnqn"] == NQN)
        .unwrap();
    let said = |key: &str| record[key].clone();
    assert_eq!(
        ["trtype", "adrfam", "trsvcid", "traddr"].map(said),
        [
            json!("tcp"),
            json!("ipv4"),
            json!("8009"),
            json!(at.to_string())
        ]
    );
    let text = node.run(&format!("discover -a {at}")).ok();
    assert!(
        text.contains(&format!(
            "Discovery Log Number of Records {}, Generation counter",
            records.len()
        )),
        "{text}"
    );
    assert!(text.contains(&format!("subnqn:  {NQN}\n")), "{text}");
    node.run(&format!("discover -a {at} -n {NQN}"))
        .failed(1, &[NQN, "no discovery service"]);
}

#[test]
fn services_that_refer_to_each_other_are_each_asked_once() {
    let (node, one, two) = (Node::new(), address(), address());
    let other = "nqn.2025-01.org.example:b";
    // Each refers to the other one and to itself, and the second to one that is not there.
    let referrals =
        |more: &str| format!("referrals = [\"tcp://{one}:8009\", \"tcp://{two}:8009\"{more}]\n");
    let nobody = format!(", \"tcp://{two}:8010\"");
    serve(&(referrals("") + &config(one, 8009, &[NQN])));
    serve(&(referrals(&nobody) + &config(two, 8009, &[other])));
    let outcome = node.run(&format!("discover -a {one} --json"));
    assert!(
        outcome
            .err
            .contains(&format!("referral to tcp://{two}:8010 not followed")),
        "{outcome:?}"
    );
    let logs = outcome.json();
    let logs = logs.as_array().unwrap();
    assert_eq!(logs.len(), 2);
    assert_eq!(
        [subsystems(&logs[0]), subsystems(&logs[1])],
        [[NQN], [other]]
    );
    let alone = node
        .run(&format!("discover -a {one} --json --no-referrals"))
        .json();
    assert_eq!(subsystems(&alone), [NQN]);

    let outcome = node.run(&format!("connect-all -a {one} --block none"));
    assert_eq!(node.connected(), [NQN, other]);
    // What could be connected is; what could not be asked is said.
    outcome.failed(6, &[&format!("{two}:8010")]);
}

#[test]
fn the_file_is_followed_when_there_is_no_address() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 4420, &[NQN]));
    let conf = node.etc().join("discovery.conf");
    let path = conf.to_str().unwrap();
    node.run("discover").failed(2, &["--traddr", path]);
    fs::write(
        &conf,
        format!("# a comment\n\n-t tcp -a {at} -s 4420 --hostnqn=nqn.x\n"),
    )
    .unwrap();
    assert_eq!(subsystems(&node.run("discover -o json").json()), [NQN]);
    for (line, says) in [
        ("--transport=tcp", "--traddr is missing"),
        ("--traddr=h --flavour=mild", "--flavour"),
        ("--traddr=h --transport=fc", "fc"),
        ("--traddr=h --transport=rdma --hdr-digest", "over RDMA"),
        ("--traddr=h --trsvcid=0", "trsvcid"),
    ] {
        fs::write(&conf, line).unwrap();
        node.run("discover").failed(2, &[path, line, says]);
    }
}
