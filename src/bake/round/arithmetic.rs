//! The passes over a vector that rounding is made of, written so that they become vector instructions: fixed runs of
//! lanes, no early exits.

use super::{Grid, LANES, Levels, ROUNDING};

/// Runs of lanes whose terms are added up in float32, before their sum is added in float64.
pub(super) const SHORT: usize = 8;

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
    /// Takes a run in, and empties it.
    #[inline(always)]
    pub(super) fn add(&mut self, run: &mut Run) {
        self.leak += f64::from(sum(&run.leak));
        self.error += f64::from(sum(&run.error));
        self.noise += f64::from(sum(&run.noise));
        *run = Run::default();
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

/// Decodes to `value`, `[padded]`; returns `r.w` and the length of `w`.
#[inline(always)]
pub(super) fn decode(codes: &[u8], grid: Grid<'_>, r: &[f32], value: &mut [f32]) -> (f64, f64) {
    let n = codes.len();
    let (mut total, mut length) = (0.0f64, 0.0f64);
    let each = value[..n].chunks_mut(SHORT * LANES).zip(codes.chunks(SHORT * LANES)).zip(r[..n].chunks(SHORT * LANES));
    for (short, ((value, codes), r)) in each.enumerate() {
        let (mut lanes, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
        let some = value.len();
        let from = short * SHORT * LANES;
        let each = chunks_mut(value, some).iter_mut().zip(codes.as_chunks::<LANES>().0).zip(chunks(r, some));
        let each = each.zip(chunks(&grid.before[from..], some));
        match grid.levels {
            Levels::Integer { zero, .. } => {
                for ((((value, codes), r), s), zero) in each.zip(chunks(&zero[from..], some)) {
                    for lane in 0..LANES {
                        value[lane] = (f32::from(codes[lane]) - zero[lane]) * s[lane];
                        lanes[lane] += r[lane] * value[lane];
                        squares[lane] += value[lane] * value[lane];
                    }
                }
            }
            Levels::Table(table) => {
                for (((value, codes), r), s) in each {
                    for lane in 0..LANES {
                        value[lane] = table[usize::from(codes[lane] & 15)] * s[lane];
                        lanes[lane] += r[lane] * value[lane];
                        squares[lane] += value[lane] * value[lane];
                    }
                }
            }
        }
        total += f64::from(sum(&lanes));
        length += f64::from(sum(&squares));
    }
    (total, length.sqrt())
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
                let (mut y, r, s, zero) = (*value, *r, *s, *zero);
                for lane in 0..LANES {
                    y[lane] -= r[lane] * c;
                    let t = y[lane] / s[lane] + zero[lane];
                    let off = larger(t - highest, lowest - t);
                    worst[lane] = larger(worst[lane], if s[lane] == 0.0 { 0.0 } else { off });
                }
                *value = y;
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

/// Of nearest rounding of `w - r c` to the grid: the leak `r.(w' - y)`, and the squared error.
#[inline(always)]
pub(super) fn nearest_sums(value: &[f32], r: &[f32], c: f32, grid: Grid<'_>) -> (f64, f64) {
    let n = value.len();
    let (mut leak, mut error) = (0.0f64, 0.0f64);
    let each = chunks(value, n).iter().zip(chunks(r, n)).zip(chunks(grid.scale, n)).enumerate();
    for (run, ((value, r), s)) in each {
        let mut terms = Run::default();
        for lane in 0..LANES {
            let (y, s) = (value[lane] - r[lane] * c, s[lane]);
            let v = match grid.levels {
                Levels::Integer { zero, lowest, highest } => {
                    let zero = zero[run * LANES + lane];
                    let u = if s == 0.0 { zero } else { y / s + zero };
                    (larger(smaller((u + ROUNDING) - ROUNDING, highest), lowest) - zero) * s
                }
                Levels::Table(table) => {
                    let t = if s == 0.0 { 0.0 } else { y / s };
                    table[(1..16).filter(|&i| 2.0 * t > table[i - 1] + table[i]).count()] * s
                }
            };
            terms.leak[lane] = r[lane] * (v - y);
            terms.error[lane] = (v - y) * (v - y);
        }
        leak += f64::from(sum(&terms.leak));
        error += f64::from(sum(&terms.error));
    }
    (leak, error)
}

/// Entries with a key below one and a positive gain up to a bound, which all go to their other level.
pub(super) struct Bulk<'a> {
    pub(super) key: &'a [f32],
    pub(super) step: &'a [f32],
    pub(super) r: &'a [f32],
    /// The component that was removed.
    pub(super) c: f32,
    pub(super) below: f32,
    pub(super) large: f32,
}

/// What that did.
pub(super) struct Moved {
    pub(super) leak: f64,
    pub(super) error: f64,
    pub(super) levels: [f32; LANES],
    pub(super) moved: [f32; LANES],
}

impl Bulk<'_> {
    /// Moves them.
    #[inline(always)]
    pub(super) fn apply(&self, codes: &mut [u8], delta: &mut [f32], turn: &mut [f32], gain: &mut [f32]) -> Moved {
        let n = codes.len();
        let mut done = Moved { leak: 0.0, error: 0.0, levels: [0.0; LANES], moved: [0.0; LANES] };
        let out = codes.as_chunks_mut::<LANES>().0.iter_mut().zip(chunks_mut(delta, n));
        let out = out.zip(chunks_mut(turn, n)).zip(chunks_mut(gain, n));
        let given = chunks(self.key, n).iter().zip(chunks(self.step, n)).zip(chunks(self.r, n));
        let (mut leak, mut error) = ([0.0f32; LANES], [0.0f32; LANES]);
        for (number, ((((codes, delta), turn), gain), ((key, step), r))) in out.zip(given).enumerate() {
            // copies, so that the compiler sees that none of them is another
            let (mut now, mut off, mut way, mut left) = (*codes, *delta, *turn, *gain);
            let (key, step, r) = (*key, *step, *r);
            for lane in 0..LANES {
                // as numbers, so that no branch is made of it
                let go =
                    if (key[lane] < self.below) & (left[lane] > 0.0) & (left[lane] <= self.large) { 1.0 } else { 0.0 };
                let (was, step) = (off[lane], step[lane]);
                let after = was - step.copysign(was);
                now[lane] = ((f32::from(now[lane]) + go * way[lane]) + ROUNDING).to_bits() as u8;
                leak[lane] += go * left[lane];
                error[lane] += go * step * (step - 2.0 * was.abs());
                // entries without a step have an infinite key
                let levels = go * after.abs() / larger(step, f32::MIN_POSITIVE);
                // w' - w = (w' - y) - r c
                let moved = go * (after - r[lane] * self.c).abs();
                done.levels[lane] = larger(done.levels[lane], levels);
                done.moved[lane] = larger(done.moved[lane], moved);
                off[lane] = was - go * step.copysign(was);
                way[lane] -= 2.0 * go * way[lane];
                left[lane] -= 2.0 * go * left[lane];
            }
            (*codes, *delta, *turn, *gain) = (now, off, way, left);
            if number % SHORT == SHORT - 1 {
                done.leak += f64::from(sum(&leak));
                done.error += f64::from(sum(&error));
                (leak, error) = ([0.0; LANES], [0.0; LANES]);
            }
        }
        done.leak += f64::from(sum(&leak));
        done.error += f64::from(sum(&error));
        done
    }
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
