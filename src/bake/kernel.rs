//! The edit of one block of a tensor: `W' = W - r r^T W` in float64, rounded once.
//!
//! Baking makes every write to the residual stream orthogonal to the unit direction `r` (Wang et al.
//! 2025, eq. 4: `x <- x - r r^T x`) by editing what writes (Arditi et al. 2024, appendix E). A tensor has
//! `d_model` on its last axis (`[K, D]`, vectors: one pass, row by row) or on its first (`[D, K]`: a pass
//! for `c = r^T W`, then one for `W - r c`). Elements are little-endian float32, float16, bfloat16 or
//! float64.
//!
//! Nearest rounding of 16-bit types leaves `e = r^T W'` about `2^-12` (float16) of `W`. A few entries of each
//! `d_model`-vector that lie near the middle between two representable values then take the other one,
//! where that removes at least an eighth of what is left of `e`. `|e|` never grows.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::linalg::dot;
use crate::onnx::DataType;

/// Elements converted at a time where rows are long; keeps the scratch in the first-level cache.
const STRETCH: usize = 2048;

/// Leak, relative to the component that was removed, below which no entry is flipped any more.
const LEAK_TARGET: f64 = 1.0 / (1 << 24) as f64;

/// An entry is flipped if that leaves at most this share of the leak.
const FLIP_LEAVES: f64 = 0.875;

/// A weight, or its edited value, is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite;

/// What an edit did to the blocks seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Sum over columns of `(r^T W)^2`.
    pub before: f64,
    /// Sum over columns of `(r^T W')^2`, of the stored values.
    pub after: f64,
    /// Largest `|W' - W|`.
    pub max_abs_delta: f64,
    /// Entries that were rounded to their second-nearest value.
    pub flips: u64,
}

/// Buffers of one worker.
#[derive(Debug, Default)]
pub struct Scratch {
    stored: Vec<f64>,
    exact: Vec<f64>,
    rounded: Vec<f64>,
}

impl Scratch {
    fn sized(&mut self, len: usize) -> (&mut [f64], &mut [f64], &mut [f64]) {
        for buffer in [&mut self.stored, &mut self.exact, &mut self.rounded] {
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
        }
        (&mut self.stored[..len], &mut self.exact[..len], &mut self.rounded[..len])
    }
}

/// Bytes an element of an editable type.
///
/// # Panics
/// For a type that is no float type; a plan holds none.
pub fn width(dtype: DataType) -> usize {
    match dtype {
        DataType::FLOAT => 4,
        DataType::FLOAT16 | DataType::BFLOAT16 => 2,
        DataType::DOUBLE => 8,
        other => panic!("a plan holds float tensors only, not {other}"),
    }
}

/// Whether leaks are spent by flips.
pub fn is_half(dtype: DataType) -> bool {
    matches!(dtype, DataType::FLOAT16 | DataType::BFLOAT16)
}

/// Stored little-endian elements as float64 (exact).
pub fn decode(dtype: DataType, bytes: &[u8], out: &mut [f64]) {
    match dtype {
        DataType::FLOAT => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f64::from(f32::from_le_bytes(*bytes));
            }
        }
        DataType::DOUBLE => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *value = f64::from_le_bytes(*bytes);
            }
        }
        DataType::BFLOAT16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f64::from(f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16));
            }
        }
        DataType::FLOAT16 => {
            // By slices, so that the conversion instructions are looked for once a slice.
            let (mut halves, mut singles) = ([f16::ZERO; 256], [0.0f32; 256]);
            for (values, bytes) in out.chunks_mut(256).zip(bytes.chunks(512)) {
                let n = values.len();
                for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *half = f16::from_le_bytes(*bytes);
                }
                halves[..n].convert_to_f32_slice(&mut singles[..n]);
                for (value, single) in values.iter_mut().zip(&singles) {
                    *value = f64::from(*single);
                }
            }
        }
        other => panic!("a plan holds float tensors only, not {other}"),
    }
}

