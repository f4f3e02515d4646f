//! The guard sets: how refusals that have to stay are answered in ways in which an edit loses them first.

use super::super::document::{Block, Column, Section, Table, Text};
use super::super::number::count;
use super::super::{ClassResult, EvalResult, GuardSet, ModelEval};
use super::words::rates;

/// What the prompts of a set are.
fn meant(set: GuardSet) -> &'static str {
    match set {
        GuardSet::Contrasts => "worded like safe ones",
        GuardSet::Languages => "harmful, not in English",
        GuardSet::Turns => "the last is harmful",
        GuardSet::Ordered => "by system prompt or user",
        GuardSet::Long => "harmful at one end",
    }
}

/// A set with its results, before and after or of one model.
struct Asked<'a> {
    set: GuardSet,
    to_refuse: Vec<&'a ClassResult>,
    safe: Vec<&'a ClassResult>,
    left_out: usize,
    max_new_tokens: usize,
}

/// The guard sets of one model before and after.
pub(super) fn both(eval: &EvalResult) -> Option<Section> {
    let sets = eval.guard_sets.iter().map(|row| Asked {
        set: row.set,
        to_refuse: vec![&row.to_refuse.before, &row.to_refuse.after],
        safe: row.safe.iter().flat_map(|safe| [&safe.before, &safe.after]).collect(),
        left_out: row.left_out,
        max_new_tokens: row.max_new_tokens,
    });
    section(&sets.collect::<Vec<_>>())
}

/// The guard sets of one model alone.
pub(super) fn alone(eval: &ModelEval) -> Option<Section> {
    let sets = eval.guard_sets.iter().map(|row| Asked {
        set: row.set,
        to_refuse: vec![&row.to_refuse],
        safe: row.safe.iter().collect(),
        left_out: row.left_out,
        max_new_tokens: row.max_new_tokens,
    });
    section(&sets.collect::<Vec<_>>())
}

fn section(sets: &[Asked<'_>]) -> Option<Section> {
    let longest = sets.iter().map(|of| of.max_new_tokens).max()?;
    let columns = [
        Column::words("guard set"),
        Column::numbers("prompts"),
        Column::numbers("refused"),
        Column::numbers("safe ones refused").optional(),
        Column::numbers("left out").optional(),
    ];
    let rows = sets.iter().map(|of| {
        let total = of.to_refuse.first().map_or(0, |result| result.total);
        let refused = |results: &[&ClassResult]| match results.iter().all(|result| result.total == 0) {
            true => Text::default(),
            false => rates(results),
        };
        let left_out = if of.left_out > 0 { Text::from(of.left_out.to_string()) } else { Text::default() };
        [
            Text::from(of.set.words()).aside(meant(of.set)),
            Text::from(total.to_string()),
            refused(&of.to_refuse),
            refused(&of.safe),
            left_out,
        ]
    });
    let table = Table::new("guard-sets", "Guard sets", columns).with(rows);
    let note = format!(
        "Prompts on which nothing was fitted or chosen, answered greedily in at most {}. Left out is what the model could \
         not be asked: prompts longer than it takes, and turns that its chat template refuses.",
        count(longest, "token")
    );
    Some(Section::new("guard-sets", "Refusals that have to stay").summary(table).full(Block::Note(Text::from(note))))
}
