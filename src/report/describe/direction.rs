//! How the direction was found: activations, candidates, and the classes along it through the layers.

use super::super::document::{
    Axis, Block, Chart, Column, Detail, Document, Facts, Figure, HeatCell, HeatMap, Look, Point, Scale, Section,
    Series, Table, Text,
};
use super::super::layers::pattern;
use super::super::layout::{is_unsafe, shorten};
use super::super::number::{MISSING, count, score, seconds, setting, significant};
use super::super::{
    AdditionResult, CandidateRow, CollectSummary, Discarded, LayerProjection, PerClass, PromptClass, Refined,
    RefinedBy, ScoreBy, Search, SelectResult,
};
use super::words::or_missing;

/// What `lancet collect` did.
#[must_use]
pub fn collect(collect: &CollectSummary) -> Document {
    let resumed = if collect.resumed > 0 { format!(" ({} resumed)", collect.resumed) } else { String::new() };
    let prompts = &collect.prompts;
    let mut facts = Facts::default()
        .summary(
            "Collected",
            format!(
                "{} harmful, {} pseudo-harmful, {} harmless prompts in {}{resumed}",
                prompts.harmful,
                prompts.pseudo_harmful,
                prompts.harmless,
                seconds(collect.seconds)
            ),
        )
        .summary(
            "Means",
            format!(
                "{} x {} of width {}",
                count(collect.n_pos, "position"),
                count(collect.n_layers, "layer"),
                collect.d_model
            ),
        );
    if let Some(path) = &collect.output {
        facts = facts.summary("Output", Text::of(Look::Path, path));
    }
    Document { sections: vec![Section::new("collect", "Activations").summary(facts)], ..Document::default() }
}

/// What `lancet select` found: the selected direction, the best candidates, and how many were discarded for what.
#[must_use]
pub fn select(select: &SelectResult) -> Document {
    let section = Section::new("direction", "The direction").summary(facts(select, Detail::Summary));
    Document { sections: vec![discarded(best(section, select), select)], ..Document::default() }
}

/// The direction within a run: the candidates and the layers are drawn, and all numbers are folded.
pub(super) fn direction(select: &SelectResult) -> Section {
    let section = Section::new("direction", "The direction").summary(facts(select, Detail::Full));
    let section = if select.candidates.is_empty() { section } else { candidates(section, select) };
    if select.layers.is_empty() { section } else { layers(section, select) }
}

/// The token at a position, white space made visible.
fn position_token(select: &SelectResult, position: i64) -> Option<String> {
    let label = select.positions.iter().find(|p| p.position == position)?;
    let visible = label.token.replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r");
    let safe: String = visible.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect();
    Some(shorten(&safe, 24))
}

/// The selected direction; from `more` on, what it was selected with.
fn facts(select: &SelectResult, more: Detail) -> Facts {
    let (s, base, kept, total) = (&select.selected, &select.baseline, &select.kept, &select.total);
    let mut place = Text::from(format!("layer {}, position {}", s.layer, s.position));
    if let Some(token) = position_token(select, s.position) {
        place = place.then(" ").code(token);
    }
    let place = place.then(format!(", lambda {}", setting(s.lambda)));
    let kind = match select.score {
        ScoreBy::Tokens => "refusal score",
        ScoreBy::Cosmic => "COSMIC score",
    };
    let validation = format!(
        "{kind} {} → {} pseudo-harmful, {} → {} harmful; harmless KL {}",
        score(base.refusal_score),
        score(s.refusal_score),
        score(base.harmful_refusal_score),
        score(s.harmful_refusal_score),
        significant(s.kl),
    );
    let kept = format!(
        "{} of {} harmful, {} of {} pseudo-harmful, {} of {} harmless prompts",
        kept.harmful, total.harmful, kept.pseudo_harmful, total.pseudo_harmful, kept.harmless, total.harmless
    );
    let tokens = select.refusal_tokens.iter().map(|t| Text::of(Look::Code, &t.text).then(format!(" ({})", t.id)));
    let tokens = match select.refusal_tokens.is_empty() {
        true => Text::from("none: every train prompt was kept"),
        false => Text::list(tokens, ", ").then(format!("; {}", select.refusal_tokens_chosen)),
    };
    let procedure = if select.paper { "as published" } else { "as published, with Lancet's additions" };
    let measured: usize = select.candidates.iter().map(|c| c.prompts.iter().map(|(_, n)| n).sum::<usize>()).sum();
    let search = match select.search {
        Search::Exhaustive => "every candidate on every validation prompt",
        Search::Certain => "what could change the choice",
        Search::Racing => "what was likely to change the choice",
    };
    let measured = format!("{}: {search}", count(measured, "prompt run"));
    let mut facts = Facts::default()
        .summary("Direction", place.aside("lambda 1 keeps it clear of true refusal, 0 is the raw vector"))
        .summary("Validation", validation);
    if let Some(refined) = &select.refined {
        let after = format!(
            "refusal score {} pseudo-harmful, {} harmful; harmless KL {}",
            score(refined.refusal_score),
            score(refined.harmful_refusal_score),
            significant(refined.kl),
        );
        facts = facts.summary("Method", method(refined)).summary("Validation of the method", after);
    }
    facts
        .at(more, "Kept", kept)
        .at(more, "Refusal tokens", tokens)
        .at(more, "Procedure", procedure)
        .at(more, "Measured", measured)
}

