//! The picture as an SVG file. Names come from strangers: they pass [`xml`].

use std::collections::BTreeMap;

use super::super::layers::{blanked, pattern};
use super::super::layout::{columns, escape, shorten, shorten_middle, single_line, wrap};
use super::super::number::count;
use super::super::{InspectResult, WriterKind};
use super::{Card, Class, Plan, Segment, logits, refusal_facts, summary, unembedding};

/// Text as XML content or attribute, on one line.
fn xml(text: &str) -> String {
    escape(&single_line(text)).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

const WIDTH: usize = 900;
const MIDDLE: usize = WIDTH / 2;
const MARGIN: usize = 24;
const BOX: (usize, usize) = (320, 72);
const PILL: (usize, usize) = (120, 40);
/// Between boxes, from top to bottom.
const GAP: usize = 24;
/// Width of a column of monospaced text at 12 px, rounded up.
const COLUMN: f64 = 7.25;

/// Columns of monospaced text that fit into so many pixels.
fn fitting(pixels: usize) -> usize {
    (pixels as f64 / COLUMN) as usize
}

/// An SVG that grows downwards.
struct Canvas {
    out: String,
    y: usize,
    /// Where the stream ends so far; `None` before it starts.
    stream: Option<usize>,
}

/// The residual stream as a self-contained SVG file: no script, no network, light and dark.
#[must_use]
pub fn svg(inspect: &InspectResult) -> String {
    let model = shorten_middle(&single_line(&inspect.model), fitting(WIDTH - 2 * MARGIN));
    let mut canvas = Canvas { out: String::new(), y: 40, stream: None };
    let title = if inspect.refusals.is_empty() { "Residual stream" } else { "This model is refused" };
    canvas.text(MARGIN, "title", title);
    canvas.y += 24;
    canvas.text(MARGIN, "mono", &model);
    let description = if inspect.refusals.is_empty() { canvas.model(inspect) } else { canvas.refusals(inspect) };
    let height = canvas.y;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"lancet-stream\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"lancet-stream-title lancet-stream-desc\">\n\
         <title id=\"lancet-stream-title\">{title}: {}</title>\n\
         <desc id=\"lancet-stream-desc\">{}</desc>\n\
         <style>\n{}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n{}</svg>\n",
        xml(&inspect.model),
        xml(&description),
        include_str!("style.css"),
        canvas.out,
    )
}

impl Canvas {
    fn put(&mut self, markup: &str) {
        self.out.push_str(markup);
        self.out.push('\n');
    }

