//! The check of an edited quantised weight against the exact edit of the original one, in float64.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Grids, TILE, Tables, View};
use crate::bake::error::BakeError;
use crate::bake::round::{Grid, Levels, Unit};
use crate::bake::tensor::Read;
use crate::onnx::quant::Quantised;

/// What the check of an edited quantised weight found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::bake) struct GridCheck {
    /// `||r^T W'||` of the stored values, over all directions.
    pub leak_after: f64,
    /// Largest `|W' - exact|` in level spacings, but for values beyond the grid that took its outermost level.
    pub max_levels: f64,
}

/// Compares an edited quantised weight with the exact edit of the original one. The files of `base` and `out` hold the
/// same geometry.
///
/// # Errors
/// Whatever the readers report.
pub(in crate::bake) fn check(
    q: &Quantised,
    directions: &[&[f64]],
    (base, base_tables): (Read<'_>, &Tables),
    (out, out_tables): (Read<'_>, &Tables),
) -> Result<GridCheck, BakeError> {
    let units: Vec<Unit> = directions.iter().map(|r| Unit::new(r)).collect();
    let view = View::new(q, &units);
    let full = (0.0, f32::from(q.highest()));
    let table = q.table();
    let padded: Vec<Vec<f64>> = directions
        .iter()
        .map(|r| r.iter().copied().chain(std::iter::repeat_n(0.0, view.padded - r.len())).collect())
        .collect();
    let mut checked = GridCheck { leak_after: 0.0, max_levels: 0.0 };
    for panel in view.panels() {
        let (was, is) = (base_tables.side(&view, &panel)?, out_tables.side(&view, &panel)?);
        let before = view.unpack(&panel, &view.read(&panel, base)?);
        let after = view.unpack(&panel, &view.read(&panel, out)?);
        let tiles: Vec<GridCheck> = before
            .par_chunks(TILE * view.padded)
            .zip(after.par_chunks(TILE * view.padded))
            .enumerate()
            .map(|(tile, (before, after))| {
                let mut grids = Grids::new(view, &was, &is.scales, full);
                let first = panel.vectors.start + (tile * TILE) as u64;
                let mut found = GridCheck { leak_after: 0.0, max_levels: 0.0 };
                let pairs = before.chunks(view.padded).zip(after.chunks(view.padded));
                for (vector, (before, after)) in (first..).zip(pairs) {
                    let grid = grids.of(vector);
                    let (leak, levels) = match padded.as_slice() {
                        [only] => check_vector(before, after, grid, table.as_ref(), (directions[0], only)),
                        _ => check_entries(before, after, grid, table.as_ref(), directions),
                    };
                    found.leak_after += leak * leak;
                    found.max_levels = found.max_levels.max(levels);
                }
                found
            })
            .collect();
        for tile in tiles {
            checked.leak_after += tile.leak_after;
            checked.max_levels = checked.max_levels.max(tile.max_levels);
        }
    }
    Ok(GridCheck { leak_after: checked.leak_after.sqrt(), ..checked })
}

/// In float64: `r.w'`, and the largest distance of an entry from the ablated value in level spacings. The direction is
/// given as it is, and padded with zeros as the vectors are.
fn check_vector(
    before: &[u8],
    after: &[u8],
    grid: Grid<'_>,
    table: Option<&[f32; 16]>,
    (r, padded): (&[f64], &[f64]),
) -> (f64, f64) {
    match grid.levels {
        // integers up to 255: their levels lie one apart to the bit
        Levels::Integer { zero, highest, .. } if zero.iter().all(|z| f32::from(*z as u8) == *z) => {
            Arch::new().dispatch(Integers { before, after, grid, zero, highest: f64::from(highest), r: padded })
        }
        _ => check_entries(before, after, grid, table, &[r]),
    }
}

/// Entries of a vector that are looked at together. Vectors are padded to a multiple of it; past their end scales are
/// zero.
const WIDE: usize = 8;

/// A vector of integer codes with integer zero points.
struct Integers<'a> {
    before: &'a [u8],
    after: &'a [u8],
    grid: Grid<'a>,
    zero: &'a [f32],
    highest: f64,
    r: &'a [f64],
}

impl WithSimd for Integers<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let was = |code: u8, zero: f32, scale: f32| (f64::from(code) - f64::from(zero)) * f64::from(scale);
        let (before, after) = (self.before.as_chunks::<WIDE>().0, self.after.as_chunks::<WIDE>().0);
        let (r, zero) = (self.r.as_chunks::<WIDE>().0, self.zero.as_chunks::<WIDE>().0);
        let (scale_before, scale) = (self.grid.before.as_chunks::<WIDE>().0, self.grid.scale.as_chunks::<WIDE>().0);
        let mut sums = [0.0f64; WIDE];
        for (((before, scale), zero), r) in before.iter().zip(scale_before).zip(zero).zip(r) {
            for lane in 0..WIDE {
                sums[lane] += r[lane] * was(before[lane], zero[lane], scale[lane]);
            }
        }
        let c: f64 = sums.iter().sum();
        let (mut leaks, mut worst) = ([0.0f64; WIDE], [0.0f64; WIDE]);
        let each = before.iter().zip(after).zip(scale_before).zip(scale).zip(zero).zip(r);
        for (((((before, after), scale_before), scale), zero), r) in each {
            for lane in 0..WIDE {
                let (code, s) = (f64::from(after[lane]), f64::from(scale[lane]));
                let value = (code - f64::from(zero[lane])) * s;
                let wanted = was(before[lane], zero[lane], scale_before[lane]) - r[lane] * c;
                leaks[lane] += r[lane] * value;
                // towards the wanted value; the outermost level is all that a value beyond it can have
                let outermost = if (wanted > value) == (s > 0.0) { self.highest } else { 0.0 };
                let off = (wanted - value).abs() / s.abs();
                let counts = (s != 0.0) & (code != outermost) & (off > worst[lane]);
                worst[lane] = if counts { off } else { worst[lane] };
            }
        }
        (leaks.iter().sum(), worst.into_iter().fold(0.0, f64::max))
    }
}

