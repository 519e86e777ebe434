//! Buffers and the pool, without a ring. Runs under Miri as well.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::pool::{CHUNK_BYTES, MIN_CHUNKS, POPULATE_BYTES};
use super::*;

/// The least bound: one chunk for each class.
fn smallest() -> BufPool {
    BufPool::new(&PoolConfig {
        max_bytes: 0,
        ..PoolConfig::default()
    })
}

fn panics(action: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(action)).is_err()
}

#[test]
fn bytes_go_in_and_out() {
    let pool = smallest();
    let buf = pool.alloc(100).unwrap();
    assert_eq!(buf.len(), 100);
    let before = copied_bytes();
    buf.copy_in(0, &[1; 100]);
    buf.copy_in(98, &[2; 2]);
    buf.fill(10..20, 3);
    let mut out = [0; 100];
    buf.copy_out(0, &mut out);
    assert_eq!(
        (out[0], out[9], out[10], out[19], out[20], out[97], out[98]),
        (1, 1, 3, 3, 1, 1, 2)
    );
    // Within one buffer, overlapping.
    buf.copy_from(12, &buf, 8..18);
    buf.copy_out(0, &mut out);
    assert_eq!(
        &out[8..24],
        [1, 1, 3, 3, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 1, 1]
    );
    let other = pool.alloc(4096).unwrap();
    other.copy_from(4000, &buf, 4..100);
    assert!(other.eq_range(4000..4096, &buf, 4));
    assert!(!other.eq_range(4000..4096, &buf, 3));
    assert!(other.is_zero(0..4000) && !other.is_zero(0..4001));
    assert_eq!(buf.crc32c(0..100, 0), crc32c::crc32c(&out));
    let half = buf.crc32c(0..50, 0);
    assert_eq!(buf.crc32c(50..100, half), crc32c::crc32c(&out));
    assert_eq!(copied_bytes() - before, 100 + 2 + 100 + 10 + 100 + 96);
}

#[test]
fn ranges_outside_panic() {
    let pool = smallest();
    let buf = pool.alloc(100).unwrap();
    assert!(panics(|| buf.copy_in(99, &[0; 2])));
    assert!(panics(|| buf.copy_in(u32::MAX, &[0; 2])));
    assert!(panics(|| buf.copy_out(101, &mut [])));
    assert!(panics(|| buf.fill(50..101, 0)));
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let reversed = 60..50;
    assert!(panics(|| buf.fill(reversed.clone(), 0)));
    assert!(panics(|| buf.copy_from(0, &buf, reversed)));
    assert!(panics(|| {
        buf.crc32c(0..101, 0);
    }));
    buf.copy_in(100, &[]);
    assert!(buf.is_unique());
}

#[test]
fn who_may_look_and_who_may_write() {
    let pool = smallest();
    let mut buf = pool.alloc(64).unwrap();
    buf.get_mut().unwrap().fill(5);
    let other = buf.clone();
    assert!(other.same_as(&buf) && !buf.is_unique());
    assert!(buf.get_mut().is_none(), "two handles");
    {
        let look = other.bytes().unwrap();
        let too = buf.bytes().unwrap();
        assert_eq!(look[..], too[..]);
        assert!(panics(|| buf.copy_in(0, &look[..1])), "while being read");
        assert!(panics(|| buf.fill(0..1, 0)), "while being read");
        assert!(KernelWrite::new(&buf).is_none(), "while being read");
        assert_eq!(buf.crc32c(0..64, 0), crc32c::crc32c(&look));
    }
    drop(other);
    let write = KernelWrite::new(&buf).unwrap();
    assert!(buf.bytes().is_none(), "the kernel may write");
    assert!(buf.get_mut().is_none(), "the kernel may write");
    // Copies are still allowed, and what needs references bounces.
    buf.copy_in(0, &[9]);
    assert_eq!(buf.crc32c(0..64, 0), {
        let mut copy = [5; 64];
        copy[0] = 9;
        crc32c::crc32c(&copy)
    });
    assert!(!buf.is_zero(0..1));
    drop(write);
    assert_eq!(buf.get_mut().unwrap()[0], 9);
}

