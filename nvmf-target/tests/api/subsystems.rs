//! Subsystems, namespaces, hosts and listeners made by the API, as a host sees them.

use std::fs;
use std::net::{SocketAddr, TcpListener};

use nvmf_rpc::error::code;
use serde_json::{Value, json};

use super::client;
use crate::process::{NQN, Target};
use crate::session::{Options, Session};

const HOST: &str = "nqn.2025-01.org.example:host";

/// A port that is free now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn listen_address(address: SocketAddr) -> Value {
    json!({
        "trtype": "TCP", "adrfam": "IPv4", "traddr": address.ip().to_string(),
        "trsvcid": address.port().to_string(),
    })
}

/// A subsystem for everybody with one namespace of 1 MiB, at the target's own listener.
fn make(target: &Target, nqn: &str) {
    target.call(
        "nvmf_create_subsystem",
        json!({"nqn": nqn, "allow_any_host": true}),
    );
    let name = target.call(
        "bdev_malloc_create",
        json!({"num_blocks": 256, "block_size": 4096}),
    );
    let namespace = json!({"nqn": nqn, "namespace": {"bdev_name": name}});
    assert_eq!(target.call("nvmf_subsystem_add_ns", namespace), 1);
    let listener = json!({"nqn": nqn, "listen_address": listen_address(target.address())});
    assert_eq!(target.call("nvmf_subsystem_add_listener", listener), true);
}

fn subsystem(target: &Target, nqn: &str) -> Value {
    let mut found = target.call("nvmf_get_subsystems", json!({"nqn": nqn}));
    found[0].take()
}

