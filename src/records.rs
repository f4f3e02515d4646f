//! Records of a text from a user: a JSON list, JSON Lines, CSV, or lines. What a record means is for whoever asks: a
//! prompt (`method::prompts`) or a question (`multiple_choice`).

use std::fmt;

use csv::StringRecord;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

/// Why a text has no records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is not in the form that was asked for; why, and where.
    Malformed(String),
    /// It is JSON, and no list; what it is instead.
    NoList(String),
}

/// The items of a JSON list, or of the list that an object has under one of the keys `wrapped`. `NaN` and the like,
/// which Python writes, are null.
///
/// # Errors
/// If the text is no JSON, or holds no list.
pub fn json(text: &str, wrapped: &[&str]) -> Result<Vec<(Row, Value)>, Fault> {
    let value = serde_json::from_str(&without_python_constants(text)).map_err(|e| Fault::Malformed(e.to_string()))?;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut object) => {
            let key = find(&object, wrapped).map(|(key, _)| key.clone());
            match key.and_then(|key| object.remove(&key)) {
                Some(Value::Array(list)) => list,
                _ => return Err(Fault::NoList(listed(object.keys()))),
            }
        }
        other => return Err(Fault::NoList(kind_of(&other).to_owned())),
    };
    Ok(list.into_iter().enumerate().map(|(index, value)| (Row::Item(index + 1), value)).collect())
}

/// A JSON value a line; blank lines are passed over.
///
/// # Errors
/// If a line is no JSON.
pub fn json_lines(text: &str) -> Result<Vec<(Row, Value)>, Fault> {
    let value = |(row, line): (Row, &str)| {
        let value = serde_json::from_str(&without_python_constants(line)).map_err(|error| {
            // serde_json counts lines from the start of this one
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            Fault::Malformed(format!("{reason} at {row} column {}", error.column()))
        })?;
        Ok((row, value))
    };
    lines(text).map(value).collect()
}

/// The lines that are not blank.
pub fn lines(text: &str) -> impl Iterator<Item = (Row, &str)> {
    let all = text.lines().enumerate().map(|(index, line)| (Row::Line(index + 1), line));
    all.filter(|(_, line)| !line.trim().is_empty())
}

/// The records of a CSV text, a header among them; they may have different numbers of fields. Line breaks within fields
/// are `\n`.
///
/// # Errors
/// If a quote is never closed.
pub fn csv(text: &str) -> Result<Vec<(Row, StringRecord)>, Fault> {
    let text = text.replace("\r\n", "\n");
    if let Some(line) = unclosed_quote(&text) {
        return Err(Fault::Malformed(format!("the quote that opens at line {line} is never closed")));
    }
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut counter = LineCounter { text: text.as_bytes(), counted: 0, line: 1 };
    let mut records = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| Fault::Malformed(error.to_string()))?;
        let line = counter.line_of_record(record.position().map_or(0, csv::Position::byte));
        records.push((Row::Line(line), record));
    }
    Ok(records)
}

/// The column of a CSV header that has a name; case and spaces around it do not count.
pub fn column(header: &StringRecord, name: &str) -> Option<usize> {
    header.iter().position(|field| field.trim().eq_ignore_ascii_case(name))
}

/// The entry of the first of `keys` that is there; case does not count.
pub fn find<'v>(object: &'v Map<String, Value>, keys: &[&str]) -> Option<(&'v String, &'v Value)> {
    keys.iter().find_map(|wanted| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted)))
}

/// What a value is, in words.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Keys as a message lists them.
pub fn listed(keys: impl Iterator<Item = impl AsRef<str>>) -> String {
    let keys: Vec<String> = keys.map(|key| format!("`{}`", excerpt(key.as_ref()))).collect();
    match keys.len() {
        0 => "nothing".to_owned(),
        1..=12 => keys.join(", "),
        more => format!("{} and {} more", keys[..12].join(", "), more - 12),
    }
}

/// A text as an error shows it: one line, not too long, nothing that steers a terminal.
pub fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = line.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if line.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// The line, from 1, of a byte.
pub fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + newlines(&bytes[..at])
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// Counts lines up to where a record starts. (The reader's own count does not step over blank lines.)
struct LineCounter<'a> {
    text: &'a [u8],
    counted: usize,
    line: usize,
}

impl LineCounter<'_> {
    /// The line of the record before which the reader was at `byte`; records must come in order.
    fn line_of_record(&mut self, byte: u64) -> usize {
        let byte = usize::try_from(byte).unwrap_or(usize::MAX).min(self.text.len());
        let blank = self.text[byte..].iter().take_while(|&&b| b == b'\n' || b == b'\r').count();
        let start = byte + blank;
        if let Some(between) = self.text.get(self.counted..start) {
            self.line += newlines(between);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_texts_on_one_short_line() {
        assert_eq!(excerpt("a\n\u{1b}[2J  b"), "a \u{fffd}[2J b");
        assert_eq!(excerpt(&"x".repeat(100)).chars().count(), 81);
    }

    #[test]
    fn records_know_their_lines() {
        let records = csv("\u{20}q,a\r\n\r\n\"two\r\nlines\",x\n\n\nlast\n").unwrap();
        let found: Vec<_> = records.iter().map(|(row, record)| (*row, record[0].to_owned())).collect();
        assert_eq!(
            found,
            [(Row::Line(1), " q".into()), (Row::Line(3), "two\nlines".into()), (Row::Line(7), "last".into())]
        );
        assert_eq!(csv("a\n\"b\nc\n"), Err(Fault::Malformed("the quote that opens at line 2 is never closed".into())));
        assert_eq!(column(&records[0].1, "Q"), Some(0));
    }

    #[test]
    fn lists_are_found_and_what_python_writes_is_null() {
        let found = json("{\"Data\": [NaN, \"NaN\", -Infinity]}", &["rows", "data"]).unwrap();
        assert_eq!(
            found.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>(),
            [Value::Null, "NaN".into(), Value::Null]
        );
        assert_eq!(json("{\"a\": 1}", &["data"]), Err(Fault::NoList("`a`".into())));
        assert_eq!(json("3", &[]), Err(Fault::NoList("a number".into())));
        assert_eq!(json_lines("1\n\n2\n").unwrap(), [(Row::Line(1), 1.into()), (Row::Line(3), 2.into())]);
        let fault = json_lines("1\n{").unwrap_err();
        assert_eq!(fault, Fault::Malformed("EOF while parsing an object at line 2 column 1".into()));
    }
}
