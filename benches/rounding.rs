//! The rounding of quantised weights so that nothing of one direction, or of four, is left: how many codes a second one core
//! rounds.
//!
//! `cargo bench --bench rounding`; `cargo test` runs each once, to see that it works.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use lancet::bake::round::{Grid, Levels, Unit, Worker};
use lancet::edit::{Ablation, Direction};

/// Vectors rounded in one go.
const VECTORS: usize = 64;

/// Bits of a code, its largest value and its zero point.
const CODES: [(u32, u8, f32); 3] = [(2, 3, 2.0), (4, 15, 8.0), (8, 255, 128.0)];

/// `len` numbers below 2^24, the same in every run.
fn noise(len: usize) -> impl Iterator<Item = u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    })
}

fn rounding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rounding");
    for (d_model, count) in [(256, 1), (2048, 1), (2048, 4)] {
        let raw: Vec<f64> = noise(d_model * count).map(|n| f64::from(n) - f64::from(1 << 23)).collect();
        let directions = raw.chunks(d_model).map(|raw| Direction::new(raw.to_vec()).expect("noise is a direction"));
        let ablation = Ablation::of_span(directions.collect()).expect("the directions are independent");
        let units: Vec<Unit> = ablation.vectors().iter().map(|one| Unit::new(one.unit())).collect();
        // A scale for each entry, as of blocks of 32.
        let scale: Vec<f32> = (0..d_model).map(|at| 0.01 + 0.001 * ((at / 32) % 5) as f32).collect();
        for (bits, largest, zero) in CODES {
            let codes: Vec<u8> =
                noise(VECTORS * d_model).map(|n| (n % (u32::from(largest) + 1)).try_into().expect("a code")).collect();
            let zero = vec![zero; d_model];
            let levels = Levels::Integer { zero: &zero, lowest: 0.0, highest: f32::from(largest) };
            let grid = Grid { before: &scale, scale: &scale, grown: false, levels };
            group.throughput(Throughput::Elements((VECTORS * d_model) as u64));
            let name = format!("{bits} bits, {count} directions");
            group.bench_function(BenchmarkId::new(name, d_model), |bencher| {
                bencher.iter_batched_ref(
                    || (Worker::new(units[0].padded()), codes.clone()),
                    |(worker, codes)| {
                        for vector in codes.chunks_exact_mut(d_model) {
                            worker.round(vector, grid, &units).expect("scales are finite");
                        }
                    },
                    BatchSize::LargeInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, rounding);
criterion_main!(benches);