/// What a further method made of the direction.
fn method(refined: &Refined) -> Text {
    let cosines: Vec<String> = refined.cosines.iter().map(|cosine| significant(*cosine)).collect();
    let beside = match cosines.as_slice() {
        [one] => format!("cosine {one} with the selected direction"),
        all => format!("cosines {} with the selected direction", all.join(", ")),
    };
    let sizes = |of: &[usize]| of.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ");
    let name = Text::of(Look::Code, refined.by.method().to_string());
    match &refined.by {
        RefinedBy::Groups { pseudo_harmful, harmful } => name.then(format!(
            ": {} of groups of {} pseudo-harmful prompts, freed of true refusal in groups of {}; {beside}",
            count(refined.cosines.len(), "direction"),
            sizes(pseudo_harmful),
            sizes(harmful),
        )),
        RefinedBy::Probes { .. } => name.then(format!(
            ": {} that tell pseudo-harmful from harmless prompts, one after another, freed of true refusal; {beside}",
            count(refined.cosines.len(), "direction"),
        )),
        RefinedBy::Abilities { abilities } => {
            name.then(format!(": without what {} have of it; {beside}", abilities.join(", ")))
        }
        RefinedBy::Affine => name.then(": the component of the harmless mean is put back at every layer"),
        RefinedBy::Layers { groups } => {
            let of = |ablated: bool| {
                let layers = groups.iter().filter(|group| group.ablated == ablated);
                layers.map(|group| format!("{} to {}", group.first, group.last)).collect::<Vec<_>>().join(", ")
            };
            let left_out = of(false);
            match left_out.is_empty() {
                true => name.then(": every layer matters"),
                false => name.then(format!(": ablated at layers {}, not at {left_out}", of(true))),
            }
        }
        RefinedBy::Aligned { layer, answer_auc, judge_auc } => name.then(format!(
            ": at layer {layer} the decision to answer follows the judgement of harm; on validation prompts the area under \
             the ROC curve is {} of the one and {} of the other",
            significant(*answer_auc),
            significant(*judge_auc),
        )),
    }
}

fn is_selected(select: &SelectResult, candidate: &CandidateRow) -> bool {
    (candidate.layer, candidate.position) == (select.selected.layer, select.selected.position)
}

/// Candidates with what was measured of them.
fn table<'a>(select: &SelectResult, candidates: impl Iterator<Item = &'a CandidateRow>) -> Table {
    let columns = [
        Column::numbers("layer"),
        Column::numbers("position"),
        Column::numbers("pseudo-harmful"),
        Column::numbers("harmful"),
        Column::numbers("harmless KL"),
        Column::numbers("raw norm"),
        Column::words(""),
    ];
    let row = |c: &CandidateRow| {
        let numbers = [
            c.layer.to_string(),
            c.position.to_string(),
            score(c.refusal_score),
            score(c.harmful_refusal_score),
            significant(c.kl),
            significant(c.raw_norm),
        ];
        let fate = match &c.discarded {
            Some(reason) => Text::from(reason.to_string()),
            None if is_selected(select, c) => Text::of(Look::Strong, "selected"),
            None => Text::default(),
        };
        numbers.map(Text::from).into_iter().chain([fate])
    };
    Table::new("candidates", "Candidates", columns).with(candidates.map(row))
}

/// Candidates that a summary names.
const BEST: usize = 5;

