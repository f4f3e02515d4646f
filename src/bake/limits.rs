//! When rounding a quantised weight is not good enough, so that its write is projected by nodes instead.

use std::collections::BTreeSet;

use super::apply::Edit;

/// Largest leak that rounding may leave, as a share of the component that was to be removed.
pub const MAX_LEAK: f64 = 1e-3;

/// The same at 2 bits.
pub const MAX_LEAK_2_BITS: f64 = 1e-2;

/// Rounding may cost this many times the error of nearest rounding ...
pub const MAX_ERROR: f64 = 1.6;

/// ... or this share of the error that any rounding to a grid as coarse makes, whichever is more.
pub const MAX_NOISE: f64 = 0.55;

/// Values may lie this many levels from the exact ones.
pub const MAX_LEVELS: f64 = 1.001;

/// A component below this share of what the grid itself leaves along any direction is no reason for nodes: that of a
/// model that was baked before, say.
const NEGLIGIBLE: f64 = 0.05;

/// The quantised writers of width `d_model` whose rounding left or cost too much, as the edits that were made tell.
pub fn past_limits(edits: &[Edit], d_model: usize) -> BTreeSet<String> {
    edits.iter().filter(|edit| is_past(edit, d_model)).map(|edit| edit.writer.clone()).collect()
}

fn is_past(edit: &Edit, d_model: usize) -> bool {
    let (Some(rounding), Some(before), Some(after)) = (&edit.rounding, edit.leak_before, edit.leak_after) else {
        return false;
    };
    let leak = if edit.bits == Some(2) { MAX_LEAK_2_BITS } else { MAX_LEAK };
    let negligible = before <= NEGLIGIBLE * rounding.grid_noise / (d_model as f64).sqrt();
    let dear = rounding.error > (MAX_ERROR * rounding.error_nearest).max(MAX_NOISE * rounding.grid_noise);
    !negligible && (after > leak * before || dear || rounding.max_levels > MAX_LEVELS)
}
