//! SIGHUP changes what differs and nothing else.

use std::fs;

use nvme_proto::wire::Status;
use nvme_proto::wire::event::AsyncEvent;
use nvme_proto::wire::log::LogId;
use nvme_proto::wire::property::Property;

use crate::common::host::PATIENCE;
use crate::process::{NQN, Target};
use crate::session::{HOST, HOST_2, Options, Session};

const OTHER: &str = "nqn.2025-01.org.example:b";

fn subsystem(nqn: &str, hosts: &str, namespaces: &str) -> String {
    format!("[[subsystem]]\nnqn = \"{nqn}\"\n{hosts}\n{namespaces}\n")
}

fn open(namespaces: &str) -> String {
    subsystem(NQN, "allow-any-host = true", namespaces)
}

fn memory(nsid: u32) -> String {
    format!("[[subsystem.namespace]]\nnsid = {nsid}\nkind = \"memory\"\nsize = \"1M\"\n")
}

/// The namespaces that changed since the list was last read.
fn changed_namespaces(session: &mut Session) -> Vec<u32> {
    let list = session.log(LogId::CHANGED_NAMESPACES, 4096);
    let words = list
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    words.take_while(|nsid| *nsid != 0).collect()
}

#[test]
fn namespaces_come_and_go_with_an_event_and_leave_the_others_alone() {
    let mut target = Target::with_file(&open(&memory(1)));
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = session.io_queue(1);
    assert_eq!(queue.write(0, vec![5; 4096]), Status::SUCCESS);

    let event = session.request_event();
    let outcome = target.reload(&open(&(memory(1) + &memory(7))));
    assert!(outcome.contains("configuration reloaded"), "{outcome}");
    let done = session.admin.wait(event);
    let told = AsyncEvent(done.result as u32);
    assert_eq!(told.kind(), AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.kind());
    assert_eq!(changed_namespaces(&mut session), [7]);
    assert_eq!(session.namespaces(), [1, 7]);
    queue.nsid = nvme_proto::wire::Nsid(7);
    assert_eq!(
        queue.write(0, vec![6; 4096]),
        Status::SUCCESS,
        "on the connection that was there before"
    );

    let event = session.request_event();
    target.reload(&open(&memory(1)));
    session.admin.wait(event);
    assert_eq!(changed_namespaces(&mut session), [7]);
    assert_eq!(session.namespaces(), [1]);
    assert_eq!(queue.read(0, 512), Err(Status::INVALID_NAMESPACE.dnr()));
    queue.nsid = nvme_proto::wire::Nsid(1);
    assert_eq!(
        queue.read(0, 4096).unwrap(),
        vec![5; 4096],
        "memory kept its content"
    );
}

#[test]
fn a_grown_file_is_noticed_also_in_the_quick_form() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.img");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let mut target = Target::start(dir, &["--file", path.to_str().unwrap(), "--nqn", NQN]);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = session.io_queue(1);
    let blocks = session.blocks(1);
    queue.block_bytes = (1 << 20) / blocks;
    assert_eq!(
        queue.read(1 << 20, 4096),
        Err(Status::LBA_OUT_OF_RANGE.dnr())
    );
    let event = session.request_event();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    target.hang_up();
    session.admin.wait(event);
    assert_eq!(changed_namespaces(&mut session), [1]);
    assert_eq!(session.blocks(1), 2 * blocks);
    assert!(queue.read(1 << 20, 4096).is_ok());
}

#[test]
fn a_host_that_is_not_allowed_any_more_is_dropped_and_nobody_else() {
    let hosts = |list: &str| subsystem(NQN, &format!("allowed-hosts = [{list}]"), &memory(1));
    let mut target = Target::with_file(&hosts(&format!("\"{HOST}\", \"{HOST_2}\"")));
    let stays = Session::bring_up(target.address(), Options::new(NQN));
    let mut stays_queue = stays.io_queue(1);
    let mut goes = Session::bring_up(target.address(), Options::new(NQN).host(HOST_2, 2));
    let mut goes_queue = goes.io_queue(1);
    target.reload(&hosts(&format!("\"{HOST}\"")));
    goes_queue.wait_closed();
    goes.admin.wait_closed();
    assert!(stays_queue.read(0, 512).is_ok());
    let refused = Session::connect(target.address(), Options::new(NQN).host(HOST_2, 2)).err();
    assert_eq!(refused, Some((Status::CONNECT_INVALID_HOST.dnr(), 0)));
}

