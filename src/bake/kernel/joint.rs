//! Flips for several directions at once: which entries of 16-bit types take their second-nearest value, so that little is
//! left along any of the directions that are taken off.
//!
//! What is left is a vector, one number a direction. An entry is flipped where that shortens the vector enough, by the
//! rules that hold for one direction ([`super::worthwhile`]) with lengths in the place of absolute values.

use super::{Along, Columns, FLIP_LEAVES, LEAK_TARGET, encode, off, second_nearest, width};
use crate::linalg::{dot, norm};
use crate::onnx::DataType;

/// An entry, and what it is to be.
struct Entry {
    dtype: DataType,
    rounded: f64,
    exact: f64,
}

impl Entry {
    /// The step to the second-nearest value, if taking it is worth it: `r` holds the entry of each direction, and `e` what
    /// is left along each, both `[k]`; the entry must be at least `off` steps from its nearest value. An entry is `typical`
    /// if `r` is at least that long.
    fn worthwhile(&self, r: &[f64], e: &[f64], (typical, off): (f64, f64)) -> Option<f64> {
        let error = self.exact - self.rounded;
        // the step has the sign of the error, and must lead against what is left
        if error * dot(r, e) >= 0.0 {
            return None;
        }
        let second = second_nearest(self.dtype, self.rounded, self.exact);
        let step = second - self.rounded;
        let mut after = [0.0; crate::edit::Ablation::MOST_DIRECTIONS];
        let after = &mut after[..e.len()];
        after.iter_mut().zip(e).zip(r).for_each(|((after, e), r)| *after = e + r * step);
        let (before, after) = (norm(e), norm(after));
        let enough = after <= FLIP_LEAVES * before || (norm(r) >= typical && after < before);
        let largest = if self.dtype == DataType::FLOAT16 { half::f16::MAX.to_f64() } else { half::bf16::MAX.to_f64() };
        (second.abs() <= largest && error.abs() >= off * step.abs() && enough).then_some(step)
    }
}

/// Length of an entry of `k` unit vectors of `width` elements, usually: `sqrt(k / width)`.
fn typical(k: usize, width: usize) -> f64 {
    (k as f64 / width as f64).sqrt()
}

/// Flips entries of a row of `d_model` entries, from `start` on and around, until little of the components `c`, `[k]`, is
/// left in `e`, `[k]`. Returns how many.
pub(super) fn flip_row(
    dtype: DataType,
    row: &mut [u8],
    start: usize,
    (along, c): (&[Along<'_>], &[f64]),
    (exact, rounded): (&[f64], &mut [f64]),
    e: &mut [f64],
) -> u64 {
    let (size, d_model) = (width(dtype), exact.len());
    let (target, typical) = (LEAK_TARGET * norm(c), typical(along.len(), d_model));
    let mut r = vec![0.0; along.len()];
    let mut flips = 0;
    for (tried, d) in (start..d_model).chain(0..start).enumerate() {
        if norm(e) <= target {
            break;
        }
        r.iter_mut().zip(along).for_each(|(r, along)| *r = along.r[d]);
        let entry = Entry { dtype, rounded: rounded[d], exact: exact[d] };
        if let Some(step) = entry.worthwhile(&r, e, (typical, off(tried, d_model))) {
            rounded[d] += step;
            encode(dtype, &rounded[d..=d], &mut row[d * size..(d + 1) * size]);
            e.iter_mut().zip(&r).for_each(|(e, r)| *e += r * step);
            flips += 1;
        }
    }
    flips
}

/// Flips entries of a stretch of row `row` of a `[D, K]` tensor, from `column` on; every direction has something to spend.
/// Returns how many.
pub(super) fn flip_stretch(
    dtype: DataType,
    bytes: &mut [u8],
    (row, column): (usize, usize),
    columns: &mut Columns<'_>,
    (exact, rounded): (&[f64], &mut [f64]),
    off: f64,
) -> u64 {
    let size = width(dtype);
    let r: Vec<f64> = columns.0.iter().map(|part| part.along.r[row]).collect();
    let d_model = columns.0.first().map_or(1, |part| part.along.r.len());
    let typical = typical(r.len(), d_model);
    let (mut c, mut e) = (vec![0.0; r.len()], vec![0.0; r.len()]);
    let mut flips = 0;
    for at in 0..exact.len() {
        for ((part, c), e) in columns.0.iter().zip(&mut c).zip(&mut e) {
            *c = part.c[column + at];
            *e = part.spend.as_ref().map_or(0.0, |spend| spend[column + at]);
        }
        if norm(&e) <= LEAK_TARGET * norm(&c) {
            continue;
        }
        let entry = Entry { dtype, rounded: rounded[at], exact: exact[at] };
        if let Some(step) = entry.worthwhile(&r, &e, (typical, off)) {
            rounded[at] += step;
            encode(dtype, &rounded[at..=at], &mut bytes[at * size..(at + 1) * size]);
            for (part, r) in columns.0.iter_mut().zip(&r) {
                if let Some(spend) = part.spend.as_deref_mut() {
                    spend[column + at] += r * step;
                }
            }
            flips += 1;
        }
    }
    flips
}
