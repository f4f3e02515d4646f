//! Line and point charts as inline SVG: axes with ticks and units, series told apart by colour, mark and dash, intervals
//! as bars, labels that keep clear of each other. The numbers stand in tables beside them.

use super::drawing::{Drawing, Entry};
use crate::report::layout::escape;

/// Width and height of the drawing, in its own units: readable on a phone, where it is shown as wide.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 250.0;
/// Room for the ticks and titles of the axes.
const RIGHT: f64 = 12.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 42.0;

/// How an axis counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// As it is.
    Linear,
    /// Fractions, written as percentages.
    Percent,
    /// Whole numbers.
    Whole,
}

/// One axis.
#[derive(Debug, Clone)]
pub struct Axis {
    /// What is counted, with its unit.
    pub title: &'static str,
    /// How it is counted.
    pub scale: Scale,
    /// Values that must be on it besides the data.
    pub include: &'static [f64],
}

/// A measured point.
#[derive(Debug, Default, Clone)]
pub struct Point {
    /// Along the horizontal axis.
    pub x: f64,
    /// Along the vertical axis.
    pub y: f64,
    /// Interval of `x`.
    pub across: Option<(f64, f64)>,
    /// Interval of `y`.
    pub along: Option<(f64, f64)>,
    /// Written beside it.
    pub label: String,
    /// What a pointer that rests on it is told.
    pub tip: String,
    /// Whether it is the one that was chosen.
    pub chosen: bool,
}

/// Points that belong together; its place in the list gives colour, mark and dash.
#[derive(Debug, Clone)]
pub struct Series {
    /// What they are.
    pub name: &'static str,
    /// In the order in which they are joined.
    pub points: Vec<Point>,
    /// Whether the points are joined.
    pub joined: bool,
    /// Which of the five looks.
    pub look: usize,
}

/// A whole chart.
#[derive(Debug, Clone)]
pub struct Chart {
    /// What it shows.
    pub title: &'static str,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn.
    pub series: Vec<Series>,
    /// A vertical line, with its label.
    pub at: Option<(f64, &'static str)>,
}

/// Range and ticks of an axis.
struct Ruler {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    step: f64,
    scale: Scale,
}

impl Ruler {
    fn of(axis: &Axis, values: impl Iterator<Item = f64>, most: f64) -> Self {
        let all: Vec<f64> = values.chain(axis.include.iter().copied()).filter(|v| v.is_finite()).collect();
        let mut low = all.iter().copied().fold(f64::INFINITY, f64::min);
        let mut high = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !low.is_finite() {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-9 * high.abs().max(1e-3) {
            (low, high) = (low - 0.5 * low.abs().max(0.1), high + 0.5 * high.abs().max(0.1));
        }
        let raw = (high - low) / most;
        let power = 10_f64.powf(raw.log10().floor());
        let mut step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw * 0.999).unwrap_or(raw);
        if axis.scale == Scale::Whole {
            step = step.max(1.0).round();
        } else {
            (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        }
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last.min(first.saturating_add(30))).map(|i| i as f64 * step).collect();
        Self { low, high, ticks, step, scale: axis.scale }
    }

