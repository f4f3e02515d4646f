//! How a gate was fitted and chosen: its sources, its layers, its candidates.

use super::super::document::{
    Axis, Block, Chart, Column, Document, Facts, Figure, Look, Point, Scale, Section, Series, Table, Text,
};
use super::super::number::{count, percent, setting, significant};
use super::super::{GateCandidate, GateResult, GateScores, GateSetting, Refused};
use super::words::or_missing;

/// What `lancet select --method gate` found.
#[must_use]
pub fn select_gate(result: &GateResult) -> Document {
    Document { sections: vec![gate(result)], ..Document::default() }
}

/// The gate of a run.
pub(super) fn gate(result: &GateResult) -> Section {
    let section = Section::new("gate", "The gate").summary(facts(result)).summary(validation(result));
    let folded = Block::folded(format!("All {}", count(result.candidates.len(), "candidate")), candidates(result));
    section.full(sources(result)).full(layers(result)).full(folded).full(Block::folded("The terms", terms(result)))
}

/// Refused prompts of all sources together.
fn all(scores: &[GateScores], of: fn(&GateScores) -> Refused) -> Refused {
    scores.iter().map(of).fold(Refused::default(), |sum, one| Refused {
        refused: sum.refused + one.refused,
        total: sum.total + one.total,
    })
}

fn shown(refused: Refused) -> String {
    format!("{} of {}", refused.refused, refused.total)
}

/// The candidate that was chosen.
fn winner(result: &GateResult) -> Option<&GateCandidate> {
    result.candidates.iter().find(|row| row.setting == result.selected)
}

fn facts(result: &GateResult) -> Facts {
    let chosen = &result.selected;
    let place = Text::from(format!(
        "{}, factor {}; it may open for {} of the harmful prompts of a source",
        layers_of(chosen),
        setting(chosen.alpha),
        percent(chosen.open)
    ));
    let change = |of: fn(&GateScores) -> Refused| {
        let after = winner(result).map(|row| all(&row.scores, of));
        format!("{} → {}", shown(all(&result.baseline, of)), or_missing(after, shown))
    };
    let validation = format!(
        "refused {} pseudo-harmful, {} harmful; harmless KL {} on {}",
        change(|scores| scores.pseudo_harmful),
        change(|scores| scores.harmful),
        significant(winner(result).and_then(|row| row.kl)),
        count(result.harmless, "prompt"),
    );
    let tokens = result.refusal_tokens.iter().map(|t| Text::of(Look::Code, &t.text).then(format!(" ({})", t.id)));
    let tokens = Text::list(tokens, ", ").then(format!("; {}", result.refusal_tokens_chosen));
    Facts::default().summary("Gate", place).summary("Validation", validation).full("Refusal tokens", tokens)
}

/// The layers of a setting.
fn layers_of(setting: &GateSetting) -> String {
    let all: Vec<String> = setting.layers.iter().map(ToString::to_string).collect();
    format!("{} {}", if all.len() == 1 { "layer" } else { "layers" }, all.join(", "))
}

/// What the gates were fitted on, and how they do where they were not.
fn sources(result: &GateResult) -> Table {
    let columns = [
        Column::words("source"),
        Column::numbers("layer"),
        Column::numbers("pseudo-harmful"),
        Column::numbers("opens for"),
        Column::numbers("harmful"),
        Column::numbers("opens for"),
        Column::numbers("AUC, left out"),
    ];
    let rows = result.terms.iter().flat_map(|term| term.sources.iter().map(move |row| (term.layer, row)));
    let rows = rows.map(|(layer, row)| {
        [
            row.source.to_string(),
            layer.to_string(),
            row.pseudo_harmful.to_string(),
            percent(row.opens_pseudo_harmful),
            row.harmful.to_string(),
            percent(row.opens_harmful),
            or_missing(row.auc, |auc| format!("{auc:.2}")),
        ]
        .map(Text::from)
    });
    Table::new("sources", "Train prompts of the gate, each left out in turn", columns).with(rows)
}

/// What the choice comes to on the validation prompts of each source.
fn validation(result: &GateResult) -> Table {
    let columns =
        [Column::words("source"), Column::numbers("pseudo-harmful refused"), Column::numbers("harmful refused")];
    let after = winner(result).map_or(&[][..], |row| &row.scores[..]);
    let rows = result.baseline.iter().zip(after).map(|(before, after)| {
        let change = |of: fn(&GateScores) -> Refused| format!("{} → {}", shown(of(before)), shown(of(after)));
        [before.source.to_string(), change(|scores| scores.pseudo_harmful), change(|scores| scores.harmful)]
            .map(Text::from)
    });
    Table::new("validation", "Validation prompts", columns).with(rows)
}

/// The numbers of each term.
fn terms(result: &GateResult) -> Table {
    let columns = ["layer", "threshold", "ramp", "floor", "known prompts", "other positions"].map(Column::numbers);
    let rows = result.terms.iter().map(|term| {
        [
            term.layer.to_string(),
            significant(term.threshold),
            significant(term.ramp),
            significant(term.floor),
            term.centers.to_string(),
            percent(term.opens_elsewhere),
        ]
        .map(Text::from)
    });
    Table::new("terms", "Terms", columns).with(rows)
}

/// How well discriminants of the layers hold for sources that they were not fitted on.
fn layers(result: &GateResult) -> Block {
    let point =
        |layer: usize, y: f64| Point { x: layer as f64, y, tip: format!("layer {layer}: {y:.2}"), ..Point::default() };
    let points = result.layers.iter().filter_map(|row| Some(point(row.layer, row.generalises?))).collect();
    let series = vec![Series { name: "sources that were left out", joined: true, look: 0, points }];
    let title = "How well a discriminant tells sources apart that it was not fitted on";
    let x = Axis { title: "layer", scale: Scale::Whole, include: &[] };
    let y = Axis { title: "AUC", scale: Scale::Linear, include: &[0.5, 1.0] };
    let at = result.terms.first().map(|term| (term.layer as f64, "first gate"));
    Block::Figures(vec![Figure::Chart(Chart { title, x, y, series, at })])
}

fn candidates(result: &GateResult) -> Table {
    let columns = [
        Column::words("layers"),
        Column::numbers("open"),
        Column::numbers("factor"),
        Column::numbers("pseudo-harmful refused"),
        Column::numbers("harmful refused"),
        Column::numbers("lost"),
        Column::numbers("harmless KL"),
        Column::words(""),
    ];
    let rows = result.candidates.iter().map(|row| {
        let fate = match &row.discarded {
            Some(reason) => Text::from(reason.to_string()),
            None if winner(result) == Some(row) => Text::of(Look::Strong, "chosen"),
            None => Text::default(),
        };
        let numbers = [
            layers_of(&row.setting),
            percent(row.setting.open),
            setting(row.setting.alpha),
            shown(all(&row.scores, |scores| scores.pseudo_harmful)),
            shown(all(&row.scores, |scores| scores.harmful)),
            row.scores.iter().map(|scores| scores.lost).sum::<usize>().to_string(),
            significant(row.kl),
        ];
        numbers.map(Text::from).into_iter().chain([fate]).collect::<Vec<_>>()
    });
    Table::new("gates", "Candidates of the gate", columns).with(rows)
}
