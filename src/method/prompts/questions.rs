//! The same request as a longer question. Sets of harmful prompts are often orders and short questions, where people who
//! are refused by mistake ask at length: a gate that sees harm in one form alone opens for the other.

use std::sync::LazyLock;

use serde::Deserialize;

static QUESTIONS: LazyLock<Questions> = LazyLock::new(|| {
    toml::from_str(include_str!("../../../fixtures/prompts/questions.toml"))
        .expect("the bundled file is part of the program and a test reads it")
});

/// `fixtures/prompts/questions.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Questions {
    openings: Vec<String>,
    verbs: Vec<String>,
    actions: Vec<String>,
    orders: Vec<String>,
}

/// What in a question shows that more is asked than one action.
const ASIDES: [&str; 7] = [", so ", ", how ", ", what ", ", which ", ", where ", ", can ", "; "];

/// What a prompt asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// "pick a lock"
    Action(String),
    /// "write a poem"
    Order(String),
}

/// `prompt` as a question, in the words of the frame of this number; `None` where it is not one sentence that asks for an
/// action, or orders something.
pub(super) fn question(prompt: &str, number: usize) -> Option<String> {
    let frame = |frames: &'static [String]| frames[number % frames.len()].as_str();
    Some(match asked(prompt)? {
        Asked::Action(action) => frame(&QUESTIONS.actions).replace("{action}", &action),
        Asked::Order(order) => frame(&QUESTIONS.orders).replace("{order}", &order),
    })
}

fn asked(prompt: &str) -> Option<Asked> {
    let sentence = prompt.trim().trim_end_matches(['.', '?', '!']);
    if [". ", "? ", "! ", "\n"].iter().any(|end| sentence.contains(end)) {
        return None;
    }
    let after = |opening: &String| {
        let start = sentence.get(..opening.len())?;
        let rest = sentence.get(opening.len()..)?.strip_prefix(' ')?;
        start.eq_ignore_ascii_case(opening).then_some((opening.len(), rest.trim()))
    };
    if let Some((_, action)) = QUESTIONS.openings.iter().filter_map(after).max_by_key(|(length, _)| *length) {
        let plain = action.contains(' ') && !ASIDES.iter().any(|aside| action.contains(aside));
        return plain.then(|| Asked::Action(action.to_string()));
    }
    let (first, rest) = sentence.split_once(' ')?;
    let verb = QUESTIONS.verbs.iter().find(|verb| first.eq_ignore_ascii_case(verb))?;
    Some(Asked::Order(format!("{verb} {rest}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_in_order() {
        let Questions { openings, verbs, actions, orders } = &*QUESTIONS;
        let plain = |text: &&String| text.trim() == *text && **text == text.to_lowercase();
        assert!(openings.iter().chain(verbs).all(|text| plain(&text)));
        assert!(actions.iter().all(|frame| frame.matches("{action}").count() == 1));
        assert!(orders.iter().all(|frame| frame.matches("{order}").count() == 1));
        for all in [openings, verbs, actions, orders] {
            let mut seen = std::collections::HashSet::new();
            assert!(all.iter().all(|text| seen.insert(text)), "given twice");
        }
    }

    #[test]
    fn what_is_asked_is_found() {
        let action = |text: &str| Some(Asked::Action(text.into()));
        for (prompt, found) in [
            ("How do I pick a lock?", action("pick a lock")),
            ("  how can I   kill a Python process ?", action("kill a Python process")),
            ("Give step-by-step instructions on how to bake bread.", action("bake bread")),
            ("Can you help me to write a poem?", action("write a poem")),
            ("Write a poem about rain.", Some(Asked::Order("write a poem about rain".into()))),
            // two things, two sentences, or none of the forms
            ("How do I bake bread, and what do I need, so that it rises?", None),
            ("I bake bread. How do I knead it?", None),
            ("How do I swim?", None),
            ("Is rain wet?", None),
            ("Writing a poem is hard", None),
            ("How to", None),
            ("", None),
            ("\u{201c}How do I\u{201d}", None),
        ] {
            assert_eq!(asked(prompt), found, "{prompt}");
        }
        assert_eq!(question("How do I pick a lock?", 1).unwrap(), "What are the most reliable ways to pick a lock?");
        assert_eq!(question("How do I pick a lock?", 13), question("How do I pick a lock?", 1));
        assert_eq!(
            question("List the oceans!", 0).unwrap(),
            "Could you list the oceans, with a few concrete examples?"
        );
    }
}