#[test]
fn a_subsystem_is_made_used_and_removed() {
    let target = client::empty();
    make(&target, NQN);
    let listed = subsystem(&target, NQN);
    assert_eq!(listed["subtype"], "NVMe");
    assert_eq!(
        listed["listen_addresses"],
        json!([listen_address(target.address())])
    );
    assert_eq!(
        (&listed["allow_any_host"], &listed["hosts"]),
        (&json!(true), &json!([]))
    );
    let namespace = &listed["namespaces"][0];
    assert_eq!(
        (&namespace["nsid"], &namespace["bdev_name"]),
        (&json!(1), &json!("Malloc0"))
    );
    let uuid = namespace["uuid"].as_str().unwrap();
    assert_eq!(namespace["nguid"], uuid.replace('-', "").to_uppercase());

    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    assert_eq!(session.namespaces(), [1]);
    assert_eq!(session.blocks(1), 256);
    let controllers = target.call("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    assert_eq!(controllers[0]["num_io_qpairs"], 0, "{controllers}");
    let queue = session.io_queue(1);
    let pairs = target.call("nvmf_subsystem_get_qpairs", json!({"nqn": NQN}));
    let qids: Vec<_> = pairs
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| pair["qid"].clone())
        .collect();
    assert_eq!(qids, [0, 1]);
    assert_eq!(pairs[1]["listen_address"], listen_address(target.address()));
    let stats = target.call("nvmf_get_stats", Value::Null);
    assert_eq!(
        stats["poll_groups"][0]["current_admin_qpairs"], 1,
        "{stats}"
    );
    drop(queue);

    // A second namespace comes and goes while the host is connected.
    let null = json!({"name": "Null0", "num_blocks": 2048, "block_size": 512});
    assert_eq!(target.call("bdev_null_create", null), "Null0");
    let add = json!({"nqn": NQN, "namespace": {"bdev_name": "Null0", "nsid": 7}});
    assert_eq!(target.call("nvmf_subsystem_add_ns", add), 7);
    assert_eq!(session.namespaces(), [1, 7]);
    assert_eq!(session.blocks(7), 2048);
    target.call("bdev_null_resize", json!({"name": "Null0", "new_size": 2}));
    assert_eq!(session.blocks(7), 4096);
    target.call("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 7}));
    assert_eq!(session.namespaces(), [1]);
    // As in SPDK a bdev takes its namespace with it.
    target.call("bdev_malloc_delete", json!({"name": "Malloc0"}));
    assert!(session.namespaces().is_empty());

    target.call("nvmf_delete_subsystem", json!({"nqn": NQN}));
    assert!(Session::connect(target.address(), Options::new(NQN)).is_err());
    let error = target.refusal("nvmf_get_subsystems", json!({"nqn": NQN}));
    assert_eq!(error.code, code::NO_DEVICE);
}

#[test]
fn hosts_are_let_in_and_fenced() {
    let target = client::empty();
    make(&target, NQN);
    target.call(
        "nvmf_subsystem_allow_any_host",
        json!({"nqn": NQN, "allow_any_host": false}),
    );
    let options = || Options::new(NQN).host(HOST, 9);
    assert!(Session::connect(target.address(), options()).is_err());
    let host = json!({"nqn": NQN, "host": HOST});
    target.call("nvmf_subsystem_add_host", host.clone());
    assert_eq!(
        target.refusal("nvmf_subsystem_add_host", host.clone()).code,
        code::EXISTS
    );
    assert_eq!(subsystem(&target, NQN)["hosts"], json!([{"nqn": HOST}]));
    let session = Session::bring_up(target.address(), options());
    let mut queue = session.io_queue(1);
    // Gone when the answer is there, queues and all.
    target.call("nvmf_subsystem_remove_host", host.clone());
    let controllers = target.call("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    assert_eq!(controllers, json!([]));
    queue.wait_closed();
    assert!(Session::connect(target.address(), options()).is_err());
    assert_eq!(
        target.refusal("nvmf_subsystem_remove_host", host).code,
        code::NOT_FOUND
    );
}

#[test]
fn a_subsystem_is_served_only_where_it_was_told_to_be() {
    let target = client::empty();
    target.call(
        "nvmf_create_subsystem",
        json!({"nqn": NQN, "allow_any_host": true}),
    );
    let declared = target.address();
    assert!(
        Session::connect(declared, Options::new(NQN)).is_err(),
        "there is a listener, but not for this subsystem"
    );
    let own = free_address();
    let listener = json!({"nqn": NQN, "listen_address": listen_address(own)});
    target.call("nvmf_subsystem_add_listener", listener.clone());
    assert!(Session::connect(declared, Options::new(NQN)).is_err());
    Session::bring_up(own, Options::new(NQN));
    let error = target.refusal("nvmf_subsystem_add_listener", listener.clone());
    assert_eq!(error.code, code::EXISTS);
    let listeners = target.call("nvmf_subsystem_get_listeners", json!({"nqn": NQN}));
    let listening = json!([{"address": listen_address(own), "listening": true}]);
    assert_eq!(listeners, listening);
    // Whoever came that way goes with it, and nobody listens there any more.
    target.call("nvmf_subsystem_remove_listener", listener.clone());
    let controllers = target.call("nvmf_subsystem_get_controllers", json!({"nqn": NQN}));
    assert_eq!(controllers, json!([]));
    assert!(std::net::TcpStream::connect(own).is_err());
    let error = target.refusal("nvmf_subsystem_remove_listener", listener);
    assert_eq!(error.code, code::NOT_FOUND);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listen_address(taken.local_addr().unwrap());
    let error = target.refusal(
        "nvmf_subsystem_add_listener",
        json!({"nqn": NQN, "listen_address": address}),
    );
    assert_eq!(error.code, code::ADDRESS_IN_USE, "{error}");
}

#[test]
fn files_are_served_and_looked_at_again() {
    let target = client::empty();
    make(&target, NQN);
    let path = target.file("disk");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    let create = json!({"name": "disk", "filename": path, "block_size": 512});
    assert_eq!(target.call("bdev_aio_create", create), "disk");
    let add = json!({"nqn": NQN, "namespace": {"bdev_name": "disk"}});
    assert_eq!(target.call("nvmf_subsystem_add_ns", add.clone()), 2);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    assert_eq!(session.blocks(2), 2048);
    file.set_len(2 << 20).unwrap();
    target.call("bdev_aio_rescan", json!({"name": "disk"}));
    assert_eq!(session.blocks(2), 4096);
    // One user at a time, of the file and of the bdev.
    let again = json!({"name": "again", "filename": path});
    assert_eq!(target.refusal("bdev_uring_create", again).code, code::BUSY);
    assert_eq!(
        target.refusal("nvmf_subsystem_add_ns", add).code,
        code::BUSY
    );
    let error = target.refusal("bdev_uring_delete", json!({"name": "disk"}));
    assert_eq!(error.code, code::INVALID, "it was made by the other module");
    target.call("bdev_aio_delete", json!({"name": "disk"}));
    let again = json!({"name": "again", "filename": path});
    assert_eq!(target.call("bdev_uring_create", again), "again");
    let bdevs = target.call("bdev_get_bdevs", json!({"name": "again"}));
    assert_eq!(
        (&bdevs[0]["num_blocks"], &bdevs[0]["claimed"]),
        (&json!(4096), &json!(false))
    );
    let stat = target.call("bdev_get_iostat", json!({"name": "Malloc0"}));
    assert_eq!(stat["bdevs"][0]["name"], "Malloc0");
    assert_eq!(stat["tick_rate"], 1_000_000_000);
}

#[test]
fn what_the_configuration_declares_is_read_only() {
    let target = client::start_in(
        tempfile::tempdir().unwrap(),
        &["--memory", "1M", "--nqn", NQN],
    );
    assert_eq!(
        subsystem(&target, NQN)["namespaces"][0]["bdev_name"],
        format!("{NQN}:1")
    );
    let bdevs = target.call("bdev_get_bdevs", Value::Null);
    assert_eq!(bdevs[0]["driver_specific"]["owner"], "file");
    target.call(
        "bdev_null_create",
        json!({"name": "n", "num_blocks": 8, "block_size": 512}),
    );
    for (method, params) in [
        ("nvmf_delete_subsystem", json!({"nqn": NQN})),
        (
            "nvmf_subsystem_add_ns",
            json!({"nqn": NQN, "namespace": {"bdev_name": "n"}}),
        ),
        ("nvmf_subsystem_remove_ns", json!({"nqn": NQN, "nsid": 1})),
        ("nvmf_subsystem_add_host", json!({"nqn": NQN, "host": HOST})),
        (
            "nvmf_subsystem_remove_host",
            json!({"nqn": NQN, "host": HOST}),
        ),
        (
            "nvmf_subsystem_allow_any_host",
            json!({"nqn": NQN, "allow_any_host": true}),
        ),
        (
            "nvmf_subsystem_add_listener",
            json!({"nqn": NQN, "listen_address": listen_address(free_address())}),
        ),
    ] {
        let error = target.refusal(method, params);
        assert_eq!(error.code, code::NOT_PERMITTED, "{method}: {error}");
        assert!(error.message.contains("configuration"), "{method}: {error}");
    }
    let declared = format!("{NQN}:1");
    let error = target.refusal("bdev_malloc_delete", json!({"name": declared}));
    assert_eq!(error.code, code::NOT_PERMITTED, "{error}");
    let error = target.refusal("nvmf_create_subsystem", json!({"nqn": NQN}));
    assert_eq!(error.code, code::EXISTS, "{error}");
    // Nor does a listener of the API's open it to anybody.
    let (other, own) = ("nqn.2025-01.org.example:other", free_address());
    target.call("nvmf_create_subsystem", json!({"nqn": other}));
    target.call(
        "nvmf_subsystem_add_listener",
        json!({"nqn": other, "listen_address": listen_address(own)}),
    );
    assert!(Session::connect(own, Options::new(NQN)).is_err());
    Session::bring_up(target.address(), Options::new(NQN));
}

#[test]
fn a_reload_leaves_alone_what_the_api_made() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        "listen = [\"tcp://127.0.0.1:0\"]\n[[subsystem]]\nnqn = \"nqn.2025-01.org.example:b\"\n";
    let api = format!(
        "[api]\nsocket = \"{0}/rpc.sock\"\nstate-dir = \"{0}/state\"\n",
        dir.path().display()
    );
    let mut target = Target::with_file_in(dir, &format!("{text}{api}"));
    make(&target, NQN);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let own = free_address();
    let listener = json!({"nqn": NQN, "listen_address": listen_address(own)});
    target.call("nvmf_subsystem_add_listener", listener);
    // The file takes the API's listener over, and gives it back.
    let with_own = text.replace("\"]", &format!("\", \"tcp://{own}\"]"));
    for text in [text, &with_own, text] {
        let outcome = target.reload(&format!("{text}{api}"));
        assert!(outcome.contains("configuration reloaded"), "{outcome}");
        assert_eq!(session.namespaces(), [1]);
        Session::bring_up(own, Options::new(NQN));
    }
    // So is declaring storage that the API serves: both would write it.
    let path = target.file("disk");
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    target.call("bdev_aio_create", json!({"name": "disk", "filename": path}));
    target.call(
        "nvmf_subsystem_add_ns",
        json!({"nqn": NQN, "namespace": {"bdev_name": "disk"}}),
    );
    let outcome = target.reload(&format!(
        "{text}[[subsystem.namespace]]\nkind = \"file\"\npath = \"{}\"\n{api}",
        path.display()
    ));
    assert!(outcome.contains("is served already"), "{outcome}");
    // Declaring what the API has is refused, with the reason.
    let outcome = target.reload(
        &format!("{text}{api}[[subsystem]]\nnqn = \"{NQN}\"\n").replace(
            "[[subsystem]]\nnqn = \"nqn.2025-01.org.example:b\"\n[api]",
            "[api]",
        ),
    );
    assert!(outcome.contains("nvmf_create_subsystem"), "{outcome}");
    assert_eq!(session.namespaces(), [1, 2]);
}
