//! Directions of the residual stream: difference of means, partial orthogonalisation, the unit vector.

use crate::linalg::{dot, norm, sub};

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

/// Activation addition (Wang et al. 2025, eq. 5): `x <- x + alpha r` on `resid_pre[layer]`, at every position.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// The true-refusal vector as the difference of means gives it, not normalised, `[d_model]`.
    pub vector: Vec<f64>,
    /// Absolute layer, at least 1: the vector joins the write that ends block `layer - 1`.
    pub layer: usize,
    /// Token position that the vector comes from, negative.
    pub position: i64,
    /// Factor of the vector.
    pub alpha: f64,
}

impl Addition {
    /// What is added, `alpha r`, `[d_model]`.
    pub fn scaled(&self) -> Vec<f64> {
        self.vector.iter().map(|v| self.alpha * v).collect()
    }
}

/// A direction of the residual stream, unit norm, float64, shape `[d_model]`, and what is done with it: how strongly
/// it is ablated, and what is added to the stream besides.
///
/// ```
/// use lancet::linalg::project_out;
/// use lancet::method::direction::Direction;
///
/// let direction = Direction::new(vec![3.0, 0.0, 4.0])?;
/// assert_eq!((direction.raw_norm(), direction.strength()), (5.0, 1.0));
/// let mut x = [5.0, 1.0, 0.0];
/// let removed = project_out(&mut x, direction.unit());
/// assert!((removed - 3.0).abs() < 1e-12);
/// assert!(Direction::new(vec![0.0; 3]).is_err());
/// # Ok::<(), lancet::method::direction::DirectionError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    unit: Vec<f64>,
    raw_norm: f64,
    strength: f64,
    addition: Option<Addition>,
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
        Ok(Self { unit, raw_norm: length * largest, strength: 1.0, addition: None })
    }

    /// The same with strength `s`, the share of the component that is ablated: `x <- x - s r r^T x`. 1, the default, is
    /// eq. 4 of Wang et al. 2025.
    #[must_use]
    pub fn with_strength(self, strength: f64) -> Self {
        Self { strength, ..self }
    }

    /// The same with an addition, or without one; one with `alpha = 0` is none.
    #[must_use]
    pub fn with_addition(self, addition: Option<Addition>) -> Self {
        Self { addition: addition.filter(|a| a.alpha != 0.0), ..self }
    }

    /// The strength: the share of the component along the direction that is ablated, above 0 and at most 1.
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// What is added.
    pub fn addition(&self) -> Option<&Addition> {
        self.addition.as_ref()
    }

    /// The vector `sqrt(s) r` as float32, `[d_model]`: `x - (x.v) v` is then `x - s r r^T x`.
    pub fn hook(&self) -> Vec<f32> {
        let root = self.strength.sqrt();
        self.unit.iter().map(|v| (root * v) as f32).collect()
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
        let widths = [self.width()].into_iter().chain(self.addition.as_ref().map(|a| a.vector.len()));
        match widths.into_iter().find(|width| *width != d_model) {
            None => Ok(()),
            Some(got) => Err(DirectionError::Width { expected: d_model, got }),
        }
    }
}

/// Removes the share `lambda` of `w`'s component along `r` (Wang et al. 2025, eq. 6 and 7):
/// `w' = w - lambda (w.r)/(r.r + 1e-8) r`, all `[d_model]`. `lambda = 1` makes `w'` orthogonal to `r`,
/// `lambda = 0` returns `w`. `r` is the true-refusal vector of the same position and layer, not normalised.
pub fn partially_orthogonalise(w: &[f64], r: &[f64], lambda: f64) -> Vec<f64> {
    let scale = lambda * dot(w, r) / (dot(r, r) + 1e-8);
    w.iter().zip(r).map(|(w, r)| w - scale * r).collect()
}

/// Difference of two mean activations `a - b`, `[d_model]` (Wang et al. 2025, eq. 1 and 2).
pub fn diff_in_means(a: &[f64], b: &[f64]) -> Vec<f64> {
    sub(a, b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn a_scaled_vector_ablates_a_share() {
        let x = [0.3, -1.25, 2.0];
        for strength in [1.0, 0.5, 0.04] {
            let direction = Direction::new(vec![1.0, 2.0, -0.5]).unwrap().with_strength(strength);
            let v: Vec<f64> = direction.hook().iter().map(|v| f64::from(*v)).collect();
            let (by_hook, by_strength) = (dot(&x, &v), strength * dot(&x, direction.unit()));
            for ((x, v), r) in x.iter().zip(&v).zip(direction.unit()) {
                assert!((x - by_hook * v - (x - by_strength * r)).abs() < 1e-6, "{strength}");
            }
        }
        assert_eq!(Direction::new(vec![2.0]).unwrap().hook(), [1.0]);
        let addition = |alpha| Some(Addition { vector: vec![1.0, 2.0], layer: 1, position: -1, alpha });
        let direction = Direction::new(vec![1.0, 1.0]).unwrap();
        assert_eq!(direction.clone().with_addition(addition(0.0)), direction);
        assert_eq!(direction.with_addition(addition(2.0)).addition().unwrap().scaled(), [2.0, 4.0]);
    }

    proptest! {
        #[test]
        fn lambda_runs_from_identity_to_orthogonal(
            w in proptest::collection::vec(-5.0f64..5.0, 11),
            r in proptest::collection::vec(-5.0f64..5.0, 11),
            lambda in 0.0f64..1.0,
        ) {
            prop_assume!(norm(&r) > 0.1);
            prop_assert_eq!(partially_orthogonalise(&w, &r, 0.0), w.clone());
            // The 1e-8 of eq. 6 leaves a share of 1e-8 / r.r.
            let left = dot(&partially_orthogonalise(&w, &r, 1.0), &r).abs();
            prop_assert!(left <= dot(&w, &r).abs() * 1e-8 / dot(&r, &r) + 1e-12);
            let part = dot(&partially_orthogonalise(&w, &r, lambda), &r);
            prop_assert!((part - (1.0 - lambda) * dot(&w, &r)).abs() < 1e-5);
        }

        #[test]
        fn diff_in_means_is_antisymmetric(
            a in proptest::collection::vec(-5.0f64..5.0, 7),
            b in proptest::collection::vec(-5.0f64..5.0, 7),
        ) {
            for (x, y) in diff_in_means(&a, &b).iter().zip(diff_in_means(&b, &a)) {
                prop_assert_eq!(*x, -y);
            }
        }
    }
}
