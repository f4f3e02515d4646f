//! What a template may build, and for how long: the holes that minijinja's fuel and recursion limit leave open.
//!
//! Fuel pays for instructions and bytes, the recursion limit for macros. Neither sees a namespace that holds itself
//! (whose printing and comparing overflow the stack), a list nested a million deep, or a list that is doubled in a loop
//! (added lazily, and then made at once). Values only become so by assignment. So every `{% set %}` is made to pass its
//! value through a filter that bounds its depth and its size with all that it holds, and keeps namespaces out of
//! namespaces. What is left (an argument of a macro that doubles, say) costs time or memory: [`Watch`] bounds both.

use std::path::Path;
use std::time::{Duration, Instant};

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// How deep the value of a variable may be nested.
const MAX_DEPTH: usize = 64;
/// How many values a variable may hold, those that it holds twice counted twice.
const MAX_ITEMS: usize = 100_000;
/// How long one rendering may take. Published templates take milliseconds.
const LONGEST: Duration = Duration::from_secs(10);
/// What the process may grow by while a template renders.
const MOST_BYTES: u64 = 1 << 30;

/// The filter on the value of a variable.
const OF_VARIABLE: &str = "lancet_bounded";
/// The filter on the value of a namespace's member.
const OF_MEMBER: &str = "lancet_bounded_member";

/// Makes the filters known that [`with_bounds`] writes into a template.
pub(super) fn add_filters(environment: &mut Environment<'static>) {
    environment.add_filter(OF_VARIABLE, |state: &State, value: Value| bounded(state, value, Namespaces::Allowed));
    environment.add_filter(OF_MEMBER, |state: &State, value: Value| bounded(state, value, Namespaces::Refused));
}

/// Whether a value may be or hold a namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Namespaces {
    Allowed,
    Refused,
}

fn bounded(state: &State, value: Value, namespaces: Namespaces) -> Result<Value, Error> {
    let mut left = MAX_ITEMS;
    measure(&value, 0, &mut left, namespaces)?;
    state.consume_fuel(((MAX_ITEMS - left) / 8) as u64)?;
    Ok(value)
}

fn measure(value: &Value, depth: usize, left: &mut usize, namespaces: Namespaces) -> Result<(), Error> {
    let refused = |reason: String| Err(Error::new(ErrorKind::InvalidOperation, reason));
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if namespaces == Namespaces::Refused
        && value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
    {
        return refused("a namespace cannot be kept in a namespace".to_owned());
    }
    if depth == MAX_DEPTH {
        return refused(format!("a value is nested more than {MAX_DEPTH} deep"));
    }
    let too_large = || refused(format!("a value holds more than {MAX_ITEMS} items"));
    if value.len().is_some_and(|length| length > *left) {
        return too_large();
    }
    let Ok(items) = value.try_iter() else { return Ok(()) };
    for item in items.checked() {
        let item = item?;
        *left = match left.checked_sub(1) {
            Some(left) => left,
            None => return too_large(),
        };
        if kind == ValueKind::Map {
            measure(&value.get_item(&item)?, depth + 1, left, namespaces)?;
        }
        measure(&item, depth + 1, left, namespaces)?;
    }
    Ok(())
}

/// Where in a block a token stands.
enum Place {
    Outside,
    /// After `{%`.
    Opened,
    /// After `{% set`, before `=`.
    Target {
        member: bool,
    },
    /// After `=`; the last token ended at this byte.
    Value {
        member: bool,
        start: usize,
        end: usize,
    },
    /// After the `|` of a `{% set x | filter %}` block.
    Filters {
        member: bool,
        end: usize,
    },
}

