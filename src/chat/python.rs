//! Python behaviour that chat templates rely on: string methods and `tojson`.

use std::fmt::Write as _;

use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Depth at which `tojson` gives up on a nested value.
const MAX_JSON_DEPTH: usize = 100;
/// Longest string that a padding method may make.
const MAX_PADDED: usize = 1 << 20;
/// Longest text that `tojson` makes, in bytes. A list may hold another many times over.
const MAX_JSON_BYTES: usize = 4 << 20;

/// Methods of Python's `str`, `dict` and `list`: minijinja-contrib's, and those it lacks.
///
/// Methods that change a list or dict are missing on purpose: the sandbox of `transformers`
/// refuses them too.
pub(super) fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, name, arguments)?
    {
        return Ok(result);
    }
    match (value.kind(), name) {
        (ValueKind::Seq, "index") => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let position = value.try_iter()?.position(|item| item == *wanted);
            position.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "value is not in the list"))
        }
        (ValueKind::Map | ValueKind::Seq, "copy") => {
            let () = from_args(arguments)?;
            Ok(value.clone())
        }
        _ => unknown_method_callback(state, value, name, arguments),
    }
}

/// The string methods that minijinja-contrib lacks or does differently; nothing for the rest.
fn string_method(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" => {
            let separator = separator(arguments)?;
            let parts = text.split_once(separator);
            triple(parts.map_or([text, "", ""], |(head, tail)| [head, separator, tail]))
        }
        "rpartition" => {
            let separator = separator(arguments)?;
            let parts = text.rsplit_once(separator);
            triple(parts.map_or(["", "", text], |(head, tail)| [head, separator, tail]))
        }
        "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(arguments)?;
            let limit =
                limit.and_then(|limit| usize::try_from(limit).ok()).map_or(usize::MAX, |limit| limit.saturating_add(1));
            rsplit(text, separator, limit)?
        }
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(arguments)?;
            splitlines(text, keep_ends.unwrap_or(false))
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(arguments)?;
            let at = if name == "index" { text.find(wanted) } else { text.rfind(wanted) };
            let at = at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring is not in the string"))?;
            Value::from(text[..at].chars().count())
        }
        "swapcase" => {
            let () = from_args(arguments)?;
            let swapped: String = text
                .chars()
                .flat_map(|character| {
                    if character.is_uppercase() {
                        character.to_lowercase().collect::<Vec<_>>()
                    } else {
                        character.to_uppercase().collect()
                    }
                })
                .collect();
            Value::from(swapped)
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(arguments)?;
            let missing = width.saturating_sub(text.chars().count());
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // CPython puts the odd one to the left where the width is odd.
                _ => missing / 2 + (missing & width & 1),
            };
            pad(text, fill.unwrap_or(' '), left, missing - left)?
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let missing = width.saturating_sub(text.chars().count());
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let padded = pad(digits, '0', missing, 0)?;
            Value::from(format!("{sign}{padded}"))
        }
        _ => return Ok(None),
    }))
}

fn separator(arguments: &[Value]) -> Result<&str, Error> {
    let (separator,): (&str,) = from_args(arguments)?;
    if separator.is_empty() {
        return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
    }
    Ok(separator)
}

fn triple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn rsplit(text: &str, separator: Option<&str>, limit: usize) -> Result<Value, Error> {
    let mut parts: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => text.rsplitn(limit, separator).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                match rest.rfind(char::is_whitespace) {
                    Some(_) if parts.len().saturating_add(1) >= limit => {
                        parts.push(rest);
                        break;
                    }
                    Some(at) => {
                        let word = rest[at..].trim_start();
                        parts.push(word);
                        rest = rest[..at].trim_end();
                    }
                    None => {
                        parts.push(rest);
                        break;
                    }
                }
            }
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Lines by the boundaries of Python's `str.splitlines`.
fn splitlines(text: &str, keep_ends: bool) -> Value {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let boundary =
            rest.find(['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}']);
        let (line, end) = match boundary {
            None => (rest.len(), rest.len()),
            Some(at) if rest[at..].starts_with("\r\n") => (at, at + 2),
            Some(at) => (at, at + rest[at..].chars().next().map_or(0, char::len_utf8)),
        };
        lines.push(Value::from(&rest[..if keep_ends { end } else { line }]));
        rest = &rest[end..];
    }
    Value::from(lines)
}

fn pad(text: &str, fill: char, left: usize, right: usize) -> Result<Value, Error> {
    if left.saturating_add(right) > MAX_PADDED {
        return Err(Error::new(ErrorKind::InvalidOperation, "width is too large"));
    }
    let mut padded = String::with_capacity(text.len() + left + right);
    padded.extend(std::iter::repeat_n(fill, left));
    padded.push_str(text);
    padded.extend(std::iter::repeat_n(fill, right));
    Ok(Value::from(padded))
}

/// The `tojson` of `transformers`: `json.dumps(x, ensure_ascii=False, indent=None, ..)`, which does
/// not escape HTML.
pub(super) fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = match ensure_ascii {
        Some(given) => given,
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = match indent {
        Some(given) => Some(given),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(ToOwned::to_owned),
        Some(none) if none.is_none() => None,
        Some(width) => Some(" ".repeat(usize::try_from(width)?.min(64))),
    };
    let separators = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |index| pair.get_item_by_index(index).map(|part| part.to_string());
            (part(0)?, part(1)?)
        }
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut writer = JsonWriter { out: String::new(), ensure_ascii, sort_keys, indent, separators };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter {
    out: String,
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    /// Between items, and between a key and its value.
    separators: (String, String),
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_JSON_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "value is nested too deeply"));
        }
        if self.out.len() > MAX_JSON_BYTES {
            return Err(Error::new(ErrorKind::InvalidOperation, "value is too large"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.container('[', ']', items, depth, |writer, item| writer.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries = value
                    .try_iter()?
                    .checked()
                    .map(|key| {
                        let key = key?;
                        let item = value.get_item(&key)?;
                        Ok((key.to_string(), item))
                    })
                    .collect::<Result<Vec<_>, Error>>()?;
                if self.sort_keys {
                    entries.sort_by(|left, right| left.0.cmp(&right.0));
                }
                self.container('{', '}', entries, depth, |writer, (key, item)| {
                    writer.string(&key);
                    writer.out.push_str(&writer.separators.1.clone());
                    writer.value(&item, depth + 1)
                })?;
            }
            kind => {
                let reason = format!("{kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, reason));
            }
        }
        Ok(())
    }

    fn container<T>(
        &mut self,
        open: char,
        close: char,
        items: Vec<T>,
        depth: usize,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.separators.0.clone());
            }
            self.newline(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.newline(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn newline(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || (self.ensure_ascii && !character.is_ascii()) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }
}
