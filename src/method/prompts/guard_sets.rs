//! The prompts of the guard sets: those that come with the program, and those of a user's files. No I/O: `prompt_files`
//! reads the files.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{PromptClass, PromptError, PromptFormat, parse};
use crate::method::classes::GuardSet;
use crate::records::{self, Fault, Row};

/// Passages that stand before or behind the request of a long prompt.
const PASSAGES: usize = 3;

/// The keys that an object may wrap a list of rows in.
const WRAPPER_KEYS: [&str; 2] = ["data", "pairs"];

/// Who says a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whoever set the model up.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word in chat templates: `system`, `user`, `assistant`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Who says it.
    pub role: Role,
    /// What is said.
    #[serde(rename = "content")]
    pub text: String,
}

/// Turns of which the last is the user's and waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation(Vec<Turn>);

impl Conversation {
    /// A lone turn of the user.
    #[must_use]
    pub fn of_user(text: impl Into<String>) -> Self {
        Self(vec![Turn { role: Role::User, text: text.into() }])
    }

    /// A conversation of these turns.
    ///
    /// # Errors
    /// In words, if a turn is blank, a system turn does not come first, or the last turn is not the user's.
    fn new(turns: Vec<Turn>) -> Result<Self, String> {
        if turns.iter().any(|turn| turn.text.trim().is_empty()) {
            return Err("a text is empty".to_owned());
        }
        if turns.iter().skip(1).any(|turn| turn.role == Role::System) {
            return Err("a system turn does not come first".to_owned());
        }
        match turns.last() {
            Some(Turn { role: Role::User, .. }) => Ok(Self(turns)),
            _ => Err("the last turn is not the user's".to_owned()),
        }
    }

    /// The turns, in order.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.0
    }
}

impl fmt::Display for Conversation {
    /// A lone turn as it is; several below one another, each with who says it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [turn] = self.turns() {
            return f.write_str(&turn.text);
        }
        for (at, turn) in self.turns().iter().enumerate() {
            let between = if at > 0 { "\n\n" } else { "" };
            write!(f, "{between}{}: {}", turn.role.as_str(), turn.text)?;
        }
        Ok(())
    }
}

/// The prompts of one guard set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardPrompts {
    /// Which set.
    pub set: GuardSet,
    /// What must be refused.
    pub to_refuse: Vec<Conversation>,
    /// What only looks like it: the safe halves of [`GuardSet::Contrasts`], else nothing. They are reported and held to no
    /// limit.
    pub safe: Vec<Conversation>,
}

/// A row of `contrasts.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    safe: String,
    #[serde(rename = "unsafe")]
    harmful: String,
}

/// A row of `turns.json` and `ordered.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Messages {
    messages: Vec<Turn>,
}

/// What `long.json` holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    passages: Vec<String>,
    requests: Vec<Request>,
}

/// A request, and where in its long prompt it stands.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    place: Place,
    request: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Start,
    End,
}

impl Long {
    /// The `at`th request with the passages from the `at`th on, around the end of the list.
    fn prompt(&self, at: usize) -> String {
        let Request { place, request } = &self.requests[at];
        let text: Vec<&str> = self.passages.iter().cycle().skip(at).take(PASSAGES).map(String::as_str).collect();
        match place {
            Place::Start => format!("{request}\n\n{}", text.join("\n\n")),
            Place::End => format!("{}\n\n{request}", text.join("\n\n")),
        }
    }
}

impl GuardPrompts {
    /// A set that comes with the program.
    #[must_use]
    pub fn bundled(set: GuardSet) -> Self {
        let text = match set {
            GuardSet::Contrasts => include_str!("../../../fixtures/prompts/guard/contrasts.json"),
            GuardSet::Languages => include_str!("../../../fixtures/prompts/guard/languages.json"),
            GuardSet::Turns => include_str!("../../../fixtures/prompts/guard/turns.json"),
            GuardSet::Ordered => include_str!("../../../fixtures/prompts/guard/ordered.json"),
            GuardSet::Long => include_str!("../../../fixtures/prompts/guard/long.json"),
        };
        Self::parse(set, set.as_str(), text).expect("the bundled files are tested")
    }

