//! The edit of one block of a tensor: `W' = W - r r^T W` in float64, rounded once.
//!
//! Baking makes every write to the residual stream orthogonal to the unit direction `r` (Wang et al.
//! 2025, eq. 4: `x <- x - r r^T x`) by editing what writes (Arditi et al. 2024, appendix E). Several orthonormal
//! directions, the rows of `Q`, go at once: `W' = W - Q^T S Q W`. A tensor has
//! `d_model` on its last axis (`[K, D]`, vectors: one pass, row by row) or on its first (`[D, K]`: a pass
//! for `c = r^T W`, then one for `W - r c`). Elements are little-endian float32, float16, bfloat16 or
//! float64.
//!
//! Nearest rounding of 16-bit types leaves `e = r^T W'` about `2^-12` (float16) of `W`. A few entries of each
//! `d_model`-vector, mostly such that lie near the middle between two representable values, then take the other
//! one of the two, where that mends enough of what is left of `e`. `|e|` never grows; with several directions it is the
//! length of the vector of what is left along each.
//!
//! The result is the same on every machine and with any number of threads, so that `verify` can make it again and
//! compare every byte: sums are taken in a fixed order (eight lanes, or row by row), by one thread a tensor, in float64
//! without fused multiply-adds, which Rust never introduces by itself; conversions between float types are exact or
//! rounded to nearest, ties to even, by instruction or by software alike.

mod floats;
mod joint;

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

use crate::linalg::dot;
use crate::onnx::DataType;
use floats::in_spacings;
pub use floats::{decode, encode, is_half, spacing, width};

/// Number of elements that are converted at a time where rows are long, so that the buffers stay in the first-level
/// cache.
const STRETCH: usize = 2048;

/// Entries are sent to their second-nearest value until the leak is below this share of the component that was removed.
const LEAK_TARGET: f64 = 1.0 / (1 << 18) as f64;

/// An entry is sent to its second-nearest value only if this leaves at most this share of the leak.
const FLIP_LEAVES: f64 = 0.875;

/// A direction that an edit takes off.
#[derive(Debug, Clone, Copy)]
pub struct Along<'a> {
    /// Unit direction, `[D]`.
    pub r: &'a [f64],
    /// Share of the component that is taken off; 1 takes off all of it.
    pub strength: f64,
}

/// What an edit makes of a vector `w` of `d_model` entries: `w - s r (r.w) - .. + plus`.
#[derive(Debug, Clone)]
pub struct Aim<'a> {
    /// What is taken off: one direction or more, orthonormal.
    pub along: Vec<Along<'a>>,
    /// What is added, `[D]`.
    pub plus: Option<&'a [f64]>,
}

impl<'a, T: AsRef<[f64]> + ?Sized> From<&'a T> for Aim<'a> {
    fn from(r: &'a T) -> Self {
        Self { along: vec![Along { r: r.as_ref(), strength: 1.0 }], plus: None }
    }
}

impl Aim<'_> {
    /// `d_model`.
    fn width(&self) -> usize {
        self.along.first().map_or(0, |along| along.r.len())
    }

    /// The components of `values` along each direction, `[k]`.
    #[inline(always)]
    fn components(&self, values: &[f64], components: &mut [f64]) {
        for (c, along) in components.iter_mut().zip(&self.along) {
            *c = dot(values, along.r);
        }
    }

    /// The exact edit of `stored` with the components `c`, `[k]`, and the components that it keeps, `[k]`.
    #[inline(always)]
    fn exact(&self, stored: &[f64], c: &[f64], exact: &mut [f64], keeps: &mut [f64]) {
        let (first, further) = self.along.split_first().expect("an edit takes off one direction at least");
        let off = first.strength * c[0];
        for ((y, x), r) in exact.iter_mut().zip(stored).zip(first.r) {
            *y = x - off * r;
        }
        for (along, c) in further.iter().zip(&c[1..]) {
            let off = along.strength * c;
            for (y, r) in exact.iter_mut().zip(along.r) {
                *y -= off * r;
            }
        }
        for ((keeps, along), c) in keeps.iter_mut().zip(&self.along).zip(c) {
            *keeps = (1.0 - along.strength) * c;
        }
        let Some(plus) = self.plus else { return };
        for (y, p) in exact.iter_mut().zip(plus) {
            *y += p;
        }
        for (keeps, along) in keeps.iter_mut().zip(&self.along) {
            *keeps += dot(plus, along.r);
        }
    }
}

/// A weight, or its edited value, is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotFinite;

