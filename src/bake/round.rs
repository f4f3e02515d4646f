//! Leak-aware rounding of one vector to a quantised grid, here for one direction; `several.rs` does it for up to four.
//!
//! A column `w` of a quantised writer becomes `y = w - r (r.w)` (Wang et al. 2025, eq. 4; Arditi et al. 2024,
//! appendix E) and has to go back to its grid. Rounding to nearest undoes the edit at 4 bits, as `y` and `w` mostly
//! round to the same codes: the leak `e = r.(rounded - y)` is nearly all that was to be removed. Here some
//! entries go to their second-nearest level instead, on the other side of `y`, so that `e` vanishes.
//!
//! An entry whose level is off by `delta` and whose other level is `step` away takes `|r| step` off the leak and adds
//! `step (step - 2 |delta|)` to the squared error. Spending the leak at least error is a fractional knapsack: take
//! entries by rising cost a unit of leak, `(step - 2 |delta|) / |r|`, until the leak is spent. A histogram of that
//! key finds where to stop in one pass; around the last entry, the pair that leaves least is searched.
//!
//! Everything is float32 on vectors padded to a multiple of [`LANES`] with zeros; sums are taken in short
//! float32 runs and added up in float64.

mod arithmetic;
mod pick;
mod search;
mod several;
mod spend;

use arithmetic::{
    Run, SHORT, Sums, ablate, beyond, chunks, chunks_mut, decode, larger, largest, nearest_sums, range, smaller,
    spacing_at_edge,
};
use pick::{Pick, Plain};
use pulp::{Arch, Simd, WithSimd};
use search::Change;
pub use several::MOST_DIRECTIONS;
use several::Several;
use spend::{BUCKETS, REACH};

/// Vectors are padded to a multiple of this.
pub const LANES: usize = 16;

/// Number of entries around the stop among which the search looks for the last pair, for vectors of `n` entries. It
/// grows with `n`.
fn candidates(n: usize) -> usize {
    (n / 24).clamp(56, 512)
}

/// Moves stop when the leak is below this share of the component. The component is that of the vector itself or the
/// root mean square over the vectors that the worker has seen, whichever is larger. The share is half of the limit for
/// a whole tensor ([`super::limits::MAX_LEAK`]), so that some vectors may keep more.
const CLOSE: f64 = 1.0 / (1 << 11) as f64;

/// A leak is left as it is, too, below this share of the component that a vector of that length has along a random
/// direction. An earlier bake by the same direction leaves so little.
const FAINT: f64 = 4.0 * CLOSE;

/// `1.5 * 2^23`: adding and subtracting it rounds a float32 below `2^22` to the nearest integer, ties to even.
const ROUNDING: f32 = 12_582_912.0;

/// The levels that codes `0..` stand for, before the scale.
#[derive(Debug, Clone, Copy)]
pub enum Levels<'a> {
    /// A code stands for `(code - zero) * scale`.
    Integer {
        /// Zero point of each entry, `[d]`.
        zero: &'a [f32],
        /// Smallest code.
        lowest: f32,
        /// Largest code.
        highest: f32,
    },
    /// A code stands for `levels[code] * scale`. The levels are in rising order.
    Table(&'a [f32; 16]),
}

/// The grid of one vector of `d` entries, padded like the direction ([`Unit`]).
#[derive(Debug, Clone, Copy)]
pub struct Grid<'a> {
    /// Scales that the codes were made with, `[d]`; may be negative.
    pub before: &'a [f32],
    /// Scales that they are rounded to, `[d]`.
    pub scale: &'a [f32],
    /// Whether `before` and `scale` differ anywhere.
    pub grown: bool,
    /// What codes stand for.
    pub levels: Levels<'a>,
}

/// The unit direction in the forms that rounding needs, padded with zeros.
#[derive(Debug)]
pub struct Unit {
    /// `r`, `[d]`.
    pub r: Vec<f32>,
    /// `1 / |r|`, infinite where `r` is zero.
    inverse: Vec<f32>,
    /// Length without the padding.
    width: usize,
}

