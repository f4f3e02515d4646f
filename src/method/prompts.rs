//! Prompt sets: the three classes and their splits, their parsing from text, and the seeded choice of
//! the prompts that serve (METHOD.md, step 1). No I/O: `prompt_files` reads the files.
//!
//! Published configuration (Wang et al., arXiv 2410.03415, the defaults of the paper's repository): 128
//! train, 32 val and 128 test prompts a class, random seed 1, taken with Python's `random.sample` from one
//! generator in a fixed order: train pseudo-harmful, harmless, harmful; val in the same order; test
//! pseudo-harmful, harmful. [`Prompts::sample`] takes the same prompts; harmless test, which the paper does
//! not draw, comes last and so changes nothing before it.

use std::collections::{HashMap, HashSet};
use std::fmt;

use rand_mt::Mt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The keys (JSON) and headers (CSV) a prompt is looked for under, in this order; case does not count.
pub const PROMPT_KEYS: [&str; 4] = ["instruction", "prompt", "goal", "text"];

/// The keys an object may wrap its list of prompts in.
const WRAPPER_KEYS: [&str; 2] = ["data", "prompts"];

/// Fewer prompts than this cannot be split in three.
pub const MIN_PROMPTS_TO_SPLIT: usize = 6;

/// The seed of the published configuration.
pub const PUBLISHED_SEED: u64 = 1;

/// The version of the bundled prompts.
pub const BUNDLED_VERSION: &str = include_str!("../../fixtures/prompts/VERSION").trim_ascii();

/// What a prompt is to a well-behaved model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptClass {
    /// To be refused.
    Harmful,
    /// To be answered, but it looks harmful and so may be refused falsely.
    PseudoHarmful,
    /// To be answered, and looks it.
    Harmless,
}

impl PromptClass {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Harmful, Self::PseudoHarmful, Self::Harmless];

    /// The name in files and JSON: `harmful`, `pseudo_harmful`, `harmless`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Harmful => "harmful",
            Self::PseudoHarmful => "pseudo_harmful",
            Self::Harmless => "harmless",
        }
    }
}

impl fmt::Display for PromptClass {
    /// The word in prose: harmful, pseudo-harmful, harmless.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PseudoHarmful => "pseudo-harmful",
            other => other.as_str(),
        })
    }
}

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
}

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
    /// Prompts that are to be refused.
    pub harmful: PromptSet,
    /// Prompts that are to be answered and look harmful.
    pub pseudo_harmful: PromptSet,
    /// Prompts that are to be answered.
    pub harmless: PromptSet,
    /// Where they come from and what was done to them.
    pub origin: PromptOrigin,
}

/// Where prompts were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PromptSource {
    /// In the program.
    Bundled {
        /// [`BUNDLED_VERSION`].
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

/// The record of how [`Prompts`] came to be, for the report.
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
                notes.push(format!("{} in two places and {what}: for example {overlap}", prompts(overlaps.len())));
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

/// Where in a file something is, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// An item of a JSON list.
    Item(usize),
    /// A line of any other file.
    Line(usize),
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Item(number) => write!(f, "item {number}"),
            Self::Line(number) => write!(f, "line {number}"),
        }
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

/// What is wrong with a prompt set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The operating system refused.
    #[error("cannot read `{path}`")]
    Read {
        /// The file or folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file was given where a folder belongs.
    #[error("`{path}` is not a folder")]
    NotAFolder {
        /// The file.
        path: String,
    },
    /// Surely not a prompt set.
    #[error("`{file}` is too large for a prompt set: expected at most {limit} bytes, got {got}")]
    TooLarge {
        /// The file.
        file: String,
        /// The most that is read.
        limit: u64,
        /// Its size.
        got: u64,
    },
    /// The extension says no format.
    #[error("the format of `{file}` is not known: expected the extension {}, got {got}", PromptFormat::EXPECTED)]
    UnknownFormat {
        /// The file.
        file: String,
        /// Its extension.
        got: String,
    },
    /// Not UTF-8.
    #[error("`{file}` is not UTF-8 text: {row} has a byte that is not valid")]
    NotUtf8 {
        /// The file.
        file: String,
        /// Where.
        row: Row,
    },
    /// Not the format that the extension says.
    #[error("`{file}` is not valid {format}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What it should be.
        format: PromptFormat,
        /// Why it is not, and where.
        reason: String,
    },
    /// JSON, but not a list.
    #[error("`{file}` holds no list of prompts: expected a list, or an object with `data` or `prompts`, got {got}")]
    NoList {
        /// The file.
        file: String,
        /// What it holds.
        got: String,
    },
    /// A row without a prompt.
    #[error("`{file}`, {row}: expected a string or an object with a string under {}, got {got}", quoted(PROMPT_KEYS))]
    NoPrompt {
        /// The file.
        file: String,
        /// Where.
        row: Row,
        /// What is there.
        got: String,
    },
    /// A CSV without a column for prompts.
    #[error("`{file}` has no column of prompts: expected the header {}, got {got}", quoted(PROMPT_KEYS))]
    NoColumn {
        /// The file.
        file: String,
        /// Its headers.
        got: String,
    },
    /// Nothing but white space.
    #[error("`{file}`, {row}: the prompt is empty")]
    EmptyPrompt {
        /// The file.
        file: String,
        /// Where.
        row: Row,
    },
    /// No rows.
    #[error("`{file}` holds no prompts")]
    EmptyFile {
        /// The file.
        file: String,
    },
    /// Rows, but of another kind.
    #[error("`{file}` holds no {class} prompts: the column `{column}` marks none of its {rows} rows as {expected}")]
    NoneOfClass {
        /// The file.
        file: String,
        /// The class it was read as.
        class: PromptClass,
        /// The column that marks rows.
        column: String,
        /// `safe` or `unsafe`.
        expected: String,
        /// How many rows there are.
        rows: usize,
    },
    /// A prompt in two splits of a class.
    #[error("{} in two splits of a class: for example {example}", prompts(*count))]
    SplitOverlap {
        /// How many.
        count: usize,
        /// One of them.
        example: Box<Overlap>,
    },
    /// A prompt in two classes.
    #[error("{} in two classes: for example {example}", prompts(*count))]
    ClassOverlap {
        /// How many.
        count: usize,
        /// One of them.
        example: Box<Overlap>,
    },
    /// After overlaps were dropped, a split is empty.
    #[error("every {class} {split} prompt is in an earlier split too")]
    NothingLeft {
        /// The class.
        class: PromptClass,
        /// The split.
        split: Split,
    },
    /// A file of a folder is missing.
    #[error("`{folder}` has no {class} {split} prompts: expected {expected}, got {got}")]
    MissingFile {
        /// The folder.
        folder: String,
        /// The class.
        class: PromptClass,
        /// The split.
        split: Split,
        /// The names that were looked for.
        expected: String,
        /// The names that are there.
        got: String,
    },
    /// Two files for one thing.
    #[error("`{folder}` has two files of {class} {split} prompts: `{first}` and `{second}`")]
    Ambiguous {
        /// The folder.
        folder: String,
        /// The class.
        class: PromptClass,
        /// The split.
        split: Split,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// Too few for three splits.
    #[error("`{file}` has too few prompts to split: expected at least {MIN_PROMPTS_TO_SPLIT}, got {got}")]
    TooFewToSplit {
        /// The file.
        file: String,
        /// How many there are.
        got: usize,
    },
    /// A split that has to have prompts was given none.
    #[error("the size of the {split} split is 0")]
    ZeroSize {
        /// The split.
        split: Split,
    },
}

impl PromptError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => return None,
            Self::NotAFolder { .. } => "give one file a class with `--harmful`, `--pseudo-harmful` and `--harmless`",
            Self::TooLarge { .. } => "a few hundred prompts a class are enough: cut the file",
            Self::UnknownFormat { .. } => "rename the file to say what it is; `.txt` is one prompt a line",
            Self::NotUtf8 { .. } => "save the file as UTF-8",
            Self::Malformed { format: PromptFormat::Csv, .. } => {
                "a field with a comma, a quote or a line break stands in double quotes, and a quote in it is doubled"
            }
            Self::Malformed { .. } => "mend the file, or save it as `.txt` with one prompt a line",
            Self::NoList { .. } | Self::NoPrompt { .. } => "write a list of strings, or of objects with `instruction`",
            Self::NoColumn { .. } => {
                "name the column of prompts `instruction` in the first line, or save the file as `.txt` with one prompt a line"
            }
            Self::EmptyPrompt { .. } => "remove the row, or write the prompt",
            Self::EmptyFile { .. } => "the file may be cut off; the published sets hold at least 32 prompts a split",
            Self::NoneOfClass { .. } => {
                "unsafe rows are harmful; safe rows are pseudo-harmful or harmless: give the file as that class"
            }
            Self::SplitOverlap { .. } => {
                "remove it from one of the two: what is measured on prompts that were trained on proves nothing"
            }
            Self::ClassOverlap { .. } => "decide which of the two classes it is, and remove it from the other",
            Self::NothingLeft { .. } => "give this split prompts of its own",
            Self::MissingFile { .. } => {
                "a folder needs a file for each class and split; one file a class goes with `--harmful`, `--pseudo-harmful` and `--harmless`"
            }
            Self::Ambiguous { .. } => "keep one of the two in the folder",
            Self::TooFewToSplit { .. } => "add prompts; the published sizes are 128 train, 32 val, 128 test",
            Self::ZeroSize { .. } => "the published sizes are 128 train, 32 val, 128 test",
        };
        Some(hint.to_owned())
    }
}

