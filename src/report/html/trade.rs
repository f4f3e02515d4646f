//! The sweep: what is gained and what is lost at other lambdas and strengths, and directions on other prompt sets.

use super::super::number::{MISSING, percent, score, setting, significant};
use super::super::{ClassResult, CrossRow, Interval, SweepResult, SweepRow};
use super::chart::{Axis, Chart, Point, Scale, Series};
use super::escape;
use super::parts::{fold, items, note, passed, rate, section, table};

/// The setting of a row: `unchanged`, `λ 0.8`, `λ 1, strength 0.5, addition 0.2`.
pub(in super::super) fn name(row: &SweepRow) -> String {
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
    let Some(lambda) = row.lambda else { return "unchanged".into() };
    let mut out = setting(lambda);
    if row.strength != 1.0 {
        out.push_str(&format!("·{}", setting(row.strength)));
    }
    if row.alpha != 0.0 {
        out.push_str(&format!("+{}", setting(row.alpha)));
    }
    out
}

fn ends(interval: Option<Interval>) -> Option<(f64, f64)> {
    interval.map(|i| (i.low, i.high))
}

fn charts(sweep: &SweepResult) -> String {
    let measured: Vec<(usize, &SweepRow)> = sweep
        .rows
        .iter()
        .enumerate()
        .filter(|(_, r)| r.failure.is_none() && r.classes.harmful.total > 0 && r.classes.pseudo_harmful.total > 0)
        .collect();
    let tip = |row: &SweepRow, what: &str, value: f64| {
        format!(
            "{}\npseudo-harmful refused {}\n{what} {}",
            name(row),
            percent(row.classes.pseudo_harmful.refusal_rate),
            percent(value)
        )
    };
    let across = |r: &ClassResult| ends(r.interval());
    let plain = measured
        .iter()
        .map(|(i, row)| {
            let c = &row.classes;
            Point {
                x: c.pseudo_harmful.refusal_rate,
                y: c.harmful.refusal_rate,
                across: across(&c.pseudo_harmful),
                along: across(&c.harmful),
                label: tag(row),
                tip: tip(row, "harmful refused", c.harmful.refusal_rate),
                chosen: sweep.recommended == Some(*i),
            }
        })
        .collect();
    let wrapped: Vec<Point> = measured
        .iter()
        .filter_map(|(i, row)| {
            let y = row.wrapped_refusal_rate?;
            Some(Point {
                x: row.classes.pseudo_harmful.refusal_rate,
                y,
                across: None,
                along: ends(row.wrapped_interval),
                label: String::new(),
                tip: tip(row, "harmful refused inside wrappers", y),
                chosen: sweep.recommended == Some(*i),
            })
        })
        .collect();
    let mut series = vec![Series { name: "harmful prompts, plain", points: plain, joined: false, look: 0 }];
    if !wrapped.is_empty() {
        series.push(Series { name: "inside wrappers", points: wrapped, joined: false, look: 1 });
    }
    let trade = Chart {
        title: "True refusal against false refusal",
        x: Axis { title: "pseudo-harmful prompts refused, %", scale: Scale::Percent, include: &[0.0] },
        y: Axis { title: "harmful prompts refused, %", scale: Scale::Percent, include: &[1.0] },
        series,
        at: None,
    };
    let mut kl: Vec<Point> = measured
        .iter()
        .filter_map(|(i, row)| {
            Some(Point {
                x: row.classes.pseudo_harmful.refusal_rate,
                y: row.harmless_kl?,
                across: across(&row.classes.pseudo_harmful),
                label: tag(row),
                tip: format!("{}\nharmless KL {}", name(row), significant(row.harmless_kl)),
                chosen: sweep.recommended == Some(*i),
                ..Point::default()
            })
        })
        .collect();
    kl.sort_by(|a, b| a.x.total_cmp(&b.x));
    let kl = Chart {
        title: "Harmless KL against false refusal",
        x: Axis { title: "pseudo-harmful prompts refused, %", scale: Scale::Percent, include: &[0.0] },
        y: Axis { title: "harmless KL, nats", scale: Scale::Linear, include: &[0.0] },
        series: vec![Series { name: "harmless KL", points: kl, joined: false, look: 2 }],
        at: None,
    };
    format!("<div class=\"plots wide\">\n{}{}</div>\n", trade.draw(), kl.draw())
}

