//! The polled session.

use std::time::Instant;

use nvmf_initiator::polled::{Session, Wait};

use crate::target::{PATIENCE, Target, session_config};

#[test]
fn a_wake_is_not_lost_whenever_it_comes() {
    let target = Target::start(&["--memory", "1M"]);
    let mut session = Session::connect(&target.url(1, ""), &session_config()).unwrap();
    let waker = session.waker();
    let mut done = Vec::new();
    let start = Instant::now();
    for _ in 0..100 {
        // Before the poll, which takes the message in and must not sleep after that.
        waker.wake();
        session
            .poll(Wait::Until(start + PATIENCE), &mut done)
            .unwrap();
        // While it waits, or nearly.
        let thread = std::thread::spawn({
            let waker = waker.clone();
            move || waker.wake()
        });
        session
            .poll(Wait::Until(start + PATIENCE), &mut done)
            .unwrap();
        thread.join().unwrap();
    }
    assert!(start.elapsed() < PATIENCE, "it slept through a wake");
    session.disconnect();
}
