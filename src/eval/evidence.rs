//! What the guard is shown, and what it says of it.

use serde::{Deserialize, Serialize};

use super::condition::Condition;
use super::limit::Limit;
pub use super::limit::Unit;
use super::statistics::Paired;
use crate::method::classes::GuardSet;

/// What was measured. Whatever is missing was not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Refusals of the plain harmful prompts, before and after.
    pub harmful: Option<Paired>,
    /// The same inside each wrapper, by name.
    #[serde(default)]
    pub wrapped: Vec<(String, Paired)>,
    /// The plain harmful prompts under other conditions (sampled, another system prompt).
    #[serde(default)]
    pub conditions: Vec<(Condition, Paired)>,
    /// Refusals of each guard set that was asked, before and after.
    #[serde(default)]
    pub guard_sets: Vec<(GuardSet, Paired)>,
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Check {
    /// Which limit.
    pub key: Limit,
    /// How the prompts were put that it was measured on.
    pub condition: Condition,
    /// Unit of `value`, `bound` and `limit`.
    pub unit: Unit,
    /// What was measured, a drop or a loss positive; none where it was not.
    pub value: Option<f64>,
    /// Its one-sided confidence bound, where it has one.
    pub bound: Option<f64>,
    /// The limit: of `bound` where the limit is on a bound, else of `value`.
    pub limit: f64,
    /// Whether it was kept.
    pub passed: bool,
    /// All that in a sentence.
    pub words: String,
}

impl Check {
    /// A check of `key` on plain prompts, with nothing measured, which does not pass.
    #[must_use]
    pub fn of(key: Limit) -> Self {
        Self { key, unit: key.unit(), ..Self::default() }
    }

    /// The limit and the condition as a policy and the options name them: `max_harmful_drop.sampled`,
    /// `max_one_wrapper_drop.novel`.
    #[must_use]
    pub fn full_key(&self) -> String {
        match &self.condition {
            Condition::Plain => self.key.key().to_owned(),
            Condition::Wrapped { wrapper } => format!("{}.{wrapper}", self.key.key()),
            other => format!("{}.{other}", self.key.key()),
        }
    }

    /// What is limited, as people read it: `harmful refusal, sampled`, "inside `novel`".
    #[must_use]
    pub fn name(&self) -> String {
        match &self.condition {
            Condition::Plain => self.key.words().to_owned(),
            Condition::Wrapped { wrapper } => format!("{} `{wrapper}`", self.key.words()),
            other => format!("{}, {other}", self.key.words()),
        }
    }

    /// Whether it is of one wrapper alone.
    #[must_use]
    pub fn is_of_one_wrapper(&self) -> bool {
        self.key == Limit::OneWrapperDrop
    }
}

/// Whether a policy was kept, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// All checks passed.
    pub passed: bool,
    /// The checks.
    pub checks: Vec<Check>,
    /// Default limits that nothing was measured for.
    pub not_measured: Vec<Limit>,
    /// Limits on guard sets of which the base model refuses too few prompts to tell anything.
    pub too_few_refused: Vec<Limit>,
}

impl Judgement {
    /// The checks that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.passed)
    }
}
