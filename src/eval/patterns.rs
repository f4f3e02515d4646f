//! The patterns by which an answer is judged, as data: the built-in file, or one of a user's own.
//!
//! The format is told at the top of `refusal_patterns.toml`. A file of one's own extends the built-in patterns, or,
//! with `mode = "replace"`, stands in their place (thinking marks stay where it has none).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Deserialize;

const BUILT_IN: &str = include_str!("refusal_patterns.toml");

/// Bytes that the automata of one kind may take: a bound against patterns that explode.
const AUTOMATON: usize = 64 << 20;

/// Why a file of patterns cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The file cannot be read.
    #[error("cannot read the refusal patterns `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, or a key that is not known.
    #[error("the refusal patterns are not as expected: {message}")]
    Format {
        /// What is wrong, with its line.
        message: String,
    },
    /// A version that this program does not read.
    #[error("the refusal patterns are of version {found}, version 1 is read")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// A blank pattern would match every sentence.
    #[error("language `{language}`: pattern {number} of `{kind}` is blank")]
    Blank {
        /// Code of the language.
        language: String,
        /// Which list.
        kind: &'static str,
        /// Counted from 1.
        number: usize,
    },
    /// A regular expression that does not compile, or is too large.
    #[error("language `{language}`: pattern {number} of `{kind}` is no regular expression: {message}")]
    Regex {
        /// Code of the language.
        language: String,
        /// Which list.
        kind: &'static str,
        /// Counted from 1.
        number: usize,
        /// What the crate `regex` said.
        message: String,
    },
    /// A regular expression that matches the empty text matches everything.
    #[error("language `{language}`: pattern {number} of `{kind}` matches the empty text")]
    MatchesNothing {
        /// Code of the language.
        language: String,
        /// Which list.
        kind: &'static str,
        /// Counted from 1.
        number: usize,
    },
    /// All patterns of a kind together are too large.
    #[error("the patterns of `{kind}` are too large together: {message}")]
    TooLarge {
        /// Which list.
        kind: &'static str,
        /// What the crate `regex` said.
        message: String,
    },
    /// Without a pattern nothing would ever be a refusal.
    #[error("there is no refusal pattern")]
    NoRefusals,
    /// A mark that is blank or equal to its partner.
    #[error("thinking mark {number} is blank, or opens and closes with the same text")]
    Thinking {
        /// Counted from 1.
        number: usize,
    },
}

impl PatternError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => "give the path of a TOML file, or leave it out for the built-in patterns".to_owned(),
            Self::Format { .. } => {
                "a file holds `version = 1`, `mode = \"extend\"` or `\"replace\"`, `[[language]]` tables \
                                    with `code` and lists of patterns, and `[[thinking]]` tables"
                    .to_owned()
            }
            Self::Version { .. } => "write `version = 1`".to_owned(),
            Self::Blank { .. } => "remove it, or write the phrase".to_owned(),
            Self::Regex { .. } => {
                "text between slashes is a regular expression of the crate `regex` (no look-around, no \
                                   back-references); write a plain phrase without slashes"
                    .to_owned()
            }
            Self::MatchesNothing { .. } => "let it require at least one character".to_owned(),
            Self::TooLarge { .. } => "use fewer counted repetitions".to_owned(),
            Self::NoRefusals => "add `refusals` or `openings` to a language, or drop `mode = \"replace\"`".to_owned(),
            Self::Thinking { .. } => "give `open` and `close` as they stand in the answer".to_owned(),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    thinking: Vec<Thinking>,
    #[serde(default)]
    language: Vec<Language>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Extend,
    Replace,
}

/// A pair of marks around what a model thinks before it answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thinking {
    /// What opens it.
    pub open: String,
    /// What closes it.
    pub close: String,
    /// It counts at the very start only.
    #[serde(default)]
    pub at_start: bool,
    /// Without its close it is no mark.
    #[serde(default)]
    pub needs_close: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Language {
    code: String,
    #[serde(default)]
    #[allow(dead_code)] // for readers of the file
    name: String,
    #[serde(default)]
    exceptions: Vec<String>,
    #[serde(default)]
    caveats: Vec<String>,
    #[serde(default)]
    refusals: Vec<String>,
    #[serde(default)]
    openings: Vec<String>,
    #[serde(default)]
    apologies: Vec<String>,
    #[serde(default)]
    starts: Vec<String>,
    #[serde(default)]
    turns: Vec<String>,
    #[serde(default)]
    redirects: Vec<String>,
}

/// The patterns of one kind, of all languages.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    set: RegexSet,
    each: Vec<(String, Regex)>,
}

