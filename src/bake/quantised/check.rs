//! The check of an edited quantised weight against the exact edit of the original one, in float64.

use rayon::prelude::*;

use super::{Grids, TILE, Tables, View};
use crate::bake::error::BakeError;
use crate::bake::round::{Grid, Levels, Unit};
use crate::bake::tensor::Read;
use crate::onnx::quant::Quantised;

/// What the check of an edited quantised weight found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::bake) struct GridCheck {
    /// `||r^T W'||` of the stored values.
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
    r: &[f64],
    (base, base_tables): (Read<'_>, &Tables),
    (out, out_tables): (Read<'_>, &Tables),
) -> Result<GridCheck, BakeError> {
    let unit = Unit::new(r);
    let view = View::new(q, &unit);
    let full = (0.0, f32::from(q.highest()));
    let table = q.table();
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
                    let (leak, levels) = check_vector(before, after, grid, table.as_ref(), r);
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

/// In float64: `r.w'`, and the largest distance of an entry from the ablated value in level spacings.
fn check_vector(before: &[u8], after: &[u8], grid: Grid<'_>, table: Option<&[f32; 16]>, r: &[f64]) -> (f64, f64) {
    let level = |code: u8, at: usize| match (grid.levels, table) {
        (Levels::Integer { zero, .. }, _) => f64::from(code) - f64::from(zero[at]),
        (Levels::Table(_), table) => f64::from(table.expect("the coding has one")[usize::from(code)]),
    };
    let was = |at: usize| level(before[at], at) * f64::from(grid.before[at]);
    let c: f64 = r.iter().enumerate().map(|(at, r)| r * was(at)).sum();
    let (mut leak, mut worst) = (0.0f64, 0.0f64);
    for (at, r) in r.iter().enumerate() {
        let (code, s) = (after[at], f64::from(grid.scale[at]));
        let (value, wanted) = (level(code, at) * s, was(at) - r * c);
        leak += r * value;
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
    (leak, worst)
}