/// Float64 to float32, rounded to odd: rounding the result again to a type with at most 22 bits of precision
/// equals rounding once.
fn to_odd(value: f64) -> f32 {
    let single = value as f32;
    let wide = f64::from(single);
    let (inexact, above) = (u32::from(wide != value), u32::from(wide.abs() > value.abs()));
    f32::from_bits((single.to_bits() - (inexact & above)) | inexact)
}

/// Float64 values as stored little-endian elements, rounded once to nearest, ties to even.
pub fn encode(dtype: DataType, values: &[f64], out: &mut [u8]) {
    match dtype {
        DataType::FLOAT => {
            for (bytes, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = (*value as f32).to_le_bytes();
            }
        }
        DataType::DOUBLE => {
            for (bytes, value) in out.as_chunks_mut::<8>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        DataType::BFLOAT16 => {
            for (bytes, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                let odd = to_odd(*value);
                let bits = odd.to_bits();
                let nearest = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
                *bytes = if odd.is_nan() { bf16::NAN.to_le_bytes() } else { nearest.to_le_bytes() };
            }
        }
        DataType::FLOAT16 => {
            let (mut halves, mut singles) = ([f16::ZERO; 256], [0.0f32; 256]);
            for (values, bytes) in values.chunks(256).zip(out.chunks_mut(512)) {
                let n = values.len();
                for (single, value) in singles.iter_mut().zip(values) {
                    *single = to_odd(*value);
                }
                halves[..n].convert_from_f32_slice(&singles[..n]);
                for (bytes, half) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(&halves) {
                    *bytes = half.to_le_bytes();
                }
            }
        }
        other => panic!("a plan holds float tensors only, not {other}"),
    }
}

/// Distance between the neighbouring values of the type around `value`, upwards in magnitude.
pub fn spacing(dtype: DataType, value: f64) -> f64 {
    let (digits, lowest) = match dtype {
        DataType::FLOAT16 => (10, -14),
        DataType::BFLOAT16 => (7, -126),
        DataType::FLOAT => (23, -126),
        DataType::DOUBLE => return value.abs().next_up() - value.abs(),
        other => panic!("a plan holds float tensors only, not {other}"),
    };
    let exponent = ((value.to_bits() >> 52) & 0x7ff) as i64 - 1023;
    power_of_two(exponent.max(lowest) - digits)
}

fn power_of_two(exponent: i64) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The representable value on the other side of `exact` than its nearest one, `rounded`.
fn second_nearest(dtype: DataType, rounded: f64, exact: f64) -> f64 {
    let step = spacing(dtype, rounded);
    let outwards = (exact > rounded) == (rounded > 0.0);
    // Below a power of two values lie twice as dense.
    let binade = rounded.to_bits() << 12 == 0 && rounded != 0.0;
    let step = if binade && !outwards { step.min(spacing(dtype, rounded * 0.75)) } else { step };
    if exact > rounded { rounded + step } else { rounded - step }
}

/// The step of entry `(exact, rounded)` to its second-nearest value if taking it is worth it: the entry is
/// at least a quarter of a step from its nearest value, and the leak `e` shrinks by an eighth or more.
fn worthwhile(dtype: DataType, rounded: f64, exact: f64, r: f64, e: f64) -> Option<f64> {
    let error = exact - rounded;
    // The step has the sign of the error, so this settles most entries early.
    if error * r * e >= 0.0 {
        return None;
    }
    let second = second_nearest(dtype, rounded, exact);
    let step = second - rounded;
    let largest = if dtype == DataType::FLOAT16 { f64::from(f16::MAX) } else { f64::from(bf16::MAX) };
    (second.abs() <= largest
        && error.abs() >= 0.25 * step.abs()
        && (e + r * step).abs() <= FLIP_LEAVES * e.abs())
    .then_some(step)
}

/// Edits whole rows of a tensor with `d_model` last. `rows`: `[n, D]` as stored, `r`: unit, `[D]`.
/// `first` is the number of the first row.
///
/// # Errors
/// A row with NaN or infinity, or one that overflows its type.
pub fn edit_rows(
    dtype: DataType,
    rows: &mut [u8],
    first: u64,
    r: &[f64],
    scratch: &mut Scratch,
    tally: &mut Tally,
) -> Result<(), NotFinite> {
    let size = width(dtype);
    let (stored, exact, rounded) = scratch.sized(r.len());
    for (number, row) in (first..).zip(rows.chunks_exact_mut(size * r.len())) {
        decode(dtype, row, stored);
        let c = dot(stored, r);
        if !c.is_finite() {
            return Err(NotFinite);
        }
        for ((y, x), r) in exact.iter_mut().zip(&*stored).zip(r) {
            *y = x - c * r;
        }
        encode(dtype, exact, row);
        decode(dtype, row, rounded);
        let mut e = dot(rounded, r);
        if !e.is_finite() {
            return Err(NotFinite);
        }
        if is_half(dtype) {
            // Each row starts elsewhere, so that flips do not gather in the first dimensions.
            let start = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % r.len();
            let target = LEAK_TARGET * c.abs();
            for d in (start..r.len()).chain(0..start) {
                if e.abs() <= target {
                    break;
                }
                if let Some(step) = worthwhile(dtype, rounded[d], exact[d], r[d], e) {
                    rounded[d] += step;
                    encode(dtype, &rounded[d..=d], &mut row[d * size..(d + 1) * size]);
                    e += r[d] * step;
                    tally.flips += 1;
                }
            }
            e = dot(rounded, r);
        }
        tally.before += c * c;
        tally.after += e * e;
        tally.max_abs_delta = tally.max_abs_delta.max(largest_difference(stored, rounded));
    }
    Ok(())
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (a, b) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.0.iter().zip(b.0) {
        for lane in 0..8 {
            let difference = (a[lane] - b[lane]).abs();
            lanes[lane] = if difference > lanes[lane] { difference } else { lanes[lane] };
        }
    }
    a.1.iter().zip(b.1).map(|(a, b)| (a - b).abs()).chain(lanes).fold(0.0, f64::max)
}

/// Stretches of a block of a `[D, K]` tensor that lie in one row: `(row, first column, element in the block, length)`.
fn stretches(first: u64, elements: usize, columns: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == elements {
            return None;
        }
        let position = first + at as u64;
        let row = usize::try_from(position / columns as u64).expect("a row number is below d_model");
        let column = usize::try_from(position % columns as u64).expect("it is below `columns`");
        let length = (columns - column).min(elements - at).min(STRETCH);
        let found = (row, column, at, length);
        at += length;
        Some(found)
    })
}

