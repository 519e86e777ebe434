//! Descriptor passing and the ring for device commands.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nvmf_io::sys::{fds, nvme::NvmeCommand};
use nvmf_io::{BigRing, BufPool, Errno, Interest, PoolConfig, Ring, RingConfig, Token, Wait};

#[test]
fn descriptors_travel_over_unix_sockets() {
    let (left, right) = UnixStream::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"the same file").unwrap();
    let other = tempfile::tempfile().unwrap();
    assert_eq!(
        fds::send(&left, b"two files", &[file.as_fd(), other.as_fd()]).unwrap(),
        9
    );
    let mut bytes = [0; 64];
    let mut received = Vec::new();
    assert_eq!(fds::receive(&right, &mut bytes, &mut received).unwrap(), 9);
    assert_eq!(&bytes[..9], b"two files");
    assert_eq!(received.len(), 2);
    let mut copy = File::from(received.remove(0));
    let mut text = String::new();
    copy.seek(SeekFrom::Start(0)).unwrap();
    copy.read_to_string(&mut text).unwrap();
    assert_eq!(text, "the same file");

    let many = vec![file.as_fd(); fds::MAX_FDS + 1];
    assert!(fds::send(&left, b"x", &many).is_err());
    drop(left);
    assert_eq!(fds::receive(&right, &mut bytes, &mut received).unwrap(), 0);
}

#[test]
fn a_big_ring_is_polled_by_another() {
    let mut ring = Ring::new(&RingConfig::default()).unwrap();
    let mut big = BigRing::new(8).unwrap();
    ring.poll_multishot(&big, Interest::Readable, Token(7));
    // More than its queues hold.
    for n in 0..20 {
        big.nop(Token(n));
    }
    let mut seen = Vec::new();
    while big.in_flight() > 0 {
        big.wait(Wait::Block).unwrap();
        while let Some(done) = big.next() {
            assert_eq!(done.result, Ok(0));
            seen.push(done.token.0);
        }
    }
    assert_eq!(seen, (0..20).collect::<Vec<_>>());

    // A command that fails, as the driver says: /dev/null has no such thing.
    let null: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
    let pool = BufPool::new(&PoolConfig::default());
    let buf = pool.alloc(4096).unwrap();
    let read = NvmeCommand {
        opcode: 0x02,
        nsid: 1,
        ..NvmeCommand::default()
    };
    big.nvme(&null, &read, Some((&buf, 0..4096)), Token(99));
    assert!(
        !buf.is_unique() && buf.bytes().is_none(),
        "the device may write"
    );
    big.wait(Wait::Poll).unwrap();
    let done = loop {
        if let Some(done) = big.next() {
            break done;
        }
        ring.wait(Wait::Block).unwrap();
        while let Some(wake) = ring.next() {
            assert_eq!(wake.token, Token(7));
        }
        big.wait(Wait::Poll).unwrap();
    };
    assert_eq!(done.token, Token(99));
    // Kernels know the operation on /dev/null for their own tests, or refuse it.
    assert!(
        matches!(done.result, Ok(0) | Err(Errno::OPNOTSUPP | Errno::INVAL)),
        "{done:?}"
    );
    assert_eq!(big.in_flight(), 0);
    assert!(buf.is_unique());
}
