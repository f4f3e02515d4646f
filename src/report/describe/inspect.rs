//! What a model is, and what would be edited.

use super::super::document::{Block, Column, Facts, Look, Section, Table, Text};
use super::super::layers::{by_layer, joined, numbers, runs};
use super::super::number::{MISSING, bytes, count, shape};
use super::super::{InspectResult, Interface, Refusal, WriterRow};
use crate::lm::CacheSlot;

/// What is in one model.
pub(super) fn model(inspect: &InspectResult) -> Section {
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
    let facts = match &inspect.interface {
        Some(found) => interface(facts, found),
        None => facts,
    };
    let facts = inspect.tied.iter().fold(facts, |facts, note| facts.summary("Tied", note));
    let section = Section::new("model", "The model").summary(facts);
    let section = if inspect.writers.is_empty() { section } else { writers(section, &inspect.writers) };
    match inspect.refusals.is_empty() {
        true => section,
        false => section
            .summary(Block::Heading(Text::of(Look::Bad, "This model is refused:")))
            .summary(Block::List(inspect.refusals.iter().map(refusal).collect())),
    }
}

/// Where a model is refused, why, and what to do.
pub(super) fn refusal(row: &Refusal) -> Text {
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

/// Inputs, cache and logits.
fn interface(facts: Facts, interface: &Interface) -> Facts {
    let Interface {
        input_ids,
        inputs_embeds,
        attention_mask,
        position_ids,
        cache_position,
        token_type_ids,
        use_cache_branch,
        num_logits_to_keep,
        cache,
        logits,
        padding,
        single,
        feeding: _,
        unfed,
        cuda_only,
    } = interface;
    let further = [
        inputs_embeds,
        attention_mask,
        position_ids,
        cache_position,
        token_type_ids,
        use_cache_branch,
        num_logits_to_keep,
    ];
    let inputs = std::iter::once(input_ids).chain(further.into_iter().flatten());
    let inputs: Vec<&str> = inputs.map(String::as_str).collect();
    let mut facts = facts
        .summary("Inputs", inputs.join(", "))
        .summary("KV cache", cache_words(cache))
        .summary("Output", logits)
        .summary("Padding", padding.to_string());
    if *single {
        facts = facts.summary("Batch", "one sequence only");
    }
    for (title, refusal) in [("Not run", unfed), ("Not on CPU", cuda_only)] {
        if let Some(refusal) = refusal {
            let why = format!(": {}", refusal.reason);
            facts = facts.summary(title, Text::of(Look::Code, &refusal.tensor).then(why));
        }
    }
    facts
}

/// The KV cache in words: `6 tensors [batch, 2, past, 64], float16`, each layout once.
fn cache_words(slots: &[CacheSlot]) -> String {
    let mut layouts: Vec<(String, usize)> = Vec::new();
    for slot in slots {
        let dims: Vec<String> = (slot.empty.iter().enumerate())
            .map(|(at, size)| match at {
                at if at == slot.batch_axis && *size == 1 => "batch".to_owned(),
                at if at == slot.batch_axis => format!("batch x {size}"),
                at if Some(at) == slot.sequence_axis => "past".to_owned(),
                _ => size.to_string(),
            })
            .collect();
        let window = slot.window.map(|w| format!(", sliding window of {w}")).unwrap_or_default();
        let layout = format!("[{}], {}{window}", dims.join(", "), slot.dtype);
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
            table.row([layer, first.kind.name(), name, dtype, &size, first.treatment.words()].map(Text::from));
            if let Some(reason) = writer.reason {
                let writer = format!("{layers} {}", first.kind);
                reasons.push(Text::from(format!("{} is not edited by weights: {reason}", writer.trim())));
            }
        }
    }
    section.summary(table).summary(Block::List(reasons))
}
