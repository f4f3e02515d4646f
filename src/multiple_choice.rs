//! Multiple choice questions from disk: MMLU and ARC files in JSON, JSON Lines and CSV.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use crate::files;
use crate::records::{self, Fault, Row, excerpt, kind_of};

/// The largest file that is read, in bytes. All of MMLU is below 9 MB.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// The most choices of an item: a letter each.
pub const MAX_CHOICES: usize = 26;

/// The keys an object may wrap its list of items in.
const WRAPPER_KEYS: [&str; 3] = ["data", "items", "questions"];
/// The keys and headers of a right answer.
const ANSWER_KEYS: [&str; 4] = ["answer", "answerkey", "answer_key", "target"];
/// The keys and headers of a list of choices.
const CHOICES_KEYS: [&str; 2] = ["choices", "options"];
/// What the published MMLU files' names end in after their subject.
const SPLIT_ENDINGS: [&str; 4] = ["_test", "_dev", "_val", "_train"];

/// A question with its choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The question, trimmed.
    pub question: String,
    /// The choices, trimmed, none empty: 2 to 26.
    pub choices: Vec<String>,
    /// Index of the right one, from 0.
    pub answer: usize,
    /// Its subject, where the file names one.
    pub subject: Option<String>,
}

/// Items to ask, and solved ones to show before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Items {
    /// What is asked, in the order of the file.
    pub items: Vec<Item>,
    /// What may be shown before it, solved.
    pub examples: Vec<Item>,
}

/// What is wrong with a file of items.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ItemError {
    /// The operating system refused.
    #[error("cannot read `{file}`: {source}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// Surely no file of questions.
    #[error("`{file}` is too large for multiple choice questions: expected at most {limit} bytes, got {got}")]
    TooLarge {
        /// The file.
        file: String,
        /// The most that is read.
        limit: u64,
        /// Its size.
        got: u64,
    },
    /// The extension says no format.
    #[error("the format of `{file}` is not known: expected the extension `json`, `jsonl` or `csv`, got {got}")]
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
        format: &'static str,
        /// Why it is not, and where.
        reason: String,
    },
    /// A row that is no item.
    #[error("`{file}`, {row}: {reason}")]
    Row {
        /// The file.
        file: String,
        /// Where.
        row: Row,
        /// What is wrong.
        reason: String,
    },
    /// No rows.
    #[error("`{file}` holds no questions")]
    Empty {
        /// The file.
        file: String,
    },
    /// Not enough to take examples from.
    #[error("too few {what} for {shots} examples: expected at least {expected}, got {got}")]
    TooFew {
        /// Of what.
        what: String,
        /// Examples a question.
        shots: usize,
        /// How many it takes.
        expected: usize,
        /// How many there are.
        got: usize,
    },
}

impl ItemError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => "check the path and the file's permissions",
            Self::TooLarge { .. } => "a few thousand questions are enough: cut the file",
            Self::UnknownFormat { .. } => "rename the file to say what it is",
            Self::NotUtf8 { .. } => "save the file as UTF-8",
            Self::Malformed { format: "CSV", .. } => {
                "a field with a comma, a quote or a line break stands in double quotes, and a quote in it is doubled"
            }
            Self::Malformed { .. } => "mend the file; `.jsonl` is an object a line, `.json` one list of objects",
            Self::Row { .. } => {
                "an item has `question`, `choices` (a list, or `text` and `label`) and `answer` or `answerKey`; a CSV \
                 without a header has question, choices, and the answer's letter"
            }
            Self::Empty { .. } => "the file may be cut off",
            Self::TooFew { .. } => "ask for fewer examples, or give a file of them",
        };
        Some(hint.into())
    }
}

impl Items {
    /// Reads the items of `path`. With `shots` above 0, examples come from the file `examples`, or else are the first
    /// `shots` items of each subject (of the file, where it has no subjects), which are then not asked.
    ///
    /// # Errors
    /// If a file cannot be read or parsed, or has too few items.
    pub fn load(path: &Path, examples: Option<&Path>, shots: usize) -> Result<Self, ItemError> {
        let items = load(path)?;
        let examples = examples.filter(|_| shots > 0).map(load).transpose()?;
        Self::new(items, examples, shots)
    }