#[test]
fn a_reader_that_is_never_dropped_blocks_writing_until_the_buffer_is_given_back() {
    let pool = smallest();
    let buf = pool.alloc(64).unwrap();
    std::mem::forget(buf.bytes());
    assert!(panics(|| buf.fill(0..1, 0)));
    drop(buf);
    pool.alloc(64).unwrap().fill(0..64, 1);
}

#[test]
fn comparing_while_the_kernel_writes_elsewhere() {
    let pool = smallest();
    let left = pool.alloc(10_000).unwrap();
    let right = pool.alloc(16_384).unwrap();
    for index in 0..10_000u32 {
        left.copy_in(index, &[(index % 253) as u8]);
    }
    right.copy_from(5000, &left, 0..10_000);
    for writers in [(false, false), (true, false), (false, true), (true, true)] {
        let _left = writers.0.then(|| KernelWrite::new(&left).unwrap());
        let _right = writers.1.then(|| KernelWrite::new(&right).unwrap());
        assert!(left.eq_range(0..10_000, &right, 5000), "{writers:?}");
        assert!(left.eq_range(3..9_999, &right, 5003), "{writers:?}");
        assert!(!left.eq_range(3..9_999, &right, 5002), "{writers:?}");
        right.copy_in(14_998, &[255]);
        assert!(!left.eq_range(0..10_000, &right, 5000), "{writers:?}");
        assert!(left.eq_range(0..9_998, &right, 5000), "{writers:?}");
        right.copy_from(14_998, &left, 9_998..9_999);
    }
}

#[test]
fn the_zero_buffer_is_zero_and_stays_so() {
    let pool = smallest();
    let mut zero = pool.zero().unwrap();
    let mut again = pool.zero().unwrap();
    assert_eq!(zero.len(), ZERO_BYTES);
    // Miri takes minutes for all of it.
    let looked_at = if cfg!(miri) { 4096 } else { ZERO_BYTES };
    assert!(zero.is_zero(0..looked_at) && zero.same_as(&again));
    drop(zero);
    assert!(again.get_mut().is_none(), "the only handle, and yet");
    assert!(panics(|| again.copy_in(0, &[1])));
    assert!(panics(|| again.fill(0..1, 1)));
    assert!(KernelWrite::new(&again).is_none());
    drop(again);
    zero = pool.zero().unwrap();
    drop(pool);
    assert!(zero.is_zero(0..16), "handles keep it alive");
}

#[test]
fn lengths_and_classes() {
    let pool = smallest();
    assert!(pool.alloc(0).is_none());
    assert!(pool.alloc((2 << 20) + 1).is_none());
    assert!(pool.alloc(u32::MAX).is_none());
    assert_eq!(
        pool.mapped_bytes(),
        0,
        "nothing is taken before it is needed"
    );
    for bytes in CLASS_BYTES {
        for len in [bytes - 1, bytes] {
            let mut buf = pool.alloc(len).unwrap();
            assert_eq!(buf.len(), len);
            let slice = buf.get_mut().unwrap();
            assert_eq!(slice.as_ptr().addr() % 4096, 0, "page-aligned");
            slice[len as usize - 1] = 1;
        }
    }
    assert_eq!(pool.in_use(), 0);
    assert_eq!(pool.mapped_bytes(), CLASS_BYTES.len() * (2 << 20));
}

/// Allocates buffers of `len` until there is none.
fn exhaust(pool: &BufPool, len: u32) -> Vec<Buf> {
    std::iter::from_fn(|| pool.alloc(len)).collect()
}