impl Unit {
    /// Pads the unit direction `[d_model]`.
    pub fn new(r: &[f64]) -> Self {
        let mut padded: Vec<f32> = r.iter().map(|&v| v as f32).collect();
        padded.resize(r.len().next_multiple_of(LANES), 0.0);
        let inverse = padded.iter().map(|v| v.abs().recip()).collect();
        Self { r: padded, inverse, width: r.len() }
    }

    /// Length with the padding.
    pub fn padded(&self) -> usize {
        self.r.len()
    }
}

/// What rounding did to the vectors seen so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Sum of `(r.w)^2`.
    pub leak_before: f64,
    /// Sum of `(r.w')^2` if every entry went to its nearest level, by the scales as they were.
    pub leak_nearest: f64,
    /// Sum of `(r.w')^2` of the codes that were chosen.
    pub leak_after: f64,
    /// Sum of `|w' - y|^2` if every entry went to its nearest level, by the scales as they were.
    pub error_nearest: f64,
    /// Sum of `|w' - y|^2` of the codes that were chosen.
    pub error_after: f64,
    /// Sum of `step^2 / 12` over all entries: the squared error of rounding arbitrary values to this grid.
    pub noise: f64,
    /// Largest `|w' - w|` of an entry.
    pub max_abs_delta: f64,
    /// Largest `|w' - y|` of an entry, in spacings of the levels.
    pub max_levels: f64,
}

impl Tally {
    /// Adds the vectors that another worker has seen.
    pub fn add(&mut self, other: &Self) {
        self.leak_before += other.leak_before;
        self.leak_nearest += other.leak_nearest;
        self.leak_after += other.leak_after;
        self.error_nearest += other.error_nearest;
        self.error_after += other.error_after;
        self.noise += other.noise;
        self.max_abs_delta = self.max_abs_delta.max(other.max_abs_delta);
        self.max_levels = self.max_levels.max(other.max_levels);
    }
}

/// The arguments of [`Worker::round`] in the form that pulp needs to compile it for each set of vector instructions. A
/// closure would not be inlined there.
struct Round<'a, 'g, P> {
    worker: &'a mut Worker,
    codes: &'a mut [u8],
    grid: Grid<'g>,
    unit: &'a Unit,
    pick: P,
}

impl<P: Pick> WithSimd for Round<'_, '_, P> {
    type Output = Result<Tally, super::kernel::NotFinite>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        self.worker.round_inlined(self.pick, self.codes, self.grid, self.unit)
    }
}

/// Computes the ablated values `y` of a vector, and how far the furthest of them lies outside of its grid.
struct Ablate<'a, 'g> {
    value: &'a mut [f32],
    codes: &'a [u8],
    grid: Grid<'g>,
    unit: &'a Unit,
}

impl WithSimd for Ablate<'_, '_> {
    type Output = Result<f32, super::kernel::NotFinite>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let (c, _) = decode(self.codes, self.grid, &self.unit.r, self.value);
        if !c.is_finite() {
            return Err(super::kernel::NotFinite);
        }
        Ok(ablate(self.value, &self.unit.r, c as f32, self.grid))
    }
}

/// Buffers of one worker, and the instructions it may use.
pub struct Worker {
    arch: Arch,
    /// The decoded vector `w`.
    value: Vec<f32>,
    /// Rounded value minus `y`, for each entry.
    delta: Vec<f32>,
    /// Distance from the chosen level to the one on the other side of `y`.
    step: Vec<f32>,
    /// Change of the code that leads to that level, 1 or -1; 0 where there is no such level.
    turn: Vec<f32>,
    /// Squared error that a move adds, divided by the leak that it takes off.
    key: Vec<f32>,
    /// How much of the leak the other level takes off; negative where it adds.
    gain: Vec<f32>,
    /// For each bucket of keys the sum of the gains of some entries. All zero between two vectors.
    sums: Vec<f32>,
    /// For each bucket of keys the number of some entries. All zero between two vectors.
    counts: Vec<u32>,
    /// Numbers of some entries, and room for a run more.
    listed: Vec<u32>,
    /// The limit of the keys that sufficed for the vector before, by the leak that was to be spent.
    reach: f64,
    /// Sum of `(r.w)^2` over the vectors so far, and the number of these vectors.
    seen: (f64, u32),
    /// Numbers of the entries that may be moved one by one.
    candidates: Vec<u32>,
    /// The same in some order, and with what a move does.
    order: Vec<u64>,
    changes: Vec<Change>,
    /// Numbers of the entries that were moved. Some of them were moved back.
    changed: Vec<u32>,
    several: Several,
}

