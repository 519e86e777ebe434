//! Who the host is: made once, kept, taken from files and from flags.

use std::fs;

use crate::rig::{NQN, Node, address, config, serve};

const GIVEN: &str = "nqn.2025-01.org.example:given";

#[test]
fn made_once_and_kept() {
    let (node, at) = (Node::new(), address());
    serve(&config(at, 4420, &[NQN]));
    let files =
        || ["hostnqn", "hostid"].map(|name| fs::read_to_string(node.etc().join(name)).unwrap());
    // Also where the folder is missing.
    fs::remove_dir(node.etc()).unwrap();
    node.run(&format!("discover -a {at} -s 4420")).ok();
    let made = files();
    let [hostnqn, hostid] = &made;
    assert_eq!(
        hostnqn.trim(),
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", hostid.trim())
    );
    node.run(&format!("connect -a {at} -n {NQN} --block none"))
        .ok();
    assert_eq!(files(), made);
    let list = node.run("list --json").json();
    assert_eq!(list["controllers"][0]["hostnqn"], hostnqn.trim());
}

#[test]
fn the_file_names_the_host_and_a_flag_wins() {
    let (node, at) = (Node::new(), address());
    let allowed = format!("allowed-hosts = [\"{GIVEN}\"]");
    serve(&config(at, 4420, &[NQN]).replace("allow-any-host = true", &allowed));
    let connect = format!("connect -a {at} -n {NQN} --block none");
    fs::write(
        node.etc().join("hostnqn"),
        "nqn.2025-01.org.example:other\n",
    )
    .unwrap();
    node.run(&connect)
        .failed(5, &["nqn.2025-01.org.example:other"]);
    node.run(&format!("{connect} -q {GIVEN}")).ok();
    node.run("disconnect --all").ok();
    fs::write(node.etc().join("hostnqn"), format!("{GIVEN}\n")).unwrap();
    node.run(&connect).ok();
}

#[test]
fn files_that_say_nothing_are_refused_by_name() {
    let node = Node::new();
    fs::write(node.etc().join("hostid"), "not a uuid\n").unwrap();
    node.run("connect -a h -n n")
        .failed(2, &["not a uuid", "UUID", "hostid"]);
    fs::write(node.etc().join("hostid"), "\n").unwrap();
    let path = node.etc().join("hostid");
    node.run("connect -a h -n n")
        .failed(2, &[path.to_str().unwrap(), "empty"]);
}