    /// Items with examples; see [`load`](Self::load).
    ///
    /// # Errors
    /// If there are too few examples, or none is left to ask.
    pub fn new(items: Vec<Item>, examples: Option<Vec<Item>>, shots: usize) -> Result<Self, ItemError> {
        if let Some(examples) = examples {
            let got = examples.len();
            if got < shots {
                return Err(ItemError::TooFew { what: "examples".into(), shots, expected: shots, got });
            }
            return Ok(Self { items, examples });
        }
        let mut seen: Vec<(Option<String>, usize)> = Vec::new();
        let mut split = Self::default();
        for item in items {
            let at = seen.iter().position(|(subject, _)| *subject == item.subject).unwrap_or_else(|| {
                seen.push((item.subject.clone(), 0));
                seen.len() - 1
            });
            seen[at].1 += 1;
            if seen[at].1 <= shots { split.examples.push(item) } else { split.items.push(item) }
        }
        match seen.into_iter().find(|(_, count)| *count <= shots) {
            Some((subject, got)) => {
                let what = subject.map_or("questions".to_owned(), |s| format!("questions about `{}`", excerpt(&s)));
                Err(ItemError::TooFew { what, shots, expected: shots + 1, got })
            }
            None => Ok(split),
        }
    }

    /// The first `shots` examples of the item's subject; of all subjects where its own has none.
    pub fn examples_of(&self, item: &Item, shots: usize) -> Vec<&Item> {
        let same = |example: &&Item| example.subject == item.subject;
        let any_same = self.examples.iter().any(|example| same(&example));
        self.examples.iter().filter(|example| !any_same || same(example)).take(shots).collect()
    }
}

/// The items of one file; its extension says the format.
///
/// # Errors
/// If it cannot be read or parsed.
pub fn load(path: &Path) -> Result<Vec<Item>, ItemError> {
    let name = path.display().to_string();
    extension(&name)?;
    let read = |source| ItemError::Read { file: name.clone(), source };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_FILE_BYTES {
        return Err(ItemError::TooLarge { file: name, limit: MAX_FILE_BYTES, got: size });
    }
    let bytes = files::read(path, MAX_FILE_BYTES).map_err(read)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| ItemError::NotUtf8 {
        file: name.clone(),
        row: Row::Line(records::line_of(&bytes, error.valid_up_to())),
    })?;
    parse(&name, text)
}

/// Parses items from `text`, in the format that the extension of `name` says.
///
/// - `jsonl`: an object a line. `json`: a list of them, or an object with the list under `data`, `items` or
///   `questions`.
/// - MMLU: `question`, `choices` (a list, or the keys `A`, `B`, ..), `answer` as letter or index from 0, `subject`.
/// - ARC: `question` as text or `{stem, choices: [{label, text}]}`, `choices` as `{text: [..], label: [..]}` or
///   `[{label, text}]`, `answerKey`.
/// - `csv` with a header of these names (`choices` then holds JSON), or without one as the published MMLU files are:
///   question, choices, letter of the answer. There a file name like `astronomy_test.csv` gives the subject.
///
/// Keys are found whatever their case. An answer is looked for among the labels, then taken as a letter, then as an
/// index from 0. Questions and choices are trimmed. A byte order mark and CRLF are tolerated.
///
/// # Errors
/// If the text is not in the format, a row is no item, or there is none.
pub fn parse(name: &str, text: &str) -> Result<Vec<Item>, ItemError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let items = match extension(name)? {
        _ if text.trim().is_empty() => Vec::new(),
        "json" => json_items(name, records::json(text, &WRAPPER_KEYS).map_err(faulty(name, "JSON"))?)?,
        "jsonl" => json_items(name, records::json_lines(text).map_err(faulty(name, "JSON Lines"))?)?,
        _ => csv_items(name, text)?,
    };
    if items.is_empty() { Err(ItemError::Empty { file: name.to_owned() }) } else { Ok(items) }
}

fn extension(name: &str) -> Result<&'static str, ItemError> {
    let base = base_name(name);
    let found = base.rsplit_once('.').map(|(_, extension)| extension);
    ["json", "jsonl", "csv"].into_iter().find(|known| found.is_some_and(|e| e.eq_ignore_ascii_case(known))).ok_or_else(
        || ItemError::UnknownFormat {
            file: name.to_owned(),
            got: found.map_or("none".to_owned(), |e| format!("`{}`", excerpt(e))),
        },
    )
}

fn base_name(name: &str) -> &str {
    name.rsplit(['/', '\\']).next().unwrap_or(name)
}

/// A fault as an error of this file.
fn faulty(name: &str, format: &'static str) -> impl Fn(Fault) -> ItemError {
    let file = name.to_owned();
    move |fault| {
        let reason = match fault {
            Fault::Malformed(reason) => reason,
            Fault::NoList(got) => format!("expected a list, or an object with one under `data` or `items`, got {got}"),
        };
        ItemError::Malformed { file: file.clone(), format, reason }
    }
}

fn json_items(name: &str, values: Vec<(Row, Value)>) -> Result<Vec<Item>, ItemError> {
    values.iter().map(|(row, value)| json_item(name, *row, value)).collect()
}