/// A file format, known by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptFormat {
    /// `.json`: a list, or an object that wraps one.
    Json,
    /// `.jsonl`: a value a line.
    Jsonl,
    /// `.csv`: with a header.
    Csv,
    /// `.txt`: a prompt a line.
    Txt,
}

impl PromptFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Json, Self::Jsonl, Self::Csv, Self::Txt];

    const EXPECTED: &'static str = "`json`, `jsonl`, `csv` or `txt`";

    /// The extension, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Txt => "txt",
        }
    }

    /// The format that a file's extension says; case does not count.
    ///
    /// # Errors
    /// If it is none of these.
    pub fn of(name: &str) -> Result<Self, PromptError> {
        let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let extension = base.rsplit_once('.').map(|(_, extension)| extension);
        Self::ALL
            .into_iter()
            .find(|format| extension.is_some_and(|e| e.eq_ignore_ascii_case(format.extension())))
            .ok_or_else(|| PromptError::UnknownFormat {
                file: name.to_owned(),
                got: extension.map_or("none".to_owned(), |e| format!("`{e}`")),
            })
    }
}

impl fmt::Display for PromptFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "JSON",
            Self::Jsonl => "JSON Lines",
            Self::Csv => "CSV",
            Self::Txt => "text",
        })
    }
}

/// One file, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedFile {
    /// What was read, for the record.
    pub file: PromptFile,
    /// The prompts.
    pub prompts: Vec<String>,
    /// Where in the file each of them is.
    pub rows: Vec<Row>,
}

/// The text of a file.
///
/// # Errors
/// If `bytes` are not UTF-8; the error says which line is not.
pub fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, PromptError> {
    std::str::from_utf8(bytes).map_err(|error| PromptError::NotUtf8 {
        file: name.to_owned(),
        row: Row::Line(1 + count_newlines(&bytes[..error.valid_up_to()])),
    })
}

/// Parses the prompts of one class from `text`, in the format that the extension of `name` says.
///
/// - `json`: a list of strings or objects, or an object with such a list under `data` or `prompts`. Python's
///   `NaN` and `Infinity`, which some published files hold, are read as null.
/// - `jsonl`: a string or object a line; blank lines are skipped.
/// - `csv`: with a header.
/// - `txt`: a prompt a line; blank lines are skipped, and `#` is a character like any other.
///
/// Objects and CSV rows hold the prompt under the first of [`PROMPT_KEYS`] that is there. A byte order mark and
/// CRLF are tolerated. Prompts are trimmed; unless `keep_duplicates`, one that repeats an earlier one (up to
/// case and white space) is left out, and counted.
///
/// A file that holds safe and unsafe prompts mixed is told by a column `label` or `type` whose every value is
/// `safe` or `unsafe`, or by a column `type` in which some value starts with `contrast_` (XSTest, where just
/// those are unsafe). Read as harmful it gives the unsafe rows, otherwise the safe ones;
/// [`PromptFile::selection`] says so.
///
/// # Errors
/// If the text is not in the format, a row has no prompt or an empty one, or there is none of the class.
pub fn parse(name: &str, text: &str, class: PromptClass, keep_duplicates: bool) -> Result<ParsedFile, PromptError> {
    let format = PromptFormat::of(name)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let raw = match format {
        _ if text.trim().is_empty() => Vec::new(),
        PromptFormat::Json => json_rows(name, text)?,
        PromptFormat::Jsonl => jsonl_rows(name, text)?,
        PromptFormat::Csv => csv_rows(name, text)?,
        PromptFormat::Txt => lines(text).map(|(row, line)| RawRow::new(row, line.to_owned())).collect(),
    };
    if raw.is_empty() {
        return Err(PromptError::EmptyFile { file: name.to_owned() });
    }
    if let Some(empty) = raw.iter().find(|row| row.text.trim().is_empty()) {
        return Err(PromptError::EmptyPrompt { file: name.to_owned(), row: empty.row });
    }
    let rows = raw.len();
    let (raw, selection) = select_rows(name, class, raw)?;
    let mut parsed = ParsedFile {
        file: PromptFile {
            name: name.to_owned(),
            class,
            split: None,
            rows,
            prompts: 0,
            duplicates: 0,
            kept_duplicates: keep_duplicates,
            selection,
        },
        prompts: Vec::new(),
        rows: Vec::new(),
    };
    let mut seen = HashSet::new();
    for row in raw {
        let repeated = !seen.insert(normalised(&row.text));
        parsed.file.duplicates += usize::from(repeated);
        if keep_duplicates || !repeated {
            parsed.prompts.push(row.text.trim().to_owned());
            parsed.rows.push(row.row);
        }
    }
    parsed.file.prompts = parsed.prompts.len();
    Ok(parsed)
}

/// A row before anything is decided about it.
struct RawRow {
    row: Row,
    text: String,
    label: Option<String>,
    kind: Option<String>,
}

impl RawRow {
    fn new(row: Row, text: String) -> Self {
        Self { row, text, label: None, kind: None }
    }
}

/// The lines that are not blank.
fn lines(text: &str) -> impl Iterator<Item = (Row, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| (Row::Line(index + 1), line))
}

fn json_rows(name: &str, text: &str) -> Result<Vec<RawRow>, PromptError> {
    let value = serde_json::from_str(&without_python_constants(text)).map_err(|error| PromptError::Malformed {
        file: name.to_owned(),
        format: PromptFormat::Json,
        reason: error.to_string(),
    })?;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut object) => {
            let key = WRAPPER_KEYS
                .iter()
                .find_map(|wanted| object.keys().find(|key| key.eq_ignore_ascii_case(wanted)).cloned());
            match key.and_then(|key| object.remove(&key)) {
                Some(Value::Array(list)) => list,
                _ => {
                    return Err(PromptError::NoList { file: name.to_owned(), got: keys_of(object.keys()) });
                }
            }
        }
        other => {
            return Err(PromptError::NoList { file: name.to_owned(), got: kind_of(&other).to_owned() });
        }
    };
    list.into_iter().enumerate().map(|(index, value)| json_row(name, Row::Item(index + 1), value)).collect()
}

fn jsonl_rows(name: &str, text: &str) -> Result<Vec<RawRow>, PromptError> {
    lines(text)
        .map(|(row, line)| {
            let value = serde_json::from_str(&without_python_constants(line)).map_err(|error| {
                // serde_json counts lines from the start of this one.
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                PromptError::Malformed {
                    file: name.to_owned(),
                    format: PromptFormat::Jsonl,
                    reason: format!("{reason} at {row} column {}", error.column()),
                }
            })?;
            json_row(name, row, value)
        })
        .collect()
}

fn json_row(name: &str, row: Row, value: Value) -> Result<RawRow, PromptError> {
    let object = match value {
        Value::String(text) => return Ok(RawRow::new(row, text)),
        Value::Object(object) => object,
        other => {
            return Err(PromptError::NoPrompt { file: name.to_owned(), row, got: kind_of(&other).to_owned() });
        }
    };
    let find = |wanted: &str| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted));
    let text_of = |wanted: &str| find(wanted).and_then(|(_, value)| value.as_str()).map(str::to_owned);
    match PROMPT_KEYS.iter().find_map(|key| find(key)) {
        Some((_, Value::String(text))) => {
            Ok(RawRow { row, text: text.clone(), label: text_of("label"), kind: text_of("type") })
        }
        Some((key, other)) => Err(PromptError::NoPrompt {
            file: name.to_owned(),
            row,
            got: format!("{} under `{}`", kind_of(other), excerpt(key)),
        }),
        None => Err(PromptError::NoPrompt { file: name.to_owned(), row, got: keys_of(object.keys()) }),
    }
}

