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

/// The same at 8 bits, where the grid is so fine that what a bake may leave is more than that of it, and nearest rounding
/// costs so little that nothing compares with it: a second bake would give a writer to nodes for nothing.
const NEGLIGIBLE_8_BITS: f64 = 0.25;

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
    use crate::lm::WriterKind;
    use crate::onnx::DataType;

    fn edit(bits: u8, (before, after): (f64, f64), rounding: Rounding) -> Edit {
        Edit {
            initializer: "w".into(),
            kind: WriterKind::AttnOut,
            writer: "layer.0.attn_out".into(),
            part: None,
            layer: None,
            treatment: "rounded",
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