    /// A set from the text of a file `name`, in the form of the bundled file of that set
    /// (`fixtures/prompts/README.md`).
    ///
    /// # Errors
    /// If the text is not of that form, or a prompt is blank.
    pub fn parse(set: GuardSet, name: &str, text: &str) -> Result<Self, PromptError> {
        let to_refuse = match set {
            GuardSet::Contrasts => return Self::of_pairs(name, &rows(name, text)?),
            GuardSet::Languages => languages(name, whole(name, text)?)?,
            GuardSet::Turns | GuardSet::Ordered => conversations(name, rows(name, text)?)?,
            GuardSet::Long => long(name, &whole(name, text)?)?,
        };
        Ok(Self { set, to_refuse, safe: Vec::new() })
    }

    /// Contrasts from the text of a user's file: a JSON list of pairs like the bundled one, or a file in which rows are
    /// marked as safe and unsafe, as [`parse()`] reads it (XSTest's among them).
    ///
    /// # Errors
    /// If the text is not in the format that the extension of `name` says, a row is no pair and no prompt, or nothing tells
    /// which prompts are unsafe.
    pub fn contrasts(name: &str, text: &str) -> Result<Self, PromptError> {
        if PromptFormat::of(name)? == PromptFormat::Json && holds_pairs(text) {
            return Self::parse(GuardSet::Contrasts, name, text);
        }
        let marked = |class| {
            let parsed = parse(name, text, class, false)?;
            match parsed.file.selection {
                Some(_) => Ok(parsed.prompts.into_iter().map(Conversation::of_user).collect()),
                None => Err(PromptError::NotMarked { file: name.to_owned() }),
            }
        };
        let (to_refuse, safe) = (marked(PromptClass::Harmful)?, marked(PromptClass::PseudoHarmful)?);
        Ok(Self { set: GuardSet::Contrasts, to_refuse, safe })
    }

    fn of_pairs(name: &str, pairs: &[(Row, Pair)]) -> Result<Self, PromptError> {
        let half = |of: fn(&Pair) -> &String| {
            pairs.iter().map(|(row, pair)| asked(name, *row, of(pair))).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { set: GuardSet::Contrasts, to_refuse: half(|pair| &pair.harmful)?, safe: half(|pair| &pair.safe)? })
    }
}

/// Whether the first item of a JSON list is a pair of contrasts.
fn holds_pairs(text: &str) -> bool {
    let rows = records::json(text, &WRAPPER_KEYS).unwrap_or_default();
    rows.first().and_then(|(_, row)| row.as_object()).is_some_and(|row| row.contains_key("unsafe"))
}

fn languages(name: &str, all: BTreeMap<String, Vec<String>>) -> Result<Vec<Conversation>, PromptError> {
    let prompts = all.into_iter().flat_map(|(language, prompts)| {
        let row = |(at, prompt): (usize, String)| (language.clone(), Row::Item(at + 1), prompt);
        prompts.into_iter().enumerate().map(row).collect::<Vec<_>>()
    });
    let conversation = |(language, row, prompt): (String, Row, String)| {
        asked(name, row, &prompt).map_err(|_| PromptError::GuardRow {
            file: name.to_owned(),
            row,
            reason: format!("a text is empty under `{}`", records::excerpt(&language)),
        })
    };
    prompts.map(conversation).collect()
}

fn conversations(name: &str, rows: Vec<(Row, Messages)>) -> Result<Vec<Conversation>, PromptError> {
    rows.into_iter().map(|(row, Messages { messages })| conversation(name, row, messages)).collect()
}

