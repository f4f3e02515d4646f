//! Candidates and their selection (Wang et al. 2025, section 3; thresholds of the published code).

use serde::{Deserialize, Serialize};

use super::activations::ActivationMeans;
use super::classes::PerClass;
use super::direction::{diff_in_means, partially_orthogonalise};
use crate::edit::Direction;
use crate::linalg::norm;

/// Why a candidate direction, or a candidate of an addition, is out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Discarded {
    /// The difference of means is zero or not finite.
    NoDirection,
    /// A score is no number.
    NotANumber,
    /// It comes from layer 0, which holds nothing but the embedding of the position's own token.
    FirstLayer,
    /// It comes from the last part of the model.
    LastLayers {
        /// Its layer.
        layer: usize,
        /// The first layer of that part.
        from: usize,
    },
    /// Its norm is rounding noise beside the mean activation.
    Degenerate,
    /// It was not measured.
    NotMeasured,
    /// Another candidate makes pseudo-harmful prompts clearly less refused.
    Outscored {
        /// Pseudo-harmful prompts that showed it.
        prompts: usize,
    },
    /// It changes harmless prompts too much.
    Divergence {
        /// Mean harmless KL divergence, in nats; none where it is infinite.
        kl: Option<f64>,
        /// The largest that is allowed.
        limit: f64,
    },
    /// The guard of the selection: it lowers the share of harmful validation prompts that are refused.
    TrueRefusal {
        /// By how much, a share.
        drop: f64,
    },
}

impl Discarded {
    /// The reason in a word or two, without numbers.
    pub fn short(&self) -> &'static str {
        match self {
            Self::NoDirection => "no direction",
            Self::NotANumber => "a score is NaN",
            Self::FirstLayer | Self::LastLayers { .. } => "layer",
            Self::Degenerate => "degenerate",
            Self::NotMeasured => "not measured",
            Self::Outscored { .. } => "outscored",
            Self::Divergence { .. } => "harmless KL",
            Self::TrueRefusal { .. } => "guard",
        }
    }

    /// Whether two are the same but for numbers.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl std::fmt::Display for Discarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoDirection => f.write_str("no direction: the difference of means is zero or not finite"),
            Self::NotANumber => f.write_str("a score is NaN"),
            Self::FirstLayer => f.write_str("layer 0 holds the embedding of the position's own token"),
            Self::LastLayers { layer, from } => {
                write!(f, "layer {layer} is in the last part of the model (from {from} on)")
            }
            Self::Degenerate => f.write_str("degenerate: its norm is rounding noise beside the mean activation"),
            Self::NotMeasured => f.write_str("not measured"),
            Self::Outscored { prompts } => {
                write!(f, "clearly behind the best one after {prompts} pseudo-harmful prompts")
            }
            Self::Divergence { kl: Some(kl), limit } => write!(f, "harmless KL {kl:.4} is above {limit}"),
            Self::Divergence { kl: None, limit } => write!(f, "harmless KL inf is above {limit}"),
            Self::TrueRefusal { drop } => {
                write!(f, "guard: harmful refusal on the validation prompts drops by {:.1} points", 100.0 * drop)
            }
        }
    }
}

/// One candidate direction.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Token position, negative from the end.
    pub position: i64,
    /// Layer whose `resid_pre` it is read at.
    pub layer: usize,
    /// Norm before normalisation.
    pub raw_norm: f64,
    /// The unit direction; `None` where it is zero or not finite.
    pub direction: Option<Direction>,
    /// Whether the raw norm is negligible beside the mean activation: rounding noise, not a direction.
    pub degenerate: bool,
    /// What was measured with the direction ablated, for the first validation prompts of each class as far as they were
    /// run: refusal scores of harmful and pseudo-harmful prompts, `KL(base || ablated)` of harmless ones, in nats.
    pub measured: PerClass<Vec<f64>>,
    /// Why it is out; `None` while it is in.
    pub discarded: Option<Discarded>,
}

