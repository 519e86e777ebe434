//! The end, in order and otherwise, and what a restart keeps.

use std::fs;

use nvme_proto::wire::Status;
use rustix::process::Signal;

use crate::common::Mount;
use crate::process::{NQN, Target};
use crate::session::{Options, Session};

#[test]
fn sigterm_finishes_what_was_acknowledged_and_exits_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.img");
        let argument = format!("{}:1M", file.display());
        let mut target = Target::start(dir, &["--file", &argument, "--nqn", NQN]);
        let mut session = Session::bring_up(target.address(), Options::new(NQN));
        let mut queue = session.io_queue(1);
        queue.block_bytes = (1 << 20) / session.blocks(1);
        let data: Vec<u8> = (0..128 << 10).map(|i| (i / 4096) as u8 + 1).collect();
        assert_eq!(queue.write(0, data.clone()), Status::SUCCESS);
        // Commands in flight when the signal comes are either answered or never were: the host repeats them elsewhere.
        for _ in 0..8 {
            queue.start_write(256 << 10, vec![9; 64 << 10]);
        }
        queue.flush();
        target.signal(signal);
        queue.wait_closed();
        session.admin.wait_closed();
        assert_eq!(target.wait_exit().code(), Some(0));
        assert_eq!(fs::read(&file).unwrap()[..data.len()], data);
    }
}

#[test]
fn a_second_signal_ends_it_before_commands_have_finished() {
    for second in [Signal::TERM, Signal::INT] {
        let Some(mut mount) = Mount::ext4("a second signal", 16 << 20) else {
            return;
        };
        let argument = format!("{}:1M", mount.path("a.img").display());
        let dir = tempfile::tempdir().unwrap();
        let mut target = Target::start(dir, &["--file", &argument, "--nqn", NQN]);
        let mut session = Session::bring_up(target.address(), Options::new(NQN));
        let mut queue = session.io_queue(1);
        queue.block_bytes = (1 << 20) / session.blocks(1);
        assert_eq!(queue.write(0, vec![1; 4096]), Status::SUCCESS);
        // A write that the storage does not let go: a stop in good order waits for it.
        mount.freeze();
        queue.start_write(0, vec![2; 4096]);
        queue.start_read(0, 4096);
        queue.flush();
        assert!(queue.receive(), "the read that came after the write");
        target.signal(Signal::TERM);
        target.wait_log("another signal ends at once");
        target.signal(second);
        target.wait_log("ended by a second signal");
        // The process is over, but the kernel keeps it until the file system takes the write.
        mount.thaw();
        assert_eq!(target.wait_exit().code(), Some(3));
    }
}

#[test]
fn the_port_is_free_again_at_once() {
    let mut target = Target::quick(&[]);
    let session = Session::bring_up(target.address(), Options::new(NQN));
    let listen = format!("tcp://{}", target.address());
    assert_eq!(target.stop().code(), Some(0));
    drop(session);
    let again = Target::quick(&["--listen", &listen]);
    Session::bring_up(again.address(), Options::new(NQN));
}

#[test]
fn identifiers_survive_even_a_kill_but_those_of_memory_are_new() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.img");
    let argument = format!("{}:1M", file.display());
    let arguments = ["--file", &argument, "--null", "1M", "--memory", "1M"];
    let mut target = Target::start(tempfile::tempdir().unwrap(), &arguments);
    let nqn = subsystem_of(&target);
    let read = |target: &Target| {
        let mut session = Session::bring_up(target.address(), Options::new(&nqn));
        let serial = session
            .identify(nvme_proto::wire::identify::Cns::CONTROLLER, 0)
            .unwrap()[4..24]
            .to_vec();
        let ids: Vec<_> = (1..=3).map(|nsid| session.descriptors(nsid)).collect();
        (serial, ids)
    };
    let before = read(&target);
    target.signal(Signal::KILL);
    target.wait_exit();
    let target = Target::start(tempfile::tempdir().unwrap(), &arguments);
    assert_eq!(subsystem_of(&target), nqn);
    let after = read(&target);
    assert_eq!(before.0, after.0, "serial number");
    assert_eq!(before.1[..2], after.1[..2], "file and null");
    assert_ne!(before.1[2], after.1[2], "memory");
}

/// The subsystem that discovery tells of.
fn subsystem_of(target: &Target) -> String {
    let options = Options::new(nvme_proto::wire::nqn::DISCOVERY_NQN);
    let mut session = Session::bring_up(target.address(), options);
    let (_, entries) = crate::discovery::discover(&mut session);
    let nvm = entries
        .iter()
        .find(|entry| entry.subtype == nvme_proto::wire::log::SubsystemType::NVM);
    nvm.unwrap().nqn().unwrap().to_string()
}

#[test]
fn a_deleted_file_is_told_of_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.img");
    let argument = format!("{}:1M", file.display());
    let mut target = Target::start(tempfile::tempdir().unwrap(), &["--file", &argument]);
    fs::remove_file(&file).unwrap();
    let line = target.wait_log("was deleted");
    assert!(line.contains("a.img"), "{line}");
    assert_eq!(target.stop().code(), Some(0));
}
