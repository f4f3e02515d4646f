//! The bricks of the page: sections, tables, facts, folds, and small drawings that stand in table cells.

use super::super::number::{MISSING, percent};
use super::super::{Interval, Outcomes};

/// A section with its heading.
pub(super) fn section(id: &str, title: &str, content: &str) -> String {
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{content}</section>\n")
}

/// A column: its heading, and whether it is aligned to the right.
pub(super) type Column<'a> = (&'a str, bool);

/// A table that scrolls in its own box; header and cells are HTML. A row with fewer cells than columns lacks the first
/// ones: they are spanned from above.
pub(super) fn table(class_name: &str, label: &str, header: &[Column<'_>], rows: &[Vec<String>]) -> String {
    let class = |right: bool| if right { " class=\"n\"" } else { "" };
    let head: String =
        header.iter().map(|(text, right)| format!("<th scope=\"col\"{}>{text}</th>", class(*right))).collect();
    let mut out = format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{label}\" tabindex=\"0\">\n<table class=\"{class_name}\">\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
    );
    for row in rows {
        out.push_str("<tr>");
        for (i, (cell, (_, right))) in row.iter().zip(header).enumerate() {
            out.push_str(&match i {
                0 => format!("<th scope=\"row\"{}>{cell}</th>", class(*right)),
                _ => format!("<td{}>{cell}</td>", class(*right)),
            });
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    out
}

/// A table in bodies of several rows, each under a heading of its own.
pub(super) fn grouped(
    class_name: &str,
    label: &str,
    header: &[Column<'_>],
    groups: &[(String, Vec<Vec<String>>)],
) -> String {
    let flat = table(class_name, label, header, &[]);
    let bodies: String = groups
        .iter()
        .map(|(title, rows)| {
            let body = table("", "", header, rows);
            let rows = body.split_once("<tbody>\n").and_then(|(_, rest)| rest.split_once("</tbody>")).unwrap_or_default().0;
            format!(
                "<tbody>\n<tr class=\"group\"><th scope=\"rowgroup\" colspan=\"{}\"><div class=\"stick\">{title}</div></th></tr>\n{rows}</tbody>\n",
                header.len()
            )
        })
        .collect();
    flat.replace("<tbody>\n</tbody>\n", &bodies)
}

/// A list of facts; the values are HTML.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let rows: String = rows.iter().map(|(k, v)| format!("<dt>{k}</dt><dd>{v}</dd>\n")).collect();
    format!("<dl>\n{rows}</dl>\n")
}

pub(super) fn fold(summary: &str, content: &str) -> String {
    format!("<details class=\"fold\">\n<summary>{summary}</summary>\n{content}</details>\n")
}

pub(super) fn items(all: &[String]) -> String {
    let all: String = all.iter().map(|i| format!("<li>{i}</li>\n")).collect();
    format!("<ul>\n{all}</ul>\n")
}

pub(super) fn note(text: &str) -> String {
    format!("<p class=\"note\">{text}</p>\n")
}

/// Yes or no, in words and in colour.
pub(super) fn passed(yes: bool) -> String {
    if yes { "<b class=\"kept\">passed</b>".into() } else { "<b class=\"lost\">failed</b>".into() }
}

/// `28.1 %`, with `20.1 to 37.0 %` beside it where an interval is known.
pub(super) fn rate(value: f64, interval: Option<Interval>) -> String {
    match percents(interval) {
        Some(text) => {
            format!("<span class=\"rate\">{}</span> <span class=\"small whole\">{text}</span>", percent(value))
        }
        None => format!("<span class=\"rate\">{}</span>", percent(value)),
    }
}

/// `20.1 to 37.0 %`.
pub(super) fn percents(interval: Option<Interval>) -> Option<String> {
    let Interval { low, high } = interval.filter(|i| i.low.is_finite() && i.high.is_finite())?;
    Some(format!("{:.1} to {:.1} %", low * 100.0, high * 100.0))
}

/// An interval of plain numbers as `write` writes them; a dash where there is none.
pub(super) fn numbers(interval: Option<Interval>, write: impl Fn(f64) -> String) -> String {
    match interval.filter(|i| i.low.is_finite() && i.high.is_finite()) {
        Some(Interval { low, high }) => format!("<span class=\"whole\">{} to {}</span>", write(low), write(high)),
        None => MISSING.into(),
    }
}

/// Before and after on one scale of 0 to 100 %: a hollow and a full mark, each with its interval.
pub(super) fn dots(before: (f64, Option<Interval>), after: (f64, Option<Interval>)) -> String {
    let x = |v: f64| 4.0 + 152.0 * v.clamp(0.0, 1.0);
    let mut out = "<svg class=\"dots\" viewBox=\"0 0 160 22\" width=\"160\" height=\"22\" aria-hidden=\"true\"><path class=\"rule\" d=\"M4 0V22M80 0V22M156 0V22\"/>".to_owned();
    for (class, y, (value, interval)) in [("was", 7.0, before), ("is", 15.0, after)] {
        if !value.is_finite() {
            continue;
        }
        if let Some(i) = interval.filter(|i| i.low.is_finite() && i.high.is_finite()) {
            out.push_str(&format!("<path class=\"{class}\" d=\"M{:.1} {y}H{:.1}\"/>", x(i.low), x(i.high)));
        }
        out.push_str(&format!("<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{y}\" r=\"3.2\"/>", x(value)));
    }
    out.push_str("</svg>");
    out
}

/// Outcomes with their names, in the order in which they are stacked.
pub(super) fn outcomes(o: &Outcomes) -> [(&'static str, usize); 5] {
    [
        ("complied", o.complied),
        ("partly", o.partly),
        ("refused", o.refused),
        ("empty", o.empty),
        ("degenerate", o.degenerate),
    ]
}

/// A bar of shares, with its numbers under it; the classes are those of [`outcomes`].
pub(super) fn stacked(parts: &[(&'static str, usize)]) -> String {
    let total: usize = parts.iter().map(|(_, n)| n).sum();
    if total == 0 {
        return MISSING.into();
    }
    let mut bar = String::new();
    let mut at = 0.0;
    for (name, n) in parts.iter().filter(|(_, n)| *n > 0) {
        let wide = 200.0 * *n as f64 / total as f64;
        bar.push_str(&format!(
            "<rect class=\"{name}\" x=\"{at:.2}\" width=\"{:.2}\" height=\"10\"/>",
            (wide - 1.0).max(0.6)
        ));
        at += wide;
    }
    let words: Vec<String> = parts
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| format!("<span class=\"whole\"><i class=\"key-{name}\"></i>{n} {name}</span>"))
        .collect();
    format!(
        "<svg class=\"stack\" viewBox=\"0 0 200 10\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{bar}</svg><small class=\"parts\">{}</small>",
        words.join(" ")
    )
}

/// The class as a CSS class: one of ours, or nothing.
pub(super) fn known_class(class: &str) -> &'static str {
    ["harmful", "pseudo_harmful", "harmless"].into_iter().find(|known| *known == class).unwrap_or("")
}

/// The outcome as a CSS class: one of ours, or nothing.
pub(super) fn known_outcome(outcome: &str) -> &'static str {
    ["complied", "partly", "refused", "empty", "degenerate"].into_iter().find(|known| *known == outcome).unwrap_or("")
}