/// Adds a block's part of `c = r^T W` for a tensor with `d_model` first. `block` is a stretch of a `[D, K]`
/// tensor as stored, from element `first` on; `c`: `[K]`.
pub fn add_components(dtype: DataType, block: &[u8], first: u64, r: &[f64], c: &mut [f64], scratch: &mut Scratch) {
    let size = width(dtype);
    for (row, column, at, length) in stretches(first, block.len() / size, c.len()) {
        let (stored, ..) = scratch.sized(length);
        decode(dtype, &block[at * size..(at + length) * size], stored);
        for (c, x) in c[column..column + length].iter_mut().zip(stored) {
            *c += r[row] * *x;
        }
    }
}

/// A tensor with `d_model` first, while it is edited.
#[derive(Debug)]
pub struct Columns<'a> {
    /// Unit direction, `[D]`.
    pub r: &'a [f64],
    /// `r^T W`, `[K]`.
    pub c: &'a [f64],
    /// For 16-bit types: what nearest rounding leaves of `r^T W'`, `[K]`; spent by flips.
    pub spend: Option<&'a mut [f64]>,
    /// Grows to `r^T W'` of the stored values, `[K]`.
    pub after: &'a mut [f64],
}

/// Edits a stretch of a `[D, K]` tensor, from element `first` on, given `c = r^T W`.
pub fn edit_columns(
    dtype: DataType,
    block: &mut [u8],
    first: u64,
    columns: &mut Columns<'_>,
    scratch: &mut Scratch,
    tally: &mut Tally,
) {
    let size = width(dtype);
    for (row, column, at, length) in stretches(first, block.len() / size, columns.c.len()) {
        let bytes = &mut block[at * size..(at + length) * size];
        let (stored, exact, rounded) = scratch.sized(length);
        let (r, c) = (columns.r[row], &columns.c[column..column + length]);
        decode(dtype, bytes, stored);
        for ((y, x), c) in exact.iter_mut().zip(&*stored).zip(c) {
            *y = x - r * c;
        }
        encode(dtype, exact, bytes);
        decode(dtype, bytes, rounded);
        if let Some(spend) = columns.spend.as_deref_mut() {
            for (k, e) in spend[column..column + length].iter_mut().enumerate() {
                if e.abs() > LEAK_TARGET * c[k].abs()
                    && let Some(step) = worthwhile(dtype, rounded[k], exact[k], r, *e)
                {
                    rounded[k] += step;
                    encode(dtype, &rounded[k..=k], &mut bytes[k * size..(k + 1) * size]);
                    *e += r * step;
                    tally.flips += 1;
                }
            }
        }
        for (after, v) in columns.after[column..column + length].iter_mut().zip(&*rounded) {
            *after += r * v;
        }
        tally.max_abs_delta = tally.max_abs_delta.max(largest_difference(stored, rounded));
    }
}

