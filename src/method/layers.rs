//! The mean activations of the three classes along the true- and the false-refusal direction of every layer.

use super::activations::ActivationMeans;
use super::direction::{diff_in_means, partially_orthogonalise};
use crate::linalg::{dot, norm};

/// A difference of means this small beside the mean activation has no direction: it is the rounding of equal means.
const NO_LENGTH: f64 = 1e-10;

/// One layer's [`projections`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerMeans {
    /// Absolute layer; the stream is `resid_pre[layer]`.
    pub layer: usize,
    /// Cosine of `r` and `w` (eq. 1 and 2) before the orthogonalisation; `None` where one has no length.
    pub cosine: Option<f64>,
    /// `mean[class] . r / |r|` for harmful, pseudo-harmful, harmless; 0 where `r` has no length.
    pub on_true: [f64; 3],
    /// `mean[class] . w' / |w'|` with the partially orthogonalised `w'` (eq. 6 and 7) of this layer; 0 where it has no
    /// length.
    pub on_false: [f64; 3],
    /// `mean[class] . d` with the selected direction `d`.
    pub on_selected: [f64; 3],
}

/// Projections of the means of `[harmful, pseudo_harmful, harmless]` at `position`, a layer each: on the unit
/// true-refusal vector `r`, on the unit false-refusal vector after the orthogonalisation with `lambda`, and on
/// `selected` (unit, `[d_model]`). Wang et al. 2025, eq. 1, 2, 6, 7.
pub fn projections(means: [&ActivationMeans; 3], position: i64, lambda: f64, selected: &[f64]) -> Vec<LayerMeans> {
    let (_, n_layers, _) = means[2].shape();
    (0..n_layers)
        .map(|layer| {
            let at = means.map(|class| class.mean(position, layer));
            let least = NO_LENGTH * norm(&at[2]);
            let r = diff_in_means(&at[0], &at[2]);
            let w = diff_in_means(&at[1], &at[2]);
            let ablated = partially_orthogonalise(&w, &r, lambda);
            let along = |v: &[f64]| {
                let length = norm(v);
                if length > least { std::array::from_fn(|class| dot(&at[class], v) / length) } else { [0.0; 3] }
            };
            let (long, wide) = (norm(&r), norm(&w));
            LayerMeans {
                layer,
                cosine: (long > least && wide > least).then(|| dot(&r, &w) / (long * wide)),
                on_true: along(&r),
                on_false: along(&ablated),
                on_selected: std::array::from_fn(|class| dot(&at[class], selected)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_by_hand() {
        let mean = |values: &[f32]| {
            let mut means = ActivationMeans::new(1, 2, 2);
            means.add(values);
            means
        };
        // layer 0: all the same; layer 1: r = (3, 0), w = (1, 1), w' = (0, 1) for lambda 1
        let harmful = mean(&[1.0, 1.0, 4.0, 2.0]);
        let pseudo = mean(&[1.0, 1.0, 2.0, 3.0]);
        let harmless = mean(&[1.0, 1.0, 1.0, 2.0]);
        let found = projections([&harmful, &pseudo, &harmless], -1, 1.0, &[0.0, 1.0]);
        let nothing =
            LayerMeans { layer: 0, cosine: None, on_true: [0.0; 3], on_false: [0.0; 3], on_selected: [1.0; 3] };
        assert_eq!(found[0], nothing);
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-7);
        assert!(near(&[found[1].cosine.unwrap()], &[0.5f64.sqrt()]));
        assert!(near(&found[1].on_true, &[4.0, 2.0, 1.0]));
        assert!(near(&found[1].on_false, &[2.0, 3.0, 2.0]), "{:?}", found[1]);
        assert!(near(&found[1].on_selected, &[2.0, 3.0, 2.0]));
    }
}