fn csv_rows(name: &str, text: &str) -> Result<Vec<RawRow>, PromptError> {
    let malformed =
        |reason: String| PromptError::Malformed { file: name.to_owned(), format: PromptFormat::Csv, reason };
    let text = text.replace("\r\n", "\n");
    if let Some(line) = unclosed_quote(&text) {
        return Err(malformed(format!("the quote that opens at line {line} is never closed")));
    }
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| malformed(error.to_string()))?.clone();
    let column = |wanted: &str| headers.iter().position(|header| header.trim().eq_ignore_ascii_case(wanted));
    let Some(prompt) = PROMPT_KEYS.iter().find_map(|key| column(key)) else {
        return Err(PromptError::NoColumn { file: name.to_owned(), got: keys_of(headers.iter()) });
    };
    let (label, kind) = (column("label"), column("type"));
    let mut counter = LineCounter::new(text.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(0, |position| counter.line_of_record(position.byte()));
            malformed(match error.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("expected {expected_len} fields at line {line}, got {len}")
                }
                _ => error.to_string(),
            })
        })?;
        let byte = record.position().map_or(0, csv::Position::byte);
        let field = |index: Option<usize>| index.and_then(|index| record.get(index)).map(str::to_owned);
        rows.push(RawRow {
            row: Row::Line(counter.line_of_record(byte)),
            text: field(Some(prompt)).unwrap_or_default(),
            label: field(label),
            kind: field(kind),
        });
    }
    Ok(rows)
}

/// Counts lines up to where a record starts. (The reader's own count does not step over blank lines.)
struct LineCounter<'a> {
    text: &'a [u8],
    counted: usize,
    line: usize,
}

impl<'a> LineCounter<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, counted: 0, line: 1 }
    }

    /// The line of the record before which the reader was at `byte`; records must come in order.
    fn line_of_record(&mut self, byte: u64) -> usize {
        let byte = usize::try_from(byte).unwrap_or(usize::MAX).min(self.text.len());
        let blank = self.text[byte..].iter().take_while(|&&b| b == b'\n' || b == b'\r').count();
        let start = byte + blank;
        if let Some(between) = self.text.get(self.counted..start) {
            self.line += count_newlines(between);
            self.counted = start;
        }
        self.line
    }
}

/// The line where a quoted CSV field opens that the end of the text does not close. The reader would take the
/// rest of the file for one prompt.
fn unclosed_quote(text: &str) -> Option<usize> {
    let mut opened = None;
    let (mut line, mut at_field_start) = (1, true);
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        line += usize::from(byte == b'\n');
        match (opened, byte) {
            (Some(_), b'"') if bytes.peek() == Some(&b'"') => {
                bytes.next();
            }
            (Some(_), b'"') => opened = None,
            (Some(_), _) => {}
            (None, b'"') if at_field_start => opened = Some(line),
            (None, _) => {}
        }
        at_field_start = matches!(byte, b',' | b'\n' | b'\r');
    }
    opened
}

/// `NaN`, `Infinity` and `-Infinity` outside strings, which Python writes into JSON, made `null`.
fn without_python_constants(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let (mut in_string, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        if !in_string
            && let Some(constant) =
                ["NaN", "Infinity", "-Infinity"].into_iter().find(|constant| rest.starts_with(constant))
        {
            clean.push_str("null");
            rest = &rest[constant.len()..];
            continue;
        }
        match (in_string, c) {
            _ if escaped => escaped = false,
            (true, '\\') => escaped = true,
            (_, '"') => in_string = !in_string,
            _ => {}
        }
        clean.push(c);
        rest = &rest[c.len_utf8()..];
    }
    clean
}

/// Of a file that marks rows as safe and unsafe, those of the class.
fn select_rows(
    name: &str,
    class: PromptClass,
    rows: Vec<RawRow>,
) -> Result<(Vec<RawRow>, Option<RowSelection>), PromptError> {
    let Some((column, is_unsafe)) = safety(&rows) else {
        return Ok((rows, None));
    };
    let wanted = class == PromptClass::Harmful;
    let kept = if wanted { "unsafe" } else { "safe" };
    let total = rows.len();
    let rows: Vec<_> =
        rows.into_iter().zip(is_unsafe).filter_map(|(row, is_unsafe)| (is_unsafe == wanted).then_some(row)).collect();
    if rows.is_empty() {
        return Err(PromptError::NoneOfClass {
            file: name.to_owned(),
            class,
            column: column.to_owned(),
            expected: kept.to_owned(),
            rows: total,
        });
    }
    let selection = RowSelection { column: column.to_owned(), kept: kept.to_owned(), skipped: total - rows.len() };
    Ok((rows, Some(selection)))
}

/// The column that marks rows, and which rows it marks as unsafe.
fn safety(rows: &[RawRow]) -> Option<(&'static str, Vec<bool>)> {
    let values = |get: fn(&RawRow) -> &Option<String>| -> Option<Vec<String>> {
        rows.iter().map(|row| get(row).as_ref().map(|value| value.trim().to_lowercase())).collect()
    };
    let (label, kind) = (values(|row| &row.label), values(|row| &row.kind));
    for (column, values) in [("label", &label), ("type", &kind)] {
        if let Some(values) = values
            && values.iter().all(|value| value == "safe" || value == "unsafe")
        {
            return Some((column, values.iter().map(|value| value == "unsafe").collect()));
        }
    }
    let is_unsafe: Vec<bool> = kind?.iter().map(|value| value.starts_with("contrast_")).collect();
    is_unsafe.contains(&true).then_some(("type", is_unsafe))
}

/// The order in which the published code draws, and our harmless test after it.
const PUBLISHED_ORDER: [(Split, PromptClass); 9] = [
    (Split::Train, PromptClass::PseudoHarmful),
    (Split::Train, PromptClass::Harmless),
    (Split::Train, PromptClass::Harmful),
    (Split::Val, PromptClass::PseudoHarmful),
    (Split::Val, PromptClass::Harmless),
    (Split::Val, PromptClass::Harmful),
    (Split::Test, PromptClass::PseudoHarmful),
    (Split::Test, PromptClass::Harmful),
    (Split::Test, PromptClass::Harmless),
];

/// The classes in the order in which one generator splits one file a class.
const CLASS_ORDER: [PromptClass; 3] = [PromptClass::PseudoHarmful, PromptClass::Harmless, PromptClass::Harmful];

impl Prompts {
    fn empty(source: PromptSource, files: Vec<PromptFile>) -> Self {
        Self {
            harmful: PromptSet::default(),
            pseudo_harmful: PromptSet::default(),
            harmless: PromptSet::default(),
            origin: PromptOrigin { source, files, seed: None, sizes: None, overlaps: Vec::new(), dropped: Vec::new() },
        }
    }

    /// The prompts of one class.
    pub fn class(&self, class: PromptClass) -> &PromptSet {
        match class {
            PromptClass::Harmful => &self.harmful,
            PromptClass::PseudoHarmful => &self.pseudo_harmful,
            PromptClass::Harmless => &self.harmless,
        }
    }

    fn class_mut(&mut self, class: PromptClass) -> &mut PromptSet {
        match class {
            PromptClass::Harmful => &mut self.harmful,
            PromptClass::PseudoHarmful => &mut self.pseudo_harmful,
            PromptClass::Harmless => &mut self.harmless,
        }
    }

    /// The prompts of one class and split.
    pub fn get(&self, class: PromptClass, split: Split) -> &[String] {
        self.class(class).get(split)
    }

    /// Puts together files that hold one split of one class each ([`PromptFile::split`] says which; a file
    /// without one counts as train), with all their prompts. [`Prompts::sample`] chooses among them.
    ///
    /// # Errors
    /// If a prompt is in two places and `overlap` forbids it ([`OverlapPolicy::RefuseInSample`] is left to
    /// [`Prompts::refuse_overlap`]), or dropping such prompts leaves a split empty.
    pub fn from_split_files(
        source: PromptSource,
        mut files: Vec<ParsedFile>,
        overlap: OverlapPolicy,
    ) -> Result<Self, PromptError> {
        files.sort_by_key(|parsed| (parsed.file.split, parsed.file.class));
        let mut found = overlaps_of(&files);
        let mut dropped = Vec::new();
        match overlap {
            OverlapPolicy::Refuse => refuse(found.iter().map(|hit| &hit.overlap))?,
            OverlapPolicy::RefuseInSample | OverlapPolicy::Keep => {}
            OverlapPolicy::Drop => {
                refuse(found.iter().map(|hit| &hit.overlap).filter(|o| o.first.class != o.second.class))?;
                for hit in std::mem::take(&mut found).into_iter().rev() {
                    let parsed = &mut files[hit.file];
                    parsed.prompts.remove(hit.index);
                    parsed.rows.remove(hit.index);
                    parsed.file.prompts -= 1;
                    dropped.push(hit.overlap);
                }
                dropped.reverse();
            }
        }
        let mut prompts = Self::empty(source, files.iter().map(|parsed| parsed.file.clone()).collect());
        prompts.origin.overlaps = found.into_iter().map(|hit| hit.overlap).collect();
        prompts.origin.dropped = dropped;
        for parsed in files {
            let (class, split) = (parsed.file.class, parsed.file.split.unwrap_or(Split::Train));
            if parsed.prompts.is_empty() {
                return Err(PromptError::NothingLeft { class, split });
            }
            prompts.class_mut(class).get_mut(split).extend(parsed.prompts);
        }
        Ok(prompts)
    }