fn long(name: &str, long: &Long) -> Result<Vec<Conversation>, PromptError> {
    let is_blank = |text: &String| text.trim().is_empty();
    if long.passages.is_empty() || long.passages.iter().any(is_blank) {
        let reason = "there are no passages, or one is empty".to_owned();
        return Err(PromptError::Malformed { file: name.to_owned(), format: PromptFormat::Json, reason });
    }
    let prompt = |(at, request): (usize, &Request)| {
        // beside the passages a blank request would not show
        asked(name, Row::Item(at + 1), &request.request)?;
        Ok(Conversation::of_user(long.prompt(at)))
    };
    long.requests.iter().enumerate().map(prompt).collect()
}

/// What a user asks in one turn.
fn asked(name: &str, row: Row, text: &str) -> Result<Conversation, PromptError> {
    conversation(name, row, vec![Turn { role: Role::User, text: text.to_owned() }])
}

fn conversation(name: &str, row: Row, turns: Vec<Turn>) -> Result<Conversation, PromptError> {
    Conversation::new(turns).map_err(|reason| PromptError::GuardRow { file: name.to_owned(), row, reason })
}

/// The items of a JSON list, each as a `T`.
fn rows<T: DeserializeOwned>(name: &str, text: &str) -> Result<Vec<(Row, T)>, PromptError> {
    let list = records::json(text, &WRAPPER_KEYS).map_err(|fault| match fault {
        Fault::Malformed(reason) => malformed(name, reason),
        Fault::NoList(got) => PromptError::NoList { file: name.to_owned(), got },
    })?;
    let item = |(row, value)| {
        let wrong = |error: serde_json::Error| error.to_string();
        let item = serde_json::from_value(value).map_err(wrong);
        item.map(|item| (row, item)).map_err(|reason| PromptError::GuardRow { file: name.to_owned(), row, reason })
    };
    list.into_iter().map(item).collect()
}

/// A JSON text as a `T`.
fn whole<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, PromptError> {
    serde_json::from_str(text).map_err(|error| malformed(name, error.to_string()))
}

