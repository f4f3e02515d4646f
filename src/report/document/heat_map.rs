//! A heat map of candidates, position by layer, as inline SVG.

use super::drawing::{Drawing, Key};
use crate::report::layout::escape;
use crate::report::number::{score, significant};

/// One candidate.
#[derive(Debug, Clone)]
pub struct HeatCell {
    /// Its column.
    pub layer: usize,
    /// Its row.
    pub position: i64,
    /// What shades it; none where it was not run. Finite.
    pub value: Option<f64>,
    /// What a pointer that rests on it is told, after its place.
    pub tip: String,
    /// Why it was discarded.
    pub discarded: Option<String>,
    /// Whether it was selected.
    pub selected: bool,
}

/// Candidates, position by layer.
#[derive(Debug, Clone)]
pub struct HeatMap {
    /// What shades them.
    pub title: &'static str,
    /// For values over several orders of magnitude.
    pub logarithmic: bool,
    /// The candidates.
    pub cells: Vec<HeatCell>,
}

impl HeatMap {
    /// The drawing, with a key to its shades.
    pub(super) fn draw(&self) -> Drawing {
        let title = self.title;
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
            "<svg class=\"map\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}, position by layer; the numbers are in a table of this section\">\n"
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
            let fate = match &c.discarded {
                Some(reason) => format!("\ndiscarded: {reason}"),
                None if c.selected => "\nselected".to_owned(),
                None => String::new(),
            };
            let tip = escape(&format!("layer {}, position {}\n{}{fate}", c.layer, c.position, c.tip));
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
        out.push_str("</svg>\n");
        let write = |v: f64| if self.logarithmic { significant(v) } else { score(v) };
        let scale = if self.logarithmic { "nats, logarithmic" } else { "nats" };
        let key = Key { low: write(low), ramp: ramp(), high: format!("{} {scale}", write(high)) };
        Drawing { title, scrolls: true, svg: out, legend: vec![], key: (!values.is_empty()).then_some(key) }
    }
}

/// The shades from the lowest value to the highest.
fn ramp() -> String {
    let step = |i: u8| {
        let opacity = 0.1 + 0.9 * f64::from(i) / 9.0;
        format!("<rect x=\"{i}\" width=\"1\" height=\"1\" fill=\"var(--heat)\" fill-opacity=\"{opacity:.2}\"/>")
    };
    let steps: String = (0..10).map(step).collect();
    format!("<svg class=\"ramp\" viewBox=\"0 0 10 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\">{steps}</svg>")
}
