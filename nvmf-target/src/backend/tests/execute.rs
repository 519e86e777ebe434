//! Every operation on each backend, through a real ring.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nvme_proto::digest::Crc;
use nvme_proto::wire::Status;
use nvmf_io::{Buf, BufPool, PoolConfig, Ring, RingConfig, Token, Wait};

use crate::backend::*;
use crate::model::Geometry;

const SIZE: u64 = 16 << 20;

/// A backend with what a shard would give it.
struct Bench {
    backend: Backend,
    backing: Arc<Backing>,
    lent: Lent,
    pool: BufPool,
    ring: Ring,
}

impl Bench {
    fn new(spec: &BackingSpec) -> Self {
        let mut ring = Ring::new(&RingConfig::default()).unwrap();
        let pool = BufPool::new(&PoolConfig::default());
        let backing = Arc::new(Backing::open(spec, &BackingOptions::default()).unwrap());
        let backend = Backend::attach(&backing, &mut ring, Token(0));
        let lent = Lent::new(&pool).unwrap();
        Self {
            backend,
            backing,
            lent,
            pool,
            ring,
        }
    }

    fn file(path: &Path) -> Self {
        Self::new(&BackingSpec::File {
            path: path.into(),
            size_bytes: Some(SIZE),
        })
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(self.backing.block_bytes(), self.backing.size_bytes()).unwrap()
    }

    fn run(&mut self, op: BackendOp, data: Option<&Buf>) -> Status {
        self.run_while(op, data, || {})
    }

    /// Runs `op`, and `meanwhile` before the kernel gets each of its operations.
    fn run_while(&mut self, op: BackendOp, data: Option<&Buf>, meanwhile: impl FnMut()) -> Status {
        self.finish(&mut Work::new(op), data, meanwhile)
    }

    /// Takes all steps of `work`.
    fn finish(
        &mut self,
        work: &mut Work,
        data: Option<&Buf>,
        mut meanwhile: impl FnMut(),
    ) -> Status {
        let mut result = None;
        self.lent.forget();
        loop {
            let geometry = self.geometry();
            let mut task = Task {
                work: &mut *work,
                data,
                geometry,
                token: Token(7),
            };
            let next = match result.take() {
                None => self
                    .backend
                    .submit(&mut task, &mut self.lent, &mut self.ring),
                Some(result) => self.backend.advance(&mut task, &mut self.lent, result),
            };
            match next {
                Next::Done(status) => return status,
                Next::Again => {}
                Next::WaitForCompare => panic!("nobody else compares"),
                Next::InFlight => {
                    meanwhile();
                    self.ring.wait(Wait::Block).unwrap();
                    self.lent.forget();
                    let done = self.ring.next().expect("waited for it");
                    assert_eq!((done.token, done.more), (Token(7), false));
                    result = Some(done.result);
                }
            }
        }
    }

    fn filled(&self, len: u32, byte: u8) -> Buf {
        let buf = self.pool.alloc(len).unwrap();
        buf.fill(0..len, byte);
        buf
    }

    fn read(&mut self, offset_bytes: u64, len_bytes: u32) -> Result<Vec<u8>, Status> {
        let fua = len_bytes.is_multiple_of(8192);
        let buf = self.filled(len_bytes, 0xee);
        match self.run(
            BackendOp::Read {
                offset_bytes,
                len_bytes,
                fua,
            },
            Some(&buf),
        ) {
            Status::SUCCESS => Ok(buf.bytes().unwrap().to_vec()),
            status => Err(status),
        }
    }

    fn write(&mut self, offset_bytes: u64, len_bytes: u32, byte: u8, fua: bool) -> Status {
        let buf = self.filled(len_bytes, byte);
        self.run(
            BackendOp::Write {
                offset_bytes,
                len_bytes,
                fua,
            },
            Some(&buf),
        )
    }

    /// Data of Dataset Management for ranges of (first block, number of blocks).
    fn ranges(&self, ranges: &[(u64, u32)]) -> Buf {
        let buf = self.filled(4096, 0);
        for (index, (start, blocks)) in ranges.iter().enumerate() {
            buf.copy_in(index as u32 * 16 + 4, &blocks.to_le_bytes());
            buf.copy_in(index as u32 * 16 + 8, &start.to_le_bytes());
        }
        buf
    }
}