    /// Where a value lies between the ends, 0 to 1.
    fn share(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn text(&self, value: f64) -> String {
        let (value, step) = match self.scale {
            Scale::Percent => (value * 100.0, self.step * 100.0),
            _ => (value, self.step),
        };
        let digits = (-step.log10() - 1e-9).ceil().clamp(0.0, 8.0) as usize;
        // Adding zero turns -0.0 into 0.0.
        format!("{:.*}", digits, if value.abs() < step / 1e6 { 0.0 } else { value } + 0.0)
    }
}

/// A box, left, top, right, bottom.
type Area = (f64, f64, f64, f64);

fn meet(a: Area, b: Area) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

/// The mark of a look at a place.
fn mark(look: usize, x: f64, y: f64) -> String {
    match look % 5 {
        0 => format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\"/>"),
        1 => format!("<rect x=\"{:.1}\" y=\"{:.1}\" width=\"6.2\" height=\"6.2\"/>", x - 3.1, y - 3.1),
        2 => format!("<path d=\"M{x:.1} {:.1}l4 7h-8z\"/>", y - 4.2),
        3 => format!("<path d=\"M{x:.1} {:.1}l4 4-4 4-4-4z\"/>", y - 4.0),
        _ => format!("<path d=\"M{x:.1} {:.1}l-4-7h8z\"/>", y + 4.2),
    }
}

/// A series' mark with a piece of its line, for the legend.
fn swatch(series: &Series) -> String {
    let line = if series.joined { "<path class=\"line\" d=\"M0 6H24\"/>" } else { "" };
    let look = series.look % 5;
    let mark = mark(look, 12.0, 6.0);
    format!(
        "<svg class=\"swatch s{look}\" viewBox=\"0 0 24 12\" width=\"24\" height=\"12\" aria-hidden=\"true\">{line}{mark}</svg>"
    )
}

impl Chart {
    /// The drawing; empty where there is nothing to draw.
    pub(super) fn draw(&self) -> Drawing {
        let points = || self.series.iter().flat_map(|s| &s.points).filter(|p| p.x.is_finite() && p.y.is_finite());
        if points().next().is_none() {
            return Drawing::default();
        }
        let ends = |interval: Option<(f64, f64)>| interval.into_iter().flat_map(|(low, high)| [low, high]);
        let x = Ruler::of(&self.x, points().flat_map(|p| ends(p.across).chain([p.x])), 6.0);
        let y = Ruler::of(&self.y, points().flat_map(|p| ends(p.along).chain([p.y])), 5.0);
        let widest = y.ticks.iter().map(|t| y.text(*t).chars().count()).max().unwrap_or(0);
        let left = 28.0 + 6.5 * widest as f64;
        // Whole numbers begin and end half a step within the frame.
        let inset = if self.x.scale == Scale::Whole { 8.0 } else { 0.0 };
        let px = |v: f64| left + inset + x.share(v) * (WIDTH - left - RIGHT - 2.0 * inset);
        let py = |v: f64| HEIGHT - BOTTOM - y.share(v) * (HEIGHT - TOP - BOTTOM);
        let title = escape(self.title);
        let mut out = format!(
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}: {} against {}; the numbers are in a table of this section\">\n",
            escape(self.y.title),
            escape(self.x.title),
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in &y.ticks {
            let at = py(*tick);
            let class = if *tick == 0.0 { "zero" } else { "grid" };
            out.push_str(&format!(
                "<path class=\"{class}\" d=\"M{left:.1} {at:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                left - 6.0,
                at + 4.0,
                y.text(*tick)
            ));
        }
        for tick in &x.ticks {
            let at = px(*tick);
            out.push_str(&format!(
                "<path class=\"tick\" d=\"M{at:.1} {bottom}v4\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                bottom + 16.0,
                x.text(*tick)
            ));
        }
        out.push_str(&format!("<path class=\"axis\" d=\"M{left:.1} {TOP}V{bottom}H{right}\"/>\n"));
        out.push_str(&format!(
            "<text class=\"title\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text class=\"title\" transform=\"translate(11 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
            f64::midpoint(left, right),
            HEIGHT - 6.0,
            escape(self.x.title),
            f64::midpoint(TOP, bottom),
            escape(self.y.title),
        ));
        let mut taken: Vec<Area> = Vec::new();
        if let Some((value, label)) = self.at {
            let at = px(value);
            out.push_str(&format!(
                "<path class=\"at\" d=\"M{at:.1} {TOP}V{bottom}\"/><text class=\"name strong\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                TOP - 5.0,
                escape(label)
            ));
        }
        for p in points() {
            taken.push((px(p.x) - 5.0, py(p.y) - 5.0, px(p.x) + 5.0, py(p.y) + 5.0));
        }
        let mut labels = String::new();
        for series in &self.series {
            out.push_str(&format!("<g class=\"s{}\">\n", series.look % 5));
            let drawn: Vec<&Point> = series.points.iter().filter(|p| p.x.is_finite() && p.y.is_finite()).collect();
            if series.joined && drawn.len() > 1 {
                let path: Vec<String> = drawn.iter().map(|p| format!("{:.1} {:.1}", px(p.x), py(p.y))).collect();
                out.push_str(&format!("<path class=\"line\" d=\"M{}\"/>\n", path.join("L")));
            }
            for p in drawn {
                let (cx, cy) = (px(p.x), py(p.y));
                out.push_str("<g>");
                if let Some((low, high)) = p.across {
                    out.push_str(&format!("<path class=\"bars\" d=\"M{:.1} {cy:.1}H{:.1}\"/>", px(low), px(high)));
                }
                if let Some((low, high)) = p.along {
                    out.push_str(&format!("<path class=\"bars\" d=\"M{cx:.1} {:.1}V{:.1}\"/>", py(low), py(high)));
                }
                if p.chosen {
                    out.push_str(&format!("<circle class=\"chosen\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"8\"/>"));
                }
                out.push_str(&mark(series.look, cx, cy));
                if !p.tip.is_empty() {
                    out.push_str(&format!("<title>{}</title>", escape(&p.tip)));
                }
                out.push_str("</g>\n");
                if !p.label.is_empty() {
                    labels.push_str(&place(p, (cx, cy), left, &mut taken));
                }
            }
            out.push_str("</g>\n");
        }
        out.push_str(&labels);
        out.push_str("</svg>\n");
        let legend = self.series.iter().map(|series| Entry { mark: swatch(series), name: series.name }).collect();
        Drawing { title: self.title, svg: out, legend, ..Drawing::default() }
    }
}

/// The label of a point where it meets nothing that is drawn, nearest places first; left out where there is no room.
fn place(point: &Point, (x, y): (f64, f64), edge: f64, taken: &mut Vec<Area>) -> String {
    let wide = point.label.chars().count() as f64 * 6.0;
    let far = if point.chosen { 11.0 } else { 7.0 };
    for distance in [far, far + 9.0, far + 20.0] {
        let places = [
            (x + distance, y + distance + 6.0),
            (x + distance, y - distance + 2.0),
            (x - distance - wide, y + distance + 6.0),
            (x - distance - wide, y - distance + 2.0),
            (x + distance + 2.0, y + 4.0),
            (x - distance - wide - 2.0, y + 4.0),
            (x - wide / 2.0, y + distance + 9.0),
            (x - wide / 2.0, y - distance - 2.0),
        ];
        for (left, base) in places {
            let area = (left - 1.0, base - 9.0, left + wide + 1.0, base + 2.0);
            let inside = area.0 > edge && area.2 < WIDTH && area.1 > 0.0 && area.3 < HEIGHT - BOTTOM;
            if inside && !taken.iter().any(|t| meet(*t, area)) {
                taken.push(area);
                let class = if point.chosen { "name strong" } else { "name" };
                return format!(
                    "<text class=\"{class}\" x=\"{left:.1}\" y=\"{base:.1}\">{}</text>\n",
                    escape(&point.label)
                );
            }
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruler(values: &[f64], scale: Scale) -> Ruler {
        Ruler::of(&Axis { title: "", scale, include: &[] }, values.iter().copied(), 5.0)
    }

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        let r = ruler(&[0.013, 0.947], Scale::Percent);
        assert_eq!((r.low, r.high), (0.0, 1.0));
        assert_eq!(r.ticks.iter().map(|t| r.text(*t)).collect::<Vec<_>>(), ["0", "20", "40", "60", "80", "100"]);
        let r = ruler(&[-0.3, 5.9], Scale::Linear);
        assert_eq!(r.ticks.iter().map(|t| r.text(*t)).collect::<Vec<_>>(), ["-2", "0", "2", "4", "6"]);
        let r = ruler(&[0.0029, 0.0461], Scale::Linear);
        assert_eq!(r.text(r.ticks[1]), "0.01");
        for same in [0.0, 3.0, -1e300, f64::NAN] {
            let r = ruler(&[same], Scale::Linear);
            assert!(r.high > r.low && r.ticks.len() < 40 && r.share(same.max(0.0)).is_finite(), "{same}");
        }
    }

    #[test]
    fn labels_do_not_meet() {
        let mut taken = vec![];
        let point = Point { label: "0.5".into(), ..Default::default() };
        let texts: Vec<String> = (0..6).map(|_| place(&point, (180.0, 100.0), 50.0, &mut taken)).collect();
        assert!(texts.iter().all(|t| !t.is_empty()));
        for (i, a) in taken.iter().enumerate() {
            assert!(taken[..i].iter().all(|b| !meet(*a, *b)));
        }
    }
}
