//! Settings side by side: what is gained, what is lost, which is best; and directions on other prompt sets.

use super::super::document::{
    Axis, Block, Chart, Column, Detail, Document, Facts, Figure, Look, Point, Scale, Section, Series, Table, Text,
};
use super::super::number::{MISSING, count, percent, significant};
use super::super::{
    AddedCost, ClassResult, CompareResult, CompareRow, CrossRow, Estimate, Interval, Latency, Recommendation,
    SearchSetting, Versus, WhyBest, WhyNone,
};
use super::search::{out, policy};
use super::words::{between, change, mark, or_missing, percents};
use crate::report::document::Track;

/// What `lancet compare` found.
#[must_use]
pub fn compare(result: &CompareResult) -> Document {
    let title = match result.recommended() {
        Some(row) => Text::of(Look::Good, format!("best: {}", row.tried.setting)),
        None => Text::of(Look::Bad, "no setting is recommended"),
    };
    Document {
        title,
        subject: Text::of(Look::Path, &result.model),
        made_by: Text::from(format!("Lancet {}", env!("CARGO_PKG_VERSION"))),
        sections: section(result, Detail::Summary),
    }
}

/// The same within a run: the recommendation is told everywhere, the settings where there is room.
pub(super) fn section(result: &CompareResult, settings: Detail) -> Vec<Section> {
    let outs = result.rows.iter().filter_map(|row| out(&row.tried)).collect();
    let trade = Section::new("compare", "The trade-off")
        .at(settings, table(result))
        .at(settings, Block::List(outs))
        .summary(recommendation(result))
        .full(charts(result))
        .full(Block::Note(Text::from(
            "Each point is a setting; bars are 95 % intervals, a ring marks the recommended one. Best is up and to the left: \
             more true refusal kept, less false refusal left. Measured with the edit at run time. Rows are chosen by the \
             prompts that they are shown on, so the rates of the best lean to the good side.",
        )));
    let cross = Section::new("cross", "Directions on other prompt sets").at(settings, cross(&result.cross));
    vec![
        trade,
        cross.full(Block::Note(Text::from(
            "Pseudo-harmful refusal of a set before and after the direction of another set is ablated, with the 95 % \
             interval of the second, what is left of harmful refusal, and the cosine between the sets' directions.",
        ))),
    ]
}

/// Which row is best, why, and by how much.
fn recommendation(result: &CompareResult) -> Facts {
    let name = |row: usize| result.rows.get(row).map_or(MISSING, |row| row.name.as_str());
    let of = format!(" of {}: ", count(result.tried(), "setting"));
    match &result.recommendation {
        Recommendation::Row { row, why, second } => {
            let refused =
                result.rows.get(*row).map_or_else(String::new, |row| counted(&row.tried.classes.pseudo_harmful));
            let best = Text::of(Look::Strong, name(*row)).then(of);
            let best = best.then(format!("{refused} pseudo-harmful prompts are still refused, {}", why_best(*why)));
            let facts = Facts::default().summary("Best", best);
            let facts = match second {
                Some(second) => facts.summary("Second", Text::of(Look::Strong, name(second.row)).then(beside(second))),
                None => facts,
            };
            match &result.output {
                Some(output) => facts.summary("Direction", Text::of(Look::Path, file(output, name(*row)))),
                None => facts,
            }
        }
        Recommendation::Nothing { why, closest } => {
            let facts = Facts::default().summary("Best", Text::of(Look::Bad, "none").then(of).then(why_none(*why)));
            match closest {
                Some(row) => facts.summary("Closest", Text::of(Look::Strong, name(*row))),
                None => facts,
            }
        }
    }
}

/// The direction file of a row in a folder.
fn file(output: &str, name: &str) -> String {
    format!("{}/{name}.safetensors", output.trim_end_matches('/'))
}

fn why_best(why: WhyBest) -> &'static str {
    match why {
        WhyBest::OnlyOne => "and no other setting keeps to the policy and lowers false refusal",
        WhyBest::FewestRefused => "the fewest of the settings that keep to the policy",
        WhyBest::SmallestKl => "as few as with the second, and harmless prompts change less",
        WhyBest::FirstTried => "as few as with the second, which changes harmless prompts as much",
    }
}

fn why_none(why: WhyNone) -> &'static str {
    match why {
        WhyNone::NotMeasured => "none has an edit",
        WhyNone::NoFalseRefusal => "the model refuses no pseudo-harmful prompt, so there is no false refusal to mend",
        WhyNone::NoGain => "none refuses fewer pseudo-harmful prompts than the model does",
        WhyNone::Policy => "every one that lowers false refusal is outside the policy",
    }
}

