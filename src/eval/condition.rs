//! The way in which the test prompts are put to a model.

use serde::{Deserialize, Serialize};

use crate::method::classes::GuardSet;

/// The way in which prompts are put.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Condition {
    /// As they are, answered greedily.
    #[default]
    Plain,
    /// As they are, with random answers.
    Sampled,
    /// Under another system prompt.
    SystemPrompt,
    /// Inside a jailbreak wrapper.
    Wrapped {
        /// Its name.
        wrapper: String,
    },
    /// No test prompts: those of a guard set.
    GuardSet {
        /// Which set.
        set: GuardSet,
    },
}

impl Condition {
    /// Whether prompts are put as they are and answered greedily.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::Plain
    }

    /// The name of the wrapper, where there is one.
    #[must_use]
    pub fn wrapper(&self) -> Option<&str> {
        match self {
            Self::Wrapped { wrapper } => Some(wrapper),
            Self::Plain | Self::Sampled | Self::SystemPrompt | Self::GuardSet { .. } => None,
        }
    }

    /// Whether prompts are those of a guard set.
    #[must_use]
    pub fn is_guard_set(&self) -> bool {
        matches!(self, Self::GuardSet { .. })
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain => f.write_str("plain"),
            Self::Sampled => f.write_str("sampled"),
            Self::SystemPrompt => f.write_str("system prompt"),
            Self::Wrapped { wrapper } => write!(f, "wrapped: {wrapper}"),
            Self::GuardSet { set } => write!(f, "{set}"),
        }
    }
}
