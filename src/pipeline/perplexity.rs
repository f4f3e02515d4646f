//! Perplexity of a model on a text, with windows that overlap.

use std::ops::Range;
use std::path::Path;

use super::engine::{Engine, Observer};
use super::files::ModelFiles;
use super::likelihood::{self, Query};
use super::stage::Stage;
use crate::chat::Chat;
use crate::error::{Error, Kind};
use crate::eval::statistics::{CONFIDENCE, bootstrap_mean};
use crate::files;
use crate::report::scores::{Perplexity, WindowNll};
use crate::report::{Interval, finite};

/// Tokens a window, unless told otherwise.
pub const DEFAULT_CONTEXT: usize = 512;

/// The largest text that is read, in bytes.
pub const MAX_TEXT_BYTES: u64 = 64 << 20;

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Tokens a window, at most; at least 2.
    pub context: usize,
    /// Tokens from one window's begin to the next one's, 1 to `context`; half of it where nothing is given.
    pub stride: Option<usize>,
    /// Put the tokens first that the tokenizer puts before a text.
    pub bos: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { context: DEFAULT_CONTEXT, stride: None, bos: true }
    }
}

impl Options {
    /// The defaults for a model: a context of 512, or the model's limit if that is smaller.
    ///
    /// # Errors
    /// If its configuration cannot be read.
    pub fn of_model(files: &ModelFiles) -> Result<Self, Error> {
        let limit = files.max_positions()?;
        Ok(Self { context: limit.map_or(DEFAULT_CONTEXT, |n| n.clamp(2, DEFAULT_CONTEXT)), ..Self::default() })
    }
}

/// What is wrong with a text to measure on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The operating system refused.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Larger than any text that perplexity is measured on.
    #[error("`{path}` is too large for a perplexity text: expected at most {limit} bytes, got {got}")]
    TooLarge {
        /// The file.
        path: String,
        /// The most that is read.
        limit: u64,
        /// Its size.
        got: u64,
    },
    /// Not UTF-8.
    #[error("`{path}` is not UTF-8 text: line {line} has a byte that is not valid")]
    NotUtf8 {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
    },
    /// Nothing in it.
    #[error("`{path}` is empty")]
    Empty {
        /// The file.
        path: String,
    },
    /// Nothing is left to predict.
    #[error("the text is too short for a perplexity: expected at least 2 tokens, got {got}")]
    TooFewTokens {
        /// How many there are.
        got: usize,
    },
    /// Windows that make no sense.
    #[error("windows of {context} tokens with a stride of {stride} cannot be scored")]
    Windows {
        /// Tokens a window.
        context: usize,
        /// Tokens between windows.
        stride: usize,
    },
}

impl TextError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read { .. } => "check the path and the file's permissions",
            Self::TooLarge { .. } => "a few hundred kilobytes are enough: cut the file",
            Self::NotUtf8 { .. } => "save the file as UTF-8",
            Self::Empty { .. } | Self::TooFewTokens { .. } => {
                "give a text of some thousand words, for example the test split of WikiText-2"
            }
            Self::Windows { .. } => "give a context of at least 2 and a stride from 1 to the context",
        };
        Some(hint.into())
    }
}

impl From<TextError> for Error {
    fn from(error: TextError) -> Self {
        Self::Other { kind: Kind::Usage, message: error.to_string(), hint: error.hint() }
    }
}

/// The text of a file; a byte order mark is left out.
///
/// # Errors
/// If it cannot be read, is empty, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, TextError> {
    let name = path.display().to_string();
    let read = |source| TextError::Read { path: name.clone(), source };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_TEXT_BYTES {
        return Err(TextError::TooLarge { path: name, limit: MAX_TEXT_BYTES, got: size });
    }
    let bytes = files::read(path, MAX_TEXT_BYTES).map_err(read)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|b| **b == b'\n').count();
            return Err(TextError::NotUtf8 { path: name, line });
        }
    };
    let text = text.strip_prefix('\u{feff}').map(ToOwned::to_owned).unwrap_or(text);
    if text.trim().is_empty() { Err(TextError::Empty { path: name }) } else { Ok(text) }
}

/// Windows over `tokens` tokens, each with the number of its last tokens that it scores.
///
/// As in "Perplexity of fixed-length models" (documentation of Hugging Face transformers): a window begins every
/// `stride` tokens and scores what no earlier one did; the first token of a window has nothing before it and is never
/// scored.
fn windows(tokens: usize, context: usize, stride: usize) -> Vec<(Range<usize>, usize)> {
    let mut found = Vec::new();
    let mut done = 0;
    for begin in (0..tokens).step_by(stride) {
        let end = (begin + context).min(tokens);
        let scored = (end - done).min(end - begin - 1);
        if scored > 0 {
            found.push((begin..end, scored));
        }
        done = end;
        if end == tokens {
            break;
        }
    }
    found
}