/// What an edit did to the blocks seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Sum over columns and directions of `(r^T W)^2`.
    pub before: f64,
    /// Sum over columns and directions of `(r^T W')^2`, of the stored values.
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
    #[inline(always)]
    fn sized(&mut self, len: usize) -> (&mut [f64], &mut [f64], &mut [f64]) {
        for buffer in [&mut self.stored, &mut self.exact, &mut self.rounded] {
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
        }
        (&mut self.stored[..len], &mut self.exact[..len], &mut self.rounded[..len])
    }
}

/// The representable value on the other side of `exact` than its nearest one, `rounded`.
#[inline(always)]
fn second_nearest(dtype: DataType, rounded: f64, exact: f64) -> f64 {
    let step = spacing(dtype, rounded);
    let outwards = (exact > rounded) == (rounded > 0.0);
    // Below a power of two values lie twice as dense.
    let binade = rounded.to_bits() << 12 == 0 && rounded != 0.0;
    let step = if binade && !outwards { step.min(spacing(dtype, rounded * 0.75)) } else { step };
    if exact > rounded { rounded + step } else { rounded - step }
}

/// The step of entry `(exact, rounded)` to its second-nearest value if taking it is worth it: the entry is
/// at least `off` steps from its nearest value, and the leak `e` shrinks by an eighth or more. While
/// `e` is larger than any single step can mend (it grows with `sqrt(D)` steps), an entry whose `|r|` is `typical`
/// (`1/sqrt(D)`) or more is worth it too, if it does not overshoot.
#[inline(always)]
fn worthwhile(dtype: DataType, rounded: f64, exact: f64, r: f64, e: f64, (typical, off): (f64, f64)) -> Option<f64> {
    let error = exact - rounded;
    // The step has the sign of the error, so this settles most entries early.
    if error * r * e >= 0.0 {
        return None;
    }
    let second = second_nearest(dtype, rounded, exact);
    let step = second - rounded;
    let largest = if dtype == DataType::FLOAT16 { f64::from(f16::MAX) } else { f64::from(bf16::MAX) };
    let gain = (r * step).abs();
    let enough = (e + r * step).abs() <= FLIP_LEAVES * e.abs() || (r.abs() >= typical && gain < e.abs());
    (second.abs() <= largest && error.abs() >= off * step.abs() && enough).then_some(step)
}

/// How far from its nearest value an entry must lie to be sent to the second-nearest one, in steps between the values.
/// In the first half of the entries that are tried it must be a quarter of a step, so that the moves cost little
/// accuracy. In the second half any entry will do: a small component that is spread over many coarse entries moves each
/// of them by less than a quarter of a step, and would otherwise stay.
#[inline(always)]
fn off(tried: usize, d: usize) -> f64 {
    if 2 * tried < d { 0.25 } else { 0.0 }
}

/// Edits whole rows of a tensor with `d_model` last. `rows`: `[n, D]` as stored.
/// `first` is the number of the first row. Flips spend what rounding leaves beside the component that the edit keeps.
///
/// # Errors
/// A row with NaN or infinity, or one that overflows its type.
pub fn edit_rows<'a>(
    dtype: DataType,
    rows: &mut [u8],
    first: u64,
    aim: impl Into<Aim<'a>>,
    scratch: &mut Scratch,
    tally: &mut Tally,
) -> Result<(), NotFinite> {
    Arch::new().dispatch(EditRows { dtype, rows, first, aim: &aim.into(), scratch, tally })
}

/// The arguments of [`edit_rows`]. Each pass of this file is such a value, as pulp compiles it for every set of vector
/// instructions that way; a closure would not be inlined there.
struct EditRows<'a> {
    dtype: DataType,
    rows: &'a mut [u8],
    first: u64,
    aim: &'a Aim<'a>,
    scratch: &'a mut Scratch,
    tally: &'a mut Tally,
}

impl WithSimd for EditRows<'_> {
    type Output = Result<(), NotFinite>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self { dtype, rows, first, aim, scratch, tally } = self;
        edit_rows_inlined(dtype, rows, first, aim, scratch, tally)
    }
}

