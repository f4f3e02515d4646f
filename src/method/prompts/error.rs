//! What is wrong with a prompt set, and what to do about it.

use super::text::{count_of_prompts, quoted};
use super::{MIN_PROMPTS_TO_SPLIT, Overlap, PROMPT_KEYS, PromptClass, PromptFormat, Row, Split};

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
    /// Another kind of file, as its first bytes tell.
    #[error("`{file}` is {what}, which is not read")]
    OtherKind {
        /// The file.
        file: String,
        /// What it is.
        what: Packed,
    },
    /// A row says more than a prompt can hold.
    #[error("`{file}`, {row}: there is something under `{key}`, which would be lost")]
    Beside {
        /// The file.
        file: String,
        /// Where.
        row: Row,
        /// The key or column.
        key: String,
    },
    /// A conversation that is not one question.
    #[error("`{file}`, {row}: expected a conversation with one user turn, got {got}")]
    Conversation {
        /// The file.
        file: String,
        /// Where.
        row: Row,
        /// What is there.
        got: String,
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
    /// A row of a guard set that is not of its form.
    #[error("`{file}`, {row}: {reason}")]
    GuardRow {
        /// The file.
        file: String,
        /// Where.
        row: Row,
        /// What is wrong.
        reason: String,
    },
    /// Contrasts of which nothing tells which are unsafe.
    #[error("`{file}` does not tell safe prompts from unsafe ones")]
    NotMarked {
        /// The file.
        file: String,
    },
    /// A prompt in two splits of a class.
    #[error("{} in two splits of a class: for example {example}", count_of_prompts(*count))]
    SplitOverlap {
        /// How many.
        count: usize,
        /// One of them.
        example: Box<Overlap>,
    },
    /// A prompt in two classes.
    #[error("{} in two classes: for example {example}", count_of_prompts(*count))]
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
            Self::UnknownFormat { file, .. } if file.to_ascii_lowercase().ends_with(".parquet") => {
                return Some(convert(file));
            }
            Self::OtherKind { file, what: Packed::Parquet } => return Some(convert(file)),
            Self::OtherKind { what: Packed::Utf16, .. } => "save the file as UTF-8",
            Self::OtherKind { .. } => "unpack it, and give the text file in it",
            Self::Beside { .. } => {
                "a prompt is one user turn: give the system prompt of all with `--system`, and remove the rows that need another"
            }
            Self::Conversation { .. } => {
                "keep the rows that ask one thing, without a system prompt; `--system` gives one to all"
            }
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
            Self::GuardRow { .. } => "`fixtures/prompts/README.md` has the form of each guard set",
            Self::NotMarked { .. } => {
                "a column `label` holds `safe` or `unsafe`, or `type` begins with `contrast_` where a prompt is unsafe, as in \
                 XSTest; or give a JSON list of objects with `safe` and `unsafe`"
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

/// What a file is that holds prompts in a form that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// Apache Parquet.
    Parquet,
    /// UTF-16, in either byte order.
    Utf16,
    /// Compressed by gzip.
    Gzip,
    /// A zip archive, which spreadsheets are too.
    Zip,
}

impl std::fmt::Display for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Parquet => "a Parquet file",
            Self::Utf16 => "UTF-16 text",
            Self::Gzip => "a gzip archive",
            Self::Zip => "a zip archive or a spreadsheet",
        })
    }
}

/// How to make a file that is read of a Parquet file.
fn convert(file: &str) -> String {
    let base = file.strip_suffix(".parquet").unwrap_or(file);
    format!(
        "convert it: python -c \"import pandas; pandas.read_parquet('{file}').to_json('{base}.jsonl', orient='records', \
         lines=True)\""
    )
}
