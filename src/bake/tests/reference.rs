//! The edit of a tensor against a few plain lines of float64 that share nothing with it: loops over indices, and the
//! neighbours of a stored value by its bits.

use half::{bf16, f16};
use proptest::prelude::*;

use super::super::kernel::Along;
use super::super::plan::{Part, TensorEdit};
use super::super::tensor;
use crate::lm::{Layer, WriterKind};
use crate::onnx::{DataType, TensorId};

/// A value of the type, nearest to `value`, as its bits.
fn nearest(dtype: DataType, value: f64) -> u64 {
    match dtype {
        DataType::FLOAT => u64::from((value as f32).to_bits()),
        DataType::FLOAT16 => u64::from(f16::from_f64(value).to_bits()),
        DataType::BFLOAT16 => u64::from(bf16::from_f64(value).to_bits()),
        _ => value.to_bits(),
    }
}

fn plain(dtype: DataType, bits: u64) -> f64 {
    match dtype {
        DataType::FLOAT => f64::from(f32::from_bits(bits as u32)),
        DataType::FLOAT16 => f16::from_bits(bits as u16).to_f64(),
        DataType::BFLOAT16 => bf16::from_bits(bits as u16).to_f64(),
        _ => f64::from_bits(bits),
    }
}

fn size(dtype: DataType) -> usize {
    match dtype {
        DataType::FLOAT => 4,
        DataType::DOUBLE => 8,
        _ => 2,
    }
}

fn pack(dtype: DataType, bits: &[u64]) -> Vec<u8> {
    bits.iter().flat_map(|b| b.to_le_bytes()[..size(dtype)].to_vec()).collect()
}

fn unpack(dtype: DataType, bytes: &[u8]) -> Vec<u64> {
    let wide = |chunk: &[u8]| {
        let mut all = [0u8; 8];
        all[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(all)
    };
    bytes.chunks(size(dtype)).map(wide).collect()
}

/// Uniform in -1..1.
fn values(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..len).map(|_| 2.0 * next() - 1.0).collect()
}

fn unit(seed: u64, d: usize) -> Vec<f64> {
    let mut r = values(seed, d);
    let mut square = 0.0;
    for v in &r {
        square += v * v;
    }
    for v in &mut r {
        *v /= square.sqrt();
    }
    r
}

/// So many orthonormal vectors of `d` entries: each one less what it has of those before it.
fn basis(seed: u64, d: usize, k: usize) -> Vec<Vec<f64>> {
    let mut found: Vec<Vec<f64>> = Vec::new();
    for n in 0..k {
        let mut next = unit(seed + 100 * n as u64, d);
        for _ in 0..3 {
            for q in &found {
                let mut c = 0.0;
                for i in 0..d {
                    c += q[i] * next[i];
                }
                for i in 0..d {
                    next[i] -= c * q[i];
                }
            }
            let mut square = 0.0;
            for v in &next {
                square += v * v;
            }
            for v in &mut next {
                *v /= square.sqrt();
            }
        }
        found.push(next);
    }
    found
}

/// What is edited: `shape` with `d_model` on `axis`.
#[derive(Debug, Clone)]
struct Case {
    dtype: DataType,
    shape: Vec<usize>,
    axis: usize,
    /// How many directions are taken off.
    directions: usize,
    strength: f64,
    plus: bool,
    seed: u64,
}

