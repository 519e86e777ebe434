//! Hosts that have to authenticate: those that can, and every kind that will not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use nvme_proto::auth::{
    AuthSqe, DhGroup, DhKeyPair, EXPONENT_BYTES, HashId, Message, Negotiate, Proof, Reply, Secret,
};
use nvme_proto::queue::Transfer;
use nvme_proto::wire::fabrics::{ConnectResult, PropertySqe};
use nvme_proto::wire::property::Property;
use nvme_proto::wire::{Cntlid, Qid, Status};

use crate::common::host::{Done, TestHost};
use crate::process::{NQN, Target};
use crate::session::{HOST, HOST_2, Options, Session, connect_queue};

/// Keys of the bytes 1, 2, … and 4, 5, …
const SECRET: &str = "DHHC-1:00:AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAl7OaH:";
const OTHER: &str = "DHHC-1:01:BAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyAhIiOdu0CL:";

const REQUIRED: Status = Status::AUTHENTICATION_REQUIRED.dnr();
const TRANSACTION: u16 = 0x1234;

/// What the target serves: a subsystem for everybody, where `HOST` has to authenticate. `extra` comes first.
fn text(dir: &std::path::Path, extra: &str) -> String {
    let dir = dir.display();
    format!(
        "{extra}[[host]]\nnqn = \"{HOST}\"\ndhchap-key-file = \"{dir}/key\"\ndhchap-ctrl-key-file = \"{dir}/ctrl\"\n\
         [[subsystem]]\nnqn = \"{NQN}\"\nallow-any-host = true\n[[subsystem.namespace]]\nkind = \"memory\"\nsize = \"1M\"\n"
    )
}

