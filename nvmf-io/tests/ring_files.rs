//! The ring on real files, with what the kernel offers and with the fallbacks.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvmf_io::{
    Allocate, Buf, BufPool, Completion, Errno, FileId, Interest, PoolConfig, Ring, RingConfig,
    Token, TxBatch, Wait, WriteFlags, probe,
};

struct Fixture {
    ring: Ring,
    pool: BufPool,
    file: FileId,
    /// The same file, for looking at it past the ring.
    outside: File,
}

fn fixture(config: &RingConfig) -> Fixture {
    let mut ring = Ring::new(config).unwrap();
    let pool = BufPool::new(&PoolConfig::default());
    assert_eq!(ring.register_pool(&pool), !config.baseline);
    let outside = tempfile::tempfile().unwrap();
    let file = ring.add_file(OwnedFd::from(outside.try_clone().unwrap()));
    Fixture {
        ring,
        pool,
        file,
        outside,
    }
}

fn both(test: impl Fn(Fixture)) {
    for baseline in [false, true] {
        test(fixture(&RingConfig {
            baseline,
            rx_buffers: 0,
            ..RingConfig::default()
        }));
    }
}

fn next(ring: &mut Ring) -> Completion {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(completion) = ring.next() {
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion");
        ring.wait(Wait::Until(deadline)).unwrap();
    }
}

/// Numbers that differ from place to place.
fn pattern(buf: &Buf, seed: u32) {
    let bytes: Vec<u8> = (0..buf.len())
        .map(|at| (at.wrapping_mul(31).wrapping_add(seed) >> 3) as u8)
        .collect();
    buf.copy_in(0, &bytes);
}

#[test]
fn what_is_written_is_read() {
    both(|mut f| {
        let out = f.pool.alloc(300_000).unwrap();
        let back = f.pool.alloc(300_000).unwrap();
        pattern(&out, 1);
        f.ring.write(
            f.file,
            12_345,
            &out,
            100..300_000,
            WriteFlags::default(),
            Token(1),
        );
        assert_eq!(next(&mut f.ring).result, Ok(299_900));
        f.ring.read(f.file, 12_345, &back, 50..299_950, Token(2));
        f.ring.wait(Wait::Poll).unwrap();
        let done = next(&mut f.ring);
        assert_eq!(
            (done.token, done.result, done.more),
            (Token(2), Ok(299_900), false)
        );
        assert!(back.eq_range(50..299_950, &out, 100));
        assert!(out.is_unique() && back.is_unique());
        // Past the end of the file.
        f.ring.read(f.file, 312_000, &back, 0..4096, Token(3));
        assert_eq!(next(&mut f.ring).result, Ok(12_345 + 299_900 - 312_000));
        f.ring.read(f.file, 1 << 40, &back, 0..4096, Token(4));
        assert_eq!(next(&mut f.ring).result, Ok(0));
    });
}

#[test]
fn hundreds_in_flight_and_more_than_the_queues_hold() {
    for baseline in [false, true] {
        let config = RingConfig {
            entries: 8,
            completion_entries: 16,
            rx_buffers: 0,
            baseline,
            ..RingConfig::default()
        };
        let mut f = fixture(&config);
        let bufs: Vec<Buf> = (0..300).map(|_| f.pool.alloc(4096).unwrap()).collect();
        for (n, buf) in (0u64..).zip(&bufs) {
            pattern(buf, n as u32);
            f.ring.write(
                f.file,
                n * 4096,
                buf,
                0..4096,
                WriteFlags::default(),
                Token(n),
            );
        }
        let mut seen = vec![false; 300];
        for _ in 0..300 {
            let done = next(&mut f.ring);
            assert_eq!(done.result, Ok(4096));
            assert!(
                !std::mem::replace(&mut seen[done.token.0 as usize], true),
                "twice"
            );
        }
        assert_eq!(f.ring.in_flight(), 0);
        let back = f.pool.alloc(4096).unwrap();
        for n in [0u64, 7, 8, 299] {
            f.ring.read(f.file, n * 4096, &back, 0..4096, Token(n));
            assert_eq!(next(&mut f.ring).result, Ok(4096));
            assert!(back.eq_range(0..4096, &bufs[n as usize], 0));
        }
    }
}

