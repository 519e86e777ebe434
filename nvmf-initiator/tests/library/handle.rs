//! The `Send` handle: from tasks and plain threads, on owned and registered memory, over a target that dies.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

use bytes::Bytes;
use nvmf_initiator::handle::{Buffer, HandleError, MAX_IO_BYTES, Namespace};
use nvmf_initiator::polled::{IoError, SessionConfig, SessionError};
use nvmf_initiator::wire::Status;
use nvmf_io::PoolConfig;

use crate::target::{PATIENCE, Target, session_config};

const MIB: u64 = 1 << 20;

/// Runs a future on this thread, which sleeps while it waits: an executor that knows nothing of the library.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    let start = Instant::now();
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park_timeout(PATIENCE),
        }
        assert!(start.elapsed() < 2 * PATIENCE, "no answer");
    }
}

/// Begins an operation and forgets it, most likely before it is done.
fn begin_and_drop<T>(future: impl Future<Output = T>) {
    drop(poll_once(future));
}

fn poll_once<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn connect(target: &Target, options: &str) -> Namespace {
    Namespace::connect_blocking(&target.url(1, options), session_config()).unwrap()
}

/// Different for each place and each generation, and in each 8 bytes.
fn pattern(place: u64, generation: u64, bytes: usize) -> Vec<u8> {
    let seed = place << 40 ^ generation << 20;
    (0..bytes as u64 / 8)
        .flat_map(|word| (seed ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect()
}

async fn filled(disk: &Namespace, data: &[u8]) -> Buffer {
    let mut buffer = disk.alloc(data.len() as u32).await.unwrap();
    buffer.copy_from_slice(data);
    buffer
}

/// Writes, compares, discards and zeroes its own part of a namespace of 512-byte blocks in all the ways there are.
async fn exercise(disk: Namespace, part: u64, blocks: u64) {
    let first = part * blocks;
    for (generation, len) in [512usize, 4096, 65_536, 512 * 1000].into_iter().enumerate() {
        let data = pattern(part, generation as u64, len);
        let count = (len / 512) as u64;
        let at = first + generation as u64;
        if generation % 2 == 0 {
            disk.write(at, Bytes::from(data.clone()), generation == 2)
                .await
                .unwrap();
        } else {
            let buffer = filled(&disk, &data).await;
            let buffer = disk.write_from(at, buffer, generation == 3).await.unwrap();
            assert_eq!(buffer[..], data[..], "a write leaves its buffer as it was");
        }
        assert_eq!(disk.read(at, count as u32).await.unwrap(), data);
        let buffer = disk.alloc(len as u32).await.unwrap();
        assert_eq!(disk.read_into(at, buffer).await.unwrap()[..], data[..]);
        disk.compare(at, Bytes::from(data.clone())).await.unwrap();
        let mut other = data.clone();
        other[len - 1] ^= 1;
        assert_eq!(
            disk.compare(at, Bytes::from(other)).await,
            Err(HandleError::Io(IoError::Status(
                Status::COMPARE_FAILURE.dnr()
            )))
        );
        disk.flush().await.unwrap();
        // The middle of it becomes zero, one way or the other.
        let (zero, zeroes) = (at + count / 4, count.div_ceil(2));
        match generation {
            0 => disk.write_zeroes(zero, zeroes, false).await.unwrap(),
            1 => disk.write_zeroes(zero, zeroes, true).await.unwrap(),
            // A file on a file system that can punch holes, as every temporary folder's can.
            _ => disk.discard(zero, zeroes).await.unwrap(),
        }
        let mut want = data;
        let from = (zero - at) as usize * 512;
        want[from..from + zeroes as usize * 512].fill(0);
        assert_eq!(disk.read(at, count as u32).await.unwrap(), want);
    }
}

#[test]
fn many_tasks_and_threads_share_a_namespace() {
    let target = Target::start(&["--file", "{}/disk:64M", "--block-size", "512"]);
    let disk = connect(&target, "&data_digest=1");
    const BLOCKS: u64 = 2048;
    std::thread::scope(|scope| {
        // Tasks of runtimes with several threads, with one, and threads without a runtime.
        let (some, more, rest) = (disk.clone(), disk.clone(), &disk);
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .build()
                .unwrap();
            let tasks: Vec<_> = (0..8)
                .map(|part| runtime.spawn(exercise(some.clone(), part, BLOCKS)))
                .collect();
            for task in tasks {
                runtime.block_on(task).unwrap();
            }
        });
        scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let tasks: Vec<_> = (8..12)
                .map(|part| runtime.spawn(exercise(more.clone(), part, BLOCKS)))
                .collect();
            for task in tasks {
                runtime.block_on(task).unwrap();
            }
        });
        for part in 12..15 {
            scope.spawn(move || block_on(exercise(rest.clone(), part, BLOCKS)));
        }
    });
    block_on(disk.close());
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let target = Target::start(&["--memory", "16M", "--block-size", "4096"]);
    let disk = connect(&target, "");
    let blocks = disk.info().blocks;
    assert_eq!((disk.info().block_bytes, blocks), (4096, 4096));
    let out = Err(HandleError::Io(IoError::OutOfRange));
    block_on(async {
        let partial = HandleError::Partial {
            bytes: 4097,
            block_bytes: 4096,
        };
        assert_eq!(
            disk.write(0, Bytes::from(vec![0; 4097]), false).await,
            Err(partial)
        );
        assert_eq!(
            disk.compare(0, Bytes::from(vec![0; 4097])).await,
            Err(partial)
        );
        assert_eq!(
            disk.write(0, Bytes::new(), false).await,
            Err(HandleError::Empty)
        );
        assert_eq!(disk.read(0, 0).await, Err(HandleError::Empty));
        assert_eq!(disk.alloc(0).await.unwrap_err(), HandleError::Empty);
        let most = MAX_IO_BYTES / 4096;
        for blocks in [most + 1, u32::MAX] {
            assert_eq!(disk.read(0, blocks).await, Err(HandleError::TooLarge));
        }
        let long = Bytes::from(vec![0; MAX_IO_BYTES as usize + 4096]);
        assert_eq!(disk.write(0, long, false).await, Err(HandleError::TooLarge));
        assert_eq!(
            disk.alloc(MAX_IO_BYTES + 1).await.unwrap_err(),
            HandleError::TooLarge
        );
        // The largest there is, at the very end; then one block further.
        let data = Bytes::from(pattern(1, 2, MAX_IO_BYTES as usize));
        let last = blocks - u64::from(most);
        disk.write(last, data.clone(), true).await.unwrap();
        assert_eq!(disk.read(last, most).await.unwrap(), data);
        assert_eq!(disk.read(last + 1, most).await.map(drop), out);
        for slba in [blocks, u64::MAX] {
            assert_eq!(disk.read(slba, 1).await.map(drop), out);
            assert_eq!(
                disk.write(slba, Bytes::from(vec![0; 4096]), false).await,
                out
            );
            assert_eq!(disk.discard(slba, 1).await, out);
            assert_eq!(disk.write_zeroes(slba, 1, false).await, out);
        }
        assert_eq!(disk.discard(0, u64::MAX).await, out);
        assert_eq!(disk.write_zeroes(1, blocks, true).await, out);
        // A buffer comes back from a failure, and can be used again.
        let buffer = filled(&disk, &[7; 4096]).await;
        let failed = disk.write_from(blocks, buffer, false).await.unwrap_err();
        assert_eq!(Err(failed.error), out);
        let buffer = failed.buffer.expect("it was never sent");
        assert!(buffer.iter().all(|byte| *byte == 7));
        disk.write_from(0, buffer, false).await.unwrap();
        let short = disk.alloc(100).await.unwrap();
        let failed = disk.read_into(0, short).await.unwrap_err();
        let partial = HandleError::Partial {
            bytes: 100,
            block_bytes: 4096,
        };
        assert_eq!(
            (failed.error, failed.buffer.map(|b| b.len())),
            (partial, Some(100))
        );
        // One of another handle's comes back as well.
        let other = connect(&target, "");
        let failed = disk.read_into(0, other.alloc(4096).await.unwrap()).await;
        let failed = failed.unwrap_err();
        assert_eq!(failed.error, HandleError::ForeignBuffer);
        other.read_into(0, failed.buffer.unwrap()).await.unwrap();
        other.close().await;
    });
    block_on(disk.close());
}