/// The second beside the best one.
fn beside(second: &Versus) -> String {
    let Versus { only_best, only_second, p_value, .. } = second;
    let interval = percents(second.interval).map(|interval| format!(" ({interval})")).unwrap_or_default();
    let verdict = if second.significant { "significant" } else { "not significant" };
    format!(
        ": refuses {only_second} prompts that the best answers, and answers {only_best} that the best refuses: {} \
         more{interval}, {verdict} (McNemar, p {})",
        or_missing(second.difference, percent),
        significant(*p_value)
    )
}

/// `12/32`.
fn counted(class: &ClassResult) -> String {
    format!("{}/{}", class.refused, class.total)
}

fn table(result: &CompareResult) -> Table {
    let measured = |get: fn(&CompareRow) -> bool| result.rows.iter().any(get);
    let (perplexity, accuracy) = (measured(|row| row.perplexity.is_some()), measured(|row| row.accuracy.is_some()));
    let columns = [
        Some(Column::words("setting")),
        Some(Column::numbers("pseudo-harmful")),
        Some(Column::numbers("harmful")),
        Some(Column::numbers("wrapped")),
        Some(Column::numbers("harmless").full()),
        Some(Column::numbers("harmless KL")),
        Some(Column::words("policy")),
        Some(Column::numbers("cost")),
        perplexity.then(|| Column::numbers("perplexity")),
        accuracy.then(|| Column::numbers("accuracy")),
        Some(Column::numbers("lost by score").optional()),
        Some(Column::numbers("cosine with true refusal").full()),
    ];
    let best = result.recommended().map(|row| row.name.as_str());
    let rows = result.rows.iter().map(|row| {
        let look = if best == Some(row.name.as_str()) { Look::Strong } else { Look::Plain };
        let tried = &row.tried;
        let cells = [
            Some(Text::of(look, &row.name).aside(place(row, result))),
            Some(rate(&tried.classes.pseudo_harmful)),
            Some(rate(&tried.classes.harmful)),
            Some(
                Text::from(or_missing(tried.wrapped_refusal_rate, percent))
                    .aside(percents(tried.wrapped_interval).unwrap_or_default()),
            ),
            Some(rate(&tried.classes.harmless)),
            Some(
                Text::from(significant(tried.harmless_kl))
                    .aside(between(row.harmless_kl_interval, significant).unwrap_or_default()),
            ),
            Some(policy(tried)),
            Some(cost(row.cost.as_ref())),
            perplexity.then(|| estimate(row.perplexity, significant)),
            accuracy.then(|| estimate(row.accuracy, percent)),
            Some(Text::from(or_missing(tried.lost, |of| format!("{}/{}", of.lost, of.total)))),
            Some(Text::from(or_missing(row.cosine, |c| format!("{c:.3}")))),
        ];
        cells.into_iter().flatten().collect::<Vec<_>>()
    });
    Table::new("compare", "Refusals by setting", columns.into_iter().flatten()).with(rows)
}

/// Refused prompts with the interval of their share.
fn rate(class: &ClassResult) -> Text {
    match class.total {
        0 => Text::from(MISSING),
        _ => Text::from(counted(class)).aside(percents(class.interval()).unwrap_or_default()),
    }
}

fn estimate(found: Option<Estimate>, write: impl Fn(f64) -> String) -> Text {
    let Some(Estimate { value, interval }) = found else { return Text::from(MISSING) };
    Text::from(or_missing(value, &write)).aside(between(interval, &write).unwrap_or_default())
}

/// What more a token costs: nothing, or the share by which the last latency, that of decoding, grows.
fn cost(cost: Option<&AddedCost>) -> Text {
    match cost {
        None => Text::from(MISSING),
        Some(AddedCost::Nothing) => Text::from("0"),
        Some(AddedCost::Nodes { latencies }) => match latencies.last() {
            None => Text::from("nodes").aside("not timed"),
            Some(Latency { ratio, .. }) => {
                let more = |ratio: f64| format!("{:+.1}", 100.0 * (ratio - 1.0));
                Text::from(format!("{} %", more(ratio.median))).aside(format!(
                    "{} to {} %",
                    more(ratio.low),
                    more(ratio.high)
                ))
            }
        },
    }
}

/// Where a direction comes from, or whose edit it has.
fn place(row: &CompareRow, result: &CompareResult) -> String {
    if let Some(other) = row.same_as.and_then(|other| result.rows.get(other)) {
        return format!("the edit of {}", other.name);
    }
    match row.tried.setting {
        SearchSetting::Wang { position: Some(position), layer: Some(layer), .. }
        | SearchSetting::Refined { position: Some(position), layer: Some(layer), .. }
        | SearchSetting::Refusal { position: Some(position), layer: Some(layer) } => {
            format!("layer {layer}, position {position}")
        }
        _ => String::new(),
    }
}

fn ends(interval: Option<Interval>) -> Option<(f64, f64)> {
    interval.map(|i| (i.low, i.high))
}