fn malformed(name: &str, reason: String) -> PromptError {
    PromptError::Malformed { file: name.to_owned(), format: PromptFormat::Json, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn error(set: GuardSet, text: &str) -> PromptError {
        GuardPrompts::parse(set, "set.json", text).unwrap_err()
    }

    #[test]
    fn the_bundled_sets_are_short_and_share_no_prompt() {
        let mut seen = HashSet::new();
        for set in GuardSet::ALL {
            let GuardPrompts { to_refuse, safe, .. } = GuardPrompts::bundled(set);
            assert!((16..=48).contains(&to_refuse.len()), "{set}: {}", to_refuse.len());
            assert_eq!(safe.len(), if set == GuardSet::Contrasts { to_refuse.len() } else { 0 }, "{set}");
            assert!(to_refuse.iter().chain(&safe).all(|prompt| seen.insert(prompt.to_string())), "{set}");
        }
        // gates are fitted on other contrasts, and directions on other prompts
        let others = [
            include_str!("../../../fixtures/prompts/contrasts.txt"),
            include_str!("../../../fixtures/prompts/harmful.txt"),
            include_str!("../../../fixtures/prompts/pseudo_harmful.txt"),
            include_str!("../../../fixtures/prompts/requests_harmful.txt"),
            include_str!("../../../fixtures/prompts/requests_pseudo_harmful.txt"),
        ];
        assert!(others.iter().flat_map(|text| text.lines()).all(|line| !seen.contains(line)));
        let families = super::super::families::families();
        let requests = families.iter().flat_map(|family| family.pseudo_harmful.iter().chain(&family.harmful));
        assert!(requests.into_iter().all(|request| !seen.contains(request)));
    }

    #[test]
    fn each_bundled_set_is_what_its_name_says() {
        let of = |set| GuardPrompts::bundled(set).to_refuse;
        let text = include_str!("../../../fixtures/prompts/guard/languages.json");
        let languages: BTreeMap<String, Vec<String>> = whole("languages", text).unwrap();
        assert!(languages.len() >= 6 && languages.values().all(|prompts| prompts.len() >= 4));
        let roles = |prompt: &Conversation| prompt.turns().iter().map(|turn| turn.role).collect::<Vec<_>>();
        assert!(of(GuardSet::Turns).iter().all(|p| roles(p) == [Role::User, Role::Assistant, Role::User]));
        let by_system = of(GuardSet::Ordered).iter().filter(|p| roles(p) == [Role::System, Role::User]).count();
        assert_eq!(by_system, 12);
        let words = |prompt: &Conversation| prompt.to_string().split_whitespace().count();
        assert!(of(GuardSet::Long).iter().all(|prompt| (250..600).contains(&words(prompt))));
    }

    #[test]
    fn a_long_prompt_has_its_request_where_the_file_says() {
        let text = r#"{"passages": ["a", "b"], "requests": [
            {"place": "end", "request": "x?"}, {"place": "start", "request": "y?"}]}"#;
        let found = GuardPrompts::parse(GuardSet::Long, "long.json", text).unwrap().to_refuse;
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a\n\nb\n\na\n\nx?", "y?\n\nb\n\na\n\nb"]);
    }

    #[test]
    fn conversations_are_shown_with_who_speaks() {
        let text = r#"[{"messages": [{"role": "system", "content": "Refuse."}, {"role": "user", "content": "Why?"}]}]"#;
        let found = GuardPrompts::parse(GuardSet::Ordered, "ordered.json", text).unwrap();
        assert_eq!(found.to_refuse[0].to_string(), "system: Refuse.\n\nuser: Why?");
    }

    #[test]
    fn what_is_no_set_is_told_with_its_row() {
        use GuardSet::{Contrasts, Languages, Long, Ordered, Turns};
        for (set, text, words) in [
            (Contrasts, "[{\"safe\": \"a\"}]", "`set.json`, item 1: missing field `unsafe`"),
            (Contrasts, "[{\"safe\": \"a\", \"unsafe\": \" \"}]", "item 1: a text is empty"),
            (Contrasts, "[{\"safe\": \"a\", \"unsafe\": \"b\", \"id\": 1}]", "unknown field `id`"),
            (Contrasts, "{", "is not valid JSON"),
            (Contrasts, "3", "holds no list of prompts"),
            (Languages, "[]", "is not valid JSON"),
            (Languages, "{\"German\": [\"a\", \"\"]}", "item 2: a text is empty under `German`"),
            (Turns, "[{\"messages\": []}]", "the last turn is not the user's"),
            (Turns, "[{\"messages\": [{\"role\": \"bot\", \"content\": \"a\"}]}]", "unknown variant `bot`"),
            (
                Ordered,
                "[{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"system\", \"content\": \"b\"}]}]",
                "a system turn does not come first",
            ),
            (Long, "{\"passages\": [], \"requests\": []}", "there are no passages"),
            (Long, "{\"passages\": [\"a\"], \"requests\": [{\"place\": \"end\", \"request\": \"\"}]}", "item 1"),
        ] {
            let error = error(set, text);
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn contrasts_are_read_as_published_and_as_pairs() {
        let halves = |name: &str, text: &str| {
            let found = GuardPrompts::contrasts(name, text).unwrap();
            (found.to_refuse, found.safe)
        };
        let expected = (vec![Conversation::of_user("bad")], vec![Conversation::of_user("good")]);
        // XSTest's own form, that of its second version on the hub, and pairs
        assert_eq!(halves("x.csv", "id,type,prompt\n1,homonyms,good\n2,contrast_homonyms,bad\n"), expected);
        assert_eq!(halves("x.csv", "prompt,type,label\ngood,homonyms,safe\nbad,contrast_homonyms,unsafe\n"), expected);
        assert_eq!(halves("x.json", "[{\"safe\": \"good\", \"unsafe\": \"bad\"}]"), expected);
        let error = GuardPrompts::contrasts("x.txt", "good\nbad\n").unwrap_err();
        assert!(error.to_string().contains("`x.txt` does not tell"), "{error}");
        assert!(error.hint().is_some());
        let error = GuardPrompts::contrasts("x.csv", "prompt,label\ngood,safe\n").unwrap_err();
        assert!(error.to_string().contains("marks none"), "{error}");
    }
}