/// The same for any levels and any number of directions, entry by entry. The leak is the length of `Q w'`.
fn check_entries(
    before: &[u8],
    after: &[u8],
    grid: Grid<'_>,
    table: Option<&[f32; 16]>,
    directions: &[&[f64]],
) -> (f64, f64) {
    let level = |code: u8, at: usize| match (grid.levels, table) {
        (Levels::Integer { zero, .. }, _) => f64::from(code) - f64::from(zero[at]),
        (Levels::Table(_), table) => f64::from(table.expect("the coding has one")[usize::from(code)]),
    };
    let was = |at: usize| level(before[at], at) * f64::from(grid.before[at]);
    let component = |r: &&[f64]| r.iter().enumerate().map(|(at, r)| r * was(at)).sum();
    let components: Vec<f64> = directions.iter().map(component).collect();
    let (mut leaks, mut worst) = (vec![0.0f64; directions.len()], 0.0f64);
    for (at, &code) in after.iter().enumerate().take(directions[0].len()) {
        let s = f64::from(grid.scale[at]);
        let taken: f64 = directions.iter().zip(&components).map(|(r, c)| r[at] * c).sum();
        let (value, wanted) = (level(code, at) * s, was(at) - taken);
        for (leak, r) in leaks.iter_mut().zip(directions) {
            *leak += r[at] * value;
        }
        let highest = match grid.levels {
            Levels::Integer { highest, .. } => highest as u8,
            Levels::Table(_) => 15,
        };
        if value == wanted || s == 0.0 {
            continue;
        }
        // towards the wanted value; the outermost level is all that a value beyond it can have
        let up = (wanted > value) == (s > 0.0);
        let next = if up { code.checked_add(1).filter(|&n| n <= highest) } else { code.checked_sub(1) };
        let same = next.filter(|&n| level(n, at) != level(code, at));
        let spacing = match (same, next) {
            (Some(next), _) => (level(next, at) - level(code, at)).abs() * s.abs(),
            (None, Some(_)) => level(1, at).abs().max(f64::from(f32::EPSILON)) * s.abs(),
            (None, None) => continue,
        };
        worst = worst.max((wanted - value).abs() / spacing);
    }
    (crate::linalg::norm(&leaks), worst)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors with every kind of entry: on its level, off it by less or more than one, beyond the grid, without a scale.
    #[test]
    fn eight_at_a_time_finds_what_one_at_a_time_does() {
        let (d, padded) = (100usize, 112usize);
        for seed in 0..400u32 {
            let noise = |n: u32| (seed * 7919 + n * 104_729) % 1009;
            let r: Vec<f64> = (0..d as u32).map(|i| (f64::from(noise(i)) - 504.0) / 2900.0).collect();
            let wide: Vec<f64> = r.iter().copied().chain([0.0; 12]).collect();
            let codes =
                |salt: u32| -> Vec<u8> { (0..padded as u32).map(|i| (noise(i * 3 + salt) % 16) as u8).collect() };
            let (before, mut after) = (codes(1), codes(2));
            if seed % 3 == 0 {
                after.clone_from(&before);
            }
            let mut scale: Vec<f32> = (0..padded as u32).map(|i| noise(i * 5) as f32 / 1e5 - 0.001).collect();
            scale[d..].fill(0.0);
            scale[7] = 0.0;
            let mut grown = scale.clone();
            grown[3] *= 1.5;
            let zero: Vec<f32> = (0..padded as u32).map(|i| (noise(i) % 16) as f32).collect();
            let levels = Levels::Integer { zero: &zero, lowest: 0.0, highest: 15.0 };
            let grid = Grid { before: &scale, scale: &grown, grown: true, levels };
            let (leak, worst) = check_vector(&before, &after, grid, None, (&r, &wide));
            let (other, farthest) = check_entries(&before, &after, grid, None, &[&r]);
            assert!((leak.abs() - other).abs() < 1e-12, "{seed}: {leak} {other}");
            assert!((worst - farthest).abs() <= 1e-9 * farthest, "{seed}: {worst} {farthest}");
        }
    }
}
