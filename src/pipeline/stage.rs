//! What a command is doing, for whoever watches its progress.

use crate::eval::condition::Condition;

/// A stretch of work whose progress is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// A few prompts are answered, to tell how long all will take.
    MeasureSpeed,
    /// Train prompts are run, to choose refusal tokens from their first answers.
    ChooseRefusalTokens,
    /// Train prompts are run, for their mean activations.
    CollectActivations,
    /// Prompts are run for their own activations, not for the mean alone.
    ObservePrompts,
    /// Some prompts are answered and run, for the activations at other positions than the last.
    ObservePositions,
    /// Validation prompts are run on the unchanged model.
    ScoreValidation,
    /// Validation prompts are run under each candidate direction.
    ScoreCandidates,
    /// Validation prompts are run under each candidate of a gate.
    ScoreGates,
    /// Validation prompts are run under each candidate of an addition.
    ScoreAdditions,
    /// Validation prompts are run under what a method makes of the selected direction.
    ScoreRefined,
    /// A model is written; progress is in bytes.
    WriteModel {
        /// Its path in the package, where there are several.
        variant: Option<String>,
    },
    /// The other files of a package are copied; progress is in bytes.
    WriteOtherFiles,
    /// Test prompts are answered.
    Answers {
        /// Whose answers.
        whose: Answers,
        /// How the prompts are put.
        condition: Condition,
    },
    /// The prompts of the guard sets are answered.
    GuardSets {
        /// Whose answers.
        whose: Answers,
    },
    /// Test prompts are answered, to count refusals only.
    Refusals {
        /// The prompts: a set, or a class.
        prompts: String,
        /// The set whose direction is ablated; none for the unchanged model.
        direction_of: Option<String>,
    },
    /// An external judge is asked about the answers.
    AskJudge,
    /// The divergence at later response positions is taken.
    Divergence,
    /// The perplexity is taken.
    Perplexity,
    /// Multiple choice questions are put.
    MultipleChoice,
    /// File size, memory and latency are taken.
    Cost,
}

/// Whose answers are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// Those of a model as it is.
    Alone {
        /// Its path in the package, where there are several.
        variant: Option<String>,
    },
    /// Those of the input model.
    Before {
        /// Its path in the package, where there are several.
        variant: Option<String>,
    },
    /// Those of the rewritten model.
    After {
        /// Its path in the package, where there are several.
        variant: Option<String>,
    },
    /// Those of the unchanged model beside settings that are tried.
    Unchanged,
    /// Those of a setting that is tried.
    Setting {
        /// The setting, as its files are named.
        name: String,
    },
}

/// What the steps of a stage are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// Bytes.
    Bytes,
    /// Prompts, windows of a text, or the like.
    Items,
}

impl Stage {
    /// What its steps are.
    #[must_use]
    pub fn steps(&self) -> Steps {
        match self {
            Self::WriteModel { .. } | Self::WriteOtherFiles => Steps::Bytes,
            _ => Steps::Items,
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MeasureSpeed => f.write_str("measure the speed"),
            Self::ChooseRefusalTokens => f.write_str("choose refusal tokens"),
            Self::CollectActivations => f.write_str("collect activations"),
            Self::ObservePrompts => f.write_str("observe prompts"),
            Self::ObservePositions => f.write_str("observe positions for a gate"),
            Self::ScoreValidation => f.write_str("score validation prompts"),
            Self::ScoreCandidates => f.write_str("score candidates"),
            Self::ScoreGates => f.write_str("score gates"),
            Self::ScoreAdditions => f.write_str("score additions"),
            Self::ScoreRefined => f.write_str("score the refined edit"),
            Self::WriteModel { variant: None } => f.write_str("write the model"),
            Self::WriteModel { variant: Some(variant) } => write!(f, "write the model, {variant}"),
            Self::WriteOtherFiles => f.write_str("write the other files"),
            Self::Answers { whose, condition } if condition.is_plain() => write!(f, "{whose}"),
            Self::Answers { whose, condition } => write!(f, "{whose}, {condition}"),
            Self::GuardSets { whose } => write!(f, "{whose}, guard sets"),
            Self::Refusals { prompts, direction_of: None } => write!(f, "{prompts} before"),
            Self::Refusals { prompts, direction_of: Some(set) } => write!(f, "{prompts}, direction of {set}"),
            Self::AskJudge => f.write_str("ask the judge"),
            Self::Divergence => f.write_str("KL"),
            Self::Perplexity => f.write_str("perplexity"),
            Self::MultipleChoice => f.write_str("multiple choice"),
            Self::Cost => f.write_str("cost"),
        }
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (words, detail) = match self {
            Self::Alone { variant } => ("answers", variant.as_ref()),
            Self::Before { variant } => ("answers before", variant.as_ref()),
            Self::After { variant } => ("answers after", variant.as_ref()),
            Self::Unchanged => ("answers of the unchanged model", None),
            Self::Setting { name } => ("answers", Some(name)),
        };
        match detail {
            None => f.write_str(words),
            Some(detail) => write!(f, "{words}, {detail}"),
        }
    }
}
