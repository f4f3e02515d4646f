//! What is gained and what is lost at other lambdas and strengths, and directions on other prompt sets.

use super::super::document::{
    Axis, Block, Chart, Column, Detail, Document, Facts, Figure, Look, Point, Scale, Section, Series, Table, Text,
};
use super::super::number::{MISSING, count, percent, score, setting, significant};
use super::super::{ClassResult, CrossRow, Interval, SweepResult, SweepRow};
use super::words::{change, mark, or_missing, passed, percents, rates};
use crate::report::document::Track;

/// What `lancet sweep` found.
#[must_use]
pub fn sweep(sweep: &SweepResult) -> Document {
    Document { sections: section(sweep, Detail::Summary), ..Document::default() }
}

/// The sweep within a run: the recommendation is told everywhere, the settings where there is room.
pub(super) fn section(sweep: &SweepResult, settings: Detail) -> Vec<Section> {
    let best = match sweep.recommended.and_then(|i| sweep.rows.get(i)) {
        Some(row) => Text::of(Look::Strong, name(row)),
        None => Text::of(Look::Bad, "none"),
    };
    let best = best.then(format!(" of {}: ", count(sweep.tried(), "setting"))).then(&sweep.reason);
    let failures = sweep.rows.iter().filter_map(|row| Some((name(row), row.failure.as_ref()?)));
    let failures = failures.map(|(setting, failure)| Text::from(format!("{setting}: {failure}"))).collect();
    let trade = Section::new("sweep", "The trade-off")
        .at(settings, table(sweep))
        .at(settings, Block::List(failures))
        .summary(Facts::default().summary("Best", best))
        .full(charts(sweep))
        .full(Block::Note(Text::from(
            "Each point is a setting, labelled by its lambda (with · by its strength, with + by its addition); bars are \
             95 % intervals, a ring marks the recommended one. Best is up and to the left: more true refusal kept, less \
             false refusal left. Measured with the direction ablated at run time.",
        )));
    let cross = Section::new("cross", "Directions on other prompt sets").at(settings, cross(&sweep.cross));
    vec![
        trade,
        cross.full(Block::Note(Text::from(
            "Pseudo-harmful refusal of a set before and after the direction of another set is ablated, with the 95 % \
             interval of the second, what is left of harmful refusal, and the cosine between the sets' directions.",
        ))),
    ]
}

/// The setting of a row: `unchanged`, `λ 0.8`, `λ 1, strength 0.5, addition 0.2`.
fn name(row: &SweepRow) -> String {
    let Some(lambda) = row.lambda else { return "unchanged".into() };
    let mut out = format!("λ {}", setting(lambda));
    if row.strength != 1.0 {
        out.push_str(&format!(", strength {}", setting(row.strength)));
    }
    if row.alpha != 0.0 {
        out.push_str(&format!(", addition {}", setting(row.alpha)));
    }
    out
}

/// The same in as few characters as a chart has room for.
fn tag(row: &SweepRow) -> String {
    name(row).replace("λ ", "").replace(", strength ", "·").replace(", addition ", "+")
}

fn table(sweep: &SweepResult) -> Table {
    let columns = [
        Column::words("setting"),
        Column::numbers("pseudo-harmful"),
        Column::numbers("harmful"),
        Column::numbers("wrapped"),
        Column::numbers("harmless").full(),
        Column::numbers("harmless KL"),
        Column::words("policy"),
        Column::numbers("cosine with true refusal").full(),
        Column::numbers("validation score").full(),
    ];
    let rate = |r: &ClassResult| if r.total == 0 { Text::from(MISSING) } else { rates(&[r]) };
    let rows = sweep.rows.iter().enumerate().map(|(i, row)| {
        let look = if sweep.recommended == Some(i) { Look::Strong } else { Look::Plain };
        let place = match row.failure.is_none() && row.lambda.is_some() {
            true => format!("layer {}, position {}", row.layer, row.position),
            false => String::new(),
        };
        let policy = match (&row.guard, &row.failure) {
            (_, Some(_)) => Text::from("not measured"),
            (Some(guard), _) => passed(guard.passed).aside(guard.reasons.join("; ")),
            (None, None) => Text::from(MISSING),
        };
        let wrapped = or_missing(row.wrapped_refusal_rate, percent);
        [
            Text::of(look, name(row)).aside(place),
            rate(&row.classes.pseudo_harmful),
            rate(&row.classes.harmful),
            Text::from(wrapped).aside(percents(row.wrapped_interval).unwrap_or_default()),
            rate(&row.classes.harmless),
            Text::from(significant(row.harmless_kl)),
            policy,
            Text::from(or_missing(row.cosine, |c| format!("{c:.3}"))),
            Text::from(score(row.val_refusal_score)),
        ]
    });
    Table::new("sweep", "Refusals by setting", columns).with(rows)
}

fn ends(interval: Option<Interval>) -> Option<(f64, f64)> {
    interval.map(|i| (i.low, i.high))
}

/// A point a setting: what is left of false refusal to the right, and a value of the setting upwards.
fn points(sweep: &SweepResult, what: &str, value: impl Fn(&SweepRow) -> Option<(f64, Option<Interval>)>) -> Vec<Point> {
    let point = |(i, row): (usize, &SweepRow)| {
        let false_refusal = &row.classes.pseudo_harmful;
        if row.failure.is_some() || row.classes.harmful.total == 0 || false_refusal.total == 0 {
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
                name(row),
                percent(false_refusal.refusal_rate),
                significant(y)
            ),
            chosen: sweep.recommended == Some(i),
        })
    };
    let mut points: Vec<Point> = sweep.rows.iter().enumerate().filter_map(point).collect();
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    points
}

fn charts(sweep: &SweepResult) -> Block {
    let harmful = points(sweep, "harmful refused", |row| {
        Some((row.classes.harmful.refusal_rate, row.classes.harmful.interval()))
    });
    let mut wrapped =
        points(sweep, "harmful refused inside wrappers", |row| Some((row.wrapped_refusal_rate?, row.wrapped_interval)));
    // The points of the same setting stand above each other: one of them carries the name and the bar.
    wrapped.iter_mut().for_each(|point| (point.label, point.across) = (String::new(), None));
    let kl = points(sweep, "harmless KL", |row| Some((row.harmless_kl?, None)));
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