impl Worker {
    /// Buffers for vectors of `padded` entries.
    pub fn new(padded: usize) -> Self {
        let zeros = || vec![0.0; padded];
        Self {
            arch: Arch::new(),
            value: zeros(),
            delta: zeros(),
            step: zeros(),
            turn: zeros(),
            key: zeros(),
            gain: zeros(),
            sums: vec![0.0; BUCKETS],
            counts: vec![0; BUCKETS],
            listed: vec![0; padded + LANES],
            reach: REACH,
            seen: (0.0, 0),
            candidates: Vec::with_capacity(2 * candidates(padded)),
            order: Vec::with_capacity(2 * candidates(padded)),
            changes: Vec::with_capacity(2 * candidates(padded)),
            changed: Vec::new(),
            several: Several::default(),
        }
    }

    /// Ablates one to [`MOST_DIRECTIONS`] orthonormal directions from one vector, and rounds it. `codes`, `[padded]`,
    /// holds its codes before and after. Returns what that did.
    ///
    /// # Errors
    /// `NotFinite` if a scale or a zero point is NaN or infinite.
    pub fn round(
        &mut self,
        codes: &mut [u8],
        grid: Grid<'_>,
        units: &[Unit],
    ) -> Result<Tally, super::kernel::NotFinite> {
        let [unit] = units else { return self.round_several(codes, grid, units) };
        #[cfg(target_arch = "x86_64")]
        if let Arch::V4(simd) = self.arch {
            return Simd::vectorize(simd, Round { worker: self, codes, grid, unit, pick: simd });
        }
        self.arch.dispatch(Round { worker: self, codes, grid, unit, pick: Plain })
    }

    /// Finds the entries whose ablated value lies more than a level beyond the last level of their grid. For each it
    /// calls `grow(entry, factor)`: the scale of the entry has to become `factor` times as large. `sharing` is the
    /// number of entries that have one scale in common. Where all levels lie on the other side of zero, a larger scale
    /// does not help, and `grow` is not called.
    ///
    /// The scale does not grow until the value is reached. A larger scale makes all entries that share it coarser: one
    /// part in `k` more adds `2 / k` of `step^2 / 12` to the squared error of each. What the scale does not reach adds
    /// the square of the distance. The sum is least where `sharing * step / (12 edge)` levels are left, and between
    /// half a level, which any entry may be off, and almost a whole one, the most that is allowed.
    ///
    /// # Errors
    /// As [`Self::round`].
    pub fn overshoot(
        &mut self,
        codes: &[u8],
        grid: Grid<'_>,
        units: &[Unit],
        sharing: f32,
        mut grow: impl FnMut(usize, f32),
    ) -> Result<(), super::kernel::NotFinite> {
        // a hair less than a level, so that rounding of the arithmetic does not decide
        let spacing = spacing_at_edge(grid);
        let most = 0.99 * spacing;
        if let [unit] = units {
            let value = &mut self.value[..codes.len()];
            let worst = self.arch.dispatch(Ablate { value, codes, grid, unit })?;
            if worst <= most {
                return Ok(());
            }
        } else {
            self.ablate_several(codes, grid, units)?;
        }
        for (at, &y) in self.value[..codes.len()].iter().enumerate() {
            let t = y / grid.scale[at];
            let (lowest, highest) = range(grid, at);
            let edge = if t > highest { highest } else { lowest };
            if grid.scale[at] != 0.0 && beyond(t, lowest, highest) > most && edge * t > 0.0 {
                let missing = (sharing * spacing / (12.0 * edge.abs())).clamp(0.5, 0.98);
                grow(at, (t.abs() - missing * spacing) / edge.abs());
            }
        }
        Ok(())
    }

