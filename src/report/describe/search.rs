//! The settings that a run was chosen among, on validation prompts.

use super::super::document::{Block, Column, Facts, Look, Section, Table, Text};
use super::super::number::{MISSING, count, percent, significant};
use super::super::{ClassResult, ClassTable, SearchResult, SearchRow};
use super::words::{or_missing, passed, percents, rates};

/// The search of a run; beside the winner what it came to on `test` prompts, which the search never saw.
pub(super) fn search(result: &SearchResult, test: Option<(&ClassTable, Option<f64>)>) -> Section {
    let chosen = result.chosen.and_then(|at| result.rows.get(at));
    let tried = result.rows.len().saturating_sub(1);
    let unchanged = result.rows.first();
    let holds = result.rows.iter().filter(|row| unchanged.is_some_and(|unchanged| row.holds(unchanged))).count();
    let told = match chosen {
        Some(row) => Text::of(Look::Strong, row.setting.to_string()),
        None => Text::of(Look::Bad, "none"),
    };
    let told =
        told.then(format!(", {holds} of {} kept to the policy and lowered false refusal", count(tried, "setting")));
    let facts = Facts::default().summary("Setting", told);
    let facts = match &result.refusal {
        Some(refusal) => facts.summary("Refused", Text::from(refusal)),
        None => facts,
    };
    let section = Section::new("search", "The search").summary(facts).summary(table(result, test));
    section.summary(Block::List(result.rows.iter().filter_map(out).collect())).full(Block::Note(Text::from(
        "Every setting answered the validation prompts with its edit at run time. Of those that kept to the policy's \
         limits on what was counted, and lost no more harmful prompts of every source by their refusal scores, the one that \
         refused the fewest pseudo-harmful prompts was baked. The bounds of the \
         policy are held to test prompts, which no choice was made on.",
    )))
}

/// Why a setting is out.
pub(super) fn out(row: &SearchRow) -> Option<Text> {
    let reasons = row.guard.as_ref().map(|guard| guard.reasons.join("; ")).filter(|reasons| !reasons.is_empty());
    let why = row.failure.clone().or(reasons)?;
    Some(Text::from(format!("{}: {why}", row.setting)))
}

fn table(result: &SearchResult, test: Option<(&ClassTable, Option<f64>)>) -> Table {
    let columns = [
        Column::words("setting"),
        Column::numbers("pseudo-harmful"),
        Column::numbers("harmful"),
        Column::numbers("wrapped"),
        Column::numbers("lost by score"),
        Column::numbers("harmless").full(),
        Column::numbers("harmless KL"),
        Column::words("policy"),
    ];
    let rate = |r: &ClassResult| if r.total == 0 { Text::from(MISSING) } else { rates(&[r]) };
    let rows = result.rows.iter().enumerate().map(|(at, row)| {
        let look = if Some(at) == result.chosen { Look::Strong } else { Look::Plain };
        [
            Text::of(look, row.setting.to_string()),
            rate(&row.classes.pseudo_harmful),
            rate(&row.classes.harmful),
            Text::from(or_missing(row.wrapped_refusal_rate, percent))
                .aside(percents(row.wrapped_interval).unwrap_or_default()),
            Text::from(or_missing(row.lost, |of| format!("{} of {}", of.lost, of.total))),
            rate(&row.classes.harmless),
            Text::from(significant(row.harmless_kl)),
            policy(row),
        ]
    });
    let on_test = test.map(|(classes, kl)| {
        [
            Text::from("chosen, on test prompts"),
            rate(&classes.pseudo_harmful),
            rate(&classes.harmful),
            Text::from(MISSING),
            Text::from(MISSING),
            rate(&classes.harmless),
            Text::from(significant(kl)),
            Text::default(),
        ]
    });
    Table::new("search", "Refusals by setting, on validation prompts", columns).with(rows.chain(on_test))
}

/// Whether a setting keeps to the policy.
pub(super) fn policy(row: &SearchRow) -> Text {
    match (&row.guard, &row.failure) {
        (_, Some(_)) => Text::from("not measured"),
        (Some(guard), None) => passed(guard.passed),
        (None, None) => Text::from(MISSING),
    }
}
