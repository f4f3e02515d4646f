//! Settings of every method side by side, on one collection of activations.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Interval, Latency, SearchRow};

/// A number with its interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Estimate {
    /// The number; `None` where it overflows.
    pub value: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<Interval>,
}

/// What an edit adds to the cost of a token, once it is baked with the options that are the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AddedCost {
    /// Nothing: weights are edited and no node is added. (A quantised weight that cannot be rounded well enough gets nodes
    /// all the same, which is known once it is baked.)
    #[default]
    Nothing,
    /// Nodes are added.
    Nodes {
        /// The model with the edit at run time beside the model as it is; empty where it was not timed. An ablation is then
        /// made at every write, so a bake that adds nodes at a few of them adds less.
        latencies: Vec<Latency>,
    },
}

/// One setting, measured with its edit at run time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CompareRow {
    /// Name of its direction file, without the ending.
    pub name: String,
    /// What was counted, and the policy's judgement.
    #[serde(flatten)]
    pub tried: SearchRow,
    /// Index of an earlier row with the same edit, which was measured for both.
    pub same_as: Option<usize>,
    /// Bootstrap interval of the harmless KL.
    pub harmless_kl_interval: Option<Interval>,
    /// Cosine of the ablated direction with the true-refusal direction of the same position and layer; `None` where no one
    /// direction is ablated.
    pub cosine: Option<f64>,
    /// Perplexity, where a text was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Estimate>,
    /// Multiple choice accuracy, 0 to 1, where questions were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Estimate>,
    /// What it adds to the cost of a token; `None` where nothing was measured, or where it cannot be baked.
    pub cost: Option<AddedCost>,
}

/// Why a row is before the next one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WhyBest {
    /// No other keeps to the policy and lowers false refusal.
    #[default]
    OnlyOne,
    /// It refuses fewer pseudo-harmful prompts.
    FewestRefused,
    /// It refuses as many pseudo-harmful prompts and changes harmless prompts less.
    SmallestKl,
    /// It does as well in both, and was tried first.
    FirstTried,
}

/// Why no row is recommended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WhyNone {
    /// No setting has an edit.
    #[default]
    NotMeasured,
    /// The unchanged model refuses no pseudo-harmful prompt.
    NoFalseRefusal,
    /// No setting refuses fewer pseudo-harmful prompts than the unchanged model.
    NoGain,
    /// Every setting that does is outside the policy.
    Policy,
}

/// The second best row beside the best one, on the same pseudo-harmful prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Versus {
    /// Index of the second best row.
    pub row: usize,
    /// Prompts that the best row alone refuses.
    pub only_best: usize,
    /// Prompts that the second alone refuses.
    pub only_second: usize,
    /// Share of the prompts by which the second refuses more; `None` without prompts.
    pub difference: Option<f64>,
    /// 95 % interval of it (Tango 1998).
    pub interval: Option<Interval>,
    /// Two-sided p value of McNemar's exact test that neither refuses more.
    pub p_value: f64,
    /// Whether the difference is significant: `p_value` is at most 0.05.
    pub significant: bool,
}

/// Which row is best.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Recommendation {
    /// One that keeps to the policy and lowers false refusal.
    Row {
        /// Its index.
        row: usize,
        /// Why it is before the second.
        why: WhyBest,
        /// The second best that does both; `None` where there is none with another edit.
        second: Option<Versus>,
    },
    /// None.
    Nothing {
        /// Why.
        why: WhyNone,
        /// Index of the row that fails the fewest limits of those that lower false refusal; `None` where none does.
        closest: Option<usize>,
    },
}

impl Default for Recommendation {
    fn default() -> Self {
        Self::Nothing { why: WhyNone::default(), closest: None }
    }
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

/// What `lancet compare` found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CompareResult {
    /// Layout of this JSON: [`super::SCHEMA`].
    pub schema: u32,
    /// Path of the model.
    pub model: String,
    /// Folder of the direction files; `None` where there are none.
    pub output: Option<String>,
    /// Which row is best, and why.
    pub recommendation: Recommendation,
    /// Every setting; the first row is the unchanged model.
    pub rows: Vec<CompareRow>,
    /// Directions of sets on sets; empty where none was given.
    #[serde(default)]
    pub cross: Vec<CrossRow>,
    /// Seconds of each step.
    #[serde(default)]
    pub seconds: BTreeMap<String, f64>,
}

impl CompareResult {
    /// Settings that were tried, of those that a file can hold: what one is chosen from.
    #[must_use]
    pub fn tried(&self) -> usize {
        self.rows.iter().filter(|row| row.tried.setting.is_edit()).count()
    }

    /// The row that is recommended.
    #[must_use]
    pub fn recommended(&self) -> Option<&CompareRow> {
        match self.recommendation {
            Recommendation::Row { row, .. } => self.rows.get(row),
            Recommendation::Nothing { .. } => None,
        }
    }
}