#[test]
fn connections_that_fail_say_why() {
    let target = Target::start(&["--memory", "1M", "--read-only"]);
    let config = session_config();
    let refused = |url: String| match Namespace::connect_blocking(&url, config.clone()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("connected to {url}"),
    };
    assert!(refused(target.url(9, "")).contains("no active namespace 9"));
    let unknown = target.url(1, "").replace("library", "nothing");
    assert!(refused(unknown).contains("no such subsystem"));
    assert!(
        refused("nvme+tcp://127.0.0.1:1/nqn.2026-01.org.example:a?nsid=1".to_owned())
            .contains("nothing listens there")
    );
    assert!(matches!(
        block_on(Namespace::connect(&target.url(9, ""), config.clone())),
        Err(SessionError::NoNamespace(_))
    ));
    let disk = block_on(Namespace::connect(&target.url(1, ""), config)).unwrap();
    assert!(disk.info().read_only);
    let write = disk.write(0, Bytes::from(vec![0; 512]), false);
    assert_eq!(block_on(write), Err(HandleError::Io(IoError::ReadOnly)));
    assert_eq!(
        block_on(disk.discard(0, 1)),
        Err(HandleError::Io(IoError::ReadOnly))
    );
    block_on(disk.flush()).unwrap();
    assert_eq!(block_on(disk.read(0, 1)).unwrap(), vec![0; 512]);
}

