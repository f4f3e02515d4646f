//! What an `.onnx` file is, from what its graph computes: token ids or embeddings in, a vocabulary of logits out, or
//! something else.

use crate::onnx::ops::WeightUse;
use crate::onnx::{DataType, Graph, Model, NodeId, ValueId};

/// Most nodes between the token ids and the table that they look up.
const MOST_STEPS: usize = 16;

/// Operators that hand indices on, from their first input.
const RESHAPING: [&str; 8] = ["Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Clip"];

/// What an `.onnx` file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A language model, or what may be one.
    Model,
    /// Turns token ids into embeddings.
    Embedding,
    /// Something else, which a bake copies.
    Other {
        /// What it is not, in words that follow its name.
        reason: String,
        /// Where that is known from.
        evidence: Evidence,
    },
    /// Holds weights of a language model that no edit reaches.
    Blocked(Blocked),
}

/// Where it is known from that a file is no language model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The names of its inputs and outputs: the only file of a folder is taken for its model all the same.
    Names,
    /// Its types and shapes.
    Graph,
}

/// Why a file can neither be edited nor stay beside an edited model as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What it is, in words that follow its name.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

impl Blocked {
    pub(super) fn new(reason: &str, hint: &str) -> Self {
        Self { reason: reason.into(), hint: hint.into() }
    }
}

/// What the names of inputs and outputs say.
#[derive(Default)]
struct Names {
    tokens: bool,
    embeddings: bool,
    /// States of another graph's blocks.
    hidden: bool,
    encoder: bool,
    cache: bool,
    logits: bool,
    /// Whether some output may be logits by its name.
    may_be_logits: bool,
    makes_embeddings: bool,
}

/// Tells a language model from what else lies in such folders. In doubt it is one: a model that is not understood is
/// refused, a part of one that is copied would stay as it was without a word.
///
/// `vocabulary` gives the number of tokens that the configs or the tokenizer beside it tell, for a graph that does not show
/// its own table.
pub(super) fn kind(model: &Model, named_embedding: bool, vocabulary: &dyn Fn() -> Option<u64>) -> Kind {
    let graph = Graph::new(model);
    if graph.nodes().any(|node| graph.node(node).op() == "EPContext") {
        return Kind::Blocked(Blocked::new(
            "is compiled for one device: an `EPContext` node holds its weights, where no edit reaches them",
            "bake the model that it was compiled from, and compile the result again",
        ));
    }
    let outputs: Vec<&str> = graph.proto().output.iter().filter_map(|output| output.name.as_deref()).collect();
    let types: Vec<Option<DataType>> =
        graph.proto().output.iter().map(|o| o.tensor().map(|t| DataType(t.elem_type.unwrap_or(0)))).collect();
    if !types.is_empty() && types.iter().all(|dtype| *dtype == Some(DataType::STRING)) {
        return Kind::Other { reason: "makes text".into(), evidence: Evidence::Graph };
    }
    let mut names = names(&graph, &outputs);
    let table = table_rows(&graph);
    names.tokens |= table.is_some();
    let widths: Vec<Option<u64>> = outputs
        .iter()
        .zip(&types)
        .filter(|(name, dtype)| may_be_logits(name) && dtype.is_none_or(DataType::is_float))
        .map(|(name, _)| graph.value(name).and_then(|value| last_dimension(&graph, value)))
        .collect();
    let is_vocabulary = |width: u64, rows: u64| width.saturating_mul(2) >= rows;
    let takes = names.tokens || names.embeddings;
    if !widths.is_empty()
        && takes
        && widths.iter().all(Option::is_some)
        && let Some(rows) = table.or_else(vocabulary)
        && widths.iter().all(|width| width.is_some_and(|w| !is_vocabulary(w, rows)))
        && (names.logits || !names.cache)
        && !named_embedding
        && !names.makes_embeddings
    {
        let reason = match widths.iter().flatten().max() {
            Some(width) if names.logits => {
                format!("makes logits of {width} classes, not of its {rows} tokens")
            }
            _ => "makes no logits".into(),
        };
        return Kind::Other { reason, evidence: Evidence::Graph };
    }
    by_names(&names, named_embedding)
}

fn by_names(names: &Names, named_embedding: bool) -> Kind {
    let part = |what: &str| {
        Kind::Blocked(Blocked::new(
            what,
            "export the model as one graph with embedding, blocks and head, or as an embedding file and a model that \
             makes logits",
        ))
    };
    let takes = names.tokens || names.embeddings;
    if names.logits && names.hidden && !names.encoder {
        return match takes {
            true => Kind::Blocked(Blocked::new(
                "drafts tokens from the hidden states of another graph: it belongs to the unedited model",
                "leave it out with `--only` and the models to bake",
            )),
            false => part("is the head of a model that is split into several files: it takes hidden states"),
        };
    }
    if names.cache && takes && !names.logits && !names.may_be_logits {
        return part("is a part of a model that is split into several files: it makes no logits");
    }
    if names.cache || (names.logits && names.hidden) {
        return Kind::Model;
    }
    if names.tokens && !names.logits && (named_embedding || names.makes_embeddings) {
        return Kind::Embedding;
    }
    let other = |reason: &str| Kind::Other { reason: reason.into(), evidence: Evidence::Names };
    match (takes, names.may_be_logits) {
        (false, _) => other("takes no token ids"),
        (true, false) => other("makes no logits"),
        (true, true) => Kind::Model,
    }
}