    #[inline(always)]
    fn round_inlined<P: Pick>(
        &mut self,
        pick: P,
        codes: &mut [u8],
        grid: Grid<'_>,
        unit: &Unit,
    ) -> Result<Tally, super::kernel::NotFinite> {
        let r = unit.r.as_slice();
        let (c, length) = decode(codes, grid, r, &mut self.value);
        if !c.is_finite() {
            return Err(super::kernel::NotFinite);
        }
        self.seen = (self.seen.0 + c * c, self.seen.1 + 1);
        let typical = (self.seen.0 / f64::from(self.seen.1)).sqrt();
        let close = CLOSE * c.abs().max(typical);
        let mut tally = Tally { leak_before: c * c, ..Tally::default() };
        let mut e = self.nearest(codes, grid, r, c as f32, &mut tally);
        tally.leak_nearest = e * e;
        if grid.grown {
            let before = Grid { scale: grid.before, ..grid };
            let (leak, error) = nearest_sums(&self.value[..codes.len()], r, c as f32, before);
            (tally.leak_nearest, tally.error_nearest) = (leak * leak, error);
        }
        if e.abs() > close.max(FAINT * length / (unit.width as f64).sqrt()) {
            let sign = self.spend(pick, codes, unit, (c as f32, close), &mut e, &mut tally);
            if e.abs() > 4.0 * close && self.turn_back(codes, sign, &mut e, &mut tally) {
                self.note_moves(r, c as f32, &mut tally);
                self.spend(pick, codes, unit, (c as f32, close), &mut e, &mut tally);
            }
            self.note_moves(r, c as f32, &mut tally);
        }
        tally.leak_after = e * e;
        Ok(tally)
    }

    /// Rounds `value` (`w` on entry) to nearest; returns the leak.
    #[inline(always)]
    fn nearest(&mut self, codes: &mut [u8], grid: Grid<'_>, r: &[f32], c: f32, tally: &mut Tally) -> f64 {
        let n = codes.len();
        let mut sums = Sums::default();
        let runs = |values| chunks(values, n).iter();
        let out = chunks_mut(&mut self.delta, n)
            .iter_mut()
            .zip(chunks_mut(&mut self.step, n))
            .zip(chunks_mut(&mut self.turn, n))
            .zip(codes.as_chunks_mut::<LANES>().0);
        let given = runs(&self.value).zip(runs(r)).zip(runs(grid.scale));
        match grid.levels {
            Levels::Integer { zero, lowest, highest } => {
                let each = out.zip(given).zip(runs(zero));
                let mut run = Run::default();
                for (number, (((((delta, step), turn), codes), ((w, r), s)), zero)) in each.enumerate() {
                    // copies, so that the compiler sees that none of them is another
                    let (w, r, s, zero) = (*w, *r, *s, *zero);
                    let (mut now, mut off, mut wide, mut way) = (*codes, [0.0; LANES], [0.0; LANES], [0.0; LANES]);
                    for lane in 0..LANES {
                        let (w, s, zero) = (w[lane], s[lane], zero[lane]);
                        let y = w - r[lane] * c;
                        let code = f32::from(now[lane]);
                        let u = y / s + zero;
                        let u = if s == 0.0 { code } else { u };
                        let q = larger(smaller((u + ROUNDING) - ROUNDING, highest), lowest);
                        let v = (q - zero) * s;
                        let towards = if u > q { 1.0 } else { -1.0 };
                        let next = q + towards;
                        let free = (next >= lowest) & (next <= highest) & (s != 0.0);
                        // the low bits of the sum are the integer; a cast would check ranges that are known
                        now[lane] = (q + ROUNDING).to_bits() as u8;
                        way[lane] = if free { towards } else { 0.0 };
                        wide[lane] = s.abs();
                        off[lane] = v - y;
                        run.leak[lane] += r[lane] * (v - y);
                        run.error[lane] += (v - y) * (v - y);
                        run.noise[lane] += s * s;
                        sums.moved[lane] = larger(sums.moved[lane], (v - w).abs());
                        sums.levels[lane] = larger(sums.levels[lane], (u - q).abs());
                    }
                    (*codes, *delta, *step, *turn) = (now, off, wide, way);
                    if number % SHORT == SHORT - 1 {
                        sums.add(&mut run);
                    }
                }
                sums.add(&mut run);
            }
            Levels::Table(table) => {
                for ((((delta, step), turn), codes), ((w, r), s)) in out.zip(given) {
                    let mut run = Run::default();
                    for lane in 0..LANES {
                        let (w, s) = (w[lane], s[lane]);
                        let y = w - r[lane] * c;
                        let t = if s == 0.0 { table[usize::from(codes[lane] & 15)] } else { y / s };
                        let q = (1..16).filter(|&i| 2.0 * t > table[i - 1] + table[i]).count();
                        let other = if t > table[q] { (q + 1).min(15) } else { q.saturating_sub(1) };
                        let v = table[q] * s;
                        let wide = (table[other] - table[q]).abs();
                        codes[lane] = q as u8;
                        turn[lane] = if s == 0.0 { 0.0 } else { other as f32 - q as f32 };
                        step[lane] = wide * s.abs();
                        delta[lane] = v - y;
                        run.leak[lane] = r[lane] * (v - y);
                        run.error[lane] = (v - y) * (v - y);
                        run.noise[lane] = step[lane] * step[lane];
                        sums.moved[lane] = larger(sums.moved[lane], (v - w).abs());
                        let spacing = match q {
                            _ if wide > 0.0 => wide,
                            0 => table[1] - table[0],
                            15 => table[15] - table[14],
                            // one of two equal levels
                            _ => table[q + 1] - table[q - 1],
                        };
                        sums.levels[lane] = larger(sums.levels[lane], (t - table[q]).abs() / spacing);
                    }
                    sums.add(&mut run);
                }
            }
        }
        tally.error_nearest = sums.error;
        tally.error_after = sums.error;
        tally.noise = sums.noise / 12.0;
        tally.max_abs_delta = largest(&sums.moved);
        tally.max_levels = largest(&sums.levels);
        sums.leak
    }

