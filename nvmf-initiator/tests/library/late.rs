//! Commands without an answer: Abort, and when that does not help a new association.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nvme_proto::tcp::TcpParams;
use nvme_proto::wire::fabrics::InvalidParameter;
use nvme_proto::wire::{Cqe, Qid, Sqe, Status};
use nvmf_initiator::handle::Namespace;

use crate::breach::raw;
use crate::handle::block_on;
use crate::puppet::{Aborts, Moment, Puppet, Script};
use crate::target::{eventually, session_config};

/// Time-outs are looked for twice a second; these are as short as still lets them be told apart.
const OPTIONS: &str =
    "&io_timeout_ms=600&connect_timeout_ms=1500&reconnect_delay=1&keep_alive_tmo=0";

fn connect(puppet: &Puppet) -> Namespace {
    Namespace::connect_blocking(&puppet.url(OPTIONS), session_config()).unwrap()
}

/// What the puppet's disk holds at first.
fn original(slba: u64, blocks: u64) -> Vec<u8> {
    (slba * 128..(slba + blocks) * 128)
        .flat_map(|word| (word as u32).to_le_bytes())
        .collect()
}

#[test]
fn a_late_command_is_aborted_and_tried_again() {
    let puppet = Puppet::start(Script {
        silent: true,
        ..Script::default()
    });
    let disk = connect(&puppet);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| block_on(disk.read(3, 5)));
        eventually("an Abort", || puppet.see(|seen| !seen.aborts.is_empty()));
        puppet.script(|script| script.silent = false);
        assert_eq!(read.join().unwrap().unwrap(), original(3, 5));
    });
    let abort = puppet.see(|seen| seen.aborts[0]);
    assert_eq!(abort.sqid.0, 1);
    puppet.see(|seen| {
        assert_eq!(
            (seen.admin_connects, seen.io_connects),
            (1, 1),
            "no association was lost"
        );
    });
    block_on(disk.close());
}

#[test]
fn aborts_are_bounded_by_the_controllers_limit() {
    let puppet = Puppet::start(Script {
        silent: true,
        aborts: Aborts::Silent,
        ..Script::default()
    });
    let disk = connect(&puppet);
    std::thread::scope(|scope| {
        for slba in 0..16 {
            let disk = &disk;
            scope.spawn(move || {
                assert_eq!(block_on(disk.read(slba, 1)).unwrap(), original(slba, 1));
            });
        }
        // ACL is 3, 0's based. Where the reads come so slowly that the first association has fewer, another one will not.
        eventually("as many Aborts as ACL allows", || {
            puppet.see(|seen| seen.aborts_open_at_most >= 4)
        });
        // None of them is answered, so the controller is given up; all is done on another one.
        eventually("a new association", || {
            puppet.see(|seen| seen.admin_connects >= 2)
        });
        puppet.script(|script| script.silent = false);
    });
    puppet.see(|seen| assert_eq!(seen.aborts_open_at_most, 4));
    block_on(disk.close());
}

#[test]
fn a_command_that_cannot_be_aborted_ends_the_association_and_is_held() {
    let puppet = Puppet::start(Script {
        silent: true,
        aborts: Aborts::TooLate,
        ..Script::default()
    });
    let disk = connect(&puppet);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let data = Bytes::from(vec![0x77; 512]);
        let write = scope.spawn(|| block_on(disk.write(9, data, false)));
        eventually("an Abort", || puppet.see(|seen| !seen.aborts.is_empty()));
        eventually("a new association", || {
            puppet.see(|seen| seen.admin_connects >= 2)
        });
        // One time-out before the Abort, another after it, and the delay before the reconnect.
        assert!(start.elapsed() >= Duration::from_millis(2 * 600 + 1000));
        puppet.script(|script| script.silent = false);
        // The write is re-issued, perhaps after one more Abort.
        write.join().unwrap().unwrap();
    });
    assert_eq!(block_on(disk.read(9, 1)).unwrap(), vec![0x77; 512]);
    assert_eq!(block_on(disk.read(10, 1)).unwrap(), original(10, 1));
    block_on(disk.close());
}

/// The time-out of the association is shorter than what its queues take to connect.
#[test]
fn a_host_whose_queues_connect_slowly_says_that_it_is_alive() {
    let puppet = Puppet::start(Script {
        keep_alives_before_queues: 3,
        ..Script::default()
    });
    let options = "&nr_io_queues=1&keep_alive_tmo=1";
    let disk = Namespace::connect_blocking(&puppet.url(options), session_config()).unwrap();
    assert_eq!(block_on(disk.read(3, 5)).unwrap(), original(3, 5));
    puppet.see(|seen| {
        assert_eq!((seen.admin_connects, seen.io_connects), (1, 1));
        assert!(seen.keep_alives >= 3);
    });
    block_on(disk.close());
}

