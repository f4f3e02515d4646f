//! The edit of float weights, `W' = W - r r^T W`, on the blocks that the bake streams: how many bytes a second one core
//! edits, by element type and by the axis that is `d_model`.
//!
//! `cargo bench --bench projection`; `cargo test` runs each once, to see that it works.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use lancet::bake::kernel::{
    Along, AlongColumns, Columns, Scratch, Tally, add_components, edit_columns, edit_rows, encode, width,
};
use lancet::edit::Direction;
use lancet::onnx::DataType;

/// `d_model`.
const D: usize = 2048;

/// The other dimension of the matrix.
const K: usize = 512;

const TYPES: [(&str, DataType); 3] =
    [("float32", DataType::FLOAT), ("float16", DataType::FLOAT16), ("bfloat16", DataType::BFLOAT16)];

/// `len` values between -1 and 1, the same in every run.
fn noise(len: usize) -> Vec<f64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 23) - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A matrix of `D * K` elements as a file stores it.
fn stored(dtype: DataType) -> Vec<u8> {
    let mut bytes = vec![0; D * K * width(dtype)];
    encode(dtype, &noise(D * K), &mut bytes);
    bytes
}

/// Times `edit` on a matrix of each type.
fn each_type(criterion: &mut Criterion, group: &str, edit: impl Fn(DataType, &mut Vec<u8>, &mut Scratch) -> Tally) {
    let mut group = criterion.benchmark_group(group);
    for (name, dtype) in TYPES {
        let matrix = stored(dtype);
        group.throughput(Throughput::Bytes(matrix.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let mut scratch = Scratch::default();
            bencher.iter_batched_ref(|| matrix.clone(), |m| edit(dtype, m, &mut scratch), BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn projection(criterion: &mut Criterion) {
    let direction = Direction::new(noise(D)).expect("noise is a direction");
    let r = direction.unit();
    each_type(criterion, "d_model last", |dtype, rows, scratch| {
        let mut tally = Tally::default();
        edit_rows(dtype, rows, 0, r, scratch, &mut tally).expect("noise is finite");
        tally
    });
    each_type(criterion, "d_model first", |dtype, block, scratch| {
        // the first pass finds the component of every column, the second takes it off
        let (mut c, mut after) = (vec![0.0; K], vec![0.0; K]);
        add_components(dtype, block, 0, r, &mut c, scratch);
        let along = Along { r, strength: 1.0 };
        let mut columns = Columns(vec![AlongColumns { along, c: &c, spend: None, after: &mut after }]);
        let mut tally = Tally::default();
        edit_columns(dtype, block, 0, &mut columns, scratch, &mut tally);
        tally
    });
}

criterion_group!(benches, projection);
criterion_main!(benches);