#[test]
fn direct_and_durable_writes() {
    both(|mut f| {
        let file = tempfile::NamedTempFile::new_in(".").unwrap();
        let Some(align) = probe::direct_align(&file).unwrap() else {
            return eprintln!("not run: no direct I/O in the current directory");
        };
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(file.path())
            .unwrap();
        let id = f.ring.add_file(OwnedFd::from(direct));
        let block = align.offset_bytes.max(512);
        let buf = f.pool.alloc(block * 4).unwrap();
        pattern(&buf, 3);
        f.ring.write(
            id,
            block.into(),
            &buf,
            0..block * 4,
            WriteFlags { dsync: true },
            Token(1),
        );
        assert_eq!(next(&mut f.ring).result, Ok(block * 4));
        let back = f.pool.alloc(block * 4).unwrap();
        f.ring.read(id, block.into(), &back, 0..block * 4, Token(2));
        assert_eq!(next(&mut f.ring).result, Ok(block * 4));
        assert!(back.eq_range(0..block * 4, &buf, 0));
        f.ring.fsync(id, true, Token(3));
        assert_eq!(next(&mut f.ring).result, Ok(0));
        f.ring.fsync(id, false, Token(4));
        assert_eq!(next(&mut f.ring).result, Ok(0));
    });
}

#[test]
fn holes_are_punched_and_zeroed() {
    both(|mut f| {
        f.outside.write_all_at(&[7; 1 << 20], 0).unwrap();
        let before = f.outside.metadata().unwrap().blocks();
        let punch = Allocate::PUNCH_HOLE | Allocate::KEEP_SIZE;
        f.ring.fallocate(f.file, punch, 0, 512 << 10, Token(1));
        match next(&mut f.ring).result {
            Err(Errno::OPNOTSUPP) => return eprintln!("not run: no holes in this file system"),
            result => assert_eq!(result, Ok(0)),
        }
        let metadata = f.outside.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(
            metadata.blocks() <= before - 1000,
            "{before} -> {}",
            metadata.blocks()
        );
        let buf = f.pool.alloc(1 << 20).unwrap();
        f.ring.read(f.file, 0, &buf, 0..1 << 20, Token(2));
        assert_eq!(next(&mut f.ring).result, Ok(1 << 20));
        assert!(buf.is_zero(0..512 << 10) && !buf.is_zero(512 << 10..(512 << 10) + 1));
    });
}

#[test]
fn a_batch_is_written_in_one_call() {
    both(|mut f| {
        let mut batch = TxBatch::new(64, 8);
        let buf = f.pool.alloc(4096).unwrap();
        buf.fill(0..4096, b'x');
        batch.push_header(b"header").unwrap();
        batch.push_payload(&buf, 0..4096).unwrap();
        batch.push_trailer(b"end").unwrap();
        f.ring.write_vectored(f.file, 10, batch, Token(1));
        let done = next(&mut f.ring);
        assert_eq!(done.result, Ok(6 + 4096 + 3));
        assert!(done.batch.is_some());
        let mut content = [0; 8];
        f.outside.read_exact_at(&mut content, 8).unwrap();
        assert_eq!(&content, b"\0\0header");
        f.outside
            .read_exact_at(&mut content[..4], 10 + 6 + 4095)
            .unwrap();
        assert_eq!(&content[..4], b"xend");
        // With an id that is gone, the batch comes back too.
        f.ring.remove_file(f.file);
        f.ring
            .write_vectored(f.file, 0, done.batch.unwrap(), Token(2));
        let done = next(&mut f.ring);
        assert_eq!((done.token, done.result), (Token(2), Err(Errno::BADF)));
        assert!(done.batch.is_some());
    });
}

