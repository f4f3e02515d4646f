//! Which axis of the residual stream is what.

use serde::Serialize;

/// The axes of the residual stream where it starts: `[batch, n_pos, d_model]` in most exports, `[n_pos, batch, d_model]`,
/// `[batch * n_pos, d_model]` or `[batch, d_model, 1, n_pos]` in others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct StreamLayout {
    /// The axis of the batch; the same as [`Self::position`] where rows of all sequences follow one another, a whole
    /// sequence at a time; `None` where the stream has no batch, or it was not found.
    pub batch: Option<usize>,
    /// The axis of the positions; `None` where it was not found, so that nothing can be measured there.
    pub position: Option<usize>,
    /// The axis of length `d_model`; counted from the end of three where the rank is unknown.
    pub width: usize,
    /// Number of axes; `None` where the file does not tell.
    pub rank: Option<usize>,
}

impl StreamLayout {
    /// `[batch, n_pos, d_model]`.
    pub const PLAIN: Self = Self { batch: Some(0), position: Some(1), width: 2, rank: Some(3) };

    /// Whether this is `[batch, n_pos, d_model]`.
    pub fn is_plain(&self) -> bool {
        *self == Self::PLAIN
    }
}
