//! Prompt sets: the three classes and their splits, their parsing from text, and the seeded choice of
//! the prompts that serve (METHOD.md, step 1). No I/O: `prompt_files` reads the files.
//!
//! Published configuration (Wang et al., arXiv 2410.03415, the defaults of the paper's repository): 128
//! train, 32 val and 128 test prompts a class, random seed 1, taken with Python's `random.sample` from one
//! generator in a fixed order: train pseudo-harmful, harmless, harmful; val in the same order; test
//! pseudo-harmful, harmful. [`Prompts::sample`] takes the same prompts; harmless test, which the paper does
//! not draw, comes last and so changes nothing before it.

mod abilities;
mod assemble;
mod error;
mod families;
mod guard_sets;
mod origin;
mod parse;
mod questions;
mod random;
mod sources;
#[cfg(test)]
mod tests;
mod text;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use super::classes::{Dress, GuardSet, Hand, PerClass, PromptClass, SourceName};
pub use crate::records::Row;
pub use abilities::{Ability, abilities};
pub use assemble::BUNDLED_VERSION;
pub use error::PromptError;
pub use guard_sets::{Conversation, GuardPrompts, Role, Turn};
pub use origin::{Overlap, Place, PromptFile, PromptOrigin, PromptSource, RowSelection};
pub use parse::{PROMPT_KEYS, ParsedFile, PromptFormat, decode, parse};
pub use random::PythonRandom;
pub use sources::{Both, PromptsOf, sources};
pub(crate) use text::normalised;

/// Fewer prompts than this cannot be split in three.
pub const MIN_PROMPTS_TO_SPLIT: usize = 6;

/// The seed of the published configuration.
pub const PUBLISHED_SEED: u64 = 1;

/// What a prompt is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Mean activations come from it.
    Train,
    /// The direction is selected on it.
    Val,
    /// The result is measured on it.
    Test,
}

impl Split {
    /// Every split, in the order in which they are used.
    pub const ALL: [Self; 3] = [Self::Train, Self::Val, Self::Test];

    /// The name in files and JSON: `train`, `val`, `test`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// How many prompts a class each split takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSizes {
    /// Prompts for the mean activations.
    pub train: usize,
    /// Prompts for the selection.
    pub val: usize,
    /// Prompts for the evaluation.
    pub test: usize,
}

impl Default for SplitSizes {
    /// The published sizes: 128, 32, 128.
    fn default() -> Self {
        Self { train: 128, val: 32, test: 128 }
    }
}

impl SplitSizes {
    /// The size of one split.
    pub fn get(&self, split: Split) -> usize {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
            Split::Test => self.test,
        }
    }

    /// The sizes into which one file of `len` prompts is split.
    ///
    /// If it has enough for all three, these sizes, and the rest is not used. If not, each split gets one
    /// prompt, train and val their share (`size / (train + val + test)`, rounded down) of what remains,
    /// and test what is then left. A test of size 0 stays empty and val gets what is left.
    ///
    /// # Errors
    /// If train or val is 0, or there are fewer than [`MIN_PROMPTS_TO_SPLIT`] prompts.
    pub fn fit(&self, file: &str, len: usize) -> Result<Self, PromptError> {
        for split in [Split::Train, Split::Val] {
            if self.get(split) == 0 {
                return Err(PromptError::ZeroSize { split });
            }
        }
        if len < MIN_PROMPTS_TO_SPLIT {
            return Err(PromptError::TooFewToSplit { file: file.to_owned(), got: len });
        }
        let total = [self.train, self.val, self.test].iter().map(|&size| size as u128).sum::<u128>();
        if len as u128 >= total {
            return Ok(*self);
        }
        let remaining = (len - 2 - usize::from(self.test > 0)) as u128;
        let share = |size: usize| -> usize {
            usize::try_from(remaining * size as u128 / total).expect("a share is at most the whole")
        };
        let train = 1 + share(self.train);
        let (val, test) = if self.test > 0 {
            let val = 1 + share(self.val);
            (val, len - train - val)
        } else {
            (len - train, 0)
        };
        Ok(Self { train, val, test })
    }
}

/// The prompts of one class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptSet {
    /// For the mean activations.
    pub train: Vec<String>,
    /// For the selection.
    pub val: Vec<String>,
    /// For the evaluation.
    pub test: Vec<String>,
    /// Train prompts that the seed did not draw, and that are in no other split. Means are computed without them; gates
    /// are fitted on them too, as the more of them a gate knows, the more it opens for. Harmful and pseudo-harmful ones
    /// only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<String>,
}

/// Train prompts of a class that gates are fitted on, at most, drawn and further ones.
const MOST_TRAIN: usize = 1024;

impl PromptSet {
    /// The prompts of one split.
    pub fn get(&self, split: Split) -> &[String] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }

    fn get_mut(&mut self, split: Split) -> &mut Vec<String> {
        match split {
            Split::Train => &mut self.train,
            Split::Val => &mut self.val,
            Split::Test => &mut self.test,
        }
    }
}

/// The prompts of all classes, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompts {
    /// The prompts of each class.
    #[serde(flatten)]
    pub sets: PerClass<PromptSet>,
    /// Where they come from and what was done to them.
    pub origin: PromptOrigin,
}

impl Prompts {
    /// The prompts of one class.
    pub fn class(&self, class: PromptClass) -> &PromptSet {
        self.sets.get(class)
    }

    /// The prompts of one class and split.
    pub fn get(&self, class: PromptClass, split: Split) -> &[String] {
        self.class(class).get(split)
    }
}

/// What to do with a prompt that is in two splits of a class, or in two classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverlapPolicy {
    /// An error.
    #[default]
    Refuse,
    /// An error if both places are among the prompts that the seed chose; else it is recorded. The
    /// published harmful sets share one prompt between train and test, which the published seed does not
    /// put in both samples.
    RefuseInSample,
    /// Removed from the later split, and recorded. In two classes it is an error all the same.
    Drop,
    /// Recorded.
    Keep,
}

/// How prompts are read and chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadOptions {
    /// How many are chosen.
    pub sizes: SplitSizes,
    /// What chooses them.
    pub seed: u64,
    /// Whether a folder without a test split is an error.
    pub require_test: bool,
    /// What to do with a prompt in two places.
    pub overlap: OverlapPolicy,
    /// Whether a prompt that is repeated within one file stays. The paper kept them, and the choice of the
    /// seed depends on how many there are. Where one file holds a whole class they never stay, as they
    /// would end in two splits.
    pub keep_duplicates: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            sizes: SplitSizes::default(),
            seed: PUBLISHED_SEED,
            require_test: true,
            overlap: OverlapPolicy::default(),
            keep_duplicates: false,
        }
    }
}

impl LoadOptions {
    /// What makes the published files give the published prompts: sizes, seed, repeated prompts kept.
    pub fn published() -> Self {
        Self { overlap: OverlapPolicy::RefuseInSample, keep_duplicates: true, ..Self::default() }
    }
}
