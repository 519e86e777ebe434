//! Reading messages from a device that is open without blocking; inotify stands for all of them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nvmf_io::{Buf, BufPool, Completion, Errno, FileId, PoolConfig, Ring, RingConfig, Token, Wait};
use rustix::fs::inotify;

struct Fixture {
    ring: Ring,
    device: FileId,
    buf: Buf,
    dir: tempfile::TempDir,
}

fn fixture(baseline: bool) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let device: OwnedFd = inotify::init(flags).unwrap();
    inotify::add_watch(&device, dir.path(), inotify::WatchFlags::CREATE).unwrap();
    let config = RingConfig {
        baseline,
        rx_buffers: 0,
        ..RingConfig::default()
    };
    let mut ring = Ring::new(&config).unwrap();
    let device = ring.add_file(device);
    let pool = BufPool::new(&PoolConfig::default());
    // Registered memory would be refused by many such devices; it must not be used.
    ring.register_pool(&pool);
    Fixture {
        ring,
        device,
        buf: pool.alloc(4096).unwrap(),
        dir,
    }
}

fn next(ring: &mut Ring) -> Completion {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion");
        ring.wait(Wait::Until(deadline)).unwrap();
    }
}

#[test]
fn an_armed_read_completes_with_the_message() {
    for baseline in [false, true] {
        let mut f = fixture(baseline);
        f.ring.read_message(f.device, &f.buf, 80..4096, Token(1));
        f.ring.wait(Wait::Poll).unwrap();
        assert!(f.ring.next().is_none(), "there is no message yet");
        File::create(f.dir.path().join("name")).unwrap();
        let completion = next(&mut f.ring);
        assert_eq!(completion.token, Token(1));
        assert!(completion.result.unwrap() > 16, "{completion:?}");
        let bytes = f.buf.bytes().expect("the read is over");
        assert_eq!(&bytes[96..100], b"name");
        assert_eq!(f.ring.in_flight(), 0);
    }
}

#[test]
fn two_waiting_reads_get_one_message_each() {
    for baseline in [false, true] {
        let mut f = fixture(baseline);
        let pool = BufPool::new(&PoolConfig::default());
        let other = pool.alloc(4096).unwrap();
        // Room for one event only, so that the second stays for the second reader.
        f.ring.read_message(f.device, &f.buf, 0..32, Token(4));
        f.ring.read_message(f.device, &other, 0..32, Token(5));
        f.ring.wait(Wait::Poll).unwrap();
        File::create(f.dir.path().join("one")).unwrap();
        let first = next(&mut f.ring);
        assert!(first.result.is_ok(), "{first:?}");
        assert_eq!(f.ring.in_flight(), 1, "the slower reader waits on");
        File::create(f.dir.path().join("two")).unwrap();
        let second = next(&mut f.ring);
        assert!(second.result.is_ok(), "{second:?}");
        assert_ne!(first.token, second.token);
    }
}

#[test]
fn a_waiting_read_can_be_cancelled() {
    for baseline in [false, true] {
        let mut f = fixture(baseline);
        f.ring.read_message(f.device, &f.buf, 0..4096, Token(6));
        f.ring.wait(Wait::Poll).unwrap();
        f.ring.cancel(Token(6));
        assert_eq!(next(&mut f.ring).result, Err(Errno::CANCELED));
        assert_eq!(f.ring.in_flight(), 0);
        assert!(f.buf.is_unique(), "nothing holds the buffer any more");
    }
}

#[test]
fn a_poll_tells_of_a_message_without_taking_it() {
    let mut f = fixture(false);
    f.ring.await_message(f.device, Token(7));
    f.ring.wait(Wait::Poll).unwrap();
    assert!(f.ring.next().is_none(), "there is no message yet");
    File::create(f.dir.path().join("name")).unwrap();
    let completion = next(&mut f.ring);
    assert_eq!(completion.token, Token(7));
    assert!(completion.result.is_ok(), "{completion:?}");
    f.ring.read_message(f.device, &f.buf, 0..4096, Token(8));
    assert!(next(&mut f.ring).result.unwrap() > 16);
    // One that waits in vain can be taken back.
    f.ring.await_message(f.device, Token(9));
    f.ring.wait(Wait::Poll).unwrap();
    f.ring.cancel(Token(9));
    assert_eq!(next(&mut f.ring).result, Err(Errno::CANCELED));
    assert_eq!(f.ring.in_flight(), 0);
}
