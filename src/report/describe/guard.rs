//! Whether true refusal stayed: every limit of the policy and what was found.

use super::super::document::{Block, Column, Facts, Look, Section, Table, Text};
use super::super::number::{MISSING, percent, significant};
use super::super::{Check, GuardResult, Limit, Unit};
use super::words::passed;

/// A number of a check, in the unit of its limit: rates and losses are fractions, KL is in nats.
fn measured(check: &Check, value: Option<f64>) -> String {
    match (value.filter(|v| v.is_finite()), check.unit) {
        (Some(value), Unit::Nats) => format!("{} nats", significant(value)),
        (Some(value), Unit::Ratio) => format!("x{}", significant(value)),
        (Some(value), Unit::Prompts) => format!("{value}"),
        (Some(value), Unit::Share) => percent(value),
        (None, _) => MISSING.into(),
    }
}

/// Passed, failed, or failed and overridden, with the rates that it is about.
fn line(guard: &GuardResult) -> Text {
    let outcome = match (guard.passed, guard.overridden) {
        (true, _) => passed(true),
        (false, false) => passed(false),
        (false, true) => passed(false).then(" and overridden by the user"),
    };
    let bound = guard.drop_bound.map(|b| format!(", with 95 % confidence at most {}", percent(b))).unwrap_or_default();
    outcome.then(format!(
        ": true refusal {} → {}, drop {}{bound}; limit {}",
        percent(guard.harmful_before),
        percent(guard.harmful_after),
        percent(guard.drop),
        percent(guard.limit),
    ))
}

/// The judgement, why, and every limit; those that do not hold stand first.
pub(super) fn guard(guard: &GuardResult) -> Section {
    let columns = [
        Column::words("limit on").shortened(),
        Column::words(""),
        Column::numbers("measured"),
        Column::numbers("confidence bound"),
        Column::numbers("limit"),
    ];
    let mut telling = guard.telling();
    telling.sort_by_key(|check| check.passed);
    let rows = telling.into_iter().map(|c| {
        let numbers = [c.value, c.bound, Some(c.limit)].map(|value| Text::from(measured(c, value)));
        [Text::from(c.name()), passed(c.passed)].into_iter().chain(numbers)
    });
    let table = Table::new("checks", "Checks of the guard", columns).with(rows);
    let words =
        |c: &Check| Text::of(Look::Strong, c.name()).then(" ").join(passed(c.passed)).then(format!(": {}", c.words));
    let mut section = Section::new("guard", "The guard")
        .summary(Facts::default().summary("Guard", line(guard)))
        .summary(Block::List(guard.reasons.iter().map(Text::from).collect()))
        .summary(table);
    if !guard.checks.is_empty() {
        let all = Block::List(guard.checks.iter().map(words).collect());
        section = section.full(Block::Fold(Text::from("Every limit in words"), vec![all]));
    }
    let names = |limits: &[Limit]| limits.iter().copied().map(Limit::words).collect::<Vec<_>>().join(", ");
    if !guard.too_few_refused.is_empty() {
        let silent = names(&guard.too_few_refused);
        let why = format!("Held to no limit, as the input model refuses too few of their prompts: {silent}.");
        section = section.summary(Block::Note(Text::from(why)));
    }
    if !guard.not_measured.is_empty() {
        let missing = format!("Not measured, and so held to no limit: {}.", names(&guard.not_measured));
        section = section.full(Block::Note(Text::from(missing)));
    }
    section
}
