//! The time that a run was given, and what that cost.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::number::seconds;

/// What a run leaves out where it would not end in time. The guard's evidence is never among it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Omission {
    /// Candidates that can no longer win are not measured to the end.
    ExhaustiveSearch,
    /// The further lambdas are not tried.
    Sweep,
    /// File size, memory and latency are not compared.
    Cost,
    /// The KL divergence is taken at the first response position only.
    LaterKl,
    /// The safe halves of the contrasts are not answered.
    SafeContrasts,
    /// No perplexity is taken; only where the guard has no limit for it.
    Perplexity,
    /// No multiple choice questions are asked; only where the guard has no limit for them.
    MultipleChoice,
    /// Sampled answers, and those under another system prompt, are made to harmful prompts only.
    OtherConditions,
    /// The search tries the first lambda alone.
    OtherLambdas,
    /// The search tries directions alone, no gates.
    OtherMethods,
}

impl fmt::Display for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExhaustiveSearch => "measuring candidates that can no longer win",
            Self::Sweep => "the further lambdas",
            Self::Cost => "file size, memory and latency",
            Self::LaterKl => "the KL divergence at later positions",
            Self::SafeContrasts => "answers to the safe halves of the contrasts",
            Self::Perplexity => "the perplexity",
            Self::MultipleChoice => "multiple choice",
            Self::OtherConditions => "sampled answers and those under another system prompt, except to harmful prompts",
            Self::OtherLambdas => "all but the first lambda of the search",
            Self::OtherMethods => "gates in the search",
        })
    }
}

/// The time that a run was given, and what that meant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Budget {
    /// Seconds that the run was given.
    pub seconds: f64,
    /// Seconds that it was expected to take as it was asked for.
    pub asked: f64,
    /// Seconds that it was expected to take without what was left out.
    pub expected: f64,
    /// What was left out.
    pub omitted: Vec<Omission>,
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", seconds(self.seconds))?;
        for (at, part) in self.omitted.iter().enumerate() {
            write!(f, "{}{part}", if at > 0 { "; " } else { ": left out " })?;
        }
        if self.expected > self.seconds {
            write!(f, "; expected to take {} even so: what the guard needs is never left out", seconds(self.expected))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_tells_what_it_cost() {
        let mut budget = Budget { seconds: 1800.0, asked: 900.0, expected: 900.0, omitted: Vec::new() };
        assert_eq!(budget.to_string(), "30 min 00 s");
        budget = Budget { asked: 9000.0, omitted: vec![Omission::Sweep, Omission::Cost], ..budget };
        assert_eq!(budget.to_string(), "30 min 00 s: left out the further lambdas; file size, memory and latency");
        budget = Budget { expected: 3600.0, omitted: vec![Omission::Sweep], ..budget };
        assert_eq!(
            budget.to_string(),
            "30 min 00 s: left out the further lambdas; expected to take 1 h 00 min even so: what the guard needs is never \
             left out"
        );
    }
}