#[inline(always)]
fn edit_rows_inlined(
    dtype: DataType,
    rows: &mut [u8],
    first: u64,
    aim: &Aim<'_>,
    scratch: &mut Scratch,
    tally: &mut Tally,
) -> Result<(), NotFinite> {
    let (d_model, k) = (aim.width(), aim.along.len());
    let size = width(dtype);
    let typical = (d_model as f64).sqrt().recip();
    let (stored, exact, rounded) = scratch.sized(d_model);
    let (mut c, mut keeps, mut e) = (vec![0.0f64; k], vec![0.0f64; k], vec![0.0f64; k]);
    for (number, row) in (first..).zip(rows.chunks_exact_mut(size * d_model)) {
        decode(dtype, row, stored);
        aim.components(stored, &mut c);
        if c.iter().any(|c| !c.is_finite()) {
            return Err(NotFinite);
        }
        aim.exact(stored, &c, exact, &mut keeps);
        encode(dtype, exact, row);
        decode(dtype, row, rounded);
        left_over(aim, rounded, &keeps, &mut e);
        if e.iter().any(|e| !e.is_finite()) {
            return Err(NotFinite);
        }
        if is_half(dtype) {
            // Each row starts elsewhere, so that flips do not gather in the first dimensions.
            let start = (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % d_model;
            if let [only] = aim.along.as_slice() {
                let (r, e, target) = (only.r, &mut e[0], LEAK_TARGET * c[0].abs());
                for (tried, d) in (start..d_model).chain(0..start).enumerate() {
                    if e.abs() <= target {
                        break;
                    }
                    let off = off(tried, d_model);
                    if let Some(step) = worthwhile(dtype, rounded[d], exact[d], r[d], *e, (typical, off)) {
                        rounded[d] += step;
                        encode(dtype, &rounded[d..=d], &mut row[d * size..(d + 1) * size]);
                        *e += r[d] * step;
                        tally.flips += 1;
                    }
                }
            } else {
                tally.flips += joint::flip_row(dtype, row, start, (&aim.along, &c), (exact, rounded), &mut e);
            }
            left_over(aim, rounded, &keeps, &mut e);
        }
        tally.before += c.iter().map(|c| c * c).sum::<f64>();
        tally.after += e.iter().zip(&keeps).map(|(e, keeps)| (e + keeps) * (e + keeps)).sum::<f64>();
        tally.max_abs_delta = tally.max_abs_delta.max(largest_difference(stored, rounded));
    }
    Ok(())
}

/// What rounded values hold along each direction beside what the edit keeps of it, `[k]`.
#[inline(always)]
fn left_over(aim: &Aim<'_>, rounded: &[f64], keeps: &[f64], e: &mut [f64]) {
    aim.components(rounded, e);
    e.iter_mut().zip(keeps).for_each(|(e, keeps)| *e -= keeps);
}

#[inline(always)]
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
#[inline(always)]
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
    Arch::new().dispatch(AddComponents { dtype, block, first, r, c, scratch });
}

struct AddComponents<'a> {
    dtype: DataType,
    block: &'a [u8],
    first: u64,
    r: &'a [f64],
    c: &'a mut [f64],
    scratch: &'a mut Scratch,
}

impl WithSimd for AddComponents<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { dtype, block, first, r, c, scratch } = self;
        let size = width(dtype);
        for (row, column, at, length) in stretches(first, block.len() / size, c.len()) {
            let (stored, ..) = scratch.sized(length);
            decode(dtype, &block[at * size..(at + length) * size], stored);
            for (c, x) in c[column..column + length].iter_mut().zip(stored) {
                *c += r[row] * *x;
            }
        }
    }
}

/// A tensor with `d_model` first, while it is edited: what is known of it along each direction that is taken off, which is
/// one or more.
#[derive(Debug)]
pub struct Columns<'a>(pub Vec<AlongColumns<'a>>);

/// What is known of the columns of a tensor along one direction.
#[derive(Debug)]
pub struct AlongColumns<'a> {
    /// The direction.
    pub along: Along<'a>,
    /// `r^T W`, `[K]`.
    pub c: &'a [f64],
    /// For 16-bit types: what nearest rounding leaves of `r^T W'` beside what the edit keeps, `[K]`; spent by flips.
    pub spend: Option<&'a mut [f64]>,
    /// Grows to `r^T W'` of the stored values, `[K]`.
    pub after: &'a mut [f64],
}