fn names(graph: &Graph<'_>, outputs: &[&str]) -> Names {
    let mut names = Names::default();
    for input in &graph.proto().input {
        let name = input.name.as_deref().unwrap_or("");
        if graph.value(name).is_some_and(|value| graph.tensor(value).is_some()) {
            continue;
        }
        let name = name.to_ascii_lowercase();
        let dtype = input.tensor().map(|t| DataType(t.elem_type.unwrap_or(0)));
        names.tokens |= dtype.is_none_or(is_whole)
            && (name.contains("input_ids") || matches!(name.as_str(), "input" | "tokens" | "ids"));
        names.embeddings |= name.contains("inputs_embeds");
        names.hidden |= name.contains("hidden");
        names.encoder |= name.contains("encoder");
        names.cache |= name.contains("past_key") || name.contains("past_value") || name.contains("past.");
    }
    for output in outputs {
        let name = output.to_ascii_lowercase();
        names.logits |= name == "logits";
        names.may_be_logits |= may_be_logits(output);
        names.makes_embeddings |= name.contains("inputs_embeds");
    }
    names
}

/// Whether an output may be logits by its name.
fn may_be_logits(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let states = ["hidden", "embed", "feature", "pool", "state", "encod", "present", "past", "per_layer_inputs"];
    name == "logits" || !states.iter().any(|word| name.contains(word))
}

fn is_whole(dtype: DataType) -> bool {
    matches!(dtype, DataType::INT64 | DataType::INT32)
}

/// Width of an output: what a runtime would be told, else what the graph declares.
fn last_dimension(graph: &Graph<'_>, value: ValueId) -> Option<u64> {
    let declared = || graph.declared_shape(value)?.last().copied().flatten().and_then(|d| u64::try_from(d).ok());
    graph.last_dimension(value).or_else(declared)
}