    /// Takes the moves that were made one by one into the largest `|w' - w|`.
    fn note_moves(&self, r: &[f32], c: f32, tally: &mut Tally) {
        for &at in &self.changed {
            // w' - w = (w' - y) - r c
            let moved = (self.delta[at as usize] - r[at as usize] * c).abs();
            tally.max_abs_delta = tally.max_abs_delta.max(f64::from(moved));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::norm;

    /// Deterministic standard normal numbers.
    pub(crate) fn normal(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..n)
            .map(|_| {
                let (a, b): (f64, f64) = (next().max(1e-300), next());
                (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
            })
            .collect()
    }

    /// A normal matrix quantised by columns of `d`, all by one grid an entry, then rounded.
    fn rounded(d: usize, columns: usize, bits: u32) -> Tally {
        let r = normal(7, d);
        let n = norm(&r);
        let r: Vec<f64> = r.iter().map(|v| v / n).collect();
        let units = [Unit::new(&r)];
        let padded = units[0].padded();
        let highest = ((1u32 << bits) - 1) as f32;
        let zero = vec![(1u32 << (bits - 1)) as f32; padded];
        let mut scale = vec![6.0 / (highest + 1.0); padded];
        scale[d..].fill(0.0);
        let levels = Levels::Integer { zero: &zero, lowest: 0.0, highest };
        let grid = Grid { before: &scale, scale: &scale, grown: false, levels };
        let mut worker = Worker::new(padded);
        let mut tally = Tally::default();
        for column in 0..columns {
            let w = normal(1000 + column as u64, d);
            let mut codes: Vec<u8> = w
                .iter()
                .map(|v| (v / f64::from(scale[0]) + f64::from(zero[0])).round().clamp(0.0, f64::from(highest)) as u8)
                .collect();
            codes.resize(padded, 0);
            let before = codes.clone();
            let found = worker.round(&mut codes, grid, &units).unwrap();
            // by plain arithmetic in float64
            let value = |codes: &[u8], i: usize| (f64::from(codes[i]) - f64::from(zero[i])) * f64::from(scale[i]);
            let c: f64 = (0..d).map(|i| r[i] * value(&before, i)).sum();
            let leak: f64 = (0..d).map(|i| r[i] * value(&codes, i)).sum();
            let error: f64 = (0..d).map(|i| (value(&codes, i) - (value(&before, i) - r[i] * c)).powi(2)).sum();
            assert!((found.leak_before.sqrt() - c.abs()).abs() < 1e-5, "{} {c}", found.leak_before.sqrt());
            assert!((found.leak_after.sqrt() - leak.abs()).abs() < 1e-5, "{} {leak}", found.leak_after.sqrt());
            assert!((found.error_after - error).abs() < 1e-3 * error.max(1e-3), "{} {error}", found.error_after);
            tally.add(&found);
        }
        tally
    }

    #[test]
    fn the_leak_vanishes_at_little_error() {
        // one scale for all is the hardest case: every entry of one weight gains the same
        for (bits, d, nearest, leak, error) in [
            (8, 1024, 0.02, 8e-4, 1.05),
            (4, 1024, 0.5, 8e-4, 2.0),
            (2, 1024, 0.9, 3e-3, 4.5),
            (4, 256, 0.3, 1e-3, 1.4),
        ] {
            let tally = rounded(d, 64, bits);
            let share = |e: f64| (e / tally.leak_before).sqrt();
            let ratio = (tally.error_after / tally.error_nearest).sqrt();
            assert!(share(tally.leak_nearest) > nearest, "{bits} bits: nearest {}", share(tally.leak_nearest));
            assert!(share(tally.leak_after) < leak, "{bits} bits: {}", share(tally.leak_after));
            assert!(ratio < error, "{bits} bits: error x{ratio}");
        }
    }

    /// Vectors of `d` codes of `bits` on one scale, rounded `times` in a row by the direction; what the last time did,
    /// and whether it changed a code.
    fn again(r: &[f64], bits: u32, times: usize) -> (Tally, bool) {
        let n = norm(r);
        let units = [Unit::new(&r.iter().map(|v| v / n).collect::<Vec<_>>())];
        let highest = ((1u32 << bits) - 1) as f32;
        let zero = vec![(1u32 << (bits - 1)) as f32; units[0].padded()];
        let mut scale = vec![8.0 / (highest + 1.0); units[0].padded()];
        scale[r.len()..].fill(0.0);
        let grid = Grid {
            before: &scale,
            scale: &scale,
            grown: false,
            levels: Levels::Integer { zero: &zero, lowest: 0.0, highest },
        };
        let code = |v: f64| (v / f64::from(scale[0]) + f64::from(zero[0])).round().clamp(0.0, f64::from(highest)) as u8;
        let made = |column: u32| normal(500 + u64::from(column), r.len()).into_iter().map(code).collect::<Vec<u8>>();
        let mut columns: Vec<Vec<u8>> = (0..64u32).map(made).collect();
        columns.iter_mut().for_each(|codes| codes.resize(units[0].padded(), 0));
        let (mut tally, mut changed) = (Tally::default(), false);
        for _ in 0..times {
            let mut worker = Worker::new(units[0].padded());
            let before = columns.clone();
            tally = Tally::default();
            for codes in &mut columns {
                tally.add(&worker.round(codes, grid, &units).unwrap());
            }
            changed = columns != before;
        }
        (tally, changed)
    }

    #[test]
    fn a_second_bake_changes_nothing() {
        for bits in [4, 8] {
            assert!(again(&normal(3, 512), bits, 1).1);
            assert!(!again(&normal(3, 512), bits, 2).1, "{bits} bits");
        }
    }

    #[test]
    fn one_entry_may_dominate_the_direction() {
        let mut r = normal(3, 256);
        r[9] = 2.0 * norm(&r);
        let tally = again(&r, 4, 1).0;
        assert!(tally.leak_after <= 1e-6 * tally.leak_before, "{}", (tally.leak_after / tally.leak_before).sqrt());
    }
}