impl Kind {
    fn new(
        kind: &'static str,
        languages: &[Language],
        of: impl Fn(&Language) -> &[String],
    ) -> Result<Self, PatternError> {
        let mut texts = Vec::new();
        let mut each = Vec::new();
        for language in languages {
            for (index, pattern) in of(language).iter().enumerate() {
                let (language, number) = (language.code.clone(), index + 1);
                let Some(text) = expression(pattern) else {
                    return Err(PatternError::Blank { language, kind, number });
                };
                let regex = match RegexBuilder::new(&text).case_insensitive(true).size_limit(AUTOMATON).build() {
                    Ok(regex) => regex,
                    Err(e) => {
                        let message = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
                        return Err(PatternError::Regex { language, kind, number, message });
                    }
                };
                if regex.is_match("") {
                    return Err(PatternError::MatchesNothing { language, kind, number });
                }
                each.push((language, regex));
                texts.push(text);
            }
        }
        let set = RegexSetBuilder::new(&texts).case_insensitive(true).size_limit(AUTOMATON).build();
        let set = set.map_err(|e| PatternError::TooLarge { kind, message: e.to_string() })?;
        Ok(Self { set, each })
    }

    /// What the first pattern that matches finds, as `language: words`, and where it ends.
    pub(super) fn find(&self, sentence: &str) -> Option<(String, usize)> {
        let first = self.set.matches(sentence).iter().next()?;
        let (language, regex) = &self.each[first];
        let found = regex.find(sentence)?;
        Some((format!("{language}: {}", found.as_str().trim()), found.end()))
    }

    pub(super) fn is_match(&self, sentence: &str) -> bool {
        self.set.is_match(sentence)
    }

    /// `sentence` with every match blanked by [`super::text::BLANK`].
    pub(super) fn blanked(&self, sentence: &str) -> Option<String> {
        let matched = self.set.matches(sentence);
        if !matched.matched_any() {
            return None;
        }
        let mut text = sentence.to_owned();
        for index in matched.iter() {
            text = self.each[index]
                .1
                .replace_all(&text, |found: &regex::Captures<'_>| super::text::blank(&found[0]))
                .into_owned();
        }
        Some(text)
    }

    fn is_empty(&self) -> bool {
        self.each.is_empty()
    }
}

/// What a pattern is compiled as. None for a blank one.
fn expression(pattern: &str) -> Option<String> {
    let trimmed = pattern.trim();
    if let Some(inner) = trimmed.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
        return (!inner.trim().is_empty()).then(|| inner.replace(['\u{2018}', '\u{2019}', '\u{02bc}'], "'"));
    }
    let folded = super::text::fold(trimmed);
    let folded = folded.trim();
    // an edge of a word is asked for where scripts have such edges
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() && !super::text::is_wide(c));
    let first = if edge(Some(folded.chars().next()?)) { r"\b" } else { "" };
    let last = if edge(folded.chars().last()) { r"\b" } else { "" };
    Some(format!("{first}{}{last}", regex::escape(folded)))
}

/// The patterns, ready to judge answers ([`super::outcome`]).
#[derive(Debug, Clone)]
pub struct RefusalPatterns {
    pub(super) thinking: Vec<Thinking>,
    pub(super) exceptions: Kind,
    pub(super) caveats: Kind,
    pub(super) refusals: Kind,
    pub(super) openings: Kind,
    pub(super) apologies: Kind,
    pub(super) starts: Kind,
    pub(super) turns: Kind,
    pub(super) redirects: Kind,
    languages: Vec<String>,
}

impl RefusalPatterns {
    /// The built-in patterns: 17 languages. Compiled once.
    pub fn built_in() -> &'static Self {
        static PATTERNS: OnceLock<RefusalPatterns> = OnceLock::new();
        PATTERNS.get_or_init(|| {
            Self::compile(parse(BUILT_IN).expect("the built-in file is tested")).expect("the built-in file is tested")
        })
    }

    /// Patterns of a file.
    ///
    /// # Errors
    /// If it cannot be read, or as [`RefusalPatterns::from_toml`].
    pub fn load(path: &Path) -> Result<Self, PatternError> {
        let text = crate::files::read_text(path, crate::files::MAX_SETTINGS)
            .map_err(|source| PatternError::Read { path: path.to_path_buf(), source })?;
        Self::from_toml(&text)
    }

    /// Patterns of a file's text: added to the built-in ones, or in their place with `mode = "replace"`.
    ///
    /// # Errors
    /// If it is not TOML of the format, holds a blank pattern or one that does not compile, or leaves no pattern of
    /// a refusal.
    pub fn from_toml(text: &str) -> Result<Self, PatternError> {
        let mut own = parse(text)?;
        let mut base = parse(BUILT_IN).expect("the built-in file is tested");
        match own.mode {
            Mode::Replace => {
                if own.thinking.is_empty() {
                    own.thinking = base.thinking;
                }
                Self::compile(own)
            }
            Mode::Extend => {
                base.thinking.extend(own.thinking);
                base.language.extend(own.language);
                Self::compile(base)
            }
        }
    }

    fn compile(file: File) -> Result<Self, PatternError> {
        let languages = &file.language;
        let made = Self {
            exceptions: Kind::new("exceptions", languages, |l| &l.exceptions)?,
            caveats: Kind::new("caveats", languages, |l| &l.caveats)?,
            refusals: Kind::new("refusals", languages, |l| &l.refusals)?,
            openings: Kind::new("openings", languages, |l| &l.openings)?,
            apologies: Kind::new("apologies", languages, |l| &l.apologies)?,
            starts: Kind::new("starts", languages, |l| &l.starts)?,
            turns: Kind::new("turns", languages, |l| &l.turns)?,
            redirects: Kind::new("redirects", languages, |l| &l.redirects)?,
            languages: languages.iter().fold(Vec::new(), |mut codes, l| {
                if !codes.contains(&l.code) {
                    codes.push(l.code.clone());
                }
                codes
            }),
            thinking: file.thinking,
        };
        if made.refusals.is_empty() && made.openings.is_empty() {
            return Err(PatternError::NoRefusals);
        }
        Ok(made)
    }

    /// Codes of the languages, each once, in the order of the file.
    pub fn languages(&self) -> &[String] {
        &self.languages
    }

    /// The marks of thinking.
    pub fn thinking(&self) -> &[Thinking] {
        &self.thinking
    }
}