#[test]
fn closing_ends_all_clones() {
    let target = Target::start(&["--memory", "1M"]);
    let disk = connect(&target, "");
    let mut buffer = block_on(disk.alloc(512)).unwrap();
    let clone = disk.clone();
    block_on(disk.close());
    assert_eq!(block_on(clone.read(0, 1)), Err(HandleError::Ended));
    assert_eq!(block_on(clone.flush()), Err(HandleError::Ended));
    assert_eq!(block_on(clone.alloc(512)).unwrap_err(), HandleError::Ended);
    // What a caller still has stays his.
    buffer.fill(3);
    drop(clone);
    assert!(buffer.iter().all(|byte| *byte == 3));
    let new = connect(&target, "");
    let failed = block_on(new.read_into(0, buffer)).unwrap_err();
    assert_eq!(failed.error, HandleError::ForeignBuffer);
}

#[test]
fn dropped_futures_hurt_nobody() {
    let target = Target::start(&["--memory", "8M"]);
    // The least pool and few operations: what a forgotten one kept for ever would soon be missed.
    let config = SessionConfig {
        pool: PoolConfig {
            max_bytes: 0,
            ..PoolConfig::default()
        },
        max_requests: 4,
        ..session_config()
    };
    let disk = Namespace::connect_blocking(&target.url(1, ""), config).unwrap();
    for round in 0..64 {
        for slot in 0..8 {
            let data = Bytes::from(pattern(slot, round, 64 << 10));
            begin_and_drop(disk.write(slot * 128, data, false));
            begin_and_drop(disk.read(slot * 128, 4096));
            begin_and_drop(disk.alloc(MAX_IO_BYTES));
            begin_and_drop(disk.flush());
            if let Poll::Ready(buffer) = poll_once(disk.alloc(64 << 10)) {
                begin_and_drop(disk.read_into(0, buffer.unwrap()));
            }
        }
    }
    // Nothing of it stands in the way. (What was forgotten may still be written: elsewhere, not here.)
    block_on(async {
        for slot in 64..72 {
            let data = pattern(slot, 99, 64 << 10);
            disk.write(slot * 128, Bytes::from(data.clone()), false)
                .await
                .unwrap();
            let buffer = disk.alloc(64 << 10).await.unwrap();
            let buffer = disk.read_into(slot * 128, buffer).await.unwrap();
            assert_eq!(buffer[..], data[..], "slot {slot}");
        }
        disk.close().await;
    });
}

