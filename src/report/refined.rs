//! What a further method made of the selected direction.

use serde::{Deserialize, Serialize};

use crate::method::refine::Refinement;

/// What a further method made of the selected direction, and what it came to on validation prompts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Refined {
    /// The method, and what it did.
    #[serde(flatten)]
    pub by: RefinedBy,
    /// Cosine of each direction that is ablated with the selected one; `None` where it is no number, and empty where
    /// nothing is ablated.
    pub cosines: Vec<Option<f64>>,
    /// Mean refusal score on pseudo-harmful val, in nats.
    pub refusal_score: f64,
    /// Mean refusal score on harmful val, in nats.
    pub harmful_refusal_score: f64,
    /// Mean harmless `KL(base || edited)` at the first response position, in nats.
    pub kl: f64,
}

/// A method that starts from the selected direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum RefinedBy {
    /// `rank:K`: a direction for each group of pseudo-harmful prompts.
    #[serde(rename = "rank")]
    Groups {
        /// Refused pseudo-harmful train prompts of each group, the largest first.
        pseudo_harmful: Vec<usize>,
        /// Refused harmful train prompts of each group whose true refusal the directions are freed of.
        harmful: Vec<usize>,
    },
    /// `probes:K`: directions that tell pseudo-harmful from harmless prompts, one after another.
    Probes {
        /// How many were found.
        found: usize,
    },
    /// `sra`: the direction loses what abilities have of it.
    #[serde(rename = "sra")]
    Abilities {
        /// The abilities.
        abilities: Vec<String>,
    },
    /// `ace`: the harmless mean's component is put back.
    #[default]
    #[serde(rename = "ace")]
    Affine,
    /// `layers`: only writes of layers that matter are ablated.
    Layers {
        /// The groups of layers that were looked at.
        groups: Vec<LayerGroup>,
    },
    /// `va`: whether the model answers follows whether it takes the prompt for harmful, by a term at one layer.
    #[serde(rename = "va")]
    Aligned {
        /// The layer, whose `resid_pre` changes.
        layer: usize,
        /// Area under the ROC curve of the discriminant of answered against refused validation prompts at that layer;
        /// `None` where all are of one kind.
        answer_auc: Option<f64>,
        /// The same of that of harmless and pseudo-harmful against harmful ones.
        judge_auc: Option<f64>,
    },
}

/// Neighbouring layers, and what leaving them out costs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayerGroup {
    /// The first layer.
    pub first: usize,
    /// The last layer.
    pub last: usize,
    /// Mean refusal score on pseudo-harmful val with the writes of all other layers ablated, in nats.
    pub without: f64,
    /// Whether its writes are ablated.
    pub ablated: bool,
}

impl RefinedBy {
    /// The method; `rank:K` and `probes:K` with as many groups or probes as were found.
    #[must_use]
    pub fn method(&self) -> Refinement {
        match self {
            Self::Groups { pseudo_harmful, .. } => Refinement::Groups { count: pseudo_harmful.len() },
            Self::Probes { found } => Refinement::Probes { count: *found },
            Self::Abilities { .. } => Refinement::Abilities,
            Self::Affine => Refinement::Affine,
            Self::Layers { .. } => Refinement::Layers,
            Self::Aligned { .. } => Refinement::Aligned,
        }
    }
}
