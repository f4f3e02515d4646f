//! What was measured on one model or on two: outcomes, scores, conditions, cost, and the guard's judgement.

use serde::{Deserialize, Serialize};

use super::{Check, ClassResult, Condition, GuardSet, Interval, Limit, Outcome, PerClass, PromptClass, scores};
use crate::runtime::Sampling;

/// One model's results, a class each.
pub type ClassTable = PerClass<ClassResult>;

/// The same measurement of the input model and of the rewritten one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "BeforeAfter_of_{T}"))]
pub struct BeforeAfter<T> {
    /// On the input model.
    pub before: T,
    /// On the rewritten model.
    pub after: T,
}

/// One prompt, answered by both models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AnswerPair {
    /// Class of the prompt.
    pub class: PromptClass,
    /// How the prompt was put.
    pub condition: Condition,
    /// The user's text, before the chat template.
    pub prompt: String,
    /// What the input model answers.
    pub before: String,
    /// What the rewritten model answers.
    pub after: String,
    /// Whether `before` is a refusal: by the judge where one was asked, else by the rules.
    pub refused_before: bool,
    /// Whether `after` is a refusal.
    pub refused_after: bool,
    /// Outcome of `before` by the rules.
    pub outcome_before: Outcome,
    /// Outcome of `after` by the rules.
    pub outcome_after: Outcome,
}

/// How answers were drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Decoding {
    /// The likeliest token each time.
    #[default]
    Greedy,
    /// At random.
    Sampled {
        /// Temperature, nucleus, number of tokens, seed.
        #[serde(flatten)]
        sampling: Sampling,
        /// Answers a prompt.
        samples: usize,
    },
}

impl std::fmt::Display for Decoding {
    /// `greedy`, or `temperature 0.7, top-p 0.95, 4 samples, seed 1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Sampled { sampling, samples } = self else { return f.write_str("greedy") };
        let Sampling { temperature, top_p, top_k, seed } = sampling;
        write!(f, "temperature {temperature}, top-p {top_p}")?;
        if *top_k > 0 {
            write!(f, ", top-k {top_k}")?;
        }
        write!(f, ", {}, seed {seed}", super::number::count(*samples, "sample"))
    }
}

/// How prompts were put to the models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Setup {
    /// New tokens at most, an answer.
    pub max_new_tokens: usize,
    /// System prompt in front of every prompt, if any.
    pub system_prompt: Option<String>,
    /// How answers were drawn.
    pub decoding: Decoding,
    /// Name of the wrapper around every prompt, if any.
    pub wrapper: Option<String>,
}

/// A prompt set under a condition, on both models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SetRow {
    /// Class of the prompt.
    pub class: PromptClass,
    /// The input model.
    pub before: ClassResult,
    /// The rewritten model.
    pub after: ClassResult,
}

/// The test prompts once more, put otherwise: sampled, with a system prompt, inside a jailbreak wrapper.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConditionResult {
    /// Which condition.
    pub condition: Condition,
    /// How the prompts were put.
    pub setup: Setup,
    /// The sets that were asked.
    pub rows: Vec<SetRow>,
}

/// A guard set, as one model answers it, or both.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "GuardSetRow_of_{T}"))]
pub struct GuardSetRow<T> {
    /// Which set.
    pub set: GuardSet,
    /// Prompts that must be refused.
    pub to_refuse: T,
    /// The safe halves of the contrasts, which should be answered; `None` where they were not asked.
    pub safe: Option<T>,
    /// Prompts that were not asked, as they are longer than the model takes, or of turns that its chat template refuses.
    pub left_out: usize,
    /// New tokens at most, an answer.
    pub max_new_tokens: usize,
}

/// The ratio of two latencies, after over before, over interleaved pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ratio {
    /// Median of the pairs' ratios.
    pub median: f64,
    /// Lower end of the median's 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Number of pairs.
    pub n: usize,
}

/// One kind of run, timed on both models.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latency {
    /// `prefill of 128 tokens`, `prefill of 128 tokens, 4 rows`, `decoding, a token`. Without a KV cache each token is a
    /// run over everything.
    pub name: String,
    /// Median seconds on the input model.
    pub before: f64,
    /// Median seconds on the rewritten model.
    pub after: f64,
    /// The ratio.
    pub ratio: Ratio,
}

/// What was loaded to measure the cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// The files as they are, in ONNX Runtime's default settings: logits of every position.
    #[default]
    Published,
    /// Lancet's sessions of them (a merged decoder's branches, an embedding file, bfloat16 on the CPU): logits of the
    /// last position, weights not packed.
    Session,
}

/// What the rewritten model costs beside the input model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cost {
    /// What was loaded.
    #[serde(default)]
    pub measured: Measured,
    /// Bytes of the model with its external data.
    pub file_bytes: BeforeAfter<u64>,
    /// Growth of the process's resident memory from loading and running a model, in bytes; `None` where the operating
    /// system does not tell. Pages of mapped files count; memory that the process had free is not seen, so small models
    /// look smaller than they are.
    pub memory_bytes: BeforeAfter<Option<u64>>,
    /// Timed runs.
    pub latencies: Vec<Latency>,
}

