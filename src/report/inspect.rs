//! The terminal text of `lancet inspect`.

use super::layers::{by_layer, joined, numbers, runs};
use super::layout::{Cell, Style, Tone, columns, fact, labelled, plain, shorten_middle, single_line, table};
use super::number::{MISSING, bytes, count, shape};
use super::{InspectResult, WriterRow};

/// What a model is and what would be edited, for a terminal of `width` columns.
#[must_use]
pub fn inspect_table(inspect: &InspectResult, width: usize, style: Style) -> String {
    let mut out = format!("{}\n\n", style.paint(Tone::Strong, &single_line(&inspect.model)));
    let vocabulary = inspect.d_vocab.map(|v| format!(", d_vocab {v}")).unwrap_or_default();
    let shape = format!("n_layers {}, d_model {}{vocabulary}", inspect.n_layers, inspect.d_model);
    fact(&mut out, style, width, "Model", &shape);
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
    fact(&mut out, style, width, "File", &file);
    interface(&mut out, style, width, &inspect.interface);
    for note in &inspect.tied {
        fact(&mut out, style, width, "Tied", note);
    }
    if !inspect.writers.is_empty() {
        out.push('\n');
        writers(&mut out, style, width, &inspect.writers);
    }
    if !inspect.refusals.is_empty() {
        out.push_str(&format!("\n{}\n", style.paint(Tone::Bad, "This model is refused:")));
        for r in &inspect.refusals {
            let op = if r.op.is_empty() { String::new() } else { format!(" ({})", r.op) };
            let tensor = if r.tensor.is_empty() { String::new() } else { format!(", tensor `{}`", r.tensor) };
            let node = format!("node `{}`{op}{tensor}: {}", r.node, r.reason);
            labelled(&mut out, style, ("  -", 4), &node, (width, usize::MAX));
            if !r.hint.is_empty() {
                labelled(&mut out, style, ("    hint:", 10), &r.hint, (width, usize::MAX));
            }
        }
    }
    out
}

/// Inputs, cache and logits, off the JSON of the interface; what is not known is shown as it is.
fn interface(out: &mut String, style: Style, width: usize, interface: &serde_json::Value) {
    let Some(fields) = interface.as_object() else {
        return;
    };
    let mut inputs = Vec::new();
    let mut rest = Vec::new();
    for (key, value) in fields {
        match (key.as_str(), value) {
            (_, serde_json::Value::Null | serde_json::Value::Bool(false)) => {}
            ("logits", serde_json::Value::String(name)) => rest.push(("Output".to_owned(), name.clone())),
            ("cache", serde_json::Value::Array(slots)) if slots.is_empty() => {
                rest.push(("KV cache".to_owned(), "none".to_owned()));
            }
            ("cache", serde_json::Value::Array(slots)) => {
                rest.push(("KV cache".to_owned(), cache(slots)));
            }
            ("padding", serde_json::Value::String(how)) => {
                rest.push(("Padding".to_owned(), how.replace('_', " ")));
            }
            ("unfed", refusal) => {
                let words = |key: &str| refusal[key].as_str().unwrap_or_default();
                rest.push(("Not run".to_owned(), format!("`{}`: {}", words("tensor"), words("reason"))));
            }
            ("single", _) => rest.push(("Batch".to_owned(), "one sequence only".to_owned())),
            (_, serde_json::Value::String(name)) => inputs.push(name.clone()),
            (key, value) => rest.push((key.to_owned(), value.to_string())),
        }
    }
    if !inputs.is_empty() {
        fact(out, style, width, "Inputs", &inputs.join(", "));
    }
    for (label, text) in rest {
        fact(out, style, width, &label, &text);
    }
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
    words.join("; ")
}

/// Writers by layer; runs of layers that differ in numbers only are one group.
fn writers(out: &mut String, style: Style, width: usize, writers: &[WriterRow]) {
    let mut rows = Vec::new();
    let mut reasons: Vec<(String, String)> = Vec::new();
    for run in runs(by_layer(writers), 2, 1) {
        let layer = numbers(run.blocks());
        for (i, writer) in joined(run.blocks()).into_iter().enumerate() {
            let name = writer.name.map_or_else(|| MISSING.to_owned(), |name| single_line(&name));
            if let Some(reason) = writer.reason {
                reasons.push((format!("{layer} {}", writer.first.kind), reason));
            }
            rows.push(vec![
                plain(match i {
                    0 if layer.is_empty() => MISSING.to_owned(),
                    0 => layer.clone(),
                    _ => String::new(),
                }),
                plain(single_line(&writer.first.kind)),
                plain(name),
                plain(writer.first.dtype.as_deref().map_or_else(|| MISSING.to_owned(), single_line)),
                plain(if writer.first.n_weights > 1 {
                    format!("{} x {}", writer.first.n_weights, shape(writer.first.shape.as_deref()))
                } else {
                    shape(writer.first.shape.as_deref())
                }),
                plain(single_line(&writer.first.treatment)),
            ]);
        }
    }
    let widest =
        |i: usize, header: &str| rows.iter().map(|r: &Vec<Cell>| columns(&r[i].0)).max().unwrap_or(0).max(header.len());
    let fixed = widest(0, "layer")
        + widest(1, "writer")
        + widest(3, "dtype")
        + widest(4, "shape")
        + widest(5, "treatment")
        + 12;
    let room = width.saturating_sub(fixed).max(16);
    for row in &mut rows {
        row[2].0 = shorten_middle(&row[2].0, room);
    }
    let header = ["layer", "writer", "initializer", "dtype", "shape", "treatment"];
    table(out, style, &header, &[false, false, false, false, true, false], &rows);
    for (i, (writer, reason)) in reasons.iter().enumerate() {
        if i == 0 {
            out.push('\n');
        }
        let text = format!("{} is not edited by weights: {reason}", writer.trim());
        labelled(out, style, ("  -", 4), &text, (width, usize::MAX));
    }
}
