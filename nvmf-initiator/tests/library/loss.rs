//! A connection that is lost: what is held, what fails, and when.

use std::time::{Duration, Instant};

use bytes::Bytes;
use nvmf_initiator::handle::{HandleError, Namespace};
use nvmf_initiator::polled::IoError;

use crate::handle::block_on;
use crate::puppet::timed;
use crate::target::{Target, eventually, session_config};

fn served() -> (Target, impl Fn(&Target, &str) -> Namespace) {
    let target = Target::start(&["--file", "{}/disk:1M"]);
    let connect = |target: &Target, options: &str| {
        Namespace::connect_blocking(&target.url(1, options), session_config()).unwrap()
    };
    (target, connect)
}

fn write(disk: &Namespace, slba: u64, byte: u8) -> Result<(), HandleError> {
    block_on(disk.write(slba, Bytes::from(vec![byte; 512]), false))
}

#[test]
fn io_fails_after_fast_io_fail_tmo_and_works_again_after_the_reconnect() {
    let (mut target, connect) = served();
    let disk = connect(
        &target,
        "&reconnect_delay=1&fast_io_fail_tmo=2&ctrl_loss_tmo=600",
    );
    write(&disk, 0, 1).unwrap();
    let fast = Err(HandleError::Io(IoError::FastIoFail));
    let (held, took) = timed(|| {
        target.kill();
        write(&disk, 1, 2)
    });
    assert_eq!(held, fast);
    assert!(
        took >= Duration::from_millis(1900),
        "held for {took:?} only"
    );
    // It does not wait for a time-out of its own.
    let (at_once, took) = timed(|| write(&disk, 1, 2));
    assert_eq!(at_once, fast);
    assert!(took < Duration::from_millis(1900), "it took {took:?}");
    target.restart();
    eventually("the reconnect", || write(&disk, 2, 3).is_ok());
    // What failed was not done behind the caller's back.
    let blocks = block_on(disk.read(0, 3)).unwrap();
    assert_eq!([blocks[0], blocks[512], blocks[1024]], [1, 0, 3]);
    block_on(disk.close());
}

#[test]
fn io_is_held_until_ctrl_loss_tmo_ends_it_for_good() {
    let (mut target, connect) = served();
    let disk = connect(&target, "&reconnect_delay=1&ctrl_loss_tmo=3");
    write(&disk, 0, 1).unwrap();
    let lost = Err(HandleError::Io(IoError::Lost));
    let start = Instant::now();
    target.kill();
    std::thread::scope(|scope| {
        let held: Vec<_> = (0..4)
            .map(|slba| {
                scope.spawn({
                    let disk = &disk;
                    move || write(disk, slba, 9)
                })
            })
            .collect();
        for held in held {
            assert_eq!(held.join().unwrap(), lost);
        }
    });
    assert!(
        start.elapsed() >= Duration::from_millis(2900),
        "{:?}",
        start.elapsed()
    );
    // It stays lost, whatever comes after.
    target.restart();
    let new = connect(&target, "");
    assert_eq!(block_on(new.read(0, 1)).unwrap()[0], 1);
    assert_eq!(write(&disk, 0, 9), lost);
    let (closed, took) = timed(|| block_on(disk.close()));
    let () = closed;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn io_waits_as_long_as_it_has_to() {
    let (mut target, connect) = served();
    let disk = connect(&target, "&reconnect_delay=1&ctrl_loss_tmo=-1");
    target.kill();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| write(&disk, 5, 7));
        // Past several attempts.
        std::thread::sleep(Duration::from_millis(3500));
        assert!(!held.is_finished());
        target.restart();
        held.join().unwrap().unwrap();
    });
    assert_eq!(block_on(disk.read(5, 1)).unwrap()[0], 7);
    block_on(disk.close());
}

#[test]
fn a_handle_closes_while_the_target_is_away() {
    let (mut target, connect) = served();
    let disk = connect(&target, "&reconnect_delay=1");
    target.kill();
    std::thread::scope(|scope| {
        let other = disk.clone();
        let held = scope.spawn(move || write(&other, 5, 7));
        let (closed, took) = timed(|| block_on(disk.close()));
        let () = closed;
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(held.join().unwrap(), Err(HandleError::Ended));
    });
}