/// What holds for everything that keeps data.
fn keeps_data(bench: &mut Bench) {
    let block = u64::from(bench.backing.block_bytes());
    assert_eq!(
        bench.read(0, 8192),
        Ok(vec![0; 8192]),
        "a new namespace reads as zeroes"
    );
    for (fua, byte) in [(false, 1), (true, 2)] {
        assert_eq!(bench.write(1 << 20, 1 << 20, byte, fua), Status::SUCCESS);
        assert_eq!(bench.read(1 << 20, 1 << 20), Ok(vec![byte; 1 << 20]));
    }
    assert_eq!(bench.run(BackendOp::Flush, None), Status::SUCCESS);
    assert_eq!(bench.run(BackendOp::Nothing, None), Status::SUCCESS);

    let verify = BackendOp::Verify {
        offset_bytes: 0,
        len_bytes: SIZE,
    };
    assert_eq!(bench.run(verify, None), Status::SUCCESS);

    let compare = BackendOp::Compare {
        offset_bytes: 1 << 20,
        len_bytes: 1 << 20,
    };
    let same = bench.filled(1 << 20, 2);
    assert_eq!(bench.run(compare, Some(&same)), Status::SUCCESS);
    same.fill((1 << 20) - 1..1 << 20, 3);
    assert_eq!(
        bench.run(compare, Some(&same)),
        Status::COMPARE_FAILURE.dnr()
    );

    for (deallocate, fua) in [(false, false), (true, false), (false, true), (true, true)] {
        let (offset_bytes, len_bytes) = ((1 << 20) + block, 600 << 10);
        assert_eq!(bench.write(1 << 20, 1 << 20, 9, false), Status::SUCCESS);
        let zero = BackendOp::WriteZeroes {
            offset_bytes,
            len_bytes,
            deallocate,
            fua,
        };
        assert_eq!(bench.run(zero, None), Status::SUCCESS);
        let mut expected = vec![9; 1 << 20];
        expected[block as usize..][..600 << 10].fill(0);
        assert_eq!(
            bench.read(1 << 20, 1 << 20).unwrap(),
            expected,
            "{deallocate} {fua}"
        );
    }

    assert_eq!(bench.write(0, 64 << 10, 5, false), Status::SUCCESS);
    let blocks = |bytes: u64| (bytes / block) as u32;
    let ranges = [
        (0, blocks(4096)),
        (3, 0),
        (u64::from(blocks(32 << 10)), blocks(8192)),
    ];
    let data = bench.ranges(&ranges);
    assert_eq!(
        bench.run(BackendOp::Deallocate { ranges: 3 }, Some(&data)),
        Status::SUCCESS
    );
    let mut expected = vec![5; 64 << 10];
    expected[..4096].fill(0);
    expected[32 << 10..40 << 10].fill(0);
    assert_eq!(bench.read(0, 64 << 10).unwrap(), expected);

    let outside = bench.ranges(&[(0, 1), (SIZE / block, 1)]);
    assert_eq!(bench.write(0, 4096, 5, false), Status::SUCCESS);
    assert_eq!(
        bench.run(BackendOp::Deallocate { ranges: 2 }, Some(&outside)),
        Status::LBA_OUT_OF_RANGE.dnr()
    );
    assert_eq!(
        bench.read(0, 4096),
        Ok(vec![5; 4096]),
        "a bad list deallocates nothing"
    );
}

#[test]
fn memory_keeps_data() {
    keeps_data(&mut Bench::new(&BackingSpec::Memory { size_bytes: SIZE }));
}

#[test]
fn memory_tells_the_digest_of_what_it_copies_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Bench::new(&BackingSpec::Memory { size_bytes: SIZE });
    let file = Bench::file(&dir.path().join("disk"));
    for (mut bench, copies) in [(memory, true), (file, false)] {
        for (len_bytes, byte) in [(512, 1), (4096, 2), (20 << 10, 3), (1 << 20, 4)] {
            assert_eq!(bench.write(4096, len_bytes, byte, false), Status::SUCCESS);
            let buf = bench.filled(len_bytes, 0xee);
            let op = BackendOp::Read {
                offset_bytes: 4096,
                len_bytes,
                fua: false,
            };
            for wanted in [false, true] {
                let mut work = Work::new(op).with_digest(wanted);
                let status = bench.finish(&mut work, Some(&buf), || {});
                assert_eq!(status, Status::SUCCESS);
                let all = vec![byte; len_bytes as usize];
                assert_eq!(*buf.bytes().unwrap(), *all);
                // Others have the kernel fill the buffer: there is no copy to compute it beside.
                let known = (wanted && copies).then(|| Crc::of(&all));
                assert_eq!(work.digest(), known, "{len_bytes} bytes");
            }
        }
    }
}

#[test]
fn files_keep_data() {
    for dir in [std::env::temp_dir(), "/dev/shm".into()] {
        let dir = tempfile::tempdir_in(dir).unwrap();
        keeps_data(&mut Bench::file(&dir.path().join("disk")));
    }
}

