//! The keep-alive timer ends associations of hosts that fell silent.

use std::time::{Duration, Instant};

use nvme_proto::queue::Transfer;
use nvme_proto::wire::Status;
use nvme_proto::wire::event::keep_alive_sqe;
use rustix::process::Signal;

use crate::common::host::PATIENCE;
use crate::process::{NQN, Target};
use crate::session::{Options, Session};

const KATO: Duration = Duration::from_secs(2);

#[test]
fn a_silent_host_loses_all_its_queues() {
    let mut target = Target::quick(&[]);
    let start = Instant::now();
    let options = Options::new(NQN).kato_ms(KATO.as_millis() as u32);
    let mut session = Session::bring_up(target.address(), options);
    let mut queue = session.io_queue(1);
    queue.wait_closed();
    session.admin.wait_closed();
    assert!(start.elapsed() >= KATO);
    target.wait_log("no sign of life within the keep-alive timeout");
}

#[test]
fn any_command_on_any_queue_is_a_sign_of_life() {
    let target = Target::quick(&[]);
    let options = Options::new(NQN).kato_ms(KATO.as_millis() as u32);
    let mut session = Session::bring_up(target.address(), options);
    let mut queue = session.io_queue(1);
    let start = Instant::now();
    // More than a timeout of I/O alone, then of Keep Alive alone. The pauses are what is tested: shorter than the timeout.
    while start.elapsed() < KATO * 3 / 2 {
        queue.read(0, 512).expect("I/O keeps the association alive");
        std::thread::sleep(KATO / 5);
    }
    while start.elapsed() < KATO * 3 {
        let done = session.run(&keep_alive_sqe(), 0);
        assert_eq!(done.status, Status::SUCCESS);
        std::thread::sleep(KATO / 5);
    }
    assert!(start.elapsed() < PATIENCE);
}

/// A target that is stopped for longer than the timeout finds what hosts sent meanwhile, and all their timers run out.
#[test]
fn what_a_host_said_while_the_target_had_no_processor_counts() {
    const HOSTS: u16 = 16;
    let mut target = Target::quick(&[]);
    let options = Options::new(NQN).kato_ms(KATO.as_millis() as u32);
    let mut sessions: Vec<_> = (0..HOSTS)
        .map(|_| Session::bring_up(target.address(), options.clone()))
        .collect();
    for round in 0..3 {
        target.signal(Signal::STOP);
        let slots: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let slot = session
                    .admin
                    .submit(&keep_alive_sqe(), Transfer::None, Vec::new());
                session.admin.flush();
                slot
            })
            .collect();
        // Longer than any timer of the target still runs.
        std::thread::sleep(KATO * 2);
        target.signal(Signal::CONT);
        for (session, slot) in sessions.iter_mut().zip(slots) {
            let done = session.admin.wait(slot);
            assert_eq!(done.status, Status::SUCCESS, "round {round}");
        }
    }
    // Who says nothing is still taken for silent.
    for session in &mut sessions {
        session.admin.wait_closed();
    }
    target.wait_log("no sign of life within the keep-alive timeout");
}

#[test]
fn timeouts_out_of_bounds_are_refused() {
    let text = format!(
        "[keep-alive]\nmax-ms = 5000\n[[subsystem]]\nnqn = \"{NQN}\"\nallow-any-host = true\n"
    );
    let target = Target::with_file(&text);
    for kato_ms in [0, 5001] {
        let refused = Session::connect(target.address(), Options::new(NQN).kato_ms(kato_ms)).err();
        assert_eq!(refused, Some((Status::KEEP_ALIVE_TIMEOUT_INVALID.dnr(), 0)));
    }
    assert!(Session::connect(target.address(), Options::new(NQN).kato_ms(5000)).is_ok());
}
