//! How the direction was found: candidates, and the classes along it through the layers.

use super::super::number::{MISSING, count, score, setting, significant};
use super::super::text::position_token;
use super::super::{Addition, LayerProjection, SelectResult};
use super::chart::{Axis, Chart, Point, Scale, Series};
use super::escape;
use super::heat_map::{Cell, HeatMap};
use super::parts::{facts, fold, note, section, table};

/// The classes in the order of [`LayerProjection`], with their looks.
const CLASSES: [(&str, usize); 3] = [("harmful", 0), ("pseudo-harmful", 1), ("harmless", 2)];

pub(super) fn direction(select: &SelectResult) -> String {
    let (s, base) = (&select.selected, &select.baseline);
    let token = position_token(select, s.position)
        .map(|t| format!(", at the token <code>{}</code>", escape(&t)))
        .unwrap_or_default();
    let tokens: Vec<String> =
        select.refusal_tokens.iter().map(|t| format!("<code>{}</code> ({})", escape(&t.text), t.id)).collect();
    let (kept, total) = (&select.kept, &select.total);
    let mut out = facts(&[
        ("Direction", format!("layer {}, position {}{token}", s.layer, s.position)),
        (
            "Lambda",
            format!(
                "{} <span class=\"small\">1 keeps the direction clear of true refusal, 0 is the raw vector</span>",
                setting(s.lambda)
            ),
        ),
        (
            "Score on validation",
            format!(
                "{} → {} pseudo-harmful, {} → {} harmful; harmless KL {}",
                score(base.refusal_score),
                score(s.refusal_score),
                score(base.harmful_refusal_score),
                score(s.harmful_refusal_score),
                significant(s.kl)
            ),
        ),
        (
            "Prompts kept",
            format!(
                "{} of {} harmful, {} of {} pseudo-harmful, {} of {} harmless",
                kept.harmful, total.harmful, kept.pseudo_harmful, total.pseudo_harmful, kept.harmless, total.harmless
            ),
        ),
        ("Refusal tokens", format!("{}; {}", tokens.join(", "), escape(&select.refusal_tokens_chosen))),
        (
            "Procedure",
            if select.paper { "as published".to_owned() } else { "as published, with Lancet's additions".to_owned() },
        ),
    ]);
    if !select.candidates.is_empty() {
        out.push_str(&candidates(select));
    }
    if !select.layers.is_empty() {
        out.push_str(&layers(select));
    }
    section("direction", "The direction", &out)
}

/// Refusal score and KL of candidates as two heat maps, side by side where they are narrow enough. `table` tells where
/// the numbers stand.
fn maps(select: &SelectResult, titles: [&str; 2], table: &str, cells: [Vec<Cell>; 2]) -> String {
    let token = |position| position_token(select, position);
    let deep = cells[0].iter().any(|c| c.layer >= 32);
    let mut out = if deep { "<div class=\"maps deep\">\n".to_owned() } else { "<div class=\"maps\">\n".to_owned() };
    for ((title, mut cells), logarithmic) in titles.into_iter().zip(cells).zip([false, true]) {
        cells.iter_mut().for_each(|c| c.value = c.value.filter(|v| v.is_finite()));
        out.push_str(&HeatMap { title, logarithmic, cells, token: &token, table }.draw());
    }
    out.push_str("</div>\n");
    out
}

fn candidates(select: &SelectResult) -> String {
    let s = &select.selected;
    let cell = |c: &super::super::Candidate, value| Cell {
        layer: c.layer,
        position: c.position,
        value,
        tip: format!("refusal score {}, harmless KL {}", score(c.refusal_score), significant(c.kl)),
        discarded: c.discarded.clone(),
        selected: (c.layer, c.position) == (s.layer, s.position),
    };
    let mut out = maps(
        select,
        ["Refusal score of each candidate", "Harmless KL of each candidate"],
        "the table of candidates",
        [
            select.candidates.iter().map(|c| cell(c, c.refusal_score)).collect(),
            select.candidates.iter().map(|c| cell(c, c.kl)).collect(),
        ],
    );
    out.push_str(&note(
        "A cell is one candidate, ablated on validation prompts: lower (paler) is better in both. The outlined one was selected; a \
         struck-out one was discarded; an empty one was not run.",
    ));
    let rows: Vec<Vec<String>> = select
        .candidates
        .iter()
        .map(|c| {
            let selected = (c.layer, c.position) == (s.layer, s.position);
            let fate = match &c.discarded {
                Some(reason) => escape(reason),
                None if selected => "<b class=\"pick\">selected</b>".to_owned(),
                None => String::new(),
            };
            vec![
                c.layer.to_string(),
                c.position.to_string(),
                score(c.refusal_score),
                score(c.harmful_refusal_score),
                significant(c.kl),
                significant(c.raw_norm),
                fate,
            ]
        })
        .collect();
    let header = [
        ("layer", true),
        ("position", true),
        ("pseudo-harmful score", true),
        ("harmful score", true),
        ("harmless KL", true),
        ("raw norm", true),
        ("outcome", false),
    ];
    out.push_str(&fold(
        &format!("All {}", count(select.candidates.len(), "candidate")),
        &table("candidates", "Candidates", &header, &rows),
    ));
    out
}