/// The template with a filter at the end of every assigned value. Lines stay where they are. What does not lex is left
/// alone from there on: compiling it fails.
pub(super) fn with_bounds(source: &str, syntax: &SyntaxConfig) -> String {
    let filter = |member| if member { OF_MEMBER } else { OF_VARIABLE };
    let mut edits: Vec<(usize, String)> = Vec::new();
    let mut place = Place::Outside;
    for token in tokenize(source, false, syntax.clone()) {
        let Ok((token, span)) = token else { break };
        let after = span.end_offset as usize;
        place = match (place, &token) {
            (_, Token::BlockStart) => Place::Opened,
            (Place::Opened, Token::Ident("set")) => Place::Target { member: false },
            (Place::Target { .. }, Token::Dot) => Place::Target { member: true },
            (Place::Target { member }, Token::Assign) => Place::Value { member, start: after, end: after },
            (Place::Target { member }, Token::Pipe) => Place::Filters { member, end: after },
            (Place::Value { member, start, end }, Token::BlockEnd) => {
                if end > start {
                    edits.push((start, "(".to_owned()));
                    edits.push((end, format!(")|{}", filter(member))));
                }
                Place::Outside
            }
            (Place::Filters { member, end }, Token::BlockEnd) => {
                edits.push((end, format!("|{}", filter(member))));
                Place::Outside
            }
            (Place::Opened, _) | (_, Token::BlockEnd) => Place::Outside,
            (Place::Value { member, start, .. }, _) => Place::Value { member, start, end: after },
            (Place::Filters { member, .. }, _) => Place::Filters { member, end: after },
            (place, _) => place,
        };
    }
    let mut result = String::with_capacity(source.len() + 32 * edits.len());
    let mut taken = 0;
    for (at, text) in edits {
        result.push_str(&source[taken..at]);
        result.push_str(&text);
        taken = at;
    }
    result.push_str(&source[taken..]);
    result
}

/// The time and memory that a rendering has taken since it began.
pub(super) struct Watch {
    began: Instant,
    bytes: Option<u64>,
}

impl Watch {
    /// How often to look.
    pub(super) const EVERY: Duration = Duration::from_millis(5);

    pub(super) fn start() -> Self {
        Self { began: Instant::now(), bytes: resident() }
    }

    /// What has gone past its bound, in words.
    pub(super) fn exceeded(&self) -> Option<String> {
        let grown = resident().zip(self.bytes).map_or(0, |(now, before)| now.saturating_sub(before));
        if grown > MOST_BYTES {
            return Some(format!("it takes more than {} MB of memory", MOST_BYTES >> 20));
        }
        (self.began.elapsed() > LONGEST).then(|| format!("it takes more than {} s", LONGEST.as_secs()))
    }
}

/// Resident memory of this process in bytes, where the system tells (Linux).
fn resident() -> Option<u64> {
    let text = crate::files::read_text(Path::new("/proc/self/statm"), crate::files::MAX_SETTINGS).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(4096))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(source: &str) -> String {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap();
        with_bounds(source, &syntax).replace(OF_MEMBER, "M").replace(OF_VARIABLE, "V")
    }

    #[test]
    fn assignments_pass_through_a_filter_and_nothing_else_changes() {
        for (source, expected) in [
            ("{% set x = 1 %}", "{% set x =( 1)|V %}"),
            ("a\n{%- set ns.x = [ns.x] -%}\nb", "a\n{%- set ns.x =( [ns.x])|M -%}\nb"),
            ("{% set a, b = 1, 2 %}", "{% set a, b =( 1, 2)|V %}"),
            ("{% set ns.a, b = 1, 2 %}", "{% set ns.a, b =( 1, 2)|M %}"),
            ("{% set x = '%}' ~ y == '=' if z else {'a': 1}%}", "{% set x =( '%}' ~ y == '=' if z else {'a': 1})|V%}"),
            ("{% set x %}{{ y.z = 1 }}{% endset %}", "{% set x %}{{ y.z = 1 }}{% endset %}"),
            ("{% set ns.x | trim | upper %}a{% endset %}", "{% set ns.x | trim | upper|M %}a{% endset %}"),
            (
                "{# {% set x = 1 %} #}{% raw %}{% set x = 1 %}{% endraw %}",
                "{# {% set x = 1 %} #}{% raw %}{% set x = 1 %}{% endraw %}",
            ),
            (
                "{% if set == 1 %}{{ set }}{% endif %}{% for set in x %}é{% endfor %}",
                "{% if set == 1 %}{{ set }}{% endif %}{% for set in x %}é{% endfor %}",
            ),
            ("é {% set e = 'é' %}", "é {% set e =( 'é')|V %}"),
            // what is no template is left for its error from there on
            ("{% set x = 1 %} {% set é = 1 %}", "{% set x =( 1)|V %} {% set é = 1 %}"),
            ("{% set x = 1 %}{% set y = 'never closed", "{% set x =( 1)|V %}{% set y = 'never closed"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }
}
