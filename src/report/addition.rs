//! Results of an activation addition.

use serde::{Deserialize, Serialize};

use super::{Added, Discarded};

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