impl Columns<'_> {
    /// `K`.
    fn count(&self) -> usize {
        self.0.first().map_or(0, |part| part.c.len())
    }

    /// The exact edit of the stretch `stored` of a row, from `column` on.
    #[inline(always)]
    fn exact(&self, row: usize, column: usize, stored: &[f64], exact: &mut [f64]) {
        let (first, further) = self.0.split_first().expect("an edit takes off one direction at least");
        let of = |part: &AlongColumns<'_>| (part.along.r[row], part.along.strength);
        let (r, strength) = of(first);
        for ((y, x), c) in exact.iter_mut().zip(stored).zip(&first.c[column..]) {
            *y = x - r * (strength * c);
        }
        for part in further {
            let (r, strength) = of(part);
            for (y, c) in exact.iter_mut().zip(&part.c[column..]) {
                *y -= r * (strength * c);
            }
        }
    }

    /// Takes in what a stretch of a row holds, from `column` on.
    #[inline(always)]
    fn take(&mut self, row: usize, column: usize, values: &[f64]) {
        for part in &mut self.0 {
            let r = part.along.r[row];
            for (after, v) in part.after[column..].iter_mut().zip(values) {
                *after += r * v;
            }
        }
    }
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
    Arch::new().dispatch(EditColumns { dtype, block, first, columns, scratch, tally });
}

struct EditColumns<'a, 'c> {
    dtype: DataType,
    block: &'a mut [u8],
    first: u64,
    columns: &'a mut Columns<'c>,
    scratch: &'a mut Scratch,
    tally: &'a mut Tally,
}

impl WithSimd for EditColumns<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { dtype, block, first, columns, scratch, tally } = self;
        edit_columns_inlined(dtype, block, first, columns, scratch, tally);
    }
}

#[inline(always)]
fn edit_columns_inlined(
    dtype: DataType,
    block: &mut [u8],
    first: u64,
    columns: &mut Columns<'_>,
    scratch: &mut Scratch,
    tally: &mut Tally,
) {
    let size = width(dtype);
    let d_model = columns.0.first().map_or(0, |part| part.along.r.len());
    let typical = (d_model as f64).sqrt().recip();
    for (row, column, at, length) in stretches(first, block.len() / size, columns.count()) {
        let bytes = &mut block[at * size..(at + length) * size];
        let (stored, exact, rounded) = scratch.sized(length);
        let off = off(row, d_model);
        decode(dtype, bytes, stored);
        columns.exact(row, column, stored, exact);
        encode(dtype, exact, bytes);
        decode(dtype, bytes, rounded);
        if let [AlongColumns { along, c, spend: Some(spend), .. }] = columns.0.as_mut_slice() {
            let (r, c) = (along.r[row], &c[column..column + length]);
            for (k, e) in spend[column..column + length].iter_mut().enumerate() {
                if e.abs() > LEAK_TARGET * c[k].abs()
                    && let Some(step) = worthwhile(dtype, rounded[k], exact[k], r, *e, (typical, off))
                {
                    rounded[k] += step;
                    encode(dtype, &rounded[k..=k], &mut bytes[k * size..(k + 1) * size]);
                    *e += r * step;
                    tally.flips += 1;
                }
            }
        } else if columns.0.iter().all(|part| part.spend.is_some()) {
            tally.flips += joint::flip_stretch(dtype, bytes, (row, column), columns, (exact, rounded), off);
        }
        columns.take(row, column, rounded);
        tally.max_abs_delta = tally.max_abs_delta.max(largest_difference(stored, rounded));
    }
}

/// Compares edited rows with the exact edit of the original ones; `d_model` last. Returns the sum of
/// `(r^T W')^2` and the largest `|W' - exact|` in spacings of the type.
pub fn check_rows<'a>(
    dtype: DataType,
    base: &[u8],
    out: &[u8],
    aim: impl Into<Aim<'a>>,
    scratch: &mut Scratch,
) -> (f64, f64) {
    Arch::new().dispatch(CheckRows { dtype, base, out, aim: &aim.into(), scratch })
}

struct CheckRows<'a> {
    dtype: DataType,
    base: &'a [u8],
    out: &'a [u8],
    aim: &'a Aim<'a>,
    scratch: &'a mut Scratch,
}

impl WithSimd for CheckRows<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let Self { dtype, base, out, aim, scratch } = self;
        check_rows_inlined(dtype, base, out, aim, scratch)
    }
}

#[inline(always)]
fn check_rows_inlined(dtype: DataType, base: &[u8], out: &[u8], aim: &Aim<'_>, scratch: &mut Scratch) -> (f64, f64) {
    let (d_model, k) = (aim.width(), aim.along.len());
    let bytes = width(dtype) * d_model;
    let (stored, exact, found) = scratch.sized(d_model);
    let (mut c, mut keeps) = (vec![0.0f64; k], vec![0.0f64; k]);
    let (mut after, mut worst) = (0.0, 0.0f64);
    for (base, out) in base.chunks_exact(bytes).zip(out.chunks_exact(bytes)) {
        decode(dtype, base, stored);
        decode(dtype, out, found);
        aim.components(stored, &mut c);
        aim.exact(stored, &c, exact, &mut keeps);
        after += aim.along.iter().map(|along| dot(found, along.r).powi(2)).sum::<f64>();
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
    Arch::new().dispatch(CheckColumns { dtype, base, out, first, columns, scratch })
}

struct CheckColumns<'a, 'c> {
    dtype: DataType,
    base: &'a [u8],
    out: &'a [u8],
    first: u64,
    columns: &'a mut Columns<'c>,
    scratch: &'a mut Scratch,
}

impl WithSimd for CheckColumns<'_, '_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let Self { dtype, base, out, first, columns, scratch } = self;
        check_columns_inlined(dtype, (base, out), first, columns, scratch)
    }
}

