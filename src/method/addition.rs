//! Candidates of activation addition and their selection (METHOD step 9; Wang et al. 2025, eq. 1 and 5; the choice
//! follows Arditi et al. 2024): the true-refusal vector that makes harmless prompts refused most.

use super::activations::ActivationMeans;
use super::direction::diff_in_means;
use super::select::{Discarded, Rules};
use crate::edit::Addition;
use crate::linalg::norm;

/// Largest mean harmless KL of an addition (published code).
pub const MAX_KL: f64 = 2.0;

/// One candidate: the true-refusal vector of a position and layer, to be added at that layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AdditionCandidate {
    /// Token position, negative from the end.
    pub position: i64,
    /// Layer that the vector comes from and is added at.
    pub layer: usize,
    /// `mean[harmful] - mean[harmless]` (eq. 1), not normalised, `[d_model]`.
    pub vector: Vec<f64>,
    /// Whether its norm is negligible beside the mean activation.
    pub degenerate: bool,
    /// Mean refusal score on harmless val and mean `KL(base || added)`, once measured, in nats.
    pub scores: Option<(f64, f64)>,
    /// Why it is out; `None` while it is in.
    pub discarded: Option<Discarded>,
}

impl AdditionCandidate {
    /// Whether it need not be measured: it is out whatever it does. Layer 0 is nothing but the embedding of the
    /// position's own token, which is the same for all prompts.
    pub fn is_out(&self, n_layers: usize, rules: &Rules) -> bool {
        self.layer == 0 || self.layer >= last(n_layers, rules) || self.degenerate
    }

    /// As what is added, with factor `alpha`.
    pub fn addition(&self, alpha: f64) -> Addition {
        Addition { vector: self.vector.clone(), layer: self.layer, position: self.position, alpha }
    }
}

/// floor(0.8 L), as in the selection of the ablated direction.
fn last(n_layers: usize, rules: &Rules) -> usize {
    (n_layers as f64 * rules.layer_share) as usize
}

/// Every candidate `r[i, l]`, in order of position, then layer.
pub fn candidates(harmful: &ActivationMeans, harmless: &ActivationMeans, rules: &Rules) -> Vec<AdditionCandidate> {
    let (n_pos, n_layers, _) = harmless.shape();
    let places = (-(n_pos as i64)..0).flat_map(|position| (0..n_layers).map(move |layer| (position, layer)));
    places
        .map(|(position, layer)| {
            let base = harmless.mean(position, layer);
            let vector = diff_in_means(&harmful.mean(position, layer), &base);
            let degenerate = rules.negligible_norm.is_some_and(|share| norm(&vector) < share * norm(&base));
            AdditionCandidate { position, layer, vector, degenerate, scores: None, discarded: None }
        })
        .collect()
}

/// Marks who is out and why, and returns the index of the winner: highest mean refusal score on harmless val with a KL
/// of at most [`MAX_KL`], ties by (score, layer, position).
pub fn select(candidates: &mut [AdditionCandidate], n_layers: usize, rules: &Rules) -> Option<usize> {
    let last = last(n_layers, rules);
    for candidate in candidates.iter_mut() {
        candidate.discarded = match candidate.scores {
            _ if candidate.layer == 0 => Some(Discarded::FirstLayer),
            _ if candidate.layer >= last => Some(Discarded::LastLayers { layer: candidate.layer, from: last }),
            _ if candidate.degenerate => Some(Discarded::Degenerate),
            None => Some(Discarded::NotMeasured),
            Some((score, kl)) if score.is_nan() || kl.is_nan() => Some(Discarded::NotANumber),
            Some((_, kl)) if kl > MAX_KL => {
                Some(Discarded::Divergence { kl: Some(kl).filter(|kl| kl.is_finite()), limit: MAX_KL })
            }
            Some(_) => None,
        };
    }
    let score = |c: &AdditionCandidate| c.scores.map_or(f64::NEG_INFINITY, |(score, _)| score);
    let left = candidates.iter().enumerate().filter(|(_, c)| c.discarded.is_none());
    let order = |a: &AdditionCandidate, b: &AdditionCandidate| {
        score(b).total_cmp(&score(a)).then(a.layer.cmp(&b.layer)).then(a.position.cmp(&b.position))
    };
    left.min_by(|(_, a), (_, b)| order(a, b)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_score_within_the_kl_wins() {
        let candidate = |position, layer, scores| AdditionCandidate {
            position,
            layer,
            vector: vec![1.0],
            degenerate: false,
            scores,
            discarded: None,
        };
        let mut all = vec![
            candidate(-2, 0, Some((9.0, 0.1))),
            candidate(-2, 1, Some((9.0, 2.1))),
            candidate(-2, 2, Some((3.0, 2.0))),
            candidate(-1, 2, Some((3.0, 0.5))),
            candidate(-1, 3, Some((2.0, 0.5))),
            candidate(-1, 1, Some((f64::NAN, 0.5))),
            candidate(-1, 8, Some((9.0, 0.5))),
            candidate(-1, 4, None),
            AdditionCandidate { degenerate: true, ..candidate(-1, 5, Some((9.0, 0.1))) },
        ];
        assert_eq!(select(&mut all, 10, &Rules::PAPER), Some(2));
        let words = |c: Option<Discarded>| c.map(|reason| reason.to_string()).unwrap_or_default();
        let reasons: Vec<String> = all.iter().map(|c| words(c.discarded)).collect();
        for (reason, part) in
            reasons.iter().zip(["layer 0", "KL", "", "", "", "NaN", "last part", "not measured", "rounding noise"])
        {
            assert!(reason.contains(part) && reason.is_empty() == part.is_empty(), "{reason} should say {part}");
        }
        assert!(
            all[0].is_out(10, &Rules::PAPER) && all[6].is_out(10, &Rules::PAPER) && !all[2].is_out(10, &Rules::PAPER)
        );
    }
}