#[test]
fn errors_are_the_files_own() {
    both(|mut f| {
        let read_only = f
            .ring
            .add_file(OwnedFd::from(File::open("/proc/self/exe").unwrap()));
        let buf = f.pool.alloc(4096).unwrap();
        f.ring
            .write(read_only, 0, &buf, 0..4096, WriteFlags::default(), Token(1));
        assert_eq!(next(&mut f.ring).result, Err(Errno::BADF));
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let full = f.ring.add_file(OwnedFd::from(full));
        f.ring
            .write(full, 0, &buf, 0..4096, WriteFlags::default(), Token(2));
        assert_eq!(next(&mut f.ring).result, Err(Errno::NOSPC));
        assert!(buf.is_unique());
        // The kernel never writes to memory that may not be written.
        let zero = f.pool.zero().unwrap();
        f.ring.read(f.file, 0, &zero, 0..4096, Token(3));
        assert_eq!(next(&mut f.ring).result, Err(Errno::BUSY));
        let look = buf.bytes().unwrap();
        f.ring.read(f.file, 0, &buf, 0..4096, Token(4));
        assert_eq!(next(&mut f.ring).result, Err(Errno::BUSY));
        assert_eq!(look.len(), 4096);
    });
}

#[test]
fn ids_of_removed_files_stay_invalid() {
    both(|mut f| {
        let shared: Arc<OwnedFd> = Arc::new(f.outside.try_clone().unwrap().into());
        let first = f.ring.add_file(shared.clone());
        assert!(Arc::ptr_eq(&f.ring.remove_file(first).unwrap(), &shared));
        assert!(f.ring.remove_file(first).is_none());
        let second = f.ring.add_file(shared.clone());
        assert_ne!(first, second);
        let buf = f.pool.alloc(4096).unwrap();
        f.ring.read(first, 0, &buf, 0..4096, Token(1));
        f.ring.read(second, 0, &buf, 0..4096, Token(2));
        let mut results =
            [next(&mut f.ring), next(&mut f.ring)].map(|done| (done.token, done.result));
        results.sort_by_key(|result| result.0);
        assert_eq!(results, [(Token(1), Err(Errno::BADF)), (Token(2), Ok(0))]);
        assert!(f.ring.file_fd(first).is_err() && f.ring.file_fd(second).is_ok());
        // An operation in flight keeps its file.
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let pipe = f.ring.add_file(reader);
        f.ring.read(pipe, u64::MAX, &buf, 0..4096, Token(3));
        drop(f.ring.remove_file(pipe));
        rustix::io::write(&writer, b"still there").unwrap();
        assert_eq!(next(&mut f.ring).result, Ok(11));
    });
}

#[test]
fn more_files_than_are_registered() {
    let mut f = fixture(&RingConfig {
        files: 4,
        rx_buffers: 0,
        ..RingConfig::default()
    });
    let buf = f.pool.alloc(4096).unwrap();
    let files: Vec<FileId> = (0..10u8)
        .map(|n| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&[n], 0).unwrap();
            f.ring.add_file(OwnedFd::from(file))
        })
        .collect();
    for (n, file) in (0u8..).zip(files) {
        f.ring.read(file, 0, &buf, 0..1, Token(0));
        assert_eq!(next(&mut f.ring).result, Ok(1));
        assert_eq!(buf.bytes().unwrap()[0], n);
    }
}

#[test]
fn more_chunks_than_can_be_registered() {
    let config = RingConfig {
        fixed_buffers: 2,
        rx_buffers: 0,
        ..RingConfig::default()
    };
    let mut f = fixture(&config);
    f.outside.write_all_at(&[5; 4096], 0).unwrap();
    // Each class lives in a chunk of its own.
    let bufs: Vec<Buf> = [4096, 16_384, 65_536, 262_144, 1 << 20, 2 << 20]
        .map(|len| f.pool.alloc(len).unwrap())
        .into();
    for buf in &bufs {
        f.ring
            .read(f.file, 0, buf, buf.len() - 4096..buf.len(), Token(0));
        assert_eq!(next(&mut f.ring).result, Ok(4096));
        assert_eq!(buf.bytes().unwrap()[buf.len() as usize - 1], 5);
    }
    // A buffer of a pool that belongs to another ring, or to none, is used by address.
    let mut other = Ring::new(&config).unwrap();
    assert!(!other.register_pool(&f.pool));
    let file = other.add_file(OwnedFd::from(f.outside.try_clone().unwrap()));
    let foreign = BufPool::new(&PoolConfig::default()).alloc(4096).unwrap();
    for buf in [&bufs[0], &foreign] {
        buf.fill(0..4096, 0);
        other.read(file, 0, buf, 0..4096, Token(0));
        assert_eq!(next(&mut other).result, Ok(4096));
        assert_eq!(buf.bytes().unwrap()[4095], 5);
    }
}

