//! The record of where prompts come from and of what was done to them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::count_of_prompts;
use super::{PromptClass, Split, SplitSizes};
use crate::records::{Row, excerpt};

/// Where prompts were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PromptSource {
    /// In the program.
    Bundled {
        /// [`BUNDLED_VERSION`](super::BUNDLED_VERSION).
        version: String,
    },
    /// In a folder with a file a class and split.
    Folder {
        /// The folder.
        path: String,
    },
    /// In one file a class, split by the seed.
    Files,
}

/// The record of how [`Prompts`](super::Prompts) came to be, for the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptOrigin {
    /// Where they were found.
    pub source: PromptSource,
    /// Every file that was read.
    pub files: Vec<PromptFile>,
    /// The seed that chose or split them; none if they are all that the files hold.
    pub seed: Option<u64>,
    /// The sizes that were asked for; a set with fewer has fewer.
    pub sizes: Option<SplitSizes>,
    /// Prompts that are in two places and were left there, as the caller wished.
    pub overlaps: Vec<Overlap>,
    /// Prompts that were in two places and were removed from the second.
    pub dropped: Vec<Overlap>,
}

impl PromptOrigin {
    /// What a user should know, one line each; often nothing.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for file in &self.files {
            if let Some(RowSelection { column, kept, skipped }) = &file.selection {
                notes.push(format!(
                    "`{}`: took the {} rows that the column `{column}` marks as {kept}, for {}; skipped {skipped}",
                    file.name,
                    file.rows - skipped,
                    file.class
                ));
            }
            if file.duplicates > 0 {
                notes.push(format!(
                    "`{}`: {} of {} prompts repeat an earlier one{}",
                    file.name,
                    file.duplicates,
                    file.rows - file.selection.as_ref().map_or(0, |s| s.skipped),
                    if file.kept_duplicates { " and were kept" } else { " and were left out" }
                ));
            }
        }
        for (what, overlaps) in [("kept", &self.overlaps), ("left out of the second", &self.dropped)] {
            if let Some(overlap) = overlaps.first() {
                notes.push(format!(
                    "{} in two places and {what}: for example {overlap}",
                    count_of_prompts(overlaps.len())
                ));
            }
        }
        notes
    }
}

/// One file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptFile {
    /// Its name, as given.
    pub name: String,
    /// The class it was read as.
    pub class: PromptClass,
    /// The split it was read as; none if it holds a whole class.
    pub split: Option<Split>,
    /// The rows in it.
    pub rows: usize,
    /// The prompts taken from it.
    pub prompts: usize,
    /// How many rows repeat an earlier one.
    pub duplicates: usize,
    /// Whether these were kept.
    pub kept_duplicates: bool,
    /// Set if only some rows are of this class.
    pub selection: Option<RowSelection>,
}

/// A choice of rows from a file that marks them as safe and unsafe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSelection {
    /// The column that marks them.
    pub column: String,
    /// `safe` or `unsafe`.
    pub kept: String,
    /// How many rows are of the other kind.
    pub skipped: usize,
}

/// A prompt that is in two places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The prompt, as written in the first place.
    pub prompt: String,
    /// The earlier place: train before val before test.
    pub first: Place,
    /// The later place.
    pub second: Place,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompt, first, second } = self;
        write!(f, "`{}` in {first} and in {second}", excerpt(prompt))
    }
}

/// Where a prompt is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its class.
    pub class: PromptClass,
    /// Its split; none if the file holds a whole class.
    pub split: Option<Split>,
    /// Its file and row, if known.
    pub at: Option<(String, Row)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.class)?;
        if let Some(split) = self.split {
            write!(f, " {split}")?;
        }
        match &self.at {
            Some((file, row)) => write!(f, " (`{file}`, {row})"),
            None => Ok(()),
        }
    }
}
