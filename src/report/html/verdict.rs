//! What stands first: false and true refusal before and after, and every limit of the guard.

use super::super::number::{MISSING, percent, significant};
use super::super::{Checked, ClassResult, GuardResult, RunResult, Verdict};
use super::escape;
use super::parts::{dots, facts, fold, items, note, passed, percents, section, table};

/// The verdict in a sentence.
pub(super) fn lead(run: &RunResult) -> &'static str {
    match run.verdict() {
        Verdict::Published => "The rewritten model was verified, and every limit of the guard holds.",
        Verdict::Overridden => {
            "The rewritten model was verified. A limit of the guard does not hold, and the user published it by name."
        }
        Verdict::GuardRefused => "A limit of the guard does not hold, so no model was published.",
        Verdict::NotVerified => "The rewritten model is not what it should be, so no model was published.",
    }
}

/// The two rates that a run is about.
pub(super) fn cards(run: &RunResult) -> String {
    let card = |title: &str, meant: &str, before: &ClassResult, after: &ClassResult| {
        let side = |word: &str, r: &ClassResult| {
            format!(
                "<div><span class=\"small\">{word}</span> <strong>{}</strong> <span class=\"small\">{} of {}{}</span></div>",
                percent(r.refusal_rate).replace(' ', "\u{a0}"),
                r.refused,
                r.total,
                percents(r.interval())
                    .map(|text| format!(", 95 % interval <span class=\"whole\">{text}</span>"))
                    .unwrap_or_default()
            )
        };
        format!(
            "<div class=\"card\">\n<h2>{title}</h2>\n<p class=\"small\">{meant}</p>\n<div class=\"sides\">{}{}</div>\n{}\n</div>\n",
            side("before", before),
            side("after", after),
            format_args!(
                "{}<span class=\"scale\"><i>0</i><i>50</i><i>100 %</i></span>",
                dots((before.refusal_rate, before.interval()), (after.refusal_rate, after.interval()))
            )
        )
    };
    let (before, after) = (&run.eval.before, &run.eval.after);
    format!(
        "<div class=\"cards\">\n{}{}</div>\n",
        card(
            "False refusal",
            "pseudo-harmful prompts that are refused: should fall",
            &before.pseudo_harmful,
            &after.pseudo_harmful
        ),
        card("True refusal", "harmful prompts that are refused: must stay", &before.harmful, &after.harmful)
    )
}

/// A number of a check, in the unit of its limit: rates and losses are fractions, KL is in nats.
pub(in super::super) fn measured(check: &Checked, value: Option<f64>) -> String {
    match (value.filter(|v| v.is_finite()), check.unit.as_str()) {
        (Some(value), "nats") => format!("{} nats", significant(value)),
        (Some(value), "ratio") => format!("x{}", significant(value)),
        (Some(value), "prompts") => format!("{value}"),
        (Some(value), _) => percent(value),
        (None, _) => MISSING.into(),
    }
}

pub(super) fn guard(guard: &GuardResult) -> String {
    let outcome = match (guard.passed, guard.overridden) {
        (true, _) => "<p>Every limit of the policy holds.</p>\n",
        (false, true) => {
            "<p class=\"failed\">A limit of the policy does not hold, and the guard was overridden by name.</p>\n"
        }
        (false, false) => "<p class=\"failed\">A limit of the policy does not hold: no model was published.</p>\n",
    };
    let mut out = outcome.to_owned();
    if !guard.reasons.is_empty() {
        out.push_str(&items(&guard.reasons.iter().map(|r| escape(r)).collect::<Vec<_>>()));
    }
    if guard.checks.is_empty() {
        let bound =
            guard.drop_bound.map(|b| format!(", with 95 % confidence at most {}", percent(b))).unwrap_or_default();
        out.push_str(&facts(&[
            (
                "Harmful prompts refused",
                format!("{} → {}", percent(guard.harmful_before), percent(guard.harmful_after)),
            ),
            ("Drop", format!("{}{bound}; limit {}", percent(guard.drop), percent(guard.limit))),
        ]));
        return section("guard", "The guard", &out);
    }
    let rows: Vec<Vec<String>> = guard
        .telling()
        .into_iter()
        .map(|c| {
            vec![
                escape(&c.name),
                passed(c.passed),
                measured(c, c.value),
                measured(c, c.bound),
                measured(c, Some(c.limit)),
            ]
        })
        .collect();
    let header =
        [("limit on", false), ("", false), ("measured loss", true), ("confidence bound", true), ("limit", true)];
    out.push_str(&table("checks", "Checks of the guard", &header, &rows));
    let words: Vec<String> = guard
        .checks
        .iter()
        .map(|c| format!("<b>{}</b> {}: {}", escape(&c.name), passed(c.passed), escape(&c.words)))
        .collect();
    out.push_str(&fold("Every limit in words", &items(&words)));
    if !guard.not_measured.is_empty() {
        let names = escape(&guard.not_measured.join(", "));
        out.push_str(&note(&format!("Not measured, and so held to no limit: {names}.")));
    }
    section("guard", "The guard", &out)
}
