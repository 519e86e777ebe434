//! An association that replaces another of the same host waits for it; one beside another does not.

use nvme_proto::queue::Transfer;
use nvme_proto::wire::{IoOpcode, Status};

use crate::process::{NQN, Target};
use crate::session::{HOST_2, Options, Session};

#[test]
fn a_replaced_association_ends_before_its_successors_io_begins() {
    let mut target = Target::quick(&[]);
    let old = Session::bring_up(target.address(), Options::new(NQN));
    let mut old_queue = old.io_queue(1);
    // A write that waits for its data: nothing but the end of the connection ends it.
    let sqe = old_queue.command(IoOpcode::WRITE, 0, 64 << 10);
    let transfer = Transfer::FromHost(64 << 10);
    old_queue.submit(&sqe, transfer, vec![1; 64 << 10]);
    old_queue.flush();
    let old_controller = format!("controller={}", old.cntlid.0);
    // The host gives its admin connection up; the I/O queue's stays open, as if its end were lost on the way.
    drop(old);
    let new = Session::bring_up(target.address(), Options::new(NQN));
    let mut queue = new.io_queue(1);
    assert_eq!(queue.write(0, vec![2; 64 << 10]), Status::SUCCESS);
    old_queue.wait_closed();
    assert_eq!(queue.read(0, 64 << 10).unwrap(), vec![2; 64 << 10]);

    let new_controller = format!("controller={}", new.cntlid.0);
    // The old association's, then the new one's.
    for _ in 0..2 {
        target.wait_log("I/O queue connected");
    }
    let log = target.log_so_far();
    let line = |what: &str, who: &str| {
        let found = log
            .iter()
            .position(|line| line.contains(what) && line.contains(who));
        found.unwrap_or_else(|| panic!("no {what:?} of {who:?} in {log:#?}"))
    };
    assert!(
        line("association ends", &old_controller) < line("I/O queue connected", &new_controller),
        "{log:#?}"
    );
}

#[test]
fn two_live_associations_of_one_host_stay() {
    let mut target = Target::quick(&[]);
    let first = Session::bring_up(target.address(), Options::new(NQN));
    let mut first_queue = first.io_queue(1);
    let second = Session::bring_up(target.address(), Options::new(NQN));
    let mut second_queue = second.io_queue(1);
    assert_eq!(first_queue.write(0, vec![1; 512]), Status::SUCCESS);
    assert_eq!(second_queue.read(0, 512).unwrap(), vec![1; 512]);
    assert_ne!(first.cntlid, second.cntlid);
    let log = target.log_so_far();
    assert!(
        !log.iter().any(|line| line.contains("association ends")),
        "{log:#?}"
    );
}

#[test]
fn other_hosts_and_other_instances_are_not_waited_for() {
    let target = Target::quick(&[]);
    let first = Session::bring_up(target.address(), Options::new(NQN));
    let mut first_queue = first.io_queue(1);
    for options in [
        Options::new(NQN).host(HOST_2, 1),
        Options {
            host_id: [9; 16],
            ..Options::new(NQN)
        },
    ] {
        let other = Session::bring_up(target.address(), options);
        assert!(other.io_queue(1).read(0, 512).is_ok());
    }
    assert!(first_queue.read(0, 512).is_ok());
}
