//! What the guard is shown, and what it says of it.

use serde::{Deserialize, Serialize};

use super::statistics::Paired;

/// What was measured. Whatever is missing was not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Refusals of the plain harmful prompts, before and after.
    pub harmful: Option<Paired>,
    /// The same inside each wrapper, by name.
    #[serde(default)]
    pub wrapped: Vec<(String, Paired)>,
    /// The plain harmful prompts under other conditions (sampled, another system prompt), by name.
    #[serde(default)]
    pub conditions: Vec<(String, Paired)>,
    /// KL divergence of each harmless prompt, in nats.
    pub harmless_kl: Option<Vec<f64>>,
    /// Perplexity before and after.
    pub perplexity: Option<(f64, f64)>,
    /// Right answers to multiple choice questions, before and after.
    pub accuracy: Option<Paired>,
    /// Empty and degenerate answers to any prompt, before and after.
    pub broken: Option<Paired>,
    /// Seed of the bootstrap.
    #[serde(default)]
    pub seed: u64,
}

/// One limit against one measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Key of the limit; for a wrapper followed by `.` and its name.
    pub name: String,
    /// What was measured, as a share, nats, ratio or number. None where it was not.
    pub value: Option<f64>,
    /// Its one-sided upper bound.
    pub bound: Option<f64>,
    /// The limit, in the unit of `value` (a `_bound` limit: of `bound`).
    pub limit: f64,
    /// Whether it was kept.
    pub passed: bool,
    /// All that in words.
    pub words: String,
}

/// Whether a policy was kept, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// All checks passed.
    pub passed: bool,
    /// The checks.
    pub checks: Vec<Check>,
    /// Default limits that nothing was measured for.
    pub not_measured: Vec<String>,
}

impl Judgement {
    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }
}