fn parse(text: &str) -> Result<File, PatternError> {
    let file: File = toml::from_str(text).map_err(|e| PatternError::Format { message: e.to_string() })?;
    if file.version != 1 {
        return Err(PatternError::Version { found: file.version });
    }
    let bad = |t: &Thinking| t.open.trim().is_empty() || t.close.trim().is_empty() || t.open == t.close;
    match file.thinking.iter().position(bad) {
        Some(index) => Err(PatternError::Thinking { number: index + 1 }),
        None => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seventeen_languages_are_built_in() {
        let built_in = RefusalPatterns::built_in();
        assert_eq!(built_in.languages().len(), 17);
        assert!(built_in.thinking().iter().any(|t| t.open == "<think>"));
    }

    #[test]
    fn a_phrase_keeps_to_words_and_an_expression_does_as_it_says() {
        let own = r#"
            version = 1
            mode = "replace"
            [[language]]
            code = "xx"
            refusals = ["Not Now", "/no+pe/"]
            openings = ["不行"]
        "#;
        let patterns = RefusalPatterns::from_toml(own).unwrap();
        assert_eq!(patterns.languages(), ["xx"]);
        assert!(!patterns.thinking().is_empty(), "the built-in marks stay");
        assert!(patterns.refusals.is_match("well, not now."));
        assert!(!patterns.refusals.is_match("knot now") && !patterns.refusals.is_match("not nowhere"));
        assert!(patterns.refusals.is_match("anooope"));
        assert_eq!(patterns.refusals.find("a nope").unwrap(), ("xx: nope".to_owned(), 6));
        assert!(patterns.openings.is_match("这不行的"));
    }

    #[test]
    fn a_file_extends_unless_it_replaces() {
        let patterns =
            RefusalPatterns::from_toml("version = 1\n[[language]]\ncode = \"xx\"\nrefusals = [\"nej tak\"]").unwrap();
        assert_eq!(patterns.languages().len(), 18);
        assert!(patterns.refusals.is_match("nej tak") && patterns.refusals.is_match("i can't help with that"));
    }

    #[test]
    fn what_cannot_serve_is_told() {
        let language = |body: &str| format!("version = 1\nmode = \"replace\"\n[[language]]\ncode = \"xx\"\n{body}");
        for (text, words) in [
            ("version = ".to_owned(), "not as expected"),
            ("version = 2".to_owned(), "of version 2"),
            ("version = 1\nmode = \"replace\"".to_owned(), "no refusal pattern"),
            ("version = 1\nmode = \"other\"".to_owned(), "not as expected"),
            (language("refusal = []"), "unknown field `refusal`"),
            (language("refusals = [\"a\", \" \"]"), "pattern 2 of `refusals` is blank"),
            (language("refusals = [\"//\"]"), "is blank"),
            (language("openings = [\"/(a/\"]"), "pattern 1 of `openings` is no regular expression"),
            (language("refusals = [\"/a(?=b)/\"]"), "look-around"),
            (language("refusals = [\"/a*/\"]"), "matches the empty text"),
            (language("refusals = [\"/((a{1000}){1000}){1000}/\"]"), "is no regular expression"),
            ("version = 1\n[[thinking]]\nopen = \"x\"\nclose = \"x\"".to_owned(), "thinking mark 1"),
        ] {
            let error = RefusalPatterns::from_toml(&text).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint().is_some());
        }
        let missing = RefusalPatterns::load(Path::new("no/such/file.toml")).unwrap_err();
        assert!(missing.to_string().contains("no/such/file.toml"));
    }
}
