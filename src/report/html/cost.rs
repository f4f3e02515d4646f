//! What else changed: KL on harmless prompts, general ability, size, memory, latency.

use super::super::number::{MISSING, bytes, percent, seconds, significant};
use super::super::{Interval, RunResult};
use super::chart::{Axis, Chart, Point, Scale, Series};
use super::escape;
use super::parts::{fold, note, numbers, section, table};

pub(super) fn ability(run: &RunResult) -> String {
    let eval = &run.eval;
    let mut rows = vec![vec![
        "KL on harmless prompts <span class=\"small\">nats, at the first response position</span>".to_owned(),
        MISSING.into(),
        with(significant(eval.harmless_kl), eval.harmless_kl_interval, significant),
    ]];
    if let Some(both) = &eval.perplexity {
        rows.push(vec![
            format!("Perplexity <span class=\"small\">on {} tokens</span>", both.after.tokens),
            with(significant(both.before.perplexity), both.before.interval, significant),
            with(significant(both.after.perplexity), both.after.interval, significant),
        ]);
    }
    if let Some(both) = &eval.multiple_choice {
        rows.push(vec![
            format!("Multiple choice <span class=\"small\">accuracy on {} questions</span>", both.after.total),
            with(percent(both.before.accuracy), both.before.interval, percent),
            with(percent(both.after.accuracy), both.after.interval, percent),
        ]);
    }
    let header = [("", false), ("before", true), ("after", true)];
    let mut out = table("ability", "Harmless prompts and general ability", &header, &rows);
    let by = &eval.harmless_kl_by_position;
    if by.len() > 1 {
        let chart = Chart {
            title: "Harmless KL along the answer",
            x: Axis { title: "response position", scale: Scale::Whole, include: &[] },
            y: Axis { title: "mean KL, nats", scale: Scale::Linear, include: &[0.0] },
            series: vec![Series {
                name: "KL(before || after)",
                joined: true,
                look: 0,
                points: by
                    .iter()
                    .enumerate()
                    .map(|(i, kl)| Point {
                        x: (i + 1) as f64,
                        y: *kl,
                        tip: format!("position {}: {}", i + 1, significant(*kl)),
                        ..Point::default()
                    })
                    .collect(),
            }],
            at: None,
        };
        out.push_str(&chart.draw());
        let rows: Vec<Vec<String>> =
            by.iter().enumerate().map(|(i, kl)| vec![(i + 1).to_string(), significant(*kl)]).collect();
        out.push_str(&fold(
            "KL by position in numbers",
            &table("plain", "KL by position", &[("position", true), ("mean KL, nats", true)], &rows),
        ));
    }
    out.push_str(&note(
        "Under each number its 95 % interval. KL tells how far the next-token distribution moved on prompts that nothing should change; both models are fed the input \
         model's answer.",
    ));
    section("ability", "Harmless prompts and general ability", &out)
}

/// A value with its interval under it.
fn with(value: String, interval: Option<Interval>, write: impl Fn(f64) -> String) -> String {
    if interval.is_none() {
        return value;
    }
    format!("{value} <small>{}</small>", numbers(interval, write))
}

pub(super) fn cost(run: &RunResult) -> String {
    let Some(cost) = &run.eval.cost else { return String::new() };
    let ratio = |before: u64, after: u64| {
        if before == 0 { MISSING.to_owned() } else { format!("{:.4}", after as f64 / before as f64) }
    };
    let memory = |m: Option<u64>| m.map_or_else(|| MISSING.to_owned(), bytes);
    let both = cost.memory_bytes.before.zip(cost.memory_bytes.after);
    let mut rows = vec![
        vec![
            "File <span class=\"small\">with its external data</span>".to_owned(),
            bytes(cost.file_bytes.before),
            bytes(cost.file_bytes.after),
            ratio(cost.file_bytes.before, cost.file_bytes.after),
            MISSING.into(),
            MISSING.into(),
        ],
        vec![
            "Memory <span class=\"small\">that a session adds to the process</span>".to_owned(),
            memory(cost.memory_bytes.before),
            memory(cost.memory_bytes.after),
            both.map_or_else(|| MISSING.into(), |(a, b)| ratio(a, b)),
            MISSING.into(),
            MISSING.into(),
        ],
    ];
    for latency in &cost.latencies {
        let r = latency.ratio;
        let short = |s: f64| {
            if s.is_finite() && (0.0..1.0).contains(&s) { format!("{} ms", significant(s * 1e3)) } else { seconds(s) }
        };
        let three = |v: f64| if v.is_finite() { format!("{v:.3}") } else { MISSING.to_owned() };
        rows.push(vec![
            escape(&latency.name),
            short(latency.before),
            short(latency.after),
            three(r.median),
            format!("{} to {}", three(r.low), three(r.high)),
            r.n.to_string(),
        ]);
    }
    let header = [
        ("", false),
        ("before", true),
        ("after", true),
        ("after / before", true),
        ("95 % interval", true),
        ("pairs", true),
    ];
    let mut out = table("cost", "Cost", &header, &rows);
    out.push_str(&note(
        "Latencies are medians; before and after were timed in turns in one process, and the ratio is the median over the pairs.",
    ));
    section("cost", "What it costs", &out)
}
