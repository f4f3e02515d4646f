//! A heat map of candidates, position by layer, as inline SVG.

use super::super::number::{score, significant};
use super::escape;

/// One candidate.
pub(super) struct Cell {
    pub layer: usize,
    pub position: i64,
    /// What shades it; none where it was not run. Finite.
    pub value: Option<f64>,
    /// What a pointer that rests on it is told, after its place.
    pub tip: String,
    pub discarded: Option<String>,
    pub selected: bool,
}

/// Position by layer.
pub(super) struct HeatMap<'a> {
    pub title: &'a str,
    /// For values over several orders of magnitude.
    pub logarithmic: bool,
    pub cells: Vec<Cell>,
    /// The token at a position.
    pub token: &'a dyn Fn(i64) -> Option<String>,
    /// Where the numbers stand.
    pub table: &'a str,
}

impl HeatMap<'_> {
    /// The map as a figure, with a key to its shades.
    pub fn draw(&self) -> String {
        let (title, table) = (self.title, self.table);
        let mut positions: Vec<i64> = self.cells.iter().map(|c| c.position).collect();
        positions.sort_unstable();
        positions.dedup();
        let n_layers = self.cells.iter().map(|c| c.layer + 1).max().unwrap_or(0);
        let scaled = |v: f64| if self.logarithmic { v.max(1e-9).log10() } else { v };
        let values: Vec<f64> = self.cells.iter().filter_map(|c| c.value).collect();
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let span = (scaled(high) - scaled(low)).max(f64::MIN_POSITIVE);
        // Wide enough to point at, narrow enough that a deep model stays readable.
        let cell = (440 / n_layers.max(1)).clamp(12, 48);
        let tall = cell.clamp(18, 26);
        let (left, bottom) = (48, 40);
        let (width, height) = (left + n_layers * cell + 2, positions.len() * tall + bottom + 2);
        let mut out = format!(
            "<figure>\n<h3>{title}</h3>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\">\n<svg class=\"map\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}, position by layer; the numbers are in {table}\">\n"
        );
        for (row, position) in positions.iter().enumerate() {
            let y = row * tall + tall / 2 + 5;
            out.push_str(&format!("<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{position}</text>\n", left - 6));
        }
        let middle = positions.len() * tall / 2;
        out.push_str(&format!(
            "<text transform=\"translate(13 {middle}) rotate(-90)\" text-anchor=\"middle\">position</text>\n"
        ));
        let step = [1, 2, 4, 5, 10, 20, 50].into_iter().find(|s| s * cell >= 22).unwrap_or(50);
        for layer in (0..n_layers).step_by(step) {
            let x = left + layer * cell + cell / 2;
            let y = positions.len() * tall + 16;
            out.push_str(&format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{layer}</text>\n"));
        }
        out.push_str(&format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">layer</text>\n",
            left + n_layers * cell / 2,
            height - 4
        ));
        let mut pick = String::new();
        for c in &self.cells {
            let Ok(row) = positions.binary_search(&c.position) else {
                continue;
            };
            let (x, y) = (left + c.layer * cell, row * tall);
            let token = (self.token)(c.position).map(|t| format!(" {t}")).unwrap_or_default();
            let fate = match &c.discarded {
                Some(reason) => format!("\ndiscarded: {reason}"),
                None if c.selected => "\nselected".to_owned(),
                None => String::new(),
            };
            let tip = escape(&format!("layer {}, position {}{token}\n{}{fate}", c.layer, c.position, c.tip));
            let (w, h) = (cell - 2, tall - 2);
            let place = format!("x=\"{}\" y=\"{}\" width=\"{w}\" height=\"{h}\" rx=\"2\"", x + 1, y + 1);
            out.push_str("<g>");
            match c.value {
                Some(v) => {
                    let opacity = 0.1 + 0.9 * ((scaled(v) - scaled(low)) / span).clamp(0.0, 1.0);
                    out.push_str(&format!("<rect class=\"cell\" {place} fill-opacity=\"{opacity:.2}\"/>"));
                }
                None => out.push_str(&format!(
                    "<rect class=\"cell\" {place} fill-opacity=\"0\"/><rect class=\"none\" {place}/>"
                )),
            }
            if c.discarded.is_some() && c.value.is_some() {
                let stroke = format!("M{} {}L{} {}", x + 2, y + h, x + w, y + 2);
                out.push_str(&format!("<path class=\"under\" d=\"{stroke}\"/><path class=\"out\" d=\"{stroke}\"/>"));
            }
            out.push_str(&format!("<title>{tip}</title></g>\n"));
            if c.selected {
                pick = format!("<rect class=\"pick\" {place} pointer-events=\"none\"/>\n");
            }
        }
        out.push_str(&pick);
        out.push_str("</svg>\n</div>\n");
        if !values.is_empty() {
            let write = |v: f64| if self.logarithmic { significant(v) } else { score(v) };
            let scale = if self.logarithmic { " nats, logarithmic" } else { " nats" };
            out.push_str(&format!(
                "<p class=\"key\">{} <svg class=\"ramp\" viewBox=\"0 0 10 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{}</svg> {}{scale}</p>\n",
                write(low),
                (0..10)
                    .map(|i| format!(
                        "<rect x=\"{i}\" width=\"1\" height=\"1\" fill=\"var(--heat)\" fill-opacity=\"{:.2}\"/>",
                        0.1 + 0.9 * f64::from(i) / 9.0
                    ))
                    .collect::<String>(),
                write(high),
            ));
        }
        out.push_str("</figure>\n");
        out
    }
}