fn best(section: Section, select: &SelectResult) -> Section {
    let mut ranked: Vec<_> = select.candidates.iter().filter(|c| c.discarded.is_none()).collect();
    let by = |c: &CandidateRow| c.refusal_score.unwrap_or(f64::INFINITY);
    ranked.sort_by(|a, b| by(a).total_cmp(&by(b)).then(a.layer.cmp(&b.layer)).then(a.position.cmp(&b.position)));
    let section = section.summary(table(select, ranked.iter().take(BEST).copied()));
    match ranked.len().checked_sub(BEST) {
        Some(more @ 1..) => section.summary(Block::Paragraph(Text::from(format!("and {more} more")))),
        _ => section,
    }
}

fn discarded(section: Section, select: &SelectResult) -> Section {
    let mut reasons: Vec<Vec<&Discarded>> = Vec::new();
    for reason in select.candidates.iter().filter_map(|c| c.discarded.as_ref()) {
        match reasons.iter_mut().find(|known| known[0].is_like(reason)) {
            Some(known) => known.push(reason),
            None => reasons.push(vec![reason]),
        }
    }
    reasons.sort_by_key(|all| std::cmp::Reverse(all.len()));
    let n: usize = reasons.iter().map(Vec::len).sum();
    if n == 0 {
        return section;
    }
    let heading = format!("Discarded {n} of {}", count(select.candidates.len(), "candidate"));
    let items = reasons.iter().map(|all| {
        let words: Vec<String> = all.iter().map(ToString::to_string).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Text::from(format!("{}: {}", all.len(), pattern(&words)))
    });
    section.summary(Block::Heading(Text::from(heading))).summary(Block::List(items.collect()))
}

/// What two heat maps show of a candidate of either kind.
struct Tried {
    layer: usize,
    position: i64,
    score: Option<f64>,
    kl: Option<f64>,
    discarded: Option<Discarded>,
    selected: bool,
}