#[inline(always)]
fn check_columns_inlined(
    dtype: DataType,
    (base, out): (&[u8], &[u8]),
    first: u64,
    columns: &mut Columns<'_>,
    scratch: &mut Scratch,
) -> f64 {
    let size = width(dtype);
    let mut worst = 0.0f64;
    for (row, column, at, length) in stretches(first, base.len() / size, columns.count()) {
        let range = at * size..(at + length) * size;
        let (stored, exact, found) = scratch.sized(length);
        decode(dtype, &base[range.clone()], stored);
        decode(dtype, &out[range], found);
        columns.exact(row, column, stored, exact);
        columns.take(row, column, found);
        worst = worst.max(worst_spacing(dtype, exact, found));
    }
    worst
}

/// The largest distance of a found value from the exact one, in spacings of the type. NaN counts as infinitely far.
#[inline(always)]
fn worst_spacing(dtype: DataType, exact: &[f64], found: &[f64]) -> f64 {
    let (mut lanes, mut nan) = ([0.0f64; 8], [0u8; 8]);
    let mut see = |lane: usize, exact: f64, found: f64| {
        let off = in_spacings(dtype, (found - exact).abs(), exact);
        nan[lane] |= u8::from(off.is_nan());
        lanes[lane] = if off > lanes[lane] { off } else { lanes[lane] };
    };
    let ((exact, last_exact), (found, last_found)) = (exact.as_chunks::<8>(), found.as_chunks::<8>());
    for (exact, found) in exact.iter().zip(found) {
        for lane in 0..8 {
            see(lane, exact[lane], found[lane]);
        }
    }
    for (lane, (exact, found)) in last_exact.iter().zip(last_found).enumerate() {
        see(lane, *exact, *found);
    }
    if nan.iter().any(|&nan| nan > 0) { f64::INFINITY } else { lanes.into_iter().fold(0.0, f64::max) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edit::{Ablation, Direction};
    use crate::linalg::norm;

    const TYPES: [DataType; 4] = [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16, DataType::DOUBLE];

    /// Deterministic values, uniform within `-scale..scale`.
    fn noise(seed: u64, len: usize, scale: f64) -> Vec<f64> {
        let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0) * scale
            })
            .collect()
    }

    fn unit(seed: u64, len: usize) -> Vec<f64> {
        let raw = noise(seed + 1000, len, 1.0);
        let n = norm(&raw);
        raw.iter().map(|v| v / n).collect()
    }

    fn weights(seed: u64, len: usize) -> Vec<f64> {
        noise(seed, len, 0.05)
    }

    fn packed(dtype: DataType, values: &[f64]) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * width(dtype)];
        encode(dtype, values, &mut bytes);
        bytes
    }

    fn plain(dtype: DataType, bytes: &[u8]) -> Vec<f64> {
        let mut values = vec![0.0; bytes.len() / width(dtype)];
        decode(dtype, bytes, &mut values);
        values
    }

    /// Edits a `[D, K]` tensor in blocks of `block` elements.
    fn columns(dtype: DataType, bytes: &mut [u8], r: &[f64], block: usize) -> (Tally, Vec<f64>) {
        let k = bytes.len() / width(dtype) / r.len();
        let (mut c, mut spend, mut after) = (vec![0.0; k], vec![0.0; k], vec![0.0; k]);
        let (mut scratch, mut tally) = (Scratch::default(), Tally::default());
        let step = block * width(dtype);
        for (n, part) in bytes.chunks(step).enumerate() {
            add_components(dtype, part, (n * block) as u64, r, &mut c, &mut scratch);
        }
        let along = Along { r, strength: 1.0 };
        let mut nearest = Columns(vec![AlongColumns { along, c: &c, spend: None, after: &mut spend }]);
        for (n, part) in bytes.to_vec().chunks_mut(step).enumerate() {
            edit_columns(dtype, part, (n * block) as u64, &mut nearest, &mut scratch, &mut Tally::default());
        }
        let spend = is_half(dtype).then_some(spend.as_mut_slice());
        let mut state = Columns(vec![AlongColumns { along, c: &c, spend, after: &mut after }]);
        for (n, part) in bytes.chunks_mut(step).enumerate() {
            edit_columns(dtype, part, (n * block) as u64, &mut state, &mut scratch, &mut tally);
        }
        tally.before = c.iter().map(|c| c * c).sum();
        tally.after = after.iter().map(|e| e * e).sum();
        (tally, c)
    }

    fn rows(dtype: DataType, bytes: &mut [u8], r: &[f64]) -> Tally {
        let mut tally = Tally::default();
        edit_rows(dtype, bytes, 0, r, &mut Scratch::default(), &mut tally).unwrap();
        tally
    }

    fn transposed(dtype: DataType, bytes: &[u8], n: usize) -> Vec<u8> {
        let size = width(dtype);
        let m = bytes.len() / size / n;
        (0..n)
            .flat_map(|j| (0..m).map(move |i| (i * n + j) * size))
            .flat_map(|at| bytes[at..at + size].to_vec())
            .collect()
    }

    /// Leak of each type at realistic width, both layouts, and what nearest rounding alone would leave.
    #[test]
    fn leaks_stay_below_their_limits() {
        for d in [64, 1024, 4096] {
            for (dtype, limit) in TYPES.into_iter().zip([1e-6, 1e-4, 1e-3, 1e-13]) {
                let (k, r) = (48, unit(3, d));
                let original = packed(dtype, &weights(9, d * k));
                let mut last = original.clone();
                let tally = rows(dtype, &mut last, &r);
                let ratio = (tally.after / tally.before).sqrt();
                assert!(ratio < limit, "{dtype} {d}: {ratio:e}");
                let mut first = transposed(dtype, &original, d);
                let (tally, _) = columns(dtype, &mut first, &r, 1000);
                let ratio_first = (tally.after / tally.before).sqrt();
                assert!(ratio_first < limit, "{dtype} {d}: {ratio_first:e}");
                let nearest: f64 = plain(dtype, &original)
                    .chunks(d)
                    .map(|row| {
                        let c = dot(row, &r);
                        let exact: Vec<f64> = row.iter().zip(&r).map(|(w, r)| w - c * r).collect();
                        dot(&plain(dtype, &packed(dtype, &exact)), &r).powi(2)
                    })
                    .sum();
                let nearest = (nearest / tally.before).sqrt();
                println!(
                    "{dtype} D={d}: leak {ratio:.1e} rows, {ratio_first:.1e} columns, {nearest:.1e} nearest, {} flips a vector",
                    tally.flips / k as u64
                );
                if is_half(dtype) {
                    assert!(ratio < 0.1 * nearest && ratio_first < 0.1 * nearest, "{dtype} {d}");
                }
            }
        }
    }

    fn parts<'a>(along: &[Along<'a>], c: &'a [Vec<f64>], after: &'a mut [Vec<f64>]) -> Columns<'a> {
        let all = along.iter().zip(c).zip(after);
        Columns(all.map(|((along, c), after)| AlongColumns { along: *along, c, spend: None, after }).collect())
    }

    /// Along several directions at once, in both layouts: little more is left than along one.
    #[test]
    fn several_directions_leave_little() {
        let (d, k) = (1024, 24);
        for (dtype, limit) in TYPES.into_iter().zip([1e-6, 1e-4, 1e-3, 1e-13]) {
            for count in [2, 4] {
                let units: Vec<_> = (0..count).map(|n| Direction::new(unit(30 + n, d)).unwrap()).collect();
                let span = Ablation::of_span(units).unwrap();
                let along: Vec<Along<'_>> =
                    span.vectors().iter().map(|one| Along { r: one.unit(), strength: 1.0 }).collect();
                let original = packed(dtype, &weights(9, d * k));
                let (mut last, mut scratch, mut tally) = (original.clone(), Scratch::default(), Tally::default());
                let aim = Aim { along: along.clone(), plus: None };
                edit_rows(dtype, &mut last, 0, aim.clone(), &mut scratch, &mut tally).unwrap();
                let ratio = (tally.after / tally.before).sqrt();
                assert!(ratio < limit, "{dtype} {count}: {ratio:e}");
                let (after, worst) = check_rows(dtype, &original, &last, aim, &mut scratch);
                assert!((after - tally.after).abs() <= 1e-9 * tally.before, "{dtype} {count}: {after}");
                assert!(worst <= if is_half(dtype) { 1.0 } else { 0.5 + 1e-9 }, "{dtype} {count}: {worst}");

                let mut first = transposed(dtype, &original, d);
                let mut c = vec![vec![0.0; k]; along.len()];
                for (along, c) in along.iter().zip(&mut c) {
                    add_components(dtype, &first, 0, along.r, c, &mut scratch);
                }
                let (mut spend, mut left) = (vec![vec![0.0; k]; along.len()], vec![vec![0.0; k]; along.len()]);
                let mut nearest = parts(&along, &c, &mut spend);
                edit_columns(dtype, &mut first.clone(), 0, &mut nearest, &mut scratch, &mut Tally::default());
                let mut state = parts(&along, &c, &mut left);
                if is_half(dtype) {
                    for (part, spend) in state.0.iter_mut().zip(&mut spend) {
                        part.spend = Some(spend);
                    }
                }
                edit_columns(dtype, &mut first, 0, &mut state, &mut scratch, &mut Tally::default());
                let after: f64 = left.iter().flatten().map(|e| e * e).sum();
                let ratio = (after / tally.before).sqrt();
                assert!(ratio < limit, "{dtype} {count} columns: {ratio:e}");
            }
        }
    }

    /// A strength below 1 leaves the rest of the component, and what is added stays: to the same precision as the whole edit.
    #[test]
    fn shares_and_additions_keep_what_they_should() {
        let (d, k, strength) = (256, 12, 0.75);
        let (r, plus) = (unit(5, d), noise(6, d, 0.1));
        for (dtype, limit) in TYPES.into_iter().zip([1e-6, 1e-4, 1e-3, 1e-13]) {
            let original = packed(dtype, &weights(7, d * k));
            let along = Along { r: &r, strength };
            let aim = Aim { along: vec![along], plus: Some(&plus) };
            let (mut last, mut scratch) = (original.clone(), Scratch::default());
            edit_rows(dtype, &mut last, 0, aim.clone(), &mut scratch, &mut Tally::default()).unwrap();
            let (_, worst) = check_rows(dtype, &original, &last, aim, &mut scratch);
            assert!(worst <= if is_half(dtype) { 1.0 } else { 0.5 + 1e-9 }, "{dtype}: {worst}");
            let (before, after) = (plain(dtype, &original), plain(dtype, &last));
            let (mut off, mut all) = (0.0, 0.0);
            for (w, edited) in before.chunks(d).zip(after.chunks(d)) {
                let c = dot(w, &r);
                off += (dot(edited, &r) - (1.0 - strength) * c - dot(&plus, &r)).powi(2);
                all += c * c;
            }
            assert!((off / all).sqrt() < limit, "{dtype}: {:e}", (off / all).sqrt());
            // the other layout, without an addition
            let mut first = transposed(dtype, &original, d);
            let c: Vec<f64> = before.chunks(d).map(|w| dot(w, &r)).collect();
            let mut spend = vec![0.0; k];
            let mut state = Columns(vec![AlongColumns { along, c: &c, spend: None, after: &mut spend }]);
            edit_columns(dtype, &mut first.clone(), 0, &mut state, &mut scratch, &mut Tally::default());
            for (e, c) in spend.iter_mut().zip(&c) {
                *e -= (1.0 - strength) * c;
            }
            let mut after = vec![0.0; k];
            let spend = is_half(dtype).then_some(spend.as_mut_slice());
            let mut state = Columns(vec![AlongColumns { along, c: &c, spend, after: &mut after }]);
            edit_columns(dtype, &mut first, 0, &mut state, &mut scratch, &mut Tally::default());
            let off: f64 = after.iter().zip(&c).map(|(e, c)| (e - (1.0 - strength) * c).powi(2)).sum();
            assert!((off / all).sqrt() < limit, "{dtype} columns: {:e}", (off / all).sqrt());
        }
    }

    #[test]
    fn every_half_survives_a_round_trip_and_ties_go_to_even() {
        for dtype in [DataType::FLOAT16, DataType::BFLOAT16] {
            let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let values = plain(dtype, &all);
            for (bits, (value, again)) in (0..=u16::MAX).zip(values.iter().zip(plain(dtype, &packed(dtype, &values)))) {
                assert!(value.to_bits() == again.to_bits() || value.is_nan() && again.is_nan(), "{bits:#x}");
            }
            // Between two neighbours: a hair off the middle decides, the middle itself goes to the even one.
            for bits in (0..0x7b00u16).step_by(3) {
                let (low, high) = (values[usize::from(bits)], values[usize::from(bits) + 1]);
                let middle = 0.5 * (low + high);
                let even = if bits % 2 == 0 { low } else { high };
                let hair = middle * 1e-14;
                for (value, expected) in [(middle, even), (middle + hair, high), (middle - hair, low)] {
                    assert_eq!(plain(dtype, &packed(dtype, &[value]))[0], expected, "{dtype} {bits:#x}");
                    assert_eq!(plain(dtype, &packed(dtype, &[-value]))[0], -expected);
                }
                assert_eq!(spacing(dtype, low), high - low, "{dtype} {bits:#x}");
                assert_eq!(second_nearest(dtype, low, middle), high);
                assert_eq!(second_nearest(dtype, high, middle), low);
                assert_eq!(second_nearest(dtype, -high, -middle), -low);
            }
        }
    }

    #[test]
    fn overflow_and_non_finite_weights_are_refused() {
        let r = unit(1, 8);
        for dtype in TYPES {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut values = weights(2, 16);
                values[11] = bad;
                let mut bytes = packed(dtype, &values);
                let result = edit_rows(dtype, &mut bytes, 0, &r, &mut Scratch::default(), &mut Tally::default());
                assert_eq!(result, Err(NotFinite), "{dtype} {bad}");
                let (_, c) = columns(dtype, &mut packed(dtype, &values), &r, 16);
                assert!(c.iter().any(|c| !c.is_finite()));
            }
        }
        // 65504 - c r passes the largest float16.
        let r = [0.6, 0.8];
        let mut bytes = packed(DataType::FLOAT16, &[65504.0, -65504.0]);
        let result = edit_rows(DataType::FLOAT16, &mut bytes, 0, &r, &mut Scratch::default(), &mut Tally::default());
        assert_eq!(result, Err(NotFinite));
        let mut bytes = packed(DataType::FLOAT16, &[-65504.0, 65504.0]);
        let r = [-0.28, 0.96];
        let mut scratch = Scratch::default();
        let result = edit_rows(DataType::FLOAT16, &mut bytes, 0, &r, &mut scratch, &mut Tally::default());
        assert_eq!(result, Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Both layouts hold the exact edit, and a second edit changes next to nothing.
        #[test]
        fn layouts_agree_and_edits_are_idempotent(seed in 0u64..1000, k in 1usize..9, block in 1usize..70, which in 0usize..4) {
            let (d, dtype) = (24, TYPES[which]);
            let r = unit(seed, d);
            let original = packed(dtype, &weights(seed, d * k));
            let mut last = original.clone();
            let before = rows(dtype, &mut last, &r);
            let mut first = transposed(dtype, &original, d);
            let (tally, _) = columns(dtype, &mut first, &r, block);
            prop_assert!((before.before - tally.before).abs() <= 1e-12 * before.before);
            let (worst_sum, worst) = check_rows(dtype, &original, &last, &r, &mut Scratch::default());
            prop_assert!(worst <= if is_half(dtype) { 1.0 } else { 0.5 + 1e-9 }, "{worst}");
            prop_assert!((worst_sum - before.after).abs() <= 1e-15);
            // From the other layout: the same exact values, so nearest or second-nearest as well.
            let back = transposed(dtype, &first, k);
            let (_, worst) = check_rows(dtype, &original, &back, &r, &mut Scratch::default());
            prop_assert!(worst <= 1.0 || dtype == DataType::DOUBLE, "{worst}");
            let mut again = last.clone();
            let second = rows(dtype, &mut again, &r);
            // Rounding leaves at most half a step a value, so at most sqrt(d) / 2 steps along `r`; the second edit takes
            // that off and rounds again.
            let largest = plain(dtype, &original).iter().fold(0.0f64, |most, w| most.max(w.abs()));
            let most = ((d as f64).sqrt() + 1.0) / 2.0 * spacing(dtype, largest);
            prop_assert!(second.max_abs_delta <= most, "{} {most}", second.max_abs_delta);
            prop_assert!((second.before - before.after).abs() <= 1e-15);
        }

        #[test]
        fn rounding_to_odd_keeps_one_rounding(mantissa in 0u64..(1 << 52), exponent in 990u64..1040, sign in 0u64..2) {
            let value = f64::from_bits(sign << 63 | exponent << 52 | mantissa);
            for dtype in [DataType::FLOAT16, DataType::BFLOAT16] {
                let stored = plain(dtype, &packed(dtype, &[value]))[0];
                prop_assume!(stored.is_finite());
                prop_assert!((stored - value).abs() <= 0.5 * spacing(dtype, value));
            }
        }
    }
}