#[test]
fn zeroes_are_written_where_nothing_better_works() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::file(&dir.path().join("disk"));
    if let Backend::File(backend) = &mut bench.backend {
        backend.forget_fallocate();
    }
    let op = |deallocate| BackendOp::WriteZeroes {
        offset_bytes: 4096,
        len_bytes: 1 << 20,
        deallocate,
        fua: true,
    };
    for deallocate in [false, true] {
        assert_eq!(bench.write(0, 2 << 20, 6, false), Status::SUCCESS);
        assert_eq!(bench.run(op(deallocate), None), Status::SUCCESS);
        let mut expected = vec![6; 2 << 20];
        expected[4096..4096 + (1 << 20)].fill(0);
        assert_eq!(bench.read(0, 2 << 20).unwrap(), expected);
    }
    let data = bench.ranges(&[(0, 8)]);
    assert_eq!(
        bench.run(BackendOp::Deallocate { ranges: 1 }, Some(&data)),
        Status::SUCCESS,
        "advice"
    );
}

#[test]
fn deallocation_gives_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut bench = Bench::file(&path);
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    assert_eq!(bench.write(0, 2 << 20, 1, true), Status::SUCCESS);
    assert!(allocated() >= 2 << 20, "{}", allocated());
    let zero = BackendOp::WriteZeroes {
        offset_bytes: 0,
        len_bytes: 1 << 20,
        deallocate: true,
        fua: true,
    };
    assert_eq!(bench.run(zero, None), Status::SUCCESS);
    assert!(allocated() <= 1 << 20, "{}", allocated());
    let data = bench.ranges(&[(0, (SIZE / u64::from(bench.backing.block_bytes())) as u32)]);
    assert_eq!(
        bench.run(BackendOp::Deallocate { ranges: 1 }, Some(&data)),
        Status::SUCCESS
    );
    assert_eq!(allocated(), 0);
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        SIZE,
        "the size stays"
    );
}

#[test]
fn null_reads_zeroes_and_drops_writes() {
    let mut bench = Bench::new(&BackingSpec::Null { size_bytes: SIZE });
    assert_eq!(bench.write(0, 4096, 1, true), Status::SUCCESS);
    assert!(bench.backend.needs_no_buffer(&BackendOp::Read {
        offset_bytes: 0,
        len_bytes: 4096,
        fua: false
    }));
    let compare = BackendOp::Compare {
        offset_bytes: 0,
        len_bytes: 4096,
    };
    let zeroes = bench.filled(4096, 0);
    assert_eq!(bench.run(compare, Some(&zeroes)), Status::SUCCESS);
    zeroes.fill(9..10, 1);
    assert_eq!(
        bench.run(compare, Some(&zeroes)),
        Status::COMPARE_FAILURE.dnr()
    );
    let data = bench.ranges(&[(SIZE / 512, 1)]);
    assert_eq!(
        bench.run(BackendOp::Deallocate { ranges: 1 }, Some(&data)),
        Status::LBA_OUT_OF_RANGE.dnr()
    );
}

#[test]
fn a_truncated_file_fails_past_its_end_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut bench = Bench::file(&path);
    let outside = std::fs::File::options().write(true).open(&path).unwrap();
    assert_eq!(bench.write(8 << 20, 8192, 1, false), Status::SUCCESS);
    outside.set_len((8 << 20) + 4096).unwrap();

    assert_eq!(bench.read(0, 4096), Ok(vec![0; 4096]));
    assert_eq!(bench.read(8 << 20, 4096), Ok(vec![1; 4096]));
    assert_eq!(
        bench.read(8 << 20, 8192),
        Err(Status::UNRECOVERED_READ_ERROR),
        "cut in the middle"
    );
    assert_eq!(
        bench.read(12 << 20, 4096),
        Err(Status::UNRECOVERED_READ_ERROR)
    );
    let verify = BackendOp::Verify {
        offset_bytes: 0,
        len_bytes: SIZE,
    };
    assert_eq!(bench.run(verify, None), Status::UNRECOVERED_READ_ERROR);
    assert_eq!(bench.write(12 << 20, 4096, 2, false), Status::WRITE_FAULT);
    let zero = BackendOp::WriteZeroes {
        offset_bytes: 12 << 20,
        len_bytes: 4096,
        deallocate: false,
        fua: false,
    };
    assert_eq!(bench.run(zero, None), Status::WRITE_FAULT);
    let len = std::fs::metadata(&path).unwrap().len();
    assert_eq!(
        len,
        (8 << 20) + 4096,
        "nothing extends the file over the hole"
    );
    assert_eq!(
        bench.write(0, 4096, 3, false),
        Status::SUCCESS,
        "what is there goes on"
    );

    outside.set_len(SIZE).unwrap();
    bench.backing.inspect();
    assert_eq!(bench.write(12 << 20, 4096, 2, false), Status::SUCCESS);
    assert_eq!(bench.read(12 << 20, 4096), Ok(vec![2; 4096]));
}

