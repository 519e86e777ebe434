//! The polled session.

use std::time::Instant;

use nvme_proto::wire::Lba;
use nvmf_initiator::core::request::{Done, Op, Request};
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

#[test]
fn a_host_may_have_128_queues_of_1024_entries() {
    const QUEUES: u64 = 128;
    let target = Target::start(&["--memory", "1M"]);
    let url = target.url(1, "&nr_io_queues=128&queue_size=1024");
    let mut session = Session::connect(&url, &session_config()).unwrap();
    assert_eq!(u64::from(session.controller().queues), QUEUES);
    let data = session.alloc(512).unwrap();
    data.copy_in(0, &[7; 512]);
    let write = |tag| Request {
        op: Op::Write { fua: false },
        slba: Lba(tag),
        blocks: 1,
        buf: Some(data.clone()),
        buf_offset_bytes: 0,
        tag,
    };
    // Requests go round the queues, so that each of them carries some.
    answered(&mut session, (0..4 * QUEUES).map(write).collect());
    let back: Vec<_> = (0..4 * QUEUES)
        .map(|_| session.alloc(512).unwrap())
        .collect();
    let read = |(tag, buf): (u64, &nvmf_io::Buf)| Request {
        op: Op::Read,
        slba: Lba(tag),
        blocks: 1,
        buf: Some(buf.clone()),
        buf_offset_bytes: 0,
        tag,
    };
    answered(&mut session, (0..).zip(&back).map(read).collect());
    for buf in &back {
        assert_eq!(buf.bytes().unwrap()[..], [7; 512]);
    }
    session.disconnect();
}

/// Submits all of them at once and waits until each succeeded.
fn answered(session: &mut Session, requests: Vec<Request>) {
    let (count, start) = (requests.len(), Instant::now());
    for request in requests {
        session.submit(request).unwrap();
    }
    let mut done = Vec::new();
    while done.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count}", done.len());
        session
            .poll(Wait::Until(start + PATIENCE), &mut done)
            .unwrap();
    }
    assert!(done.iter().all(|Done { result, .. }| result.is_ok()));
}
