//! A picture of the residual stream and its writers: [`mermaid`] for a README, [`svg`] as a file of its own.
//!
//! Both draw what [`InspectResult`] says, no more: which writers add to the stream in which layer, and how each
//! would be edited. Reads of the stream are not drawn, nor whether the MLP of a layer reads what attention wrote.

mod mermaid;
mod svg;

use super::layers::{Block, Joined, by_layer, joined, numbers, runs};
use super::layout::single_line;
use super::number::{count, shape};
use super::{InspectResult, Refusal, Treatment, WriterKind};

pub use mermaid::mermaid;
pub use svg::svg;

/// Layers that repeat a pattern of up to [`LONGEST_PATTERN`] are folded where at least so many do.
const FEWEST_FOLDED: usize = 7;
const LONGEST_PATTERN: usize = 8;
/// Of a model whose layers cannot be folded, so many are drawn at each end.
const ENDS: usize = 32;

/// A writer, or one place of a repeated pattern.
struct Card {
    kind: WriterKind,
    name: String,
    /// Shape and element type.
    detail: String,
    treatment: Treatment,
}

impl Card {
    fn of(writer: &Joined<'_>) -> Self {
        let w = writer.first;
        let size = w.shape.as_deref().map(|s| shape(Some(s)));
        let size = match (size, w.n_weights) {
            (Some(size), 2..) => Some(format!("{} of {size}", count(w.n_weights, "weight"))),
            (size, _) => size,
        };
        let detail: Vec<String> = size.into_iter().chain(w.dtype.clone()).collect();
        Self {
            kind: w.kind,
            name: writer.name.as_deref().map_or_else(|| "no weight is edited".to_owned(), single_line),
            detail: single_line(&detail.join(" ")),
            treatment: w.treatment,
        }
    }

    fn class(&self) -> Class {
        Class::of(self.treatment)
    }
}

/// A treatment as one of the classes that are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Weights,
    Nodes,
    Other,
}

impl Class {
    fn of(treatment: Treatment) -> Self {
        match treatment {
            Treatment::Weights => Self::Weights,
            Treatment::Nodes => Self::Nodes,
            _ => Self::Other,
        }
    }

    /// What the legend says of it.
    fn meaning(self) -> &'static str {
        match self {
            Self::Weights => "weights: the tensor is edited in place",
            Self::Nodes => "nodes: a projection is inserted after the write",
            Self::Other => "other: as its box says",
        }
    }
}

impl std::fmt::Display for Class {
    /// Its name in style sheets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Weights => "weights",
            Self::Nodes => "nodes",
            Self::Other => "other",
        })
    }
}

/// A place where the stream is written: `resid_post` of these layers.
struct Step {
    layers: String,
    cards: Vec<Card>,
}

/// A layer, a folded pattern of layers, or, without steps, layers that are left out.
struct Segment {
    layers: String,
    repeats: usize,
    steps: Vec<Step>,
}

impl Segment {
    fn heading(&self) -> String {
        match self.steps.len() {
            0 => format!("layers {} are not drawn", self.layers),
            1 => format!("layers {}, alike but for numbers", self.layers),
            period => format!("layers {}, a pattern of {period} layers", self.layers),
        }
    }
}

/// What is drawn between the top and the final norm.
struct Plan {
    start: Vec<Card>,
    segments: Vec<Segment>,
}

fn cards<'a: 'b, 'b>(blocks: impl Iterator<Item = &'b Block<'a>> + Clone) -> Vec<Card> {
    joined(blocks).iter().map(Card::of).collect()
}

impl Plan {
    fn of(inspect: &InspectResult) -> Self {
        let (start, layers): (Vec<_>, Vec<_>) = by_layer(&inspect.writers).into_iter().partition(|b| b.layer.is_none());
        let runs = runs(layers, FEWEST_FOLDED, LONGEST_PATTERN);
        let left_out = if runs.len() > 2 * ENDS { ENDS..runs.len() - ENDS } else { 0..0 };
        let mut segments = Vec::new();
        for (i, run) in runs.iter().enumerate() {
            if i == left_out.start && !left_out.is_empty() {
                let layers = numbers(runs[left_out.clone()].iter().flat_map(|r| r.blocks()));
                segments.push(Segment { layers, repeats: 1, steps: Vec::new() });
            }
            if !left_out.contains(&i) {
                let steps = run.places().map(|b| Step { layers: numbers(b.clone()), cards: cards(b) }).collect();
                segments.push(Segment { layers: numbers(run.blocks()), repeats: run.repeats(), steps });
            }
        }
        Self { start: cards(start.iter()), segments }
    }

    /// The classes that are met, in the order of the legend.
    fn classes(&self) -> Vec<Class> {
        let steps = self.segments.iter().flat_map(|s| &s.steps).flat_map(|s| &s.cards);
        let met: Vec<Class> = self.start.iter().chain(steps).map(Card::class).collect();
        [Class::Weights, Class::Nodes, Class::Other].into_iter().filter(|c| met.contains(c)).collect()
    }
}

/// The size of the model and what would be edited, in words that need no escaping.
fn summary(inspect: &InspectResult) -> String {
    let vocabulary = inspect.d_vocab.map(|v| format!(", d_vocab {v}")).unwrap_or_default();
    let of = |wanted| inspect.writers.iter().filter(|w| Class::of(w.treatment) == wanted).count();
    let mut ways: Vec<String> = [Class::Weights, Class::Nodes].map(|c| format!("{} by {c}", of(c))).to_vec();
    if of(Class::Other) > 0 {
        ways.push(format!("{} otherwise", of(Class::Other)));
    }
    let writers = count(inspect.writers.len(), "writer");
    format!(
        "{}, d_model {}{vocabulary}; {writers}, {}",
        count(inspect.n_layers, "layer"),
        inspect.d_model,
        ways.join(", ")
    )
}

/// Name of the output that holds the logits.
fn logits(inspect: &InspectResult) -> String {
    single_line(inspect.interface.as_ref().map_or("logits", |found| &found.logits))
}

/// Width of the unembedding: `128 → 1600`.
fn unembedding(inspect: &InspectResult) -> String {
    inspect.d_vocab.map_or_else(|| inspect.d_model.to_string(), |v| format!("{} → {v}", inspect.d_model))
}

/// What a refusal says, with the name of each fact.
fn refusal_facts(row: &Refusal) -> Vec<(&'static str, &str)> {
    let facts =
        [("node", &row.node), ("op", &row.op), ("tensor", &row.tensor), ("reason", &row.reason), ("hint", &row.hint)];
    facts.into_iter().filter(|(_, text)| !text.trim().is_empty()).map(|(name, text)| (name, text.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_pictures_name_every_kind_and_survive_hostile_names() {
        let mut inspect = super::super::sample::run().variants.swap_remove(0).inspect;
        inspect.writers[1].initializer = Some("evil\"] --> x<script>\n&".into());
        let (svg, mermaid) = (svg(&inspect), mermaid(&inspect));
        roxmltree::Document::parse(&svg).unwrap();
        assert!(!svg.contains("<script") && !mermaid.contains("<script") && !mermaid.contains("evil\""));
        assert!(mermaid.starts_with("flowchart") || mermaid.contains("flowchart TB"), "{mermaid}");
        for word in ["attn_out", "mlp_out", "embed"] {
            assert!(svg.contains(word) && mermaid.contains(word), "{word}");
        }
    }
}
