//! The passes over a vector that rounding is made of, written so that they become vector instructions: fixed runs of
//! lanes, no early exits.

use super::{Grid, LANES, Levels};

/// Sums and extremes of nearest rounding.
#[derive(Default)]
pub(super) struct Sums {
    pub(super) leak: f64,
    pub(super) error: f64,
    pub(super) noise: f64,
    pub(super) moved: [f32; LANES],
    pub(super) levels: [f32; LANES],
}

/// The terms of a short run.
#[derive(Default)]
pub(super) struct Run {
    pub(super) leak: [f32; LANES],
    pub(super) error: [f32; LANES],
    pub(super) noise: [f32; LANES],
}

impl Sums {
    /// Takes a run in.
    #[inline(always)]
    pub(super) fn add(&mut self, run: &Run) {
        self.leak += f64::from(sum(&run.leak));
        self.error += f64::from(sum(&run.error));
        self.noise += f64::from(sum(&run.noise));
    }
}

/// The lanes added up pairwise, as vector instructions do it.
#[inline(always)]
pub(super) fn sum(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
pub(super) fn largest(lanes: &[f32; LANES]) -> f64 {
    f64::from(lanes.iter().fold(0.0, |a, &b| larger(a, b)))
}

/// `max` and `min` of numbers that are none of them NaN: one instruction each.
#[inline(always)]
pub(super) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
pub(super) fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// The first `n` values in runs.
#[inline(always)]
pub(super) fn chunks(values: &[f32], n: usize) -> &[[f32; LANES]] {
    values[..n].as_chunks().0
}

#[inline(always)]
pub(super) fn chunks_mut(values: &mut [f32], n: usize) -> &mut [[f32; LANES]] {
    values[..n].as_chunks_mut().0
}

/// Decodes to `value`, `[padded]`; returns `r.w`.
#[inline(always)]
pub(super) fn decode(codes: &[u8], grid: Grid<'_>, r: &[f32], value: &mut [f32]) -> f64 {
    let n = codes.len();
    let mut total = 0.0f64;
    let each = chunks_mut(value, n).iter_mut().zip(codes.as_chunks::<LANES>().0).zip(chunks(r, n));
    let each = each.zip(chunks(grid.before, n));
    match grid.levels {
        Levels::Integer { zero, .. } => {
            for ((((value, codes), r), s), zero) in each.zip(chunks(zero, n)) {
                let mut lanes = [0.0f32; LANES];
                for lane in 0..LANES {
                    value[lane] = (f32::from(codes[lane]) - zero[lane]) * s[lane];
                    lanes[lane] = r[lane] * value[lane];
                }
                total += f64::from(sum(&lanes));
            }
        }
        Levels::Table(table) => {
            for (((value, codes), r), s) in each {
                let mut lanes = [0.0f32; LANES];
                for lane in 0..LANES {
                    value[lane] = table[usize::from(codes[lane] & 15)] * s[lane];
                    lanes[lane] = r[lane] * value[lane];
                }
                total += f64::from(sum(&lanes));
            }
        }
    }
    total
}

/// `y = w - r c` in place; how far the furthest entry lies outside its grid, before the scale.
#[inline(always)]
pub(super) fn ablate(value: &mut [f32], r: &[f32], c: f32, grid: Grid<'_>) -> f32 {
    let n = value.len();
    let mut worst = [0.0f32; LANES];
    let each = chunks_mut(value, n).iter_mut().zip(chunks(r, n)).zip(chunks(grid.scale, n));
    match grid.levels {
        Levels::Integer { zero, lowest, highest } => {
            for (((value, r), s), zero) in each.zip(chunks(zero, n)) {
                for lane in 0..LANES {
                    value[lane] -= r[lane] * c;
                    let t = if s[lane] == 0.0 { 0.0 } else { value[lane] / s[lane] + zero[lane] };
                    let off = larger(t - highest, lowest - t);
                    worst[lane] = larger(worst[lane], if s[lane] == 0.0 { 0.0 } else { off });
                }
            }
        }
        Levels::Table(table) => {
            for ((value, r), s) in each {
                for lane in 0..LANES {
                    value[lane] -= r[lane] * c;
                    let t = value[lane] / s[lane];
                    let off = larger(t - table[15], table[0] - t);
                    worst[lane] = larger(worst[lane], if s[lane] == 0.0 { 0.0 } else { off });
                }
            }
        }
    }
    worst.iter().fold(0.0, |a, &b| larger(a, b))
}

/// Smallest and largest level of an entry, before the scale.
#[inline(always)]
pub(super) fn range(grid: Grid<'_>, at: usize) -> (f32, f32) {
    match grid.levels {
        Levels::Integer { zero, lowest, highest } => (lowest - zero[at], highest - zero[at]),
        Levels::Table(table) => (table[0], table[15]),
    }
}

#[inline(always)]
pub(super) fn beyond(t: f32, lowest: f32, highest: f32) -> f32 {
    (t - highest).max(lowest - t)
}

/// Spacing of the outermost levels, before the scale.
#[inline(always)]
pub(super) fn spacing_at_edge(grid: Grid<'_>) -> f32 {
    match grid.levels {
        Levels::Integer { .. } => 1.0,
        Levels::Table(table) => (table[1] - table[0]).min(table[15] - table[14]),
    }
}