/// Perplexity of the model on `text`: `exp` of the mean negative log-likelihood of a token, given those before it in
/// its window. Log-likelihoods are computed in float64 from the model's float32 logits.
///
/// Every token is scored once, but for the first one of the text (without `bos`). The average is over tokens; the
/// published example weights windows by one token less than they score.
///
/// # Errors
/// If the text has fewer than 2 tokens, if a run fails, or on cancellation.
pub fn measure(
    engine: &Engine<'_>,
    chat: &Chat,
    text: &str,
    options: &Options,
    observer: &dyn Observer,
) -> Result<Perplexity, Error> {
    let context = options.context;
    let stride = options.stride.unwrap_or(context / 2);
    if context < 2 || stride == 0 || stride > context {
        return Err(TextError::Windows { context, stride }.into());
    }
    let mut tokens = if options.bos { chat.leading_tokens()? } else { Vec::new() };
    let leading = tokens.len();
    tokens.extend(chat.encode(text)?);
    if tokens.len() - leading < 2 {
        return Err(TextError::TooFewTokens { got: tokens.len() - leading }.into());
    }
    let windows = windows(tokens.len(), context, stride);
    let queries: Vec<Query<'_>> =
        windows.iter().map(|(range, scored)| Query { tokens: &tokens[range.clone()], scored: *scored }).collect();
    let room = engine.room();
    let found = likelihood::observed(engine, &queries, (stride, room), (observer, &Stage::Perplexity))?;
    let windows: Vec<WindowNll> =
        found.iter().map(|of| WindowNll { tokens: of.len(), nll: -of.iter().sum::<f64>() }).collect();
    let scored: usize = windows.iter().map(|w| w.tokens).sum();
    let sum: f64 = windows.iter().map(|w| w.nll).sum();
    let mean_nll = sum / scored as f64;
    Ok(Perplexity {
        perplexity: finite(mean_nll.exp()),
        interval: interval(&windows, mean_nll),
        mean_nll,
        bits_per_byte: sum / std::f64::consts::LN_2 / text.len() as f64,
        tokens: scored,
        bytes: text.len(),
        context,
        stride,
        bos: leading > 0,
        windows,
    })
}

/// 95 % interval of the perplexity from a bootstrap over windows. The mean is a ratio of two sums, nats over tokens: what is
/// resampled is its linearisation, `mean + (nll - mean * tokens) / (mean tokens)` of each window. `None` with one window.
fn interval(windows: &[WindowNll], mean: f64) -> Option<Interval> {
    if windows.len() < 2 {
        return None;
    }
    let tokens = windows.iter().map(|w| w.tokens as f64).sum::<f64>() / windows.len() as f64;
    let values: Vec<f64> = windows.iter().map(|w| mean + (w.nll - mean * w.tokens as f64) / tokens).collect();
    let found = bootstrap_mean(&values, CONFIDENCE, 2000, 1)?;
    Some(Interval { low: finite(found.low.exp())?, high: finite(found.high.exp())? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loop of the published example, word by word.
    fn published(tokens: usize, context: usize, stride: usize) -> Vec<(Range<usize>, usize)> {
        let mut found = Vec::new();
        let mut previous = 0;
        let mut begin = 0;
        while begin < tokens {
            let end = (begin + context).min(tokens);
            let target = end - previous;
            // labels are shifted: that of the window's first token is dropped
            let labels: Vec<bool> = (begin..end).map(|at| at >= end - target).collect();
            found.push((begin..end, labels[1..].iter().filter(|l| **l).count()));
            previous = end;
            if end == tokens {
                break;
            }
            begin += stride;
        }
        found.retain(|(_, scored)| *scored > 0);
        found
    }

    #[test]
    fn windows_are_the_published_ones_and_score_every_token_once() {
        for tokens in 2..40 {
            for context in 2..12 {
                for stride in 1..=context {
                    let found = windows(tokens, context, stride);
                    assert_eq!(found, published(tokens, context, stride), "{tokens} {context} {stride}");
                    let mut seen = vec![0; tokens];
                    for (range, scored) in &found {
                        assert!(range.len() <= context && *scored < range.len());
                        (range.end - scored..range.end).for_each(|at| seen[at] += 1);
                    }
                    assert!(seen.iter().all(|n| *n <= 1));
                    if stride < context {
                        assert!(seen[1..].iter().all(|n| *n == 1), "{tokens} {context} {stride}");
                    }
                }
            }
        }
        assert_eq!(windows(5, 4, 2), [(0..4, 3), (2..5, 1)]);
    }

    #[test]
    fn texts_that_cannot_be_measured_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_text(&path)
        };
        assert_eq!(read(b"\xef\xbb\xbfone\n").unwrap(), "one\n");
        assert!(matches!(read(b" \n\t"), Err(TextError::Empty { .. })));
        assert!(matches!(read(b""), Err(TextError::Empty { .. })));
        assert!(matches!(read(b"one\ntwo \xff"), Err(TextError::NotUtf8 { line: 2, .. })));
        let missing = read_text(&folder.path().join("missing")).unwrap_err();
        assert!(missing.hint().is_some());
        let error = Error::from(missing);
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().starts_with("cannot read `"), "{error}");
    }

    #[test]
    fn the_context_is_the_models_own_if_smaller() {
        let folder = tempfile::tempdir().unwrap();
        let files = ModelFiles { onnx: folder.path().join("model.onnx"), root: folder.path().to_path_buf() };
        let of = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            let found = Options::of_model(&files).map(|o| o.context);
            std::fs::remove_file(folder.path().join(name)).unwrap();
            found
        };
        assert_eq!(Options::of_model(&files).unwrap(), Options::default());
        assert_eq!(of("config.json", r#"{"max_position_embeddings": 256}"#).unwrap(), 256);
        assert_eq!(of("config.json", r#"{"text_config": {"max_position_embeddings": 128}}"#).unwrap(), 128);
        assert_eq!(of("config.json", r#"{"max_position_embeddings": 4096}"#).unwrap(), 512);
        assert_eq!(of("config.json", r#"{"max_position_embeddings": -1}"#).unwrap(), 512);
        assert_eq!(of("genai_config.json", r#"{"model": {"context_length": 64}}"#).unwrap(), 64);
        assert!(of("config.json", "{").is_err());
    }
}