#[allow(clippy::needless_range_loop, reason = "plain lines, as one would write them on paper")]
fn check(case: &Case) {
    let Case { dtype, shape, axis, directions, strength, .. } = case.clone();
    let d = shape[axis];
    let basis = basis(case.seed + 1, d, directions.min(d));
    let plus = case.plus.then(|| values(case.seed + 2, d));
    let elements: usize = shape.iter().product();
    let stored: Vec<u64> = values(case.seed, elements).iter().map(|v| nearest(dtype, *v)).collect();
    let before: Vec<f64> = stored.iter().map(|b| plain(dtype, *b)).collect();
    let edit = TensorEdit {
        tensor: TensorId(0),
        name: "w".into(),
        part: if case.plus { Part::Vector } else { Part::Matrix },
        kind: WriterKind::MlpOut,
        layer: Some(Layer(0)),
        dtype,
        shape: shape.iter().map(|&n| n as u64).collect(),
        axis,
        same_bytes_as: None,
        copy: None,
        turned: None,
        quantised: None,
        plus: plus.clone(),
        writer: "layer.0.mlp_out".into(),
    };
    let bytes = pack(dtype, &stored);
    let mut out = vec![0u8; bytes.len()];
    tensor::edit(
        &edit,
        &basis.iter().map(|r| Along { r, strength }).collect::<Vec<_>>(),
        true,
        &|block, at| {
            block.copy_from_slice(&bytes[at as usize..at as usize + block.len()]);
            Ok(())
        },
        &mut |block| {
            out[block.at as usize..block.at as usize + block.after.len()].copy_from_slice(block.after);
            Ok(())
        },
    )
    .unwrap();
    let found = unpack(dtype, &out);

    // vectors along the axis: `inner` elements apart
    let inner: usize = shape[axis + 1..].iter().product();
    let half = size(dtype) == 2;
    for outer in 0..elements / d / inner {
        for column in 0..inner {
            let at = |k: usize| (outer * d + k) * inner + column;
            let mut c = vec![0.0; basis.len()];
            for j in 0..basis.len() {
                for k in 0..d {
                    c[j] += basis[j][k] * before[at(k)];
                }
            }
            let (mut kept, mut left, mut coarse) = (vec![0.0; basis.len()], vec![0.0; basis.len()], 0.0f64);
            for k in 0..d {
                let mut exact = before[at(k)] + plus.as_ref().map_or(0.0, |p| p[k]);
                for j in 0..basis.len() {
                    exact -= strength * c[j] * basis[j][k];
                }
                let is = plain(dtype, found[at(k)]);
                let near = nearest(dtype, exact);
                // the values on both sides of the nearest one
                let (below, above) = (plain(dtype, near.wrapping_sub(1)), plain(dtype, near + 1));
                let spacing = (plain(dtype, near) - below).abs().max((above - plain(dtype, near)).abs());
                let spacing = if spacing.is_finite() { spacing } else { plain(dtype, 1) };
                let slack = 1e-13;
                if dtype == DataType::DOUBLE {
                    assert!((is - exact).abs() <= slack, "{case:?}: {is} for {exact}");
                } else if half {
                    assert!((is - exact).abs() <= spacing + slack, "{case:?}: {is} for {exact}");
                } else {
                    // the correctly rounded value, unless it is a toss-up to the last bit of float64
                    let toss = (exact - plain(dtype, near)).abs() > 0.5 * spacing - slack;
                    assert!(found[at(k)] == near || toss || is == 0.0, "{case:?}: {is} for {exact}");
                }
                for j in 0..basis.len() {
                    kept[j] += basis[j][k] * exact;
                    left[j] += basis[j][k] * is;
                }
                coarse = coarse.max(spacing);
            }
            // what nearest rounding of every entry may leave at most, and usually leaves much less
            let most = if dtype == DataType::DOUBLE { 1e-12 } else { 0.5 * coarse * (d as f64).sqrt() + 1e-12 };
            for (left, kept) in left.iter().zip(&kept) {
                assert!((left - kept).abs() <= most, "{case:?}: {left} is left where {kept} was to be");
            }
        }
    }
}

const TYPES: [DataType; 4] = [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16, DataType::DOUBLE];

#[test]
fn every_type_axis_and_kind_of_edit() {
    let shapes: [(&[usize], usize); 7] = [
        (&[40, 96], 1),
        (&[96, 40], 0),
        (&[96], 0),
        (&[1, 96], 1),
        (&[3, 64, 17], 1),
        (&[3, 17, 64], 2),
        // more than one block of 1 MiB, with rows that blocks cut
        (&[96, 5003], 0),
    ];
    for dtype in TYPES {
        for (shape, axis) in shapes {
            for (directions, strength) in [(1, 1.0), (1, 0.3), (2, 1.0), (5, 0.3)] {
                check(&Case { dtype, shape: shape.to_vec(), axis, directions, strength, plus: false, seed: 7 });
            }
        }
        for (directions, strength) in [(1, 1.0), (1, 0.5), (3, 1.0)] {
            check(&Case { dtype, shape: vec![96], axis: 0, directions, strength, plus: true, seed: 9 });
            check(&Case { dtype, shape: vec![1, 96], axis: 1, directions, strength, plus: true, seed: 9 });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shape(
        which in 0usize..4,
        outer in 1usize..4,
        d in 1usize..140,
        inner in 1usize..40,
        directions in 1usize..5,
        strength in prop_oneof![Just(1.0), 0.01f64..1.0],
        seed in 1u64..1_000_000,
    ) {
        let (shape, axis) = if inner == 1 { (vec![outer, d], 1) } else { (vec![outer, d, inner], 1) };
        check(&Case { dtype: TYPES[which], shape, axis, directions, strength, plus: false, seed });
    }

    #[test]
    fn the_result_does_not_depend_on_the_threads(seed in 1u64..1_000_000, which in 0usize..4) {
        let case =
            Case { dtype: TYPES[which], shape: vec![33, 96], axis: 1, directions: 1, strength: 1.0, plus: false, seed };
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| check(&case));
        }
    }
}
