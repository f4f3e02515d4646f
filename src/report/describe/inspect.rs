//! What a model is, and what would be edited.

use super::super::document::{Block, Column, Document, Facts, Look, Section, Table, Text};
use super::super::layers::{by_layer, joined, numbers, runs};
use super::super::number::{MISSING, bytes, count, shape};
use super::super::{InspectResult, RefusalRow, WriterRow};

/// What `lancet inspect` found in one model.
#[must_use]
pub fn inspect(inspect: &InspectResult) -> Document {
    let vocabulary = inspect.d_vocab.map(|v| format!(", d_vocab {v}")).unwrap_or_default();
    let producer = if inspect.producer.is_empty() { String::new() } else { format!(", from {}", inspect.producer) };
    let external = match inspect.external_files.as_slice() {
        [] => String::new(),
        [one] => format!(" and {one}"),
        files => format!(" and {} external files", files.len()),
    };
    let file = format!(
        "{}{external}, opset {}, IR version {}{producer}",
        bytes(inspect.file_bytes),
        inspect.opset,
        inspect.ir_version
    );
    let facts = Facts::default()
        .summary("Model", format!("n_layers {}, d_model {}{vocabulary}", inspect.n_layers, inspect.d_model))
        .summary("File", file);
    let facts = interface(facts, &inspect.interface);
    let facts = inspect.tied.iter().fold(facts, |facts, note| facts.summary("Tied", note));
    let section = Section::new("model", "The model").summary(facts);
    let section = if inspect.writers.is_empty() { section } else { writers(section, &inspect.writers) };
    let section = match inspect.refusals.is_empty() {
        true => section,
        false => section
            .summary(Block::Heading(Text::of(Look::Bad, "This model is refused:")))
            .summary(Block::List(inspect.refusals.iter().map(refusal).collect())),
    };
    Document { subject: Text::of(Look::Path, &inspect.model), sections: vec![section], ..Document::default() }
}

/// Where a model is refused, why, and what to do.
pub(super) fn refusal(row: &RefusalRow) -> Text {
    let mut text = Text::from("node ").code(&row.node);
    if !row.op.is_empty() {
        text = text.then(format!(" ({})", row.op));
    }
    if !row.tensor.is_empty() {
        text = text.then(", tensor ").code(&row.tensor);
    }
    let text = text.then(format!(": {}", row.reason));
    if row.hint.is_empty() { text } else { text.then(format!("; hint: {}", row.hint)) }
}

/// Inputs, cache and logits, off the JSON of the interface; what is not known is shown as it is.
fn interface(facts: Facts, interface: &serde_json::Value) -> Facts {
    let Some(fields) = interface.as_object() else {
        return facts;
    };
    let mut inputs = Vec::new();
    let mut rest = Facts::default();
    for (key, value) in fields {
        match (key.as_str(), value) {
            (_, serde_json::Value::Null | serde_json::Value::Bool(false)) => {}
            ("logits", serde_json::Value::String(name)) => rest = rest.summary("Output", name),
            ("cache", serde_json::Value::Array(slots)) => rest = rest.summary("KV cache", cache(slots)),
            ("padding", serde_json::Value::String(how)) => rest = rest.summary("Padding", how.replace('_', " ")),
            ("unfed", refusal) => {
                let words = |key: &str| refusal[key].as_str().unwrap_or_default();
                let why = format!(": {}", words("reason"));
                rest = rest.summary("Not run", Text::of(Look::Code, words("tensor")).then(why));
            }
            ("single", _) => rest = rest.summary("Batch", "one sequence only"),
            (_, serde_json::Value::String(name)) => inputs.push(name.as_str()),
            (key, value) => rest = rest.summary(key, value.to_string()),
        }
    }
    let facts = if inputs.is_empty() { facts } else { facts.summary("Inputs", inputs.join(", ")) };
    facts.more(rest)
}

/// The KV cache in words: `6 tensors [batch, 2, past, 64], float16`, each layout once.
fn cache(slots: &[serde_json::Value]) -> String {
    let mut layouts: Vec<(String, usize)> = Vec::new();
    for slot in slots {
        let axis = |name: &str| slot[name].as_u64();
        let dims: Vec<String> = slot["empty"]
            .as_array()
            .into_iter()
            .flatten()
            .zip(0u64..)
            .map(|(size, at)| match Some(at) {
                at if at == axis("batch_axis") && size.as_u64() == Some(1) => "batch".to_owned(),
                at if at == axis("batch_axis") => format!("batch x {size}"),
                at if at == axis("sequence_axis") => "past".to_owned(),
                _ => size.to_string(),
            })
            .collect();
        let dtype = slot["dtype"].as_str().map(|d| format!(", {d}")).unwrap_or_default();
        let window = slot["window"].as_u64().map(|w| format!(", sliding window of {w}")).unwrap_or_default();
        let layout = format!("[{}]{dtype}{window}", dims.join(", "));
        match layouts.iter_mut().find(|(known, _)| *known == layout) {
            Some((_, n)) => *n += 1,
            None => layouts.push((layout, 1)),
        }
    }
    let words: Vec<String> = layouts.iter().map(|(layout, n)| format!("{} {layout}", count(*n, "tensor"))).collect();
    if words.is_empty() { "none".to_owned() } else { words.join("; ") }
}

/// Writers by layer; runs of layers that differ in numbers only are one group.
fn writers(section: Section, writers: &[WriterRow]) -> Section {
    let columns = [
        Column::words("layer"),
        Column::words("writer"),
        Column::words("initializer").shortened(),
        Column::words("dtype"),
        Column::numbers("shape"),
        Column::words("treatment"),
    ];
    let mut table = Table::new("plain", "Writers to the residual stream", columns);
    let mut reasons = Vec::new();
    for run in runs(by_layer(writers), 2, 1) {
        let layers = numbers(run.blocks());
        for (i, writer) in joined(run.blocks()).into_iter().enumerate() {
            let first = writer.first;
            let layer = match i {
                0 if layers.is_empty() => MISSING,
                0 => &layers,
                _ => "",
            };
            let size = shape(first.shape.as_deref());
            let size = if first.n_weights > 1 { format!("{} x {size}", first.n_weights) } else { size };
            let name = writer.name.as_deref().unwrap_or(MISSING);
            let dtype = first.dtype.as_deref().unwrap_or(MISSING);
            table.row([layer, &first.kind, name, dtype, &size, &first.treatment].map(Text::from));
            if let Some(reason) = writer.reason {
                let writer = format!("{layers} {}", first.kind);
                reasons.push(Text::from(format!("{} is not edited by weights: {reason}", writer.trim())));
            }
        }
    }
    section.summary(table).summary(Block::List(reasons))
}
