//! When rounding a quantised weight is not good enough, so that its write is projected by nodes instead.

use std::collections::BTreeSet;

use super::apply::Edit;

/// Largest leak that rounding may leave, as a share of the component that was to be removed.
pub const MAX_LEAK: f64 = 1e-3;

/// The same at 2 bits.
pub const MAX_LEAK_2_BITS: f64 = 1e-2;

/// Rounding may cost this many times the error of nearest rounding to the grid as it was ...
pub const MAX_ERROR: f64 = 1.6;

/// ... at 8 bits this many, ...
pub const MAX_ERROR_8_BITS: f64 = 1.05;

/// ... and below 8 bits as much as this share of the error that any rounding to a grid as coarse makes, if that is more:
/// the wider the stream, the more of the codes nearest rounding leaves as they were, and its error tells ever less.
pub const MAX_NOISE: f64 = 0.55;

/// Values may lie this many levels from the exact ones.
pub const MAX_LEVELS: f64 = 1.001;

/// A component below this share of what the grid itself leaves along any direction is no reason for nodes: that of a
/// model that was baked before, say.
const NEGLIGIBLE: f64 = 0.05;

/// The quantised writers of width `d_model` whose rounding left or cost too much, as the edits that were made tell.
/// `max_error` stands in for the limits of the error: a multiple of nearest rounding's, whatever the bits.
pub fn past_limits(edits: &[Edit], d_model: usize, max_error: Option<f64>) -> BTreeSet<String> {
    edits.iter().filter(|edit| is_past(edit, d_model, max_error)).map(|edit| edit.writer.clone()).collect()
}

fn is_past(edit: &Edit, d_model: usize, max_error: Option<f64>) -> bool {
    let (Some(rounding), Some(before), Some(after)) = (&edit.rounding, edit.leak_before, edit.leak_after) else {
        return false;
    };
    let leak = if edit.bits == Some(2) { MAX_LEAK_2_BITS } else { MAX_LEAK };
    let negligible = before <= NEGLIGIBLE * rounding.grid_noise / (d_model as f64).sqrt();
    let most = match (max_error, edit.bits) {
        (Some(ratio), _) => ratio * rounding.error_nearest,
        (None, Some(8)) => MAX_ERROR_8_BITS * rounding.error_nearest,
        (None, _) => (MAX_ERROR * rounding.error_nearest).max(MAX_NOISE * rounding.grid_noise),
    };
    let dear = rounding.error > most;
    // nothing was left to do: an earlier bake did it
    let untouched = edit.max_abs_delta == Some(0.0);
    !negligible && !untouched && (after > leak * before || dear || rounding.max_levels > MAX_LEVELS)
}
