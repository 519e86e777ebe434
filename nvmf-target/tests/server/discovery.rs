//! The discovery service, on the same listener.

use nvme_proto::wire::event::AsyncEvent;
use nvme_proto::wire::fabrics::InvalidParameter;
use nvme_proto::wire::log::{DiscoveryEntry, DiscoveryHeader, LogId, SubsystemType};
use nvme_proto::wire::nqn::DISCOVERY_NQN;
use nvme_proto::wire::{Cntlid, Qid, Status};
use zerocopy::FromBytes;

use crate::process::{NQN, Target};
use crate::session::{HOST, HOST_2, Options, Session, connect_queue};

const OTHER: &str = "nqn.2025-01.org.example:b";

/// Generation and entries of the log.
pub fn discover(session: &mut Session) -> (u64, Vec<DiscoveryEntry>) {
    let header = session.log(LogId::DISCOVERY, DiscoveryHeader::SIZE as u32);
    let header = DiscoveryHeader::read_from_bytes(&header).unwrap();
    let bytes = DiscoveryHeader::SIZE + header.numrec.get() as usize * DiscoveryEntry::SIZE;
    let page = session.log(LogId::DISCOVERY, bytes as u32);
    let entries = page[DiscoveryHeader::SIZE..].chunks_exact(DiscoveryEntry::SIZE);
    let entries = entries.map(|entry| DiscoveryEntry::read_from_bytes(entry).unwrap());
    (header.genctr.get(), entries.collect())
}

fn subsystems(entries: &[DiscoveryEntry]) -> Vec<String> {
    let nvm = entries
        .iter()
        .filter(|entry| entry.subtype == SubsystemType::NVM);
    nvm.map(|entry| entry.nqn().unwrap().to_string()).collect()
}

fn text(hosts_of_other: &str) -> String {
    format!(
        "referrals = [\"tcp://192.0.2.9:8009\"]\n[[subsystem]]\nnqn = \"{NQN}\"\nallow-any-host = true\n[[subsystem]]\nnqn = \"{OTHER}\"\n{hosts_of_other}\n"
    )
}

#[test]
fn each_host_sees_what_it_may_use() {
    let target = Target::with_file(&text(&format!("allowed-hosts = [\"{HOST}\"]")));
    let mut allowed = Session::bring_up(target.address(), Options::new(DISCOVERY_NQN));
    let (_, entries) = discover(&mut allowed);
    assert_eq!(subsystems(&entries), [NQN, OTHER]);
    let entry = entries
        .iter()
        .find(|e| e.subtype == SubsystemType::NVM)
        .unwrap();
    assert_eq!(entry.traddr.to_string(), "127.0.0.1");
    assert_eq!(
        entry.trsvcid.to_string(),
        target.address().port().to_string()
    );
    let referral = entries
        .iter()
        .find(|e| e.subtype == SubsystemType::REFERRAL)
        .unwrap();
    assert_eq!(
        (referral.traddr.to_string(), referral.trsvcid.to_string()),
        ("192.0.2.9".into(), "8009".into())
    );
    let mut stranger = Session::bring_up(
        target.address(),
        Options::new(DISCOVERY_NQN).host(HOST_2, 2),
    );
    assert_eq!(subsystems(&discover(&mut stranger).1), [NQN]);
}

#[test]
fn a_wildcard_listener_is_reported_as_the_address_that_was_used() {
    let target = Target::quick(&["--listen", "tcp://0.0.0.0:0", "--allow-any-host"]);
    let address = (
        std::net::Ipv4Addr::new(127, 0, 0, 1),
        target.address().port(),
    )
        .into();
    let mut session = Session::bring_up(address, Options::new(DISCOVERY_NQN));
    let (_, entries) = discover(&mut session);
    assert!(
        entries
            .iter()
            .all(|entry| entry.traddr.to_string() == "127.0.0.1")
    );
}

#[test]
fn only_hosts_whose_log_changed_are_told() {
    let mut target = Target::with_file(&text(&format!("allowed-hosts = [\"{HOST}\"]")));
    let options = Options::new(DISCOVERY_NQN).kato_ms(60_000);
    let mut concerned = Session::bring_up(target.address(), options.clone());
    let mut stranger = Session::bring_up(target.address(), options.host(HOST_2, 2));
    let (generation, _) = discover(&mut concerned);
    discover(&mut stranger);
    let event = concerned.request_event();
    let silent = stranger.request_event();
    target.reload(&text(""));
    let done = concerned.admin.wait(event);
    assert_eq!(
        AsyncEvent(done.result as u32).kind(),
        AsyncEvent::DISCOVERY_LOG_CHANGED.kind()
    );
    let (after, entries) = discover(&mut concerned);
    assert!(after > generation);
    assert_eq!(subsystems(&entries), [NQN]);
    // A command behind the reload: had an event been due, it would have come first.
    discover(&mut stranger);
    assert_eq!(stranger.admin.completed(), 0);
    assert_eq!(
        stranger.admin.conn.in_flight(),
        1,
        "{silent:?} is still held"
    );
}

#[test]
fn discovery_controllers_have_no_io_queues() {
    let target = Target::quick(&[]);
    let session = Session::bring_up(target.address(), Options::new(DISCOVERY_NQN));
    let answer = connect_queue(session.address, &session.options, Qid(1), session.cntlid);
    let (status, result) = answer.err().unwrap();
    assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    assert_eq!(InvalidParameter::from_result(result), InvalidParameter::QID);
    let wrong = connect_queue(session.address, &session.options, Qid(1), Cntlid(999));
    assert!(wrong.is_err());
}

#[test]
fn the_generation_of_one_run_is_never_that_of_an_earlier_one() {
    let mut last = 0;
    for _ in 0..2 {
        let mut target = Target::with_file(&text(&format!("allowed-hosts = [\"{HOST}\"]")));
        let mut session = Session::bring_up(target.address(), Options::new(DISCOVERY_NQN));
        let (first, _) = discover(&mut session);
        assert!(first > last, "{first} after {last}");
        assert_eq!(discover(&mut session).0, first, "nothing has changed");
        target.reload(&text(""));
        (last, _) = discover(&mut session);
        assert!(last > first);
    }
}
