//! Time of each step of the protocol's hot path: `cargo bench -p nvmf-benches`. Times are those of a batch of 64 commands, rates
//! those of commands. For instructions, which do not depend on what else the machine does, see `benches/instructions.sh`.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvmf_benches::hot::{BATCH, CASES, Meter, Pair};

#[derive(Default)]
struct Stopwatch(Duration);

impl Meter for Stopwatch {
    fn measure(&mut self, step: &mut dyn FnMut()) {
        let begin = Instant::now();
        step();
        self.0 += begin.elapsed();
    }
}

fn hot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hot");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, flow, step) in CASES {
        let mut pair = Pair::new();
        group.bench_function(*name, |bencher| {
            bencher.iter_custom(|batches| {
                let mut watch = Stopwatch::default();
                for _ in 0..batches {
                    pair.run(*flow, *step, &mut watch);
                }
                watch.0
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hot);
criterion_main!(benches);
