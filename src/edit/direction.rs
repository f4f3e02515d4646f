//! Directions of the residual stream: unit vectors.

use crate::linalg::norm;

/// What is wrong with a vector that should be a direction.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DirectionError {
    /// No elements.
    #[error("the direction is empty")]
    Empty,
    /// All elements are zero.
    #[error("the direction is zero, so it has no orientation")]
    Zero,
    /// NaN or infinity.
    #[error("element {index} of the direction is {value}")]
    NotFinite {
        /// Which element.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// It belongs to a model of another width.
    #[error("the direction has {got} elements, the model's d_model is {expected}")]
    Width {
        /// `d_model`.
        expected: usize,
        /// Elements of the direction.
        got: usize,
    },
}

impl DirectionError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty | Self::Width { .. } => {
                "pass a direction of shape `[d_model]` that was extracted from this model (or one of its precisions)"
                    .into()
            }
            Self::Zero => "give a vector that is not all zero; where it is a difference of class means, the means coincide: use other prompts, \
             another layer or position"
                .into(),
            Self::NotFinite { .. } => {
                "extract the direction again; an overflow in float16 activations is a usual cause".into()
            }
        })
    }
}

/// A direction of the residual stream, unit norm, float64, shape `[d_model]`. What is done with it is an
/// [`Edit`](super::Edit).
///
/// ```
/// use lancet::linalg::project_out;
/// use lancet::edit::Direction;
///
/// let direction = Direction::new(vec![3.0, 0.0, 4.0])?;
/// assert_eq!(direction.raw_norm(), 5.0);
/// let mut x = [5.0, 1.0, 0.0];
/// let removed = project_out(&mut x, direction.unit());
/// assert!((removed - 3.0).abs() < 1e-12);
/// assert!(Direction::new(vec![0.0; 3]).is_err());
/// # Ok::<(), lancet::edit::DirectionError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    unit: Vec<f64>,
    raw_norm: f64,
}

impl Direction {
    /// Normalises `raw` (`[d_model]`).
    ///
    /// # Errors
    /// An empty or zero vector, NaN, infinity.
    pub fn new(raw: Vec<f64>) -> Result<Self, DirectionError> {
        if raw.is_empty() {
            return Err(DirectionError::Empty);
        }
        if let Some((index, &value)) = raw.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(DirectionError::NotFinite { index, value });
        }
        // Scaled by the largest element first, so that squares neither overflow nor vanish.
        let largest = raw.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        if largest == 0.0 {
            return Err(DirectionError::Zero);
        }
        let mut unit: Vec<f64> = raw.iter().map(|v| v / largest).collect();
        let length = norm(&unit);
        unit.iter_mut().for_each(|v| *v /= length);
        Ok(Self { unit, raw_norm: length * largest })
    }

    /// The unit vector as float32, `[d_model]`: `v` of the run-time ablation `x - (x.v) v`.
    pub fn hook(&self) -> Vec<f32> {
        self.unit.iter().map(|v| *v as f32).collect()
    }

    /// The unit vector, `[d_model]`.
    pub fn unit(&self) -> &[f64] {
        &self.unit
    }

    /// Norm of the vector it was made from.
    pub fn raw_norm(&self) -> f64 {
        self.raw_norm
    }

    /// Number of elements.
    pub fn width(&self) -> usize {
        self.unit.len()
    }

    /// Checks that the direction fits a residual stream of width `d_model`.
    ///
    /// # Errors
    /// [`DirectionError::Width`].
    pub fn check_width(&self, d_model: usize) -> Result<(), DirectionError> {
        match self.width() == d_model {
            true => Ok(()),
            false => Err(DirectionError::Width { expected: d_model, got: self.width() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_direction_is_refused() {
        assert_eq!(Direction::new(vec![]), Err(DirectionError::Empty));
        assert_eq!(Direction::new(vec![0.0, -0.0]), Err(DirectionError::Zero));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let error = Direction::new(vec![1.0, bad]).unwrap_err();
            assert!(matches!(error, DirectionError::NotFinite { index: 1, .. }), "{error}");
            assert!(error.hint().is_some());
        }
        let error = Direction::new(vec![1.0; 3]).unwrap().check_width(4).unwrap_err();
        assert_eq!(error.to_string(), "the direction has 3 elements, the model's d_model is 4");
    }

    #[test]
    fn extreme_scales_normalise() {
        for scale in [1e-320, 1e-200, 1.0, 1e200, 1e308] {
            let direction = Direction::new(vec![scale, 0.0, -scale]).unwrap();
            assert!((norm(direction.unit()) - 1.0).abs() < 1e-12, "{scale}");
        }
        let direction = Direction::new(vec![3.0, 4.0]).unwrap();
        assert!((direction.raw_norm() - 5.0).abs() < 1e-12);
        assert_eq!(direction.check_width(2), Ok(()));
    }
}