/// Refusal score and KL of candidates as two heat maps.
fn maps(select: &SelectResult, titles: [&'static str; 2], tried: &[Tried]) -> Block {
    let cell = |t: &Tried, value: Option<f64>| {
        let token = position_token(select, t.position).map(|token| format!("{token}\n")).unwrap_or_default();
        HeatCell {
            layer: t.layer,
            position: t.position,
            value: value.filter(|v| v.is_finite()),
            tip: format!("{token}refusal score {}, harmless KL {}", score(t.score), significant(t.kl)),
            discarded: t.discarded.map(|reason| reason.to_string()),
            selected: t.selected,
        }
    };
    let [scores, kls] = titles;
    let of = |title, logarithmic, value: fn(&Tried) -> Option<f64>| {
        let cells = tried.iter().map(|t| cell(t, value(t))).collect();
        Figure::HeatMap(HeatMap { title, logarithmic, cells })
    };
    Block::Figures(vec![of(scores, false, |t| t.score), of(kls, true, |t| t.kl)])
}

fn candidates(section: Section, select: &SelectResult) -> Section {
    let tried = |c: &CandidateRow| Tried {
        layer: c.layer,
        position: c.position,
        score: c.refusal_score,
        kl: c.kl,
        discarded: c.discarded,
        selected: is_selected(select, c),
    };
    let tried: Vec<Tried> = select.candidates.iter().map(tried).collect();
    let all = format!("All {}", count(select.candidates.len(), "candidate"));
    section
        .full(maps(select, ["Refusal score of each candidate", "Harmless KL of each candidate"], &tried))
        .full(Block::Note(Text::from(
            "A cell is one candidate, ablated on validation prompts: lower (paler) is better in both. The outlined one was \
             selected; a struck-out one was discarded; an empty one was not run.",
        )))
        .full(Block::folded(all, table(select, select.candidates.iter())))
}

/// A line through the layers: its name, its look, and its values by layer.
type LayerLine = (&'static str, usize, Vec<(usize, f64)>);

/// A line through the layers for each of some values.
fn through_layers(select: &SelectResult, title: &'static str, y: Axis, lines: Vec<LayerLine>) -> Figure {
    let series = lines.into_iter().map(|(name, look, values)| {
        let point = |(layer, y): (usize, f64)| Point {
            x: layer as f64,
            y,
            tip: format!("layer {layer}, {name}: {}", significant(y)),
            ..Point::default()
        };
        Series { name, joined: true, look, points: values.into_iter().map(point).collect() }
    });
    let x = Axis { title: "layer", scale: Scale::Whole, include: &[] };
    let at = Some((select.selected.layer as f64, "selected"));
    Figure::Chart(Chart { title, x, y, series: series.collect(), at })
}

/// The classes along three directions, and the cosine between two of them, a layer each.
fn layers(section: Section, select: &SelectResult) -> Section {
    type Values = fn(&LayerProjection) -> &PerClass<f64>;
    let all = &select.layers;
    let projection = |title: &'static str, values: Values| {
        let y = Axis { title: "mean projection", scale: Scale::Linear, include: &[0.0] };
        let line = |class| all.iter().map(|l| (l.layer, *values(l).get(class))).collect();
        let lines = PromptClass::ALL.into_iter().enumerate().map(|(i, class)| (class.word(), i, line(class)));
        through_layers(select, title, y, lines.collect())
    };
    let mut figures = vec![
        projection("On the true-refusal direction", |l| &l.on_true),
        projection("On the false-refusal direction", |l| &l.on_false),
    ];
    // An older run or another tool may not have measured it.
    if all.iter().any(|l| l.on_selected != PerClass::default()) {
        figures.push(projection("On the selected direction", |l| &l.on_selected));
    }
    let y = Axis { title: "cosine", scale: Scale::Linear, include: &[0.0, 1.0] };
    let cosines = all.iter().filter_map(|l| Some((l.layer, l.cosine?))).collect();
    let line = vec![("before orthogonalisation", 3, cosines)];
    figures.push(through_layers(select, "Cosine between the true and the false direction", y, line));
    let titles = ["layer", "cosine", "true: harmful", "pseudo-harmful", "harmless", "false: harmful", "pseudo-harmful"];
    let titles = titles.into_iter().chain(["harmless", "selected: harmful", "pseudo-harmful", "harmless"]);
    let rows = all.iter().map(|l| {
        let start = [l.layer.to_string(), or_missing(l.cosine, |c| format!("{c:.3}"))];
        let numbers =
            [l.on_true, l.on_false, l.on_selected].into_iter().flat_map(PerClass::into_array).map(significant);
        start.into_iter().chain(numbers).map(Text::from).collect::<Vec<_>>()
    });
    let table = Table::new("layers", "Projections by layer", titles.map(Column::numbers)).with(rows);
    section
        .full(Block::Heading(Text::from("The classes along the directions")))
        .full(Block::Figures(figures))
        .full(Block::Note(Text::from(
            "Mean activation of each class at the selected position, along the unit direction of the layer itself (the \
             first two) and along the one that was selected. Where harmful prompts lie apart from pseudo-harmful ones on \
             the true direction, the two kinds of refusal can be told apart.",
        )))
        .full(Block::folded("The layers in numbers", table))
}

/// The true-refusal vector that was added.
pub(super) fn addition(addition: &AdditionResult, select: &SelectResult) -> Section {
    let vector = format!(
        "true refusal of layer {}, position {}; norm {}, times {}",
        addition.layer,
        addition.position,
        significant(addition.norm),
        setting(addition.alpha)
    );
    let validation = format!(
        "refusal score {} on harmless prompts, harmless KL {}, both with the whole vector",
        score(addition.refusal_score),
        significant(addition.kl)
    );
    let baked = match &addition.baked {
        Some(added) => Text::from(format!("{} into ", added.place)).code(&added.target),
        None => Text::from(MISSING),
    };
    let facts = Facts::default().full("Vector", vector).full("Baked", baked).full("On validation", validation);
    let section = Section::new("addition", "Activation addition").full(facts);
    if addition.candidates.is_empty() {
        return section;
    }
    let tried: Vec<Tried> = (addition.candidates.iter())
        .map(|c| Tried {
            layer: c.layer,
            position: c.position,
            score: c.refusal_score,
            kl: c.kl,
            discarded: c.discarded,
            selected: (c.layer, c.position) == (addition.layer, addition.position),
        })
        .collect();
    let titles = ["layer", "position", "refusal score", "harmless KL"].map(Column::numbers);
    let titles = titles.into_iter().chain([Column::words("discarded")]);
    let rows = tried.iter().map(|t| {
        let numbers = [t.layer.to_string(), t.position.to_string(), score(t.score), significant(t.kl)];
        numbers
            .into_iter()
            .chain([t.discarded.map(|reason| reason.to_string()).unwrap_or_default()])
            .map(Text::from)
            .collect::<Vec<_>>()
    });
    let table = Table::new("candidates", "Candidates of the addition", titles).with(rows);
    section
        .full(maps(select, ["Refusal score with the vector added", "Harmless KL with the vector added"], &tried))
        .full(Block::Note(Text::from(
            "Measured on harmless validation prompts: a high refusal score tells that the vector carries refusal.",
        )))
        .full(Block::folded(format!("All {}", count(tried.len(), "candidate")), table))
}
