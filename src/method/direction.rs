//! Differences of means, and partial orthogonalisation.

use crate::linalg::{dot, sub};

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
    use crate::linalg::norm;

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