fn write_key(path: &std::path::Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn target(extra: &str) -> Target {
    let dir = tempfile::tempdir().unwrap();
    write_key(&dir.path().join("key"), SECRET);
    write_key(&dir.path().join("ctrl"), OTHER);
    let text = text(dir.path(), extra);
    Target::with_file_in(dir, &text)
}

fn send_bytes(queue: &mut TestHost, data: Vec<u8>) -> Status {
    let sqe = AuthSqe::send(data.len() as u32).into_sqe();
    let transfer = Transfer::InCapsule(data.len() as u32);
    queue.run(&sqe, transfer, data).status
}

fn send(queue: &mut TestHost, message: Message<'_>) {
    assert_eq!(send_bytes(queue, message.to_bytes()), Status::SUCCESS);
}

fn receive(queue: &mut TestHost) -> Done {
    let sqe = AuthSqe::receive(4096).into_sqe();
    queue.run(&sqe, Transfer::ToHost(4096), vec![0; 4096])
}

fn negotiate(queue: &mut TestHost) {
    send(
        queue,
        Message::Negotiate(Negotiate {
            transaction: TRANSACTION,
            secure_channel: 0,
            offer: Some((&[1, 2, 3], &[0, 1, 2, 3, 4, 5])),
        }),
    );
}

/// Goes through a transaction with `secret`, `ours` being what the controller is asked for. Returns what the target said in the end.
fn authenticate(queue: &mut TestHost, secret: &str, ours: Option<&str>) -> Vec<u8> {
    authenticate_with(queue, secret, ours, |queue| receive(queue).data)
}

/// The same, where `fetch_last` fetches the target's last message.
fn authenticate_with(
    queue: &mut TestHost,
    secret: &str,
    ours: Option<&str>,
    fetch_last: impl FnOnce(&mut TestHost) -> Vec<u8>,
) -> Vec<u8> {
    let secret: Secret = secret.parse().unwrap();
    let (host, subsystem) = (HOST.parse().unwrap(), NQN.parse().unwrap());
    negotiate(queue);
    let data = receive(queue).data;
    let Ok(Message::Challenge(seen)) = Message::parse(&data) else {
        panic!("{data:?}");
    };
    let pair = DhKeyPair::new(
        DhGroup::from_wire(seen.group).unwrap(),
        &[0x5a; EXPONENT_BYTES],
    );
    let shared = pair.as_ref().map(|pair| pair.shared(seen.public).unwrap());
    let proof = Proof {
        hash: HashId::from_wire(seen.hash).unwrap(),
        challenge: seen.challenge,
        shared: shared.as_ref().map(|shared| shared.as_slice()),
        sequence: seen.sequence,
        transaction: TRANSACTION,
        host: &host,
        subsystem: &subsystem,
    };
    let challenge = vec![0x77; seen.challenge.len()];
    send(
        queue,
        Message::Reply(Reply {
            transaction: TRANSACTION,
            sequence: 5,
            response: &proof.of_host(&secret),
            challenge: ours.map(|_| challenge.as_slice()),
            public: &pair.as_ref().map(DhKeyPair::public).unwrap_or_default(),
        }),
    );
    let last = fetch_last(queue);
    if let Some(ours) = ours
        && let Ok(Message::Success1 { response, .. }) = Message::parse(&last)
    {
        let proof = Proof {
            challenge: &challenge,
            sequence: 5,
            ..proof
        };
        let expected = proof.of_controller(&ours.parse().unwrap());
        assert_eq!(response, Some(expected.as_slice()));
        let transaction = TRANSACTION;
        send(queue, Message::Success2 { transaction });
    }
    last
}

fn succeeded(last: &[u8]) -> bool {
    matches!(Message::parse(last), Ok(Message::Success1 { .. }))
}

/// An admin queue that has been connected and asks for authentication.
fn admin(target: &Target) -> TestHost {
    let options = Options::new(NQN);
    let (queue, result) =
        connect_queue(target.address(), &options, Qid::ADMIN, Cntlid::DYNAMIC).unwrap();
    assert!(ConnectResult::from_result(result).authentication_required);
    queue
}

/// A session whose admin queue is authenticated and enabled.
fn session(target: &Target) -> Session {
    let mut session = Session::connect(target.address(), Options::new(NQN)).unwrap();
    assert!(succeeded(&authenticate(&mut session.admin, SECRET, None)));
    session.enable();
    session
}

#[test]
fn a_host_with_its_secret_gets_in_on_every_queue() {
    for (extra, ours) in [
        ("", None),
        ("", Some(OTHER)),
        (
            "[authentication]\nhashes = [\"sha512\"]\ndh-groups = [\"ffdhe2048\"]\n",
            Some(OTHER),
        ),
    ] {
        let mut target = target(extra);
        let mut session = Session::connect(target.address(), Options::new(NQN)).unwrap();
        assert!(succeeded(&authenticate(&mut session.admin, SECRET, ours)));
        session.enable();
        for qid in 1..=2 {
            let mut queue = session.io_queue(qid);
            assert_eq!(queue.read(0, 512), Err(REQUIRED));
            assert!(succeeded(&authenticate(&mut queue, SECRET, ours)));
            assert_eq!(queue.write(0, vec![qid as u8; 64 << 10]), Status::SUCCESS);
            assert_eq!(queue.read(0, 512).unwrap(), vec![qid as u8; 512]);
        }
        target.wait_log_seen("host authenticated");
    }
}

#[test]
fn a_host_without_a_key_needs_none_and_discovery_is_open() {
    let target = target("");
    let session = Session::bring_up(target.address(), Options::new(NQN).host(HOST_2, 2));
    assert_eq!(session.io_queue(1).write(0, vec![1; 512]), Status::SUCCESS);
    let discovery = Options::new(nvme_proto::wire::nqn::DISCOVERY_NQN);
    Session::bring_up(target.address(), discovery);
}

#[test]
fn no_other_command_is_carried_out_before() {
    let mut target = target("");
    let mut queue = admin(&target);
    let property = PropertySqe::get(Property::CAP).into_sqe();
    assert_eq!(queue.plain(&property), REQUIRED);
    negotiate(&mut queue);
    assert_eq!(queue.plain(&property), REQUIRED);
    // The queue is still good.
    assert!(matches!(
        Message::parse(&receive(&mut queue).data),
        Ok(Message::Challenge(_))
    ));
    drop(queue);
    target.wait_log("did not authenticate: it went away in the middle");
    drop(admin(&target));
    target.wait_log("nvme connect --dhchap-secret");
    let log = target.log_so_far();
    assert!(!log.iter().any(|line| line.contains("host connected")));
}

#[test]
fn who_only_claims_to_be_the_host_does_not_get_in_its_way() {
    let mut target = target("");
    let claimed = admin(&target);
    let first = session(&target);
    let line = target.wait_log("host connected");
    assert!(line.contains("older=0"), "{line}");
    let mut squatter = first.io_queue(1);
    let mut queue = first.io_queue(1);
    assert!(succeeded(&authenticate(&mut queue, SECRET, None)));
    assert_eq!(queue.read(0, 512).unwrap(), vec![0; 512]);
    // Nor does one take the queue away that shows the secret later.
    authenticate(&mut squatter, SECRET, None);
    squatter.wait_closed();
    target.wait_log("an I/O queue ends: ");
    assert_eq!(queue.read(0, 512).unwrap(), vec![0; 512]);
    let second = session(&target);
    let line = target.wait_log("host connected");
    assert!(line.contains("older=1"), "{line}");
    drop((claimed, second));
}

#[test]
fn a_wrong_secret_is_told_and_ends_the_connection() {
    let mut target = target("");
    let mut queue = admin(&target);
    let last = authenticate(&mut queue, OTHER, None);
    assert_eq!(last[..2], [0, 0xf1], "AUTH_Failure1");
    queue.wait_closed();
    target.wait_log("the host's response is not that of its secret");

    let session = session(&target);
    let mut queue = session.io_queue(1);
    let last = authenticate(&mut queue, OTHER, None);
    assert_eq!(last[..2], [0, 0xf1]);
    queue.wait_closed();
    // The identifier is free again, and the association lives.
    let mut queue = session.io_queue(1);
    assert!(succeeded(&authenticate(&mut queue, SECRET, None)));
    assert_eq!(queue.read(0, 512).unwrap(), vec![0; 512]);
    let log = target.log_so_far();
    for secret in [SECRET, OTHER] {
        let key = &secret[12..30];
        assert!(!log.iter().any(|line| line.contains(key)), "{log:#?}");
    }
}

#[test]
fn messages_that_make_no_sense_end_the_connection() {
    let target = target("");
    for bad in [
        vec![9; 3],
        vec![0; 8],
        vec![1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let mut queue = admin(&target);
        assert_eq!(send_bytes(&mut queue, bad), Status::SUCCESS);
        let last = receive(&mut queue).data;
        assert_eq!(last[..2], [0, 0xf1]);
        queue.wait_closed();
    }
    // One that is too long is refused by itself.
    let mut queue = admin(&target);
    assert_eq!(
        send_bytes(&mut queue, vec![0; 4097]),
        Status::INVALID_FIELD.dnr()
    );
    assert!(succeeded(&authenticate(&mut queue, SECRET, None)));
}

#[test]
fn a_host_that_takes_too_long_is_shut_out() {
    let mut target = target("[limits]\nhandshake-ms = 1000\n");
    let mut queue = admin(&target);
    negotiate(&mut queue);
    queue.wait_closed();
    target.wait_log("did not do so in time");
}

#[test]
fn an_io_queue_that_takes_too_long_is_shut_out() {
    let mut target = target("");
    let session = session(&target);
    let text = text(target.dir.path(), "[limits]\nhandshake-ms = 1000\n");
    assert!(target.reload(&text).contains("configuration reloaded"));
    session.io_queue(1).wait_closed();
    target.wait_log("did not do so in time");
}

#[test]
fn commands_behind_the_last_message_do_not_get_through() {
    let mut target = target("");
    let session = session(&target);
    let mut queue = session.io_queue(1);
    let last = authenticate_with(&mut queue, SECRET, None, |queue| {
        // Sent together: a host cannot know yet that it may.
        let fetch = AuthSqe::receive(4096).into_sqe();
        let fetch = queue.submit(&fetch, Transfer::ToHost(4096), vec![0; 4096]);
        queue.start_read(0, 512);
        queue.wait(fetch).data
    });
    assert!(succeeded(&last));
    queue.wait_closed();
    assert_eq!(queue.completed(), 0);
    target.wait_log("sent commands before it had authenticated");
}

#[test]
fn changed_keys_end_what_was_connected_with_the_old() {
    let mut target = target("");
    let mut session = session(&target);
    let stays = Session::bring_up(target.address(), Options::new(NQN).host(HOST_2, 2));
    let same = text(target.dir.path(), "");
    assert!(target.reload(&same).contains("configuration reloaded"));
    assert_ne!(session.property(Property::CAP), 0);
    write_key(&target.file("key"), &SECRET.replace(SECRET, OTHER));
    // Both secrets would be the same now.
    assert!(target.reload(&same).contains("stays as it was"));
    write_key(&target.file("ctrl"), SECRET);
    assert!(target.reload(&same).contains("configuration reloaded"));
    session.admin.wait_closed();
    let mut queue = admin(&target);
    assert!(!succeeded(&authenticate(&mut queue, SECRET, None)));
    let mut queue = admin(&target);
    assert!(succeeded(&authenticate(&mut queue, OTHER, Some(SECRET))));
    assert_eq!(stays.io_queue(1).write(0, vec![1; 512]), Status::SUCCESS);
}
