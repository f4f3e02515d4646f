//! What else changed: KL on harmless prompts, general ability, size, memory, latency.

use super::super::document::{Axis, Block, Chart, Column, Figure, Point, Scale, Section, Series, Table, Text};
use super::super::number::{MISSING, bytes, percent, seconds, significant};
use super::super::scores::{MultipleChoice, Perplexity};
use super::super::{BeforeAfter, Cost, EvalResult, ModelEval};
use super::words::{between, or_missing};

/// The measure, its values and the 95 % interval of the last one.
type Measure = (Text, Vec<String>, Option<String>);

fn perplexity(results: &[&Perplexity]) -> Measure {
    let last = results.last();
    (
        Text::from("perplexity").aside(or_missing(last, |p| format!("on {} tokens", p.tokens))),
        results.iter().map(|p| significant(p.perplexity)).collect(),
        last.and_then(|p| between(p.interval, significant)),
    )
}

fn multiple_choice(results: &[&MultipleChoice]) -> Measure {
    let last = results.last();
    (
        Text::from("multiple choice").aside(or_missing(last, |m| format!("accuracy on {} questions", m.total))),
        results.iter().map(|m| percent(m.accuracy)).collect(),
        last.and_then(|m| between(m.interval, percent)),
    )
}

fn table(sides: &[&'static str], measures: Vec<Measure>) -> Table {
    let columns = std::iter::once(Column::words("ability")).chain(sides.iter().map(|side| Column::numbers(*side)));
    let columns = columns.chain([Column::numbers("95 % interval")]);
    let row = |(measure, values, interval): Measure| {
        let values = values.into_iter().chain([interval.unwrap_or_else(|| MISSING.to_owned())]).map(Text::from);
        std::iter::once(measure).chain(values).collect::<Vec<_>>()
    };
    Table::new("ability", "Harmless prompts and general ability", columns).with(measures.into_iter().map(row))
}

/// Ability before and after.
pub(super) fn both(eval: &EvalResult) -> Section {
    let kl = Text::from("harmless KL, nats").aside("at the first response position");
    let kl_interval = between(eval.harmless_kl_interval, significant);
    let mut measures: Vec<Measure> = vec![(kl, vec![MISSING.to_owned(), significant(eval.harmless_kl)], kl_interval)];
    measures.extend(eval.perplexity.as_ref().map(|BeforeAfter { before, after }| perplexity(&[before, after])));
    measures
        .extend(eval.multiple_choice.as_ref().map(|BeforeAfter { before, after }| multiple_choice(&[before, after])));
    let section = Section::new("ability", "Harmless prompts and general ability");
    let section = section.summary(table(&["before", "after"], measures));
    let section = match eval.harmless_kl_by_position.as_slice() {
        [] | [_] => section,
        by => kl_by_position(section, by),
    };
    section.full(Block::Note(Text::from(
        "The interval is that of the last column but one. KL tells how far the next-token distribution moved on prompts \
         that nothing should change; both models are fed the input model's answer.",
    )))
}

fn kl_by_position(section: Section, by: &[f64]) -> Section {
    let point = |(i, kl): (usize, &f64)| Point {
        x: (i + 1) as f64,
        y: *kl,
        tip: format!("position {}: {}", i + 1, significant(*kl)),
        ..Point::default()
    };
    let points = by.iter().enumerate().map(point).collect();
    let chart = Chart {
        title: "Harmless KL along the answer",
        x: Axis { title: "response position", scale: Scale::Whole, include: &[] },
        y: Axis { title: "mean KL, nats", scale: Scale::Linear, include: &[0.0] },
        series: vec![Series { name: "KL(before || after)", joined: true, look: 0, points }],
        at: None,
    };
    let columns = [Column::numbers("position"), Column::numbers("mean KL, nats")];
    let rows = by.iter().enumerate().map(|(i, kl)| [(i + 1).to_string(), significant(*kl)].map(Text::from));
    let table = Table::new("plain", "KL by position", columns).with(rows);
    section.full(Block::Figures(vec![Figure::Chart(chart)])).full(Block::folded("KL by position in numbers", table))
}

/// Ability of one model alone.
pub(super) fn alone(eval: &ModelEval) -> Section {
    let measures = eval.perplexity.iter().map(|p| perplexity(&[p]));
    let measures = measures.chain(eval.multiple_choice.iter().map(|m| multiple_choice(&[m]))).collect();
    Section::new("ability", "General ability").summary(table(&["measured"], measures))
}

fn duration(value: f64) -> String {
    if (0.0..1.0).contains(&value) { format!("{} ms", significant(value * 1e3)) } else { seconds(value) }
}

/// Size, memory and latency before and after.
pub(super) fn cost(cost: &Cost) -> Section {
    let ratio = |before: u64, after: u64| {
        if before == 0 { MISSING.to_owned() } else { format!("{:.4}", after as f64 / before as f64) }
    };
    let three = |v: f64| if v.is_finite() { format!("{v:.3}") } else { MISSING.to_owned() };
    let columns = [
        Column::words("cost"),
        Column::numbers("before"),
        Column::numbers("after"),
        Column::numbers("after / before"),
        Column::numbers("95 % interval"),
        Column::numbers("pairs"),
    ];
    let mut table = Table::new("cost", "Cost", columns);
    let (file, memory) = (cost.file_bytes, cost.memory_bytes);
    let mut row = |name: Text, numbers: [String; 5]| table.row(std::iter::once(name).chain(numbers.map(Text::from)));
    let none = || MISSING.to_owned();
    let sizes = [bytes(file.before), bytes(file.after), ratio(file.before, file.after), none(), none()];
    row(Text::from("file").aside("with its external data"), sizes);
    let known = memory.before.zip(memory.after);
    let grown = or_missing(known, |(before, after)| ratio(before, after));
    let sizes = [or_missing(memory.before, bytes), or_missing(memory.after, bytes), grown, none(), none()];
    row(Text::from("memory").aside("that a session adds to the process"), sizes);
    for latency in &cost.latencies {
        let r = latency.ratio;
        let interval = format!("{} to {}", three(r.low), three(r.high));
        let times = [duration(latency.before), duration(latency.after)];
        let [before, after] = times;
        row(Text::from(&latency.name), [before, after, three(r.median), interval, r.n.to_string()]);
    }
    Section::new("cost", "What it costs").summary(table).full(Block::Note(Text::from(
        "Latencies are medians; before and after were timed in turns in one process, and the ratio is the median over \
         the pairs.",
    )))
}