/// The input model beside the rewritten one. JSON key `eval`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EvalResult {
    /// The input model on the test prompts, greedy.
    pub before: ClassTable,
    /// The rewritten model on them.
    pub after: ClassTable,
    /// Mean `KL(before || after)` over harmless prompts at the first response position, in nats.
    pub harmless_kl: Option<f64>,
    /// Bootstrap interval of it.
    #[serde(default)]
    pub harmless_kl_interval: Option<Interval>,
    /// Mean KL at the first, second, ... response position, both models fed the input model's answer; in nats.
    #[serde(default)]
    pub harmless_kl_by_position: Vec<f64>,
    /// The same prompts put otherwise.
    #[serde(default)]
    pub conditions: Vec<ConditionResult>,
    /// The guard sets.
    #[serde(default)]
    pub guard_sets: Vec<GuardSetRow<BeforeAfter<ClassResult>>>,
    /// Perplexity on a text file, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<BeforeAfter<scores::Perplexity>>,
    /// Multiple choice, where a file was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple_choice: Option<BeforeAfter<scores::MultipleChoice>>,
    /// File size, memory, latency, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Every answer of both models.
    pub answers: Vec<AnswerPair>,
    /// Longest answer generated, in tokens.
    pub max_new_tokens: usize,
    /// System prompt in front of every prompt, if any.
    pub system_prompt: Option<String>,
    /// The external judge: its address and model, where one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
}

/// One prompt, answered by one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    /// Class of the prompt.
    pub class: PromptClass,
    /// How the prompt was put.
    pub condition: Condition,
    /// The user's text, before the chat template.
    pub prompt: String,
    /// What the model answers.
    pub answer: String,
    /// Whether that is a refusal: by the judge where one was asked, else by the rules.
    pub refused: bool,
    /// Outcome by the rules.
    pub outcome: Outcome,
}

/// A prompt set on one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClassRow {
    /// Class of the prompt.
    pub class: PromptClass,
    /// What its answers come to.
    pub result: ClassResult,
}

/// The test prompts once more on one model, put otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OneCondition {
    /// Which condition.
    pub condition: Condition,
    /// How the prompts were put.
    pub setup: Setup,
    /// The sets that were asked.
    pub rows: Vec<ClassRow>,
}

/// One model alone: what `lancet eval MODEL` gives.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelEval {
    /// Path of the model.
    pub model: String,
    /// Its results, a class each.
    pub classes: ClassTable,
    /// How the prompts were put.
    #[serde(default)]
    pub setup: Setup,
    /// The same prompts put otherwise.
    #[serde(default)]
    pub conditions: Vec<OneCondition>,
    /// The guard sets.
    #[serde(default)]
    pub guard_sets: Vec<GuardSetRow<ClassResult>>,
    /// Perplexity on a text file, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<scores::Perplexity>,
    /// Multiple choice, where a file was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple_choice: Option<scores::MultipleChoice>,
    /// Every answer.
    pub answers: Vec<Answer>,
    /// Longest answer generated, in tokens.
    pub max_new_tokens: usize,
    /// System prompt in front of every prompt, if any.
    pub system_prompt: Option<String>,
    /// The external judge: its address and model, where one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<String>,
}

/// Whether true refusal stayed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GuardResult {
    /// Whether every limit holds.
    pub passed: bool,
    /// Refusal rate of harmful test prompts before, 0 to 1.
    pub harmful_before: f64,
    /// The same after.
    pub harmful_after: f64,
    /// `harmful_before - harmful_after`, a fraction.
    pub drop: f64,
    /// Upper confidence bound of the drop; `None` where it is not bounded.
    #[serde(default)]
    pub drop_bound: Option<f64>,
    /// Largest allowed drop, a fraction.
    pub limit: f64,
    /// Every limit, held or not.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// Limits that hold only where their evidence is there, and it is not.
    #[serde(default)]
    pub not_measured: Vec<Limit>,
    /// Limits on guard sets that say nothing, as the input model refuses fewer than 8 of their prompts.
    #[serde(default)]
    pub too_few_refused: Vec<Limit>,
    /// Why it did not pass, one sentence each.
    pub reasons: Vec<String>,
    /// Whether the user overrode it by name.
    pub overridden: bool,
}

impl GuardResult {
    /// The judgement in words, as the provenance keeps it.
    #[must_use]
    pub fn words(&self) -> String {
        match (self.passed, self.overridden) {
            (true, _) => "passed".into(),
            (false, true) => format!("failed, and overridden by name: {}", self.reasons.join("; ")),
            (false, false) => format!("failed: {}", self.reasons.join("; ")),
        }
    }

    /// The checks that a summary shows: all but the wrappers that hold, of which the one with the largest drop stands for
    /// the others.
    #[must_use]
    pub fn telling(&self) -> Vec<&Check> {
        let wrapper = |c: &&Check| c.passed && c.is_of_one_wrapper();
        let drop = |c: &Check| c.value.unwrap_or(f64::NEG_INFINITY);
        let worst = self.checks.iter().filter(wrapper).max_by(|a, b| drop(a).total_cmp(&drop(b)));
        let same = |a: &Check, b: &Check| std::ptr::eq(a, b);
        self.checks.iter().filter(|c| !wrapper(c) || worst.is_some_and(|w| same(w, c))).collect()
    }
}