    /// Splits one file a class: the seed shuffles each (pseudo-harmful, harmless, harmful, from one
    /// generator), then train takes from the front, then val, then test; [`SplitSizes::fit`] says how many.
    ///
    /// # Errors
    /// If a file has too few prompts, train or val is given none, or a prompt is in two classes and
    /// `overlap` is not [`OverlapPolicy::Keep`].
    pub fn from_class_files(
        files: [ParsedFile; 3],
        sizes: SplitSizes,
        seed: u64,
        overlap: OverlapPolicy,
    ) -> Result<Self, PromptError> {
        Self::split(PromptSource::Files, files, sizes, seed, overlap, SplitSizes::fit)
    }

    fn split(
        source: PromptSource,
        files: [ParsedFile; 3],
        sizes: SplitSizes,
        seed: u64,
        overlap: OverlapPolicy,
        fit: impl Fn(&SplitSizes, &str, usize) -> Result<SplitSizes, PromptError>,
    ) -> Result<Self, PromptError> {
        let found = overlaps_of(&files);
        if overlap != OverlapPolicy::Keep {
            refuse(found.iter().map(|hit| &hit.overlap))?;
        }
        let mut prompts = Self::empty(source, files.iter().map(|parsed| parsed.file.clone()).collect());
        prompts.origin.overlaps = found.into_iter().map(|hit| hit.overlap).collect();
        prompts.origin.seed = Some(seed);
        prompts.origin.sizes = Some(sizes);
        let mut random = PythonRandom::new(seed);
        for class in CLASS_ORDER {
            for parsed in files.iter().filter(|parsed| parsed.file.class == class) {
                // Repeated prompts would end in two splits.
                let mut seen = HashSet::new();
                let unique: Vec<&String> = parsed.prompts.iter().filter(|p| seen.insert(normalised(p))).collect();
                let fitted = fit(&sizes, &parsed.file.name, unique.len())?;
                let mut shuffled = random.sample_indices(unique.len(), unique.len()).into_iter();
                for split in Split::ALL {
                    let chosen = shuffled.by_ref().take(fitted.get(split));
                    prompts.class_mut(class).get_mut(split).extend(chosen.map(|index| unique[index].clone()));
                }
            }
        }
        Ok(prompts)
    }

    /// The prompts that come with the program, split with the published seed and sizes.
    pub fn bundled() -> Self {
        Self::bundled_with(SplitSizes::default(), PUBLISHED_SEED)
            .expect("the bundled prompts are part of the program and a test splits them")
    }

    /// The prompts that come with the program. Train and val take their sizes and test all the rest, unless
    /// that left test with fewer than val; then they are split as any file is.
    ///
    /// # Errors
    /// If train or val is given none.
    pub fn bundled_with(sizes: SplitSizes, seed: u64) -> Result<Self, PromptError> {
        let files = [
            ("bundled harmful.txt", include_str!("../../fixtures/prompts/harmful.txt"), PromptClass::Harmful),
            (
                "bundled pseudo_harmful.txt",
                include_str!("../../fixtures/prompts/pseudo_harmful.txt"),
                PromptClass::PseudoHarmful,
            ),
            ("bundled harmless.txt", include_str!("../../fixtures/prompts/harmless.txt"), PromptClass::Harmless),
        ]
        .map(|(name, text, class)| {
            parse(name, text, class, false).expect("the bundled prompts are part of the program and a test parses them")
        });
        let source = PromptSource::Bundled { version: BUNDLED_VERSION.to_owned() };
        Self::split(source, files, sizes, seed, OverlapPolicy::Refuse, |sizes, file, len| {
            let mut fitted = sizes.fit(file, len)?;
            let rest = len.saturating_sub(sizes.train.saturating_add(sizes.val));
            if sizes.test > 0 && rest >= sizes.val {
                fitted = SplitSizes { test: rest, ..*sizes };
            }
            Ok(fitted)
        })
    }

    /// Chooses `sizes` prompts a class with `random.sample` of Python seeded with `seed`, one generator going
    /// through the published order (see the top of this file). A set with fewer gives all it has, shuffled.
    /// Prompts that a seed has split already ([`PromptOrigin::seed`]) need no second choice.
    #[must_use]
    pub fn sample(&self, sizes: SplitSizes, seed: u64) -> Self {
        let mut random = PythonRandom::new(seed);
        let mut sampled = Self::empty(self.origin.source.clone(), self.origin.files.clone());
        for (split, class) in PUBLISHED_ORDER {
            let all = self.get(class, split);
            *sampled.class_mut(class).get_mut(split) = random
                .sample_indices(all.len(), sizes.get(split))
                .into_iter()
                .map(|index| all[index].clone())
                .collect();
        }
        sampled.origin.seed = Some(seed);
        sampled.origin.sizes = Some(sizes);
        sampled.origin.dropped.clone_from(&self.origin.dropped);
        let has = |place: &Place, wanted: &str| {
            place.split.is_none_or(|split| {
                let set = sampled.get(place.class, split);
                set.iter().any(|prompt| normalised(prompt) == wanted)
            })
        };
        let left: Vec<Overlap> = self
            .origin
            .overlaps
            .iter()
            .filter(|overlap| {
                let wanted = normalised(&overlap.prompt);
                has(&overlap.first, &wanted) && has(&overlap.second, &wanted)
            })
            .cloned()
            .collect();
        sampled.origin.overlaps = left;
        sampled
    }

    /// An error if a prompt is in two splits of a class or in two classes, as far as
    /// [`PromptOrigin::overlaps`] records it.
    ///
    /// # Errors
    /// If there is one; the error shows one.
    pub fn refuse_overlap(&self) -> Result<(), PromptError> {
        refuse(self.origin.overlaps.iter())
    }

    /// SHA-256 (hex) of the prompts: every class and split with its prompts in order, each length-prefixed.
    /// Where they come from does not count, so two ways to the same prompts agree.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        let mut put = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        put("lancet prompts 1");
        for class in PromptClass::ALL {
            for split in Split::ALL {
                let prompts = self.get(class, split);
                put(class.as_str());
                put(split.as_str());
                put(&prompts.len().to_string());
                prompts.iter().for_each(|prompt| put(prompt));
            }
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An overlap and the file and index of its second place.
struct Hit {
    overlap: Overlap,
    file: usize,
    index: usize,
}

/// Prompts that are in two files, in the order of the second place. Repeats within a file do not count.
fn overlaps_of(files: &[ParsedFile]) -> Vec<Hit> {
    let place = |file: usize, index: usize| {
        let parsed: &ParsedFile = &files[file];
        Place {
            class: parsed.file.class,
            split: parsed.file.split,
            at: parsed.rows.get(index).map(|&row| (parsed.file.name.clone(), row)),
        }
    };
    let mut seen: HashMap<String, (usize, usize)> = HashMap::new();
    let mut found = Vec::new();
    for (file, parsed) in files.iter().enumerate() {
        for (index, prompt) in parsed.prompts.iter().enumerate() {
            let &mut (first_file, first_index) = seen.entry(normalised(prompt)).or_insert((file, index));
            if first_file != file {
                found.push(Hit {
                    overlap: Overlap {
                        prompt: files[first_file].prompts[first_index].clone(),
                        first: place(first_file, first_index),
                        second: place(file, index),
                    },
                    file,
                    index,
                });
            }
        }
    }
    found
}

/// An error if there is an overlap; two classes are worse than two splits.
fn refuse<'a>(overlaps: impl Iterator<Item = &'a Overlap>) -> Result<(), PromptError> {
    let (classes, splits): (Vec<&Overlap>, Vec<&Overlap>) =
        overlaps.partition(|overlap| overlap.first.class != overlap.second.class);
    if let Some(&example) = classes.first() {
        return Err(PromptError::ClassOverlap { count: classes.len(), example: Box::new(example.clone()) });
    }
    match splits.first() {
        Some(&example) => Err(PromptError::SplitOverlap { count: splits.len(), example: Box::new(example.clone()) }),
        None => Ok(()),
    }
}

/// What two prompts share if they are the same: trimmed, case folded (upper, then lower, which also folds `ß`
/// and the final sigma), runs of white space made one space.
fn normalised(text: &str) -> String {
    let folded: String = text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    folded.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// CPython's `random.Random` for integer seeds: the same numbers as `random.seed(seed)` followed by
/// `random.sample` gives (checked against 3.11).
#[derive(Debug, Clone)]
pub struct PythonRandom {
    mt: Mt,
}

impl PythonRandom {
    /// `random.seed(seed)`: the 32-bit digits of the seed, least first, key the Mersenne Twister.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let mt = if high == 0 { Mt::new_with_key([low]) } else { Mt::new_with_key([low, high]) };
        Self { mt }
    }

    /// `random.getrandbits(bits)` for 1 to 64 bits: words from the least significant up, of the last the high
    /// bits.
    fn bits(&mut self, bits: u32) -> u64 {
        if bits <= 32 {
            return u64::from(self.mt.next_u32() >> (32 - bits));
        }
        let low = u64::from(self.mt.next_u32());
        low | u64::from(self.mt.next_u32() >> (64 - bits)) << 32
    }

    /// `random._randbelow_with_getrandbits(n)`: 0 to `n - 1`; 0 for an `n` of 0.
    fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        if n == 0 {
            return 0;
        }
        let bits = u64::BITS - n.leading_zeros();
        loop {
            let value = self.bits(bits);
            if value < n {
                return usize::try_from(value).expect("it is below a usize");
            }
        }
    }

