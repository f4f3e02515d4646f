//! A heat map of the candidates, position by layer, as inline SVG.

use super::html::escape;
use super::number::{score, significant};
use super::text::position_token;
use super::{Candidate, SelectResult};

/// Position by layer as SVG; `logarithmic` for values over several orders of magnitude.
pub(super) fn heat_map(
    select: &SelectResult,
    title: &str,
    logarithmic: bool,
    value: impl Fn(&Candidate) -> Option<f64>,
) -> String {
    let finite = |c: &Candidate| value(c).filter(|v| v.is_finite());
    let mut positions: Vec<i64> = select.candidates.iter().map(|c| c.position).collect();
    positions.sort_unstable();
    positions.dedup();
    let n_layers = select.candidates.iter().map(|c| c.layer + 1).max().unwrap_or(0);
    let scaled = |v: f64| if logarithmic { v.max(1e-9).log10() } else { v };
    let values: Vec<f64> = select.candidates.iter().filter_map(finite).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = (scaled(high) - scaled(low)).max(f64::MIN_POSITIVE);
    // Wide enough to point at, narrow enough that a deep model stays readable.
    let cell = (360 / n_layers.max(1)).clamp(12, 48);
    let tall = cell.min(26);
    let (left, bottom) = (30, 32);
    let (width, height) = (left + n_layers * cell + 2, positions.len() * tall + bottom + 2);
    let mut out = format!(
        "<figure>\n<h3>{title}</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\">\n<svg class=\"map\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}, position by layer; the numbers are in the table of candidates\">\n"
    );
    for (row, position) in positions.iter().enumerate() {
        let y = row * tall + tall / 2 + 5;
        out.push_str(&format!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{position}</text>\n", left - 6));
    }
    let step = [1, 2, 4, 5, 10, 20, 50].into_iter().find(|s| s * cell >= 20).unwrap_or(50);
    for layer in (0..n_layers).step_by(step) {
        let x = left + layer * cell + cell / 2;
        let y = positions.len() * tall + 14;
        out.push_str(&format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{layer}</text>\n"));
    }
    out.push_str(&format!("<text x=\"{left}\" y=\"{}\">layer, by position from the end</text>\n", height - 4));
    let mut pick = String::new();
    for c in &select.candidates {
        let Ok(row) = positions.binary_search(&c.position) else {
            continue;
        };
        let (x, y) = (left + c.layer * cell, row * tall);
        let selected = (c.layer, c.position) == (select.selected.layer, select.selected.position);
        let token = position_token(select, c.position).map(|t| format!(" {t}")).unwrap_or_default();
        let fate = match &c.discarded {
            Some(reason) => format!("\ndiscarded: {reason}"),
            None if selected => "\nselected".to_owned(),
            None => String::new(),
        };
        let tip = escape(&format!(
            "layer {}, position {}{token}\nrefusal score {}, harmless KL {}{fate}",
            c.layer,
            c.position,
            score(c.refusal_score),
            significant(c.kl)
        ));
        let (w, h) = (cell - 2, tall - 2);
        let place = format!("x=\"{}\" y=\"{}\" width=\"{w}\" height=\"{h}\" rx=\"2\"", x + 1, y + 1);
        out.push_str("<g>");
        match finite(c) {
            Some(v) => {
                let opacity = 0.12 + 0.88 * ((scaled(v) - scaled(low)) / span).clamp(0.0, 1.0);
                out.push_str(&format!("<rect class=\"cell\" {place} fill-opacity=\"{opacity:.2}\"/>"));
            }
            None => out
                .push_str(&format!("<rect class=\"cell\" {place} fill-opacity=\"0\"/><rect class=\"none\" {place}/>")),
        }
        if c.discarded.is_some() && finite(c).is_some() {
            out.push_str(&format!("<path class=\"out\" d=\"M{} {}L{} {}\"/>", x + 2, y + h, x + w, y + 2));
        }
        out.push_str(&format!("<title>{tip}</title></g>\n"));
        if selected {
            pick = format!("<rect class=\"pick\" {place} pointer-events=\"none\"/>\n");
        }
    }
    out.push_str(&pick);
    out.push_str("</svg>\n</div>\n");
    if !values.is_empty() {
        let write = |v: f64| {
            if logarithmic { significant(v) } else { score(v) }
        };
        let scale = if logarithmic { ", logarithmic" } else { "" };
        out.push_str(&format!(
            "<p class=\"key\">{} <svg class=\"ramp\" viewBox=\"0 0 10 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{}</svg> {}{scale}</p>\n",
            write(low),
            (0..10)
                .map(|i| format!("<rect x=\"{i}\" width=\"1\" height=\"1\" fill=\"var(--heat)\" fill-opacity=\"{:.2}\"/>", 0.12 + 0.88 * f64::from(i) / 9.0))
                .collect::<String>(),
            write(high),
        ));
    }
    out.push_str("</figure>\n");
    out
}