#[test]
fn waiting_ends_at_its_time() {
    both(|mut f| {
        let start = Instant::now();
        f.ring
            .wait(Wait::Until(start + Duration::from_millis(30)))
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert!(f.ring.next().is_none());
        f.ring.wait(Wait::Until(start)).unwrap();
        f.ring.nop(Token(1));
        f.ring.wait(Wait::Block).unwrap();
        let done = f.ring.next().unwrap();
        assert_eq!((done.token, done.result), (Token(1), Ok(0)));
    });
}

#[test]
fn polls_once_and_again() {
    both(|mut f| {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        f.ring.poll_multishot(&reader, Interest::Readable, Token(1));
        f.ring.poll_once(&writer, Interest::Writable, Token(2));
        let done = next(&mut f.ring);
        assert_eq!((done.token, done.more), (Token(2), false));
        for _ in 0..3 {
            rustix::io::write(&writer, b"x").unwrap();
            let done = next(&mut f.ring);
            assert_eq!((done.token, done.more), (Token(1), true));
            rustix::io::read(&reader, &mut [0; 8]).unwrap();
        }
        f.ring.cancel(Token(1));
        let done = next(&mut f.ring);
        assert_eq!((done.result, done.more), (Err(Errno::CANCELED), false));
    });
}

#[test]
fn a_ring_dropped_during_file_io_waits_for_it() {
    both(|mut f| {
        let bufs: Vec<Buf> = (0..64).map(|_| f.pool.alloc(64 << 10).unwrap()).collect();
        for (n, buf) in (0u64..).zip(&bufs) {
            pattern(buf, n as u32);
            f.ring.write(
                f.file,
                n << 16,
                buf,
                0..64 << 10,
                WriteFlags { dsync: true },
                Token(n),
            );
        }
        f.ring.wait(Wait::Poll).unwrap();
        drop(f.ring);
        assert!(bufs.iter().all(Buf::is_unique));
        // What was done was done right.
        let mut content = vec![0; 64 << 10];
        let written = f.outside.metadata().unwrap().len() >> 16;
        for n in 0..written {
            f.outside.read_exact_at(&mut content, n << 16).unwrap();
            let same = bufs[n as usize].bytes().unwrap()[..] == content[..];
            assert!(same || content.iter().all(|&byte| byte == 0), "buffer {n}");
        }
    });
}

#[test]
fn a_poll_survives_full_queues() {
    for baseline in [false, true] {
        let config = RingConfig {
            entries: 4,
            completion_entries: 4,
            rx_buffers: 0,
            baseline,
            ..RingConfig::default()
        };
        let mut ring = Ring::new(&config).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        ring.poll_multishot(&reader, Interest::Readable, Token(1));
        // The ring has a descriptor of its own.
        drop(reader);
        ring.wait(Wait::Poll).unwrap();
        for _ in 0..10 {
            // More completions than there is room for, the poll's among them.
            for _ in 0..8 {
                ring.nop(Token(0));
            }
            rustix::io::write(&writer, b"x").unwrap();
            for _ in 0..8 {
                ring.nop(Token(0));
            }
            let (mut nops, mut polls) = (0, 0);
            while nops < 16 || polls < 1 {
                let done = next(&mut ring);
                assert!(done.result.is_ok(), "{done:?}");
                match done.token {
                    Token(0) => nops += 1,
                    _ => {
                        assert!(done.more);
                        polls += 1;
                    }
                }
            }
        }
        assert_eq!(ring.in_flight(), 1);
    }
}