/// Rows of the largest table that an input of whole numbers looks up: the vocabulary.
fn table_rows(graph: &Graph<'_>) -> Option<u64> {
    // table first, then indices
    let looks_up = |node: &NodeId| graph.weighted(*node).is_some_and(|weighted| weighted.work == WeightUse::Lookup);
    let rows = graph.nodes().filter(looks_up).filter_map(|node| {
        let table = graph.tensor_ref(graph.input(node, 0)?)?;
        let mut at = graph.input(node, 1)?;
        for _ in 0..MOST_STEPS {
            match graph.producer(at) {
                Some(from) if RESHAPING.contains(&graph.op(from)) => at = graph.input(from, 0)?,
                Some(_) => return None,
                None => break,
            }
        }
        let name = graph.name(at);
        let input = graph.proto().input.iter().find(|input| input.name.as_deref() == Some(name))?;
        let whole = input.tensor().is_some_and(|t| is_whole(DataType(t.elem_type.unwrap_or(0))));
        let lower = name.to_ascii_lowercase();
        let other = ["position", "type", "mask", "past", "segment"].iter().any(|word| lower.contains(word));
        (whole && !other && graph.tensor(at).is_none() && table.shape.len() == 2).then(|| table.shape[0])
    });
    rows.max()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx::proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
        ValueInfoProto, type_proto,
    };

    fn info(name: &str, dtype: DataType, dims: &[i64]) -> ValueInfoProto {
        use crate::onnx::proto::{Dimension, dimension::Value};
        let dim = dims.iter().map(|d| Dimension { value: (*d > 0).then_some(Value::DimValue(*d)) });
        let shape = TensorShapeProto { dim: dim.collect() };
        let tensor = type_proto::Tensor { elem_type: Some(dtype.0), shape: Some(shape) };
        let value = Some(type_proto::Value::TensorType(tensor));
        ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { value, ..Default::default() }) }
    }

    fn found(graph: GraphProto, named_embedding: bool) -> String {
        let opset_import = vec![OperatorSetIdProto { domain: None, version: Some(17) }];
        let model = ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        match kind(&Model::open(&path).unwrap(), named_embedding, &|| Some(500)) {
            Kind::Model => "model".into(),
            Kind::Embedding => "embedding".into(),
            Kind::Other { reason, .. } => reason,
            Kind::Blocked(blocked) => format!("blocked: {}", blocked.reason),
        }
    }

    #[test]
    fn models_are_told_from_inputs_and_outputs() {
        for (inputs, outputs, wanted) in [
            (&["input_ids", "attention_mask"][..], &["logits"][..], "model"),
            (&["l_input_ids_"], &["1207"], "model"),
            (&["inputs_embeds", "past_key_values.0.key"], &["logits", "present.0.key"], "model"),
            (
                &["inputs_embeds", "past_key_values.0.key"],
                &["hidden_states", "present.0.key"],
                "blocked: is a part of a model that is split into several files: it makes no logits",
            ),
            (
                &["hidden_states"],
                &["logits"],
                "blocked: is the head of a model that is split into several files: it takes hidden states",
            ),
            (
                &["input_ids", "hidden_states"],
                &["logits"],
                "blocked: drafts tokens from the hidden states of another graph: it belongs to the unedited model",
            ),
            (&["input_ids", "encoder_hidden_states"], &["logits"], "model"),
            (&["input_ids"], &["inputs_embeds"], "embedding"),
            (&["input_ids", "image_features"], &["inputs_embeds"], "embedding"),
            (&["input_ids"], &["inputs_embeds", "per_layer_inputs"], "embedding"),
            (&["pixel_values"], &["image_features"], "takes no token ids"),
            (&["pixel_values"], &["logits"], "takes no token ids"),
            (&["input_features"], &["last_hidden_state"], "takes no token ids"),
            (&["input_ids", "attention_mask"], &["last_hidden_state", "sentence_embedding"], "makes no logits"),
        ] {
            let named = |name: &&str| ValueInfoProto { name: Some((*name).into()), ..Default::default() };
            let node = NodeProto {
                op_type: Some("Mystery".into()),
                input: inputs.iter().map(ToString::to_string).collect(),
                output: outputs.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            let graph = GraphProto {
                node: vec![node],
                input: inputs.iter().map(named).collect(),
                output: outputs.iter().map(named).collect(),
                ..Default::default()
            };
            assert_eq!(found(graph, false), wanted, "{inputs:?} {outputs:?}");
        }
    }

    /// Looks `ids` up in a table of 100 rows and makes `output` of the width `width` of it.
    fn lookup(ids: &str, output: &str, width: i64) -> GraphProto {
        let node = |op: &str, input: &[&str], output: &str| NodeProto {
            op_type: Some(op.into()),
            input: input.iter().map(ToString::to_string).collect(),
            output: vec![output.into()],
            ..Default::default()
        };
        let tensor = |name: &str, dims: &[i64]| TensorProto {
            name: Some(name.into()),
            dims: dims.to_vec(),
            data_type: Some(1),
            raw_data: Some(vec![0; 4 * dims.iter().product::<i64>() as usize]),
            ..Default::default()
        };
        GraphProto {
            node: vec![
                node("Cast", &[ids], "whole"),
                node("Gather", &["table", "whole"], "x"),
                node("MatMul", &["x", "head"], output),
            ],
            initializer: vec![tensor("table", &[100, 4]), tensor("head", &[4, width])],
            input: vec![info(ids, DataType::INT64, &[0, 0])],
            output: vec![info(output, DataType::FLOAT, &[0, 0, width])],
            ..Default::default()
        }
    }

    #[test]
    fn models_are_told_from_what_they_compute() {
        for (ids, output, width, wanted) in [
            ("input_ids", "logits", 100, "model"),
            // padded or cut a little
            ("input_ids", "logits", 128, "model"),
            ("input_ids", "logits", 2, "makes logits of 2 classes, not of its 100 tokens"),
            // whatever the names are
            ("prompt", "scores", 100, "model"),
            ("prompt", "scores", 3, "makes no logits"),
            ("input_ids", "output", 4, "makes no logits"),
        ] {
            assert_eq!(found(lookup(ids, output, width), false), wanted, "{ids} {output} {width}");
        }
        assert_eq!(found(lookup("input_ids", "embeddings", 4), true), "embedding");
        // a graph without a table is held against the tokenizer beside it
        for (width, wanted) in [(1, "makes logits of 1 classes, not of its 500 tokens"), (500, "model")] {
            let mut bare = lookup("input_ids", "logits", width);
            bare.node[1].op_type = Some("Mystery".into());
            assert_eq!(found(bare, false), wanted);
        }
        let mut text = lookup("ids", "text", 100);
        text.output = vec![info("text", DataType::STRING, &[0])];
        assert_eq!(found(text, false), "makes text");
        let mut compiled = lookup("input_ids", "logits", 100);
        compiled.node[1].op_type = Some("EPContext".into());
        compiled.node[1].domain = Some("com.microsoft".into());
        assert!(found(compiled, false).starts_with("blocked: is compiled for one device"));
    }
}
