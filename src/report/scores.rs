//! Results of the scores that need no answers: perplexity, multiple choice, KL at the first response positions.
//!
//! Plain data that `pipeline` fills. What overflows or could not be measured is `None`, see [`finite`](super::finite).

use serde::{Deserialize, Serialize};

use super::Interval;

/// Perplexity of a model on one text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub perplexity: Option<f64>,
    /// 95 % interval of it, from a bootstrap over the windows.
    pub interval: Option<Interval>,
    /// Mean negative log-likelihood of a scored token, in nats.
    pub mean_nll: f64,
    /// Sum of the negative log-likelihoods in bits, over [`bytes`](Self::bytes).
    pub bits_per_byte: f64,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Length of the text in bytes of UTF-8.
    pub bytes: usize,
    /// Tokens a window, at most.
    pub context: usize,
    /// Tokens from one window's begin to the next one's.
    pub stride: usize,
    /// Whether the text was preceded by the tokens that the tokenizer puts first.
    pub bos: bool,
    /// The windows in the order of the text, for a bootstrap.
    pub windows: Vec<WindowNll>,
}

/// What one window adds to a perplexity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WindowNll {
    /// Tokens that this window scores.
    pub tokens: usize,
    /// Sum of their negative log-likelihoods, in nats.
    pub nll: f64,
}

/// How a choice's likelihood is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// That of the choice's letter after a prompt that lists all choices (MMLU).
    #[default]
    Letter,
    /// That of the choice's text after the question (ARC).
    Text,
}

/// Multiple choice accuracy of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MultipleChoice {
    /// How choices were scored.
    pub scoring: Scoring,
    /// Items asked.
    pub total: usize,
    /// Items whose likeliest choice is right.
    pub right: usize,
    /// `right / total`, 0 to 1 (`acc` of lm-evaluation-harness).
    pub accuracy: f64,
    /// Wilson's 95 % interval of it.
    pub interval: Option<Interval>,
    /// Items whose likeliest choice, by log-likelihood a byte of its text, is right; [`Scoring::Text`] only.
    pub right_normalised: Option<usize>,
    /// `right_normalised / total`, 0 to 1 (`acc_norm`).
    pub accuracy_normalised: Option<f64>,
    /// Solved examples before each question, at most.
    pub shots: usize,
    /// Whether prompts went through the chat template.
    pub chat_template: bool,
    /// Items whose prompt was cut at its begin to fit the context.
    pub truncated: usize,
    /// Per subject, in order of first appearance; empty where no item has one.
    pub subjects: Vec<SubjectAccuracy>,
    /// Per item, in the order of the file.
    pub items: Vec<ItemScore>,
}

/// Accuracy on one subject.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SubjectAccuracy {
    /// Its name.
    pub subject: String,
    /// Items asked.
    pub total: usize,
    /// Items whose likeliest choice is right.
    pub right: usize,
    /// `right / total`, 0 to 1.
    pub accuracy: f64,
    /// The same by log-likelihood a byte; [`Scoring::Text`] only.
    pub right_normalised: Option<usize>,
}

/// One item, scored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ItemScore {
    /// Index of the right choice, from 0.
    pub answer: usize,
    /// Index of the likeliest choice; the first one on a tie.
    pub chosen: usize,
    /// Index of the likeliest choice by log-likelihood a byte; [`Scoring::Text`] only.
    pub chosen_normalised: Option<usize>,
    /// Whether `chosen` is `answer`.
    pub right: bool,
    /// Log-likelihood of each choice, in nats.
    pub log_likelihoods: Vec<f64>,
}

/// KL divergence between a base model and another at the first response positions, in nats.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Divergence {
    /// Per position, the first response position first. A position that no prompt reaches is left out.
    pub positions: Vec<PositionKl>,
    /// Mean over all values of all positions; `None` without prompts.
    pub mean: Option<f64>,
    /// `[prompt][position]`, for a bootstrap over prompts.
    pub prompts: Vec<Vec<f64>>,
}

/// Mean KL at one response position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PositionKl {
    /// The position, from 0.
    pub position: usize,
    /// Prompts whose answer reaches it.
    pub prompts: usize,
    /// Mean `KL(base || other)`, in nats.
    pub mean: f64,
}