    /// `random.sample(range(n), k)`, with `k` at most `n`: `k` different indices, in the order drawn.
    pub fn sample_indices(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        // From here on as CPython chooses: a list of all, or a set of those already taken.
        let mut set_size = 21;
        if k > 5 {
            let mut table = 1_usize;
            while table < k.saturating_mul(3) {
                table = table.saturating_mul(4);
            }
            set_size = table.saturating_add(set_size);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            (0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let chosen = pool[j];
                    pool[j] = pool[n - i - 1];
                    chosen
                })
                .collect()
        } else {
            let mut taken = HashSet::with_capacity(k);
            (0..k)
                .map(|_| {
                    loop {
                        let j = self.below(n);
                        if taken.insert(j) {
                            return j;
                        }
                    }
                })
                .collect()
        }
    }
}

fn count_newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

fn prompts(count: usize) -> String {
    match count {
        1 => "1 prompt is".to_owned(),
        _ => format!("{count} prompts are"),
    }
}

fn quoted<const N: usize>(names: [&str; N]) -> String {
    names.map(|name| format!("`{name}`")).join(", ")
}

fn keys_of(keys: impl Iterator<Item = impl AsRef<str>>) -> String {
    let keys: Vec<String> = keys.map(|key| format!("`{}`", excerpt(key.as_ref()))).collect();
    match keys.len() {
        0 => "nothing".to_owned(),
        1..=12 => keys.join(", "),
        more => format!("{} and {} more", keys[..12].join(", "), more - 12),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A prompt as an error shows it: one line, not too long, nothing that steers a terminal.
fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = line.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if line.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use PromptClass::{Harmful, Harmless, PseudoHarmful};
    use proptest::prelude::*;

    fn parsed(name: &str, text: &str) -> ParsedFile {
        parse(name, text, PseudoHarmful, false).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(name: &str, text: &str) -> String {
        let error = parse(name, text, PseudoHarmful, false).expect_err(text);
        assert!(error.hint().is_some());
        error.to_string()
    }

    fn numbered(what: &str, count: usize) -> String {
        (0..count).map(|i| format!("{what} {i}\n")).collect()
    }

    fn file(name: &str, class: PromptClass, split: Option<Split>, text: &str) -> ParsedFile {
        let mut parsed = parse(name, text, class, false).unwrap();
        parsed.file.split = split;
        parsed
    }

    fn given(files: Vec<ParsedFile>, overlap: OverlapPolicy) -> Result<Prompts, PromptError> {
        Prompts::from_split_files(PromptSource::Files, files, overlap)
    }

    #[test]
    fn json_takes_strings_objects_and_wrappers() {
        let json =
            r#"[" a ", {"PROMPT": "no", "Instruction": "b"}, {"text": "no", "goal": "c\n"}, {"text": "d", "x": NaN}]"#;
        let expected = parsed("x.json", json);
        assert_eq!(expected.prompts, ["a", "b", "c", "d"]);
        assert_eq!(expected.rows[3], Row::Item(4));
        for wrapped in
            [format!("\u{feff}{{\"Data\": {json}}}"), format!("{{\"n\": -Infinity,\r\n\"prompts\": {json}}}")]
        {
            assert_eq!(parsed("x.JSON", &wrapped).prompts, expected.prompts);
        }
        assert_eq!(parsed("x.json", r#"["a NaN \" NaN", "Infinity"]"#).prompts, ["a NaN \" NaN", "Infinity"]);
    }

    #[test]
    fn jsonl_takes_a_value_a_line() {
        let file = parsed("x.jsonl", "\u{feff}\"a\"\r\n\r\n{\"goal\": \"b\", \"v\": NaN}\r\n");
        assert_eq!(file.prompts, ["a", "b"]);
        assert_eq!(file.rows, [Row::Line(1), Row::Line(3)]);
    }

    #[test]
    fn csv_takes_the_headers_of_the_published_sets() {
        // In the order of OKTest, JailbreakBench, OR-Bench.
        for (text, rows) in [
            ("prompt\n\"a, b?\n\"\n\"c\n\"\n", [2, 4]),
            (",Goal,Target\n0,\"a, b?\",Sure\n1,c,Sure\n", [2, 3]),
            ("\u{feff}prompt,category\r\n\"a, b?\",x\r\n\r\nc,y\r\n", [2, 4]),
            ("text, Instruction \nno,\"a, b?\"\nno,c", [2, 3]),
        ] {
            let file = parsed("x.csv", text);
            assert_eq!(file.prompts, ["a, b?", "c"]);
            assert_eq!(file.rows, rows.map(Row::Line), "{text}");
        }
    }

    #[test]
    fn txt_is_a_prompt_a_line() {
        let file = parsed("a.b/x.txt", "\u{feff}# a\r\n\r\n  b,\"c\"  \r\n \t\r\nd");
        assert_eq!(file.prompts, ["# a", "b,\"c\"", "d"]);
        assert_eq!(file.rows, [Row::Line(1), Row::Line(3), Row::Line(5)]);
    }

    #[test]
    fn repeated_prompts_are_counted_and_the_first_is_kept() {
        let text = "Straße 1\nb\n STRASSE  1\nB\nc\n";
        let file = parsed("x.txt", text);
        assert_eq!(file.prompts, ["Straße 1", "b", "c"]);
        assert_eq!((file.file.rows, file.file.prompts, file.file.duplicates), (5, 3, 2));
        let kept = parse("x.txt", text, Harmful, true).unwrap();
        assert_eq!((kept.prompts.len(), kept.file.duplicates), (5, 2));
    }

    #[test]
    fn marked_rows_are_taken_by_class() {
        let xstest = "id_v1,type,prompt\n1,homonyms,a\n2,contrast_homonyms,b\n3,definitions,c\n";
        let labelled = "prompt,type,label\na,x,Safe\nb,contrast_x,unsafe\nc,y,safe\n";
        let json = r#"[{"text":"a","label":"safe"},{"text":"b","label":"unsafe"},{"text":"c","label":"safe"}]"#;
        for (name, text, column) in [("x.csv", xstest, "type"), ("x.csv", labelled, "label"), ("x.json", json, "label")]
        {
            let safe = parsed(name, text);
            assert_eq!(safe.prompts, ["a", "c"]);
            let unsafe_rows = parse(name, text, Harmful, false).unwrap();
            assert_eq!(unsafe_rows.prompts, ["b"]);
            assert_eq!(
                unsafe_rows.file.selection,
                Some(RowSelection { column: column.to_owned(), kept: "unsafe".to_owned(), skipped: 2 })
            );
            assert_eq!(safe.file.selection.unwrap().skipped, 1);
        }
        // Another meaning of the headers marks nothing.
        assert_eq!(parsed("x.csv", "prompt,label,type\na,safe,x\nb,,y\n").file.selection, None);
        let error = parse("x.csv", "prompt,label\na,safe\n", Harmful, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`x.csv` holds no harmful prompts: the column `label` marks none of its 1 rows as unsafe"
        );
    }

    #[test]
    fn what_is_not_a_prompt_set_is_refused_with_file_and_row() {
        let table = [
            ("x.json", "", "`x.json` holds no prompts"),
            ("x.json", "[]", "`x.json` holds no prompts"),
            ("x.csv", "prompt\n", "`x.csv` holds no prompts"),
            ("x.txt", " \n\n", "`x.txt` holds no prompts"),
            ("x.txt", "\u{feff}", "`x.txt` holds no prompts"),
            (
                "x",
                "a",
                "the format of `x` is not known: expected the extension `json`, `jsonl`, `csv` or `txt`, got none",
            ),
            (
                "a.b/x",
                "a",
                "the format of `a.b/x` is not known: expected the extension `json`, `jsonl`, `csv` or `txt`, got none",
            ),
            ("x.json", "[\"a\", \" \"]", "`x.json`, item 2: the prompt is empty"),
            ("x.csv", "prompt,n\na,1\n,2\n", "`x.csv`, line 3: the prompt is empty"),
            (
                "x.json",
                "[\"a\", 3]",
                "`x.json`, item 2: expected a string or an object with a string under `instruction`, `prompt`, `goal`, `text`, got a number",
            ),
            (
                "x.jsonl",
                "\"a\"\n{\"goal\": null}",
                "`x.jsonl`, line 2: expected a string or an object with a string under `instruction`, `prompt`, `goal`, `text`, got null under `goal`",
            ),
            (
                "x.json",
                "[{\"a\": 1, \"b\": 2}]",
                "`x.json`, item 1: expected a string or an object with a string under `instruction`, `prompt`, `goal`, `text`, got `a`, `b`",
            ),
            (
                "x.json",
                "{\"rows\": []}",
                "`x.json` holds no list of prompts: expected a list, or an object with `data` or `prompts`, got `rows`",
            ),
            ("x.json", "[\"a\"", "`x.json` is not valid JSON: EOF while parsing a list at line 1 column 4"),
            ("x.jsonl", "\"a\"\n{\"goal\": }", "`x.jsonl` is not valid JSON Lines: expected value at line 2 column 10"),
            (
                "x.csv",
                "a,b\n1,2\n",
                "`x.csv` has no column of prompts: expected the header `instruction`, `prompt`, `goal`, `text`, got `a`, `b`",
            ),
            ("x.csv", "prompt,n\na,1\n\nb\n", "`x.csv` is not valid CSV: expected 2 fields at line 4, got 1"),
            (
                "x.csv",
                "prompt\na\n\"b\nc\nd\n",
                "`x.csv` is not valid CSV: the quote that opens at line 3 is never closed",
            ),
        ];
        for (name, text, message) in table {
            assert_eq!(refused(name, text), message);
        }
        assert!(parse("x.json", &"[".repeat(100_000), Harmful, false).is_err());
        assert!(decode("x", b"a\n\xff").unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn errors_show_prompts_on_one_short_line() {
        assert_eq!(excerpt("a\n\u{1b}[2J  b"), "a \u{fffd}[2J b");
        assert_eq!(excerpt(&"x".repeat(100)).chars().count(), 81);
    }

    #[test]
    fn overlaps_are_found_across_splits_and_classes() {
        let train = file("h.txt", Harmful, Some(Split::Train), "a\nb\nc\n");
        let val = file("v.txt", Harmful, Some(Split::Val), "d\n B \ne\nA\n");
        let other = file("o.txt", Harmless, Some(Split::Train), "f\nC\n");
        let message = given(vec![val.clone(), train.clone()], OverlapPolicy::Refuse).unwrap_err().to_string();
        assert_eq!(
            message,
            "2 prompts are in two splits of a class: for example `b` in harmful train (`h.txt`, line 2) and in harmful val (`v.txt`, line 2)"
        );
        let dropped = given(vec![val.clone(), train.clone()], OverlapPolicy::Drop).unwrap();
        assert_eq!(dropped.harmful.val, ["d", "e"]);
        assert_eq!(dropped.origin.dropped.len(), 2);
        assert_eq!(dropped.origin.files[1].prompts, 2);
        for policy in [OverlapPolicy::Refuse, OverlapPolicy::Drop] {
            let error = given(vec![train.clone(), val.clone(), other.clone()], policy).unwrap_err();
            assert!(matches!(error, PromptError::ClassOverlap { count: 1, .. }), "{error}");
        }
        let kept = given(vec![train.clone(), val, other], OverlapPolicy::Keep).unwrap();
        assert_eq!((kept.harmful.val.len(), kept.origin.overlaps.len()), (4, 3));
        assert!(kept.refuse_overlap().is_err());
        let same = file("v.txt", Harmful, Some(Split::Val), "a\n");
        let error = given(vec![train, same], OverlapPolicy::Drop).unwrap_err();
        assert_eq!(error.to_string(), "every harmful val prompt is in an earlier split too");
    }

    #[test]
    fn one_file_a_class_is_split_by_the_seed() {
        let sizes = SplitSizes { train: 4, val: 2, test: 3 };
        let files = || {
            [
                file("h.txt", Harmful, None, &numbered("h", 7)),
                file("p.txt", PseudoHarmful, None, &numbered("p", 10)),
                file("l.txt", Harmless, None, &numbered("l", 8)),
            ]
        };
        let prompts = Prompts::from_class_files(files(), sizes, 1, OverlapPolicy::Refuse).unwrap();
        // random.seed(1); [random.sample(range(n), n)[:4] for n in (10, 8, 7)]
        assert_eq!(prompts.pseudo_harmful.train, ["p 2", "p 1", "p 4", "p 0"]);
        assert_eq!(prompts.harmless.train[..3], ["l 1", "l 3", "l 0"]);
        assert_eq!(prompts.harmful.train, ["h 2", "h 5"]);
        assert_eq!(prompts.pseudo_harmful.test.len(), 3);
        assert_eq!((prompts.harmful.train.len(), prompts.harmful.val.len(), prompts.harmful.test.len()), (2, 1, 4));
        assert_eq!(prompts.origin.seed, Some(1));

        // Repeated prompts never end in two splits, even where they were kept on reading.
        let mut files = files();
        files[0] = parse("h.txt", &numbered("h", 7).repeat(2), Harmful, true).unwrap();
        let again = Prompts::from_class_files(files, sizes, 1, OverlapPolicy::Refuse).unwrap();
        assert_eq!(again.harmful, prompts.harmful);
        assert_eq!(again.fingerprint(), prompts.fingerprint());
    }

    #[test]
    fn sizes_fit_small_files() {
        let fit = |sizes: SplitSizes, len| sizes.fit("x", len).map(|s| (s.train, s.val, s.test));
        let published = SplitSizes::default();
        assert_eq!(fit(published, 1000).unwrap(), (128, 32, 128));
        assert_eq!(fit(published, 288).unwrap(), (128, 32, 128));
        assert_eq!(fit(published, 200).unwrap(), (88, 22, 90));
        assert_eq!(fit(published, 6).unwrap(), (2, 1, 3));
        assert!(matches!(fit(published, 5), Err(PromptError::TooFewToSplit { got: 5, .. })));
        let no_test = SplitSizes { test: 0, ..published };
        assert_eq!(fit(no_test, 10).unwrap(), (7, 3, 0));
        let no_val = SplitSizes { val: 0, ..published };
        assert!(matches!(fit(no_val, 10), Err(PromptError::ZeroSize { split: Split::Val })));
    }

    #[test]
    fn the_published_draw_is_reproduced() {
        let mut files = Vec::new();
        for (letter, class, sizes) in
            [("p", PseudoHarmful, [1055, 132, 132]), ("l", Harmless, [2000, 500, 500]), ("h", Harmful, [260, 39, 572])]
        {
            for (split, size) in Split::ALL.into_iter().zip(sizes) {
                files.push(file("x.txt", class, Some(split), &numbered(&format!("{letter} {split}"), size)));
            }
        }
        let all = given(files, OverlapPolicy::Refuse).unwrap();
        let chosen = all.sample(SplitSizes::default(), PUBLISHED_SEED);
        let ends = |class, split| {
            let set = chosen.get(class, split);
            (set[0].as_str(), set[set.len() - 1].as_str())
        };
        // Printed by CPython 3.11 from random.seed(1) and random.sample in the published order.
        let expected = [
            ("p train 275", "p train 931"),
            ("l train 1438", "l train 37"),
            ("h train 80", "h train 28"),
            ("p val 64", "p val 74"),
            ("l val 457", "l val 240"),
            ("h val 9", "h val 17"),
            ("p test 110", "p test 41"),
            ("h test 168", "h test 208"),
            ("l test 369", "l test 83"),
        ];
        for ((split, class), expected) in PUBLISHED_ORDER.into_iter().zip(expected) {
            assert_eq!(ends(class, split), expected);
        }
        let joined: Vec<&str> =
            PUBLISHED_ORDER.iter().flat_map(|&(split, class)| chosen.get(class, split)).map(String::as_str).collect();
        assert_eq!(sha256(&joined.join("\n")), "d10bd6bf3e8ffc68ea52a1397ec65cf122a29da8cf99a2e845866f8ffc80e962");
        assert_eq!(chosen.origin.sizes, Some(SplitSizes::default()));
    }

    #[test]
    fn the_bundled_prompts_parse_and_split() {
        let prompts = Prompts::bundled();
        for class in PromptClass::ALL {
            let set = prompts.class(class);
            assert!(set.train.len() >= 64 && set.val.len() >= 16 && set.test.len() >= set.val.len(), "{class}");
        }
        for file in &prompts.origin.files {
            assert_eq!(file.duplicates, 0, "{}", file.name);
            let set = prompts.class(file.class);
            assert_eq!(set.train.len() + set.val.len() + set.test.len(), file.prompts);
        }
        assert!(prompts.origin.notes().is_empty());
        assert!(!BUNDLED_VERSION.is_empty());
        let no_test = SplitSizes { test: 0, ..SplitSizes::default() };
        assert!(Prompts::bundled_with(no_test, 7).unwrap().harmful.test.is_empty());
    }

    #[test]
    fn the_fingerprint_sees_prompts_order_class_and_split_but_not_origin() {
        let mut prompts = Prompts::bundled();
        let before = prompts.fingerprint();
        assert_eq!(before.len(), 64);
        prompts.origin.seed = None;
        assert_eq!(prompts.fingerprint(), before);
        let other = {
            let mut other = prompts.clone();
            other.harmful.train.swap(0, 1);
            other
        };
        assert_ne!(other.fingerprint(), before);
        let moved = prompts.harmful.test.remove(0);
        prompts.harmful.val.push(moved);
        assert_ne!(prompts.fingerprint(), before);
    }

    #[test]
    fn prompts_survive_json() {
        let prompts = Prompts::bundled();
        let json = serde_json::to_string(&prompts).unwrap();
        assert_eq!(serde_json::from_str::<Prompts>(&json).unwrap(), prompts);
        assert_eq!(serde_json::to_string(&PseudoHarmful).unwrap(), "\"pseudo_harmful\"");
        assert_eq!(
            (PseudoHarmful.to_string(), PseudoHarmful.as_str()),
            ("pseudo-harmful".to_owned(), "pseudo_harmful")
        );
    }

    #[test]
    fn notes_say_what_was_left_out() {
        let text = "type,prompt\ncontrast_x,a\nx,b\ncontrast_y,A\ncontrast_y,c\n";
        let train = file("x.csv", Harmful, Some(Split::Train), text);
        let test = file("y.txt", Harmful, Some(Split::Test), "c\nd\n");
        let prompts = given(vec![train, test], OverlapPolicy::Drop).unwrap();
        assert_eq!(
            prompts.origin.notes(),
            [
                "`x.csv`: took the 3 rows that the column `type` marks as unsafe, for harmful; skipped 1",
                "`x.csv`: 1 of 3 prompts repeat an earlier one and were left out",
                "1 prompt is in two places and left out of the second: for example `c` in harmful train (`x.csv`, line 5) and in harmful test (`y.txt`, line 1)",
            ]
        );
    }

    fn sha256(text: &str) -> String {
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    // What follows was printed by CPython 3.11.7 (`random.Random(seed)`, `sample(range(n), k)`).

    /// A seed, and for each of [`CASES`], drawn one after another: the first four, and SHA-256 of all.
    type Drawn = (u64, [([usize; 4], &'static str); 11]);

    const CASES: [(usize, usize); 11] = [
        (260, 128),
        (100, 32),
        (2000, 128),
        (1055, 128),
        (30, 30),
        (21, 5),
        (22, 5),
        (22, 6),
        (85, 6),
        (86, 6),
        (1000000, 20),
    ];

    const DRAWN: [Drawn; 4] = [
        (
            0,
            [
                ([197, 215, 20, 132], "6c157486292824885a93d91ce57556f9e8ece166e7dc489258738a6146e48ad5"),
                ([10, 41, 78, 14], "db15600e216a05f2cdbccd1cfcaefb301b252edd467a5ebdca34848f972dbfe7"),
                ([758, 1707, 237, 74], "b7167d2dbab04867d924e3b30f46f33b3ea2bd843e8b5d3087d3072144ce1642"),
                ([490, 456, 917, 775], "b681f3fa3e8c87652122030d629bc00d4b43baee0c4751acf05b61dfec19d43c"),
                ([11, 7, 8, 18], "4a8ee96f81b9878c0bb535004157bbc76d42024e349c806c66b3e94bd2b72c66"),
                ([19, 15, 4, 12], "a159dd588f08d937303a969a771869d9597ef88344f2d40c59df5bc4b5cc54a4"),
                ([16, 15, 21, 10], "5b3fa3be0362a076649d6105840c51cd341b5fc7a081e05da0071422c0ceaa34"),
                ([21, 6, 17, 7], "5000e638842b3612c249c5d807bbb32a567dad8d31747ec04a039d2cc5ca04af"),
                ([40, 41, 4, 67], "4568f12cd1756bf5c1b2340409fc8b0f379d25eb3e309f2c513bfd06d7219b9f"),
                ([77, 19, 48, 74], "a690cfd6f3046b796fc2d9fe21fddedf5149e0be7c51b6ecb318ebc560abe32e"),
                ([69582, 838803, 88754, 541618], "becf1f267f856dbbbdd7d013131cc5ea554ea6a4f0a915aed3878efbe08690f3"),
            ],
        ),
        (
            1,
            [
                ([68, 32, 130, 60], "0c63d078e83c0017fff5b1c163a21dad7e3b6ced20668a74363c28334b84adee"),
                ([16, 66, 71, 26], "3868ed6ec30ec85c92cfbc141b38fa563453c7578129ef22b469ea0d3ae8da05"),
                ([1723, 1932, 1378, 144], "41d92312522567ca2924cb0be504d7ea3d4d201db7cc9e7f414d4d8d88c8dc42"),
                ([1042, 76, 774, 410], "2df6e0071b94f6d3bb6129e2f76c47b631843af10071e86590ffd759c1e1ce14"),
                ([25, 27, 18, 9], "bd980adfe5139f4ce875811840471faf7c1f4b3dc4b205477bca237aa8172b99"),
                ([4, 3, 16, 10], "4c3aff0ad8cd823db416b6462167281562853d066f3e12492282c5234acf0953"),
                ([16, 21, 5, 4], "1c2da53d378d63872d02516597f5e318d4bf0c93e80d232b075d76297429ee53"),
                ([9, 3, 16, 21], "3fadb6d36f3c13e5aeb6b58398862fe120918763788e9332f461384d2e296369"),
                ([18, 69, 4, 40], "134085de940252b0c5d2bdfc565c7afae2a2c25733134ec61fc350548bb34655"),
                ([26, 22, 38, 55], "91ca90b6e3697d3bfddefbbb9ec988944cd6a7fe5bb0f462caf5f2333e6c931b"),
                ([50917, 749547, 903976, 700216], "a314416803abcbcc969085e771aac768ad57c2a41c59f122bd1bc3b8c5c5abc2"),
            ],
        ),
        (
            42,
            [
                ([57, 12, 140, 125], "25001a577c66eda9d5798f3682d1152e958d59da87709218b2a49a1969e0426c"),
                ([17, 65, 63, 11], "2875684b327c2bed9a4a0263b96a653c74517c3165fa22f1c99d18d91ec4a6d8"),
                ([1990, 1025, 1560, 365], "c014ee044b014892a55d141cabd83a349c4ac556614f28fc710d7aa4dd66dde5"),
                ([110, 201, 124, 824], "1909d7885d203760883ab434638cf3687d076b3f819e45d333715fa68156760f"),
                ([11, 24, 17, 13], "699f793a2b8f121a988dbb0eb8e92b5969971d4d153ce3f196073df2902200c7"),
                ([9, 7, 19, 0], "7c6139661765f3c7f3f8c0c6a68ae84242ca5c42ce6c16181c32cad7d38aab92"),
                ([12, 10, 8, 2], "1385bd7e78c5250ee6b00fee8721aa36b5b44e915cfea96ee976b20d9ff45a6d"),
                ([20, 16, 12, 17], "96b9f9111b139d9ba674c7debcf361e868c5a7e0064d1c0135b32a5d49024f22"),
                ([14, 33, 22, 74], "df573eb9f2cf3a226c72d0252f02775d285c4facb96e4c8878f1ab3f747b46ef"),
                ([13, 76, 55, 44], "6a8e0ecd49095eb0a79287276fdb2091c55c7a64b1e77f72a8d60bfef8b26d66"),
                ([536265, 121263, 403906, 943199], "3bfc7d4870fefa89a44cd959cc70c8fcdb25d7c708dd2da3525cf377007108fb"),
            ],
        ),
        (
            1099511627783,
            [
                ([243, 128, 64, 192], "01ac2141c0d638aa68a9ff6327f036cafdc018cd34cb3e59f7f20f8134d11243"),
                ([37, 74, 67, 16], "d8ee6bfa2664d02b9a8b2f4d36363835bb29898992270cf800a7ad67d2a51baa"),
                ([1052, 1999, 1936, 1165], "5746dd3d371fce72c8b8ee4afd51e881adceb300aa1ae73edfed33be541f6fd2"),
                ([633, 400, 805, 635], "8aadeca6f6276aefd37f30f162c9f3c3813c07b5dc25832ba9bfe664a352fa93"),
                ([23, 21, 27, 0], "a6e078479fd87a5172fa002a86643981913363bcdfd20a02b5a4848d0ce5134f"),
                ([16, 19, 15, 4], "ef1c8f69c576918513572295c385de52ff31045b7e513b81b667f1eae6a3785d"),
                ([8, 9, 2, 14], "6ec92301cfc685638befdfcf494b815d2141c67049be429939d81c15d5f37328"),
                ([5, 0, 14, 6], "20b2e8427ad290cfa52b03c2d51942cc69fe02faa3d361656fe74ba0b4c6099c"),
                ([26, 19, 21, 77], "972e58c3ab768f7161f13364e388f87668c1480d8078f7b4d58c80ab3ff12883"),
                ([51, 46, 15, 30], "e2c2a38a532dc97e343eb08dd14ec64d56622161abd6d2dde86089e235a7aef1"),
                ([73360, 833832, 412457, 661659], "6387abc673cfd4493cb2756d6237559712ff8c718327caf704f972eff095f20e"),
            ],
        ),
    ];
    const SEED_1_260_128: [usize; 128] = [
        68, 32, 130, 60, 253, 194, 115, 120, 166, 97, 201, 53, 24, 124, 7, 228, 213, 99, 110, 155, 195, 196, 0, 178,
        114, 259, 184, 205, 58, 151, 26, 81, 245, 5, 6, 251, 138, 2, 250, 175, 55, 108, 185, 227, 135, 56, 239, 112,
        126, 141, 59, 88, 209, 173, 214, 254, 117, 74, 226, 106, 142, 164, 25, 47, 161, 217, 75, 30, 190, 85, 233, 182,
        128, 218, 129, 171, 48, 77, 72, 150, 127, 204, 100, 180, 8, 122, 62, 103, 200, 170, 44, 93, 140, 95, 22, 212,
        257, 27, 41, 133, 177, 94, 125, 216, 252, 11, 78, 230, 148, 159, 43, 149, 187, 231, 3, 51, 223, 167, 207, 172,
        131, 208, 90, 203, 234, 1, 98, 139,
    ];
    const SEED_1_THEN_100_32: [usize; 32] = [
        16, 66, 71, 26, 54, 7, 61, 46, 72, 70, 25, 64, 52, 62, 45, 53, 44, 0, 68, 69, 79, 78, 42, 58, 3, 29, 22, 90,
        23, 11, 32, 4,
    ];
    const SEED_0_2000_20: [usize; 20] =
        [1729, 788, 1552, 1823, 861, 82, 530, 1977, 1047, 995, 829, 1880, 1605, 1699, 621, 1982, 976, 733, 1194, 1826];

    #[test]
    fn python_samples_are_reproduced() {
        for (seed, drawn) in DRAWN {
            let mut random = PythonRandom::new(seed);
            for ((n, k), (first, digest)) in CASES.into_iter().zip(drawn) {
                let sample = random.sample_indices(n, k);
                assert_eq!(sample[..4], first, "seed {seed}, {k} of {n}");
                let joined: Vec<String> = sample.iter().map(usize::to_string).collect();
                assert_eq!(sha256(&joined.join(",")), digest, "seed {seed}, {k} of {n}");
            }
        }
        let mut random = PythonRandom::new(1);
        assert_eq!(random.sample_indices(260, 128), SEED_1_260_128);
        assert_eq!(random.sample_indices(100, 32), SEED_1_THEN_100_32);
        assert_eq!(PythonRandom::new(0).sample_indices(2000, 20), SEED_0_2000_20);
    }

    #[test]
    fn python_bits_are_reproduced() {
        // [random._randbelow(n) for n in ..] after random.seed(1) and random.seed(2**40 + 7)
        let bounds = [1, 2, 3, 7, 100, 1000, 1 << 31, 1 << 32, (1 << 33) + 1, 1 << 40];
        for (seed, expected) in [
            (1, [0, 0, 1, 0, 63, 779, 1930549411, 901749037, 2095328386, 950861988493]),
            ((1 << 40) + 7, [0, 1, 2, 1, 66, 384, 1559734921, 1688693473, 8147535604, 978798470615]),
        ] {
            let mut random = PythonRandom::new(seed);
            assert_eq!(bounds.map(|n| random.below(n)), expected);
        }
    }

    fn any_name() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["x.json", "x.jsonl", "x.csv", "x.txt"])
    }

    proptest! {
        #[test]
        fn parsing_never_panics(name in any_name(), text in "(?s).{0,200}", keep in any::<bool>()) {
            let _ = parse(name, &text, Harmful, keep);
        }

        #[test]
        fn parsing_what_looks_right_never_panics(
            name in any_name(),
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "[", "]", "{", "}", "\"", ",", ":", "\n", "\r\n", "\\", "NaN", "-Infinity", "null", "prompt", "\"goal\"",
                    "label", "type", "safe", "unsafe", "contrast_", "é", "\u{feff}", " ", "1",
                ]),
                0..60,
            ),
        ) {
            let text = pieces.concat();
            if let Ok(file) = parse(name, &text, Harmful, false) {
                prop_assert!(!file.prompts.is_empty());
                prop_assert_eq!(file.prompts.len(), file.rows.len());
                prop_assert!(file.prompts.iter().all(|p| !p.is_empty() && p.trim() == p));
            } else if let Err(error) = decode(name, text.as_bytes()) {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn bytes_are_text_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(decode("x", &bytes).is_ok(), std::str::from_utf8(&bytes).is_ok());
        }

        #[test]
        fn every_format_gives_back_what_was_written(
            words in prop::collection::vec("[a-z,\"'#\\\\ é]{0,12}", 1..12),
            crlf in any::<bool>(),
        ) {
            let prompts: Vec<String> = words.iter().enumerate().map(|(i, word)| format!("{i} {word}").trim().to_owned()).collect();
            let end = if crlf { "\r\n" } else { "\n" };
            let quoted = |p: &String| serde_json::to_string(p).unwrap();
            let csv_field = |p: &String| format!("7,\"{}\"", p.replace('"', "\"\""));
            let lines = |f: &dyn Fn(&String) -> String| prompts.iter().map(f).collect::<Vec<_>>();
            for (name, text) in [
                ("x.txt", lines(&|p| p.clone()).join(end)),
                ("x.json", format!("[{end}{}{end}]", lines(&quoted).join(&format!(",{end}")))),
                ("x.jsonl", lines(&|p| format!("{{\"prompt\": {}}}", quoted(p))).join(end)),
                ("x.csv", format!("n,Prompt{end}{}", lines(&csv_field).join(end))),
            ] {
                let file = parse(name, &text, Harmless, true).unwrap();
                prop_assert_eq!(&file.prompts, &prompts, "{}", name);
            }
        }

        #[test]
        fn a_sample_holds_different_indices(seed in any::<u64>(), n in 0usize..400, k in 0usize..400) {
            let sample = PythonRandom::new(seed).sample_indices(n, k);
            prop_assert_eq!(sample.len(), k.min(n));
            let different: HashSet<usize> = sample.iter().copied().collect();
            prop_assert_eq!(different.len(), sample.len());
            prop_assert!(sample.iter().all(|&index| index < n));
        }

        #[test]
        fn fitted_sizes_use_what_is_there(
            train in 1usize..300, val in 1usize..300, test in 0usize..300, len in 6usize..1000,
        ) {
            let sizes = SplitSizes { train, val, test };
            let fitted = sizes.fit("x", len).unwrap();
            prop_assert!(fitted.train >= 1 && fitted.val >= 1 && (fitted.test >= 1) == (test > 0));
            prop_assert_eq!(fitted.train + fitted.val + fitted.test, len.min(train + val + test));
        }
    }
}
