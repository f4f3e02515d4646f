//! Answers before and after a change, with filters.

use serde::Serialize;

use super::{Text, verbatim};
use crate::report::layout::single_line;

/// One prompt with both answers.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    prompt: String,
    /// What kind of prompt it is.
    kind: Text,
    /// What changed, in a word.
    outcome: Text,
    before: Side,
    after: Side,
    /// The choices of the filters that it belongs to, as `FILTER-CHOICE`.
    tags: Vec<String>,
}

/// An answer with its label.
#[derive(Debug, Clone, Serialize)]
struct Side {
    outcome: String,
    text: String,
}

impl Answer {
    /// A prompt of a kind, and the outcome in a word with the text of both answers.
    #[must_use]
    pub fn new(kind: Text, prompt: &str, before: (&str, &str), after: (&str, &str)) -> Self {
        let side = |(outcome, text): (&str, &str)| Side { outcome: single_line(outcome), text: verbatim(text) };
        let (before, after) = (side(before), side(after));
        Self { prompt: verbatim(prompt), kind, outcome: Text::default(), before, after, tags: vec![] }
    }

    /// The answer with what changed, in a word.
    #[must_use]
    pub fn outcome(self, outcome: Text) -> Self {
        Self { outcome, ..self }
    }

    /// The answer as one of a choice of a filter.
    #[must_use]
    pub fn tag(mut self, filter: &str, choice: &str) -> Self {
        self.tags.push(format!("{filter}-{choice}"));
        self
    }

    /// Kind, prompt and both answers.
    pub(super) fn texts(&self) -> (&Text, [(&'static str, &str); 3]) {
        (&self.kind, [("prompt", &self.prompt), ("before", &self.before.text), ("after", &self.after.text)])
    }
}

/// What a list of answers can be narrowed down to: one of several choices.
#[derive(Debug, Clone, Serialize)]
pub struct Filter {
    id: &'static str,
    label: &'static str,
    choices: Vec<Choice>,
}

#[derive(Debug, Clone, Serialize)]
struct Choice {
    id: String,
    label: String,
    count: usize,
}

impl Filter {
    /// A filter with choices, each an id and a label. An id is made of letters, digits, `-` and `_`.
    #[must_use]
    pub fn new(id: &'static str, label: &'static str, choices: impl IntoIterator<Item = (String, String)>) -> Self {
        let choice = |(id, label): (String, String)| Choice { id, label: single_line(&label), count: 0 };
        Self { id, label, choices: choices.into_iter().map(choice).collect() }
    }
}

/// A list of answers.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    filters: Vec<Filter>,
    answers: Vec<Answer>,
}

impl Answers {
    /// A short list, all of which is shown.
    #[must_use]
    pub fn open(answers: Vec<Answer>) -> Self {
        Self { filters: vec![], answers }
    }

    /// A long list, folded, with filters. A choice that no answer belongs to is left out, and a filter without choices.
    #[must_use]
    pub fn filtered(mut filters: Vec<Filter>, answers: Vec<Answer>) -> Self {
        for filter in &mut filters {
            for choice in &mut filter.choices {
                let tag = format!("{}-{}", filter.id, choice.id);
                choice.count = answers.iter().filter(|answer| answer.tags.contains(&tag)).count();
            }
            filter.choices.retain(|choice| choice.count > 0);
        }
        filters.retain(|filter| !filter.choices.is_empty());
        Self { filters, answers }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter()
    }

    pub(super) fn filters(&self) -> &[Filter] {
        &self.filters
    }
}
