//! A host comes up as Linux's does, reads and writes, and is refused where it must be.

use nvme_proto::wire::fabrics::InvalidParameter;
use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::log::LogId;
use nvme_proto::wire::property::{Cc, Csts};
use nvme_proto::wire::{Cntlid, Qid, Status};

use crate::common::host::PATIENCE;
use crate::process::{NQN, Target};
use crate::session::{HOST, HOST_2, Options, Session, answers, connect_queue};

#[test]
fn a_host_comes_up_and_moves_data_with_and_without_digests() {
    let target = Target::quick(&[]);
    for digests in [false, true] {
        for flow_control in [false, true] {
            let options = Options {
                digests,
                flow_control,
                ..Options::new(NQN)
            };
            let mut session = Session::bring_up(target.address(), options);
            assert_eq!(session.namespaces(), [1]);
            assert_eq!(session.blocks(1), (1 << 20) / 512);
            let controller = session.identify(Cns::CONTROLLER, 0).unwrap();
            assert_eq!(controller[78..80], session.cntlid.0.to_le_bytes());
            let mut queue = session.io_queue(1);
            let data: Vec<u8> = (0..64 << 10).map(|i| (i % 251) as u8).collect();
            assert_eq!(queue.write(4096, data.clone()), Status::SUCCESS);
            assert_eq!(queue.read(4096, data.len()).unwrap(), data);
            let smart = session.log(LogId::SMART, 512);
            assert_ne!(smart[32..48], [0; 16], "data units read are counted");
        }
    }
}

#[test]
fn an_allow_list_admits_nobody_else() {
    let text = format!("[[subsystem]]\nnqn = \"{NQN}\"\nallowed-hosts = [\"{HOST}\"]\n");
    let target = Target::with_file(&text);
    assert!(Session::connect(target.address(), Options::new(NQN)).is_ok());
    let refused = Session::connect(target.address(), Options::new(NQN).host(HOST_2, 2)).err();
    assert_eq!(refused, Some((Status::CONNECT_INVALID_HOST.dnr(), 0)));
}

#[test]
fn an_unknown_subsystem_is_named_as_the_wrong_parameter() {
    let target = Target::quick(&[]);
    let options = Options::new("nqn.2025-01.org.example:other");
    let (status, result) = Session::connect(target.address(), options).err().unwrap();
    assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.dnr());
    assert_eq!(
        InvalidParameter::from_result(result),
        InvalidParameter::SUBNQN
    );
}

#[test]
fn io_queues_belong_to_an_enabled_controller_of_the_same_host() {
    let target = Target::quick(&[]);
    let refused = |session: &Session, options: &Options, qid: u16, cntlid: Cntlid| {
        let answer = connect_queue(session.address, options, Qid(qid), cntlid);
        let (status, result) = answer.err().expect("refused");
        assert_eq!(status, Status::CONNECT_INVALID_PARAMETERS.dnr());
        InvalidParameter::from_result(result)
    };
    let mut session = Session::connect(target.address(), Options::new(NQN)).unwrap();
    let options = session.options.clone();
    let cntlid = session.cntlid;
    assert_eq!(
        refused(&session, &options, 1, cntlid),
        InvalidParameter::QID,
        "not enabled yet"
    );
    session.enable();
    let unknown = Cntlid(cntlid.0 + 1);
    assert_eq!(
        refused(&session, &options, 1, unknown),
        InvalidParameter::CNTLID
    );
    let stranger = options.clone().host(HOST_2, 1);
    assert_eq!(
        refused(&session, &stranger, 1, cntlid),
        InvalidParameter::HOSTNQN
    );
    let other_instance = options.clone().host(HOST, 9);
    assert_eq!(
        refused(&session, &other_instance, 1, cntlid),
        InvalidParameter::HOSTID
    );
    assert_eq!(
        refused(&session, &options, 129, cntlid),
        InvalidParameter::QID
    );
    let deep = Options {
        entries: 1025,
        ..options.clone()
    };
    assert_eq!(
        refused(&session, &deep, 1, cntlid),
        InvalidParameter::SQSIZE
    );
    session.io_queue(128);
}

