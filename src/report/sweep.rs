//! Results of calibrating: other lambdas and strengths, other prompt sets, activation addition.

use serde::{Deserialize, Serialize};

use super::{Added, ClassTable, Discarded, GuardResult, Interval};

/// One candidate of activation addition: the true-refusal vector of a layer and position, added at that layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AdditionRow {
    /// Token position that the vector comes from, negative.
    pub position: i64,
    /// Absolute layer whose `resid_pre` it is added to.
    pub layer: usize,
    /// Mean refusal score on harmless val under addition, in nats.
    pub refusal_score: Option<f64>,
    /// Mean harmless `KL(base || added)` at the first response position, in nats.
    pub kl: Option<f64>,
    /// Why it was discarded.
    pub discarded: Option<Discarded>,
}

/// Activation addition (METHOD, step 9; Wang et al., eq. 5): `x <- x + alpha r` at one layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AdditionResult {
    /// Factor of the vector, which is as long as the difference of the means.
    pub alpha: f64,
    /// Token position that the vector comes from, negative.
    pub position: i64,
    /// Absolute layer whose `resid_pre` it is added to.
    pub layer: usize,
    /// Mean refusal score on harmless val under addition with `alpha = 1`, in nats.
    pub refusal_score: f64,
    /// Mean harmless KL under addition with `alpha = 1`, in nats.
    pub kl: f64,
    /// Norm of the vector before `alpha`.
    pub norm: f64,
    /// Where it was baked; `None` where it was not.
    pub baked: Option<Added>,
    /// Every candidate.
    pub candidates: Vec<AdditionRow>,
}

/// One setting of a sweep, measured with the ablation at run time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SweepRow {
    /// Partial orthogonalisation lambda, 0 to 1; `None` for the row of the unchanged model.
    pub lambda: Option<f64>,
    /// Strength: the share of the component along the direction that is removed; 1 removes all of it.
    pub strength: f64,
    /// Factor of the added true-refusal vector; 0 adds none.
    pub alpha: f64,
    /// Token position of the selected direction.
    pub position: i64,
    /// Its layer.
    pub layer: usize,
    /// Cosine of the ablated direction with the true-refusal direction of the same position and layer.
    pub cosine: Option<f64>,
    /// Mean refusal score on pseudo-harmful val, in nats, as in the selection.
    pub val_refusal_score: Option<f64>,
    /// Test prompts, a class each.
    pub classes: ClassTable,
    /// Harmful refusal rate inside the wrappers; `None` where none were asked.
    pub wrapped_refusal_rate: Option<f64>,
    /// Wilson's 95 % interval of it.
    pub wrapped_interval: Option<Interval>,
    /// Mean harmless KL at the first response position, in nats.
    pub harmless_kl: Option<f64>,
    /// The policy's judgement; `None` for the unchanged model, and where no direction was left.
    pub guard: Option<GuardResult>,
    /// Why there is no measurement: all candidates were discarded, say.
    pub failure: Option<String>,
}

/// The direction of one prompt set, tried on another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CrossRow {
    /// Set of the pseudo-harmful prompts that the direction comes from.
    pub from: String,
    /// Set that it was measured on; `from` and `on` may be the same.
    pub on: String,
    /// Pseudo-harmful refusal rate of the unchanged model on that set's test prompts.
    pub before: f64,
    /// The same with the direction ablated.
    pub after: f64,
    /// Prompts of `on` that were measured.
    pub total: usize,
    /// Wilson's 95 % interval of `after`.
    pub interval: Option<Interval>,
    /// Harmful refusal rate with this direction ablated.
    pub harmful_after: f64,
    /// Cosine between the directions of the two sets.
    pub cosine: Option<f64>,
}

/// What `lancet sweep` found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SweepResult {
    /// Layout of this JSON: [`super::SCHEMA`].
    pub schema: u32,
    /// Path of the model.
    pub model: String,
    /// Every setting; the first row is the unchanged model.
    pub rows: Vec<SweepRow>,
    /// Index into `rows` of the setting with the most compliance within the policy; `None` where none is within it.
    pub recommended: Option<usize>,
    /// Why that one, or why none, in a sentence.
    pub reason: String,
    /// Directions of sets on sets; empty where one set was given.
    #[serde(default)]
    pub cross: Vec<CrossRow>,
    /// Seconds of each step.
    #[serde(default)]
    pub seconds: std::collections::BTreeMap<String, f64>,
}

impl SweepResult {
    /// Settings that were tried; the row of the unchanged model is none.
    #[must_use]
    pub fn tried(&self) -> usize {
        self.rows.iter().filter(|row| row.lambda.is_some()).count()
    }
}
