//! The graph of an embedding file in front of the one that takes its embeddings, for a run of both as one.

use super::{prune, reference_weights};
use crate::lm::EmbeddingFile;
use crate::onnx::proto::{GraphProto, ModelProto, TensorProto, attr_int, node};
use crate::onnx::{DataType, OnnxError};

/// Puts the embedding file's graph in front of the one that takes its output as input `fed`.
pub(super) fn join_embedding(
    proto: &mut ModelProto,
    embedding: &EmbeddingFile<'_>,
    fed: &str,
) -> Result<(), OnnxError> {
    let graph = &embedding.graph;
    let output = graph.name(embedding.output);
    let mut other = ModelProto {
        graph: Some(graph.proto().clone()),
        opset_import: graph.model.skeleton.opset_import.iter().chain(&graph.flat().imports).cloned().collect(),
        ..Default::default()
    };
    prune(&mut other);
    reference_weights(&mut other, graph.model)?;
    for import in other.opset_import {
        let domain = import.domain.as_deref().unwrap_or("");
        match proto.opset_import.iter().find(|i| i.domain.as_deref().unwrap_or("") == domain) {
            Some(known) if known.version == import.version => {}
            Some(_) => {
                let what = format!("an embedding file of another version of the operators `{domain}`");
                return Err(OnnxError::Unsupported { what });
            }
            None => proto.opset_import.push(import),
        }
    }
    let mut front = other.graph.expect("set above");
    // features that a prompt of text alone has none of
    for feature in embedding.features.iter().filter(|feature| feature.is_empty()) {
        front.input.retain(|input| input.name.as_deref() != Some(&feature.name));
        front.initializer.push(TensorProto {
            name: Some(feature.name.clone()),
            dims: feature.shape.iter().map(|&n| n as i64).collect(),
            data_type: Some(feature.dtype.0),
            raw_data: Some(Vec::new()),
            ..Default::default()
        });
    }
    let own = |name: &str| match name {
        name if name == embedding.input_ids || name.is_empty() => name.to_string(),
        name => format!("lancet.embedding/{name}"),
    };
    rename(&mut front, &own);
    let main = proto.graph.as_mut().expect("an indexed model has a graph");
    let wanted = main.input.iter().find(|i| i.name.as_deref() == Some(fed)).and_then(|i| i.tensor()?.elem_type);
    let to = i64::from(wanted.unwrap_or(DataType::FLOAT.0));
    front.node.push(node("Cast", fed, &[&own(output)], &[fed], vec![attr_int("to", to)]));
    for other in &embedding.others {
        if main.input.iter().any(|input| input.name.as_ref() == Some(other)) {
            front.node.push(node("Identity", other, &[&own(other)], &[other], vec![]));
            main.input.retain(|input| input.name.as_ref() != Some(other));
        }
    }
    main.node.splice(0..0, front.node);
    main.initializer.extend(front.initializer);
    main.sparse_initializer.extend(front.sparse_initializer);
    main.input.retain(|i| i.name.as_deref() != Some(fed));
    main.input.extend(front.input);
    Ok(())
}

/// Gives every node and value of a graph and its subgraphs another name; inputs and outputs of the graph itself keep
/// theirs.
fn rename(graph: &mut GraphProto, own: &dyn Fn(&str) -> String) {
    for node in &mut graph.node {
        node.name = node.name.as_deref().map(own);
        node.input.iter_mut().chain(&mut node.output).for_each(|name| *name = own(name));
        for inner in node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            for value in inner.input.iter_mut().chain(&mut inner.output).chain(&mut inner.value_info) {
                value.name = value.name.as_deref().map(own);
            }
            rename(inner, own);
        }
    }
    let sparse = graph.sparse_initializer.iter_mut().filter_map(|t| t.values.as_mut());
    for tensor in graph.initializer.iter_mut().chain(sparse) {
        tensor.name = tensor.name.as_deref().map(own);
    }
}
