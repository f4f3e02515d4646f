//! A session of a graph as it is, with values of it returned beside its own outputs: no part of the stream is looked
//! for.

use std::collections::HashSet;

use prost::Message;

use super::{
    Request, direction_input, flat_model, join_embedding, names_are_free, output_name, prune, reference_weights, steer,
    widen_bfloat16,
};
use crate::lm::{EmbeddingFile, ResidualStream};
use crate::onnx::captured::captured;
use crate::onnx::patch::Patch;
use crate::onnx::proto::{GraphProto, ValueInfoProto};
use crate::onnx::{Graph, NodeId, OnnxError, ValueId};

/// A value to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// A named value.
    Value(ValueId),
    /// An output of a node that the file leaves unnamed, by its slot.
    Unnamed(NodeId, usize),
}

/// What a session of the whole graph is to compute.
#[derive(Clone, Copy)]
pub struct Whole<'a> {
    /// Values to return.
    pub wanted: &'a [Wanted],
    /// The file that makes the embeddings, and the input that takes them.
    pub embedding: Option<(&'a EmbeddingFile<'a>, &'a str)>,
    /// A stream to ablate so many directions from, given as graph inputs, at every write that was found.
    pub ablated: Option<(&'a ResidualStream, usize)>,
    /// Compute bfloat16 graphs in float32.
    pub widen_bfloat16: bool,
}

/// A session model, and the names of its outputs in the order in which they were wanted.
pub struct WholeModel {
    /// An encoded `ModelProto` whose initializers point into the original files.
    pub bytes: Vec<u8>,
    /// Names of the outputs.
    pub outputs: Vec<String>,
    /// Whether each of them depends on the directions that are ablated.
    pub steered: Vec<bool>,
}

/// Builds the model.
///
/// # Errors
/// If tensor data that must be copied cannot be read.
pub fn whole(graph: &Graph<'_>, how: &Whole<'_>) -> Result<WholeModel, OnnxError> {
    let mut patch = Patch::default();
    if let Some((stream, directions)) = how.ablated {
        steer(graph, stream, &Request { directions, ..Request::default() }, &mut patch)?;
    }
    let mut outputs = Vec::new();
    for wanted in how.wanted {
        outputs.push(match *wanted {
            Wanted::Value(value) => graph.name(value).to_string(),
            Wanted::Unnamed(node, slot) => output_name(graph, &mut patch, node, slot),
        });
    }
    names_are_free(&patch, graph)?;
    patch.check(graph);
    let mut proto = flat_model(graph);
    let main = proto.graph.as_mut().expect("a flat model has a graph");
    patch.apply(main);
    // ONNX Runtime infers the types; each name once
    let mut seen = HashSet::new();
    main.output = outputs
        .iter()
        .filter(|name| seen.insert((*name).clone()))
        .map(|name| ValueInfoProto { name: Some(name.clone()), r#type: None })
        .collect();
    prune(&mut proto);
    reference_weights(&mut proto, graph.model)?;
    if let Some((embedding, fed)) = how.embedding {
        join_embedding(&mut proto, embedding, fed)?;
    }
    if how.widen_bfloat16 {
        widen_bfloat16(proto.graph.as_mut().expect("still there"));
    }
    let main = proto.graph.as_ref().expect("still there");
    let directions = how.ablated.map_or(0, |(_, directions)| directions);
    let reached = reached(main, (0..directions).map(direction_input));
    let steered = outputs.iter().map(|name| reached.contains(name)).collect();
    Ok(WholeModel { bytes: proto.encode_to_vec(), outputs, steered })
}

/// The names of all values that depend on `from`.
fn reached(graph: &GraphProto, from: impl Iterator<Item = String>) -> HashSet<String> {
    let mut found: HashSet<String> = from.collect();
    loop {
        let before = found.len();
        for node in &graph.node {
            let reads = |name: &String| found.contains(name);
            if node.input.iter().any(reads) || captured(node).iter().any(reads) {
                found.extend(node.output.iter().filter(|name| !name.is_empty()).cloned());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}
