//! The mean activations of the three classes along the true- and the false-refusal direction of every layer.

use serde::{Deserialize, Serialize};

use super::activations::ActivationMeans;
use super::classes::PerClass;
use super::direction::{diff_in_means, partially_orthogonalise};
use crate::linalg::{dot, norm};

/// A difference of means this small beside the mean activation has no direction: it is the rounding of equal means.
const NO_LENGTH: f64 = 1e-10;

/// The mean activations of the classes at one layer, along the true- and the false-refusal direction of that layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayerProjection {
    /// Absolute layer; the stream is `resid_pre[layer]` at the selected position.
    pub layer: usize,
    /// Cosine between the two directions (eq. 1 and 2) before the orthogonalisation; none where one has no length.
    pub cosine: Option<f64>,
    /// `mean[class] . r / |r|` with the true-refusal vector `r` of this layer; 0 where `r` has no length.
    pub on_true: PerClass<f64>,
    /// `mean[class] . w' / |w'|` with the partially orthogonalised `w'` (eq. 6 and 7) of this layer, as it would be
    /// ablated; 0 where it has no length.
    pub on_false: PerClass<f64>,
    /// `mean[class] . d` with the selected direction `d`, the same for all layers.
    pub on_selected: PerClass<f64>,
}

/// Projections of the means at `position`, a layer each: on the unit true-refusal vector `r`, on the unit false-refusal
/// vector after the orthogonalisation with `lambda`, and on `selected` (unit, `[d_model]`). Wang et al. 2025, eq. 1, 2,
/// 6, 7.
pub fn projections(
    means: &PerClass<ActivationMeans>,
    position: i64,
    lambda: f64,
    selected: &[f64],
) -> Vec<LayerProjection> {
    let (_, n_layers, _) = means.harmless.shape();
    (0..n_layers)
        .map(|layer| {
            let at = means.as_ref().map(|class| class.mean(position, layer));
            let least = NO_LENGTH * norm(&at.harmless);
            let r = diff_in_means(&at.harmful, &at.harmless);
            let w = diff_in_means(&at.pseudo_harmful, &at.harmless);
            let ablated = partially_orthogonalise(&w, &r, lambda);
            let along = |v: &[f64]| {
                let length = norm(v);
                let project = |mean: &Vec<f64>| if length > least { dot(mean, v) / length } else { 0.0 };
                at.as_ref().map(project)
            };
            let (long, wide) = (norm(&r), norm(&w));
            LayerProjection {
                layer,
                cosine: (long > least && wide > least).then(|| dot(&r, &w) / (long * wide)),
                on_true: along(&r),
                on_false: along(&ablated),
                on_selected: at.as_ref().map(|mean| dot(mean, selected)),
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
            means.add(&values.chunks(2).map(<[f32]>::to_vec).collect::<Vec<_>>());
            means
        };
        // layer 0: all the same; layer 1: r = (3, 0), w = (1, 1), w' = (0, 1) for lambda 1
        let means = PerClass {
            harmful: mean(&[1.0, 1.0, 4.0, 2.0]),
            pseudo_harmful: mean(&[1.0, 1.0, 2.0, 3.0]),
            harmless: mean(&[1.0, 1.0, 1.0, 2.0]),
        };
        let found = projections(&means, -1, 1.0, &[0.0, 1.0]);
        let nothing = LayerProjection { on_selected: PerClass::from_array([1.0; 3]), ..LayerProjection::default() };
        assert_eq!(found[0], nothing);
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-7);
        assert!(near(&[found[1].cosine.unwrap()], &[0.5f64.sqrt()]));
        assert!(near(&found[1].on_true.into_array(), &[4.0, 2.0, 1.0]));
        assert!(near(&found[1].on_false.into_array(), &[2.0, 3.0, 2.0]), "{:?}", found[1]);
        assert!(near(&found[1].on_selected.into_array(), &[2.0, 3.0, 2.0]));
    }
}
