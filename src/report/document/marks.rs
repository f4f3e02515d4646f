//! Small drawings that stand in the cells of tables.

/// A share with its 95 % interval, all between 0 and 1.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// The share.
    pub value: f64,
    /// Ends of its interval.
    pub interval: Option<(f64, f64)>,
}

/// Before and after on one scale of 0 to 100 %: a hollow and a full mark, each with its interval.
#[derive(Debug, Clone)]
pub struct Track {
    /// The hollow mark.
    pub before: Mark,
    /// The full mark.
    pub after: Mark,
}

impl Track {
    /// The drawing as SVG.
    pub(super) fn draw(&self) -> String {
        let x = |v: f64| 4.0 + 152.0 * v.clamp(0.0, 1.0);
        let mut out = "<svg class=\"dots\" viewBox=\"0 0 160 22\" width=\"160\" height=\"22\" aria-hidden=\"true\"><path class=\"rule\" d=\"M4 0V22M80 0V22M156 0V22\"/>".to_owned();
        for (class, y, mark) in [("was", 7.0, self.before), ("is", 15.0, self.after)] {
            if !mark.value.is_finite() {
                continue;
            }
            if let Some((low, high)) = mark.interval.filter(|(low, high)| low.is_finite() && high.is_finite()) {
                out.push_str(&format!("<path class=\"{class}\" d=\"M{:.1} {y}H{:.1}\"/>", x(low), x(high)));
            }
            out.push_str(&format!("<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{y}\" r=\"3.2\"/>", x(mark.value)));
        }
        out.push_str("</svg>");
        out
    }
}

/// Bars above each other, each the parts of a whole; a part's place in the list gives its colour.
#[derive(Debug, Clone)]
pub struct Shares(pub Vec<Vec<usize>>);

impl Shares {
    /// The bar of one part alone: the key to its colour.
    #[must_use]
    pub fn key(part: usize) -> Self {
        let mut parts = vec![0; part + 1];
        parts[part] = 1;
        Self(vec![parts])
    }

    /// The drawing as SVG.
    pub(super) fn draw(&self) -> String {
        let height = 13 * self.0.len();
        let mut out = format!(
            "<svg class=\"stack\" viewBox=\"0 0 200 {height}\" height=\"{height}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
        );
        for (row, parts) in self.0.iter().enumerate() {
            let total = parts.iter().sum::<usize>().max(1) as f64;
            let mut at = 0.0;
            for (part, n) in parts.iter().enumerate().filter(|(_, n)| **n > 0) {
                let wide = 200.0 * *n as f64 / total;
                let seen = (wide - 1.0).max(0.6);
                let y = 13 * row;
                out.push_str(&format!(
                    "<rect class=\"part{part}\" x=\"{at:.2}\" y=\"{y}\" width=\"{seen:.2}\" height=\"10\"/>"
                ));
                at += wide;
            }
        }
        out.push_str("</svg>");
        out
    }
}