#[test]
fn subsystems_and_listeners_come_and_go() {
    let listen = |list: &str| format!("listen = [{list}]\n");
    let both = open(&memory(1)) + &subsystem(OTHER, "allow-any-host = true", &memory(1));
    let first = "\"tcp://127.0.0.1:0\"";
    let mut target = Target::with_file(&(listen(first) + &open(&memory(1))));
    let mut session = Session::bring_up(target.address(), Options::new(NQN));

    target.reload(&(listen(&format!("{first}, \"tcp://127.0.0.2:0\"")) + &both));
    let line = target
        .log_so_far()
        .iter()
        .find(|line| line.contains("listening on tcp://127.0.0.2"))
        .cloned()
        .expect("the new address is logged");
    let second = line
        .rsplit("tcp://")
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let mut other = Session::bring_up(second, Options::new(OTHER));
    let mut other_queue = other.io_queue(1);

    target.reload(&(listen(first) + &open(&memory(1))));
    other_queue.wait_closed();
    other.admin.wait_closed();
    assert!(std::net::TcpStream::connect_timeout(&second, PATIENCE).is_err());
    assert_eq!(
        session.namespaces(),
        [1],
        "the connection that nothing concerned"
    );
}

#[test]
fn a_listener_moves_to_the_wildcard_address_of_its_port() {
    let mut target = Target::with_file(
        &(String::from("listen = [\"tcp://127.0.0.1:0\"]\n") + &open(&memory(1))),
    );
    let port = target.address().port();
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let outcome =
        target.reload(&(format!("listen = [\"tcp://0.0.0.0:{port}\"]\n") + &open(&memory(1))));
    assert!(outcome.contains("configuration reloaded"), "{outcome}");
    assert_eq!(session.namespaces(), [1]);
    Session::bring_up(([127, 0, 0, 9], port).into(), Options::new(NQN));
}

#[test]
fn a_file_that_cannot_be_had_changes_nothing() {
    let listen = "listen = [\"tcp://127.0.0.1:0\"]\n";
    let good = listen.to_owned() + &open(&memory(1));
    let mut target = Target::with_file(&good);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let missing = listen.to_owned()
        + &open(
            &(memory(1) + "[[subsystem.namespace]]\nkind = \"file\"\npath = \"/nonexistent/a\"\n"),
        );
    for (bad, says) in [
        ("listen = 5\n".to_owned(), "listen"),
        (missing, "/nonexistent/a"),
        (good.clone() + "[[subsystem]]\n", "nqn"),
        (good.replace("127.0.0.1:0", "192.0.2.1:1"), "192.0.2.1"),
    ] {
        let outcome = target.reload(&bad);
        assert!(
            outcome.contains("stays as it was") && outcome.contains(says),
            "{outcome}"
        );
        assert_eq!(session.namespaces(), [1]);
        Session::bring_up(target.address(), Options::new(NQN));
    }
    let outcome = target.reload(&(good.clone() + &subsystem(OTHER, "", "")));
    assert!(outcome.contains("reloaded"), "{outcome}");
}

#[test]
fn what_needs_a_restart_is_said() {
    let mut target = Target::with_file(&open(&memory(1)));
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    target.reload(&format!(
        "cores = \"0\"\nbusy-poll = 1\n{}",
        open(&memory(1))
    ));
    let log = target.log_so_far();
    for key in ["cores has changed", "busy-poll has changed"] {
        assert!(log.iter().any(|line| line.contains(key)), "{log:#?}");
    }
    assert_ne!(session.property(Property::VS), 0);
}