#[test]
fn whoever_has_all_buffers_gets_on_by_using_them() {
    let target = Target::start(&["--memory", "8M"]);
    let config = SessionConfig {
        pool: PoolConfig {
            max_bytes: 0,
            ..PoolConfig::default()
        },
        ..session_config()
    };
    let disk = Namespace::connect_blocking(&target.url(1, ""), config).unwrap();
    block_on(async {
        // Of the largest there is one in the least pool.
        let only = disk.alloc(MAX_IO_BYTES).await.unwrap();
        let (another, disk_2) = (tokio::sync::oneshot::channel(), disk.clone());
        let (sender, receiver) = another;
        let waiting = std::thread::spawn(move || {
            let buffer = block_on(async {
                let mut wanted = pin!(disk_2.alloc(MAX_IO_BYTES));
                let first = wanted
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()));
                assert!(first.is_pending());
                sender.send(()).unwrap();
                wanted.await.unwrap()
            });
            buffer.len()
        });
        receiver.await.unwrap();
        // Behind that one, and needing nothing: it must not wait.
        let only = disk.write_from(0, only, false).await.unwrap();
        disk.flush().await.unwrap();
        let only = disk.read_into(0, only).await.unwrap();
        // A buffer that is dropped wakes whoever waits for it.
        drop(only);
        assert_eq!(waiting.join().unwrap(), MAX_IO_BYTES as usize);
    });
}

#[test]
fn operations_outlive_the_target() {
    let mut target = Target::start(&["--file", "{}/disk:16M"]);
    let disk = connect(&target, "&reconnect_delay=1");
    const PLACES: u64 = 8;
    const ROUNDS: u64 = 120;
    const BYTES: usize = 32 << 10;
    let worker = |place: u64| {
        let disk = disk.clone();
        move || {
            let slba = place * MIB / 512;
            for round in 0..ROUNDS {
                let data = pattern(place, round, BYTES);
                let read = if round % 2 == 0 {
                    block_on(disk.write(slba, Bytes::from(data.clone()), false)).unwrap();
                    let buffer = block_on(disk.alloc(BYTES as u32)).unwrap();
                    block_on(disk.read_into(slba, buffer)).unwrap().to_vec()
                } else {
                    let buffer = block_on(filled(&disk, &data));
                    block_on(disk.write_from(slba, buffer, true)).unwrap();
                    block_on(disk.read(slba, (BYTES / 512) as u32))
                        .unwrap()
                        .to_vec()
                };
                assert!(read == data, "place {place}, round {round}");
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PLACES)
            .map(|place| scope.spawn(worker(place)))
            .collect();
        for _ in 0..2 {
            // One that was there before, then one that meets a target that is gone.
            target.kill();
            begin_and_drop(disk.write(15 * MIB / 512, Bytes::from(vec![1; 512]), false));
            target.restart();
            let held = pattern(14, 0, BYTES);
            let buffer = block_on(filled(&disk, &held));
            block_on(disk.write_from(14 * MIB / 512, buffer, false)).unwrap();
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
    block_on(disk.close());
}

/// What the documentation shows as the way to embed the library.
#[path = "../../examples/handle.rs"]
#[expect(dead_code, reason = "it is a program as well")]
mod example;

#[test]
fn the_example_works() {
    let target = Target::start(&["--memory", "16M"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let ran = runtime.block_on(example::run(&target.url(1, ""), session_config()));
    ran.unwrap();
}
