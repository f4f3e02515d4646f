//! How a gate was fitted and chosen.

use serde::{Deserialize, Serialize};

use super::{ClassCounts, RefusalToken, SourceName, TokenChoice};

/// Prompts that are refused by their refusal score, of all that were run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refused {
    /// Prompts with a refusal score above 0 nats.
    pub refused: usize,
    /// All prompts.
    pub total: usize,
}

impl Refused {
    /// The refused prompts, as a share of all; 0 of none.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.refused as f64 / self.total.max(1) as f64
    }
}

/// One source of prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateSource {
    /// Whose prompts they are.
    pub source: SourceName,
    /// Its pseudo-harmful train prompts that the model refuses; the gate is fitted on no others.
    pub pseudo_harmful: usize,
    /// Its harmful train prompts that the model refuses.
    pub harmful: usize,
    /// Share of the pseudo-harmful ones for which the gate opens at the chosen layer, each where the gate is
    /// fitted without it in any dress.
    pub opens_pseudo_harmful: f64,
    /// The same of the harmful ones.
    pub opens_harmful: f64,
    /// How well a linear discriminant that was fitted on the other sources tells them apart: the area under the ROC curve, 0.5 for
    /// guessing; `None` where there are no others.
    pub auc: Option<f64>,
}

/// How well gates of a layer hold for sources that they were not fitted on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateLayer {
    /// Absolute layer, whose `resid_pre` the gate reads.
    pub layer: usize,
    /// How well linear discriminants that were fitted on all but one source tell pseudo-harmful from harmful train prompts of that one:
    /// the area under the ROC curve, 0.5 for guessing, a mean over the sources; by cross-validation where there is one
    /// source. `None` where there is no gate.
    pub generalises: Option<f64>,
    /// Why there is no gate here; `None` where there is one.
    pub failure: Option<String>,
}

/// What a candidate came to on the validation prompts of one source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateScores {
    /// Whose prompts they are.
    pub source: SourceName,
    /// Its pseudo-harmful prompts.
    pub pseudo_harmful: Refused,
    /// Its harmful prompts.
    pub harmful: Refused,
    /// Harmful prompts that the unchanged model refuses and the candidate does not.
    pub lost: usize,
}

/// Why a candidate of a gate is out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum GateDiscarded {
    /// A score is no number.
    NotANumber,
    /// It changes harmless prompts too much.
    Divergence {
        /// The largest mean harmless KL divergence that is allowed, in nats.
        limit: f64,
    },
    /// It loses refusal of harmful validation prompts.
    TrueRefusal {
        /// Prompts that are lost, all sources together.
        lost: usize,
        /// So many may be.
        allowed: usize,
    },
    /// It leaves as many pseudo-harmful prompts refused as there were.
    NoGain,
}

impl std::fmt::Display for GateDiscarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotANumber => f.write_str("a score is NaN"),
            Self::Divergence { limit } => write!(f, "harmless KL is above {limit}"),
            Self::TrueRefusal { lost, allowed } => {
                write!(f, "{lost} harmful validation prompts are no longer refused, {allowed} may be")
            }
            Self::NoGain => f.write_str("no fewer pseudo-harmful prompts are refused"),
        }
    }
}

/// What sets a candidate apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateSetting {
    /// Absolute layers, whose `resid_pre` changes, ascending.
    pub layers: Vec<usize>,
    /// Share of the refused harmful train prompts of any source for which a gate may open, 0 to 1.
    pub open: f64,
    /// Factor of what is taken off behind an open gate; 1 takes all off that is above the floor.
    pub alpha: f64,
}

/// One candidate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateCandidate {
    /// What sets it apart.
    #[serde(flatten)]
    pub setting: GateSetting,
    /// Validation prompts of each source.
    pub scores: Vec<GateScores>,
    /// Mean harmless `KL(base || gated)` at the first response position, in nats.
    pub kl: Option<f64>,
    /// Why it is out; `None` where it is not.
    pub discarded: Option<GateDiscarded>,
}

/// Mean over the sources of the share of their pseudo-harmful validation prompts that are refused; 0 where there are none.
#[must_use]
pub fn false_refusal(scores: &[GateScores]) -> f64 {
    let with_prompts = || scores.iter().map(|scores| scores.pseudo_harmful).filter(|refused| refused.total > 0);
    with_prompts().map(|refused| refused.share()).sum::<f64>() / with_prompts().count().max(1) as f64
}

/// The gated ablation `x - alpha clip((h(x) - c) / s, 0, 1) clip((p.x - c') / s', 0, 1) max(r.x - m, 0) r` of one layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateTerm {
    /// Absolute layer, whose `resid_pre` changes.
    pub layer: usize,
    /// `c`, the threshold of the gate.
    pub threshold: f64,
    /// `s`, its ramp.
    pub ramp: f64,
    /// `m`, the floor: the median of the harmless train prompts along the refusal direction `r`.
    pub floor: f64,
    /// Train prompts that the gate `h` knows, each by its activation.
    pub centers: usize,
    /// Share of the other positions of train prompts and of the first 16 tokens of their answers, at which what tells the
    /// last position opens, 0 to 1.
    pub opens_elsewhere: f64,
    /// Train prompts of each source.
    pub sources: Vec<GateSource>,
}

/// How a gate was fitted and chosen (method `gate`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GateResult {
    /// The winner.
    pub selected: GateSetting,
    /// Its terms, a layer each.
    pub terms: Vec<GateTerm>,
    /// Shrinkage of the linear discriminants, 0 to 1.
    pub shrinkage: f64,
    /// Sources that were not used: the model refuses fewer than 8 of their pseudo-harmful or harmful prompts, less than half
    /// of the harmful ones, or less of them than of the pseudo-harmful ones, so that to it they say nothing of harm.
    pub left_out: Vec<SourceName>,
    /// Every layer that was looked at.
    pub layers: Vec<GateLayer>,
    /// The unchanged model on the validation prompts of each source.
    pub baseline: Vec<GateScores>,
    /// Every candidate that was run.
    pub candidates: Vec<GateCandidate>,
    /// Harmless validation prompts that the KL is the mean over.
    pub harmless: usize,
    /// Train prompts that passed the filter.
    pub kept: ClassCounts,
    /// Train prompts before the filter.
    pub total: ClassCounts,
    /// Tokens whose probability makes the refusal score.
    pub refusal_tokens: Vec<RefusalToken>,
    /// Whether they were given.
    pub refusal_tokens_chosen: TokenChoice,
}