fn json_item(name: &str, row: Row, value: &Value) -> Result<Item, ItemError> {
    let wrong = |reason: String| ItemError::Row { file: name.to_owned(), row, reason };
    let Value::Object(object) = value else {
        return Err(wrong(format!("expected an object, got {}", kind_of(value))));
    };
    let (question, inner) = match find(object, &["question"]) {
        Some(Value::String(text)) => (text, None),
        Some(Value::Object(inner)) => match find(inner, &["stem"]) {
            Some(Value::String(text)) => (text, find(inner, &CHOICES_KEYS)),
            other => return Err(wrong(format!("expected a string under `stem`, got {}", kind_or_nothing(other)))),
        },
        other => return Err(wrong(format!("expected a string under `question`, got {}", kind_or_nothing(other)))),
    };
    let choices = match inner.or_else(|| find(object, &CHOICES_KEYS)) {
        Some(value) => Choices::of(value),
        None => Choices::of_letters(|letter| find(object, &[letter]).map(text_of)),
    }
    .map_err(&wrong)?;
    let answer = find(object, &ANSWER_KEYS).ok_or_else(|| wrong("no `answer` and no `answerKey`".into()))?;
    let answer = choices.answer(answer).map_err(&wrong)?;
    let subject = match find(object, &["subject"]) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.as_str()),
        Some(other) => return Err(wrong(format!("expected a string under `subject`, got {}", kind_of(other)))),
    };
    finish(question, choices, answer, subject).map_err(wrong)
}

fn csv_items(name: &str, text: &str) -> Result<Vec<Item>, ItemError> {
    let mut records = records::csv(text).map_err(faulty(name, "CSV"))?;
    records.retain(|(_, record)| record.iter().any(|field| !field.trim().is_empty()));
    let is = |field: &str, names: &[&str]| names.iter().any(|name| field.trim().eq_ignore_ascii_case(name));
    let headed = records.first().is_some_and(|(_, first)| {
        first.iter().any(|f| is(f, &["question"])) && first.iter().any(|f| is(f, &ANSWER_KEYS))
    });
    if !headed {
        let subject = subject_of(name);
        return records.iter().map(|(row, record)| bare_item(name, *row, record, subject)).collect();
    }
    let (_, header) = records.remove(0);
    let column = |names: &[&str]| names.iter().find_map(|name| records::column(&header, name));
    let (question, answer) = (column(&["question"]), column(&ANSWER_KEYS));
    let (choices, subject) = (column(&CHOICES_KEYS), column(&["subject"]));
    records
        .iter()
        .map(|(row, record)| {
            let wrong = |reason: String| ItemError::Row { file: name.to_owned(), row: *row, reason };
            if record.len() != header.len() {
                return Err(wrong(format!("expected {} fields as in the header, got {}", header.len(), record.len())));
            }
            let field = |column: Option<usize>| column.and_then(|at| record.get(at)).unwrap_or_default();
            let choices = match choices {
                Some(_) => {
                    let value: Value = serde_json::from_str(field(choices))
                        .map_err(|error| wrong(format!("expected JSON in the column of choices: {error}")))?;
                    Choices::of(&value)
                }
                // an item with fewer choices than others leaves the last ones empty
                None => Choices::of_letters(|letter| {
                    column(&[letter]).map(|at| field(Some(at))).filter(|text| !text.trim().is_empty()).map(text_in)
                }),
            }
            .map_err(&wrong)?;
            let answer = choices.answer(&Value::from(field(answer))).map_err(&wrong)?;
            let subject = Some(field(subject)).filter(|text| !text.trim().is_empty());
            finish(field(question), choices, answer, subject).map_err(wrong)
        })
        .collect()
}

/// A row of a published MMLU file: question, choices, letter.
fn bare_item(name: &str, row: Row, record: &csv::StringRecord, subject: Option<&str>) -> Result<Item, ItemError> {
    let wrong = |reason: String| ItemError::Row { file: name.to_owned(), row, reason };
    if record.len() < 4 {
        let got = record.len();
        return Err(wrong(format!("expected a question, at least 2 choices and an answer, got {got} fields")));
    }
    let last = record.len() - 1;
    let choices = Choices { texts: (1..last).map(|at| record[at].to_owned()).collect(), labels: Vec::new() };
    let letter = record[last].trim();
    if letter.len() != 1 || !letter.as_bytes()[0].is_ascii_alphabetic() {
        return Err(wrong(format!("expected the answer's letter in the last field, got `{}`", excerpt(letter))));
    }
    let answer = choices.answer(&Value::from(letter)).map_err(&wrong)?;
    finish(&record[0], choices, answer, subject).map_err(wrong)
}

/// The subject that the name of a published MMLU file says.
fn subject_of(name: &str) -> Option<&str> {
    let stem = base_name(name).rsplit_once('.').map(|(stem, _)| stem)?;
    SPLIT_ENDINGS.iter().find_map(|ending| stem.strip_suffix(ending)).filter(|subject| !subject.is_empty())
}

/// Choices as a row holds them.
struct Choices {
    texts: Vec<String>,
    /// One a choice, or none.
    labels: Vec<String>,
}