#[test]
fn a_queue_of_the_same_identifier_waits_for_the_old_one_to_go() {
    let target = Target::quick(&[]);
    let session = Session::bring_up(target.address(), Options::new(NQN));
    let first = session.io_queue(1);
    let (status, _) = session.try_io_queue(1).err().expect("in use");
    assert_eq!(
        status,
        Status::COMMAND_SEQUENCE_ERROR,
        "without DNR: it will be free"
    );
    drop(first);
    // Its end and this Connect race; the target waits.
    let mut second = session.io_queue(1);
    assert!(second.read(0, 512).is_ok());
}

#[test]
fn a_disabled_controller_ends_its_io_queues_and_can_be_enabled_again() {
    let target = Target::quick(&[]);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = session.io_queue(1);
    assert_eq!(queue.write(0, vec![7; 512]), Status::SUCCESS);
    assert_eq!(session.set_cc(Cc(0)), Status::SUCCESS);
    queue.wait_closed();
    session.wait_status("end of the reset", |csts| !csts.rdy());
    session.enable();
    let mut again = session.io_queue(1);
    assert_eq!(again.read(0, 512).unwrap(), vec![7; 512]);
}

#[test]
fn a_shutdown_completes_and_the_connection_stays() {
    let target = Target::quick(&[]);
    let mut session = Session::bring_up(target.address(), Options::new(NQN));
    let cc = Cc(0)
        .with_en(true)
        .with_iosqes(Cc::IOSQES)
        .with_iocqes(Cc::IOCQES)
        .with_shn(Cc::SHN_NORMAL);
    assert_eq!(session.set_cc(cc), Status::SUCCESS);
    session.wait_status("SHST", |csts| csts.shst() == Csts::SHST_COMPLETE);
}

#[test]
fn controllers_are_numbered_anew_and_end_with_their_connection() {
    let mut target = Target::quick(&[]);
    let first = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = first.io_queue(1);
    let cntlid = first.cntlid;
    drop(first);
    // The admin connection is the association: its I/O queues go with it.
    queue.wait_closed();
    target.wait_log("association ends");
    let second = Session::bring_up(target.address(), Options::new(NQN));
    assert_ne!(
        second.cntlid, cntlid,
        "an identifier is not used again soon"
    );
}

#[test]
fn connections_are_bounded_and_the_bound_is_said() {
    let text = format!(
        "[limits]\nconnections = 2\n[[subsystem]]\nnqn = \"{NQN}\"\nallow-any-host = true\n"
    );
    let mut target = Target::with_file(&text);
    let first = Session::connect(target.address(), Options::new(NQN)).unwrap();
    let _second = Session::connect(target.address(), Options::new(NQN)).unwrap();
    let mut third = std::net::TcpStream::connect(target.address()).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    let closed = std::io::Read::read(&mut third, &mut [0; 16]);
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    target.wait_log("there are 2 connections already");
    drop(first);
    target.wait_log("association ends");
    let start = std::time::Instant::now();
    while !answers(target.address()) {
        assert!(start.elapsed() < PATIENCE, "the slot is free again");
    }
}

#[test]
fn queues_of_all_hosts_spread_over_the_shards() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let mut target = Target::quick(&[]);
    let first = Session::bring_up(target.address(), Options::new(NQN));
    let second = Session::bring_up(target.address(), Options::new(NQN).host(HOST_2, 2));
    let mut queues = Vec::new();
    for qid in 1..=4 {
        queues.push(first.io_queue(qid));
        queues.push(second.io_queue(qid));
    }
    let mut per_shard = vec![0; cores];
    for _ in &queues {
        let line = target.wait_log("I/O queue connected");
        let (_, shard) = line.split_once("shard=").unwrap();
        per_shard[shard.trim().parse::<usize>().unwrap()] += 1;
    }
    // As many shards as cores, up to eight.
    per_shard.truncate(8);
    let (least, most) = (per_shard.iter().min(), per_shard.iter().max());
    assert!(most.unwrap() - least.unwrap() <= 1, "{per_shard:?}");
    for (value, queue) in (1..).zip(&mut queues) {
        assert_eq!(queue.write(0, vec![value; 4096]), Status::SUCCESS);
    }
    assert_eq!(queues[0].read(0, 4096).unwrap(), vec![8; 4096]);
}
