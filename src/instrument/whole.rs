//! A session of a graph as it is, with values of it returned beside its own outputs: no part of the stream is looked
//! for.

use std::collections::HashSet;

use prost::Message;

use super::{Request, join_embedding, prune, reference_weights, steer, widen_bfloat16};
use crate::lm::{EmbeddingFile, ResidualStream};
use crate::onnx::patch::Patch;
use crate::onnx::proto::{ModelProto, ValueInfoProto};
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
    /// A stream to ablate the direction given as graph input from, at every write that was found.
    pub ablated: Option<&'a ResidualStream>,
    /// Compute bfloat16 graphs in float32.
    pub widen_bfloat16: bool,
}

/// A session model, and the names of its outputs in the order in which they were wanted.
pub struct WholeModel {
    /// An encoded `ModelProto` whose initializers point into the original files.
    pub bytes: Vec<u8>,
    /// Names of the outputs.
    pub outputs: Vec<String>,
    /// Names of the inputs that those outputs depend on.
    pub inputs: Vec<String>,
}

/// Builds the model.
///
/// # Errors
/// If tensor data that must be copied cannot be read.
pub fn whole(graph: &Graph<'_>, how: &Whole<'_>) -> Result<WholeModel, OnnxError> {
    let mut patch = Patch::default();
    if let Some(stream) = how.ablated {
        steer(graph, stream, &Request { ablation: true, ..Request::default() }, &mut patch);
    }
    let mut outputs = Vec::new();
    for wanted in how.wanted {
        outputs.push(match *wanted {
            Wanted::Value(value) => graph.name(value).to_string(),
            Wanted::Unnamed(node, slot) => {
                let named = patch.renames.iter().find(|(n, s, _)| *n == node && *s == slot);
                match named.map(|(.., name)| name.clone()) {
                    Some(name) => name,
                    None => {
                        let name = graph.fresh_name(&format!("lancet.read.{}", node.0));
                        patch.renames.push((node, slot, name.clone()));
                        name
                    }
                }
            }
        });
    }
    let skeleton = &graph.model.skeleton;
    let mut proto = ModelProto {
        graph: Some(graph.proto().clone()),
        functions: Vec::new(),
        opset_import: skeleton.opset_import.iter().chain(&graph.flat().imports).cloned().collect(),
        metadata_props: Vec::new(),
        ..skeleton.clone()
    };
    let main = proto.graph.as_mut().expect("set above");
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
    let defaults: HashSet<&str> = main.initializer.iter().filter_map(|t| t.name.as_deref()).collect();
    let inputs =
        main.input.iter().filter_map(|i| i.name.clone()).filter(|name| !defaults.contains(name.as_str())).collect();
    Ok(WholeModel { bytes: proto.encode_to_vec(), outputs, inputs })
}