/// A row's name in as few characters as a chart has room for.
fn tag(row: &CompareRow) -> String {
    match &row.tried.setting {
        SearchSetting::Wang { lambda, strength, alpha, .. } => {
            let mut tag = format!("λ {lambda}");
            if *strength != 1.0 {
                tag.push_str(&format!("·{strength}"));
            }
            if *alpha != 0.0 {
                tag.push_str(&format!("+{alpha}"));
            }
            tag
        }
        SearchSetting::Refined { method, .. } => method.to_string(),
        _ => row.name.clone(),
    }
}

/// A point a setting: what is left of false refusal to the right, and a value of the setting upwards.
fn points(
    result: &CompareResult,
    what: &str,
    value: impl Fn(&CompareRow) -> Option<(f64, Option<Interval>)>,
) -> Vec<Point> {
    let best = result.recommended().map(|row| row.name.as_str());
    let point = |row: &CompareRow| {
        let classes = &row.tried.classes;
        let false_refusal = &classes.pseudo_harmful;
        if row.tried.failure.is_some() || classes.harmful.total == 0 || false_refusal.total == 0 {
            return None;
        }
        let (y, interval) = value(row)?;
        Some(Point {
            x: false_refusal.refusal_rate,
            y,
            across: ends(false_refusal.interval()),
            along: ends(interval),
            label: tag(row),
            tip: format!(
                "{}\npseudo-harmful refused {}\n{what} {}",
                row.tried.setting,
                percent(false_refusal.refusal_rate),
                significant(y)
            ),
            chosen: best == Some(row.name.as_str()),
        })
    };
    let mut points: Vec<Point> = result.rows.iter().filter_map(point).collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points
}

/// The frontier: true refusal, and harmless KL, against false refusal.
fn charts(result: &CompareResult) -> Block {
    let harmful = points(result, "harmful refused", |row| {
        let harmful = &row.tried.classes.harmful;
        Some((harmful.refusal_rate, harmful.interval()))
    });
    let mut wrapped = points(result, "harmful refused inside wrappers", |row| {
        Some((row.tried.wrapped_refusal_rate?, row.tried.wrapped_interval))
    });
    // The points of the same setting stand above each other: one of them carries the name and the bar.
    wrapped.iter_mut().for_each(|point| (point.label, point.across) = (String::new(), None));
    let kl = points(result, "harmless KL", |row| Some((row.tried.harmless_kl?, row.harmless_kl_interval)));
    let series = |name, points, look| Series { name, points, joined: false, look };
    let mut both = vec![series("harmful prompts, plain", harmful, 0)];
    if !wrapped.is_empty() {
        both.push(series("inside wrappers", wrapped, 1));
    }
    let x = Axis { title: "pseudo-harmful prompts refused, %", scale: Scale::Percent, include: &[0.0] };
    let harmful = Axis { title: "harmful prompts refused, %", scale: Scale::Percent, include: &[1.0] };
    let nats = Axis { title: "harmless KL, nats", scale: Scale::Linear, include: &[0.0] };
    let chart = |title, y, series| Figure::Chart(Chart { title, x: x.clone(), y, series, at: None });
    Block::Figures(vec![
        chart("True refusal against false refusal", harmful, both),
        chart("Harmless KL against false refusal", nats, vec![series("harmless KL", kl, 2)]),
    ])
}

/// Directions of sets on sets: the sets that they come from in rows, those that they are tried on in columns.
fn cross(rows: &[CrossRow]) -> Table {
    let names = |pick: fn(&CrossRow) -> &str| {
        let mut all: Vec<&str> = Vec::new();
        for row in rows {
            if !all.contains(&pick(row)) {
                all.push(pick(row));
            }
        }
        all
    };
    let (from, on) = (names(|r| &r.from), names(|r| &r.on));
    let columns = on.iter().map(|set| Column::numbers(format!("on {set}")));
    let columns = [Column::words("direction of").shortened()].into_iter().chain(columns);
    let cell = |f: &str, o: &str| {
        let Some(r) = rows.iter().find(|r| r.from == f && r.on == o) else { return Text::from(MISSING) };
        let look = if f == o { Look::Strong } else { Look::Plain };
        let interval = percents(r.interval).unwrap_or_else(|| count(r.total, "prompt"));
        let cosine = r.cosine.map(|c| format!("; cosine {c:.2}")).unwrap_or_default();
        let track = Track { before: mark(r.before, None), after: mark(r.after, r.interval) };
        Text::of(look, change(r.before, r.after))
            .aside(format!("{interval}; harmful {}{cosine}", percent(r.harmful_after)))
            .figure(Figure::Track(track))
    };
    let rows = from.iter().map(|f| {
        let cells: Vec<Text> = on.iter().map(|o| cell(f, o)).collect();
        std::iter::once(Text::from(f)).chain(cells)
    });
    Table::new("cross", "Directions on other prompt sets", columns).with(rows)
}