/// The classes along three directions, and the cosine between two of them, a layer each.
fn layers(select: &SelectResult) -> String {
    let all = &select.layers;
    let at = Some((select.selected.layer as f64, "selected"));
    let projection = |title: &str, values: fn(&LayerProjection) -> [f64; 3]| {
        Chart {
            title,
            x: Axis { title: "layer", scale: Scale::Whole, include: &[] },
            y: Axis { title: "mean projection", scale: Scale::Linear, include: &[0.0] },
            series: CLASSES
                .iter()
                .enumerate()
                .map(|(i, (name, look))| Series {
                    name,
                    joined: true,
                    look: *look,
                    points: all
                        .iter()
                        .map(|l| Point {
                            x: l.layer as f64,
                            y: values(l)[i],
                            tip: format!("layer {}, {name}: {}", l.layer, significant(values(l)[i])),
                            ..Point::default()
                        })
                        .collect(),
                })
                .collect(),
            at,
        }
        .draw()
    };
    let cosine = Chart {
        title: "Cosine between the true and the false direction",
        x: Axis { title: "layer", scale: Scale::Whole, include: &[] },
        y: Axis { title: "cosine", scale: Scale::Linear, include: &[0.0, 1.0] },
        series: vec![Series {
            name: "before orthogonalisation",
            joined: true,
            look: 3,
            points: all
                .iter()
                .filter_map(|l| {
                    let y = l.cosine?;
                    Some(Point { x: l.layer as f64, y, tip: format!("layer {}: {y:.3}", l.layer), ..Point::default() })
                })
                .collect(),
        }],
        at,
    };
    // An older run or another tool may not have measured it.
    let selected = match all.iter().any(|l| l.on_selected != [0.0; 3]) {
        true => projection("On the selected direction", |l| l.on_selected),
        false => String::new(),
    };
    let mut out = format!(
        "<h3>The classes along the directions</h3>\n<div class=\"plots\">\n{}{}{}{}</div>\n",
        projection("On the true-refusal direction", |l| l.on_true),
        projection("On the false-refusal direction", |l| l.on_false),
        selected,
        cosine.draw()
    );
    out.push_str(&note(
        "Mean activation of each class at the selected position, along the unit direction of the layer itself (the first two) and \
         along the one that was selected. Where harmful prompts lie apart from pseudo-harmful ones on the true direction, the two \
         kinds of refusal can be told apart.",
    ));
    let three = |v: [f64; 3]| v.map(significant);
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|l| {
            let mut row = vec![l.layer.to_string(), l.cosine.map_or_else(|| MISSING.into(), |c| format!("{c:.3}"))];
            row.extend([l.on_true, l.on_false, l.on_selected].into_iter().flat_map(three));
            row
        })
        .collect();
    let header = [
        ("layer", true),
        ("cosine", true),
        ("true: harmful", true),
        ("pseudo-harmful", true),
        ("harmless", true),
        ("false: harmful", true),
        ("pseudo-harmful", true),
        ("harmless", true),
        ("selected: harmful", true),
        ("pseudo-harmful", true),
        ("harmless", true),
    ];
    out.push_str(&fold("The layers in numbers", &table("layers", "Projections by layer", &header, &rows)));
    out
}

pub(super) fn addition(addition: &Addition, select: &SelectResult) -> String {
    let mut out = facts(&[
        (
            "Vector",
            format!(
                "true refusal of layer {}, position {}; norm {}, times {}",
                addition.layer,
                addition.position,
                significant(addition.norm),
                setting(addition.alpha)
            ),
        ),
        ("Baked", format!("{} into <code>{}</code>", escape(&addition.treatment), escape(&addition.target))),
        (
            "On validation",
            format!(
                "refusal score {} on harmless prompts, harmless KL {}, both with the whole vector",
                score(addition.refusal_score),
                significant(addition.kl)
            ),
        ),
    ]);
    if !addition.candidates.is_empty() {
        let cell = |c: &super::super::AdditionCandidate, value| Cell {
            layer: c.layer,
            position: c.position,
            value,
            tip: format!("refusal score {}, harmless KL {}", score(c.refusal_score), significant(c.kl)),
            discarded: c.discarded.clone(),
            selected: (c.layer, c.position) == (addition.layer, addition.position),
        };
        out.push_str(&maps(
            select,
            ["Refusal score with the vector added", "Harmless KL with the vector added"],
            "the table below",
            [
                addition.candidates.iter().map(|c| cell(c, c.refusal_score)).collect(),
                addition.candidates.iter().map(|c| cell(c, c.kl)).collect(),
            ],
        ));
        out.push_str(&note(
            "Measured on harmless validation prompts: a high refusal score tells that the vector carries refusal.",
        ));
        let rows: Vec<Vec<String>> = addition
            .candidates
            .iter()
            .map(|c| {
                vec![
                    c.layer.to_string(),
                    c.position.to_string(),
                    score(c.refusal_score),
                    significant(c.kl),
                    escape(c.discarded.as_deref().unwrap_or_default()),
                ]
            })
            .collect();
        let header =
            [("layer", true), ("position", true), ("refusal score", true), ("harmless KL", true), ("discarded", false)];
        out.push_str(&fold(
            &format!("All {}", count(addition.candidates.len(), "candidate")),
            &table("candidates", "Candidates of the addition", &header, &rows),
        ));
    }
    section("addition", "Activation addition", &out)
}