/// However long other commands may take: what waits for Keep Alive goes by its own time-out.
#[test]
fn a_link_that_is_dead_is_noticed_by_the_keep_alive_timeout() {
    let puppet = Puppet::start(Script::default());
    let options = "&keep_alive_tmo=1&connect_timeout_ms=600000&reconnect_delay=1";
    let disk = Namespace::connect_blocking(&puppet.url(options), session_config()).unwrap();
    puppet.script(|script| script.ignore_keep_alives = true);
    eventually("a new association", || {
        puppet.see(|seen| seen.admin_connects > 1)
    });
    assert!(puppet.see(|seen| seen.keep_alives) >= 1);
    puppet.script(|script| script.ignore_keep_alives = false);
    eventually("an answer over an association that lives", || {
        block_on(disk.read(3, 5)) == Ok(original(3, 5).into())
    });
    block_on(disk.close());
}

/// The target ends an association before its queues are connected, as one that had no processor for too long may: it refuses them, and
/// rightly says that trying that again is of no use.
#[test]
fn a_refusal_that_concerns_one_association_does_not_end_the_next() {
    let puppet = Puppet::start(Script {
        silent: true,
        aborts: Aborts::TooLate,
        ..Script::default()
    });
    let disk = connect(&puppet);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| block_on(disk.read(3, 5)));
        eventually("an Abort", || puppet.see(|seen| !seen.aborts.is_empty()));
        puppet.script(|script| {
            let refuse = |params: &TcpParams, connect: &Sqe| {
                let status = Status::CONNECT_INVALID_PARAMETERS.dnr();
                let no_such = InvalidParameter::CNTLID.to_result();
                raw::response(params, &Cqe::new(connect.cid(), 0, status, no_such)).bytes()
            };
            script.breach = Some((Moment::Connect(Qid(1)), Box::new(refuse)));
            script.silent = false;
        });
        assert_eq!(read.join().unwrap().unwrap(), original(3, 5));
    });
    puppet.see(|seen| {
        assert_eq!(seen.breaches.len(), 1, "the refusal");
        assert_eq!(seen.admin_connects, 3);
    });
    block_on(disk.close());
}

/// A target that hangs accepts connections for as long as its system does: attempts that were given up must not stay open beside those that follow.
#[test]
fn an_attempt_without_an_answer_leaves_no_connection() {
    let moments = [
        Moment::IcResp,
        Moment::Connect(Qid::ADMIN),
        Moment::Connect(Qid(1)),
    ];
    for moment in moments {
        let puppet = Puppet::start(Script {
            silent: true,
            aborts: Aborts::TooLate,
            ..Script::default()
        });
        let disk = connect(&puppet);
        std::thread::scope(|scope| {
            let read = scope.spawn(|| block_on(disk.read(3, 5)));
            eventually("an Abort", || puppet.see(|seen| !seen.aborts.is_empty()));
            puppet.script(|script| {
                script.breach = Some((moment, Box::new(|_, _| Vec::new())));
                script.stubborn = true;
                script.silent = false;
            });
            assert_eq!(read.join().unwrap().unwrap(), original(3, 5));
        });
        // The association that answered stands; what the host said to silence is nothing, and then it hung up.
        eventually("the end of the connection", || {
            puppet.see(|seen| seen.farewells == [Vec::<u8>::new()])
        });
        block_on(disk.close());
    }
}

#[test]
fn a_caller_that_does_not_poll_makes_nothing_late() {
    use nvmf_initiator::polled::{Op, Request, Session, Wait};
    use nvmf_initiator::wire::Lba;
    let puppet = Puppet::start(Script::default());
    let options = "&io_timeout_ms=1500&keep_alive_tmo=0";
    let mut session = Session::connect(&puppet.url(options), &session_config()).unwrap();
    let mut done = Vec::new();
    for round in 0..2 {
        let buf = session.alloc(512).unwrap();
        let request = |tag, buf| Request {
            op: Op::Read,
            slba: Lba(tag),
            blocks: 1,
            buf: Some(buf),
            buf_offset_bytes: 0,
            tag,
        };
        session.submit(request(round, buf)).unwrap();
        session.poll(Wait::Poll, &mut done).unwrap();
        // The caller does something else, for longer than the time-out.
        std::thread::sleep(Duration::from_millis(2000));
        let other = session.alloc(512).unwrap();
        session.submit(request(round + 100, other)).unwrap();
        while done.len() < 2 * (round as usize + 1) {
            session.poll(Wait::Block, &mut done).unwrap();
        }
    }
    assert!(done.iter().all(|done| done.result.is_ok()));
    puppet.see(|seen| {
        assert_eq!((seen.aborts.len(), seen.admin_connects), (0, 1));
    });
    session.disconnect();
}
