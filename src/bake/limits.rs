//! When rounding a quantised weight is not good enough, so that its write is projected by nodes instead.
//!
//! Words: the *leak* of a tensor is what it keeps of the direction, `||r^T W'||`. Its *error* is the distance of the
//! stored values from the exact edit, `||W' - (W - r r^T W)||`. A *level* is a value that a code can stand for.

use std::collections::BTreeSet;

use super::apply::EditResult;

/// Largest leak that rounding may leave at 4 and 8 bits, as a share of the component that was to be removed,
/// `||r^T W||`.
pub const MAX_LEAK: f64 = 1e-3;

/// Largest leak that rounding may leave at 2 bits, as a share of the component that was to be removed.
pub const MAX_LEAK_2_BITS: f64 = 1e-2;

/// Largest error below 8 bits, as a multiple of the error of nearest rounding to the grid of the file. A larger error
/// is allowed as long as [`MAX_NOISE`] allows it.
pub const MAX_ERROR: f64 = 1.6;

/// Largest error at 8 bits, as a multiple of the error of nearest rounding to the grid of the file.
pub const MAX_ERROR_8_BITS: f64 = 1.05;

/// Error below 8 bits that is always allowed, as a share of the noise of the grid, `sqrt(sum step^2 / 12)`: the error
/// that rounding arbitrary values to such a grid makes. It is needed for wide models. There nearest rounding returns
/// most entries to the codes they had, so that its error is small only because it does not make the edit.
pub const MAX_NOISE: f64 = 0.55;

/// Largest distance of a stored value from the exact one, in spacings of the levels. A little more than 1, so that
/// rounding in the arithmetic does not decide.
pub const MAX_LEVELS: f64 = 1.001;

/// A component is negligible below this share of what the grid itself leaves along any direction. Such a component is
/// no reason for nodes. It is found in a model that was baked before.
const NEGLIGIBLE: f64 = 0.05;

/// [`NEGLIGIBLE`] at 8 bits. The grid is so fine that what a bake may leave can be more than 5 % of what the grid
/// leaves, and nearest rounding costs so little that any other rounding looks dear beside it. With the smaller share a
/// second bake would give a writer to nodes for nothing.
const NEGLIGIBLE_8_BITS: f64 = 0.25;

/// Names of the quantised writers whose rounding left or cost too much, as told by the edits that were made.
/// `d_model` is the width of the stream. `max_error`, where given, replaces the limits of the error at any number of
/// bits: it is the largest multiple of nearest rounding's error.
pub fn past_limits(edits: &[EditResult], d_model: usize, max_error: Option<f64>) -> BTreeSet<String> {
    edits.iter().filter(|edit| is_past(edit, d_model, max_error)).map(|edit| edit.writer.clone()).collect()
}

fn is_past(edit: &EditResult, d_model: usize, max_error: Option<f64>) -> bool {
    let (Some(rounding), Some(before), Some(after)) = (&edit.rounding, edit.leak_before, edit.leak_after) else {
        return false;
    };
    let leak = if edit.bits == Some(2) { MAX_LEAK_2_BITS } else { MAX_LEAK };
    let share = if edit.bits == Some(8) { NEGLIGIBLE_8_BITS } else { NEGLIGIBLE };
    let negligible = before <= share * rounding.grid_noise / (d_model as f64).sqrt();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bake::Rounding;
    use crate::lm::{Treatment, WriterKind};
    use crate::onnx::DataType;

    fn edit(bits: u8, (before, after): (f64, f64), rounding: Rounding) -> EditResult {
        EditResult {
            initializer: "w".into(),
            kind: WriterKind::AttnOut,
            writer: "layer.0.attn_out".into(),
            part: None,
            layer: None,
            treatment: Treatment::Rounded,
            reason: None,
            dtype: DataType::UINT8,
            shape: None,
            bytes: None,
            leak_before: Some(before),
            leak_after: Some(after),
            max_abs_delta: Some(0.0018),
            sha256_before: None,
            sha256_after: None,
            quantisation: None,
            bits: Some(bits),
            rounding: Some(rounding),
        }
    }

    /// The second bakes are those of `fixtures/quant/nbits8-b32-sym.onnx` and `dq-uint8-output.onnx` by directions of
    /// their own, as `lancet bake --quantised round --json` reports them.
    #[test]
    fn what_an_earlier_bake_left_is_no_reason_for_nodes() {
        let rounding = |error, error_nearest, grid_noise| Rounding {
            leak_nearest: error_nearest,
            error,
            error_nearest,
            grid_noise,
            max_levels: 0.99,
            grown_scales: 0,
        };
        let again = [
            edit(8, (5.280e-4, 4.857e-4), rounding(2.634e-3, 5.280e-4, 5.164e-2)),
            edit(8, (4.468e-4, 4.007e-4), rounding(1.859e-3, 4.468e-4, 4.561e-2)),
            edit(8, (3.177e-4, 2.461e-4), rounding(2.768e-3, 3.177e-4, 4.566e-2)),
        ];
        assert!(past_limits(&again, 256, None).is_empty());
        // a first bake that leaves as much is past them, and so is a second one at 4 bits
        let first = edit(8, (0.4, 4.857e-4 * 2.0), rounding(0.09, 0.08, 5.164e-2));
        assert_eq!(past_limits(&[first], 256, None).len(), 1);
        assert_eq!(past_limits(&[edit(4, (0.4, 0.01), rounding(0.3, 0.25, 0.8))], 256, None).len(), 1);
    }
}