    fn text(&mut self, x: usize, class: &str, text: &str) {
        let y = self.y;
        self.put(&format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", xml(text)));
    }

    fn text_at(&mut self, (x, y): (usize, usize), anchor: &str, class: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        self.put(&format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", xml(text)));
    }

    fn rect(&mut self, class: &str, (x, y): (usize, usize), (width, height): (usize, usize), radius: usize) {
        self.put(&format!(
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\"/>"
        ));
    }

    /// All of a model that is understood; the description for those who cannot see it.
    fn model(&mut self, inspect: &InspectResult) -> String {
        let plan = Plan::of(inspect);
        let summary = summary(inspect);
        self.y += 22;
        self.text(MARGIN, "muted", &summary);
        self.legend(&plan);
        let mut words = vec![summary];
        words.extend(spoken("The stream starts with ", &plan.start));
        match plan.start.as_slice() {
            [one] => self.start(one),
            several => self.step(several, "resid_pre.0", false),
        }
        for segment in &plan.segments {
            if segment.steps.is_empty() || segment.repeats > 1 {
                words.push(segment.heading());
            }
            for step in &segment.steps {
                words.extend(spoken(&format!("Layer {} adds ", step.layers), &step.cards));
            }
            self.segment(segment);
        }
        self.end(inspect);
        words.push("The final norm and the unembedding read the stream".into());
        self.notes(inspect);
        words.join(". ") + "."
    }

    fn legend(&mut self, plan: &Plan) {
        self.y += 20;
        let (y, mut x) = (self.y, MARGIN);
        for class in plan.classes() {
            self.rect(&format!("box {class}"), (x, y), (26, 16), 3);
            match class {
                Class::Weights => self.rect("bar", (x, y), (4, 16), 2),
                Class::Nodes => {
                    self.put(&format!("<path class=\"arrow\" d=\"M{} {}h34\"/>", x + 26, y + 8));
                    x += 30;
                    self.head((x + 36, y + 8), (1, 0));
                    self.projection((x + 12, y + 8));
                }
                Class::Other => {}
            }
            self.text_at((x + if class == Class::Nodes { 42 } else { 34 }, y + 12), "start", "key", class.meaning());
            x += 64 + columns(class.meaning()) * 6;
        }
        self.y += 36;
        self.text(
            MARGIN,
            "muted",
            "Arrows add to the stream. Reads of the stream are not drawn, nor the order of the writers within a layer.",
        );
        self.y += 28;
    }

    /// An arrowhead with its point at `at`.
    fn head(&mut self, at: (usize, usize), (dx, dy): (i32, i32)) {
        let (a, b) = ((-7 * dx - 4 * dy, -7 * dy - 4 * dx), (8 * dy, 8 * dx));
        self.put(&format!("<path class=\"head\" d=\"M{} {}l{} {}l{} {}z\"/>", at.0, at.1, a.0, a.1, b.0, b.1));
    }

    /// The mark of an inserted projection on the arrow of a write.
    fn projection(&mut self, at: (usize, usize)) {
        self.put(&format!("<path class=\"projection\" d=\"M{} {}l7 7l-7 7l-7 -7z\"/>", at.0, at.1 - 7));
    }

    /// Draws the stream down to `top`, and takes it up again at `bottom`.
    fn flow(&mut self, top: usize, bottom: usize) {
        if let Some(from) = self.stream.replace(bottom).filter(|from| *from < top) {
            self.put(&format!("<path class=\"stream\" d=\"M{MIDDLE} {from}V{}\"/>", top - 6));
            self.put(&format!("<path class=\"head\" d=\"M{MIDDLE} {top}l-8 -12h16z\"/>"));
        }
    }

    /// A name on the stream, around `y`.
    fn pill(&mut self, y: usize, name: &str) {
        let top = y - PILL.1 / 2;
        self.flow(top, y + PILL.1 / 2);
        self.rect("box pill", (MIDDLE - PILL.0 / 2, top), PILL, 14);
        let room = fitting(PILL.0 - 12);
        match name.split_once('.').filter(|_| columns(name) > room || name.contains(' ')) {
            Some((name, layers)) => {
                self.text_at((MIDDLE, y - 3), "middle", "mono", name);
                self.text_at((MIDDLE, y + 12), "middle", "mono", &shorten_middle(layers, room));
            }
            None => self.text_at((MIDDLE, y + 4), "middle", "mono", &shorten_middle(name, room)),
        }
    }

    /// The box of a writer; `stack` draws it as the first of many, to the left (-1) or to the right (1).
    fn card(&mut self, card: &Card, (x, y): (usize, usize), stack: i32) {
        let class = card.class();
        self.put("<g class=\"card\">");
        let full = [card.kind.name(), &card.name, &card.detail, card.treatment.words()];
        let full = full.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", ");
        self.put(&format!("<title>{}</title>", xml(&full)));
        for offset in (1..=2).rev().filter(|_| stack != 0) {
            let shift = if stack < 0 { x - 4 * offset } else { x + 4 * offset };
            self.rect(&format!("box {class}"), (shift, y + 4 * offset), BOX, 6);
        }
        self.rect(&format!("box {class}"), (x, y), BOX, 6);
        if class == Class::Weights {
            self.rect("bar", (x, y), (5, BOX.1), 2);
        }
        let (left, room) = (x + 16, BOX.0 - 16 - 10);
        self.text_at((left, y + 22), "start", "kind", &shorten(card.kind.name(), 20));
        self.text_at((x + BOX.0 - 12, y + 22), "end", &format!("badge {class}"), &shorten(card.treatment.words(), 14));
        self.name((left, y + 42), &shorten_middle(&card.name, fitting(room)));
        self.text_at((left, y + 60), "start", "muted", &shorten_middle(&card.detail, fitting(room)));
        self.put("</g>");
    }

    /// A name; a script whose letters no monospaced font has is squeezed into the columns it was measured by.
    fn name(&mut self, (x, y): (usize, usize), name: &str) {
        let squeeze = if name.chars().all(|c| c.is_ascii() || c == '…') {
            String::new()
        } else {
            format!(" textLength=\"{}\" lengthAdjust=\"spacingAndGlyphs\"", columns(name) * 7)
        };
        self.put(&format!("<text class=\"mono\" x=\"{x}\" y=\"{y}\"{squeeze}>{}</text>", xml(name)));
    }

    /// The only embedding, above the stream that it starts.
    fn start(&mut self, card: &Card) {
        let y = self.y;
        self.card(card, (MIDDLE - BOX.0 / 2, y), 0);
        let bottom = y + BOX.1;
        let pill = bottom + 40;
        self.put(&format!("<path class=\"arrow\" d=\"M{MIDDLE} {bottom}V{}\"/>", pill - 5));
        self.head((MIDDLE, pill), (0, 1));
        if card.class() == Class::Nodes {
            self.projection((MIDDLE, bottom + 17));
        }
        self.y = pill + PILL.1 + GAP;
        self.pill(pill + PILL.1 / 2, "resid_pre.0");
    }

    /// How many cards stand to the left and to the right of the stream, and which.
    fn sides(cards: &[Card]) -> [Vec<&Card>; 2] {
        let embeddings = cards.iter().all(|c| c.kind.is_embedding());
        let left = |i: usize, c: &Card| if embeddings { i.is_multiple_of(2) } else { c.kind == WriterKind::AttnOut };
        let (a, b): (Vec<_>, Vec<_>) = cards.iter().enumerate().partition(|(i, c)| left(*i, c));
        [a, b].map(|side| side.into_iter().map(|(_, c)| c).collect())
    }

    fn rows(cards: &[Card]) -> usize {
        let [left, right] = Self::sides(cards);
        left.len().max(right.len()).max(1)
    }

    /// Writers on both sides of the stream, and its name after them.
    fn step(&mut self, cards: &[Card], name: &str, stacked: bool) {
        let sides = Self::sides(cards);
        let rows = Self::rows(cards);
        for row in 0..rows {
            let top = self.y;
            let middle = top + BOX.1 / 2;
            let last = row + 1 == rows;
            let half = if last { PILL.0 / 2 } else { 9 };
            for (side, cards) in sides.iter().enumerate() {
                // The lowest card of the shorter side stands beside the name.
                let Some(card) = (row + cards.len()).checked_sub(rows).and_then(|i| cards.get(i)) else {
                    continue;
                };
                let left = side == 0;
                let (x, edge, end) = match left {
                    true => (MARGIN, MARGIN + BOX.0, MIDDLE - half),
                    false => (WIDTH - MARGIN - BOX.0, WIDTH - MARGIN - BOX.0, MIDDLE + half),
                };
                let stack = i32::from(stacked) * if left { -1 } else { 1 };
                self.card(card, (x, top), stack);
                let stop = if left { end - 5 } else { end + 5 };
                self.put(&format!("<path class=\"arrow\" d=\"M{edge} {middle}H{stop}\"/>"));
                self.head((end, middle), (if left { 1 } else { -1 }, 0));
                if card.class() == Class::Nodes {
                    self.projection((if left { edge + 20 } else { edge - 20 }, middle));
                }
            }
            if last {
                self.pill(middle, name);
            } else {
                self.flow(middle - 9, middle + 9);
                self.put(&format!("<circle class=\"box pill\" cx=\"{MIDDLE}\" cy=\"{middle}\" r=\"9\"/>"));
                self.put(&format!("<path class=\"arrow\" d=\"M{} {middle}h10m-5 -5v10\"/>", MIDDLE - 5));
            }
            self.y += BOX.1 + GAP;
        }
    }

    /// A layer, layers in a frame, or the note that layers are left out.
    fn segment(&mut self, segment: &Segment) {
        if segment.steps.is_empty() {
            let middle = self.y + 16;
            self.flow(self.y, self.y + 32);
            self.rect("box pill", (MIDDLE - BOX.0 / 2, self.y), (BOX.0, 32), 14);
            self.text_at((MIDDLE, middle + 4), "middle", "muted", &shorten(&segment.heading(), 44));
            self.y += 32 + GAP;
            return;
        }
        let folded = segment.repeats > 1;
        if folded {
            let rows: usize = segment.steps.iter().map(|s| Self::rows(&s.cards)).sum();
            let height = 40 + rows * (BOX.1 + GAP);
            self.rect("frame", (MARGIN - 16, self.y), (WIDTH - 2 * MARGIN + 32, height), 8);
            self.y += 24;
            self.text(MARGIN, "kind", &shorten(&segment.heading(), 54));
            let times = format!("× {}", segment.repeats);
            self.text_at((WIDTH - MARGIN, self.y), "end", "kind", &times);
            self.y += 16;
        }
        for step in &segment.steps {
            self.step(&step.cards, &format!("resid_post.{}", step.layers), folded);
        }
        if folded {
            self.y += GAP;
        }
    }

    /// The final norm and the unembedding.
    fn end(&mut self, inspect: &InspectResult) {
        self.y += 8;
        self.flow(self.y, self.y + 34);
        self.rect("box plain", (MIDDLE - 90, self.y), (180, 34), 6);
        self.text_at((MIDDLE, self.y + 22), "middle", "kind", "final norm");
        self.y += 34 + GAP + 8;
        self.flow(self.y, self.y + BOX.1);
        let tied = if inspect.tied.is_empty() { "" } else { "tied to an embedding" };
        let (x, y, room) = (MIDDLE - BOX.0 / 2, self.y, fitting(BOX.0 - 26));
        self.put("<g class=\"card\">");
        self.put(&format!(
            "<title>{}</title>",
            xml(&format!("unembedding, {} {}", logits(inspect), inspect.tied.join(", ")))
        ));
        self.rect("box plain", (x, y), BOX, 6);
        self.text_at((x + 16, y + 22), "start", "kind", "unembedding");
        self.text_at((x + BOX.0 - 12, y + 22), "end", "badge muted", tied);
        self.name((x + 16, y + 42), &shorten_middle(&logits(inspect), room));
        self.text_at((x + 16, y + 60), "start", "muted", &shorten_middle(&unembedding(inspect), room));
        self.put("</g>");
        self.y += BOX.1 + GAP;
    }

    /// Why writers are not edited by weights, those with the same reason together.
    fn notes(&mut self, inspect: &InspectResult) {
        let mut reasons: BTreeMap<(&str, String), Vec<Place>> = BTreeMap::new();
        for w in &inspect.writers {
            if let Some(reason) = w.reason.as_ref().map(ToString::to_string) {
                reasons.entry((w.kind.name(), blanked(&reason))).or_default().push((w.layer, reason));
            }
        }
        if reasons.is_empty() {
            return;
        }
        self.y += 12;
        self.text(MARGIN, "kind", "Not edited by weights");
        self.y += 20;
        let most = 8;
        for ((kind, _), places) in reasons.iter().take(most) {
            let layers: Vec<usize> = places.iter().filter_map(|(layer, _)| *layer).collect();
            let layers = match layers.as_slice() {
                [] => String::new(),
                [one] => format!(" of layer {one}"),
                [first, .., last] if last - first + 1 == layers.len() => format!(" of layers {first} to {last}"),
                all => format!(" of {} layers from {} on", all.len(), all[0]),
            };
            let texts: Vec<&str> = places.iter().map(|(_, text)| text.as_str()).collect();
            let text = format!("{}{layers}: {}", single_line(kind), single_line(&pattern(&texts)));
            self.paragraph(MARGIN, "muted", &text, 4);
            self.y += 4;
        }
        if reasons.len() > most {
            self.paragraph(MARGIN, "muted", &format!("and {} more", count(reasons.len() - most, "reason")), 1);
        }
        self.y += 4;
    }

    /// Wrapped text from `x` to the right margin, of at most `most` lines.
    fn paragraph(&mut self, x: usize, class: &str, text: &str, most: usize) {
        let room = fitting(WIDTH - MARGIN - x);
        let mut all = wrap(&single_line(text), room);
        if all.len() > most {
            all.truncate(most);
            let last = all.last_mut().expect("most is at least 1");
            *last = shorten(&format!("{last} …"), room);
        }
        for line in all {
            self.text(x, class, &line);
            self.y += 17;
        }
    }

    /// What stands in the way of a model that is refused; the description for those who cannot see it.
    fn refusals(&mut self, inspect: &InspectResult) -> String {
        let mut words = Vec::new();
        for row in &inspect.refusals {
            let facts = refusal_facts(row);
            self.y += 20;
            let top = self.y;
            self.put(&format!("<path class=\"stream\" d=\"M{MIDDLE} {top}v26\"/>"));
            self.put(&format!("<path class=\"cut\" d=\"M{} {}l14 14m0 -14l-14 14\"/>", MIDDLE - 7, top + 30));
            let frame = top + 48;
            // The frame is drawn behind the text, whose height is known after it.
            let before = std::mem::take(&mut self.out);
            self.y = frame + 28;
            for (name, text) in &facts {
                let y = self.y;
                self.text_at((MARGIN + 18, y), "start", "badge bad", name);
                let class = if matches!(*name, "reason" | "hint") { "" } else { "mono" };
                self.paragraph(MARGIN + 84, class, text, 8);
                self.y += 6;
            }
            let bottom = self.y;
            let text = std::mem::replace(&mut self.out, before);
            self.rect("box refused", (MARGIN, frame), (WIDTH - 2 * MARGIN, bottom - frame), 6);
            self.out.push_str(&text);
            let line = |(name, text): &(&str, &str)| format!("{name} {text}");
            words.push(facts.iter().map(line).collect::<Vec<_>>().join(", "));
        }
        self.y += GAP;
        words.join(". ")
    }
}

/// Where a reason holds, and how it is worded there.
type Place = (Option<usize>, String);

/// The writers of a step as a sentence, if there are any.
fn spoken(start: &str, cards: &[Card]) -> Option<String> {
    let card = |c: &Card| format!("{} {} ({})", c.kind, c.name, c.treatment);
    (!cards.is_empty()).then(|| format!("{start}{}", cards.iter().map(card).collect::<Vec<_>>().join(" and ")))
}