#[test]
fn one_class_cannot_starve_another() {
    let pool = BufPool::new(&PoolConfig {
        max_bytes: 20 << 20,
        ..PoolConfig::default()
    });
    let small = exhaust(&pool, 4096);
    assert_eq!(
        small.len(),
        (10 - 5) * 512,
        "all but the chunks kept for five other classes"
    );
    assert!(pool.alloc(1).is_none());
    for &bytes in &CLASS_BYTES[1..] {
        let others = exhaust(&pool, bytes);
        assert_eq!(
            others.len(),
            (2 << 20) / bytes as usize,
            "exactly the chunk that was kept"
        );
    }
    assert_eq!(pool.mapped_bytes(), 20 << 20);
    drop(small);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn idle_chunks_change_their_class() {
    let pool = BufPool::new(&PoolConfig {
        max_bytes: 20 << 20,
        ..PoolConfig::default()
    });
    let small = exhaust(&pool, 4096);
    let kept: Vec<Buf> = small.into_iter().step_by(512).take(2).collect();
    for buf in &kept {
        buf.fill(0..4096, 0x77);
    }
    // The chunks of the two that are kept cannot change, two of the other three can (a class keeps one), and one
    // was kept back for this class anyway.
    let large = exhaust(&pool, 2 << 20);
    assert_eq!(large.len(), 1 + 3);
    for buf in &large {
        buf.fill(0..2 << 20, 0x11);
    }
    assert!(
        kept.iter()
            .all(|buf| !buf.is_zero(0..1) && buf.crc32c(0..4096, 0) == kept[0].crc32c(0..4096, 0))
    );
    assert_eq!(pool.in_use(), 2 + 4);
    drop(large);
    // And back again.
    let small = exhaust(&pool, 4096);
    assert_eq!(small.len(), 2 * 512 - 2 + 3 * 512);
}

#[test]
fn buffers_outlive_the_pool() {
    let pool = smallest();
    let buf = pool.alloc(4096).unwrap();
    let other = pool.clone().alloc(70_000).unwrap();
    drop(pool);
    buf.fill(0..4096, 1);
    other.copy_from(0, &buf, 0..4096);
    assert!(!other.is_zero(0..1));
}

#[test]
fn giving_back_is_last_in_first_out() {
    let pool = smallest();
    let first = pool.alloc(4096).unwrap();
    first.fill(0..4096, 0xee);
    drop(first);
    let second = pool.alloc(10).unwrap();
    assert!(
        !second.is_zero(0..10),
        "the warm buffer is used again, with its old content"
    );
}

#[test]
fn detached_buffers_come_back() {
    let pool = smallest();
    let mut buf = pool.alloc(2 << 20).unwrap();
    buf.get_mut().unwrap().fill(1);
    let copy = buf.clone();
    let buf = pool.detach(buf).expect_err("two handles");
    drop(copy);
    let mut detached = pool.detach(buf).unwrap();
    assert_eq!(pool.in_use(), 1);
    assert!(pool.alloc(2 << 20).is_none(), "the class has one buffer");
    detached[..5].fill(2);
    let elsewhere = std::thread::spawn(move || {
        detached[5] = 3;
        detached
    });
    let detached = elsewhere.join().unwrap();
    let buf = pool.attach(detached).unwrap();
    assert!(buf.is_unique() && buf.len() == 2 << 20);
    assert_eq!(buf.bytes().unwrap()[..8], [2, 2, 2, 2, 2, 3, 1, 1]);
    // Dropped by another thread it is back with the next allocation.
    let detached = pool.detach(buf).unwrap();
    std::thread::spawn(move || drop(detached)).join().unwrap();
    let buf = pool.alloc(2 << 20).expect("it came back");
    assert_eq!(pool.in_use(), 1);
    drop(buf);
    assert_eq!(pool.in_use(), 0);
    // Those of other pools, and the zero buffer, are left alone.
    let other = smallest();
    let foreign = other.alloc(10).unwrap();
    let foreign = pool.detach(foreign).expect_err("of another pool");
    let foreign = other.detach(foreign).unwrap();
    let foreign = pool.attach(foreign).expect_err("of another pool");
    assert!(pool.detach(pool.zero().unwrap()).is_err());
    drop(other.attach(foreign).unwrap());
}

#[test]
fn a_detached_buffer_outlives_its_pool() {
    let pool = smallest();
    let buf = pool.alloc(5000).unwrap();
    buf.fill(0..5000, 9);
    let kept = pool.alloc(5000).unwrap();
    let mut detached = pool.detach(buf).unwrap();
    drop(kept);
    drop(pool);
    assert!(detached.iter().all(|byte| *byte == 9));
    detached.fill(8);
    assert_eq!(detached.len(), 5000);
    let new = smallest();
    drop(new.attach(detached).expect_err("of another pool"));
}

#[cfg(not(miri))]
#[test]
fn a_resident_pool_takes_memory_for_the_buffers_that_it_hands_out() {
    let pool = BufPool::new(&PoolConfig {
        max_bytes: 0,
        resident: true,
    });
    let buf = pool.alloc((1 << 20) + 4096).unwrap();
    let address = buf.bytes().unwrap().as_ptr().addr();
    let populated = || pool.populated_bytes();
    assert_eq!(populated(), (1 << 20) + POPULATE_BYTES);
    assert_eq!(
        crate::process::present_bytes(address, populated()),
        populated()
    );
    drop(buf);
    let whole = pool.alloc(2 << 20).unwrap();
    assert_eq!(populated(), CHUNK_BYTES);
    drop(whole);
    pool.trim();
    assert_eq!(pool.mapped_bytes(), 0);
    let small = [pool.alloc(4096).unwrap(), pool.alloc(4096).unwrap()];
    assert_eq!(populated(), POPULATE_BYTES);
    drop(small);
}

#[test]
fn what_is_trimmed_is_not_used_and_comes_again() {
    let pool = smallest();
    let (kept, gone) = (pool.alloc(10).unwrap(), pool.alloc(70_000).unwrap());
    kept.fill(0..10, 7);
    drop(gone);
    assert_eq!(pool.mapped_bytes(), 2 * CHUNK_BYTES);
    pool.trim();
    assert_eq!(
        pool.mapped_bytes(),
        CHUNK_BYTES,
        "a chunk with a buffer in use stays"
    );
    assert_eq!(kept.bytes().unwrap()[..], [7; 10]);
    // Every class has its chunk again, and no more than before.
    let all: Vec<_> = CLASS_BYTES
        .iter()
        .map(|&bytes| pool.alloc(bytes).unwrap())
        .collect();
    assert_eq!(pool.mapped_bytes(), MIN_CHUNKS * CHUNK_BYTES);
    assert!(pool.alloc(2 << 20).is_none());
    drop((all, kept));
    pool.trim();
    assert_eq!((pool.mapped_bytes(), pool.in_use()), (0, 0));
}

#[test]
fn pools_share_what_is_spare_and_each_has_its_own_of_every_class() {
    let config = PoolConfig {
        max_bytes: 64 << 20,
        ..PoolConfig::default()
    };
    let spare = Spare::new(3 * CHUNK_BYTES);
    let (one, other) = (
        BufPool::sharing(&config, &spare),
        BufPool::sharing(&config, &spare),
    );
    let large = |pool: &BufPool| pool.alloc(2 << 20);
    let mut taken: Vec<_> = std::iter::from_fn(|| large(&one)).collect();
    assert_eq!(taken.len(), 4, "its own and all that is spare");
    assert_eq!(spare.left_bytes(), 0);
    let own: Vec<_> = CLASS_BYTES
        .iter()
        .map(|&bytes| other.alloc(bytes).unwrap())
        .collect();
    assert!(large(&other).is_none());
    // What the one gives back the other can have.
    taken.truncate(2);
    one.trim();
    assert_eq!(spare.left_bytes(), 2 * CHUNK_BYTES);
    assert!(large(&other).is_some());
    drop((own, taken, one, other));
    assert_eq!(spare.left_bytes(), 3 * CHUNK_BYTES);
}