impl Choices {
    /// From a list of texts or of `{label, text}`, or from `{text: [..], label: [..]}`.
    fn of(value: &Value) -> Result<Self, String> {
        let texts_in = |value: &Value, key: &str| match value {
            Value::Array(list) => list.iter().map(text_of).collect::<Result<Vec<_>, _>>(),
            other => Err(format!("expected a list under `{key}`, got {}", kind_of(other))),
        };
        match value {
            Value::Array(list) if list.iter().all(Value::is_object) => {
                let mut found = Self { texts: Vec::new(), labels: Vec::new() };
                for object in list.iter().filter_map(Value::as_object) {
                    let text = find(object, &["text"]).ok_or("a choice has no `text`")?;
                    found.texts.push(text_of(text)?);
                    found.labels.extend(find(object, &["label"]).map(text_of).transpose()?);
                }
                found.checked()
            }
            Value::Array(_) => Self { texts: texts_in(value, "choices")?, labels: Vec::new() }.checked(),
            Value::Object(object) => match (find(object, &["text"]), find(object, &["label"])) {
                (Some(texts), labels) => {
                    let labels = labels.map(|l| texts_in(l, "label")).transpose()?.unwrap_or_default();
                    Self { texts: texts_in(texts, "text")?, labels }.checked()
                }
                _ => Self::of_letters(|letter| find(object, &[letter]).map(text_of)),
            },
            other => Err(format!("expected a list of choices, got {}", kind_of(other))),
        }
    }

    /// From fields that are called `A`, `B`, ..
    fn of_letters(mut field: impl FnMut(&str) -> Option<Result<String, String>>) -> Result<Self, String> {
        let letters = (b'A'..=b'Z').map(|letter| char::from(letter).to_string());
        let texts = letters.map_while(|letter| field(&letter)).collect::<Result<Vec<_>, _>>()?;
        Self { texts, labels: Vec::new() }.checked()
    }

    fn checked(self) -> Result<Self, String> {
        let (texts, labels) = (self.texts.len(), self.labels.len());
        if labels != 0 && labels != texts {
            return Err(format!("{texts} choices have {labels} labels"));
        }
        let repeated = |at: usize| self.labels[..at].iter().any(|label| same(label, &self.labels[at]));
        match (0..labels).find(|at| repeated(*at)) {
            Some(at) => Err(format!("two choices have the label `{}`", excerpt(&self.labels[at]))),
            None => Ok(self),
        }
    }

    /// Index of the right choice.
    fn answer(&self, value: &Value) -> Result<usize, String> {
        let text = match value {
            Value::String(text) => Cow::from(text.trim()),
            Value::Number(number) => Cow::from(number.to_string()),
            other => return Err(format!("expected the answer as a letter or an index, got {}", kind_of(other))),
        };
        let labelled = self.labels.iter().position(|label| same(label, &text));
        let lettered = || match text.as_bytes() {
            [letter] if letter.is_ascii_alphabetic() => Some(usize::from(letter.to_ascii_uppercase() - b'A')),
            _ => None,
        };
        let found = labelled.or_else(lettered).or_else(|| text.parse().ok());
        found.filter(|at| *at < self.texts.len()).ok_or_else(|| {
            let count = self.texts.len();
            format!("the answer `{}` is none of the {count} choices (letters, or indices from 0)", excerpt(&text))
        })
    }
}

fn finish(question: &str, choices: Choices, answer: usize, subject: Option<&str>) -> Result<Item, String> {
    let question = question.trim();
    let choices: Vec<String> = choices.texts.iter().map(|text| text.trim().to_owned()).collect();
    if question.is_empty() {
        return Err("the question is empty".into());
    }
    if !(2..=MAX_CHOICES).contains(&choices.len()) {
        return Err(format!("expected 2 to {MAX_CHOICES} choices, got {}", choices.len()));
    }
    if let Some(at) = choices.iter().position(String::is_empty) {
        return Err(format!("choice {} is empty", at + 1));
    }
    let subject = subject.map(str::trim).filter(|s| !s.is_empty()).map(ToOwned::to_owned);
    Ok(Item { question: question.to_owned(), choices, answer, subject })
}

fn same(one: &str, other: &str) -> bool {
    one.trim().eq_ignore_ascii_case(other.trim())
}

/// The value of the first of `keys` that is there; case does not count.
fn find<'v>(object: &'v Map<String, Value>, keys: &[&str]) -> Option<&'v Value> {
    records::find(object, keys).map(|(_, value)| value)
}

/// A string, or a number as it is written.
fn text_of(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(format!("expected a choice as a string, got {}", kind_of(other))),
    }
}

fn text_in(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn kind_or_nothing(value: Option<&Value>) -> &'static str {
    value.map_or("nothing", kind_of)
}