/// A setting's row, the recommended one marked.
fn row(sweep: &SweepResult, i: usize, row: &SweepRow) -> Vec<String> {
    let mark = if sweep.recommended == Some(i) { " <b class=\"pick\">recommended</b>" } else { "" };
    let place = match row.failure.is_none() && row.lambda.is_some() {
        true => format!(" <span class=\"small\">layer {}, position {}</span>", row.layer, row.position),
        false => String::new(),
    };
    let label = format!("{}{mark}{place}", name(row));
    if let Some(failure) = &row.failure {
        let mut cells: Vec<String> = vec![label];
        cells.extend((0..5).map(|_| MISSING.to_owned()));
        cells.push(format!("<span class=\"words\">{}</span>", escape(failure)));
        return cells;
    }
    let class = |r: &ClassResult| match r.total {
        0 => MISSING.to_owned(),
        _ => rate(r.refusal_rate, r.interval()),
    };
    let policy = row.guard.as_ref().map_or_else(
        || MISSING.to_owned(),
        |g| {
            let why: Vec<String> = g.reasons.iter().map(|r| escape(r)).collect();
            let why = if why.is_empty() {
                String::new()
            } else {
                format!(" <span class=\"small words\">{}</span>", why.join("; "))
            };
            format!("{}{why}", passed(g.passed))
        },
    );
    vec![
        label,
        class(&row.classes.pseudo_harmful),
        class(&row.classes.harmful),
        row.wrapped_refusal_rate.map_or_else(|| MISSING.to_owned(), |v| rate(v, row.wrapped_interval)),
        class(&row.classes.harmless),
        significant(row.harmless_kl),
        policy,
    ]
}

/// Directions of sets on sets, as a table whose cells are shaded by what is left of false refusal.
fn cross(rows: &[CrossRow]) -> String {
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
    let titles: Vec<String> = on.iter().map(|o| format!("on {}", escape(o))).collect();
    let mut header = vec![("direction of", false)];
    header.extend(titles.iter().map(|t| (t.as_str(), false)));
    let cells: Vec<Vec<String>> = from
        .iter()
        .map(|f| {
            let mut cells = vec![escape(f)];
            cells.extend(on.iter().map(|o| {
                rows.iter().find(|r| r.from == *f && r.on == *o).map_or_else(
                    || MISSING.to_owned(),
                    |r| {
                        let step = if r.after.is_finite() { (r.after.clamp(0.0, 1.0) * 8.0).round() as u8 } else { 0 };
                        let cosine = r.cosine.map(|c| format!("<small>cosine {c:.2}</small>")).unwrap_or_default();
                        let own = if f == o { "<small>its own set</small>" } else { "" };
                        format!(
                            "<div class=\"heat h{step}\"><span class=\"whole\">{} → <b>{}</b></span><small>{}</small><small>harmful {}</small>{cosine}{own}</div>",
                            percent(r.before),
                            percent(r.after),
                            super::parts::percents(r.interval).unwrap_or_else(|| format!("{} prompts", r.total)),
                            percent(r.harmful_after)
                        )
                    },
                )
            }));
            cells
        })
        .collect();
    let mut out = "<h3>Directions on other prompt sets</h3>\n".to_owned();
    out.push_str(&table("cross", "Directions on other prompt sets", &header, &cells));
    out.push_str(&note(
        "Pseudo-harmful refusal of a set before and after the direction of another set is ablated, with the 95 % interval of the \
         second; darker is more refusal left. Below it, what is left of harmful refusal, and the cosine between the sets' \
         directions.",
    ));
    out
}

pub(super) fn sweep(sweep: &SweepResult) -> String {
    let best = sweep.recommended.and_then(|i| sweep.rows.get(i));
    let mut out = match best {
        Some(row) => {
            format!("<p>Recommended: <b class=\"pick\">{}</b>. {}</p>\n", name(row), escape(&sentence(&sweep.reason)))
        }
        None => {
            format!("<p class=\"failed\">No setting is recommended.</p>\n<p>{}</p>\n", escape(&sentence(&sweep.reason)))
        }
    };
    out.push_str(&charts(sweep));
    out.push_str(&note(
        "Each point is a setting, labelled by its lambda (with · by its strength, with + by its addition); bars are 95 % intervals, \
         a ring marks the recommended one. Best is up and to the left: more true refusal kept, less false refusal left. Measured \
         with the direction ablated at run time.",
    ));
    let header = [
        ("setting", false),
        ("pseudo-harmful refused", true),
        ("harmful refused", true),
        ("inside wrappers", true),
        ("harmless refused", true),
        ("harmless KL", true),
        ("policy", false),
    ];
    let rows: Vec<Vec<String>> = sweep.rows.iter().enumerate().map(|(i, r)| row(sweep, i, r)).collect();
    out.push_str(&table("sweep", "Settings", &header, &rows));
    let more: Vec<String> = sweep
        .rows
        .iter()
        .filter(|r| r.cosine.is_some() || r.val_refusal_score.is_some())
        .map(|r| {
            let cosine = r.cosine.map_or_else(|| MISSING.into(), |c| format!("{c:.3}"));
            format!("{}: cosine with true refusal {cosine}, validation score {}", name(r), score(r.val_refusal_score))
        })
        .collect();
    if !more.is_empty() {
        out.push_str(&fold("Cosines and validation scores", &items(&more)));
    }
    if !sweep.cross.is_empty() {
        out.push_str(&cross(&sweep.cross));
    }
    section("sweep", "The trade-off", &out)
}

/// With a capital at its start and a full stop at its end.
fn sentence(text: &str) -> String {
    let mut chars = text.trim().chars();
    let start: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    let text = format!("{start}{}", chars.as_str());
    if text.is_empty() || text.ends_with(['.', '!', '?']) { text } else { format!("{text}.") }
}