/// Compares edited rows with the exact edit of the original ones; `d_model` last. Returns the sum of
/// `(r^T W')^2` and the largest `|W' - exact|` in spacings of the type.
pub fn check_rows(dtype: DataType, base: &[u8], out: &[u8], r: &[f64], scratch: &mut Scratch) -> (f64, f64) {
    let bytes = width(dtype) * r.len();
    let (stored, exact, found) = scratch.sized(r.len());
    let (mut after, mut worst) = (0.0, 0.0f64);
    for (base, out) in base.chunks_exact(bytes).zip(out.chunks_exact(bytes)) {
        decode(dtype, base, stored);
        decode(dtype, out, found);
        let c = dot(stored, r);
        for ((y, x), r) in exact.iter_mut().zip(&*stored).zip(r) {
            *y = x - c * r;
        }
        after += dot(found, r).powi(2);
        worst = worst.max(worst_spacing(dtype, exact, found));
    }
    (after, worst)
}

/// The same for a stretch of a `[D, K]` tensor; adds to `after` (`[K]`) and returns the largest difference.
pub fn check_columns(
    dtype: DataType,
    (base, out): (&[u8], &[u8]),
    first: u64,
    columns: &mut Columns<'_>,
    scratch: &mut Scratch,
) -> f64 {
    let size = width(dtype);
    let mut worst = 0.0f64;
    for (row, column, at, length) in stretches(first, base.len() / size, columns.c.len()) {
        let range = at * size..(at + length) * size;
        let (stored, exact, found) = scratch.sized(length);
        decode(dtype, &base[range.clone()], stored);
        decode(dtype, &out[range], found);
        let (r, c) = (columns.r[row], &columns.c[column..column + length]);
        for ((y, x), c) in exact.iter_mut().zip(&*stored).zip(c) {
            *y = x - r * c;
        }
        for (after, v) in columns.after[column..column + length].iter_mut().zip(&*found) {
            *after += r * v;
        }
        worst = worst.max(worst_spacing(dtype, exact, found));
    }
    worst
}

/// NaN counts as infinitely far.
fn worst_spacing(dtype: DataType, exact: &[f64], found: &[f64]) -> f64 {
    let mut worst = 0.0f64;
    for (exact, found) in exact.iter().zip(found) {
        let off = (found - exact).abs() / spacing(dtype, *exact);
        worst = if off <= worst { worst } else if off.is_nan() { f64::INFINITY } else { off };
    }
    worst
}