/// How much is measured before the choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Search {
    /// Every candidate on every prompt.
    #[default]
    Exhaustive,
    /// Whatever can change the choice.
    Certain,
    /// Whatever is likely to change the choice.
    Racing,
}

/// What a prompt scores, which is positive where the model refuses it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ScoreBy {
    /// The refusal score: the log odds of the refusal tokens at the first response position, in nats (eq. 3).
    #[default]
    Tokens,
    /// How much more like the means of its class than like those of harmless prompts its activations are
    /// ([`super::cosmic`]), without a unit.
    Cosmic,
}

/// The rules of selection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Largest mean harmless KL; published 0.2.
    pub kl_threshold: f64,
    /// Share of the layers, from the first, that candidates come from; published 0.8.
    pub layer_share: f64,
    /// Largest drop in the share of harmful validation prompts with a positive refusal score. Ours; `None`
    /// with `--paper`.
    pub harmful_drop: Option<f64>,
    /// A raw norm below this share of the mean activation's norm is rounding noise. Ours; `None` with
    /// `--paper`.
    pub negligible_norm: Option<f64>,
    /// How much is measured.
    pub search: Search,
    /// What prompts score.
    pub score: ScoreBy,
}

impl Rules {
    /// The published procedure, nothing else.
    pub const PAPER: Self = Self {
        kl_threshold: 0.2,
        layer_share: 0.8,
        harmful_drop: None,
        negligible_norm: None,
        search: Search::Exhaustive,
        score: ScoreBy::Tokens,
    };
}

/// Every candidate `w'[i, l]` (eq. 1, 2, 6, 7), in order of position, then layer.
pub fn candidates(means: &PerClass<ActivationMeans>, lambda: f64, rules: &Rules) -> Vec<Candidate> {
    let PerClass { harmful, pseudo_harmful, harmless } = means;
    let (n_pos, n_layers, _) = harmless.shape();
    let mut out = Vec::with_capacity(n_pos * n_layers);
    for position in -(n_pos as i64)..0 {
        for layer in 0..n_layers {
            let base = harmless.mean(position, layer);
            let true_refusal = diff_in_means(&harmful.mean(position, layer), &base);
            let false_refusal = diff_in_means(&pseudo_harmful.mean(position, layer), &base);
            let raw = partially_orthogonalise(&false_refusal, &true_refusal, lambda);
            let raw_norm = norm(&raw);
            let degenerate = rules.negligible_norm.is_some_and(|share| raw_norm < share * norm(&base));
            let direction = Direction::new(raw).ok();
            let measured = PerClass::default();
            out.push(Candidate { position, layer, raw_norm, direction, degenerate, measured, discarded: None });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lambda_one_candidates_are_orthogonal_to_the_true_refusal_direction_of_their_own_place() {
        let rows: PerClass<[f32; 12]> = PerClass {
            harmful: [1., 2., 3., 4., 5., 6., 7., 8., 9., 1., 0., 2.],
            pseudo_harmful: [2., 1., 0., 1., 1., 1., 3., 1., 4., 1., 5., 9.],
            harmless: [0., 1., 0., 0., 2., 1., 1., 0., 0., 3., 0., 1.],
        };
        let means = rows.map(|row| {
            let mut mean = ActivationMeans::new(2, 2, 3);
            mean.add(&row.chunks(6).map(<[f32]>::to_vec).collect::<Vec<_>>());
            mean
        });
        let all = candidates(&means, 1.0, &Rules::PAPER);
        assert_eq!(all.iter().map(|c| (c.position, c.layer)).collect::<Vec<_>>(), [(-2, 0), (-2, 1), (-1, 0), (-1, 1)]);
        for c in &all {
            let r = diff_in_means(&means.harmful.mean(c.position, c.layer), &means.harmless.mean(c.position, c.layer));
            let w = c.direction.as_ref().unwrap().unit();
            assert!(crate::linalg::cosine(w, &r).abs() < 1e-7);
        }
    }
}