/// Writes that would extend the file from 4096 bytes: one by a command for each way there is.
fn past_the_end() -> [BackendOp; 4] {
    let (offset_bytes, len_bytes) = (12 << 20, 4096);
    let write = |fua| BackendOp::Write {
        offset_bytes,
        len_bytes,
        fua,
    };
    let zero = |fua| BackendOp::WriteZeroes {
        offset_bytes,
        len_bytes: len_bytes.into(),
        deallocate: false,
        fua,
    };
    [write(false), write(true), zero(false), zero(true)]
}

#[test]
fn a_write_is_the_first_to_see_a_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let ways = past_the_end()
        .into_iter()
        .flat_map(|op| [(op, true), (op, false)]);
    for (n, (op, fallocates)) in ways.enumerate() {
        let path = dir.path().join(n.to_string());
        let mut bench = Bench::file(&path);
        if let (false, Backend::File(backend)) = (fallocates, &mut bench.backend) {
            backend.forget_fallocate();
        }
        let outside = std::fs::File::options().write(true).open(&path).unwrap();
        outside.set_len(4096).unwrap();
        let data = bench.filled(4096, 2);
        assert_eq!(bench.run(op, Some(&data)), Status::WRITE_FAULT, "{op:?}");
        assert_eq!(outside.metadata().unwrap().len(), 4096, "{op:?}");
        assert_eq!(bench.write(0, 4096, 3, false), Status::SUCCESS);
        // Its size again, and nobody inspected it.
        outside.set_len(SIZE).unwrap();
        assert_eq!(bench.run(op, Some(&data)), Status::SUCCESS, "{op:?}");
    }
}

#[test]
fn a_write_in_flight_is_not_acknowledged_when_the_file_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    for (n, op) in past_the_end().into_iter().enumerate() {
        let path = dir.path().join(n.to_string());
        let mut bench = Bench::file(&path);
        let outside = std::fs::File::options().write(true).open(&path).unwrap();
        let data = bench.filled(4096, 2);
        let cut = || outside.set_len(4096).unwrap();
        assert_eq!(
            bench.run_while(op, Some(&data), cut),
            Status::WRITE_FAULT,
            "{op:?}"
        );
        // The file may have grown up to what the kernel had already, and grows no further.
        let grown = outside.metadata().unwrap().len();
        assert!(grown <= (12 << 20) + 4096, "{grown}");
        assert_eq!(bench.write(13 << 20, 4096, 2, false), Status::WRITE_FAULT);
        assert_eq!(outside.metadata().unwrap().len(), grown);
        outside.set_len(SIZE).unwrap();
        assert_eq!(bench.write(13 << 20, 4096, 2, false), Status::SUCCESS);
    }
}

#[test]
fn a_shorter_file_is_no_fault_of_writes_that_started_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut bench = Bench::file(&path);
    let outside = std::fs::File::options().write(true).open(&path).unwrap();
    outside.set_len(8 << 20).unwrap();
    let data = bench.filled(4096, 2);
    let write = BackendOp::Write {
        offset_bytes: 0,
        len_bytes: 4096,
        fua: false,
    };
    assert_eq!(bench.run(write, Some(&data)), Status::SUCCESS);
    let cut_again = || outside.set_len(4 << 20).unwrap();
    assert_eq!(
        bench.run_while(write, Some(&data), cut_again),
        Status::WRITE_FAULT
    );
    let grow = || outside.set_len(SIZE).unwrap();
    assert_eq!(bench.run_while(write, Some(&data), grow), Status::SUCCESS);
}

#[test]
fn a_deleted_file_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut bench = Bench::file(&path);
    std::fs::remove_file(&path).unwrap();
    bench.backing.inspect();
    assert_eq!(bench.write(0, 4096, 2, true), Status::SUCCESS);
    assert_eq!(bench.read(0, 4096), Ok(vec![2; 4096]));
}

#[test]
fn flush_and_fua_reach_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut bench = Bench::file(&path);
    assert_eq!(bench.write(4096, 4096, 7, true), Status::SUCCESS);
    let mut there = [0; 4096];
    std::fs::File::open(&path)
        .unwrap()
        .read_exact_at(&mut there, 4096)
        .unwrap();
    assert_eq!(there, [7; 4096]);
    assert_eq!(bench.run(BackendOp::Flush, None), Status::SUCCESS);
}
