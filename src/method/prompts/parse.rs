//! The formats of prompt files, and the prompts of a file's text.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Packed;
use super::text::normalised;
use super::{PromptClass, PromptError, PromptFile, Row, RowSelection};
use crate::records::{self, Fault, excerpt, kind_of, listed};

/// The keys (JSON) and headers (CSV) a prompt is looked for under, in this order; case does not count.
pub const PROMPT_KEYS: [&str; 4] = ["instruction", "prompt", "goal", "text"];

/// The keys of a text that belongs behind the instruction (Alpaca's `input`, Dolly's `context`).
const MATERIAL_KEYS: [&str; 2] = ["input", "context"];

/// The keys of what a row may say besides its prompt and no prompt can hold.
const BESIDE_KEYS: [&str; 3] = ["system", "system_prompt", "history"];

/// The keys of a conversation (ChatML, ShareGPT).
const CONVERSATION_KEYS: [&str; 3] = ["messages", "conversations", "conversation"];

/// The keys an object may wrap its list of prompts in.
const WRAPPER_KEYS: [&str; 2] = ["data", "prompts"];

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

    /// All extensions, for messages.
    pub(super) const EXPECTED: &'static str = "`json`, `jsonl`, `csv` or `txt`";

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
/// If `bytes` are not UTF-8; the error says which line is not, or what they are instead.
pub fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, PromptError> {
    let packed: [(&[u8], Packed); 5] = [
        (b"PAR1", Packed::Parquet),
        (b"\xff\xfe", Packed::Utf16),
        (b"\xfe\xff", Packed::Utf16),
        (b"\x1f\x8b", Packed::Gzip),
        (b"PK\x03\x04", Packed::Zip),
    ];
    if let Some(&(_, what)) = packed.iter().find(|(start, _)| bytes.starts_with(start)) {
        return Err(PromptError::OtherKind { file: name.to_owned(), what });
    }
    std::str::from_utf8(bytes).map_err(|error| PromptError::NotUtf8 {
        file: name.to_owned(),
        row: Row::Line(records::line_of(bytes, error.valid_up_to())),
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
/// Objects and CSV rows hold the prompt under the first of [`PROMPT_KEYS`] that is there. An `instruction` with a text
/// under `input` or `context` (Alpaca, Dolly) is followed by a blank line and that text. An object without such a key,
/// or with a list under it, may hold a conversation (`messages`, `conversations`): its user turn is the prompt, if
/// there is just one, nothing but an empty system turn before it, and only answers behind it. A system prompt or a
/// history in a row is refused. A byte order mark and line ends of any kind are tolerated. Prompts are trimmed; unless
/// `keep_duplicates`, one that repeats an earlier one (up to case and white space) is left out, and counted.
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
    // line ends of old: CR alone
    let mended = (!text.contains('\n') && text.contains('\r')).then(|| text.replace('\r', "\n"));
    let text = mended.as_deref().unwrap_or(text);
    let raw = match format {
        _ if text.trim().is_empty() => Vec::new(),
        PromptFormat::Json => json_rows(name, records::json(text, &WRAPPER_KEYS).map_err(faulty(name, format))?)?,
        PromptFormat::Jsonl => json_rows(name, records::json_lines(text).map_err(faulty(name, format))?)?,
        PromptFormat::Csv => csv_rows(name, text)?,
        PromptFormat::Txt => records::lines(text).map(|(row, line)| RawRow::new(row, line.to_owned())).collect(),
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

/// A fault as an error of this file.
fn faulty(name: &str, format: PromptFormat) -> impl Fn(Fault) -> PromptError {
    let file = name.to_owned();
    move |fault| match fault {
        Fault::Malformed(reason) => PromptError::Malformed { file: file.clone(), format, reason },
        Fault::NoList(got) => PromptError::NoList { file: file.clone(), got },
    }
}

fn json_rows(name: &str, values: Vec<(Row, Value)>) -> Result<Vec<RawRow>, PromptError> {
    values.into_iter().map(|(row, value)| json_row(name, row, value)).collect()
}

fn json_row(name: &str, row: Row, value: Value) -> Result<RawRow, PromptError> {
    let object = match value {
        Value::String(text) => return Ok(RawRow::new(row, text)),
        Value::Object(object) => object,
        other => {
            return Err(PromptError::NoPrompt { file: name.to_owned(), row, got: kind_of(&other).to_owned() });
        }
    };
    let no_prompt = |got: String| PromptError::NoPrompt { file: name.to_owned(), row, got };
    let find = |wanted: &str| records::find(&object, &[wanted]);
    let text_of = |wanted: &str| find(wanted).and_then(|(_, value)| value.as_str()).map(str::to_owned);
    if let Some((key, _)) = BESIDE_KEYS.iter().filter_map(|key| find(key)).find(|(_, value)| !is_blank(value)) {
        return Err(PromptError::Beside { file: name.to_owned(), row, key: excerpt(key) });
    }
    let under = |key: &str, value: &Value| no_prompt(format!("{} under `{}`", kind_of(value), excerpt(key)));
    let conversation =
        |turns: &[Value]| user_turn(turns).map_err(|got| PromptError::Conversation { file: name.to_owned(), row, got });
    let text = match PROMPT_KEYS.iter().find_map(|key| find(key)) {
        Some((key, Value::String(text))) if key.eq_ignore_ascii_case("instruction") => {
            let mut text = text.clone();
            for (key, value) in MATERIAL_KEYS.iter().filter_map(|key| find(key)).filter(|(_, value)| !is_blank(value)) {
                let material = value.as_str().ok_or_else(|| under(key, value))?;
                text = with_material(&text, material);
            }
            text
        }
        Some((_, Value::String(text))) => text.clone(),
        Some((_, Value::Array(turns))) if turns.iter().any(Value::is_object) => conversation(turns)?,
        Some((key, other)) => return Err(under(key, other)),
        None => match CONVERSATION_KEYS.iter().find_map(|key| find(key)) {
            Some((_, Value::Array(turns))) => conversation(turns)?,
            Some((key, other)) => return Err(under(key, other)),
            None => return Err(no_prompt(listed(object.keys()))),
        },
    };
    Ok(RawRow { row, text, label: text_of("label"), kind: text_of("type") })
}

/// An instruction and the text that it is about.
fn with_material(instruction: &str, material: &str) -> String {
    format!("{}\n\n{}", instruction.trim_end(), material.trim())
}

/// Whether a value says nothing.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// The one user turn of a conversation, `{role, content}` or `{from, value}` each; or what stands in the way, in words.
fn user_turn(turns: &[Value]) -> Result<String, String> {
    let mut prompt = None;
    for (index, turn) in turns.iter().enumerate() {
        let field = |keys: [&str; 2]| keys.iter().find_map(|key| turn.get(*key));
        let role = field(["role", "from"]).and_then(Value::as_str);
        let role = role.ok_or_else(|| format!("turn {} without a role", index + 1))?;
        let content = field(["content", "value"]);
        match role.to_ascii_lowercase().as_str() {
            "user" | "human" => {
                let text = content.and_then(text_of_content);
                let text = text.ok_or_else(|| format!("turn {} whose content is no text", index + 1))?;
                if prompt.replace(text).is_some() {
                    return Err("several user turns".to_owned());
                }
            }
            "assistant" | "gpt" | "model" if prompt.is_some() => {}
            "system" if content.is_none_or(is_blank) => {}
            "system" => return Err("a system turn".to_owned()),
            other => return Err(format!("a turn of `{}` before the user's", excerpt(other))),
        }
    }
    prompt.ok_or_else(|| "no user turn".to_owned())
}

/// A turn's content as text: a string, or a list of text parts.
fn text_of_content(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
                Some("text") | None => part.get("text").and_then(Value::as_str).map(str::to_owned),
                Some(_) => None,
            };
            parts.iter().map(text).collect::<Option<Vec<_>>>().map(|texts| texts.join("\n"))
        }
        _ => None,
    }
}

fn csv_rows(name: &str, text: &str) -> Result<Vec<RawRow>, PromptError> {
    let faulty = faulty(name, PromptFormat::Csv);
    let mut records = records::csv(text).map_err(&faulty)?;
    let header = if records.is_empty() { csv::StringRecord::new() } else { records.remove(0).1 };
    let column = |wanted: &str| records::column(&header, wanted);
    let Some((key, prompt)) = PROMPT_KEYS.iter().find_map(|key| Some((*key, column(key)?))) else {
        return Err(PromptError::NoColumn { file: name.to_owned(), got: listed(header.iter()) });
    };
    let material: Vec<usize> =
        MATERIAL_KEYS.iter().filter(|_| key == "instruction").filter_map(|k| column(k)).collect();
    let beside: Vec<(&str, usize)> = BESIDE_KEYS.iter().filter_map(|key| Some((*key, column(key)?))).collect();
    let (label, kind) = (column("label"), column("type"));
    let row = |(row, record): (Row, csv::StringRecord)| {
        if record.len() != header.len() {
            let (expected, got) = (header.len(), record.len());
            return Err(faulty(Fault::Malformed(format!("expected {expected} fields at {row}, got {got}"))));
        }
        let field = |index: Option<usize>| index.and_then(|index| record.get(index)).map(str::to_owned);
        let filled = |index: &usize| record.get(*index).filter(|text| !text.trim().is_empty());
        if let Some((key, _)) = beside.iter().find(|(_, index)| filled(index).is_some()) {
            return Err(PromptError::Beside { file: name.to_owned(), row, key: (*key).to_owned() });
        }
        let instruction = field(Some(prompt)).unwrap_or_default();
        Ok(RawRow {
            row,
            text: material.iter().filter_map(filled).fold(instruction, |text, more| with_material(&text, more)),
            label: field(label),
            kind: field(kind),
        })
    };
    records.into_iter().map(row).collect()
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

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
