//! Scoring prompts by their activations, where no token tells a refusal from an answer.
//!
//! COSMIC (Siu et al. 2025, *COSMIC: Generalized Refusal Direction Identification in LLM Activations*, 2506.00085) selects a
//! direction by how like the activations of one kind of prompts become to those of the other, in the layers where the two
//! kinds are least alike, without looking at what the model says. Here a prompt scores
//!
//! ```text
//! mean over those layers of cos(x, m[class]) - cos(x, m[harmless])
//! ```
//!
//! where `x` are its activations at all post-instruction positions of a layer, one after another, and `m` the means of the
//! train prompts there. The score is above 0 where the model still holds the prompt for one of its class, and the candidate
//! whose ablation makes that of pseudo-harmful prompts the least is the best, as with refusal scores. The paper's second
//! half, adding the direction to harmless prompts, is left out: what is made of the direction is an ablation.

use super::activations::ActivationMeans;
use super::classes::{PerClass, PromptClass};
use crate::linalg::{cosine, dot, norm};

/// Share of the layers in which prompts are compared (the paper's tenth).
const SHARE: f64 = 0.1;

/// The means that prompts are compared with.
#[derive(Debug, Clone)]
pub struct Concept {
    /// Layers in which prompts are compared, ascending.
    layers: Vec<usize>,
    /// Means at each of them, `[n_pos * d_model]`.
    means: PerClass<Vec<Vec<f64>>>,
}

impl Concept {
    /// Picks the tenth of the layers, at least one, in which harmful and harmless prompts are least alike; ties go to the
    /// earlier layer.
    pub fn new(means: &PerClass<ActivationMeans>) -> Self {
        let (n_pos, n_layers, _) = means.harmless.shape();
        let whole = |means: &ActivationMeans, layer: usize| -> Vec<f64> {
            (-(n_pos as i64)..0).flat_map(|position| means.mean(position, layer)).collect()
        };
        let alike = |layer: usize| cosine(&whole(&means.harmful, layer), &whole(&means.harmless, layer));
        let mut ranked: Vec<(f64, usize)> = (0..n_layers).map(|layer| (alike(layer), layer)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let count = ((SHARE * n_layers as f64).round() as usize).clamp(1, n_layers.max(1));
        let mut layers: Vec<usize> = ranked.into_iter().take(count).map(|(_, layer)| layer).collect();
        layers.sort_unstable();
        let means = means.as_ref().map(|means| layers.iter().map(|layer| whole(means, *layer)).collect());
        Self { layers, means }
    }

    /// The layers whose `resid_pre` is compared, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The score of a prompt of `class`, -2 to 2; of a harmless one beside the harmful class. `activations` holds its
    /// `resid_pre` at each of [`Concept::layers`], `[n_pos, d_model]` row-major.
    ///
    /// # Panics
    /// If there are other layers or positions.
    pub fn score(&self, class: PromptClass, activations: &[Vec<f32>]) -> f64 {
        assert_eq!(activations.len(), self.layers.len(), "the caller runs what it asked for");
        let own = match class {
            PromptClass::PseudoHarmful => &self.means.pseudo_harmful,
            PromptClass::Harmful | PromptClass::Harmless => &self.means.harmful,
        };
        let layers = activations.iter().zip(own).zip(&self.means.harmless);
        let scores = layers.map(|((x, own), harmless)| {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            assert_eq!(x.len(), own.len(), "the caller runs what it asked for");
            let length = norm(&x);
            dot(&x, own) / (length * norm(own)) - dot(&x, harmless) / (length * norm(harmless))
        });
        scores.sum::<f64>() / self.layers.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means at two positions of 12 layers of width 3; harmful prompts are least like harmless ones at layer 7.
    fn means() -> PerClass<ActivationMeans> {
        let of = |kind: f32| {
            let mut means = ActivationMeans::new(2, 12, 3);
            let layer = |layer: usize| {
                let apart = if layer == 7 { 2.0 } else { 0.1 };
                vec![1.0, kind * apart, 0.0, 0.5, 0.2, kind * apart]
            };
            means.add(&(0..12).map(layer).collect::<Vec<_>>());
            means
        };
        PerClass { harmful: of(1.0), pseudo_harmful: of(0.8), harmless: of(-1.0) }
    }

    #[test]
    fn prompts_are_compared_where_the_classes_are_least_alike() {
        let concept = Concept::new(&means());
        assert_eq!(concept.layers(), [7]);
        // the mean of a class is more like itself than like the other
        let harmful = [vec![1.0, 2.0, 0.0, 0.5, 0.2, 2.0]];
        let harmless = [vec![1.0, -2.0, 0.0, 0.5, 0.2, -2.0]];
        let cos = (1.0 + 0.25 + 0.04 - 8.0) / (1.0 + 0.25 + 0.04 + 8.0);
        assert!((concept.score(PromptClass::Harmful, &harmful) - (1.0 - cos)).abs() < 1e-6);
        assert!((concept.score(PromptClass::Harmless, &harmless) + (1.0 - cos)).abs() < 1e-6);
        assert!(concept.score(PromptClass::PseudoHarmful, &harmful) > 1.0);
        // without what parts the classes a prompt is of neither
        assert!(concept.score(PromptClass::Harmful, &[vec![1.0, 0.0, 0.0, 0.5, 0.2, 0.0]]).abs() < 1e-6);
    }

    #[test]
    fn a_tenth_of_many_layers_is_compared_and_nothing_else() {
        let of = |kind: f32| {
            let mut means = ActivationMeans::new(1, 30, 2);
            means.add(&(0..30).map(|layer| vec![1.0, kind * layer as f32]).collect::<Vec<_>>());
            means
        };
        let concept = Concept::new(&PerClass { harmful: of(1.0), pseudo_harmful: of(1.0), harmless: of(-1.0) });
        assert_eq!(concept.layers(), [27, 28, 29]);
        let score = concept.score(PromptClass::Harmful, &[vec![1.0, 5.0], vec![1.0, 5.0], vec![f32::NAN, 0.0]]);
        assert!(score.is_nan());
    }
}
