//! Wording that several descriptions share.

use super::super::document::{Figure, Look, Mark, Text, Track};
use super::super::number::{MISSING, percent};
use super::super::{ClassResult, Interval};

/// Whether something holds, in words.
pub(super) fn passed(yes: bool) -> Text {
    if yes { Text::of(Look::Good, "passed") } else { Text::of(Look::Bad, "failed") }
}

/// A number that may be missing, as `write` writes it.
pub(super) fn or_missing<T>(value: Option<T>, write: impl Fn(T) -> String) -> String {
    value.map_or_else(|| MISSING.to_owned(), write)
}

/// `92.2 → 28.1 %`.
pub(super) fn change(before: f64, after: f64) -> String {
    format!("{} → {}", percent(before).trim_end_matches(" %"), percent(after))
}

/// `0.0068 to 0.0112`; nothing where there is no interval.
pub(super) fn between(interval: Option<Interval>, write: impl Fn(f64) -> String) -> Option<String> {
    let Interval { low, high } = interval.filter(|i| i.low.is_finite() && i.high.is_finite())?;
    Some(format!("{} to {}", write(low), write(high)))
}

/// `20.1 to 37.0 %`; nothing where there is no interval.
pub(super) fn percents(interval: Option<Interval>) -> Option<String> {
    between(interval, |v| format!("{:.1}", v * 100.0)).map(|text| format!("{text} %"))
}

/// A share with its interval as a mark.
pub(super) fn mark(value: f64, interval: Option<Interval>) -> Mark {
    Mark { value, interval: interval.map(|i| (i.low, i.high)) }
}

/// Text with refusal rates before and after as a drawing beside it; one model alone has none.
pub(super) fn tracked(text: Text, results: &[&ClassResult]) -> Text {
    match results {
        [before, after] => {
            let [before, after] = [before, after].map(|r| mark(r.refusal_rate, r.interval()));
            text.figure(Figure::Track(Track { before, after }))
        }
        _ => text,
    }
}

/// Refusal rates before and after, or of one model alone.
pub(super) fn rates(results: &[&ClassResult]) -> Text {
    let intervals: Vec<String> = results.iter().filter_map(|r| percents(r.interval())).collect();
    let text = match results {
        [before, after] => change(before.refusal_rate, after.refusal_rate),
        [one] => percent(one.refusal_rate),
        _ => MISSING.to_owned(),
    };
    tracked(Text::from(text).aside(intervals.join(" → ")), results)
}
